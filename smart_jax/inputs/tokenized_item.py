"""One item after preprocessing: token ids, kept tokens and patches, unpadded."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from smart_jax.models import Grid


@dataclasses.dataclass(frozen=True)
class TokenizedItem:
    """One item as the backbone reads it, before padding.

    Attributes:
      input_ids: token ids, int32.
      keep: kept tokens, which take part in late interaction.
      grids: sizes of its videos (or of their temporal patches, each like an image) and then of its images, in patches.
      patches: bytes of all of these, one patch after another, as in `smart_jax.models.VisionBatch`; with a video among
        them, still images have their frame repeated.
      steps: temporal steps of the visual tokens, as in `smart_jax.models.mrope_positions`.
      pool: tokens whose mean state is the pooled one; None = the architecture's rule.
      audio: log mel features of its clips, in order, float32.
      unheard: seconds of its clips that are longer than the model hears, and were left out.
      cut: number of tokens that were left out at the end, for which the model has no room.

    Example:
      >>> import numpy as np
      >>> ids, keep = np.array([7, 8, 9], np.int32), np.array([False, True, True])
      >>> item = TokenizedItem(ids, keep, grids=(), patches=np.zeros((0, 0), np.uint8))
      >>> len(item), len(item.patches)
      (3, 0)
    """

    input_ids: Int[np.ndarray, " L"]
    keep: Bool[np.ndarray, " L"]
    grids: tuple[Grid, ...]
    patches: UInt8[np.ndarray, "V E"]
    steps: tuple[float, ...] = ()
    pool: Bool[np.ndarray, " L"] | None = None
    cut: int = 0
    audio: tuple[Float[np.ndarray, "_ F"], ...] = ()
    unheard: float = 0.0

    def __len__(self) -> int:
        return len(self.input_ids)
