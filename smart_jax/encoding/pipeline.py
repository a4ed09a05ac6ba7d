"""The host's work ahead of the device: items are measured, sorted, prepared in threads and dispatched, within bounds.

Nothing here knows of models or arrays. Batches are dispatched, and results fetched, by the caller's thread and in an
order that depends on the items alone: processes that share devices do the same.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import os
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from smart_jax.encoding.window import Look, Window

_Read = TypeVar("_Read")
_Batch = TypeVar("_Batch")
_Dispatched = TypeVar("_Dispatched")
_Result = TypeVar("_Result", covariant=True)

DEPTH = 16  # batches that are prepared at a time, at most
LOOKED_AHEAD = 8  # batches' worth of items that are measured before the window has a place for them


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Bounds of the host's work ahead of the device.

    Attributes:
      workers: threads that read and tokenise items; None = one for each CPU that this process may use.
      memory: bytes of prepared items and batches that are alive at a time, for each device that shares a batch. A batch
        that needs more is prepared alone.
      ahead: batches that are dispatched beyond the one whose result is fetched.

    Raises:
      ValueError: a number is below 1, or `ahead` below 0.

    Example:
      >>> Pipeline(workers=4).threads
      4
    """

    workers: int | None = None
    memory: int = 2**29
    ahead: int = 2

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("memory", 1), ("ahead", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}: it must be at least {least}")

    @property
    def threads(self) -> int:
        """Number of worker threads."""
        if self.workers is not None:
            return self.workers
        return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


AHEAD = Pipeline()


@runtime_checkable
class Work(Protocol[_Read, _Batch, _Dispatched, _Result]):
    """Steps that the items pass through; `look`, `read` and `collate` in worker threads, the others in the caller's.

    Example:
      >>> isinstance(object(), Work)
      False
    """

    def look(self, number: int) -> Look:
        """Returns what is known of an item before its batch is chosen."""

    def read(self, look: Look) -> _Read:
        """Returns the item, ready for its batch."""

    def collate(self, items: Sequence[_Read]) -> _Batch:
        """Returns the batch of the items."""

    def looked(self, look: Look) -> None:
        """Takes note of an item that was looked at; these come in the order of the numbers."""

    def planned(self, batches: Sequence[Sequence[Look]]) -> None:
        """Takes note of the batches that are likely to come, once the window is full or all items were looked at."""

    def bytes_of(self, looks: Sequence[Look]) -> tuple[int, int]:
        """Returns the bytes of a batch's items once read, and of the batch."""

    def dispatch(self, batch: _Batch) -> _Dispatched:
        """Starts the computation of a batch, without waiting for it."""

    def fetch(self, numbers: Sequence[int], dispatched: _Dispatched) -> _Result:
        """Waits for the result of the batch of these items."""


def run_ahead(
    work: Work[_Read, _Batch, _Dispatched, _Result],
    parts: Sequence[Sequence[int]],
    *,
    rows: int,
    capacity: int,
    pipeline: Pipeline,
    devices: int = 1,
) -> Generator[_Result, None, None]:
    """Yields the results of batches of items, the largest items first.

    Args:
      work: what is done with the items.
      parts: numbers of the items, ascending; those of a part are done before the next, and share no batch with it.
      rows: items in a batch.
      capacity: items among which those of like size are chosen.
      pipeline: bounds of what is done ahead.
      devices: number of those that share a batch.

    Raises:
      Exception: what a step raised; of several items of a batch that of the lowest number.

    Example:
      >>> class Doubled:
      ...     def look(self, number):
      ...         return Look(number, size=(number, 0))
      ...     def read(self, look):
      ...         return look.number
      ...     def collate(self, items):
      ...         return items
      ...     def looked(self, look): ...
      ...     def planned(self, batches): ...
      ...     def bytes_of(self, looks):
      ...         return 0, 0
      ...     def dispatch(self, batch):
      ...         return [2 * item for item in batch]
      ...     def fetch(self, numbers, dispatched):
      ...         return dispatched
      >>> list(run_ahead(Doubled(), [range(5)], rows=2, capacity=9, pipeline=Pipeline(workers=2)))
      [[8, 6], [4, 2], [0]]
    """
    pool: Executor = ThreadPoolExecutor(pipeline.threads, thread_name_prefix="prepare")
    if sum(map(len, parts)) == 1:
        pool = _Here()
    memory = pipeline.memory * devices
    window = Window(rows=rows, capacity=capacity, memory=3 * memory // 8)
    try:
        yield from _Run(work, parts, window, pool, rows=rows, memory=memory, ahead=pipeline.ahead)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class _Here(Executor):
    """Does what it is given at once: a thread would take longer to start than one item takes."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class _Group(Generic[_Read, _Batch]):
    """A batch while its items are read."""

    def __init__(self, looks: Sequence[Look], work: Work[_Read, _Batch, Any, Any]):
        self.numbers = [look.number for look in looks]
        self.item_bytes, self.batch_bytes = work.bytes_of(looks)
        self.batch: Future[_Batch] = Future()
        self._looks, self._work = looks, work
        self._items: list[Any] = [look.content for look in looks]
        self._errors: dict[int, BaseException] = {}
        self._unread = [place for place, look in enumerate(looks) if not look.ready]
        self._left, self._lock = max(1, len(self._unread)), threading.Lock()

    def start(self, pool: Executor) -> None:
        """Has the items read; the thread that reads the last one collates them."""
        for place in self._unread:
            pool.submit(self._read, place)
        if not self._unread:
            pool.submit(self._finish)

    def _read(self, place: int) -> None:
        try:
            self._items[place] = self._work.read(self._looks[place])
        except BaseException as error:
            self._errors[self.numbers[place]] = error
        self._finish()

    def _finish(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left:
                return
        items, self._items, self._looks = self._items, [], []  # nothing but the batch stays
        try:
            if self._errors:
                raise self._errors[min(self._errors)]
            self.batch.set_result(self._work.collate(items))
        except BaseException as error:
            self.batch.set_exception(error)


class _Run(Generic[_Read, _Batch, _Dispatched, _Result]):
    """Items on their way: looked at, in the window, in a batch that is prepared, dispatched."""

    def __init__(
        self,
        work: Work[_Read, _Batch, _Dispatched, _Result],
        parts: Sequence[Sequence[int]],
        window: Window,
        pool: Executor,
        *,
        rows: int,
        memory: int,
        ahead: int,
    ):
        self._work, self._window, self._pool = work, window, pool
        self._rows, self._memory, self._ahead = rows, memory, ahead
        self._part = 0  # of which items are put into the window
        self._unseen = ((part, number) for part, numbers in enumerate(parts) for number in numbers)
        self._looking: collections.deque[tuple[int, Future[Look]]] = collections.deque()
        self._preparing: collections.deque[_Group[_Read, _Batch]] = collections.deque()
        self._flying: collections.deque[tuple[_Group[_Read, _Batch], _Dispatched]] = collections.deque()
        self._bytes, self._planned = 0, False  # of what is prepared or flying

    def __iter__(self) -> Iterator[_Result]:
        while True:
            self._collect_looks()
            self._prepare()
            if len(self._flying) > self._ahead:
                yield self._fetch()
            elif self._preparing:
                self._dispatch()
            elif not self._window.full and not self._part_ended:
                self._looking[0][1].exception()  # waits; an error is raised where it is collected
            elif self._flying:
                yield self._fetch()
            else:
                return

    def _look_ahead(self) -> None:
        beyond = self._rows if self._window.held else LOOKED_AHEAD * self._rows  # they hold content, too
        most = beyond + (0 if self._window.held else self._window.room)
        for part, number in itertools.islice(self._unseen, max(0, most - len(self._looking))):
            self._looking.append((part, self._pool.submit(self._work.look, number)))

    @property
    def _part_ended(self) -> bool:
        """Whether all items of the part were put into the window."""
        return not self._looking or self._looking[0][0] != self._part

    def _collect_looks(self) -> None:
        self._look_ahead()
        if self._looking and not self._window:
            self._part = self._looking[0][0]
        while not self._part_ended and not self._window.full and self._looking[0][1].done():
            look = self._looking.popleft()[1].result()
            self._work.looked(look)
            self._window.add(look)
            self._look_ahead()

    def _prepare(self) -> None:
        while self._window and len(self._preparing) < DEPTH:
            last = self._part_ended
            if not last and not self._window.full:
                return
            if not self._planned:
                self._work.planned(self._window.batches())
                self._planned = True
            group = _Group(self._window.next(last=last), self._work)
            needed = group.item_bytes + group.batch_bytes
            if self._bytes and self._bytes + needed + self._window.held > self._memory:
                return
            self._window.take(last=last)
            self._bytes += needed
            self._preparing.append(group)
            group.start(self._pool)
            self._collect_looks()

    def _dispatch(self) -> None:
        group = self._preparing.popleft()
        dispatched = self._work.dispatch(group.batch.result())
        group.batch = Future()  # the device has it, or a copy
        self._bytes -= group.item_bytes
        self._flying.append((group, dispatched))

    def _fetch(self) -> _Result:
        group, dispatched = self._flying.popleft()
        result = self._work.fetch(group.numbers, dispatched)
        self._bytes -= group.batch_bytes
        return result
