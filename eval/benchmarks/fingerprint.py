"""Fingerprints of items, which tell whether embeddings on disk are of these."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from eval.benchmarks.lazy_items import LazyItems
from smart_jax.inputs import parse_item


def of_items(items: Sequence[Any], ids: Sequence[str], instruction: str | None) -> str:
    """Returns 16 hexadecimal digits of items, their ids, and the instruction that they are encoded with.

    Texts and images in memory count by their content, files of images and videos by name and size, lazy items by their
    `source` where it is known: they are not made then.

    Raises:
      TypeError, ValueError, FileNotFoundError: an item cannot be encoded, as far as that shows without decoding.

    Example:
      >>> of_items(["a text"], ["d0"], None) == of_items(["a text"], ["d0"], "Find it.")
      False
    """
    digest = hashlib.blake2b(digest_size=8)
    digest.update(repr((list(ids), instruction)).encode(errors="surrogatepass"))
    if isinstance(items, LazyItems) and items.source is not None:
        digest.update(items.source.encode())
        return digest.hexdigest()
    for i, item in enumerate(items):
        parsed = parse_item(item, name=f"item {i}, '{ids[i]}'")
        digest.update(repr((parsed.texts, parsed.instruction, parsed.fps, parsed.max_frames)).encode())
        for medium in (*parsed.images, *parsed.videos):
            for part in _parts(medium):
                digest.update(part)
    return digest.hexdigest()


def _parts(medium: Any) -> Iterable[bytes]:
    """Yields the bytes that tell an image, or a video and its frames, from others."""
    if isinstance(medium, list | tuple):
        yield f"{len(medium)} frames\0".encode()
        for frame in medium:
            yield from _parts(frame)
    elif isinstance(medium, str | Path):
        path = Path(medium)
        yield f"{path.name}\0{path.stat().st_size}\0".encode(errors="surrogatepass")
    elif isinstance(medium, bytes):
        yield medium
    else:
        pixels = np.asarray(medium.convert("RGB") if isinstance(medium, Image.Image) else medium)
        yield f"{pixels.shape} {pixels.dtype}\0".encode()
        yield np.ascontiguousarray(pixels).tobytes()
