"""Programs compiled in threads, while items are decoded: one for each shape of a batch."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from smart_jax.models import Batch

THREADS = 4
SAID_AFTER_SECONDS = 1.0


class ShapeCompiler:
    """Compiles a function for shapes of batches, each once, and remembers which.

    Example:
      >>> examples = []
      >>> compiler = ShapeCompiler(examples.append)
      >>> for _ in range(2):
      ...     with compiler.threads() as threads:
      ...         threads.begin("1,024 patches", lambda: "a batch")
      ...         threads.wait("1,024 patches")
      >>> examples
      ['a batch']
    """

    def __init__(self, compile: Callable[[Batch], None]):
        """Takes the function that compiles for the shapes of a batch."""
        self._compile = compile
        self._jobs: dict[Hashable, Future[None]] = {}
        self._ready: set[Hashable] = set()

    @contextmanager
    def threads(self, say: Callable[[], object] | None = None) -> Iterator[CompilerThreads]:
        """Lends threads; what they have not begun at the end is forgotten. `say` is called if compiling takes long."""
        threads = CompilerThreads(self._compile, self._jobs, self._ready, say)
        try:
            yield threads
        finally:
            threads.close()


class CompilerThreads:
    """Threads of a `ShapeCompiler`, which start where there is something to compile."""

    def __init__(
        self,
        compile: Callable[[Batch], None],
        jobs: dict[Hashable, Future[None]],
        ready: set[Hashable],
        say: Callable[[], object] | None,
    ):
        self._compile, self._jobs, self._ready, self._say = compile, jobs, ready, say
        self._pool: ThreadPoolExecutor | None = None

    def begin(self, key: Hashable, example: Callable[[], Batch]) -> None:
        """Has a thread compile for the shapes of an example, unless that was begun before under the key."""
        if key not in self._jobs:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="compile")
            self._jobs[key] = self._pool.submit(lambda: self._compile(example()))

    def wait(self, key: Hashable) -> None:
        """Waits until the program is there, if it was begun. An error shows again where the program is needed."""
        if (job := self._jobs.get(key)) is not None and not job.cancelled():
            job.exception()

    @contextmanager
    def said(self, key: Hashable) -> Iterator[None]:
        """Says that a program is compiled if the body, in which that is waited for the first time, takes a second."""
        if key in self._ready or self._say is None:
            yield
            return
        timer = threading.Timer(SAID_AFTER_SECONDS, self._say)
        timer.daemon = True
        timer.start()
        try:
            yield
            self._ready.add(key)
        finally:
            timer.cancel()

    def close(self) -> None:
        """Ends the threads after what they are at."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            for key in [key for key, job in self._jobs.items() if job.cancelled()]:
                self._jobs.pop(key, None)
