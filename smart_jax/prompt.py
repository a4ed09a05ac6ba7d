"""The prompt of a checkpoint: its settings, its tokenizer and chat template, and which tokens are kept."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from smart_jax.images import read_json
from smart_jax.models.qwen_vl_config import QwenVLConfig
from smart_jax.video import VideoSettings

if TYPE_CHECKING:  # transformers takes a second to import: only where a tokenizer is read
    from transformers import PreTrainedTokenizerBase

SETTINGS_FILE = "smart_jax.json"
NULL_TEXT = "NULL"
_MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Prompt and size settings; the defaults are Qwen3-VL-Embedding's.

    A checkpoint folder may carry them as `smart_jax.json`.

    Attributes:
      min_pixels, max_pixels: bounds of an image's height * width after the resize.
      max_length: tokens of a row; what is longer is cut at the end.
      default_instruction: the system turn where nobody gives an instruction.
      query_instruction: the system turn of queries where nobody gives one; None = default_instruction.
      length_buckets, patch_buckets: padded sizes; None = two per octave.
      fps, max_frames: frames taken of a video per second, and at most.
      video_min_pixels, video_max_pixels: bounds of a video frame's height * width after the resize.
      video_total_pixels: bound of a whole video, its frames counted in pairs.
    """

    min_pixels: int = 4096
    max_pixels: int = 1_843_200
    max_length: int = 8192
    default_instruction: str = "Represent the user's input."
    query_instruction: str | None = None
    length_buckets: tuple[int, ...] | None = None
    patch_buckets: tuple[int, ...] | None = None
    fps: float = VideoSettings.fps
    max_frames: int = VideoSettings.max_frames
    video_min_pixels: int = VideoSettings.min_pixels
    video_max_pixels: int = VideoSettings.max_pixels
    video_total_pixels: int = VideoSettings.total_pixels

    @property
    def videos(self) -> VideoSettings:
        return VideoSettings(
            self.fps, self.max_frames, self.video_min_pixels, self.video_max_pixels, self.video_total_pixels
        )

    def __post_init__(self) -> None:
        pixels = ("video_min_pixels", "video_max_pixels", "video_total_pixels")
        for name in ("min_pixels", "max_pixels", "max_length", *pixels):
            check_positive(name, getattr(self, name))
        for name in ("length_buckets", "patch_buckets"):
            object.__setattr__(self, name, checked_buckets(name, getattr(self, name)))
        if not isinstance(self.default_instruction, str) or not self.default_instruction.strip():
            raise ValueError(f"default_instruction is {self.default_instruction!r}, expected a text")
        if not isinstance(self.query_instruction, str | None):
            raise ValueError(f"query_instruction is {self.query_instruction!r}, expected a text or null")
        _ = self.videos  # makes its own checks


def check_positive(name: str, value: Any) -> None:
    """Raises ValueError unless the value is a positive integer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} is {value!r}, expected a positive integer")


def checked_buckets(name: str, sizes: Any) -> tuple[int, ...] | None:
    """The sizes as a tuple, None as it is; ValueError for anything but a list of positive integers."""
    if sizes is None:
        return None
    if not isinstance(sizes, list | tuple) or not sizes:
        raise ValueError(f"{name} is {sizes!r}, expected a list of positive integers")
    for size in sizes:
        check_positive(name, size)
    return tuple(sizes)


def read_settings(folder: str | Path, kind: Any = Settings, **overrides: Any) -> Any:
    """Settings of a checkpoint folder: the defaults, then its smart_jax.json if it has one, then `overrides`.

    Args:
      folder: checkpoint in Hugging Face layout.
      kind: the dataclass that they are an instance of.
      **overrides: its fields.

    Raises:
      ValueError: the file is not JSON, or a key or a value is not one of `kind`.
    """
    path = Path(folder) / SETTINGS_FILE
    found = dict(read_json(path)) if path.is_file() else {}
    for source, keys in ((str(path), found), ("Preprocessor", overrides)):
        known = [field.name for field in dataclasses.fields(kind)]
        if unknown := [key for key in keys if key not in known]:
            raise ValueError(f"{source}: unknown settings {', '.join(unknown)}; known are {', '.join(known)}")
    try:
        return kind(**{**found, **overrides})
    except ValueError as error:
        raise ValueError(f"{path if found else 'Preprocessor'}: {error}") from error


def conversation(
    texts: Sequence[str],
    image_count: int,
    *,
    instruction: str | None,
    default_instruction: str,
    video_count: int = 0,
) -> list[dict[str, Any]]:
    """The two turns of Qwen3-VL-Embedding: system = instruction, user = videos, then images, then texts.

    A given instruction is stripped and ends in a period unless its last character is punctuation (Unicode P*). Without
    any content the user turn is the text "NULL", as in the reference (`parse_item` refuses such items before).
    """
    instruction = (instruction or "").strip()
    if instruction and not unicodedata.category(instruction[-1]).startswith("P"):
        instruction += "."
    content: list[dict[str, str]] = [{"type": "video"}] * video_count + [{"type": "image"}] * image_count
    content = content + [{"type": "text", "text": text} for text in texts]
    return [
        {"role": "system", "content": [{"type": "text", "text": instruction or default_instruction}]},
        {"role": "user", "content": content or [{"type": "text", "text": NULL_TEXT}]},
    ]


def dropped_token_ids(tokenizer: PreTrainedTokenizerBase, config: QwenVLConfig) -> set[int]:
    """Token ids that take no part in late interaction (SMART, arXiv:2605.24938).

    All of the tokenizer's special tokens and the markers of turns and images; visual placeholders are kept, and so are
    the words of the template and of the instruction.
    """
    dropped = set(tokenizer.all_special_ids)
    dropped |= {i for marker in _MARKERS if (i := _token_id(tokenizer, marker)) is not None}
    return dropped - {config.image_token_id, config.video_token_id}


def _token_id(tokenizer: PreTrainedTokenizerBase, token: str) -> int | None:
    found = tokenizer.convert_tokens_to_ids(token)
    return found if isinstance(found, int) and tokenizer.convert_ids_to_tokens(found) == token else None


def added_ids(tokenizer: PreTrainedTokenizerBase) -> tuple[Int[np.ndarray, " a"], Int[np.ndarray, " b"]]:
    """What the tokenizer puts before and after every text; most put nothing."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    start = next(i for i in range(len(full)) if full[i : i + len(bare)] == bare)
    return np.array(full[:start], np.int64), np.array(full[start + len(bare) :], np.int64)


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer.

    Raises:
      FileNotFoundError: there is none.
      ValueError: its files are corrupt.
    """
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        raise FileNotFoundError(f"{folder} lacks tokenizer.json: copy it from the original checkpoint")
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder))
        tokenizer("a")
    except Exception as error:  # the Rust tokenizers raise a bare Exception
        raise ValueError(
            f"the tokenizer in {folder} (tokenizer.json, tokenizer_config.json) can not be read ({error}): fetch the "
            "checkpoint again"
        ) from error
    return tokenizer


def read_chat_template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """The checkpoint's Jinja template of turns; ValueError when there is none."""
    # The processor's own file comes first, as in transformers; then chat_template.jinja and tokenizer_config.json.
    template = tokenizer.chat_template
    if (path := folder / "chat_template.json").is_file():
        template = read_json(path).get("chat_template", template)
    if isinstance(template, dict):
        template = template.get("default")
    if not isinstance(template, str) or not template:
        raise ValueError(
            f"{folder} has no chat template (chat_template.jinja, chat_template.json or tokenizer_config.json): copy "
            "one from the original checkpoint"
        )
    return template
