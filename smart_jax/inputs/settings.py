"""Settings of how a checkpoint's items are written, sized and pooled: the keys of smart_jax.json."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeGuard, TypeVar

from smart_jax.files import read_json
from smart_jax.inputs.audio_settings import AudioSettings, check_long_audio
from smart_jax.inputs.pooling_rule import check_pooling, named_token
from smart_jax.inputs.video_settings import VideoSettings
from smart_jax.models import BertConfig, EmbeddingGemma2Config, QwenVLConfig
from smart_jax.typing import JsonObject

SETTINGS_FILE = "smart_jax.json"
VISUAL = "{{ visual }}"

_Settings = TypeVar("_Settings", "Settings", "TextSettings")

MultimodalConfig = QwenVLConfig | EmbeddingGemma2Config
"""Config of a backbone that reads more than texts."""

# Each turn is its role and then the parts of its content, Jinja templates.
Turns = tuple[tuple[str, ...], ...]

QWEN3_TURNS: Turns = (
    ("system", "{{ instruction | sentence }}"),
    ("user", VISUAL, "{{ texts | join or ('' if images or videos else 'NULL') }}"),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Prompt, pooling and sizes of a multimodal checkpoint; the defaults are Qwen3-VL-Embedding's.

    `smart_jax.inputs.PRESETS` has those of other models, and a checkpoint folder may carry any of them as
    `smart_jax.json`.

    Attributes:
      head: name of the preset that the others come from.
      prompt: the whole prompt as one Jinja template, or turns for the checkpoint's chat template: each its role and
        the templates of its content's parts, after which the assistant's turn is opened. See
        `smart_jax.inputs.prompt.Prompt` for the variables.
      pooling: "last" = the state of the last token, "before:TOKEN" = the state before the first such token (added to
        the tokenizer if it lacks it), "mean" = the mean over the visual tokens and their marks, or over all tokens
        where there are none, "mean_all" = the mean over all tokens, "none" = there is no pooled vector: its width is 0,
        and scores are those of the tokens. States are those after the final norm, the pooled vector is always
        L2-normalised.
      keep: the tokens of late interaction: "words" = all but special tokens, visual ones included, "all" = every one.
      query_visual: whether a query's visual tokens are among them.
      document_skips: tokens, as texts, that are not among a document's; such as punctuation.
      instructions: which items may be given one: "all", "queries" or "none".
      default_instruction: where nobody gives an instruction; None = nothing.
      query_instruction: for queries where nobody gives one; None = default_instruction.
      positions: "mrope" = temporal, height and width of the visual tokens; "sequential" = 0, 1, 2, ... for all tokens.
      deepstack: whether Qwen3-VL's DeepStack features are added to the first layers.
      causal: whether a token attends to none after it; a config.json with is_causal false says that it does.
      final_norm: whether the last states are those after the decoder's final norm, or those before it.
      token_dim: width of the token vectors: the first components of what the checkpoint's token projector makes, as
        models are trained for that; None = as config.json says (dims), or all.
      min_pixels, max_pixels: bounds of an image's height * width after the resize; None = preprocessor_config.json's.
      first_pixels: bounds of a resize before that one; None = there is one resize.
      first_size: height and width that every image is resized to before that, whatever its aspect ratio; None = it
        keeps its own.
      soft_tokens: number of visual tokens to which every image is scaled, where the model does that (EmbeddingGemma 2:
        70, 140, 280, 560 or 1120), in place of these bounds; None = the file's.
      resize: "exact" = pixels as the reference's, or "fast" = nearly those, sooner; see `ImageSettings`.
      max_length: largest number of tokens of an item; what is longer is cut at the end, or in the text ("before:").
      query_length: the same of a query; None = max_length.
      length_buckets, patch_buckets: padded sizes; where either is given, each length goes with each number of patches.
        None = few: see `smart_jax.inputs.padded_sizes`.
      video: how a video is read: "frames", "middle" = its middle frame as an image, "none" = it is refused.
      fps, max_frames: number of frames taken of a video per second, and their largest number.
      video_min_pixels, video_max_pixels: bounds of a video frame's height * width after the resize.
      video_total_pixels: bound of a whole video, its frames counted in pairs.
      video_soft_tokens: number of visual tokens to which every frame is scaled, where the model does that, in place of
        these bounds; None = as the checkpoint's file says.
      max_seconds: most that is read of a clip of audio, where the model hears.
      long_audio: what becomes of a longer one, "cut" = its beginning is read, which is said, or "refuse".

    Example:
      >>> Settings(pooling="before:<emb>").pooling_token
      '<emb>'
    """

    head: str = "qwen3_vl_embedding"
    prompt: str | Turns = QWEN3_TURNS
    pooling: str = "last"
    keep: str = "words"
    query_visual: bool = True
    document_skips: tuple[str, ...] = ()
    instructions: str = "all"
    default_instruction: str | None = "Represent the user's input."
    query_instruction: str | None = None
    positions: str = "mrope"
    deepstack: bool = True
    causal: bool = True
    final_norm: bool = True
    token_dim: int | None = None
    min_pixels: int | None = 4096
    max_pixels: int | None = 1_843_200
    first_pixels: tuple[int, int] | None = None
    first_size: tuple[int, int] | None = None
    soft_tokens: int | None = None
    resize: str = "exact"
    max_length: int = 8192
    query_length: int | None = None
    length_buckets: tuple[int, ...] | None = None
    patch_buckets: tuple[int, ...] | None = None
    video: str = "frames"
    fps: float = VideoSettings.fps
    max_frames: int = VideoSettings.max_frames
    video_min_pixels: int = VideoSettings.min_pixels
    video_max_pixels: int = VideoSettings.max_pixels
    video_total_pixels: int = VideoSettings.total_pixels
    video_soft_tokens: int | None = None
    max_seconds: float = AudioSettings.max_seconds
    long_audio: str = AudioSettings.long_audio

    def configured(self, config: MultimodalConfig) -> MultimodalConfig:
        """Returns the backbone's config as these settings ask for it: DeepStack, attention, norm and widths.

        Raises:
          ValueError: token_dim is more than the checkpoint's projector makes, or there is no projector.
        """
        if not isinstance(config, QwenVLConfig):
            if self.token_dim is not None:
                raise ValueError(f"token_dim is {self.token_dim}, but a {config.model_type} has no token projector")
            return config
        if self.token_dim is not None and (config.projector is None or self.token_dim > config.projector.width):
            made = "no token projector" if config.projector is None else f"one of width {config.projector.width}"
            raise ValueError(f"token_dim is {self.token_dim}, but the checkpoint has {made}")
        causal = config.text.is_causal and self.causal
        return dataclasses.replace(
            config,
            text=dataclasses.replace(config.text, is_causal=causal, final_norm=self.final_norm),
            use_deepstack=self.deepstack,
            kept_width=self.token_dim or config.kept_width,
            pooled=self.pooling != "none",
        )

    @property
    def videos(self) -> VideoSettings:
        """Settings by which a video is sampled and sized."""
        bounds = self.video_min_pixels, self.video_max_pixels, self.video_total_pixels
        return VideoSettings(self.fps, self.max_frames, *bounds, self.video_soft_tokens)

    @property
    def pooling_token(self) -> str | None:
        """TOKEN of the pooling rule "before:TOKEN"; None = another rule."""
        return named_token(self.pooling)

    def __post_init__(self) -> None:
        for name in ("max_length", "video_min_pixels", "video_max_pixels", "video_total_pixels"):
            check_positive(name, getattr(self, name))
        for name in ("min_pixels", "max_pixels", "soft_tokens", "video_soft_tokens", "token_dim", "query_length"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))
        for name in ("length_buckets", "patch_buckets", "first_pixels", "first_size"):
            object.__setattr__(self, name, checked_sizes(name, getattr(self, name)))
        for name in ("first_pixels", "first_size"):
            if (value := getattr(self, name)) is not None and len(value) != 2:
                raise ValueError(f"{name} is {value!r}, expected two positive integers")
        for name in ("default_instruction", "query_instruction"):
            if not is_text(value := getattr(self, name)):
                raise ValueError(f"{name} is {value!r:.80}, expected a text or null")
        if self.default_instruction is not None and not self.default_instruction.strip():
            raise ValueError(f"default_instruction is {self.default_instruction!r}, expected a text or null")
        for name, known in _CHOICES.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} is {value!r}, expected {' or '.join(map(repr, known))}")
        check_pooling(self.pooling)
        object.__setattr__(self, "document_skips", _checked_tokens(self.document_skips))
        object.__setattr__(self, "prompt", _checked_prompt(self.prompt))
        _ = self.videos  # makes its own checks
        check_long_audio(self.max_seconds, self.long_audio)


_CHOICES: dict[str, tuple[object, ...]] = {
    "keep": ("words", "all"),
    "query_visual": (True, False),
    "instructions": ("all", "queries", "none"),
    "positions": ("mrope", "sequential"),
    "deepstack": (True, False),
    "causal": (True, False),
    "final_norm": (True, False),
    "video": ("frames", "middle", "none"),
    "resize": ("exact", "fast"),
}


@dataclasses.dataclass(frozen=True)
class TextSettings:
    """Settings of a text encoder; a folder may carry them as `smart_jax.json`. None = as the folder's other files say.

    Attributes:
      max_length: largest number of tokens of an item, [CLS] and [SEP] included; what is longer is cut at the end of the
        text. None = max_seq_length of sentence_bert_config.json, or the positions that there are.
      default_instruction, query_instruction: put before a text (a query's) where nobody gives an instruction. None =
        the prompts of config_sentence_transformers.json, or nothing.
      length_buckets: padded sizes; None = two per octave.
      pooling: how the states become the pooled one, "mean" or "cls"; None = as the backbone's config says, which has
        read it from the folder's other files.

    Example:
      >>> TextSettings(max_length=256).length_buckets is None
      True
    """

    max_length: int | None = None
    default_instruction: str | None = None
    query_instruction: str | None = None
    length_buckets: tuple[int, ...] | None = None
    pooling: str | None = None

    def configured(self, config: BertConfig) -> BertConfig:
        """Returns the backbone's config as these settings ask for it: with another pooling rule, or as it is."""
        return config if self.pooling is None else dataclasses.replace(config, pooling=self.pooling)

    def __post_init__(self) -> None:
        if self.max_length is not None:
            check_positive("max_length", self.max_length)
        object.__setattr__(self, "length_buckets", checked_sizes("length_buckets", self.length_buckets))
        for name in ("default_instruction", "query_instruction"):
            if not is_text(value := getattr(self, name)):
                raise ValueError(f"{name} is {value!r:.80}, expected a text or null")


def _checked_prompt(prompt: object) -> str | Turns:
    if isinstance(prompt, str) and prompt and is_text(prompt):
        return prompt
    turns = tuple(tuple(turn) for turn in prompt) if _is_list(prompt) and all(map(_is_list, prompt)) else ()
    if not turns or not all(
        len(turn) > 1 and all(isinstance(part, str) and is_text(part) for part in turn) for turn in turns
    ):
        raise ValueError(
            f"prompt is {prompt!r}, expected a Jinja template or turns, [['system', '{{{{ instruction }}}}'], ['user', "
            f"'{VISUAL}', '{{{{ texts | join }}}}']]"
        )
    return turns


def _checked_tokens(tokens: object) -> tuple[str, ...]:
    if not _is_list(tokens) or not all(isinstance(token, str) and token for token in tokens):
        raise ValueError(f"document_skips is {tokens!r}, expected a list of tokens, as texts")
    return tuple(tokens)


def _is_list(value: object) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    return isinstance(value, list | tuple)


def is_text(value: object) -> bool:
    """Tells whether a value is a text that can be written in UTF-8, without a lone surrogate, or None."""
    return value is None or (isinstance(value, str) and not any("\ud800" <= c <= "\udfff" for c in value))


def check_positive(name: str, value: object) -> None:
    """Raises ValueError unless the value is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}, expected a positive integer")


def checked_sizes(name: str, sizes: object) -> tuple[int, ...] | None:
    """Returns the sizes as a tuple, None as it is; raises ValueError where they are no list of positive integers."""
    if sizes is None:
        return None
    if not isinstance(sizes, list | tuple) or not sizes:
        raise ValueError(f"{name} is {sizes!r}, expected a list of positive integers")
    for size in sizes:
        check_positive(name, size)
    return tuple(sizes)


def read_settings(folder: str | Path) -> dict[str, Any]:
    """Returns what the folder's smart_jax.json says; empty where there is none.

    Example:
      >>> from smart_jax.files import resolve
      >>> read_settings(resolve("tiny"))["max_pixels"]
      65536
    """
    path = Path(folder) / SETTINGS_FILE
    return dict(read_json(path)) if path.is_file() else {}


def with_settings(settings: _Settings, folder: str | Path, from_file: JsonObject, overrides: JsonObject) -> _Settings:
    """Returns the dataclass `settings` as changed by what the folder's file says, and then by `overrides`.

    Raises:
      ValueError: a key or a value is not one of the dataclass; the message names it and where it came from.
    """
    path = Path(folder) / SETTINGS_FILE
    known: Sequence[str] = [field.name for field in dataclasses.fields(settings)]
    for source, keys in ((str(path), from_file), ("Preprocessor", overrides)):
        if unknown := [key for key in keys if key not in known]:
            raise ValueError(f"{source}: unknown settings {', '.join(unknown)}; known are {', '.join(known)}")
    try:
        return dataclasses.replace(settings, **{**from_file, **overrides})
    except ValueError as error:
        raise ValueError(f"{path if from_file else 'Preprocessor'}: {error}") from error
