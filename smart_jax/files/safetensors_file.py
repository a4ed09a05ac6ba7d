"""One safetensors file: written whole or not at all, and read as views of the file."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I8": np.dtype(np.int8),
    "I32": np.dtype(np.int32),
    "I64": np.dtype(np.int64),
}


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
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        save_file({k: np.ascontiguousarray(array) for k, array in arrays.items()}, partial, dict(metadata or {}))
        flush_file(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def safetensors_header(arrays: Mapping[str, tuple[tuple[int, ...], np.dtype]], size: int) -> bytes:
    """Returns the first bytes of a safetensors file whose arrays are written apart, one after another.

    Args:
      arrays: shape and dtype of each by name, in their order in the file.
      size: of the header in bytes, which is filled up with spaces.

    Example:
      >>> safetensors_header({"ids": ((2,), np.dtype(np.int32))}, 80)[8:71]
      b'{"ids": {"dtype": "I32", "shape": [2], "data_offsets": [0, 8]}}'
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    entries, end = {}, 0
    for name, (shape, dtype) in arrays.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries).encode()
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
