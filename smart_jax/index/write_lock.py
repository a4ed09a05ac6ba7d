"""The lock of an index: one writer at a time, by its name."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from smart_jax.files import lock_file


class BusyError(ValueError):
    """Another writer is at the index: the message says which.

    Example:
      >>> issubclass(BusyError, ValueError)
      True
    """


@contextlib.contextmanager
def write_lock(path: Path) -> Iterator[None]:
    """Holds the lock until the end of the block, or of the process, however that ends.

    Raises:
      BusyError: another writer holds it; the message says which.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "write.lock"
      >>> with write_lock(path), write_lock(path):  # doctest: +ELLIPSIS
      ...     pass
      Traceback (most recent call last):
      smart_jax.index.write_lock.BusyError: '...' is being written to by process ...: wait for it, or end it
    """
    try:
        file = lock_file(path, "busy")
    except ValueError:
        holder = path.read_text(encoding="utf-8").strip() or "another process"
        raise BusyError(f"'{path.parent}' is being written to by {holder}: wait for it, or end it") from None
    with contextlib.closing(file):
        file.truncate(0)
        file.write(_own_name())
        file.flush()
        yield
        file.truncate(0)


def _own_name() -> str:
    began = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    return f"process {os.getpid()} ({Path(sys.argv[0]).name or 'python'}) on {socket.gethostname()} since {began}"
