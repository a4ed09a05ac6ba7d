"""A file that one process at a time has open."""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import TextIO


def lock_file(path: Path, busy: str) -> TextIO:
    """Opens a text file for reading and appending, made where it is missing, until it is closed or the process ends.

    Args:
      path: of the file.
      busy: what is said where another process has it.

    Raises:
      ValueError: another process has it open.

    Example:
      >>> import tempfile
      >>> file = lock_file(Path(tempfile.mkdtemp()) / "journal", busy="wait")
      >>> file.write("one line")
      8
      >>> file.close()
    """
    file = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise ValueError(busy) from error
    return file
