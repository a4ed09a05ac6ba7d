"""Embeddings of the queries or documents to score, in memory or made of cached states, in runs that fit in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from eval.states.cache import Shards
from smart_jax.retrieval import Embeddings, States


@runtime_checkable
class EmbeddingSource(Protocol):
    """Embeddings of N items, wherever they are.

    Example:
      >>> one = Embeddings(np.ones((1, 4), np.float32), np.ones((3, 4), np.float32), np.array([0, 3]))
      >>> isinstance(InMemory(one), EmbeddingSource)
      True
    """

    def __len__(self) -> int: ...

    def parts(self, indices: Int[np.ndarray, " n"] | None = None) -> Iterator[tuple[slice, Embeddings]]:
        """Yields all items, or those with these ascending indices, in runs: their places among them, and embeddings."""

    def mean_bytes(self) -> dict[str, float]:
        """Returns the mean size of an item's "pooled" vector and of its "tokens", as stored."""


@dataclasses.dataclass(frozen=True)
class InMemory:
    """Embeddings that are held in memory.

    Example:
      >>> one = Embeddings(np.ones((1, 4), np.float16), np.ones((3, 4), np.float16), np.array([0, 3]))
      >>> InMemory(one).mean_bytes()
      {'pooled': 8.0, 'tokens': 24.0}
    """

    embeddings: Embeddings

    def __len__(self) -> int:
        return len(self.embeddings)

    def parts(self, indices: Int[np.ndarray, " n"] | None = None) -> Iterator[tuple[slice, Embeddings]]:
        """Yields one run: all items, or those with these indices."""
        chosen = self.embeddings if indices is None else self.embeddings[indices]
        yield slice(0, len(chosen)), chosen

    def mean_bytes(self) -> dict[str, float]:
        """Returns the mean size of an item's "pooled" vector and of its "tokens"."""
        return _mean_bytes(self.embeddings, len(self.embeddings.tokens) / len(self))


@dataclasses.dataclass(frozen=True)
class OnDisk:
    """Embeddings that are made of cached states, a run at a time.

    Attributes:
      shards: the states.
      make: what becomes of them, `States.embeddings` or `States.adapted` with an adapter.

    Example:
      >>> from pathlib import Path
      >>> len(OnDisk(Shards(Path("states"), items=600, size=256, limit=2**30), make=States.embeddings))
      600
    """

    shards: Shards
    make: Callable[[States], Embeddings]

    def __len__(self) -> int:
        return len(self.shards)

    def parts(self, indices: Int[np.ndarray, " n"] | None = None) -> Iterator[tuple[slice, Embeddings]]:
        """Yields the items in runs that keep to the limit of the shards."""
        return ((place, self.make(states)) for place, states in self.shards.parts(indices))

    def mean_bytes(self) -> dict[str, float]:
        """Returns the mean size of an item's "pooled" vector and of its "tokens", once made."""
        return _mean_bytes(self.make(self.shards.take(np.zeros(1, np.int64))), float(self.shards.lengths.mean()))


def _mean_bytes(example: Embeddings, tokens: float) -> dict[str, float]:
    widths = {"pooled": (example.pooled, 1.0), "tokens": (example.tokens, tokens)}
    return {name: count * x.shape[1] * x.dtype.itemsize for name, (x, count) in widths.items()}
