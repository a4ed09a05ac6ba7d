"""The lock of an index: one writer at a time, by its name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from smart_jax.files import named_lock


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

    def busy(holder: str) -> BusyError:
        return BusyError(f"'{path.parent}' is being written to by {holder}: wait for it, or end it")

    with named_lock(path, busy, keep=True):
        yield
