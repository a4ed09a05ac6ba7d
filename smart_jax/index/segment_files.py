"""The files of a segment: packed vectors that only grow.

A segment has a file for each array, without a header: the catalog says how many items and tokens are in them. What lies
behind these in a file is of a write that was cut off, and the next one overwrites it. Readers map what the catalog told
them, which nobody changes.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from smart_jax.index.vector_format import VectorFormat
from smart_jax.retrieval import Embeddings

SEGMENTS = "segments"  # the folder, in that of an index
SUFFIXES = (".tokens", ".pooled", ".bounds", ".scales")
WRITTEN_AT_ONCE = 2**22  # bytes, on their way to the disk while the next are copied


class Extent(NamedTuple):
    """Extent of a segment.

    Attributes:
      number: of the segment.
      items, tokens: numbers of these.
    """

    number: int
    items: int
    tokens: int


class SegmentFiles:
    """The segments in a folder.

    Attributes:
      folder: that holds them and nothing else.
      format: of the vectors.
    """

    def __init__(self, folder: Path, vector_format: VectorFormat):
        self.folder, self.format = folder, vector_format

    def path(self, number: int, suffix: str) -> Path:
        """Returns the file of one of a segment's arrays."""
        return self.folder / f"{number:06d}{suffix}"

    def append(self, extent: Extent, embeddings: Embeddings) -> Extent:
        """Writes items behind those of a segment, to the disk, and returns the segment's new extent."""
        number, items, tokens = extent
        if items == 0:
            self.folder.mkdir(exist_ok=True)
        arrays = self.format.arrays(embeddings)
        places = {".tokens": tokens, ".pooled": items, ".bounds": items, ".scales": tokens}
        arrays[".bounds"] = embeddings.offsets[1:] + tokens
        append_rows({self.path(number, suffix): (places[suffix], array) for suffix, array in arrays.items()})
        if items == 0:
            flush_folder(self.folder)
        return Extent(number, items + len(embeddings), tokens + len(embeddings.tokens))

    def open(self, extent: Extent) -> Embeddings:
        """Returns the items of a segment, left in the files: what is used is read when it is used.

        Raises:
          FileNotFoundError: a file is missing, perhaps since the segment was compacted.
          ValueError: a file is too short.
        """
        number, items, tokens = extent
        dtypes = self.format
        pooled = self._map(number, ".pooled", np.dtype(np.float32), (items, dtypes.pooled_width))
        packed = self._map(number, ".tokens", dtypes.dtype, (tokens, dtypes.token_width))
        bounds = self._map(number, ".bounds", np.dtype(np.int64), (items,))
        offsets = np.concatenate([np.zeros(1, np.int64), bounds])
        scales = self._map(number, ".scales", np.dtype(np.float32), (tokens,)) if dtypes.scaled else None
        try:
            return Embeddings.from_mapped(pooled, packed, offsets, scales)
        except ValueError as error:
            raise ValueError(f"segment {number} of '{self.folder}' is damaged ({error}): restore its files") from error

    def _map(self, number: int, suffix: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        return map_rows(self.path(number, suffix), dtype, shape)

    def trim(self, extents: Iterable[Extent]) -> None:
        """Removes what no extent names: files, and the ends of files."""
        if not self.folder.is_dir():
            return
        keep: dict[Path, int] = {}
        for number, items, tokens in extents:
            rows = {".tokens": tokens, ".pooled": items, ".bounds": items, ".scales": tokens}
            keep |= {self.path(number, s): rows[s] * size for s, size in self.format.row_bytes().items()}
        for path in self.folder.iterdir():
            if path not in keep:
                path.unlink()
            elif path.stat().st_size > keep[path]:
                os.truncate(path, keep[path])

    def remove(self, numbers: Iterable[int]) -> None:
        """Removes segments; who has them mapped keeps them."""
        for number in numbers:
            for suffix in SUFFIXES:
                self.path(number, suffix).unlink(missing_ok=True)


def append_rows(arrays: Mapping[Path, tuple[int, np.ndarray]]) -> None:
    """Writes arrays into files, each from a row on, to the disk."""
    with contextlib.ExitStack() as stack:
        handles = []
        for path, (row, array) in arrays.items():
            handles.append(os.open(path, os.O_RDWR | os.O_CREAT, 0o666))
            stack.callback(os.close, handles[-1])
            _write(handles[-1], row * _row_bytes(array), array)
        for handle in handles:  # after all are written: the first has the journal of the others written, too
            os.fdatasync(handle)


def map_rows(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the first rows of a file, left there.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is too short.
    """
    size = math.prod(shape) * dtype.itemsize
    if (there := path.stat().st_size) < size:
        raise ValueError(f"'{path}' has {there} bytes of {size}: the index is damaged; restore the file")
    if size == 0:  # pooled vectors of a multi-vector model, which nothing can map
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, mode="r", shape=shape).view(np.ndarray)


def flush_folder(folder: Path) -> None:
    """Has the names of a folder's files written to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _row_bytes(array: np.ndarray) -> int:
    return int(np.prod(array.shape[1:])) * array.itemsize


def _write(handle: int, place: int, array: np.ndarray) -> None:
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
    while data:
        written = os.pwrite(handle, data[:WRITTEN_AT_ONCE], place)
        if hasattr(os, "posix_fadvise"):  # which has them written, and keeps them until they are
            os.posix_fadvise(handle, place, written, os.POSIX_FADV_DONTNEED)
        place, data = place + written, data[written:]
