"""Items encoded batch by batch, ahead of the device; collected in memory, or written to a folder as they are made."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from smart_jax.encoding.encoded_item import EncodedItem
from smart_jax.encoding.item_work import ItemWork, Side
from smart_jax.encoding.pipeline import AHEAD, Pipeline, run_ahead
from smart_jax.encoding.shape_compiler import CompilerThreads, ShapeCompiler
from smart_jax.forward import Vectors
from smart_jax.inputs import Items, Preprocessor
from smart_jax.models import Batch
from smart_jax.retrieval import Embeddings, EmbeddingsFolder, ItemVectors

_logger = logging.getLogger(__name__)

PLANNED = 4096  # items that are measured before the first batch is chosen
WINDOW = 16  # batches' worth of items, where it takes long to measure one or memory to hold it
PROGRESS_AFTER_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class Encoding:
    """The encoding of some items by a model.

    Items are measured from their headers and sorted, the largest first; worker threads decode those whose turn comes.
    Lists of texts and images are sorted as a whole, up to 4,096 items at a time. Videos, whose measuring takes reading
    them, and items of a sequence that makes them when they are asked for, are sorted among 8 batches. Such a sequence
    is read by one thread at a time and nearly in order.

    Attributes:
      preprocessor: of the model.
      items: from `parse_items`.
      compute: starts the computation of a batch.
      rows: of every batch, the last of which is filled up.
      side: how items are prompted.
      pipeline: bounds of what is done ahead.
      devices: number of those that share a batch.
      progress: whether a bar is shown; None = only if encoding takes longer than two seconds.
      compiler: of what `compute` runs; None = it compiles when a batch is there.

    Example:
      >>> from smart_jax.files import resolve
      >>> from smart_jax.inputs import open_preprocessor, parse_items
      >>> from smart_jax.models import load_config
      >>> preprocessor = open_preprocessor(resolve("tiny"), load_config(resolve("tiny")))
      >>> def zeros(batch):
      ...     states = np.zeros((*batch.input_ids.shape, 1, 4), np.float32)
      ...     return Vectors(states[:, 0, 0], states, states[..., 0])
      >>> encoding = Encoding(preprocessor, parse_items(["a long text " * 9, "b", "c"]), zeros, rows=2, side=Side())
      >>> [[item.number for item in batch] for batch in encoding.batches()]
      [[0, 2], [1]]
    """

    preprocessor: Preprocessor
    items: Items
    compute: Callable[[Batch], Vectors]
    _: dataclasses.KW_ONLY
    rows: int
    side: Side
    pipeline: Pipeline = AHEAD
    devices: int = 1
    progress: bool | None = None
    compiler: ShapeCompiler | None = None

    def batches(
        self, parts: Sequence[Sequence[int]] | None = None, expect: Callable[[int, int], None] | None = None
    ) -> Iterator[list[EncodedItem]]:
        """Yields the items of one batch after another, and shows how many are done.

        Args:
          parts: numbers of the items that are encoded, ascending; those of a part are done before the next, and share
            no batch with it. None = all items, in one part.
          expect: is told number and kept tokens of each of these items, in order, before it is encoded.

        Raises:
          TypeError, ValueError, OSError: an item cannot be used; the message says which, why and what to do.
        """
        count = len(self.items)
        chosen = [range(count)] if parts is None else parts
        bar = tqdm(
            total=count,
            initial=count - sum(map(len, chosen)),
            desc="encode",
            unit="item",
            delay=PROGRESS_AFTER_SECONDS if self.progress is None else 0,
            disable=self.progress is False,
        )
        with bar, contextlib.ExitStack() as stack:
            work = ItemWork(
                self.preprocessor,
                self.items,
                self.compute,
                self.side,
                rows=self.rows,
                devices=self.devices,
                expect=expect,
                compiler=None if self.compiler is None else stack.enter_context(self._threads(bar)),
            )
            batches = run_ahead(
                work,
                chosen,
                rows=self.rows,
                capacity=self._capacity(),
                pipeline=self.pipeline,
                devices=self.devices,
            )
            for batch in stack.enter_context(contextlib.closing(batches)):
                yield batch
                bar.set_postfix_str("", refresh=False)
                bar.update(len(batch))
        if work.cut:
            _logger.warning(_said_of_cut(work.cut, count))
        if work.unheard:
            _logger.warning(_said_of_unheard(work.unheard, count))

    def _threads(self, bar: Any) -> AbstractContextManager[CompilerThreads]:
        """Lends threads that compile; where that takes long, the bar says it, even if it would not be shown yet."""
        assert self.compiler is not None

        def say() -> None:
            bar.set_postfix_str("compiling, once for each shape of a batch")
            bar.delay = 0  # what is shown has an end, too

        return self.compiler.threads(None if self.progress is False else say)

    def in_order(self) -> list[EncodedItem]:
        """Returns all items in their order; raises what `batches` raises."""
        encoded: dict[int, EncodedItem] = {}
        for batch in self.batches():
            encoded |= {item.number: item for item in batch}
        return [encoded[number] for number in range(len(self.items))]

    def by_part(self, parts: Sequence[Sequence[int]]) -> Iterator[list[EncodedItem]]:
        """Yields the items of one part after another, each in their order; raises what `batches` raises.

        Args:
          parts: numbers of the items, ascending; none is empty.
        """
        encoded: dict[int, EncodedItem] = {}
        left = iter(parts)
        part = next(left, ())
        for batch in self.batches(parts):
            encoded |= {item.number: item for item in batch}
            if len(encoded) == len(part):
                yield [encoded.pop(number) for number in part]
                part = next(left, ())

    def write_to(self, out: EmbeddingsFolder) -> Embeddings:
        """Returns the embeddings in a folder, after encoding what it lacks; each batch is written during the next.

        Args:
          out: of these items.

        Raises:
          TypeError, ValueError, OSError: an item cannot be used, or its vectors cannot be written; others stay.
        """
        with ThreadPoolExecutor(1, thread_name_prefix="write") as writer:
            writing: Future[None] | None = None
            for batch in self.batches([np.flatnonzero(~out.done).tolist()], out.expect):
                if writing is not None:
                    writing.result()
                vectors = [ItemVectors(item.number, item.pooled, item.states[:, 0]) for item in batch]
                writing = writer.submit(out.write, vectors)
            if writing is not None:
                writing.result()
        return out.finish()

    def _capacity(self) -> int:
        """Returns how many items are sorted at a time."""
        items = self.items
        cheap = items.in_memory and not any(
            isinstance(medium, Path) for item in items for medium in (*item.videos, *item.audios)
        )
        return PLANNED if cheap else WINDOW * self.rows


def _said_of_unheard(unheard: Mapping[int, float], count: int) -> str:
    """Returns how many items have audio that was cut, and the one of which most was."""
    number, seconds = max(unheard.items(), key=lambda item: (item[1], -item[0]))
    return (
        f"{len(unheard)} of {count} items have audio that is longer than the model hears, and was cut at its end: of "
        f"item {number}, the longest, {seconds:.1f} seconds were left out. Pass such audio in parts"
    )


def _said_of_cut(cut: Mapping[int, tuple[int, int]], count: int) -> str:
    """Returns how many texts were cut, and the one of which most was."""
    number, (tokens, left_out) = max(cut.items(), key=lambda item: (item[1][1], -item[0]))
    return (
        f"{len(cut)} of {count} texts are longer than the model reads, and were cut at their end: of item {number}, "
        f"the longest, {left_out} of {tokens} tokens. smart_jax.Index encodes such texts whole, window by window"
    )
