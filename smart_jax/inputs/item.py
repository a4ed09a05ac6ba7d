"""Queries and documents as a user may pass them, and their checks (no file is opened here)."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from smart_jax.inputs.audio import AudioLike, check_audio
from smart_jax.inputs.file_kinds import AUDIO_SUFFIXES, IMAGE_SUFFIXES, is_file_of_another_kind, not_an_image
from smart_jax.inputs.image import ImageLike
from smart_jax.inputs.video import VideoLike, check_video
from smart_jax.inputs.video_settings import check_sampling

_KEYS = (
    *("text", "image", "images", "video", "videos", "fps", "max_frames"),
    *("audio", "audios", "sampling_rate", "instruction"),
)
_MEDIA = {"image": IMAGE_SUFFIXES, "audio": AUDIO_SUFFIXES}
_IMAGE_TYPES = (Path, bytes, Image.Image, np.ndarray)


@dataclasses.dataclass(frozen=True, slots=True)
class Item:
    """Content of one item, as `parse_item` reads it; in the prompt videos come first, then images, audio, texts.

    Attributes:
      texts, images, videos, audios: its parts; files are not opened yet.
      instruction: the item's own; None = that of the call, or the checkpoint's.
      fps, max_frames: how its videos are sampled; None = as the settings say.
      sampling_rate: samples per second of the arrays among its audios; None = they are files.

    Example:
      >>> parse_item("revenue by region") == Item(texts=("revenue by region",))
      True
    """

    texts: tuple[str, ...] = ()
    images: tuple[ImageLike, ...] = ()
    instruction: str | None = None
    videos: tuple[VideoLike, ...] = ()
    fps: float | None = None
    max_frames: int | None = None
    audios: tuple[AudioLike, ...] = ()
    sampling_rate: int | None = None


# What a user may pass as one item, see `parse_item`.
ItemLike = str | Path | bytes | Image.Image | np.ndarray | Mapping[str, Any] | Item


class Items(Sequence[Any]):  # of Item; a check of types at run time would read ahead
    """Items that are parsed where they are read; see `parse_items`.

    Example:
      >>> items = parse_items(["revenue by region", {"text": ["a", "b"]}])
      >>> len(items), items[1].texts
      (2, ('a', 'b'))
    """

    def __init__(self, items: Sequence[Any]):
        self._items = items

    @property
    def in_memory(self) -> bool:
        """Whether the items are there; otherwise each is made when it is asked for."""
        return isinstance(self._items, list | tuple)

    @property
    def source(self) -> str | None:
        """Origin of the items, which is the sequence's attribute `source`; None = it has none."""
        source = getattr(self._items, "source", None)
        return source if isinstance(source, str) else None

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:  # an Item; of a slice, a list of them
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        return parse_item(self._items[index], name=f"item {index}")


def parse_items(items: Any) -> Items:
    """Returns the items, each parsed once; they are checked as far as that takes no decoding.

    A single item is taken as a list of one. A list or tuple is parsed at once (texts not empty, files there, keys
    known), so that a mistake shows before hours of encoding. Any other sequence is parsed item by item where it is
    read, so that a corpus may live on disk.

    Args:
      items: a list, tuple, array or other sequence, or an iterable of what `parse_item` takes; or one such item.

    Raises:
      TypeError: `items` is, or holds, an item of an unknown type.
      ValueError: there are no items, or one has no content; the message names its index.
      FileNotFoundError: an image file does not exist.

    Example:
      >>> [item.texts for item in parse_items(["revenue by region", {"text": ["a", "b"]}])]
      [('revenue by region',), ('a', 'b')]
    """
    if isinstance(items, str | bytes | Path | Mapping | Image.Image | Item) or (
        isinstance(items, np.ndarray) and items.ndim in (0, 2, 3)
    ):
        items = [items]
    if not isinstance(items, Iterable) and not hasattr(items, "__getitem__"):
        raise TypeError(f"items is a {type(items).__name__}, expected a text, an image or a dict, or a list of such")
    if not isinstance(items, Sequence):  # arrays, generators, data frame columns
        items = list(items)
    if len(items) == 0:
        raise ValueError("items is empty: pass at least one text, image or dict")
    if isinstance(items, Items):
        return items
    parsed = Items(items)
    return Items(list(parsed)) if isinstance(items, list | tuple) else parsed


def parse_item(item: object, *, name: str = "item") -> Item:
    """Returns the parts of one item; one that is parsed already is returned as it is.

    Args:
      item: a text, which the path of a file that is no image is not; a path (`pathlib.Path`, or a str that ends in an
        image suffix and exists), encoded bytes, PIL image or uint8 array as an image; a path, or such a str, that
        ends in an audio suffix as audio; or a dict with text (str or list), image or images (one or a list), video (a
        path, a list of frames or an array [T, H, W, 3]) or videos (a list of such), fps, max_frames, audio (a path, a
        file's bytes or an array of floats [samples] or [samples, channels]) or audios (a list of such), sampling_rate
        (of arrays, samples per second), instruction. In a dict, text is never taken for a path, and image is never
        taken for text.
      name: what messages call the item, such as "item 3".

    Raises:
      TypeError: the item is of another type.
      ValueError: it has no content, an unknown key, a video or audio that cannot be used, or is a file of another kind.
      FileNotFoundError: the str, the image, the video or the audio names a file that does not exist.

    Example:
      >>> parse_item({"text": "revenue by region", "instruction": "Find the page."}).instruction
      'Find the page.'
    """
    if isinstance(item, Item):
        return item
    if isinstance(item, str):
        if _is_media_path(item, name):
            return _of_file(item, name)
        return Item(texts=(_text(item, name),))
    if isinstance(item, Path):
        return _of_file(item, name)
    if isinstance(item, _IMAGE_TYPES):
        return Item(images=(_image(item, name),))
    if isinstance(item, Mapping):
        return _parse_dict(item, name)
    hint = "; for several images pass {'images': [...]}" if isinstance(item, list | tuple) else ""
    raise TypeError(
        f"{name} is a {type(item).__name__}, expected a text, a path, a PIL image, an array [H, W, 3] uint8 or a dict "
        f"with text, image, video, audio and instruction{hint}"
    )


def _parse_dict(item: Mapping[str, Any], name: str) -> Item:
    if unknown := [key for key in item if key not in _KEYS]:
        raise ValueError(f"{name} has unknown keys {unknown}: known are {', '.join(_KEYS)}")
    for one, several in (("image", "images"), ("video", "videos"), ("audio", "audios")):
        if item.get(one) is not None and item.get(several) is not None:
            raise ValueError(f"{name} has both '{one}' and '{several}': pass all of them as '{several}'")
    instruction = item.get("instruction")
    if instruction is not None and not isinstance(instruction, str):
        raise TypeError(f"{name}: the instruction is a {type(instruction).__name__}, expected a str")
    given = item.get("images") if item.get("image") is None else item["image"]
    images = tuple(_image(image, name) for image in _as_list(given))
    videos, audios = _videos(item, name), _audios(item, name)
    texts = [_utf8(text, name) for text in _as_list(item.get("text"))]
    texts = [text for text in texts if text]  # an empty text beside an image adds nothing to the prompt
    if not (images or videos or audios) and not any(text.strip() for text in texts):
        raise ValueError(
            f"{name} has neither text nor image nor video nor audio: fill one in, or drop the item ({_NULL_HINT})"
        )
    sampling = item.get("fps"), item.get("max_frames")
    return Item(tuple(texts), images, instruction, videos, *sampling, audios, item.get("sampling_rate"))


def _audios(item: Mapping[str, Any], name: str) -> tuple[AudioLike, ...]:
    given = item.get("audios")
    if given is None:
        given = [] if item.get("audio") is None else [item["audio"]]
    if not isinstance(given, list | tuple):
        raise TypeError(f"{name}: audios is a {type(given).__name__}, expected a list; pass a single one as 'audio'")
    rate = item.get("sampling_rate")
    if not given and rate is not None:
        raise ValueError(f"{name} has a sampling_rate but no audio: pass 'audio', or leave it out")
    return tuple(check_audio(audio, rate, name=name) for audio in given)


def _of_file(path: str | Path, name: str) -> Item:
    """Returns the item that a file is: audio, told by its suffix, or an image."""
    if str(path).lower().endswith(AUDIO_SUFFIXES):
        return Item(audios=(check_audio(path, name=name),))
    return Item(images=(path if isinstance(path, str) else _image(path, name),))


def _videos(item: Mapping[str, Any], name: str) -> tuple[VideoLike, ...]:
    given = item.get("videos")
    if given is None:
        given = [] if item.get("video") is None else [item["video"]]
    if not isinstance(given, list | tuple):
        raise TypeError(f"{name}: videos is a {type(given).__name__}, expected a list; pass a single one as 'video'")
    fps, max_frames = item.get("fps"), item.get("max_frames")
    if not given and (fps is not None or max_frames is not None):
        raise ValueError(f"{name} has fps or max_frames but no video: pass 'video', or leave them out")
    try:
        check_sampling(1 if fps is None else fps, 2 if max_frames is None else max_frames)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return tuple(check_video(video, name=name) for video in given)


_NULL_HINT = "the reference embeds an empty item as the text 'NULL'; pass that text to do the same"


def _as_list(value: object) -> list[object]:
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _text(text: str, name: str) -> str:
    if not text.strip():
        raise ValueError(f"{name} is an empty text: fill it in, or drop the item ({_NULL_HINT})")
    return _utf8(text, name)


def _utf8(text: object, name: str) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{name}: the text is a {type(text).__name__}, expected a str or a list of str")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name}: the text has a lone surrogate at character {error.start}: decode it again with errors='replace'"
        ) from error
    return text


def _image(image: object, name: str) -> ImageLike:
    if isinstance(image, str):
        if "://" in image:
            raise ValueError(f"{name}: '{image}' is a URL; images are read from local files only: download it first")
        image = Path(image)
    if isinstance(image, Path) and (remedy := not_an_image(image)) is not None:
        raise ValueError(f"{name}: '{image}' is no image: {remedy}")
    if isinstance(image, Path) and not image.exists():
        raise FileNotFoundError(f"{name}: no image file '{image}' (from {Path.cwd()})")
    if not isinstance(image, _IMAGE_TYPES):
        raise TypeError(
            f"{name}: the image is a {type(image).__name__}, expected a path, bytes, a PIL image or an array "
            "[H, W, 3] uint8"
        )
    return image


def _is_media_path(text: str, name: str) -> bool:
    """Returns whether a bare str is an image or audio file; raises where it is the name of one that is not there."""
    kind = next((kind for kind, suffixes in _MEDIA.items() if text.lower().endswith(suffixes)), None)
    if kind is None:
        if is_file_of_another_kind(text):
            remedy = not_an_image(text) or "pass pathlib.Path(...) if it is an image"
            raise ValueError(
                f"{name}: '{text}' is a file, not a text: {remedy}; {{'text': ...}} if it is meant as a text"
            )
        return False
    if os.path.isfile(text):
        return True
    if any(c.isspace() for c in text):
        return False
    remedy = "give the path of a file, or pass {'text': ...} if it is meant as text"
    if "://" in text:
        raise ValueError(f"{name}: '{text}' is a URL, and {kind} files are read from this machine only: {remedy}")
    raise FileNotFoundError(f"{name}: no {kind} file '{text}' (from {Path.cwd()}): {remedy}")
