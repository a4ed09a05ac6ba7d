"""Qwen3.5 as an encoder: the vision tower of Qwen3-VL without DeepStack, before the decoder of two kinds of layers.

A row holds one item, and its padding is on the right: a state that is carried from position to position knows no
segments.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jax.sharding import PartitionSpec as P

from smart_jax.models.batch import Batch, Hidden
from smart_jax.models.qwen3_5.config import Qwen35Config
from smart_jax.models.qwen3_5.decoder import Decoder
from smart_jax.models.qwen_vl import SHARDING_RULES as QWEN_VL_RULES
from smart_jax.models.qwen_vl import QwenVL

SHARDING_RULES = (
    (r"in_proj_(qkv|z)\.kernel$", P("fsdp", "tensor")),
    (r"in_proj_[ab]\.kernel$", P("fsdp", None)),
    (r"out_proj\.kernel$", P("tensor", "fsdp")),
    *QWEN_VL_RULES,
)
# Heads of language models: of the next token, and of the tokens after it.
IGNORED = r"lm_head\.weight|mtp\..*"


class Qwen35(QwenVL):
    """A backbone of Qwen3.5.

    Example:
      >>> Qwen35.text_model.__name__, issubclass(Qwen35, QwenVL)
      ('Decoder', True)
    """

    config: Qwen35Config
    text_model = Decoder

    def __call__(self, batch: Batch, layers: Sequence[int] = (-1,), *, remat: bool | str = False) -> Hidden:
        """Returns the states of a batch, whose padding is on the right; see `QwenVL.__call__`.

        Raises:
          ValueError: padding stands before a token. Only arrays of NumPy are looked at: inside jit a mask has no
            values yet.
        """
        mask = batch.attention_mask
        if isinstance(mask, np.ndarray) and (mask[:, 1:] & ~mask[:, :-1]).any():
            raise ValueError(
                "a row has padding before its tokens: Qwen3.5 takes an item for a row, padded on its right"
            )
        return super().__call__(batch, layers, remat=remat)
