"""One safetensors file: written whole or not at all, and read as views of the file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from smart_jax.files.whole_files import whole_file

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I8": np.dtype(np.int8),
    "I16": np.dtype(np.int16),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
    "U8": np.dtype(np.uint8),
    "U16": np.dtype(np.uint16),
    "U32": np.dtype(np.uint32),
    "U64": np.dtype(np.uint64),
    "BOOL": np.dtype(np.bool_),
}
AT_ONCE = 2**24  # bytes that are copied at a time where an array is not contiguous


def write_tensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes arrays of `DTYPES` and texts to a safetensors file; a write that is cut off leaves nothing at the path.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "vectors.safetensors"
      >>> write_tensors(path, {"pooled": np.ones((2, 3), np.float32)}, {"model": "tiny"})
      >>> arrays, metadata = map_tensors(path)
      >>> arrays["pooled"].shape, metadata
      ((2, 3), {'model': 'tiny'})
    """
    # Those of large elements first, by name, as the format's own writer does: each begins at a multiple of its size.
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    shapes = {name: (array.shape, array.dtype) for name, array in ordered}
    with whole_file(path) as file:
        file.write(safetensors_header(shapes, metadata=metadata))
        for _, array in ordered:
            _write_values(file, array)


def _write_values(file: BinaryIO, array: np.ndarray) -> None:
    """Writes the values piece by piece: an array that is not contiguous is not copied as a whole."""
    rows = array.reshape(1) if array.ndim == 0 else array
    step = max(1, AT_ONCE // max(1, rows[:1].nbytes))
    for start in range(0, len(rows), step):
        file.write(np.ascontiguousarray(rows[start : start + step]).reshape(-1).view(np.uint8).data)


def safetensors_header(
    arrays: Mapping[str, tuple[tuple[int, ...], np.dtype]],
    size: int | None = None,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Returns the first bytes of a safetensors file whose arrays are written apart, one after another.

    Args:
      arrays: shape and dtype of each by name, in their order in the file.
      size: of the header in bytes, which is filled up with spaces; None = what it needs, to a multiple of 8.
      metadata: texts by name.

    Raises:
      KeyError: a dtype is not one of `DTYPES`.

    Example:
      >>> safetensors_header({"ids": ((2,), np.dtype(np.int32))}, 80)[8:71]
      b'{"ids": {"dtype": "I32", "shape": [2], "data_offsets": [0, 8]}}'
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, (shape, dtype) in arrays.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
    size = -(-len(text) // 8) * 8 + 8 if size is None else size
    assert len(text) <= size - 8, "the header needs more room"
    return (size - 8).to_bytes(8, "little") + text.ljust(size - 8)


def map_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the arrays of a safetensors file as views of it, which are read where they are used, and its texts.

    Raises:
      OSError, ValueError, KeyError: it is not such a file, or truncated.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "vectors.safetensors"
      >>> write_tensors(path, {"ids": np.arange(3, dtype=np.int32)})
      >>> map_tensors(path)[0]["ids"].tolist()
      [0, 1, 2]
    """
    data = np.memmap(path, np.uint8, mode="r")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")  # a length, a JSON header, the values
    header = json.loads(data[8:start].tobytes())
    metadata = header.pop("__metadata__", {})
    arrays = {}
    for name, entry in header.items():
        first, last = (start + at for at in entry["data_offsets"])
        arrays[name] = data[first:last].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays, metadata


def flush_file(path: Path) -> None:
    """Has the file written to the disk, so that it does not stay in the system's cache alone.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "offsets.json"
      >>> _ = path.write_text("[0]")
      >>> flush_file(path)
    """
    with path.open("rb") as file:
        os.fsync(file.fileno())
