"""A data set's items through the frozen backbone, once: by all devices and processes, shard by shard."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Int
from tqdm.auto import tqdm

from smart_jax.inputs import Preprocessor, TokenizedItem
from smart_jax.models import Batch
from smart_jax.runtime import batch_part, batch_sharding, is_main
from train.data import UNREADABLE, Item, put_batch
from train.objective import Objective, Params
from train.run_directory import unwritten
from train.states.store import ItemStates, Store

TOKENS_AT_ONCE = 2**14  # of a device
ROWS = 8, 64  # of a device, the fewest and the most
WINDOW_BYTES = 2**29  # of patches that wait to be sorted by length


class Side(NamedTuple):
    """Queries, or documents, as they are encoded.

    Attributes:
      get: returns an item by its number, and what messages call it.
      query: whether they are queries.
      instruction: of all items; None = the model's own.
      length, patches: padded sizes; None = the bucket of each batch.
      videos: whether they may be videos.
    """

    get: Callable[[int], tuple[Item, str]]
    query: bool
    instruction: str | None
    length: int | None
    patches: int | None
    videos: bool = False


class Piece(NamedTuple):
    """A batch of items of one shard, as this process prepares it.

    Attributes:
      shard: number of the shard; -1 = the batch only keeps step with other processes.
      items: the tokenised items by number.
      errors: what is wrong with other items of the shard, by number.
      batch: the items, padded; None = the processes have to agree about its shape first.
      last: whether the shard is complete with it.
    """

    shard: int
    items: dict[int, TokenizedItem]
    errors: dict[int, str]
    batch: Batch | None
    last: bool


Computed = tuple[jax.Array, jax.Array, jax.Array | None]


class StatesEncoder:
    """Encodes items with the backbone of an objective, on its mesh.

    Every process has to call it at the same time, with as many batches.
    """

    def __init__(
        self,
        preprocessor: Preprocessor,
        objective: Objective,
        frozen: Params,
        layers: Sequence[int],
        *,
        dtype: str,
        threads: int,
        every_token: bool = False,
        lenient: bool = False,
    ):
        """Takes what the states are made with.

        Args:
          preprocessor: of the model.
          objective: has the backbone and the mesh.
          frozen: the backbone's parameters.
          layers: whose states are kept.
          dtype: "int8", or that of floating-point states.
          threads: that prepare items.
          every_token: whether tokens that are not kept have states, too.
          lenient: whether items may be unreadable; False = the first raises its error.
        """
        assert isinstance(objective.mesh, Mesh)  # not the abstract one of a plan
        self.preprocessor, self.mesh, self._frozen = preprocessor, objective.mesh, frozen
        self._lenient, self._every_token = lenient, every_token
        self._pool = ThreadPoolExecutor(max(1, threads), thread_name_prefix="items")
        where = batch_sharding(self.mesh)
        places = where, where, where if dtype == "int8" else None
        compute = partial(_compute, objective, tuple(layers), dtype)
        self._compute = jax.jit(compute, out_shardings=places)

    def rows(self, length: int, count: int) -> int:
        """Returns how many rows of a batch this process prepares, of `count` items of about so many tokens."""
        devices = self.mesh.shape["data"] * self.mesh.shape["fsdp"] // batch_part(self.mesh)[1]
        each = min(max(TOKENS_AT_ONCE // max(length, 1), ROWS[0]), ROWS[1], -(-count // devices))
        return each * devices

    def count_tokens(self, side: Side, numbers: Sequence[int]) -> tuple[float, float]:
        """Returns mean numbers of tokens, and of kept tokens, of some items; those that cannot be read do not count."""
        items = [self._tokenise(side, number) for number in numbers]
        counts = [(len(item), len(self._places(item))) for item in items if isinstance(item, TokenizedItem)]
        tokens, kept = np.mean(counts or [(1, 1)], axis=0).tolist()
        return tokens, kept

    def fill(self, store: Store, shards: Sequence[int], side: Side, rows: int, *, write: bool) -> float:
        """Encodes shards and writes them as they are complete.

        Args:
          store: where they go.
          shards: numbers of those that this process makes.
          side: the items.
          rows: of a batch of this process.
          write: whether this process is the one that writes them.

        Returns:
          Items a second of this process, without the first batch where there are several: it may be compiled.
        """
        writer, clock, done = _Writer(store, self._places, write), [(time.perf_counter(), 0)], 0
        waiting: list[tuple[Piece, Computed]] = []
        items, name = sum(len(store.numbers(shard)) for shard in shards), "queries" if side.query else "documents"
        bar = tqdm(total=items, desc=f"states of {name}", unit="item", delay=2.0, disable=not is_main())
        with bar:
            for piece in itertools.chain(self._in_step(store, shards, side, rows), [None]):
                if piece is not None:
                    batch = self._agreed(piece, side, rows) if piece.batch is None else piece.batch
                    waiting.append((piece, self._compute(self._frozen, put_batch(batch, self.mesh))))
                if waiting and (piece is None or len(waiting) > 1):  # the devices compute one while one is taken
                    computed = waiting.pop(0)
                    writer.take(*computed)
                    bar.update(len(computed[0].items))
                    done += len(computed[0].items)
                    clock.append((time.perf_counter(), done))
        (start, before), (end, after) = clock[min(1, len(clock) - 2)], clock[-1]
        return (after - before) / max(end - start, 1e-9)

    def _in_step(self, store: Store, shards: Sequence[int], side: Side, rows: int) -> Iterator[Piece]:
        """Yields the pieces of the shards, and as many idle ones as other processes have more."""
        own = sum(-(-len(store.numbers(shard)) // rows) for shard in shards)
        most = int(np.max(multihost_utils.process_allgather(np.int32(own)))) if jax.process_count() > 1 else 0
        given = 0
        for piece in _one_ahead(self._pieces(store, shards, side, rows)):
            given += 1
            yield piece
        for _ in range(given, most):
            yield Piece(-1, {}, {}, None, False)

    def _pieces(self, store: Store, shards: Sequence[int], side: Side, rows: int) -> Iterator[Piece]:
        for shard in shards:
            errors: dict[int, str] = {}
            before: dict[int, TokenizedItem] = {}
            for group in self._groups(store.numbers(shard), side, rows, errors):
                if before:
                    yield Piece(shard, before, {}, self._collated(before, side, rows), False)
                before = group
            yield Piece(shard, before, errors, self._collated(before, side, rows), True)

    def _collated(self, items: dict[int, TokenizedItem], side: Side, rows: int) -> Batch | None:
        if jax.process_count() > 1:
            return None
        return self.preprocessor.collate(self._listed(items), length=side.length, patches=side.patches, batch_size=rows)

    def _agreed(self, piece: Piece, side: Side, rows: int) -> Batch:
        """Returns the batch in the shape that it has in all processes, each of which has to call this."""
        items = self._listed(piece.items)
        own = np.array([max(map(len, items)), max(len(item.patches) for item in items)], np.int32)
        tokens, patches = np.max(multihost_utils.process_allgather(own), axis=0).tolist()
        length, places = self.preprocessor.padded_sizes(tokens, patches)
        return self.preprocessor.collate(
            items,
            length=side.length or length,
            patches=places if side.patches is None else side.patches,
            batch_size=rows,
            videos=side.videos,
        )

    def _listed(self, items: dict[int, TokenizedItem]) -> list[TokenizedItem]:
        """Returns the items; a batch of none has a short text, for its shape."""
        return list(items.values()) or [self.preprocessor.tokenize({"text": "a"}, name="a text")]

    def _groups(
        self, numbers: range, side: Side, rows: int, errors: dict[int, str]
    ) -> Iterator[dict[int, TokenizedItem]]:
        """Yields tokenised items for one batch at a time: of like length, where that makes its shape."""
        fixed = side.length is not None and side.patches is not None
        held: dict[int, TokenizedItem] = {}
        for start in range(0, len(numbers), rows):
            part = numbers[start : start + rows]
            for number, item in zip(part, self._pool.map(partial(self._tokenise, side), part), strict=True):
                if isinstance(item, Exception):
                    if not self._lenient:
                        raise item
                    errors[number] = str(item)
                else:
                    held[number] = item
            if fixed or sum(item.patches.nbytes for item in held.values()) > WINDOW_BYTES:
                yield from _sorted_groups(held, rows)
                held = {}
        yield from _sorted_groups(held, rows)

    def _places(self, item: TokenizedItem) -> Int[np.ndarray, " T"]:
        return np.arange(len(item)) if self._every_token else np.flatnonzero(item.keep)

    def _tokenise(self, side: Side, number: int) -> TokenizedItem | Exception:
        try:
            item, name = side.get(number)
            return self.preprocessor.tokenize(item, instruction=side.instruction, query=side.query, name=name)
        except UNREADABLE as error:
            return error


class _Writer:
    """Collects the states of a shard's items, and writes the shard when it is complete."""

    def __init__(self, store: Store, places: Callable[[TokenizedItem], Int[np.ndarray, " T"]], write: bool):
        self._store, self._places, self._write = store, places, write
        self._held: dict[int, ItemStates | str] = {}

    def take(self, piece: Piece, computed: Computed) -> None:
        if piece.shard < 0 or not self._write:
            return
        pooled, states, scales = (None if x is None else _local_rows(x) for x in computed)
        assert pooled is not None and states is not None
        for row, (number, item) in enumerate(piece.items.items()):
            kept = self._places(item)
            of_row = None if scales is None else scales[row, kept]
            self._held[number] = ItemStates(pooled[row], states[row, kept], of_row)
        self._held |= piece.errors
        if piece.last:
            none = ItemStates(pooled[0], states[0, :0], None if scales is None else scales[0, :0])
            whole = [self._held[number] for number in self._store.numbers(piece.shard)]
            try:
                self._store.write(piece.shard, whole, none)
            except OSError as error:
                raise unwritten(self._store.path(piece.shard), error) from error
            self._held = {}


def _one_ahead(pieces: Iterator[Piece]) -> Iterator[Piece]:
    """Yields the pieces, of which a thread prepares the next."""
    with ThreadPoolExecutor(1, thread_name_prefix="pieces") as thread:
        ahead = thread.submit(lambda: next(pieces, None))
        while (piece := ahead.result()) is not None:
            ahead = thread.submit(lambda: next(pieces, None))
            yield piece


def _sorted_groups(held: dict[int, TokenizedItem], rows: int) -> Iterator[dict[int, TokenizedItem]]:
    order = sorted(held, key=lambda number: (len(held[number].patches), len(held[number])))
    for start in range(0, len(order), rows):
        yield {number: held[number] for number in order[start : start + rows]}


def _compute(objective: Objective, layers: tuple[int, ...], dtype: str, frozen: Params, batch: Batch) -> Computed:
    """Returns pooled states, states and, of 8 bits, their scales: a maximum of 127 for each token and layer."""
    hidden = objective.backbone.merge(frozen)(batch, layers=layers)
    pooled = hidden.pooled.astype(jnp.float32)
    if dtype != "int8":
        return pooled, hidden.states.astype(dtype), None
    states = hidden.states.astype(jnp.float32)
    scales = jnp.max(jnp.abs(states), axis=-1) / 127
    return pooled, jnp.round(states / jnp.maximum(scales, 1e-30)[..., None]).astype(jnp.int8), scales


def _local_rows(x: Array) -> np.ndarray:
    """Returns the rows that lie on this process's devices, in order."""
    parts = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate(jax.device_get([parts[start] for start in sorted(parts)]))
