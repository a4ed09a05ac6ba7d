"""One safetensors file: written whole or not at all, and read as views of the file."""

from __future__ import annotations

import json
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


def write(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """Writes arrays of `DTYPES` and some texts; a write that is cut off leaves nothing under this name."""
    partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        save_file({k: np.ascontiguousarray(array) for k, array in arrays.items()}, partial, dict(metadata or {}))
        flush(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def map_file(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays of a file, read when they are used, and its texts.

    Raises:
      OSError, ValueError, KeyError: it is not such a file, or truncated.
    """
    data = np.memmap(path, np.uint8, mode="r")
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")  # a length, a JSON header, the values
    header = json.loads(data[8:start].tobytes())
    metadata = header.pop("__metadata__", {})
    found = {}
    for name, entry in header.items():
        first, last = (start + at for at in entry["data_offsets"])
        found[name] = data[first:last].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return found, metadata


def flush(path: Path) -> None:
    """Leaves the file to the disk, not to the system's cache."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
