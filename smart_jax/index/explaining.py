"""Items of an index traced to what their tokens stand for, from what is stored of them and from their files."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load, save

from smart_jax.evidence import PageText, TokenSources, Traced
from smart_jax.files import checked_float, checked_int, parse_json_object, path_inside, shown
from smart_jax.index.documents import PDFS, file_hash
from smart_jax.index.pdf import DPI, Pdf
from smart_jax.inputs import AUDIO_SUFFIXES, IMAGE_SUFFIXES, Frame, draw_audio
from smart_jax.retrieval import Embeddings

PICTURED = (*PDFS, *IMAGE_SUFFIXES, *AUDIO_SUFFIXES)
LARGEST_SOURCES = 2**26  # bytes of what an item's tokens stand for: a text of a million tokens has a quarter of it


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
    """Returns what `pack_sources` packed; raises ValueError where the index holds something else."""
    unpacker = zlib.decompressobj()
    try:
        content = unpacker.decompress(packed, LARGEST_SOURCES)
        if not unpacker.eof:
            raise ValueError(f"it is cut off, or has more than {LARGEST_SOURCES} bytes")
        return TokenSources.from_arrays(load(content))
    except (zlib.error, SafetensorError, ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ValueError(
            f"what the item's tokens stand for cannot be read from the index ({type(error).__name__}: {error}): delete "
            "the item, and add it again"
        ) from error


def trace_stored(stored: StoredTrace, *, password: str | None = None) -> Traced:
    """Returns an item's vectors with what they stand for, and with its pictures if its file is there, unchanged.

    Args:
      stored: what the index has.
      password: of an encrypted PDF.

    Raises:
      ValueError: it was not stored what the tokens stand for, or what the index says of the item's file is not what
        `Index.add` writes.
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
    if (path := _unchanged_file(stored)) is None:
        return [], None
    if path.suffix.lower() in AUDIO_SUFFIXES:
        seconds = next((frame.seconds for frame in frames if frame.medium == "audio"), None)
        return [partial(draw_audio, path, seconds)], None
    if path.suffix.lower() not in PDFS:
        return [path], None
    how, dpi = _how_read(stored)
    index = checked_int(1 if stored.page is None else stored.page, f"the index: page of '{path}'") - 1
    try:
        with Pdf(path, password=password) as pdf:
            page = pdf.page_text(index) if how.get("pdf") == "text" else None
    except ValueError:  # encrypted
        return [], None
    return [_opener(path, index, password, {"dpi": dpi})], page if page is None or page.text == stored.text else None


def _unchanged_file(stored: StoredTrace) -> Path | None:
    """Returns an item's file; None = it is not there as it was added, or shows nothing.

    The files of an index are wherever its user has them, and an index may be somebody else's: what it names is opened
    by its own absolute path alone, which no link leads away from, and shown only if it has the content that was added.

    Raises:
      ValueError: the index names the file in another way, or by a link to another place.
    """
    if stored.path is None:
        return None
    if not isinstance(stored.path, str) or "\0" in stored.path:
        raise ValueError(f"the index names the file {shown(stored.path)}, which is no path: {_AGAIN}")
    path = Path(stored.path)
    if not path.is_absolute() and PureWindowsPath(path).drive:  # the index was made on Windows
        return None
    if not path.is_absolute() or ".." in path.parts:
        raise ValueError(f"the index names the file {shown(stored.path)}, expected an absolute path: {_AGAIN}")
    if path.suffix.lower() not in PICTURED:
        return None
    path = path_inside(path.parent, path.name, "the index", remedy=_AGAIN)
    try:
        return path if path.is_file() and file_hash(path) == stored.hash else None
    except OSError:  # another user's
        return None


_AGAIN = "add the file again, by where it is now, or delete its items"


def _how_read(stored: StoredTrace) -> tuple[Mapping[str, Any], float]:
    """Returns how a file was read, and the pixels per inch of its pages."""
    name = f"the index: how '{stored.path}' was read"
    how = parse_json_object(stored.how or "{}", name, remedy=_AGAIN, finite=True)
    return how, checked_float(how.get("dpi", DPI), f"{name}: dpi")


def _opener(path: Path, index: int, password: str | None, dpi: Mapping[str, float]) -> Callable[[], Image.Image]:
    def render() -> Image.Image:
        with Pdf(path, password=password) as pdf:
            return pdf.image(index, **dpi)

    return render
