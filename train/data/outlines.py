"""Outlines of examples, stored beside their records: the query, and sizes and digests of the documents.

Shapes of batches, and which of their documents are the same, follow from it without the pages: it is 24 bytes for each
document, and the queries' texts.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int, UInt8

from smart_jax.inputs import open_image

Item = dict[str, Any]  # what `smart_jax.inputs.parse_item` takes
DIGEST_BYTES = 16
_UNKNOWN = bytes(DIGEST_BYTES)
_SIZES, _DIGESTS = pa.list_(pa.int32()), pa.list_(pa.binary(DIGEST_BYTES))
_SCHEMA = pa.schema({"query": pa.string(), "width": _SIZES, "height": _SIZES, "digest": _DIGESTS})


class Outline(NamedTuple):
    """Outline of one example.

    Attributes:
      query: its text; "" where there is none.
      sizes: width and height of its document and of each negative, in pixels; (0, 0) of what is no image.
      hashes: `content_hash` of each of these; "" of a video's path, whose digest depends on where the data set lies.

    Example:
      >>> outline_of("a query", [{"text": "a document"}]).sizes
      ((0, 0),)
    """

    query: str
    sizes: tuple[tuple[int, int], ...]
    hashes: tuple[str, ...]


def outline_of(query: str, documents: Sequence[Item]) -> Outline:
    """Computes the outline of an example from its query's text, and from its document and negatives."""
    hashes = tuple("" if isinstance(item.get("video"), str | Path) else content_hash(item) for item in documents)
    return Outline(query, tuple(_size(item) for item in documents), hashes)


def content_hash(item: Item) -> str:
    """Computes a digest of an item's text, image bytes, and path or frames of a video.

    Equal documents of a batch are no negatives of each other. A video is the same one however it is sampled, so fps and
    max_frames do not count.

    Args:
      item: query or document.

    Returns:
      32 hexadecimal digits (128 bits).

    Example:
      >>> content_hash({"video": "a.mp4", "fps": 1}) == content_hash({"video": "a.mp4", "fps": 2})
      True
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for key in sorted(item.keys() - {"fps", "max_frames"}):
        for value in item[key] if isinstance(item[key], list) else [item[key]]:
            data = str(value).encode() if isinstance(value, str | Path) else value
            data = data if isinstance(data, bytes) else data.tobytes()  # an array or a Pillow image
            digest.update(f"{key}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


class Outlines:
    """Outlines of all examples of a split, in its order.

    Example:
      >>> outlines = Outlines.of([outline_of("a query", [{"text": "a document"}])])
      >>> len(outlines), outlines[0].query
      (1, 'a query')
    """

    def __init__(
        self,
        queries: pa.Array,
        offsets: Int[np.ndarray, " offsets"],
        sizes: Int[np.ndarray, "documents 2"],
        digests: UInt8[np.ndarray, "documents 16"],
    ):
        """Takes columns; documents offsets[i] to offsets[i + 1] are those of example i."""
        self._queries, self._offsets, self._sizes, self._digests = queries, offsets, sizes, digests

    @classmethod
    def of(cls, outlines: Sequence[Outline]) -> Outlines:
        """Puts outlines together."""
        counts = [len(outline.sizes) for outline in outlines]
        digests = b"".join(bytes.fromhex(x) or _UNKNOWN for outline in outlines for x in outline.hashes)
        return cls(
            pa.array([outline.query for outline in outlines], pa.string()),
            _offsets(counts),
            np.array([size for outline in outlines for size in outline.sizes], np.int32).reshape(-1, 2),
            np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES),
        )

    def __len__(self) -> int:
        return len(self._queries)

    def __getitem__(self, index: int) -> Outline:
        at = slice(self._offsets[index], self._offsets[index + 1])
        hashes = (row.tobytes() for row in self._digests[at])
        return Outline(
            self._queries[index].as_py(),
            tuple((width, height) for width, height in self._sizes[at].tolist()),
            tuple("" if digest == _UNKNOWN else digest.hex() for digest in hashes),
        )

    def write(self, path: Path) -> None:
        """Writes a parquet file."""
        digests = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(DIGEST_BYTES), len(self._digests), [None, pa.py_buffer(np.ascontiguousarray(self._digests))]
        )
        columns = {"width": pa.array(self._sizes[:, 0]), "height": pa.array(self._sizes[:, 1]), "digest": digests}
        lists = {name: pa.ListArray.from_arrays(pa.array(self._offsets, pa.int32()), x) for name, x in columns.items()}
        pq.write_table(pa.table({"query": self._queries, **lists}), path, compression="zstd")

    @classmethod
    def read(cls, files: Iterable[Path]) -> Outlines:
        """Reads files that `write` wrote, one after another.

        Raises:
          ValueError: a file is corrupt.
        """
        tables = []
        for file in files:
            try:
                with pa.OSFile(str(file)) as source:  # unlike `read_bytes`, it asks a device for no more than it has
                    table = pq.read_table(source).select(_SCHEMA.names).cast(_SCHEMA)
                _check(table)
            except (pa.ArrowException, OSError, KeyError, ValueError) as error:
                raise ValueError(f"'{file}' is truncated or corrupt ({error}): convert the data again") from error
            tables.append(table)
        table = pa.concat_tables(tables).combine_chunks()
        width, height, digest = (table[name].chunk(0) for name in ("width", "height", "digest"))
        flat = digest.flatten()
        digests = np.frombuffer(flat.buffers()[1], np.uint8).reshape(-1, DIGEST_BYTES)[flat.offset :][: len(flat)]
        counts = np.diff(width.offsets.to_numpy())
        sizes = np.stack([width.flatten().to_numpy(), height.flatten().to_numpy()], axis=1)
        return cls(table["query"].chunk(0), _offsets(counts), sizes, digests)


def _check(table: pa.Table) -> None:
    """Raises ValueError where an example lacks its query, or a document its width, height or digest."""
    lists = [table[name].combine_chunks() for name in ("width", "height", "digest")]
    counts = [part.value_lengths() for part in lists]
    if any(column.null_count for column in (table["query"], *lists, *(part.flatten() for part in lists))):
        raise ValueError("a value is missing")
    if counts[0] != counts[1] or counts[0] != counts[2]:
        raise ValueError("documents are not as many as their sizes")


def _offsets(counts: Sequence[int] | Int[np.ndarray, " B"]) -> Int[np.ndarray, " offsets"]:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def outlines_file(folder: Path, split: str) -> Path:
    """Returns the file of a split's outlines in the folder of a data set's version."""
    return folder / f"outlines-{split}.parquet"


def _size(item: Item) -> tuple[int, int]:
    if "image" not in item:
        return 0, 0
    with open_image(io.BytesIO(item["image"])) as image:  # its header
        return image.size
