"""Batches of examples as an update takes them: tokenised and collated on the host, and put on the mesh."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from smart_jax.inputs import Preprocessor
from smart_jax.models import batch_axes
from smart_jax.runtime import batch_sharding, sum_over_processes
from train.config import DataConfig
from train.data.dataset import Example
from train.data.examples import Examples
from train.data.mixture import Mixture
from train.data.rows import Row, RowReader, Skipped, Unreadable, readable
from train.data.shapes import BatchShapes
from train.data.work import Work, count_work
from train.objective import TrainBatch

T = TypeVar("T")


class Prepared(NamedTuple):
    """Batch with what is known of it on the host.

    Example:
      >>> prepared = Prepared(["0", "1"], None, {"batches": 1}, Work(examples=2), skipped=1, skipped_before=2)
      >>> prepared.count_skipped(limit=5)
      3
    """

    ids: list[str]  # of its examples
    batch: TrainBatch  # in host memory, until `put`
    position: dict[str, Any]  # state of the data iterator after it
    work: Work  # of this process
    skipped: int  # examples left out by this process since it started, up to this batch
    skipped_before: int  # by all processes before that

    def put(self, mesh: Mesh) -> Prepared:
        """Puts the batch on the mesh and waits until it is there: then nothing holds its host memory."""
        return self._replace(batch=jax.block_until_ready(put_batch(self.batch, mesh)))

    def count_skipped(self, limit: int) -> int:
        """Returns the examples left out so far by all processes, each of which has to call it.

        Raises:
          ValueError: there are more than `limit`.
        """
        count = self.skipped_before + int(sum_over_processes(self.skipped))
        if count > limit:
            raise ValueError(f"{count} examples could not be read on all processes, data.max_skipped allows {limit}")
        return count


_Reading = list[Future[Row | Unreadable]]  # of a batch's examples


class Batcher:
    """Makes batches of examples: a process's examples become its part of the global batch.

    Example:
      >>> import smart_jax
      >>> from smart_jax.runtime import make_mesh
      >>> preprocessor = smart_jax.load("tiny").preprocessor
      >>> batcher = Batcher(preprocessor, DataConfig(), make_mesh(devices=jax.devices()[:1]))
      >>> batch = batcher([Example(str(i), {"text": "a query"}, {"text": f"page {i}"}) for i in range(2)])
      >>> batch.queries.input_ids.shape[0], batch.document_ids.shape
      (2, (2, 4))
    """

    def __init__(self, preprocessor: Preprocessor, config: DataConfig, mesh: Mesh, *, teacher: bool = False):
        """Takes how examples become batches.

        Args:
          preprocessor: of the model.
          config: instructions, shapes and number of negatives.
          mesh: batches are split over its data axes.
          teacher: whether batches have the data's scores, for distillation.
        """
        self.preprocessor, self._config, self._mesh = preprocessor, config, mesh
        self._read = RowReader(preprocessor, config, teacher=teacher)
        self._shapes = BatchShapes(preprocessor, config)
        self._threads = ThreadPoolExecutor(max(1, config.workers), thread_name_prefix="items")

    def prepare(self, examples: Examples | Mixture, skipped: int = 0, count: int | None = None) -> Iterator[Prepared]:
        """Yields the batches of examples in host memory, each with the position after it.

        While a batch is collated, and until it is taken, the threads read the next one's examples.

        Args:
          examples: batches of this process's examples.
          skipped: examples that were left out before, by all processes.
          count: number of batches; None = all.

        Raises:
          ValueError: as `arrays`.
        """
        tally = Skipped(self._config.max_skipped, skipped)
        begun: collections.deque[tuple[Sequence[Example], _Reading, dict[str, Any]]] = collections.deque()

        def finish() -> Prepared:
            some, reading, position = begun.popleft()
            ids, batch = self._join(some, reading, tally)
            work = count_work(batch.queries, len(ids)) + count_work(batch.documents)
            return Prepared(ids, batch, position, work, tally.count - skipped, skipped)

        try:
            for some in itertools.islice(examples, count):
                begun.append((some, self._begin(some), examples.get_state()))
                if len(begun) > 1:
                    yield finish()
            while begun:
                yield finish()
        finally:
            for _, reading, _ in begun:
                for future in reading:
                    future.cancel()

    def __call__(self, examples: Sequence[Example]) -> TrainBatch:
        """Returns the batch of some examples on the mesh; as `arrays`, but nothing is left out."""
        return put_batch(self.arrays(examples, Skipped(0)), self._mesh)

    def arrays(self, examples: Sequence[Example], skipped: Skipped) -> TrainBatch:
        """Returns the batch of some examples as NumPy arrays; of a query's documents its positive comes first.

        Where an example cannot be read, the next readable one of the batch stands in for it, after the last the first:
        the batch follows from the examples alone. Its document is then there twice, and neither is a negative of the
        other's query.

        Args:
          examples: of this process.
          skipped: counts those that cannot be read.

        Raises:
          ValueError, TypeError, OSError: an item cannot be read and `skipped` allows no more, none of the examples can
            be read, or one lacks negatives or a teacher's scores; the message names the example. Or there are several
            processes, and the data do not tell what shape the batch has in all of them.
        """
        return self._join(examples, self._begin(examples), skipped)[1]

    def _begin(self, examples: Sequence[Example]) -> _Reading:
        return [self._threads.submit(self._read, examples, i) for i in range(len(examples))]

    def _join(self, examples: Sequence[Example], reading: _Reading, skipped: Skipped) -> tuple[list[str], TrainBatch]:
        """Returns the examples' ids and their batch."""
        shape = self._shapes(examples)
        read = [future.result() for future in reading]
        rows = readable(read, skipped)
        collate = self.preprocessor.collate
        queries = collate(
            [row.query for row in rows],
            length=shape.query_length,
            patches=shape.query_patches,
            videos=shape.query_videos,
        )
        documents = [document for row in rows for document in row.documents]
        scores = [row.scores for row in rows if row.scores is not None]
        return [row.id for row in read], TrainBatch(
            queries=queries,
            documents=collate(documents, length=shape.document_length, patches=shape.document_patches),
            document_ids=np.concatenate([row.document_ids for row in rows]),
            teacher=np.stack(scores) if scores else None,
        )


def put_batch(batch: T, mesh: Mesh) -> T:
    """Puts this process's rows on the mesh, as its part of global arrays that are split over the data axes.

    Args:
      batch: a `TrainBatch`, or a side of it.
      mesh: of devices.

    Example:
      >>> from smart_jax.models import Batch
      >>> from smart_jax.runtime import make_mesh
      >>> ids, mask = np.zeros((2, 3), np.int32), np.ones((2, 3), bool)
      >>> texts = Batch(ids, mask, np.zeros((3, 2, 3), np.int32), mask, ids, None)
      >>> batch = TrainBatch(texts, texts, np.array([[0], [1]], np.uint32))
      >>> put_batch(batch, make_mesh(devices=jax.devices()[:1])).queries.input_ids.devices() == {jax.devices()[0]}
      True
    """
    where = jax.tree.map(lambda axis: batch_sharding(mesh, leading=axis), batch_axes(batch))
    if jax.process_count() == 1:
        placed: T = jax.device_put(batch, where)
        return placed
    whole: T = jax.tree.map(lambda x, s: jax.make_array_from_process_local_data(s, np.asarray(x)), batch, where)
    return whole
