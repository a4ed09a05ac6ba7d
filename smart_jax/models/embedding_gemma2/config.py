"""Configuration of EmbeddingGemma 2, read from a checkpoint's config.json: a text encoder, and optional towers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar

from smart_jax.models.layers import ACTIVATIONS
from smart_jax.typing import JsonObject

FULL, SLIDING = "full_attention", "sliding_attention"
PATTERN = 6  # of config.json's without layer_types every sixth layer is full
# Heads of full layers, for a config.json that does not list what differs from layer to layer.
FULL_HEADS = {"head_dim": 512, "num_key_value_heads": 1}
THETAS = {FULL: 1_000_000.0, SLIDING: 10_000.0}

_Config = TypeVar("_Config", "TextConfig", "VisionConfig", "AudioConfig")


class LayerHeads(NamedTuple):
    """Attention of one layer of the text encoder.

    Attributes:
      full: whether it attends to all positions; otherwise to those at most `TextConfig.sliding_window` away.
      head_dim: width of a head.
      num_key_value_heads: heads of keys and values.

    Example:
      >>> LayerHeads(full=False, head_dim=256, num_key_value_heads=2).head_dim
      256
    """

    full: bool
    head_dim: int
    num_key_value_heads: int


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The text encoder. Names are those of config.json where it has the field; the defaults are the published model's.

    Attributes:
      head_dim, num_key_value_heads: of the layers with a window.
      full_head_dim, full_key_value_heads: of the layers without one, from `per_layer_config`.
      layer_types: "sliding_attention" or "full_attention" of each layer; () = every sixth is full.
      sliding_window: farthest position to which a layer with a window attends, on either side.
      rope_theta, full_rope_theta: bases of the rotary frequencies of layers with a window, and without.
      hidden_size_per_layer_input: width of the signal that each layer draws from the embeddings (PLE).
      embedding_dim: width of the vectors that the encoder gives, per token.

    Example:
      >>> [i for i, layer in enumerate(TextConfig().heads) if layer.full]
      [5, 11, 17, 23]
    """

    vocab_size: int = 262_144
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 24
    num_attention_heads: int = 4
    num_key_value_heads: int = 2
    head_dim: int = 256
    full_key_value_heads: int = FULL_HEADS["num_key_value_heads"]
    full_head_dim: int = FULL_HEADS["head_dim"]
    layer_types: tuple[str, ...] = ()
    sliding_window: int = 512
    rope_theta: float = THETAS[SLIDING]
    full_rope_theta: float = THETAS[FULL]
    hidden_size_per_layer_input: int = 512
    embedding_dim: int = 768
    hidden_activation: str = "gelu_pytorch_tanh"
    rms_norm_eps: float = 1e-6
    attention_bias: bool = False
    initializer_range: float = 0.02

    @property
    def attention_layers(self) -> int:
        """Number of layers whose tokens attend to each other in pairs."""
        return self.num_hidden_layers

    @property
    def state_products(self) -> int:
        """Multiplications of a token with the states of linear attention, of which there is none."""
        return 0

    @property
    def heads(self) -> tuple[LayerHeads, ...]:
        """Attention of each layer; the last one is always full, as in transformers."""
        last = self.num_hidden_layers - 1
        kinds = self.layer_types or [SLIDING if (i + 1) % PATTERN else FULL for i in range(last + 1)]
        whole = LayerHeads(True, self.full_head_dim, self.full_key_value_heads)
        near = LayerHeads(False, self.head_dim, self.num_key_value_heads)
        return tuple(whole if kind == FULL or i == last else near for i, kind in enumerate(kinds))


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """The vision tower, which is Gemma 4's. Names are those of config.json; the defaults are the published model's.

    Attributes:
      pooling_kernel_size: side, in patches, of the square whose mean is a visual token.
      position_embedding_size: rows of the table of learned positions, one for either axis.
      use_clipped_linears: whether linear maps clamp their inputs and outputs by bounds in the checkpoint.
      standardize: whether the pooled states are shifted and scaled by vectors in the checkpoint.

    Example:
      >>> VisionConfig().patch_values, VisionConfig().spatial_merge_size
      (768, 3)
    """

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 16
    num_attention_heads: int = 12
    num_key_value_heads: int = 12
    head_dim: int = 64
    hidden_activation: str = "gelu_pytorch_tanh"
    rms_norm_eps: float = 1e-6
    pooling_kernel_size: int = 3
    patch_size: int = 16
    position_embedding_size: int = 10_240
    rope_theta: float = 100.0
    use_clipped_linears: bool = False
    standardize: bool = False
    initializer_range: float = 0.02

    # What the floors above ask of every vision tower.
    in_channels = 3
    temporal_patch_size = 1
    grid_side = None
    window_size = None
    window_patches = None
    fullatt_block_indexes = ()
    gated_mlp = True
    tokens_per_second = None

    @property
    def depth(self) -> int:
        """Number of layers."""
        return self.num_hidden_layers

    @property
    def spatial_merge_size(self) -> int:
        """Side of a visual token in patches."""
        return self.pooling_kernel_size

    @property
    def patch_values(self) -> int:
        """Number of values of a flattened patch."""
        return 3 * self.patch_size**2


@dataclasses.dataclass(frozen=True)
class AudioConfig:
    """The audio tower, which is Gemma 4's. Names are those of config.json; the defaults are the published model's.

    Attributes:
      subsampling_conv_channels: channels of the two convolutions that make one frame of four.
      attention_chunk_size: frames of a block of queries.
      attention_context_left, attention_context_right: frames, a query's own among the left, that it may see.
      attention_logit_cap: bound of the scores, by tanh.
      use_clipped_linears: whether linear maps clamp their inputs and outputs by bounds in the checkpoint.
      output_proj_dims: width of the tower's results.

    Example:
      >>> AudioConfig().subsampling_conv_channels
      (128, 32)
    """

    hidden_size: int = 1024
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    hidden_act: str = "silu"
    subsampling_conv_channels: tuple[int, int] = (128, 32)
    conv_kernel_size: int = 5
    residual_weight: float = 0.5
    attention_chunk_size: int = 12
    attention_context_left: int = 13
    attention_context_right: int = 0
    attention_logit_cap: float = 50.0
    attention_invalid_logits_value: float = -1.0e9
    use_clipped_linears: bool = True
    rms_norm_eps: float = 1e-6
    gradient_clipping: float = 1e10
    output_proj_dims: int = 1536
    initializer_range: float = 0.02


@dataclasses.dataclass(frozen=True)
class EmbeddingGemma2Config:
    """Configuration of an EmbeddingGemma 2. Names are those of config.json where it has the field.

    Attributes:
      text: the encoder.
      vision, audio: the towers; None = the checkpoint lacks it, and such items are refused.
      image_token_id, video_token_id, audio_token_id: tokens that stand for a token of a tower.
      boi_token_id, eoi_token_id: marks around an image or a frame of a video.
      boa_token_id, eoa_token_id: marks around audio.

    Example:
      >>> config = EmbeddingGemma2Config.from_hf({"model_type": "embedding_gemma2", "vision_config": {}})
      >>> config.text.embedding_dim, config.vision.depth, config.audio
      (768, 16, None)
    """

    model_type: str = "embedding_gemma2"
    text: TextConfig = TextConfig()
    vision: VisionConfig | None = None
    audio: AudioConfig | None = None
    boi_token_id: int = 255_999
    eoi_token_id: int = 258_882
    image_token_id: int = 258_880
    video_token_id: int = 258_884
    boa_token_id: int = 256_000
    eoa_token_id: int = 258_883
    audio_token_id: int = 258_881

    # What the floors above ask of every backbone's config.
    token_dim = None  # its token vectors are its states
    timestamps = False
    task_names = ()

    @property
    def state_width(self) -> int:
        """Width of the states, which the encoder's projection has widened."""
        return self.text.embedding_dim

    @property
    def mark_ids(self) -> tuple[int, ...]:
        """Tokens that stand around images, frames of videos and audio."""
        return (self.boi_token_id, self.eoi_token_id, self.boa_token_id, self.eoa_token_id)

    @property
    def placeholder_ids(self) -> tuple[int, ...]:
        """Tokens that stand for a token of a tower."""
        return (self.image_token_id, self.video_token_id, self.audio_token_id)

    @property
    def audio_ids(self) -> tuple[int, ...]:
        """Mark before audio, placeholder, and mark after it; () = there is no tower for it."""
        return () if self.audio is None else (self.boa_token_id, self.audio_token_id, self.eoa_token_id)

    @property
    def marked_frames(self) -> bool:
        """Whether each frame of a video stands between marks of its own."""
        return True

    @property
    def vision_start_token_id(self) -> int:
        """Mark before an image."""
        return self.boi_token_id

    @property
    def vision_end_token_id(self) -> int:
        """Mark after an image."""
        return self.eoi_token_id

    @classmethod
    def from_hf(cls, hf: JsonObject) -> EmbeddingGemma2Config:
        """Returns the config that a parsed config.json describes.

        Raises:
          ValueError: a value asks for something that this backbone does not compute; the message names it.
        """
        names = [field.name for field in dataclasses.fields(cls) if field.name.endswith("_token_id")]
        ids = {name: hf[name] for name in names if hf.get(name) is not None}
        if hf.get("eoa_token_index") is not None:  # config.json's name
            ids["eoa_token_id"] = hf["eoa_token_index"]
        vision, audio = (_section(hf, name) for name in ("vision_config", "audio_config"))
        return cls(
            model_type=hf["model_type"],
            text=_text(_section(hf, "text_config") or {}),
            vision=None if vision is None else _vision(vision),
            audio=None if audio is None else _audio(audio),
            **ids,
        )


def _section(hf: JsonObject, name: str) -> JsonObject | None:
    section = hf.get(name)
    if section is not None and not isinstance(section, Mapping):
        raise ValueError(f"config.json: {name} is {type(section).__name__}, expected an object or null")
    return section


def _text(section: JsonObject) -> TextConfig:
    where = "text_config"
    rope = section.get("rope_parameters") or {}
    thetas = {kind: _theta(rope.get(kind) or {}, THETAS[kind], where) for kind in THETAS}
    kinds = tuple(section.get("layer_types") or ())
    if unknown := set(kinds) - set(THETAS):
        raise ValueError(f"{where}: layer_types has {', '.join(sorted(unknown))}, expected {' or '.join(THETAS)}")
    config = _fields(
        TextConfig,
        section,
        where,
        layer_types=kinds,
        rope_theta=thetas[SLIDING],
        full_rope_theta=thetas[FULL],
    )
    if kinds and len(kinds) != config.num_hidden_layers:
        raise ValueError(f"{where}: layer_types has {len(kinds)} entries for {config.num_hidden_layers} layers")
    width, keys = _full_heads(section, config)
    config = dataclasses.replace(config, full_head_dim=width, full_key_value_heads=keys)
    for layer in config.heads:
        if config.num_attention_heads % layer.num_key_value_heads or layer.head_dim % 2:
            raise ValueError(
                f"{where}: {config.num_attention_heads} heads of width {layer.head_dim} cannot share "
                f"{layer.num_key_value_heads} heads of keys"
            )
    return config


def _full_heads(section: JsonObject, config: TextConfig) -> tuple[int, int]:
    """Returns width and key heads of the full layers, which all have the same; keys are numbers, or such as "05"."""
    full = [i for i, layer in enumerate(config.heads) if layer.full]
    if "per_layer_config" in section:
        found = {int(key): dict(value) for key, value in (section["per_layer_config"] or {}).items()}
        own = {"head_dim": config.head_dim, "num_key_value_heads": config.num_key_value_heads}
    else:
        found = {}
        names = {"head_dim": "global_head_dim", "num_key_value_heads": "num_global_key_value_heads"}
        own = {key: section.get(name, FULL_HEADS[key]) for key, name in names.items()}
    layers = [own | found.pop(i, {}) for i in full]
    if found or any(layer != layers[0] or layer.keys() != own.keys() for layer in layers):
        raise ValueError(
            "text_config: per_layer_config must give all full-attention layers, and no others, the same head_dim and "
            f"num_key_value_heads, but it is {section.get('per_layer_config')}"
        )
    return layers[0]["head_dim"], layers[0]["num_key_value_heads"]


def _vision(section: JsonObject) -> VisionConfig:
    where = "vision_config"
    theta = _theta(section.get("rope_parameters") or {}, VisionConfig.rope_theta, where, kinds=("axial",))
    config = _fields(VisionConfig, section, where, rope_theta=theta)
    if config.head_dim % 4:
        raise ValueError(f"{where}: head_dim is {config.head_dim}, expected a multiple of 4")
    if section.get("attention_bias"):
        raise ValueError(f"{where}: attention_bias = true is not supported, only maps without biases")
    return config


def _audio(section: JsonObject) -> AudioConfig:
    channels = tuple(section.get("subsampling_conv_channels") or AudioConfig.subsampling_conv_channels)
    if len(channels) != 2:
        raise ValueError(f"audio_config: subsampling_conv_channels is {channels}, expected two numbers")
    config = _fields(AudioConfig, section, "audio_config", subsampling_conv_channels=channels)
    if config.attention_context_right:
        raise ValueError(
            f"audio_config: attention_context_right is {config.attention_context_right}, only 0 is supported"
        )
    return config


def _theta(rope: JsonObject, default: float, where: str, kinds: tuple[str, ...] = ("default",)) -> float:
    """Returns the base of the rotary frequencies; raises ValueError where they are of another kind."""
    kind = rope.get("rope_type", kinds[0])
    if kind not in kinds:
        raise ValueError(f"{where}: rope type '{kind}' is not supported, only '{kinds[0]}'")
    return float(rope.get("rope_theta", default))


def _fields(cls: type[_Config], section: JsonObject, where: str, **given: Any) -> _Config:
    """Returns the dataclass of a section's values and of those `given`; raises ValueError for an unknown activation."""
    names = [field.name for field in dataclasses.fields(cls) if field.name not in given]
    config = cls(**{name: section[name] for name in names if section.get(name) is not None}, **given)
    act = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    if act not in ACTIVATIONS:
        raise ValueError(f"{where}: activation '{act}' is not supported, only {', '.join(ACTIVATIONS)}")
    return config
