"""Long sequences piece by piece: items made on access, and slices to work through."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any


class LazyItems(Sequence[Any]):
    """A sequence whose items are made when they are asked for and not kept, such as pages rendered from a file.

    Attributes:
      source: what the items are made from, for `eval.benchmarks.fingerprint`: equal if and only if the items are; None
        = not known.

    Example:
      >>> squares = LazyItems(4, lambda i: i * i)
      >>> squares[-1], list(squares[1:3]), len(squares)
      (9, [1, 4], 4)
    """

    def __init__(self, count: int, make: Callable[[int], Any], *, source: str | None = None):
        self._indices = range(count)
        self._make = make
        self.source = source

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        return self._make(self._indices[index])

    def take(self, indices: Sequence[int]) -> LazyItems:
        """Returns the items at these positions, not made yet."""
        chosen = [self._indices[i] for i in indices]
        source = None if self.source is None else f"{self.source}: {chosen}"
        return LazyItems(len(chosen), lambda i: self._make(chosen[i]), source=source)


def batches(count: int, size: int) -> Iterator[slice]:
    """Returns consecutive slices of at most `size` items, of nearly equal length.

    Example:
      >>> list(batches(5, 2))
      [slice(0, 2, None), slice(2, 3, None), slice(3, 5, None)]
    """
    parts = -(-count // size)
    bounds = [round(i * count / parts) for i in range(parts + 1)] if parts else []
    return (slice(a, b) for a, b in itertools.pairwise(bounds))
