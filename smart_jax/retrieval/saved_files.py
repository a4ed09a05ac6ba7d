"""The files of saved embeddings: an index, which names the file of the vectors, written by one process at a time."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from smart_jax.files import parse_json_object, read_json, try_lock, write_tensors, write_whole_text

INDEX = "embeddings.json"
JOURNAL = "embeddings.partial.jsonl"
# Of vectors, and of what is being written; the last of the names that other versions have given to an index.
_OURS = re.compile(
    r"embeddings-[0-9a-f]{8}\.safetensors(\.[0-9a-f]{8}\.tmp|\.json)?|embeddings\.json\.[0-9a-f]{8}\.tmp"
)


def new_name() -> str:
    """Returns a name for a file of vectors, which no other has."""
    return f"embeddings-{secrets.token_hex(4)}.safetensors"


def save_files(folder: Path, arrays: Mapping[str, np.ndarray], index: Mapping[str, Any]) -> None:
    """Writes the vectors, then the index with their file's name, and removes what is left of former ones.

    Where other processes write to the folder, this waits until they have: the last one's embeddings stay.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = folder / new_name()
    with written_by_this_process(folder):
        remove_leftovers(folder)
        try:
            write_tensors(tensors, arrays)
            write_index(folder, {**index, "file": tensors.name})
        except BaseException:
            with contextlib.suppress(OSError):  # would hide the first
                tensors.unlink(missing_ok=True)
            raise
        remove_leftovers(folder)


def write_index(folder: Path, index: Mapping[str, Any]) -> None:
    """Replaces the index of a folder."""
    write_whole_text(folder / INDEX, json.dumps(index, indent=2) + "\n", flush=True)


@contextlib.contextmanager
def written_by_this_process(folder: Path) -> Iterator[None]:
    """Waits until no other process writes to the folder, and lets none until the end of the block, or of the process.

    Example:
      >>> import tempfile
      >>> with written_by_this_process(Path(tempfile.mkdtemp())):
      ...     pass
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try_lock(descriptor, wait=True)
        yield
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes have left in a folder that no other process writes to now.

    Files that the index or a journal names stay, and so do all where either cannot be read.
    """
    try:
        kept = {read_json(folder / INDEX)["file"]} if (folder / INDEX).exists() else {}
        with contextlib.suppress(FileNotFoundError), (folder / JOURNAL).open(encoding="utf-8") as journal:
            head = journal.readline()
            kept = {*kept, parse_json_object(head, JOURNAL)["file"]} if head.endswith("\n") else kept
    except (OSError, ValueError, KeyError, TypeError):
        return
    for path in folder.iterdir():
        if path.name not in kept and _OURS.fullmatch(path.name):
            with contextlib.suppress(OSError):  # another user's
                path.unlink()
