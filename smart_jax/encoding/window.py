"""Items that wait for a batch: those of like size share one, so that little is padding."""

from __future__ import annotations

import bisect
from typing import Any, NamedTuple


class Look(NamedTuple):
    """Facts of an item that are known before its batch is chosen.

    Attributes:
      number: of the item.
      size: numbers of patches and of tokens, by which items are sorted, those with audio apart.
      kept: number of kept tokens.
      patch_bytes: bytes of each of its patches.
      content: what was read of it already; None = nothing.
      held: bytes that `content` takes.
      ready: whether `content` is the tokenised item.
      clips: frames of each of its audio clips.

    Example:
      >>> Look(number=3, size=(6804, 1749)).ready
      False
    """

    number: int
    size: tuple[int, int]
    kept: int = 0
    patch_bytes: int = 0
    content: Any = None
    held: int = 0
    ready: bool = False
    clips: tuple[int, ...] = ()

    @property
    def key(self) -> tuple[int, int, int]:
        """Frames of its audio, patches and tokens: a batch with audio costs each of its rows the longest clips."""
        return sum(self.clips), *self.size


class Window:
    """The items from which batches are taken.

    As long as more items are to come, a batch holds the one that has waited longest, with those around it in size. The
    last items are taken longest first, and so are all, where the window holds all of them.

    Example:
      >>> window = Window(rows=2, capacity=4, memory=100)
      >>> for number, size in enumerate([(1, 5), (9, 5), (2, 5), (8, 5)]):
      ...     window.add(Look(number, size))
      >>> window.full, [look.number for look in window.take()]
      (True, [2, 0])
      >>> [look.number for look in window.take(last=True)]
      [1, 3]
    """

    def __init__(self, *, rows: int, capacity: int, memory: int):
        """Takes a batch's rows, and the items and bytes of content with which the window is full."""
        self._rows, self._capacity, self._memory = rows, max(rows, capacity), memory
        self._sorted: list[tuple[tuple[int, int, int], int, Look]] = []  # ascending
        self.held = 0

    def __len__(self) -> int:
        return len(self._sorted)

    @property
    def room(self) -> int:
        """Number of items that fit, whatever they hold."""
        return max(0, self._capacity - len(self))

    @property
    def full(self) -> bool:
        """Whether a batch is to be taken before an item is added."""
        return len(self) >= self._capacity or (len(self) >= self._rows and self.held > self._memory)

    def add(self, look: Look) -> None:
        """Puts an item into the window."""
        bisect.insort(self._sorted, (look.key, look.number, look))
        self.held += look.held

    def next(self, *, last: bool = False) -> list[Look]:
        """Returns the items of the next batch, the largest first; `last` = no item is to be added any more."""
        start = max(0, len(self) - self._rows) if last else self._around_the_oldest()
        return [look for *_, look in self._sorted[start : start + self._rows][::-1]]

    def batches(self) -> list[list[Look]]:
        """Returns the batches that the items would make if none were added, in their order."""
        looks = [look for *_, look in self._sorted[::-1]]
        return [looks[i : i + self._rows] for i in range(0, len(looks), self._rows)]

    def take(self, *, last: bool = False) -> list[Look]:
        """Takes the items of the next batch out of the window."""
        chosen = self.next(last=last)
        numbers = {look.number for look in chosen}
        self._sorted = [entry for entry in self._sorted if entry[1] not in numbers]
        self.held -= sum(look.held for look in chosen)
        return chosen

    def _around_the_oldest(self) -> int:
        """Returns where in the sorted items the batch starts that has the lowest number and the least padding."""
        oldest = min(range(len(self)), key=lambda place: self._sorted[place][1])
        starts = range(max(0, oldest - self._rows + 1), min(oldest, len(self) - self._rows) + 1)

        def padding(start: int) -> tuple[int, ...]:
            sizes = [size for size, *_ in self._sorted[start : start + self._rows]]
            return tuple(sum(sizes[-1][axis] - size[axis] for size in sizes) for axis in range(3))

        return min(starts, key=padding)
