"""States of a benchmark's queries and documents on disk: encoded once, in shards, and scored any number of times.

A cache is a folder; each side of each benchmark has a folder of its own in it, CACHE/BENCHMARK/SIDE-KEY:

  manifest.json              what the states were made from: model, data, instruction, layers, dtype, items per shard
  00000.safetensors, ...     the shards: `smart_jax.States` of consecutive items

KEY is a hash of the manifest: other weights, another instruction or other items have another folder, so that a folder's
states are never of something else. A shard is written whole or not at all, so that a run that was killed goes on with
the first that is missing; one whose values have changed counts as missing. Of two runs that have the same to encode the
second is refused. Of N processes each writes every N-th shard, and reads the others'.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int, Int64
from numpy.typing import DTypeLike
from tqdm.auto import tqdm

from eval.benchmarks import Side, fingerprint
from eval.states.workers import Worker
from smart_jax.files import checked_int, named_lock, read_json, write_whole_text
from smart_jax.retrieval import LAST, Retriever, States

FORMAT, VERSION = "smart_jax.eval.cache", 1
GIB = 2**30
MEMORY = 8 * GIB
LOCK = "write.lock"
SHARD_ITEMS = 256  # in a shard, at most
SHARE = (
    8  # parts of the memory: a shard while it is made, one while it is saved (and its copy), a run of the corpus, ...
)

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Cache:
    """Place where states are kept, and the memory that embeddings may take on this host.

    Attributes:
      folder: made where it is missing; all processes see it.
      fingerprint: of the encoder's weights and preprocessing, see `Encoder.fingerprint`.
      memory: bytes that embeddings may take, whatever the size of the corpus.
      worker: this process.
      layers: to encode beside those that are needed, for adapters to come.
      opened: folders of this run's states, by benchmark.

    Example:
      >>> Cache(Path("states"), "a fingerprint", memory=4 * GIB).memory
      4294967296
    """

    folder: Path
    fingerprint: str
    memory: int = MEMORY
    worker: Worker = dataclasses.field(default_factory=Worker)
    layers: Sequence[int] = ()
    opened: dict[str, set[Path]] = dataclasses.field(default_factory=dict)

    def folder_of(self, benchmark: str) -> Path:
        """Returns where a benchmark's states, and what else is kept of it, are."""
        return self.folder / re.sub(r"[^\w.-]", "_", benchmark)

    def drop(self, benchmark: str) -> None:
        """Deletes the states of a benchmark that this run has used, when no process reads them any longer.

        Those of other models, instructions or layers stay.

        Raises:
          RuntimeError: another process failed on this benchmark.
        """
        folders = self.opened.pop(benchmark, set())
        self.worker.exchange(benchmark, "done with the states", {"done": np.ones(1)})
        for folder in folders if self.worker.index == 0 else ():
            shutil.rmtree(folder, ignore_errors=True)

    def encode(
        self,
        encoder: Retriever,
        side: Side,
        *,
        layers: Sequence[int] | None,
        dtype: DTypeLike,
        batch_size: int | None = None,
        progress: bool | None = None,
    ) -> Shards:
        """Returns the states of one side of a benchmark; those that are not there yet are encoded.

        Args:
          encoder: the model.
          side: queries or corpus.
          layers, dtype, batch_size: as in `Encoder.states`.
          progress: as in `Encoder.encode`.

        Raises:
          RuntimeError: another process failed on these items.
          ValueError, TypeError, OSError: as `Encoder.states`.
        """
        shards = self._open(encoder, side, layers, np.dtype(dtype))
        numbers = self.worker.own(shards.count)
        missing = [number for number in numbers if not shards.has(number)]
        options: dict[str, Any] = {"layers": layers, "dtype": np.dtype(dtype), "batch_size": batch_size}
        total = sum(map(shards.items_of, numbers))
        with (
            self._writing(shards, missing),
            tqdm(
                total=total,
                initial=total - sum(map(shards.items_of, missing)),
                desc=f"encode {side.name}",
                unit="item",
                delay=2.0 if progress is None else 0,
                disable=progress is False,
            ) as bar,
        ):
            for number in _encode(encoder, side, shards, missing, options):
                bar.update(shards.items_of(number))
        self.worker.wait_for(map(shards.path, range(shards.count)), side.benchmark)
        return shards

    def _writing(self, shards: Shards, missing: list[int]) -> contextlib.AbstractContextManager[None]:
        """Keeps other runs from encoding the same, where anything is to be encoded; one process does so for all."""
        lock = shards.folder / LOCK
        if self.worker.index or not (missing or lock.exists()):  # it may be there of a run that was killed
            return contextlib.nullcontext()

        def busy(holder: str) -> ValueError:
            return ValueError(
                f"'{shards.folder}' is being written to by {holder}: wait for it, end it, or keep states in another "
                "folder (--config.cache)"
            )

        return named_lock(lock, busy)

    def _open(self, encoder: Retriever, side: Side, layers: Sequence[int] | None, dtype: np.dtype) -> Shards:
        """Returns the side's shards, whether they are there or not; the first process writes their manifest."""
        description = {
            "format": FORMAT,
            "version": VERSION,
            "model": self.fingerprint,
            "data": fingerprint.of_items(side.items, side.ids, side.instruction),
            "query": side.query,
            "layers": None if layers is None else list(layers),
            "dtype": dtype.name,
        }
        key = hashlib.blake2b(json.dumps(description).encode(), digest_size=8).hexdigest()
        folder = self.folder_of(side.benchmark) / f"{side.name}-{key}"
        self.opened.setdefault(side.benchmark, set()).add(folder)
        folder.mkdir(parents=True, exist_ok=True)
        manifest = folder / "manifest.json"
        if not manifest.exists() and self.worker.index == 0:
            largest = encoder.max_tokens * len(layers or [LAST]) * encoder.width * dtype.itemsize
            size = max(1, min(SHARD_ITEMS, self.memory // SHARE // largest))
            text = json.dumps(description | {"items": len(side.items), "shard_items": size}, indent=2)
            write_whole_text(manifest, text + "\n")
        self.worker.wait_for([manifest], side.benchmark)
        return Shards(folder, len(side.items), _shard_items(manifest), self.memory // SHARE)


def _shard_items(manifest: Path) -> int:
    """Returns how many items a shard has."""
    try:
        return checked_int(read_json(manifest).get("shard_items"), "shard_items")
    except ValueError as error:
        raise ValueError(
            f"'{manifest}' is damaged ({error}): delete '{manifest.parent}', whose states are then encoded again"
        ) from error


def _encode(
    encoder: Retriever, side: Side, shards: Shards, numbers: Sequence[int], options: dict[str, Any]
) -> Iterator[int]:
    """Encodes shards and yields their numbers; each is saved while the next is encoded.

    An error says which side its items are of; what was encoded before is saved.
    """
    if not numbers:
        return
    how: dict[str, Any] = {"instruction": side.instruction, "query": side.query, "progress": False, **options}
    with ThreadPoolExecutor(1, thread_name_prefix="save") as saver:
        saving: Future[None] | None = None
        try:
            parts = encoder.states_by_part(side.items, [shards.bounds(number) for number in numbers], **how)
            for number, states in zip(numbers, parts, strict=True):
                if saving is not None:
                    saving.result()  # one at a time is in memory
                saving = saver.submit(_save, states, shards.path(number))
                yield number
        except Exception as error:
            error.add_note(f"(of the {side.name} of {side.benchmark})")
            raise
        if saving is not None:
            saving.result()


def _save(states: Callable[[], States], path: Path) -> None:
    states().save(path)


@dataclasses.dataclass(frozen=True)
class Shards:
    """States of consecutive items in files, which are read when they are used.

    Attributes:
      folder: where the files are.
      items: number of items in all of them.
      size: items of a shard; the last may have fewer.
      limit: bytes of states that are in memory at a time.

    Example:
      >>> shards = Shards(Path("states"), items=600, size=256, limit=GIB)
      >>> shards.count, shards.bounds(2)
      (3, slice(512, 600, None))
    """

    folder: Path
    items: int
    size: int
    limit: int

    def __len__(self) -> int:
        return self.items

    @property
    def count(self) -> int:
        """Number of shards."""
        return -(-self.items // self.size)

    def bounds(self, number: int) -> slice:
        """Returns the places of a shard's items."""
        return slice(number * self.size, min((number + 1) * self.size, self.items))

    def items_of(self, number: int) -> int:
        """Returns how many items a shard has."""
        return len(range(self.items)[self.bounds(number)])

    def path(self, number: int) -> Path:
        """Returns where a shard is, or will be."""
        return self.folder / f"{number:05}.safetensors"

    def has(self, number: int) -> bool:
        """Returns whether a shard is there, as it was written; a damaged or altered one counts as missing."""
        if not self.path(number).exists():
            return False
        try:
            return len(States.load(self.path(number), check=True)) == self.items_of(number)
        except ValueError as error:
            _logger.warning("%s; it is encoded again", error)
            return False

    def shard(self, number: int) -> States:
        """Reads a shard."""
        return States.load(self.path(number))

    @cached_property
    def lengths(self) -> Int64[np.ndarray, " N"]:
        """Number of tokens of each item."""
        return np.concatenate([self.shard(number).lengths for number in range(self.count)])

    @cached_property
    def _token_bytes(self) -> int:
        states = self.shard(0).states
        return states.shape[1] * states.shape[2] * states.dtype.itemsize

    def parts(self, indices: Int[np.ndarray, " n"] | None = None) -> Iterator[tuple[slice, States]]:
        """Yields all items, or those with these ascending indices, in runs: their places among them, and their states.

        A run keeps to `limit`; an item that is larger is a run of its own.
        """
        if indices is None:
            indices = np.arange(self.items)
        start = 0
        ends = np.cumsum(self.lengths[indices] * self._token_bytes)
        while start < len(indices):
            before = ends[start - 1] if start else 0
            stop = max(int(np.searchsorted(ends, before + self.limit, side="right")), start + 1)
            yield slice(start, stop), self.take(indices[start:stop])
            start = stop

    def take(self, indices: Int[np.ndarray, " n"]) -> States:
        """Returns the states of the items with these ascending indices."""
        numbers = indices // self.size
        parts = []
        for number in np.unique(numbers).tolist():
            shard, places = self.shard(number), indices[numbers == number] - number * self.size
            parts.append(shard if len(places) == len(shard) else shard[places])  # a whole shard stays in its file
        return parts[0] if len(parts) == 1 else States.concatenate(parts)
