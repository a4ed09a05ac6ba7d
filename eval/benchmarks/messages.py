"""Lists of names in error messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MAX_NAMED = 5  # in an abridged list


def quoted(names: Iterable[object]) -> str:
    """Returns the names between quotes, separated by commas.

    Example:
      >>> print(quoted(["a", "b"]))
      'a', 'b'
    """
    return ", ".join(map(repr, names))


def abridged(names: Iterable[object]) -> str:
    """Returns the first few names, in order, or sorted if they have none, and how many more there are.

    Example:
      >>> print(abridged("abcdefg"))
      'a', 'b', 'c', 'd', 'e' and 2 more
    """
    names = list(names) if isinstance(names, Sequence) else sorted(names, key=str)
    more = len(names) - MAX_NAMED
    return quoted(names[:MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
