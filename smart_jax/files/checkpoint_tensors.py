"""The tensors of a checkpoint in safetensors: one file, or an index and its shards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, which safetensors needs
import numpy as np
from safetensors import SafetensorError, safe_open

from smart_jax.files.checkpoint import INDEX_FILE, SINGLE_FILE


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


def _weight_files(folder: Path) -> dict[Path, set[str] | None]:
    """Returns the weight files, each with the tensors that the index places in it; None = there is no index."""
    if (index := folder / INDEX_FILE).is_file():
        try:
            weight_map: Mapping[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files: dict[Path, set[str]] = {}
            for name, file in weight_map.items():
                files.setdefault(folder / file, set()).add(name)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index} is not a safetensors index ({error!r}): fetch the checkpoint again") from error
        return {**files}
    if (single := folder / SINGLE_FILE).is_file():
        return {single: None}
    raise FileNotFoundError(f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}: are the weights in safetensors?")


def first_names(names: Sequence[str], most: int = 8) -> str:
    """Returns the first names for a message, and how many more there are.

    Example:
      >>> first_names(["a", "b", "c"], most=2)
      'a, b and 1 more'
    """
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
