"""Fingerprints of items, which tell whether embeddings on disk are of these."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from eval.benchmarks.lazy_items import LazyItems
from smart_jax.inputs import item_parts, parse_item


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
        for part in item_parts(parse_item(item, name=f"item {i}, '{ids[i]}'")):
            digest.update(part)
    return digest.hexdigest()
