"""Configuration of Qwen3.5, read from a checkpoint's config.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from smart_jax.models.qwen_vl_config import QwenVLConfig, TextConfig
from smart_jax.typing import JsonObject

FULL, LINEAR = "full_attention", "linear_attention"
SECTIONS = (11, 11, 10)  # of M-RoPE, where config.json has none
INTERVAL = 4  # of layers, of which the last is full, where config.json does not list them


@dataclasses.dataclass(frozen=True)
class Qwen35TextConfig(TextConfig):
    """The decoder. Names are those of config.json where it has the field; `TextConfig` has the others."""

    layer_types: tuple[str, ...] = ()  # FULL or LINEAR, of each layer
    partial_rotary_factor: float = 0.25  # share of a head's components that turn, its first ones
    linear_num_key_heads: int = 16
    linear_num_value_heads: int = 32
    linear_key_head_dim: int = 128
    linear_value_head_dim: int = 128
    linear_conv_kernel_dim: int = 4

    @property
    def rotary_dim(self) -> int:
        """Number of a head's components that turn."""
        return int(self.head_dim * self.partial_rotary_factor)

    @property
    def attention_layers(self) -> int:
        """Number of layers whose tokens attend to each other in pairs."""
        return self.layer_types.count(FULL)

    @property
    def state_products(self) -> int:
        """Multiplications of a token with the states of linear attention: they are read, corrected, and read again."""
        state = self.linear_num_value_heads * self.linear_key_head_dim * self.linear_value_head_dim
        return 3 * state * self.layer_types.count(LINEAR)

    def __post_init__(self) -> None:
        """Raises ValueError: a value asks for something that this backbone does not compute; the message names it."""
        if len(self.layer_types) != self.num_hidden_layers or set(self.layer_types) - {FULL, LINEAR}:
            raise ValueError(
                f"text_config: layer_types is {list(self.layer_types)}, expected {self.num_hidden_layers} times "
                f"'{LINEAR}' or '{FULL}'"
            )
        for name in _LINEAR_SIZES:
            _check_positive(name, getattr(self, name))
        if self.linear_num_value_heads % self.linear_num_key_heads:
            raise ValueError(
                f"text_config: linear_num_value_heads {self.linear_num_value_heads} must be a multiple of "
                f"linear_num_key_heads {self.linear_num_key_heads}"
            )
        share = self.partial_rotary_factor
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1 or self.rotary_dim % 2:
            raise ValueError(
                f"text_config: partial_rotary_factor is {share!r}, expected a share of head_dim {self.head_dim} that "
                "is an even number of components"
            )


_LINEAR_SIZES = tuple(field.name for field in dataclasses.fields(Qwen35TextConfig) if field.name.startswith("linear_"))


@dataclasses.dataclass(frozen=True)
class Qwen35Config(QwenVLConfig):
    """Configuration of a Qwen3.5: that of the Qwen-VL family, with a decoder of two kinds of layers.

    Example:
      >>> config = Qwen35Config.from_hf({
      ...     "model_type": "qwen3_5", "image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 7,
      ...     "vision_end_token_id": 8, "text_config": {
      ...         "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 4, "head_dim": 16,
      ...         "rope_parameters": {"rope_theta": 1e7, "mrope_section": [1, 1, 0]}},
      ...     "vision_config": {"out_hidden_size": 32}})
      >>> config.text.layer_types[-2:], config.text.rotary_dim
      (('linear_attention', 'full_attention'), 4)
    """

    text: Qwen35TextConfig

    @classmethod
    def from_hf(cls, hf: JsonObject) -> Qwen35Config:
        """Returns the config that a parsed config.json describes.

        Raises:
          ValueError: a key is missing, or asks for something that this backbone does not compute; the message names it.
        """
        section = hf.get("text_config")
        if isinstance(section, Mapping):
            rope = section.get("rope_parameters") or section.get("rope_scaling") or {}
            section = {**section, "rope_parameters": {"mrope_section": SECTIONS, **rope}}
            hf = {**hf, "text_config": section}
        plain = QwenVLConfig.from_hf(hf)  # refuses a section that is none
        fields = _values(plain) | {"text": _text(plain.text, hf["text_config"])}
        return cls(**fields)


def _values(config: QwenVLConfig | TextConfig) -> dict[str, Any]:
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}


def _text(plain: TextConfig, section: JsonObject) -> Qwen35TextConfig:
    if not section.get("attn_output_gate", True):
        raise ValueError("text_config: attn_output_gate = false is not supported, only attention with a gate")
    fields = {name: section[name] for name in _LINEAR_SIZES if name in section}
    for place in (section, section["rope_parameters"]):  # of which the second counts
        if "partial_rotary_factor" in place:
            fields["partial_rotary_factor"] = place["partial_rotary_factor"]
    types = section.get("layer_types") or _layer_types(section, plain.num_hidden_layers)
    return Qwen35TextConfig(**(_values(plain) | fields), layer_types=tuple(map(str, types)))


def _layer_types(section: JsonObject, depth: int) -> list[str]:
    interval = section.get("full_attention_interval", INTERVAL)
    _check_positive("full_attention_interval", interval)
    return [LINEAR if (i + 1) % interval else FULL for i in range(depth)]


def _check_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"text_config: {name} is {value!r}, expected a positive integer")
