"""Examples of the data set -> what an update takes, prepared ahead of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from smart_jax.preprocess_text import AnyPreprocessor
from smart_jax.rows import Row
from smart_jax.sharding import batch_sharding
from smart_jax.typing import Batch
from train.config import DataConfig
from train.data import Example, Examples, content_hash
from train.mixture import Mixture
from train.step import TrainBatch


class Prepared(NamedTuple):
    """A batch on the devices, whose examples it is made of, and the data iterator's state after it."""

    ids: list[str]
    batch: TrainBatch
    position: dict[str, Any]


class Batcher:
    """Examples of this process -> its part of the global batch, on the mesh."""

    def __init__(self, preprocessor: AnyPreprocessor, config: DataConfig, mesh: Mesh, *, teacher: bool = False):
        """`teacher`: batches have the data's scores, for distillation.

        Raises ValueError: several processes without fixed shapes, which would disagree about the bucket.
        """
        lengths = (config.query_length, config.document_length, config.document_patches)
        if jax.process_count() > 1 and None in lengths:
            raise ValueError(
                "with several processes the shapes must be fixed: set config.data.query_length, document_length and "
                "document_patches"
            )
            if config.query_patches is None:
                config = dataclasses.replace(config, query_patches=0)
        self._preprocessor, self._config, self._mesh, self._teacher = preprocessor, config, mesh, teacher
        self._threads = ThreadPoolExecutor(max(1, config.workers), thread_name_prefix="rows")

    def prepare(self, examples: Examples | Mixture) -> Iterator[Prepared]:
        """The batches of `examples`, each with the position after it."""
        for batch in examples:
            yield Prepared([example.id for example in batch], self(batch), examples.get_state())

    def __call__(self, examples: Sequence[Example]) -> TrainBatch:
        """The batch of some examples; query i's documents are its positive and then its negatives.

        Raises:
          ValueError, OSError: an item can not be read, or an example lacks negatives or a teacher's scores; the message
            names the example.
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
            own = [example.document, *example.negatives[: config.negatives]]
            queries.append(example.query)
            documents.extend(own)
            names.extend(f"document {k} of example '{example.id}'" for k in range(len(own)))
        query_names = [f"query of example '{example.id}'" for example in examples]
        query_rows = self._rows(queries, config.query_instruction, query_names, query=True)
        document_rows = self._rows(documents, config.document_instruction, names)
        teacher: Any = np.stack([self._scores(example) for example in examples]) if self._teacher else None
        batch = TrainBatch(
            queries=self._preprocessor.collate(query_rows, length=config.query_length, patches=config.query_patches),
            documents=self._preprocessor.collate(
                document_rows, length=config.document_length, patches=config.document_patches
            ),
            document_ids=np.stack([_id_words(item) for item in documents]),  # type: ignore[arg-type]
            teacher=teacher,
        )
        return put_batch(batch, self._mesh)

    def _scores(self, example: Example) -> np.ndarray:
        """Of the example's documents in the batch, float32 [K], NaN = not scored."""
        scores = np.array(example.scores[: 1 + self._config.negatives], np.float32)
        if len(scores) <= self._config.negatives or np.isnan(scores[0]) or np.isnan(scores[1:]).all():
            raise ValueError(
                f"example '{example.id}' lacks a teacher's scores, of its document and of at least one of its first "
                f"{self._config.negatives} negatives: convert the data with a column 'scores', write one with "
                "`python -m train.mine`, or set loss.distillation to none"
            )
        return scores

    def _rows(
        self, items: Sequence[Any], instruction: str | None, names: Sequence[str], *, query: bool = False
    ) -> list[Row]:
        def row(item: Any, name: str) -> Row:
            return self._preprocessor.row(item, instruction=instruction, query=query, name=name)

        return list(self._threads.map(row, items, names))


def _id_words(item: Any) -> np.ndarray:
    """The content's hash as uint32 [4], which fits into arrays."""
    return np.frombuffer(bytes.fromhex(content_hash(item)), np.uint32)


def put_batch(batch: TrainBatch, mesh: Mesh) -> TrainBatch:
    """This process's rows as part of global arrays, split over the mesh's data axes."""
    rows, columns = batch_sharding(mesh), batch_sharding(mesh, leading=1)

    def shardings(part: Batch) -> Batch:
        return dataclasses.replace(jax.tree.map(lambda _: rows, part), position_ids=columns)

    scores = None if batch.teacher is None else rows
    where = TrainBatch(shardings(batch.queries), shardings(batch.documents), rows, scores)  # type: ignore[arg-type]
    if jax.process_count() == 1:
        return jax.device_put(batch, where)
    return jax.tree.map(lambda x, s: jax.make_array_from_process_local_data(s, np.asarray(x)), batch, where)
