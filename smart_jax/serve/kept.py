"""Results made last, kept in memory for when they are asked for again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Kept(Generic[Value]):
    """Values by key, the last so many that were asked for; for several threads.

    Example:
      >>> kept = Kept(1)
      >>> kept.keep("a", 1), kept.keep("b", 2)
      (None, None)
      >>> kept.get("a"), kept.get("b")
      (None, 2)
    """

    def __init__(self, most: int):
        """Takes the number of values that are kept."""
        self._most, self._lock = most, threading.Lock()
        self._values: OrderedDict[Hashable, Value] = OrderedDict()

    def get(self, key: Hashable) -> Value | None:
        """Returns the value of a key, None where it is not kept."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
            return self._values.get(key)

    def keep(self, key: Hashable, value: Value) -> None:
        """Keeps a value, in the place of the one that was asked for longest ago."""
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._most:
                self._values.popitem(last=False)

    def clear(self) -> None:
        """Forgets all values."""
        with self._lock:
            self._values.clear()
