"""Hidden states of numbered items in files that are mapped into memory: written shard by shard, read row by row."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Int64, Num

from smart_jax.files import map_tensors, parse_json, shown, write_tensors
from train.objective import StatesBatch

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ItemStates:
    """States of one item.

    Attributes:
      pooled: its pooled state.
      states: of its kept tokens, in each layer.
      scales: of 8-bit states, see `StatesBatch`; None = the states are as they are.
    """

    pooled: Float[np.ndarray, " H"]
    states: Num[np.ndarray, "T layers H"]
    scales: Float[np.ndarray, "T layers"] | None = None


@dataclasses.dataclass(frozen=True)
class Store:
    """States of the items 0 .. count - 1, in files of `size` items each.

    Attributes:
      folder: of the files.
      count: number of items.
      size: items of a file; the last may have fewer.

    Example:
      >>> store = Store(Path("states/documents"), count=600, size=256)
      >>> store.shards, store.numbers(2)
      (3, range(512, 600))
    """

    folder: Path
    count: int
    size: int

    @property
    def shards(self) -> int:
        """Number of files."""
        return -(-self.count // self.size)

    def numbers(self, shard: int) -> range:
        """Returns the items of a file."""
        return range(shard * self.size, min((shard + 1) * self.size, self.count))

    def path(self, shard: int) -> Path:
        """Returns where a file is, or will be."""
        return self.folder / f"{shard:05}.safetensors"

    def has(self, shard: int) -> bool:
        """Returns whether a file is there and whole; a damaged one is deleted."""
        if not self.path(shard).exists():
            return False
        try:
            arrays, _ = map_tensors(self.path(shard))
            if len(arrays["offsets"]) == len(self.numbers(shard)) + 1:
                return True
        except (OSError, KeyError, ValueError) as error:
            _logger.warning("'%s' is damaged (%s); its items are encoded again", self.path(shard), error)
        self.path(shard).unlink()
        return False

    def write(self, shard: int, items: Sequence[ItemStates | str], like: ItemStates) -> None:
        """Writes a file, whole or not at all.

        Args:
          shard: its number.
          items: states of its items, or what is wrong with them.
          like: states of any item: the form of those that are wrong.
        """
        errors = {place: item for place, item in enumerate(items) if isinstance(item, str)}
        empty = dataclasses.replace(
            like, states=like.states[:0], scales=None if like.scales is None else like.scales[:0]
        )
        whole = [empty if isinstance(item, str) else item for item in items]
        arrays = {
            "pooled": np.stack([item.pooled for item in whole]).astype(np.float32),
            "states": np.concatenate([item.states for item in whole]),
            "offsets": np.cumsum([0, *(len(item.states) for item in whole)], dtype=np.int64),
        }
        if like.scales is not None:
            arrays["scales"] = np.concatenate([item.scales for item in whole if item.scales is not None])
        self.folder.mkdir(parents=True, exist_ok=True)
        write_tensors(self.path(shard), arrays, {"errors": json.dumps(errors)})

    @cached_property
    def _mapped(self) -> list[tuple[Mapping[str, np.ndarray], Mapping[int, str]]]:
        """The arrays of each file, and what is wrong with its items by their places."""
        opened = (map_tensors(self.path(shard)) for shard in range(self.shards))
        return [(arrays, _errors(texts, self.folder)) for arrays, texts in opened]

    @cached_property
    def lengths(self) -> Int64[np.ndarray, " items"]:
        """Number of kept tokens of each item; 0 = something is wrong with it."""
        return np.concatenate([np.diff(arrays["offsets"]) for arrays, _ in self._mapped])

    @property
    def bytes(self) -> int:
        """Size of the files."""
        return sum(self.path(shard).stat().st_size for shard in range(self.shards))

    def error(self, number: int) -> str:
        """Returns what is wrong with an item; "" = nothing."""
        shard, place = divmod(number, self.size)
        return self._mapped[shard][1].get(place, "")

    def read(self, numbers: Int[np.ndarray, " B"], length: int, layers: Sequence[int], pool: Executor) -> StatesBatch:
        """Returns the states of some items, padded.

        Args:
          numbers: of the items; one may be there twice.
          length: tokens of a row.
          layers: places, among those that are kept, of the layers that are wanted.
          pool: threads that copy.

        Raises:
          ValueError: an item has more tokens.
        """
        if (longest := int(self.lengths[numbers].max())) > length:
            raise ValueError(f"the length is {length}, but an item has {longest} kept tokens")
        arrays, _ = self._mapped[0]
        rows = len(numbers)
        pooled = np.empty((rows, arrays["pooled"].shape[1]), np.float32)
        _, kept, width = arrays["states"].shape
        chosen: slice | list[int] = slice(None) if list(layers) == list(range(kept)) else list(layers)
        states = np.empty((rows, length, len(layers), width), arrays["states"].dtype)
        scales = np.zeros(states.shape[:3], np.float32) if "scales" in arrays else None

        def copy(row: int) -> None:
            shard, place = divmod(int(numbers[row]), self.size)
            of_shard, _ = self._mapped[shard]
            first, last = of_shard["offsets"][place : place + 2].tolist()
            pooled[row] = of_shard["pooled"][place]
            # As integers: NumPy copies those of its own types without holding the interpreter's lock.
            _bits(states)[row, : last - first] = _bits(of_shard["states"])[first:last][:, chosen]
            _bits(states)[row, last - first :] = 0
            if scales is not None:
                scales[row, : last - first] = of_shard["scales"][first:last][:, chosen]

        list(pool.map(copy, range(rows)))
        mask = np.arange(length)[None] < self.lengths[numbers][:, None]
        return StatesBatch(pooled, states, mask, scales)


def _errors(texts: Mapping[str, str], folder: Path) -> dict[int, str]:
    errors = parse_json(texts.get("errors", "null"), f"'{folder}': errors", remedy="encode the states again")
    if not isinstance(errors, dict) or not all(key.isdecimal() for key in errors):
        raise ValueError(f"'{folder}': errors is {shown(errors)}, expected an object: encode the states again")
    return {int(key): str(text) for key, text in errors.items()}


def _bits(x: np.ndarray) -> np.ndarray:
    return x.view(f"u{x.dtype.itemsize}")
