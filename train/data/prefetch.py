"""Batches prepared ahead of the step, in a thread of their own."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_END = object()


class Prefetch(Generic[T]):
    """Iterator over another one, which runs in a thread a few elements ahead; order and exceptions are kept.

    Example:
      >>> from contextlib import closing
      >>> with closing(Prefetch(iter("abc"), depth=1)) as letters:
      ...     print(list(letters))
      ['a', 'b', 'c']
    """

    def __init__(self, source: Iterator[T], depth: int = 2):
        """Starts the thread, which takes up to `depth` elements of `source` ahead."""
        # Of elements, and at last the end or an exception.
        self._queue: queue.Queue[Any] = queue.Queue(maxsize=max(1, depth))
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(source,), daemon=True, name="prefetch")
        self._thread.start()

    def _work(self, source: Iterator[T]) -> None:
        try:
            for element in source:
                if not self._put(element):
                    return
            self._put(_END)
        except BaseException as error:  # raised again where the element is asked for
            self._put(error)

    def _put(self, element: Any) -> bool:
        while not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(element, timeout=0.1)
                return True
        return False

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        element = self._queue.get()
        if element is _END or isinstance(element, BaseException):
            self._queue.put(element)
            raise StopIteration if element is _END else element
        return element

    def close(self) -> None:
        """Ends the thread after the element that it is at."""
        self._stop.set()
        self._thread.join(timeout=10)
