"""Files that appear under their name only when they are complete; what killed writers left of them is removed."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from smart_jax.files.lock import is_at, try_lock

PARTIAL = ".tmp"  # suffix of a file that is being written


@contextlib.contextmanager
def whole_file(path: Path, *, flush: bool = True) -> Iterator[BinaryIO]:
    """Gives a file to write, which replaces the one at the path when the block ends without an error.

    It is readable by whom the umask says. What writers that were killed have left of the same file is removed.

    Args:
      path: of the file.
      flush: whether it is on the disk, and not in the system's cache alone, before it has its name.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "config.json"
      >>> with whole_file(path) as file:
      ...     file.write(b"{}"), path.exists()
      (2, False)
      >>> path.read_text(), len(list(path.parent.iterdir()))
      ('{}', 1)
    """
    remove_partial(path.parent, path.name)
    partial, file = _opened(path)
    with file:  # and its lock, which says that it is being written
        try:
            yield file
            file.flush()
            if flush:
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):  # would hide the first
                partial.unlink(missing_ok=True)
            raise


def write_whole_text(path: Path, text: str, *, flush: bool = False) -> None:
    """Writes a text file, whole or not at all, see `whole_file`.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "config.json"
      >>> write_whole_text(path, "{}")
      >>> path.read_text()
      '{}'
    """
    with whole_file(path, flush=flush) as file:
        file.write(text.encode())


def remove_partial(folder: Path, name: str) -> None:
    """Removes what killed writers have left of a file; what is being written stays.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> (folder / "config.json.0123abcd.tmp").touch()
      >>> remove_partial(folder, "config.json")
      >>> list(folder.iterdir())
      []
    """
    with os.scandir(folder) as entries:
        partial = [Path(e.path) for e in entries if e.name.startswith(f"{name}.") and e.name.endswith(PARTIAL)]
    for path in partial:
        with contextlib.suppress(OSError), path.open("rb") as file:  # gone, or another user's
            if try_lock(file.fileno(), unknown=False):
                path.unlink()


def _opened(path: Path) -> tuple[Path, BinaryIO]:
    """Returns a new file beside the path, locked."""
    while True:
        partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PARTIAL}")
        file = partial.open("xb")
        if try_lock(file.fileno()) and is_at(file.fileno(), partial):
            return partial, file
        file.close()  # taken for a leftover before it was locked
        partial.unlink(missing_ok=True)
