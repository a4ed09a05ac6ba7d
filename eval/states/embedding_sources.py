"""Embeddings to score, in memory or on disk, in runs that fit in memory; and the scores of two sides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator
from typing import Any, Protocol, runtime_checkable

import numpy as np

import smart_jax
from eval.states.cache import Shards
from smart_jax.retrieval import Embeddings, States

ScoreFunction = Callable[..., np.ndarray]  # as `smart_jax.score` of two Embeddings


@runtime_checkable
class Vectors(Protocol):
    """Embeddings of N items."""

    def __len__(self) -> int: ...

    def parts(self, indices: np.ndarray | None = None) -> Iterator[tuple[slice, Embeddings]]:
        """All items, or those with these ascending indices, in runs, and the runs' places among them."""

    def mean_bytes(self) -> dict[str, float]:
        """Of an item's "pooled" vector and of its "tokens", as stored."""


@dataclasses.dataclass(frozen=True)
class InMemory:
    """Embeddings as they are."""

    embeddings: Embeddings

    def __len__(self) -> int:
        return len(self.embeddings)

    def parts(self, indices: np.ndarray | None = None) -> Iterator[tuple[slice, Embeddings]]:
        found = self.embeddings if indices is None else self.embeddings[indices]
        yield slice(0, len(found)), found

    def mean_bytes(self) -> dict[str, float]:
        return _mean_bytes(self.embeddings, len(self.embeddings.tokens) / len(self))


@dataclasses.dataclass(frozen=True)
class OnDisk:
    """Embeddings made of cached states, a run at a time.

    Attributes:
      shards: of the states.
      make: what becomes of them, `States.embeddings` or with an adapter.
    """

    shards: Shards
    make: Callable[[States], Embeddings]

    def __len__(self) -> int:
        return len(self.shards)

    def parts(self, indices: np.ndarray | None = None) -> Iterator[tuple[slice, Embeddings]]:
        return ((place, self.make(states)) for place, states in self.shards.parts(indices))

    def mean_bytes(self) -> dict[str, float]:
        return _mean_bytes(self.make(self.shards.take(np.zeros(1, np.int64))), float(self.shards.lengths.mean()))


def _mean_bytes(example: Embeddings, tokens: float) -> dict[str, float]:
    widths = {"pooled": (example.pooled, 1.0), "tokens": (example.tokens, tokens)}
    return {name: count * x.shape[1] * x.dtype.itemsize for name, (x, count) in widths.items()}


def hybrid_scores(
    queries: Vectors,
    corpus: Vectors,
    block: tuple[np.ndarray, np.ndarray | None],
    kinds: Collection[str],
    weights: tuple[float, float],
    score: ScoreFunction = smart_jax.score,
) -> dict[str, np.ndarray]:
    """Scores of a block's queries and documents.

    Args:
      queries, corpus: both sides.
      block: query indices [q] and document indices [n], ascending; None = the whole corpus.
      kinds: some of "pooled", "late", "hybrid".
      weights: of the pooled and of the late part in "hybrid".
      score: computes a part.

    Returns:
      float32 [q, n] by kind.
    """
    chosen, documents = block
    needed: dict[str, dict[str, Any]] = {}
    if {"pooled", "hybrid"} & set(kinds):
        needed["pooled"] = {"pooled_weight": 1.0, "late_weight": 0.0}
    if {"late", "hybrid"} & set(kinds):
        needed["late"] = {"pooled_weight": 0.0, "late_weight": 1.0}
    shape = len(chosen), len(corpus) if documents is None else len(documents)
    scores = {part: np.empty(shape, np.float32) for part in needed}
    for rows, q in queries.parts(chosen):
        for columns, d in corpus.parts(documents):
            for part, only in needed.items():
                scores[part][rows, columns] = score(q, d, **only)
    if "hybrid" in kinds:
        scores["hybrid"] = weights[0] * scores["pooled"] + weights[1] * scores["late"]
    return {kind: scores[kind] for kind in kinds}
