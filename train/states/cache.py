"""Frozen states of a run's data: made once where that pays, by all processes, and kept in a folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from smart_jax import Encoder
from smart_jax.runtime import is_main, on_any, wait_for_all
from train.config import TrainConfig
from train.data import Example, Item, Source, Split, clean_query, open_split, split_fingerprint
from train.objective import Objective, Params
from train.states.encode import Side, StatesEncoder
from train.states.items import Items, Key
from train.states.shared_folder import SharedFolder
from train.states.store import Store
from train.states.worth import GIB, SPARE, Need, free_bytes, read_rate

SHARD_BYTES, SHARD_ITEMS = 2**28, 1024  # of a file, about and at most
SAMPLE = 16  # items of each side whose tokens are counted beforehand
ITEMS_FILE, SIDES = "items.npz", ("queries", "documents")
# Settings of the data on which no state depends.
INDEPENDENT = {
    *("dir", "name", "split", "validation_split", "max_skipped", "workers", "prefetch", "cache_states", "cache_dtype"),
    *("query_length", "document_length", "query_patches", "document_patches"),
}


@dataclasses.dataclass(frozen=True)
class StatesCache:
    """States of the queries and documents of some splits, on disk.

    Attributes:
      folder: of the states.
      items: which query and documents an example has.
      queries, documents: their states.
      layers: places of the layers that are used among those that are kept.

    Example:
      >>> items = Items.of({("pages", "train"): [Example("0", {"text": "a query"}, {"text": "a page"})]}, negatives=0)
      >>> stores = [Store(Path("states") / name, count=1, size=1) for name in SIDES]
      >>> StatesCache(SharedFolder(Path("states")), items, *stores, layers=(0,)).documents.path(0).name
      '00000.safetensors'
    """

    folder: SharedFolder
    items: Items
    queries: Store
    documents: Store
    layers: tuple[int, ...]

    def delete(self) -> None:
        """Deletes them, when all processes are done with them."""
        _remove(self.folder)


def keep_states(
    config: TrainConfig,
    encoder: Encoder,
    objective: Objective,
    frozen: Params,
    layers: Sequence[int],
    *,
    splits: Sequence[Key],
    read: int,
    run: Path,
    started: bool = False,
) -> StatesCache | None:
    """Encodes the items of some splits, or takes what is there, where `data.cache_states` asks for it.

    Each process has to call this.

    Args:
      config: of the run.
      encoder: the model.
      objective: has the backbone and the mesh.
      frozen: the backbone's parameters.
      layers: of the adapter.
      splits: data sets and splits.
      read: documents that are read in all.
      run: directory of the run, or of several, in which "auto" keeps the states.
      started: whether the run goes on: with "auto" it then does as before.

    Returns:
      The states; None = they are not kept.

    Raises:
      ValueError: the folder holds other states, or its disk has no room for these.
      UnwrittenError: they cannot be written.

    Example:
      >>> from smart_jax.runtime import make_mesh
      >>> from train.setup import load_encoder, make_objective
      >>> config, mesh = TrainConfig(model="tiny"), make_mesh(devices=jax.devices()[:1])  # data.cache_states is "off"
      >>> encoder = load_encoder(config, mesh)
      >>> _, frozen, objective = make_objective(config, encoder, mesh, steps=10)
      >>> splits = [("pages", "train")]
      >>> keep_states(config, encoder, objective, frozen, (-1,), splits=splits, read=640, run=Path("run")) is None
      True
    """
    if config.data.cache_states == "off" or config.trainable != "adapter":
        return None
    assert isinstance(objective.mesh, Mesh)  # not the abstract one of a plan
    auto = config.data.cache_states == "auto"
    folder = SharedFolder.of(run / "states" if auto else Path(config.data.cache_states), objective.mesh)
    if auto and started and not on_any(bool(folder.manifest())):
        _remove(folder)
        return None
    if stored := folder.manifest().get("data"):  # of these data, what is there will do
        splits = [key for key in splits if "/".join(key) in stored or key[1] == config.data.split]
    keeper = _Keeper(config, encoder, objective, frozen, tuple(layers), splits, folder)
    keeper.check_folder(auto)
    need = keeper.need(read)
    if not auto:
        keeper.check_room(need)
    elif reason := keeper.refusal(need):
        if is_main():
            print(f"the frozen states are computed anew at every step: {reason}")
        _remove(folder)
        return None
    return keeper.keep()


def _remove(folder: SharedFolder) -> None:
    wait_for_all("states are no longer read")
    if folder.leads:
        folder.clear()
        if not any(folder.path.iterdir()):
            folder.path.rmdir()


class _Keeper:
    """Makes a `StatesCache` in a folder."""

    def __init__(
        self,
        config: TrainConfig,
        encoder: Encoder,
        objective: Objective,
        frozen: Params,
        layers: tuple[int, ...],
        splits: Sequence[Key],
        folder: SharedFolder,
    ):
        data, self._folder, self._layers, self._encoder = config.data, folder, layers, encoder
        self._data, self._dtype = data, stored_dtype(config)
        self._scored = config.loss.distillation != "none"
        self._sources: dict[Key, Source] = {key: open_split(data.dir, *key) for key in splits}
        self._tokens = config.loss.tokens
        self._make = StatesEncoder(
            encoder.preprocessor,
            objective,
            frozen,
            layers,
            dtype=self._dtype,
            threads=data.workers,
            every_token=self._tokens != "kept",
            lenient=data.max_skipped > 0,
        )

    def check_folder(self, rebuild: bool) -> None:
        """Makes sure that what is in the folder is of this model and these data, and numbers the items.

        Raises:
          ValueError: it is not, and it may not be deleted (`rebuild`).
        """
        description = self._description()
        difference = self._folder.difference(description)
        if on_any(bool(difference)) and not rebuild:
            raise ValueError(
                f"'{self._folder.path}' holds states of other things ({difference or 'says another process'}): delete "
                "it, or name another folder (config.data.cache_states)"
            )
        if self._folder.leads and (difference or not self._folder.manifest()):
            if difference:
                print(f"'{self._folder.path}' holds states of other things and is written anew: {difference}")
            self._folder.clear()
            items = Items.of(self._sources, self._data.negatives, scored=self._scored, threads=self._data.workers)
            items.save(self._folder.path / ITEMS_FILE)
        wait_for_all("states: the items are numbered")
        self._items = Items.load(self._folder.path / ITEMS_FILE)
        if self._folder.leads and not self._folder.manifest():
            self._folder.describe(description | {"shard_items": self._shard_items()})
        wait_for_all("states: the folder is described")
        sizes = self._folder.manifest()["shard_items"]
        self._stores = [Store(self._folder.path / name, self._counts[name], sizes[name]) for name in SIDES]

    def _description(self) -> dict[str, Any]:
        settings = dataclasses.asdict(self._data).items()
        return {
            "model": self._encoder.fingerprint(),
            "layers": list(self._layers),
            "dtype": self._dtype,
            "tokens": self._tokens,
            "scored": self._scored,
            "data": {"/".join(key): split_fingerprint(self._data.dir, *key) for key in self._sources},
            "settings": {name: value for name, value in settings if name not in INDEPENDENT},
        }

    @property
    def _counts(self) -> dict[str, int]:
        """Number of items of each side that differ."""
        return {"queries": len(self._items.first_queries), "documents": len(self._items.words)}

    @cached_property
    def _sides(self) -> dict[str, Side]:
        data, items = self._data, self._items

        def read(example: int) -> Example:
            key, place = items.locate(example)
            return self._sources[key][place]

        def query(number: int) -> tuple[Item, str]:
            example = read(int(items.first_queries[number]))
            name = f"query of example '{example.id}'"
            return clean_query(example.query, data.clean_queries, name=name), name

        def document(number: int) -> tuple[Item, str]:
            at, k = items.first_documents[number].tolist()
            example = read(at)
            return (example.document, *example.negatives)[k], f"document {k} of example '{example.id}'"

        videos = any(isinstance(source, Split) and source.has_videos for source in self._sources.values())
        sizes = (data.query_length, data.query_patches), (data.document_length, data.document_patches)
        return {
            "queries": Side(query, True, data.query_instruction, *sizes[0], videos),
            "documents": Side(document, False, data.document_instruction, *sizes[1], videos),
        }

    @cached_property
    def _sampled(self) -> dict[str, tuple[int, float]]:
        """Rows of a batch, and bytes of an item's states, of each side: both by the tokens of some of its items."""
        sampled = {}
        for name, side in self._sides.items():
            count = self._counts[name]
            chosen = np.unique(np.linspace(0, count - 1, SAMPLE).astype(int)).tolist()
            tokens, kept = self._make.count_tokens(side, chosen)
            width, scale = self._encoder.width, 4 if self._dtype == "int8" else 0
            size = 4 * width + kept * len(self._layers) * (jnp.dtype(self._dtype).itemsize * width + scale)
            sampled[name] = self._make.rows(int(tokens), count), size
        return sampled

    def _shard_items(self) -> dict[str, int]:
        """Returns how many items a file holds: whole batches, where it is not smaller than one."""
        sizes = {
            name: (rows, min(SHARD_ITEMS, int(SHARD_BYTES / size))) for name, (rows, size) in self._sampled.items()
        }
        return {name: max(most // rows, 1) * rows for name, (rows, most) in sizes.items()}

    def need(self, read: int) -> Need:
        """Returns what the run reads, and what is missing."""
        size = 0.0
        for name, store in zip(SIDES, self._stores, strict=True):
            missing = sum(len(store.numbers(shard)) for shard in range(store.shards) if not store.path(shard).exists())
            size += missing * self._sampled[name][1]
        return Need(read, len(self._items.words), int(size))

    def check_room(self, need: Need) -> None:
        """Raises ValueError where the disk has no room for what is missing."""
        free = free_bytes(self._folder.path)
        if on_any(need.size > free * (1 - SPARE)):
            raise ValueError(
                f"config.data.cache_states: {need.size / GIB:.2f} GiB of states do not fit on the disk of "
                f"'{self._folder.path}', of which {free / GIB:.2f} GiB are free: name a folder on a larger disk, set "
                "config.data.cache_dtype=int8 (a quarter of float32), or config.data.cache_states=off"
            )

    def refusal(self, need: Need) -> str:
        """Returns why the states are not to be kept, after the first documents have been encoded; "" = they are."""
        documents = self._stores[1]
        complete = all(store.path(shard).exists() for store in self._stores for shard in range(store.shards))
        if on_any(complete):
            return ""
        if on_any(bool(reason := need.refusal(free_bytes(self._folder.path)))):
            return reason or "on another host"
        shards = self._folder.own([shard for shard in range(documents.shards) if not documents.has(shard)])[:1]
        rate = self._fill("documents", documents, shards)
        wait_for_all("states: the first documents are encoded")
        reading = 0.0
        for shard in shards:
            share = len(documents.numbers(shard)) / documents.path(shard).stat().st_size
            reading = read_rate(documents.path(shard)) * share
        if on_any(bool(shards) and not need.pays(rate, reading)):
            return (
                f"each of {need.documents} documents is read {need.epochs:.1f} times, {reading:.0f} a second from the "
                f"disk, and {rate:.0f} a second are encoded"
            )
        return ""

    def _fill(self, name: str, store: Store, shards: list[int]) -> float:
        return self._make.fill(store, shards, self._sides[name], self._sampled[name][0], write=self._folder.writes)

    def keep(self) -> StatesCache:
        """Encodes what is missing."""
        for name, store in zip(SIDES, self._stores, strict=True):
            shards = self._folder.own([shard for shard in range(store.shards) if not store.has(shard)])
            wait_for_all("states: each process knows what it makes")
            self._fill(name, store, shards)
            wait_for_all(f"states: the {name} are encoded")
        stored = self._folder.manifest()["layers"]
        queries, documents = self._stores
        layers = tuple(stored.index(layer) for layer in self._layers)
        return StatesCache(self._folder, self._items, queries, documents, layers)


def stored_dtype(config: TrainConfig) -> str:
    """Returns the dtype of the states: that in which the backbone computes, unless another is asked for.

    Example:
      >>> stored_dtype(TrainConfig(dtype="bfloat16"))
      'bfloat16'
    """
    if config.data.cache_dtype != "auto":
        return config.data.cache_dtype
    if config.dtype != "auto":
        return config.dtype
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"
