"""Batches of examples as an update takes them: tokenised, collated, on the mesh."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt

from smart_jax.inputs import Preprocessor, TokenizedItem
from smart_jax.models import batch_axes
from smart_jax.runtime import batch_sharding, sum_over_processes
from train.config import DataConfig
from train.data.dataset import Example, Item, content_hash
from train.data.examples import Examples
from train.data.mixture import Mixture
from train.data.work import Work, count_work
from train.objective import TrainBatch

UNREADABLE = (ValueError, TypeError, OSError)  # raised by `preprocessor.tokenize` where the item is at fault


class Prepared(NamedTuple):
    """Batch on the devices, with what is known of it on the host.

    Example:
      >>> prepared = Prepared(["0", "1"], None, {"batches": 1}, Work(examples=2), skipped=1, skipped_before=2)
      >>> prepared.count_skipped(limit=5)
      3
    """

    ids: list[str]  # of its examples
    batch: TrainBatch
    position: dict[str, Any]  # state of the data iterator after it
    work: Work  # of this process
    skipped: int  # examples left out by this process since it started, up to this batch
    skipped_before: int  # by all processes before that

    def count_skipped(self, limit: int) -> int:
        """Returns the examples left out so far by all processes, each of which has to call it.

        Raises:
          ValueError: there are more than `limit`.
        """
        count = self.skipped_before + int(sum_over_processes(self.skipped))
        if count > limit:
            raise ValueError(f"{count} examples could not be read on all processes, data.max_skipped allows {limit}")
        return count


class Skipped:
    """Count of examples that could not be read, each time one is met."""

    def __init__(self, limit: int, before: int = 0):
        """Starts to count.

        Args:
          limit: more are an error; at 0 that of the first example is raised itself.
          before: examples that were counted before this process started.
        """
        self.limit, self.count, self._names = limit, before, list[str]()

    def add(self, example: Example, error: Exception) -> None:
        """Counts an example and prints why it is left out.

        Raises:
          ValueError: there are too many; the message names those of this process.
        """
        if not self.limit:
            raise error
        self.count += 1
        self._names.append(f"'{example.id}'" + (f" ({example.source})" if example.source else ""))
        if self.count > self.limit:
            raise ValueError(
                f"{self.count} examples could not be read, data.max_skipped allows {self.limit}: "
                f"{', '.join(dict.fromkeys(self._names))}. The last: {error}. Repair the data, or raise the limit"
            ) from error
        print(f"\nexample {self._names[-1]} is left out, {self.count} of at most {self.limit}: {error}")


class Batcher:
    """Makes batches of examples: a process's examples become its part of the global batch, on the mesh.

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

        Raises:
          ValueError: there are several processes but no fixed shapes; they would disagree about the bucket.
        """
        if jax.process_count() > 1:
            if None in (config.query_length, config.document_length, config.document_patches):
                raise ValueError(
                    "with several processes the shapes must be fixed: set config.data.query_length, document_length "
                    "and document_patches"
                )
            if config.query_patches is None:
                config = dataclasses.replace(config, query_patches=0)
        self.preprocessor, self._config, self._mesh, self._teacher = preprocessor, config, mesh, teacher
        self._threads = ThreadPoolExecutor(max(1, config.workers), thread_name_prefix="items")

    def prepare(self, examples: Examples | Mixture, skipped: int = 0) -> Iterator[Prepared]:
        """Yields the batches of examples, each with the position after it.

        Args:
          examples: batches of this process's examples.
          skipped: examples that were left out before, by all processes.

        Raises:
          ValueError: as `arrays`.
        """
        tally = Skipped(self._config.max_skipped, skipped)
        for batch in examples:
            arrays = self.arrays(batch, tally)
            work = count_work(arrays.queries, len(batch)) + count_work(arrays.documents)
            ids = [example.id for example in batch]
            batch_on_mesh, position = put_batch(arrays, self._mesh), examples.get_state()
            yield Prepared(ids, batch_on_mesh, position, work, tally.count - skipped, skipped)

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
            be read, or one lacks negatives or a teacher's scores; the message names the example.
        """
        config = self._config
        queries, documents = [], []
        names: list[str] = []
        for example in examples:
            if len(example.negatives) < config.negatives:
                raise ValueError(
                    f"example '{example.id}' has {len(example.negatives)} negatives, data.negatives asks for "
                    f"{config.negatives}: lower it, or convert the data with negatives"
                )
            queries.append(example.query)
            documents.extend([example.document, *example.negatives[: config.negatives]])
            names.extend(f"document {k} of example '{example.id}'" for k in range(1 + config.negatives))
        query_names = [f"query of example '{example.id}'" for example in examples]
        tokenised = self._tokenised(queries, config.query_instruction, query_names, query=True)
        tokenised_documents = self._tokenised(documents, config.document_instruction, names)
        # The example that stands at each place of the batch, and the numbers of its documents.
        places = _readable(examples, tokenised, tokenised_documents, skipped)
        at = [i * (1 + config.negatives) + k for i in places for k in range(1 + config.negatives)]
        teacher = np.stack([self._scores(examples[i]) for i in places]) if self._teacher else None
        return TrainBatch(
            queries=self.preprocessor.collate(
                _without_errors(tokenised, places), length=config.query_length, patches=config.query_patches
            ),
            documents=self.preprocessor.collate(
                _without_errors(tokenised_documents, at), length=config.document_length, patches=config.document_patches
            ),
            document_ids=np.stack([_id_words(documents[i]) for i in at]),
            teacher=teacher,
        )

    def _scores(self, example: Example) -> np.ndarray:
        """Returns a teacher's scores of the example's documents in the batch, float32 [K], NaN = not scored."""
        scores = np.array(example.scores[: 1 + self._config.negatives], np.float32)
        if len(scores) <= self._config.negatives or np.isnan(scores[0]) or np.isnan(scores[1:]).all():
            raise ValueError(
                f"example '{example.id}' lacks a teacher's scores, of its document and of at least one of its first "
                f"{self._config.negatives} negatives: convert the data with a column 'scores', write one with "
                "`python -m train.data.mine`, or set loss.distillation to none"
            )
        return scores

    def _tokenised(
        self, items: Sequence[Item], instruction: str | None, names: Sequence[str], *, query: bool = False
    ) -> list[TokenizedItem | Exception]:
        """Returns tokenised items, or the errors that were raised instead."""

        def tokenize(item: Item, name: str) -> TokenizedItem | Exception:
            try:
                return self.preprocessor.tokenize(item, instruction=instruction, query=query, name=name)
            except UNREADABLE as error:
                return error

        return list(self._threads.map(tokenize, items, names))


def _readable(
    examples: Sequence[Example],
    queries: Sequence[TokenizedItem | Exception],
    documents: Sequence[TokenizedItem | Exception],
    skipped: Skipped,
) -> list[int]:
    """Returns for each example its number or, where one of its items is an error, that of the next without."""
    count, each = len(examples), len(documents) // len(examples)
    good = []
    for i, example in enumerate(examples):
        items = (queries[i], *documents[i * each : (i + 1) * each])
        error = next((item for item in items if isinstance(item, Exception)), None)
        good.append(error is None)
        if error is not None:
            skipped.add(example, error)
    if not any(good):
        names = ", ".join(f"'{example.id}'" for example in examples)
        raise ValueError(f"none of a batch's examples can be read: {names}. Repair the data")
    return [next(j % count for j in range(i, i + count) if good[j % count]) for i in range(count)]


def _without_errors(items: Sequence[TokenizedItem | Exception], numbers: Sequence[int]) -> list[TokenizedItem]:
    """Returns these items, none of which is an error."""
    return [item for i in numbers if not isinstance(item := items[i], Exception)]


def _id_words(item: Item) -> UInt[np.ndarray, " 4"]:
    """Returns the digest of an item's content as numbers, which fit into arrays."""
    return np.frombuffer(bytes.fromhex(content_hash(item)), np.uint32)


def put_batch(batch: TrainBatch, mesh: Mesh) -> TrainBatch:
    """Puts this process's rows on the mesh, as its part of global arrays that are split over the data axes."""
    where = jax.tree.map(lambda axis: batch_sharding(mesh, leading=axis), batch_axes(batch))
    if jax.process_count() == 1:
        return jax.device_put(batch, where)
    return jax.tree.map(lambda x, s: jax.make_array_from_process_local_data(s, np.asarray(x)), batch, where)
