"""Configuration of BERT text encoders: the fields of config.json that matter."""

from __future__ import annotations

import dataclasses

from smart_jax.models.layers import ACTIVATIONS
from smart_jax.typing import JsonObject


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """Configuration of a BERT. Names are those of config.json, except for `pooling`.

    Attributes:
      pooling: how a text's states become its pooled vector, "mean" or "cls"; config.json does not say it, see
        `pooling.read_pooling`.

    Example:
      >>> config = BertConfig.from_hf({
      ...     "model_type": "bert", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2,
      ...     "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 40})
      >>> config.hidden_act, config.pooling
      ('gelu', 'mean')
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pooling: str = "mean"

    @property
    def text(self) -> BertConfig:
        """Config of the text tower, which every backbone's config has; of a BERT it is the whole."""
        return self

    @property
    def state_width(self) -> int:
        """Width of the states, as every backbone's config has it."""
        return self.hidden_size

    @property
    def token_dim(self) -> None:
        """Width of a head's token vectors, as every backbone's config has it: a BERT has no head."""
        return None

    @classmethod
    def from_hf(cls, hf: JsonObject) -> BertConfig:
        """Returns the config that a parsed config.json describes.

        Raises:
          ValueError: a key is missing, or asks for something that this backbone does not compute; the message names it.
        """
        fields = [field for field in dataclasses.fields(cls) if field.name != "pooling"]
        needed = [field.name for field in fields if field.default is dataclasses.MISSING]
        if missing := [name for name in needed if name not in hf]:
            raise ValueError(f"config.json lacks {', '.join(missing)}: is the file complete?")
        config = cls(**{field.name: hf[field.name] for field in fields if field.name in hf})
        if config.hidden_act not in ACTIVATIONS:
            raise ValueError(f"hidden_act '{config.hidden_act}' is not supported, only {', '.join(ACTIVATIONS)}")
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"hidden_size {config.hidden_size} does not divide by num_attention_heads {config.num_attention_heads}"
            )
        for key, only in (("position_embedding_type", "absolute"), ("is_decoder", False)):
            if hf.get(key, only) != only:
                raise ValueError(f"{key} is {hf[key]!r}, only {only!r} is supported")
        return config
