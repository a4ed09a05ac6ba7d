"""Qwen3-VL's configuration, read from a checkpoint's config.json in transformers' v4 or v5 spelling."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from smart_jax.models.layers import ACTIVATIONS


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    hidden_size: int
    depth: int
    num_heads: int
    intermediate_size: int
    out_hidden_size: int
    num_position_embeddings: int
    deepstack_visual_indexes: tuple[int, ...]
    hidden_act: str = "gelu_pytorch_tanh"
    in_channels: int = 3
    patch_size: int = 16
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    rope_theta: float = 10_000.0
    initializer_range: float = 0.02

    @property
    def patch_values(self) -> int:
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def grid_side(self) -> int:
        return int(self.num_position_embeddings**0.5)


@dataclasses.dataclass(frozen=True)
class TextConfig:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float
    mrope_section: tuple[int, ...]
    mrope_interleaved: bool = True
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    initializer_range: float = 0.02


@dataclasses.dataclass(frozen=True)
class QwenVLConfig:
    model_type: str
    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any]) -> QwenVLConfig:
        """Config of a parsed config.json.

        Raises:
          ValueError: a key is missing, or names something this backbone does not compute (the message says which).
        """
        ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        return cls(
            model_type=hf["model_type"],
            text=_text(_section(hf, "text_config")),
            vision=_vision(_section(hf, "vision_config")),
            **{name: _get(hf, "config.json", name) for name in ids},
        )


def _section(hf: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = _get(hf, "config.json", name)
    if not isinstance(section, Mapping):
        raise ValueError(f"config.json: {name} is {type(section).__name__}, expected an object")
    return section


def _get(section: Mapping[str, Any], where: str, key: str) -> Any:
    if key not in section:
        raise ValueError(f"{where} lacks '{key}': is the file complete? It has {', '.join(sorted(section))}")
    return section[key]


def _text(section: Mapping[str, Any]) -> TextConfig:
    # v5 has rope_parameters with the theta inside; v4 has rope_scaling, and rope_theta beside it.
    rope = section.get("rope_parameters") or section.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ValueError(f"text_config: rope type '{kind}' is not supported, only 'default'")
    theta = rope.get("rope_theta", section.get("rope_theta"))
    if theta is None or "mrope_section" not in rope:
        raise ValueError(
            "text_config: rope_theta and mrope_section are needed, in rope_parameters or in rope_theta + rope_scaling"
        )
    return TextConfig(
        **_fields(TextConfig, section, "text_config", ("rope_theta", "mrope_section", "mrope_interleaved")),
        rope_theta=float(theta),
        mrope_section=tuple(rope["mrope_section"]),
        mrope_interleaved=bool(rope.get("mrope_interleaved", True)),
    )


def _vision(section: Mapping[str, Any]) -> VisionConfig:
    fields = _fields(VisionConfig, section, "vision_config", ("rope_theta",))
    fields["deepstack_visual_indexes"] = tuple(fields["deepstack_visual_indexes"])
    theta = (section.get("rope_parameters") or {}).get("rope_theta", VisionConfig.rope_theta)
    return VisionConfig(**fields, rope_theta=float(theta))


def _fields(cls: type, section: Mapping[str, Any], where: str, but: tuple[str, ...]) -> dict[str, Any]:
    found = {}
    for field in dataclasses.fields(cls):
        if field.name in but or (field.name not in section and field.default is not dataclasses.MISSING):
            continue
        found[field.name] = _get(section, where, field.name)
    if (act := found.get("hidden_act")) is not None and act not in ACTIVATIONS:
        raise ValueError(f"{where}: hidden_act '{act}' is not supported, only {', '.join(ACTIVATIONS)}")
    return found
