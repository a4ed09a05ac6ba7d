"""Configuration of the Qwen-VL family, read from a checkpoint's config.json in transformers' v4 or v5 spelling."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from smart_jax.models.layers import ACTIVATIONS
from smart_jax.models.token_projector import TokenProjector, declared_projector
from smart_jax.typing import JsonObject


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower. Names are those of config.json where it has the field."""

    hidden_size: int
    depth: int
    num_heads: int
    intermediate_size: int
    out_hidden_size: int
    num_position_embeddings: int | None  # None = rotary positions only
    deepstack_visual_indexes: tuple[int, ...]
    window_size: int | None  # side in pixels; None = every block attends to the whole frame
    fullatt_block_indexes: tuple[int, ...]  # blocks without windows
    rms_norm: bool  # RMSNorm instead of LayerNorm
    gated_mlp: bool  # gated networks instead of two-layer ones
    patch_bias: bool  # the patches' projection has a bias
    hidden_act: str = "gelu_pytorch_tanh"
    in_channels: int = 3
    patch_size: int = 16
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    rope_theta: float = 10_000.0
    initializer_range: float = 0.02
    tokens_per_second: float | None = None  # temporal positions per second of a video; None = one per temporal patch

    @property
    def patch_values(self) -> int:
        """Number of values of a flattened patch."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def grid_side(self) -> int | None:
        """Side of the square grid of learned positions; None = there is no such grid."""
        return None if self.num_position_embeddings is None else int(self.num_position_embeddings**0.5)

    @property
    def window_patches(self) -> int | None:
        """Side of an attention window in patches, a whole number of visual tokens; None = there are no windows."""
        if self.window_size is None:
            return None
        return self.window_size // self.spatial_merge_size // self.patch_size * self.spatial_merge_size


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The decoder. Names are those of config.json where it has the field."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float
    mrope_section: tuple[int, ...]
    mrope_interleaved: bool
    qk_norm: bool  # each head's queries and keys are normalised
    qkv_bias: bool  # the projections to queries, keys and values have biases
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False  # all four projections of attention have biases
    initializer_range: float = 0.02
    is_causal: bool = True  # positions attend to none after them
    final_norm: bool = True  # the last states are normed; its parameter is there anyway

    @property
    def rotary_dim(self) -> int:
        """Number of a head's components that turn."""
        return self.head_dim

    @property
    def attention_layers(self) -> int:
        """Number of layers whose tokens attend to each other in pairs."""
        return self.num_hidden_layers

    @property
    def state_products(self) -> int:
        """Multiplications of a token with the states of linear attention, of which there is none."""
        return 0


class Family(NamedTuple):
    """Facts that follow from a model_type, beside its config.json.

    Attributes:
      text, vision: fields of TextConfig and of VisionConfig that the file does not give.
      text_missing, vision_missing: values of keys that the file may lack.
      equal_heads: head_dim is hidden_size / num_attention_heads.
      timestamps: see `QwenVLConfig.timestamps`.
    """

    text: JsonObject
    vision: JsonObject
    text_missing: JsonObject
    vision_missing: JsonObject
    equal_heads: bool
    timestamps: bool


_QWEN2_TEXT = {"mrope_interleaved": False, "qk_norm": False, "qkv_bias": True, "attention_bias": False}
_QWEN2_VISION = {"num_position_embeddings": None, "deepstack_visual_indexes": (), "patch_bias": False}
_NO_WINDOWS = {"window_size": None, "fullatt_block_indexes": ()}
_NO_SECONDS = {"tokens_per_second": None}
# Transformers leaves out what equals its defaults: the vision_config of a saved fine-tune may be nearly empty.
_QWEN2_MISSING = {"depth": 32, "num_heads": 16, "patch_size": 14}
FAMILIES = {
    "qwen2_vl": Family(
        text=_QWEN2_TEXT,
        vision={**_QWEN2_VISION, **_NO_WINDOWS, **_NO_SECONDS, "rms_norm": False, "gated_mlp": False},
        text_missing={"rms_norm_eps": 1e-5},
        vision_missing={**_QWEN2_MISSING, "embed_dim": 1280, "mlp_ratio": 4, "hidden_act": "quick_gelu"},
        equal_heads=True,
        timestamps=False,
    ),
    "qwen2_5_vl": Family(
        text=_QWEN2_TEXT,
        vision={**_QWEN2_VISION, "rms_norm": True, "gated_mlp": True},
        text_missing={"rms_norm_eps": 1e-5},
        vision_missing={
            **_QWEN2_MISSING,
            "hidden_size": 3584,
            "intermediate_size": 3420,
            "out_hidden_size": 3584,
            "window_size": 112,
            "fullatt_block_indexes": (7, 15, 23, 31),
            "hidden_act": "silu",
            "tokens_per_second": 4,
        },
        equal_heads=True,
        timestamps=False,
    ),
    "qwen3_vl": Family(
        text={"qk_norm": True, "qkv_bias": False},
        vision={**_NO_WINDOWS, **_NO_SECONDS, "rms_norm": False, "gated_mlp": False, "patch_bias": True},
        text_missing={},
        vision_missing={},
        equal_heads=False,
        timestamps=True,
    ),
    "qwen3_5": Family(
        text={"mrope_interleaved": True, "qk_norm": True, "qkv_bias": False},
        vision={
            **_NO_WINDOWS,
            **_NO_SECONDS,
            "deepstack_visual_indexes": (),
            "rms_norm": False,
            "gated_mlp": False,
            "patch_bias": True,
        },
        text_missing={
            "vocab_size": 248320,
            "hidden_size": 4096,
            "intermediate_size": 12288,
            "num_hidden_layers": 32,
            "num_attention_heads": 16,
            "num_key_value_heads": 4,
            "head_dim": 256,
        },
        vision_missing={
            "depth": 27,
            "hidden_size": 1152,
            "intermediate_size": 4304,
            "num_heads": 16,
            "out_hidden_size": 3584,
            "num_position_embeddings": 2304,
        },
        equal_heads=False,
        timestamps=True,
    ),
}
_OLD_NAMES = {"in_chans": "in_channels", "spatial_patch_size": "patch_size"}


@dataclasses.dataclass(frozen=True)
class QwenVLConfig:
    """Configuration of a backbone of the family.

    Attributes:
      model_type: a key of `FAMILIES`.
      text: the decoder.
      vision: the vision tower.
      image_token_id, video_token_id: tokens that stand for a visual token of an image, and of a video.
      vision_start_token_id, vision_end_token_id: marks around an image or video.
      projector: what makes the token vectors of the last states; None = these are the token vectors.
      kept_width: how many of the projector's components are kept, the first ones; None = all.
      pooled: whether there is a pooled vector; without one its width is 0.
      task_names: tasks for each of which the checkpoint has an adapter.
      use_deepstack: whether DeepStack's features are added to the first layers; its parameters are loaded anyway.

    Example:
      >>> config = QwenVLConfig.from_hf({
      ...     "model_type": "qwen2_vl", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
      ...     "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "rope_theta": 1e6,
      ...     "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}, "image_token_id": 5, "video_token_id": 6,
      ...     "vision_start_token_id": 7, "vision_end_token_id": 8,
      ...     "vision_config": {"embed_dim": 16, "hidden_size": 32, "depth": 2, "num_heads": 2}})
      >>> config.text.head_dim, config.vision.hidden_size, config.vision.out_hidden_size
      (16, 16, 32)
    """

    model_type: str
    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    video_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    projector: TokenProjector | None = None
    kept_width: int | None = None
    pooled: bool = True
    task_names: tuple[str, ...] = ()
    use_deepstack: bool = True

    @property
    def token_dim(self) -> int | None:
        """Width of the projector's token vectors, as far as they are kept; None = there is no projector."""
        return None if self.projector is None else self.kept_width or self.projector.width

    @property
    def state_width(self) -> int:
        """Width of the states, as every backbone's config has it."""
        return self.text.hidden_size

    @property
    def mark_ids(self) -> tuple[int, ...]:
        """Tokens that stand around images and videos."""
        return (self.vision_start_token_id, self.vision_end_token_id)

    @property
    def placeholder_ids(self) -> tuple[int, ...]:
        """Tokens that stand for a token of the vision tower."""
        return (self.image_token_id, self.video_token_id)

    @property
    def audio_ids(self) -> tuple[int, ...]:
        """Tokens of audio, as every multimodal backbone's config has them: there are none."""
        return ()

    @property
    def marked_frames(self) -> bool:
        """Whether each temporal patch of a video stands between marks of its own."""
        return self.timestamps

    @property
    def timestamps(self) -> bool:
        """Whether each temporal patch of a video is like an image, after its time as text.

        Otherwise a video is one run of visual tokens.
        """
        return FAMILIES[self.model_type].timestamps

    @classmethod
    def from_hf(cls, hf: JsonObject) -> QwenVLConfig:
        """Returns the config that a parsed config.json describes.

        Raises:
          ValueError: a key is missing, or asks for something that this backbone does not compute; the message names it.
        """
        ids = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
        family = FAMILIES[hf["model_type"]]
        # Qwen2-VL and Qwen2.5-VL of transformers v4 have the keys of text_config at the top, or in both places.
        flat = hf["model_type"] in ("qwen2_vl", "qwen2_5_vl")
        nested = "text_config" in hf or not flat
        text = {**(hf if flat else {}), **(_section(hf, "text_config") if nested else {})}
        where = "text_config" if nested else "config.json"
        return cls(
            model_type=hf["model_type"],
            text=_text(text, where, family),
            vision=_vision(_section(hf, "vision_config"), family),
            **{name: _get(hf, "config.json", name) for name in ids},
            projector=declared_projector(hf),
            kept_width=hf.get("dims"),  # of Ops-Colqwen3
            task_names=tuple(hf.get("task_names") or ()),
        )


def _section(hf: JsonObject, name: str) -> JsonObject:
    section = _get(hf, "config.json", name)
    if not isinstance(section, Mapping):
        raise ValueError(f"config.json: {name} is {type(section).__name__}, expected an object")
    return section


def _get(section: JsonObject, where: str, key: str) -> Any:
    if key not in section:
        raise ValueError(f"{where} lacks '{key}': is the file complete? It has {', '.join(sorted(section))}")
    return section[key]


def _text(section: JsonObject, where: str, family: Family) -> TextConfig:
    section = {**family.text_missing, **section}
    # v5 has rope_parameters with the theta inside; v4 has rope_scaling, and rope_theta beside it.
    rope = section.get("rope_parameters") or section.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ValueError(f"{where}: rope type '{kind}' is not supported, only 'default'")
    theta = rope.get("rope_theta", section.get("rope_theta"))
    if theta is None or "mrope_section" not in rope:
        raise ValueError(
            f"{where}: rope_theta and mrope_section are needed, in rope_parameters or in rope_theta + rope_scaling"
        )
    if section.get("use_sliding_window"):
        raise ValueError(f"{where}: use_sliding_window = true is not supported, only attention to the whole row")
    if not isinstance(causal := section.get("is_causal", True), bool):
        raise ValueError(f"{where}: is_causal is {causal!r}, expected true or false")
    switches = {"mrope_interleaved": bool(rope.get("mrope_interleaved", True)), **family.text}
    if family.equal_heads:
        section["head_dim"] = _head_dim(section, where)
    config = TextConfig(
        **_fields(TextConfig, section, where, ("rope_theta", "mrope_section", "final_norm", *switches)),
        rope_theta=float(theta),
        mrope_section=tuple(rope["mrope_section"]),
        **switches,
    )
    if not config.mrope_interleaved and 2 * sum(config.mrope_section) != config.head_dim:
        raise ValueError(f"{where}: mrope_section {rope['mrope_section']} must add up to half of {config.head_dim}")
    return config


def _head_dim(section: JsonObject, where: str) -> int:
    width, heads = _get(section, where, "hidden_size"), _get(section, where, "num_attention_heads")
    if width % heads or section.get("head_dim") not in (None, width // heads):
        raise ValueError(f"{where}: head_dim must be hidden_size / num_attention_heads = {width} / {heads}")
    return int(width // heads)


def _vision(section: JsonObject, family: Family) -> VisionConfig:
    old = {new: section[name] for name, new in _OLD_NAMES.items() if name in section}
    section = {**family.vision_missing, **old, **section}
    if "embed_dim" in family.vision_missing:  # Qwen2-VL: the tower's width, where hidden_size is the decoder's
        width = section["embed_dim"]
        section["out_hidden_size"] = _get(section, "vision_config", "hidden_size")
        section |= {"hidden_size": width, "intermediate_size": int(width * section["mlp_ratio"])}
    fields = {**_fields(VisionConfig, section, "vision_config", ("rope_theta", *family.vision)), **family.vision}
    for name in ("deepstack_visual_indexes", "fullatt_block_indexes"):
        fields[name] = tuple(fields[name])
    if (rate := fields["tokens_per_second"]) is not None:
        if not isinstance(rate, int | float) or rate <= 0:
            raise ValueError(f"vision_config: tokens_per_second is {rate!r}, expected a positive number")
        fields["tokens_per_second"] = float(rate)
    theta = (section.get("rope_parameters") or {}).get("rope_theta", VisionConfig.rope_theta)
    config = VisionConfig(**fields, rope_theta=float(theta))
    if config.window_patches == 0:
        raise ValueError(f"vision_config: window_size {config.window_size} is smaller than one visual token")
    return config


def _fields(
    cls: type[TextConfig | VisionConfig], section: JsonObject, where: str, except_for: tuple[str, ...]
) -> dict[str, Any]:
    """Returns the values of a dataclass's fields, without those that have defaults and are not in the section.

    Raises:
      ValueError: a key is missing, or the activation is unknown.
    """
    values = {}
    for field in dataclasses.fields(cls):
        if field.name in except_for or (field.name not in section and field.default is not dataclasses.MISSING):
            continue
        values[field.name] = _get(section, where, field.name)
    if (act := values.get("hidden_act")) is not None and act not in ACTIVATIONS:
        raise ValueError(f"{where}: hidden_act '{act}' is not supported, only {', '.join(ACTIVATIONS)}")
    return values
