"""One safetensors file: written whole or not at all, and read as views of the file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from smart_jax.files.checked_values import checked_int, shown
from smart_jax.files.json_file import parse_json
from smart_jax.files.whole_files import whole_file

MOST_HEADER, MOST_AXES = 10**8, 32  # bytes, as safetensors has it; axes, as NumPy 1 has it
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


class TensorEntry(NamedTuple):
    """Place of a tensor in a safetensors file.

    Attributes:
      dtype: in safetensors' spelling.
      shape: of the tensor.
      start, end: of its bytes in the file.

    Example:
      >>> TensorEntry("I32", (3,), 64, 76).shape
      (3,)
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_header(path: Path) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Returns where the tensors of a safetensors file are, and its texts; the values are not read.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is no such file, or truncated: a tensor's bytes are not all in the file, or not as its shape asks.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "vectors.safetensors"
      >>> write_tensors(path, {"ids": np.arange(3, dtype=np.int32)})
      >>> read_header(path)[0]["ids"].shape
      (3,)
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MOST_HEADER):
            raise ValueError(f"{path} is no safetensors file: its header has {length} of {size} bytes")
        header = parse_json(file.read(length), f"the header of {path}")
    if not isinstance(header, dict):
        raise ValueError(f"the header of {path} is {shown(header)}, expected an object")
    texts = header.pop("__metadata__", {})
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise ValueError(f"the header of {path}: __metadata__ is not an object of texts")
    entries = {name: _entry(value, f"the header of {path}: {shown(name)}") for name, value in header.items()}
    entries = {name: e._replace(start=e.start + 8 + length, end=e.end + 8 + length) for name, e in entries.items()}
    if cut := [name for name, entry in entries.items() if entry.end > size]:
        raise ValueError(f"{path} has {size} bytes, and {shown(cut[0])} ends at {entries[cut[0]].end}: it is truncated")
    return entries, texts


def _entry(value: object, name: str) -> TensorEntry:
    if not isinstance(value, dict) or not all(isinstance(value.get(x), list) for x in ("shape", "data_offsets")):
        raise ValueError(f"{name} is {shown(value)}, expected dtype, shape and data_offsets")
    dtype, offsets, axes = value.get("dtype"), value["data_offsets"], value["shape"]
    if not isinstance(dtype, str) or len(offsets) != 2 or len(axes) > MOST_AXES:
        raise ValueError(f"{name} has no dtype, not two data_offsets, or more than {MOST_AXES} axes")
    shape = tuple(checked_int(axis, f"{name}: shape", least=0, most=2**62) for axis in axes)
    start, end = (checked_int(at, f"{name}: data_offsets", least=0, most=2**62) for at in offsets)
    if start > end or (dtype in DTYPES and math.prod(shape) * DTYPES[dtype].itemsize != end - start):
        raise ValueError(f"{name} has shape {shown(axes)} of {dtype}, but its bytes are {shown(offsets)}")
    return TensorEntry(dtype, shape, start, end)


def map_tensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the arrays of a safetensors file as views of it, which are read where they are used, and its texts.

    The file has to stay as it is while it is mapped: where it is cut shorter, the system ends the process that reads
    behind its new end (SIGBUS). Files are replaced here, never overwritten.

    Raises:
      OSError, ValueError: it is not such a file, or truncated, or has a tensor of another dtype than `DTYPES`.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "vectors.safetensors"
      >>> write_tensors(path, {"ids": np.arange(3, dtype=np.int32)})
      >>> map_tensors(path)[0]["ids"].tolist()
      [0, 1, 2]
    """
    entries, texts = read_header(path)
    data = np.memmap(path, np.uint8, mode="r")
    arrays = {}
    for name, (dtype, shape, start, end) in entries.items():
        if dtype not in DTYPES:
            raise ValueError(f"{path}: {shown(name)} is of {shown(dtype)}, expected one of {', '.join(DTYPES)}")
        arrays[name] = data[start:end].view(DTYPES[dtype]).reshape(shape)
    return arrays, texts


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
