"""Requests that are answered together: those that arrive within a few milliseconds, or while others are worked on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Ask = TypeVar("Ask")
Answer = TypeVar("Answer")


class Batcher(Generic[Ask, Answer]):
    """Gathers what is asked for and has it answered in batches, one at a time, in the order in which it came.

    A batch takes what came while the one before was worked on; only where nothing was does the first wait for others.
    What nobody waits for any more is left out.
    """

    def __init__(
        self,
        answer: Callable[[Sequence[Ask]], Awaitable[Sequence[Answer | Exception]]],
        *,
        most: int,
        window: float,
    ):
        """Takes what answers a batch.

        Args:
          answer: takes a list and returns the answers, or what was raised for each, in the same order.
          most: in a batch.
          window: seconds that the first waits for others.
        """
        self._answer, self._most, self._window = answer, most, window
        self._waiting: list[tuple[Ask, asyncio.Future[Answer]]] = []
        self._came = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False

    def start(self) -> None:
        """Begins to answer, in the loop that runs."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Ends after what is waiting is answered."""
        self._closing = True
        self._came.set()
        if self._task is not None:
            await self._task

    async def ask(self, what: Ask) -> Answer:
        """Returns the answer, or raises what was raised for it."""
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((what, future))
        self._came.set()
        return await future

    async def _run(self) -> None:
        while not self._closing:
            await self._came.wait()
            if len(self._waiting) < self._most and not self._closing:
                await asyncio.sleep(self._window)
            while self._waiting:
                batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
                await self._answer_batch([(ask, future) for ask, future in batch if not future.done()])
            self._came.clear()

    async def _answer_batch(self, batch: list[tuple[Ask, asyncio.Future[Answer]]]) -> None:
        if not batch:
            return
        try:
            answers = await self._answer([ask for ask, _ in batch])
        except Exception as error:
            answers = [error] * len(batch)
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():  # nobody waits for it any more
                continue
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
