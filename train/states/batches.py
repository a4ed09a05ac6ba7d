"""Batches of states that are on disk: what `train.data.Batcher` makes of items, without the items."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from smart_jax.inputs import Preprocessor
from smart_jax.retrieval import Embeddings
from train.config import DataConfig
from train.data import Example, Examples, Mixture, Prepared, Skipped, count_work, put_batch
from train.objective import Objective, Params, StatesBatch, TrainBatch
from train.states.cache import StatesCache
from train.states.embed import StatesEmbedder
from train.states.items import Items, Key
from train.states.store import Store


class StatesBatcher:
    """Makes batches of numbered examples (`Items.examples`), as a `Batcher` makes them of examples with items.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from smart_jax import load
      >>> from smart_jax.runtime import make_mesh
      >>> from train.config import TrainConfig
      >>> from train.setup import make_objective
      >>> from train.states.cache import StatesCache
      >>> from train.states.shared_folder import SharedFolder
      >>> from train.states.store import ItemStates, Store
      >>> encoder, mesh = load("tiny"), make_mesh(devices=jax.devices()[:1])
      >>> _, _, objective = make_objective(TrainConfig(model="tiny"), encoder, mesh, steps=1)
      >>> folder = SharedFolder(Path(tempfile.mkdtemp()))
      >>> pages = [Example(str(i), {"text": f"query {i}"}, {"text": f"page {i}"}) for i in range(2)]
      >>> stores = [Store(folder.path / name, count=2, size=2) for name in ("queries", "documents")]
      >>> states = ItemStates(np.ones(192, np.float32), np.ones((3, 1, 192), np.float32))
      >>> for store in stores:
      ...     store.write(0, [states, states], like=states)
      >>> cache = StatesCache(folder, Items.of({("pages", "train"): pages}, negatives=0), *stores, layers=(0,))
      >>> batcher = StatesBatcher(cache, encoder.preprocessor, DataConfig(), objective)
      >>> batcher(list(batcher.items.examples(("pages", "train")))).documents.keep_mask.sum(axis=1)
      Array([3, 3], dtype=int32)
    """

    def __init__(
        self,
        cache: StatesCache,
        preprocessor: Preprocessor,
        config: DataConfig,
        objective: Objective,
        *,
        teacher: bool = False,
    ):
        """Takes the states, and how examples become batches.

        Args:
          cache: the states.
          preprocessor, config, teacher: as of a `Batcher`.
          objective: has the mesh, and the adapter's structure.
        """
        assert isinstance(objective.mesh, Mesh)  # not the abstract one of a plan
        self.preprocessor, self._cache, self._config, self._mesh = preprocessor, cache, config, objective.mesh
        self._teacher = teacher
        self._threads = ThreadPoolExecutor(max(1, config.workers), thread_name_prefix="states")
        self._embedders = {
            query: StatesEmbedder(partial(self._side, query=query), objective) for query in (True, False)
        }

    def covers(self, key: Key) -> bool:
        """Returns whether there are states of a split."""
        return key in self.items.starts

    def embed(self, params: Params, key: Key, numbers: Sequence[int], *, query: bool) -> Embeddings:
        """Returns what an encoder with the adapter would; every process has to call this.

        Args:
          params: the adapter's, by name.
          key: a split.
          numbers: of examples in it.
          query: whether their queries are meant; False = their documents.
        """
        return self._embedders[query](params, np.array(numbers) + self.items.starts[key])

    @property
    def items(self) -> Items:
        """The items by number."""
        return self._cache.items

    def prepare(self, examples: Examples | Mixture, skipped: int = 0, count: int | None = None) -> Iterator[Prepared]:
        """Yields the batches of examples in host memory, each with the position after it; as of a `Batcher`."""
        tally = Skipped(self._config.max_skipped, skipped)
        for batch in itertools.islice(examples, count):
            numbers = np.array([int(example.id) for example in batch])
            arrays = self._arrays(numbers, tally)
            work = count_work(arrays.queries, len(numbers)) + count_work(arrays.documents)
            ids, position = [self.items.name(number) for number in numbers.tolist()], examples.get_state()
            yield Prepared(ids, arrays, position, work, tally.count - skipped, skipped)

    def __call__(self, examples: Sequence[Example]) -> TrainBatch:
        """Returns the batch of some examples on the mesh."""
        return put_batch(self.arrays(examples, Skipped(0)), self._mesh)

    def arrays(self, examples: Sequence[Example], skipped: Skipped) -> TrainBatch:
        """Returns the batch of some examples as NumPy arrays; as of a `Batcher`."""
        return self._arrays(np.array([int(example.id) for example in examples]), skipped)

    def _arrays(self, numbers: Int[np.ndarray, " B"], skipped: Skipped) -> TrainBatch:
        """Returns the batch of some examples; one that cannot be read is stood in for, see `Batcher.arrays`."""
        items = self._cache.items
        numbers = self._readable(numbers, skipped)
        documents = items.documents[numbers]
        if (documents < 0).any():
            name = items.name(int(numbers[(documents < 0).any(axis=1)][0]))
            raise ValueError(
                f"example {name} has fewer negatives than data.negatives = {self._config.negatives}: lower it, or "
                "convert the data with negatives"
            )
        scores = items.scores[numbers]
        if self._teacher and (lacking := np.isnan(scores[:, 0]) | np.isnan(scores[:, 1:]).all(axis=1)).any():
            raise ValueError(
                f"example {items.name(int(numbers[lacking][0]))} lacks a teacher's scores, of its document and of at "
                f"least one of its first {self._config.negatives} negatives: convert the data with a column 'scores', "
                "write one with `python -m train.data.mine`, or set loss.distillation to none"
            )
        return TrainBatch(
            queries=self._side(numbers, query=True),
            documents=self._read(self._cache.documents, documents.reshape(-1), self._config.document_length),
            document_ids=items.words[documents.reshape(-1)],
            teacher=scores if self._teacher else None,
        )

    def _side(self, numbers: Int[np.ndarray, " B"], *, query: bool) -> StatesBatch:
        """Returns the states of the queries, or of the documents, of some examples by number, on the host."""
        if query:
            return self._read(self._cache.queries, self.items.queries[numbers], self._config.query_length)
        return self._read(self._cache.documents, self.items.documents[numbers, 0], self._config.document_length)

    def _read(self, store: Store, numbers: Int[np.ndarray, " N"], length: int | None) -> StatesBatch:
        """Returns states, padded to the longest of all items where the shape is fixed, else to the batch's bucket."""
        longest = int(store.lengths.max())
        if length is None and jax.process_count() == 1:
            longest = min(longest, self.preprocessor.length_bucket(int(store.lengths[numbers].max())))
        return store.read(numbers, longest, self._cache.layers, self._threads)

    def _readable(self, numbers: Int[np.ndarray, " B"], skipped: Skipped) -> Int[np.ndarray, " B"]:
        items, cache = self._cache.items, self._cache
        good = (cache.queries.lengths[items.queries[numbers]] > 0) & np.all(
            (cache.documents.lengths[items.documents[numbers]] > 0) | (items.documents[numbers] < 0), axis=1
        )
        for number in numbers[~good].tolist():
            errors = [cache.queries.error(int(items.queries[number]))]
            errors += [cache.documents.error(int(document)) for document in items.documents[number] if document >= 0]
            skipped.add(Example(items.name(number), {}, {}), ValueError(next(filter(None, errors))))
        if not good.any():
            names = ", ".join(map(items.name, numbers.tolist()))
            raise ValueError(f"none of a batch's examples can be read: {names}. Repair the data")
        places = np.flatnonzero(good)
        # The next one that can be read stands in, after the last the first.
        return numbers[places[np.searchsorted(places, np.arange(len(numbers))) % len(places)]]
