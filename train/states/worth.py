"""Worth of keeping the states of a data set: their size, and how often they would be read."""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from pathlib import Path

from smart_jax.files import flush_file

GIB = 2**30
SPARE = 0.02  # share of the free disk that an explicit folder leaves


@dataclasses.dataclass(frozen=True)
class Need:
    """Reads of a run, and size of its states.

    Attributes:
      read: documents that the run, or the runs that share the states, read: of all steps.
      documents: documents that differ.
      size: bytes of all states that are not on disk yet.

    Example:
      >>> need = Need(read=2_000, documents=1_000, size=8 * GIB)
      >>> need.refusal(free=100 * GIB), need.pays(rate=40.0, reading=100.0)
      ('', True)
      >>> need.refusal(free=10 * GIB)
      '8.0 GiB of states are more than half of the 10.0 GiB that are free'
    """

    read: int
    documents: int
    size: int

    @property
    def epochs(self) -> float:
        """Mean number of times that a document is read."""
        return self.read / self.documents

    def refusal(self, free: int) -> str:
        """Returns why the states are not kept, as far as that follows without encoding any; "" = nothing is known."""
        if self.epochs <= 1:
            return f"the run reads {self.read} documents, of which {self.documents} differ"
        if self.size > free / 2:
            return f"{self.size / GIB:.1f} GiB of states are more than half of the {free / GIB:.1f} GiB that are free"
        return ""

    def pays(self, rate: float, reading: float) -> bool:
        """Returns whether keeping the states is faster than computing them each time.

        Without them a run of E epochs computes E times; with them it computes once, and reads E times:

            E / rate > 1 / rate + E / reading    that is    E / (E - 1) < reading / rate

        Args:
          rate: documents a second that are encoded.
          reading: documents a second whose states are read.
        """
        return self.epochs > 1 and self.epochs / (self.epochs - 1) < reading / rate


def free_bytes(folder: Path) -> int:
    """Returns the bytes that are free on the disk of a folder, which need not be there yet."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def read_rate(file: Path) -> float:
    """Returns the bytes a second at which a file is read from the disk, not from the system's memory."""
    flush_file(file)
    with file.open("rb") as opened:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start, count = time.perf_counter(), 0
        while part := opened.read(2**24):
            count += len(part)
        return count / max(time.perf_counter() - start, 1e-9)
