"""Batches prepared ahead of the step, in a thread of their own, and put on the devices by the thread that asks."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")
_END = object()


class Prefetch(Generic[T, R]):
    """Iterator over another one, which runs in a thread a few elements ahead; order and exceptions are kept.

    Each element is placed, that is passed through a function, by the thread that asks for it.

    Example:
      >>> from contextlib import closing
      >>> with closing(Prefetch(iter("abc"), str.upper, depth=1)) as letters:
      ...     print(list(letters))
      ['A', 'B', 'C']
    """

    def __init__(self, source: Iterator[T], place: Callable[[T], R], depth: int = 2):
        """Starts the thread.

        Args:
          source: of the elements.
          place: makes of an element what is given out.
          depth: largest number of elements that are there and not placed, with the one in the making.
        """
        self._place, self._room = place, threading.Semaphore(max(1, depth))
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()  # of elements, and at last the end or an exception
        self._placed: list[R] = []  # at most one
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(source,), daemon=True, name="prefetch")
        self._thread.start()

    def _work(self, source: Iterator[T]) -> None:
        try:
            while self._has_room():
                self._queue.put(next(source))  # without a name, which would keep it
        except StopIteration:
            self._queue.put(_END)
        except BaseException as error:  # raised again where the element is asked for
            self._queue.put(error)

    def _has_room(self) -> bool:
        while not self._stop.is_set():
            if self._room.acquire(timeout=0.1):
                return True
        return False

    def __iter__(self) -> Iterator[R]:
        return self

    def __next__(self) -> R:
        if not self._placed:
            self._take(self._queue.get())
        if not self._placed:
            error = self._queue.get()
            self._queue.put(error)
            raise StopIteration if error is _END else error
        return self._placed.pop()

    def advance(self) -> None:
        """Places the next element for the `next` that comes, if it is ready."""
        if not self._placed and not self._queue.empty():
            self._take(self._queue.get())

    def _take(self, element: Any) -> None:
        if element is _END or isinstance(element, BaseException):
            self._queue.put(element)
            return
        self._placed.append(self._place(element))
        self._room.release()

    def close(self) -> None:
        """Ends the thread after the element that it is at."""
        self._stop.set()
        self._thread.join(timeout=10)
