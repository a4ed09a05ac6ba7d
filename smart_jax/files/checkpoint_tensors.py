"""The tensors of a checkpoint in safetensors: one file, or an index and its shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, which safetensors needs
import numpy as np
from safetensors import SafetensorError, safe_open

from smart_jax.files.checkpoint import INDEX_FILE, SINGLE_FILE, WEIGHTS_FILE
from smart_jax.files.inside import path_inside
from smart_jax.files.json_file import read_json
from smart_jax.files.safetensors_file import TensorEntry, read_header


def read_tensors(folder: Path) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Yields name and reader of every tensor, file by file; a reader works until the next tensor is asked for.

    Raises:
      FileNotFoundError: there are no weights, or a shard named in the index is missing.
      ValueError: a file or the index is corrupt, or a shard lacks tensors that the index places in it.

    Example:
      >>> from smart_jax.files import resolve
      >>> tensors = {name: read().shape for name, read in read_tensors(resolve("tiny"))}
      >>> tensors["model.language_model.norm.weight"]
      (192,)
    """
    for file, expected in _weight_files(folder).items():
        if not file.is_file():
            raise FileNotFoundError(f"{file} is named in {INDEX_FILE} but does not exist: fetch the checkpoint again")
        try:
            with safe_open(str(file), framework="numpy") as handle:
                names = set(handle.keys())
                if expected is not None and (absent := expected - names):
                    raise ValueError(
                        f"{file} lacks tensors that {INDEX_FILE} places in it: {first_names(sorted(absent))}"
                    )
                for name in sorted(names):
                    yield name, partial(handle.get_tensor, name)
        except SafetensorError as error:
            raise ValueError(f"{file} is corrupt or truncated ({error}): fetch the checkpoint again") from error


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a folder's tensors, a checkpoint's or a PEFT adapter's, from the headers of its files.

    Files that are missing are passed over: whoever reads the tensors says so.

    Raises:
      ValueError: a file or the index is corrupt.

    Example:
      >>> from smart_jax.files import resolve
      >>> tensor_shapes(resolve("tiny"))["model.language_model.norm.weight"]
      (192,)
    """
    try:
        files = [*_weight_files(folder)]
    except FileNotFoundError:
        files = [folder / WEIGHTS_FILE]
    shapes: dict[str, tuple[int, ...]] = {}
    for file in filter(Path.is_file, files):
        try:
            with safe_open(str(file), framework="numpy") as handle:
                shapes |= {name: tuple(handle.get_slice(name).get_shape()) for name in handle.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{file} is corrupt or truncated ({error}): fetch the checkpoint again") from error
    return shapes


def _weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """Returns the weight files, each with the tensors that the index places in it; None = there is no index."""
    if (index := folder / INDEX_FILE).is_file():
        weight_map = read_json(index, remedy="fetch the checkpoint again").get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
            raise ValueError(f"{index} is not a safetensors index (no weight_map): fetch the checkpoint again")
        shards: dict[str, set[str]] = {}
        for name, file in weight_map.items():
            shards.setdefault(file, set()).add(name)
        return {path_inside(folder, file, str(index)): names for file, names in shards.items()}
    if (folder / SINGLE_FILE).is_file():
        return {path_inside(folder, SINGLE_FILE, str(folder)): None}
    raise FileNotFoundError(f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}: are the weights in safetensors?")


def weight_sizes(folder: Path) -> tuple[int, int]:
    """Returns the number of tensors of a checkpoint, and the bytes of their files, whose headers alone are read.

    Raises:
      FileNotFoundError, ValueError: as `read_tensors`, as far as that shows without the values.

    Example:
      >>> from smart_jax.files import resolve
      >>> weight_sizes(resolve("tiny"))[0] > 50
      True
    """
    files = [file for file in _weight_files(folder) if file.is_file()]
    return sum(len(_header(file)) for file in files), sum(file.stat().st_size for file in files)


def _header(file: Path) -> dict[str, TensorEntry]:
    try:
        return read_header(file)[0]
    except ValueError as error:
        raise ValueError(f"{file} is corrupt or truncated ({error}): fetch the checkpoint again") from error


def first_names(names: Sequence[str], most: int = 8) -> str:
    """Returns the first names for a message, and how many more there are.

    Example:
      >>> first_names(["a", "b", "c"], most=2)
      'a, b and 1 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
