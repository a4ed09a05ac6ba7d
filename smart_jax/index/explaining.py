"""Items of an index traced to what their tokens stand for, from what is stored of them and from their files."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from safetensors.numpy import load, save

from smart_jax.evidence import PageText, TokenSources, Traced
from smart_jax.index.documents import PDFS, file_hash
from smart_jax.index.pdf import Pdf
from smart_jax.inputs import AUDIO_SUFFIXES, Frame, draw_audio
from smart_jax.retrieval import Embeddings


class StoredTrace(NamedTuple):
    """Contents of an index for one item.

    Attributes:
      embeddings: of the item.
      tokens: what its tokens stand for, from `pack_sources`; None = it was not stored.
      text: of the item; None = it has none.
      path, hash, how: of its file, as in `Source`; None = it has none.
      page: of the file, from 1.
    """

    embeddings: Embeddings
    tokens: bytes | None
    text: str | None
    path: str | None
    hash: str | None
    how: str | None
    page: int | None


def pack_sources(sources: TokenSources) -> bytes:
    """Returns sources as the catalog keeps them."""
    return zlib.compress(save(sources.to_arrays()), 1)


def unpack_sources(packed: bytes) -> TokenSources:
    """Returns what `pack_sources` packed."""
    return TokenSources.from_arrays(load(zlib.decompress(packed)))


def trace_stored(stored: StoredTrace, *, password: str | None = None) -> Traced:
    """Returns an item's vectors with what they stand for, and with its pictures if its file is there, unchanged.

    Args:
      stored: what the index has.
      password: of an encrypted PDF.

    Raises:
      ValueError: it was not stored what the tokens stand for.
    """
    if stored.tokens is None:
        raise ValueError("what the item's tokens stand for is not in the index: it was added as embeddings")
    sources = unpack_sources(stored.tokens)
    texts = () if stored.text is None else (stored.text,)
    pictures, page = _pictures(stored, sources.frames, password)
    if len(pictures) != (len(sources.frames) if page is None else 1):
        pictures, page = [], None
    return Traced(stored.embeddings, sources, texts, tuple(pictures), page=page)


def _pictures(stored: StoredTrace, frames: Sequence[Frame], password: str | None) -> tuple[list[Any], PageText | None]:
    if stored.path is None or not (path := Path(stored.path)).is_file() or file_hash(path) != stored.hash:
        return [], None
    if path.suffix.lower() in AUDIO_SUFFIXES:
        seconds = next((frame.seconds for frame in frames if frame.medium == "audio"), None)
        return [partial(draw_audio, path, seconds)], None
    if path.suffix.lower() not in PDFS:
        return [path], None
    how: Mapping[str, Any] = json.loads(stored.how or "{}")
    index = (stored.page or 1) - 1
    dpi = {"dpi": how["dpi"]} if "dpi" in how else {}
    try:
        with Pdf(path, password=password) as pdf:
            page = pdf.page_text(index) if how.get("pdf") == "text" else None
    except ValueError:  # encrypted
        return [], None
    return [_opener(path, index, password, dpi)], page if page is None or page.text == stored.text else None


def _opener(path: Path, index: int, password: str | None, dpi: Mapping[str, float]) -> Callable[[], Image.Image]:
    def render() -> Image.Image:
        with Pdf(path, password=password) as pdf:
            return pdf.image(index, **dpi)

    return render
