"""`Embeddings` written to a folder while their items are encoded: what is written stays, whatever ends the process.

The folder holds one safetensors file, in which the tokens come last and so may grow, and a journal: what the embeddings
are made of, then, line by line, which items are in the file. The journal runs at most a second behind the file. When
all items are there, the file gets its header, the folder the index of `Embeddings.save`, and the journal goes.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import DTypeLike

from smart_jax.files import lock_file, parse_json, path_inside, safetensors_header
from smart_jax.retrieval.embeddings import DTYPES, FORMAT, VERSION, Embeddings, check_finite, read_index
from smart_jax.retrieval.provenance import Provenance
from smart_jax.retrieval.saved_files import (
    INDEX,
    JOURNAL,
    new_name,
    remove_leftovers,
    write_index,
    written_by_this_process,
)

JOURNAL_FORMAT, JOURNAL_VERSION = "smart_jax.embeddings.partial", 1
RECORD_SECONDS = 1.0  # at most so much is encoded again after a kill, and what was being computed
HEADER_BYTES = 1024  # kept free for the header of the safetensors file


class ItemVectors(NamedTuple):
    """Vectors of one item.

    Attributes:
      number: of the item.
      pooled, tokens: its vectors.

    Example:
      >>> ItemVectors(3, np.float32([1, 0]), np.float32([[0, 1], [1, 0]])).number
      3
    """

    number: int
    pooled: Float[np.ndarray, " H"]
    tokens: Float[np.ndarray, "T D"]


class EmbeddingsFolder:
    """A folder that embeddings of N items are written to, in any order; a context manager.

    Attributes:
      done: bool [N], which items are there.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> with EmbeddingsFolder(folder, items=1, about={"model": "tiny"}) as out:
      ...     out.expect(0, tokens=2)
      ...     out.write([ItemVectors(0, np.float32([1, 0]), np.float32([[0, 1], [1, 0]]))])
      ...     out.finish()
      Embeddings(1 items, 2 tokens, pooled width 2, token width 2, float32)
      >>> Embeddings.load(folder)
      Embeddings(1 items, 2 tokens, pooled width 2, token width 2, float32)
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        items: int,
        about: Mapping[str, Any],
        dtype: DTypeLike = np.float32,
        provenance: Provenance | None = None,
    ):
        """Opens a new folder, or one that a former process has left.

        Args:
          folder: made where it is missing.
          items: how many there are.
          about: what the embeddings are made of, as JSON values by name.
          dtype: of the vectors.
          provenance: of the embeddings.

        Raises:
          ValueError: the folder holds other embeddings, a damaged journal, or another process writes to it.
          TypeError: embeddings are not stored as this dtype.
        """
        self._dtype = np.dtype(dtype)
        if self._dtype not in DTYPES:
            raise TypeError(f"dtype {self._dtype}: embeddings are stored as {', '.join(d.name for d in DTYPES)}")
        self._folder, self._provenance = Path(folder), provenance
        self._about = {"items": items, "dtype": self._dtype.name, **about}
        self._folder.mkdir(parents=True, exist_ok=True)
        self.done = np.zeros(items, bool)
        self._lengths = np.zeros(items, np.int64)  # of those that are done or expected
        self._offsets = np.zeros(items + 1, np.int64)
        self._known = 0  # items whose place in the file is known
        self._waiting: list[int] = []  # written, but not in the journal
        self._recorded = time.monotonic()
        self._widths: tuple[int, ...] = ()
        self._file: Any = None
        self._journal: Any = None
        self._name = ""
        self._finished = self._is_finished()
        if not self._finished or (self._folder / JOURNAL).exists():  # of a process that ended before it removed it
            self._open()

    def __enter__(self) -> EmbeddingsFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Records what is written, and leaves the folder for another time."""
        if self._journal is not None:
            self._record()
            self._journal.close()
        if self._file is not None:
            os.close(self._file)
        self._file = self._journal = None

    def expect(self, number: int, tokens: int) -> None:
        """Says how many tokens an item will have; items that are not done are expected in order, before `write`."""
        self._lengths[number] = tokens
        self._place(number + 1)

    def write(self, items: Iterable[ItemVectors]) -> None:
        """Writes the vectors of items that are expected.

        Raises:
          ValueError: an item has another number of tokens than expected, or holds NaN or infinity.
          OSError: the disk is full.
        """
        for number, pooled, tokens in items:
            if len(tokens) != self._lengths[number]:
                raise ValueError(
                    f"item {number} has {len(tokens)} tokens, and {self._lengths[number]} were expected: its file has "
                    "changed; start again in another folder"
                )
            _check_vectors(number, pooled, tokens)
            if not self._widths:
                self._begin((len(pooled), tokens.shape[1]))
            layout = self._layout()
            self._put(layout.pooled + number * pooled.nbytes, pooled)
            self._put(layout.tokens + int(self._offsets[number]) * tokens[:1].nbytes, tokens)
            self._waiting.append(number)
        if time.monotonic() >= self._recorded + RECORD_SECONDS:
            self._record()

    def finish(self) -> Embeddings:
        """Returns the embeddings, left in the file: what is used is read when it is used.

        Raises:
          ValueError: items are missing.
        """
        if not self._finished:
            self._record()
            if missing := np.flatnonzero(~self.done).tolist():
                raise ValueError(f"{len(missing)} items are missing, the first is item {missing[0]}: write them first")
            self._place(len(self.done))
            self._complete()
        return Embeddings.load(self._folder, mmap=True)

    @property
    def _path(self) -> Path:
        return self._folder / self._name

    def _is_finished(self) -> bool:
        if not (self._folder / INDEX).exists():
            return False
        about = read_index(self._folder / INDEX).get("about")
        if about is None:
            raise _RefusedError(f"'{self._folder}' holds embeddings that say not what they are made of: {_REMEDY}")
        self._check(about)
        self.done[:] = True
        return True

    def _check(self, about: Mapping[str, Any]) -> None:
        if other := [name for name in {**self._about, **about} if self._about.get(name) != about.get(name)]:
            values = [(name, *(_shown(each.get(name)) for each in (about, self._about))) for name in other]
            said = ", ".join(f"{name} ({theirs}, not {ours})" for name, theirs, ours in values)
            raise _RefusedError(f"'{self._folder}' holds embeddings that differ in {said}: {_REMEDY}")

    def _open(self) -> None:
        """Takes the folder for this process, and goes on where its journal ends."""
        path = self._folder / JOURNAL
        self._journal = lock_file(path, f"'{self._folder}' is written to by another process: wait for it")
        try:
            if self._is_finished():  # by a process that had it until now
                path.unlink()
                self._journal.close()
                self._journal, self._finished = None, True
            elif lines := _whole_lines(self._journal):
                self._resume(*(parse_json(line, f"'{path}'", remedy=_REMEDY) for line in lines))
        except (ValueError, TypeError, KeyError, IndexError, OSError) as error:
            self._journal.close()
            if isinstance(error, _RefusedError | OSError):
                raise
            raise ValueError(f"'{path}' is damaged ({error!r:.300}): {_REMEDY}") from error

    def _resume(self, head: dict[str, Any], *records: list[list[int]]) -> None:
        if (head["format"], head["version"]) != (JOURNAL_FORMAT, JOURNAL_VERSION):
            raise _RefusedError(f"'{self._folder / JOURNAL}' is of another format or version: {_REMEDY}")
        self._check(head["about"])
        self._name, self._widths = head["file"], tuple(head["widths"])
        for number, length in (pair for record in records for pair in record):
            self.done[number], self._lengths[number] = True, length
        self._file = os.open(path_inside(self._folder, self._name, f"'{self._folder / JOURNAL}'"), os.O_RDWR)

    def _begin(self, widths: tuple[int, int]) -> None:
        self._widths, self._name = widths, new_name()
        head = {"format": JOURNAL_FORMAT, "version": JOURNAL_VERSION, "file": self._name, "widths": widths}
        with written_by_this_process(self._folder):
            remove_leftovers(self._folder)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            self._append(head | {"about": self._about})

    def _append(self, line: Any) -> None:
        self._journal.write(json.dumps(line) + "\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def _record(self) -> None:
        """Says in the journal what is in the file, once it is there for sure."""
        if self._waiting:
            os.fsync(self._file)
            self._append([[number, int(self._lengths[number])] for number in self._waiting])
            self.done[self._waiting] = True
        self._waiting, self._recorded = [], time.monotonic()

    def _place(self, until: int) -> None:
        known = slice(self._known, until)
        self._offsets[self._known + 1 : until + 1] = self._offsets[self._known] + np.cumsum(self._lengths[known])
        self._known = until

    def _layout(self) -> _Layout:
        assert self._widths
        pooled = HEADER_BYTES + self._offsets.nbytes
        return _Layout(pooled, pooled + len(self.done) * self._widths[0] * self._dtype.itemsize)

    def _put(self, place: int, array: np.ndarray) -> None:
        data = np.ascontiguousarray(array, self._dtype).reshape(-1).view(np.uint8).data
        while data:
            written = os.pwrite(self._file, data, place)
            place, data = place + written, data[written:]

    def _complete(self) -> None:
        items, tokens = len(self.done), int(self._offsets[-1])
        pooled, token = self._widths
        shapes = {"offsets": ((items + 1,), np.dtype(np.int64)), "pooled": ((items, pooled), self._dtype)}
        shapes |= {"tokens": ((tokens, token), self._dtype)}
        header = safetensors_header(shapes, HEADER_BYTES)
        os.pwrite(self._file, header, 0)
        os.pwrite(self._file, self._offsets.tobytes(), HEADER_BYTES)
        os.ftruncate(self._file, self._layout().tokens + tokens * token * self._dtype.itemsize)
        os.fsync(self._file)
        index: dict[str, Any] = {"format": FORMAT, "version": VERSION, "file": self._name}
        index |= {"items": items, "tokens": tokens}
        index |= {"pooled_width": pooled, "token_width": token, "dtype": self._dtype.name}
        if self._provenance is not None:
            index["provenance"] = self._provenance.to_dict()
        with written_by_this_process(self._folder):
            write_index(self._folder, index | {"about": self._about})
            (self._folder / JOURNAL).unlink()
            remove_leftovers(self._folder)
        self._finished = True


class _RefusedError(ValueError):
    """The folder is another's."""


_REMEDY = "choose another folder, or remove this one"


class _Layout(NamedTuple):
    """Offsets at which the arrays begin in the file."""

    pooled: int
    tokens: int


def _check_vectors(number: int, pooled: Float[np.ndarray, " H"], tokens: Float[np.ndarray, "T D"]) -> None:
    check_finite("pooled", pooled[None], lambda _: f"item {number}")
    check_finite("tokens", tokens, lambda token: f"item {number}, token {token}")


def _shown(value: Any) -> str:
    return "none" if value is None else repr(value)


def _whole_lines(journal: Any) -> list[str]:
    """Returns the lines of a journal; the last one is dropped where the process ended while it was written."""
    if not stat.S_ISREG(os.fstat(journal.fileno()).st_mode):
        raise ValueError("it leads to a device")
    journal.seek(0)
    text: str = journal.read()
    whole, _, torn = text.rpartition("\n")
    if torn:
        journal.truncate(len(text.encode()) - len(torn.encode()))
    journal.seek(0, os.SEEK_END)
    return whole.splitlines()
