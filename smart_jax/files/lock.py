"""Locks on files: one process at a time, and the others are told which."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

_UNKNOWN_HERE = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL, errno.EBADF)  # a file system without locks


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
    while True:
        file = path.open("a+", encoding="utf-8")
        if not try_lock(file.fileno()):
            file.close()
            raise ValueError(busy)
        if is_at(file.fileno(), path):
            return file
        file.close()  # removed by the process that had it until now


@contextlib.contextmanager
def named_lock(
    path: Path, busy: Callable[[str], Exception], *, shared: bool = False, keep: bool = False
) -> Iterator[None]:
    """Holds a lock until the end of the block, or of the process, however that ends: a lock is never stale.

    Args:
      path: of the file that is locked, which holds the name of who holds the lock.
      busy: returns what is raised, given that name, where another has it.
      shared: whether others may have it that share it as well.
      keep: whether the file stays when the lock is given back.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "lock"
      >>> with named_lock(path, ValueError), named_lock(path, ValueError):  # doctest: +ELLIPSIS
      ...     pass
      Traceback (most recent call last):
      ValueError: process ... on ... since ...
      >>> path.exists()
      False
    """
    while True:
        file = path.open("a+", encoding="utf-8")
        if not try_lock(file.fileno(), shared=shared):
            file.close()
            raise busy(holder(path) or "another process")
        if is_at(file.fileno(), path):
            break
        file.close()
    with contextlib.closing(file):
        file.truncate(0)
        file.write(_own_name())
        file.flush()
        try:
            yield
        finally:
            if keep:
                file.truncate(0)
            elif not shared or try_lock(file.fileno()):  # the last of those that share it
                path.unlink(missing_ok=True)


def holder(path: Path) -> str:
    """Returns who holds the lock of a file now; "" = nobody.

    Example:
      >>> holder(Path("no_such_folder/lock"))
      ''
    """
    try:
        with path.open(encoding="utf-8") as file:
            return "" if try_lock(file.fileno(), shared=True) else file.read().strip() or "another process"
    except OSError:
        return ""


def try_lock(descriptor: int, *, shared: bool = False, wait: bool = False, unknown: bool = True) -> bool:
    """Locks an open file or folder until it is closed; returns False where another process has it.

    Args:
      descriptor: of the file.
      shared: whether others may have it that share it as well.
      wait: whether to wait for it.
      unknown: what is returned where the file system knows no locks.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryFile() as file:
      ...     try_lock(file.fileno())
      True
    """
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(descriptor, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _UNKNOWN_HERE:
            raise
        return unknown
    return True


def is_at(descriptor: int, path: Path) -> bool:
    """Tells whether an open file is the one at the path still.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "lock"
      >>> with path.open("w") as file:
      ...     is_at(file.fileno(), path), path.unlink(), is_at(file.fileno(), path)
      (True, None, False)
    """
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _own_name() -> str:
    began = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    return f"process {os.getpid()} ({Path(sys.argv[0]).name or 'python'}) on {socket.gethostname()} since {began}"
