"""Processes that share an evaluation: which does what, and how they exchange results, by files in a shared folder."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from smart_jax.files import write_tensors

POLL_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Worker:
    """One of several processes, each of which does every count-th piece of work.

    Attributes:
      index: 0 .. count - 1; process 0 writes the report.
      count: number of processes.
      folder: for messages of this run, seen by all of them; None where there is one process.

    Raises:
      ValueError: there are several processes and no folder.

    Example:
      >>> Worker().own(3)
      range(0, 3)
    """

    index: int = 0
    count: int = 1
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.count > 1:
            if self.folder is None:
                raise ValueError(f"{self.count} processes need a folder that all of them see: set config.cache")
            self.folder.mkdir(parents=True, exist_ok=True)

    def own(self, pieces: int) -> range:
        """Returns which of so many pieces of work are this process's."""
        return range(self.index, pieces, self.count)

    @contextlib.contextmanager
    def task(self, name: str) -> Iterator[None]:
        """Surrounds what all processes do under this name: an error in one ends the others' waiting too."""
        try:
            yield
        except Exception as error:
            if self.folder is not None:
                self._failure(name, self.index).write_text(f"{type(error).__name__}: {error}", encoding="utf-8")
            raise

    def wait_for(self, paths: Iterable[Path], name: str) -> None:
        """Waits until all the files, which others make in the task of this name, are there.

        Raises:
          RuntimeError: another process failed in the task.
        """
        missing = [path for path in paths if not path.exists()]
        while missing and self.folder is not None:
            for other in range(self.count):
                if other != self.index and (mark := self._failure(name, other)).exists():
                    raise RuntimeError(f"process {other} failed: {mark.read_text(encoding='utf-8')}")
            time.sleep(POLL_SECONDS)
            missing = [path for path in missing if not path.exists()]

    def exchange(self, name: str, what: str, arrays: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
        """Returns the arrays of every process, in their order.

        Args:
          name: of the task that all of them are in.
          what: tells several exchanges of a task apart.
          arrays: of this process, by name.

        Raises:
          RuntimeError: another process failed in the task.
        """
        if self.folder is None:
            return [dict(arrays)]
        paths = [self.folder / f"{_digest(name + what)}-{index}.safetensors" for index in range(self.count)]
        write_tensors(paths[self.index], arrays)
        self.wait_for(paths, name)
        return [load_file(path) for path in paths]

    def finish(self) -> None:
        """Leaves the run, as the last thing that each process does; the messages are deleted when all have left."""
        if self.folder is None:
            return
        left = [self.folder / f"left-{index}" for index in range(self.count)]
        left[self.index].touch()
        if self.index == 0:
            self.wait_for(left, "finish")
            shutil.rmtree(self.folder)

    def _failure(self, name: str, index: int) -> Path:
        assert self.folder is not None
        return self.folder / f"failed-{_digest(name)}-{index}.txt"


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
