"""Fingerprints of items, which tell whether what is on disk was made of these."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from smart_jax.inputs.item import Item, Items


def items_fingerprint(items: Items) -> str:
    """Returns 16 hexadecimal digits of items.

    Texts, images and audio in memory count by their content, files by name and size. Of a sequence that
    makes its items when they are asked for, its length counts and its attribute `source`, if it has one, or the first,
    middle and last item.

    Args:
      items: from `parse_items`.

    Example:
      >>> from smart_jax.inputs import parse_items
      >>> items_fingerprint(parse_items(["a", "b"])) == items_fingerprint(parse_items(["a", "c"]))
      False
    """
    digest = hashlib.blake2b(f"{len(items)}\0".encode(), digest_size=8)
    numbers: Iterable[int] = range(len(items))
    if not items.in_memory:
        numbers = () if items.source else sorted({0, len(items) // 2, len(items) - 1})
        digest.update((items.source or "").encode(errors="surrogatepass"))
    for number in numbers:
        for part in item_parts(items[number]):
            digest.update(part)
    return digest.hexdigest()


def item_parts(item: Item) -> Iterable[bytes]:
    """Yields the bytes that tell an item from others.

    Example:
      >>> from smart_jax.inputs import parse_item
      >>> list(item_parts(parse_item("a")))
      [b"(('a',), None, None, None)"]
    """
    yield repr((item.texts, item.instruction, item.fps, item.max_frames)).encode()
    if item.audios:  # the parts of items without any are as they were
        yield f"{len(item.audios)} clips at {item.sampling_rate}\0".encode()
    for medium in (*item.images, *item.videos, *item.audios):
        yield from _medium_parts(medium)


def _medium_parts(medium: Any) -> Iterable[bytes]:
    """Yields the bytes that tell an image, a clip, or a video and its frames, from others."""
    if isinstance(medium, list | tuple):
        yield f"{len(medium)} frames\0".encode()
        for frame in medium:
            yield from _medium_parts(frame)
    elif isinstance(medium, str | Path):
        path = Path(medium)
        yield f"{path.name}\0{path.stat().st_size}\0".encode(errors="surrogatepass")
    elif isinstance(medium, bytes):
        yield medium
    else:
        pixels = np.asarray(medium.convert("RGB") if isinstance(medium, Image.Image) else medium)
        yield f"{pixels.shape} {pixels.dtype}\0".encode()
        yield np.ascontiguousarray(pixels).tobytes()
