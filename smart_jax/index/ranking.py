"""The best items of a snapshot for each query: exactly, or of those that a first stage chooses."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from smart_jax.index.first_stage import FirstStage, Masks, Weights, best_rows
from smart_jax.index.parts import part_scores
from smart_jax.index.snapshot import PLACES, Segment, Snapshot
from smart_jax.retrieval import Embeddings, search

FEW_TOKENS = 2**15  # of the items that are allowed: so many are scored one by one rather than with all others


class Ranked(NamedTuple):
    """The best items for one query, the best first.

    Attributes:
      rows: int64, in the catalog.
      scores, pooled, late: float32: the score, and its parts before they are weighted.
    """

    rows: Int[np.ndarray, " k"]
    scores: Float[np.ndarray, " k"]
    pooled: Float[np.ndarray, " k"]
    late: Float[np.ndarray, " k"]


def rank(
    queries: Embeddings, snapshot: Snapshot, allowed: Masks, k: int, weights: Weights, stage: FirstStage | None = None
) -> list[Ranked]:
    """Returns the best k of the items that are allowed for each query; among equal scores the first row comes first.

    Args:
      queries: any number of them.
      snapshot: of the index.
      allowed: for each segment, which items may be found; None = all.
      k: at least 1.
      weights: of the score.
      stage: the first stage, which chooses the items that are scored; None = all are.
    """
    if not snapshot.segments:
        nothing = np.zeros(0, np.float32)
        return [Ranked(np.zeros(0, np.int64), nothing, nothing, nothing)] * len(queries)
    chosen = _few(snapshot, allowed)
    if chosen is not None:
        rows = [chosen] * len(queries)
    elif weights.late == 0:
        rows = best_rows("pooled", queries, snapshot, allowed, weights, k)
    elif stage is not None:
        rows = best_rows(stage.name, queries, snapshot, allowed, weights, max(k, stage.candidates))
    else:
        rows = _best(queries, snapshot, allowed, k, weights)
    return [best_of_rows(queries[i], snapshot, each, k, weights) for i, each in enumerate(rows)]


def _few(snapshot: Snapshot, allowed: Masks) -> Int[np.ndarray, " rows"] | None:
    """Returns the rows that are allowed if these are few, and otherwise None."""
    rows, tokens = [], 0
    for segment, mask in zip(snapshot.segments, allowed, strict=True):
        if mask is None:
            tokens += len(segment.embeddings.tokens)
            places = np.zeros(0, np.int64)
        else:
            places = np.flatnonzero(mask)
            tokens += int(segment.embeddings.lengths[places].sum())
        if tokens > FEW_TOKENS:
            return None
        rows.append((segment.number << PLACES) + (places if mask is not None else np.arange(len(segment.embeddings))))
    return np.concatenate(rows)


def _best(
    queries: Embeddings, snapshot: Snapshot, allowed: Masks, k: int, weights: Weights
) -> list[Int[np.ndarray, " rows"]]:
    found: list[list[Int[np.ndarray, " rows"]]] = [[] for _ in queries.pooled]
    for segment, mask in zip(snapshot.segments, allowed, strict=True):
        options: dict[str, Any] = {"pooled_weight": weights.pooled, "late_weight": weights.late}
        _, places = search(queries, segment.embeddings, k, allow=mask, **options)
        for i, of_query in enumerate(places):
            found[i].append((segment.number << PLACES) + of_query[of_query >= 0])
    return [np.concatenate(rows) for rows in found]


def best_of_rows(
    query: Embeddings, snapshot: Snapshot, rows: Int[np.ndarray, " rows"], k: int, weights: Weights
) -> Ranked:
    """Returns the best k of some rows; raises ValueError where one of them has NaN in its vectors."""
    rows = np.sort(rows)
    pooled, late = np.empty(len(rows), np.float32), np.empty(len(rows), np.float32)
    for segment in snapshot.segments:
        inside = _inside(rows, segment)
        pooled[inside], late[inside] = part_scores(query, segment.embeddings, rows[inside] - (segment.number << PLACES))
    scores = np.float32(weights.pooled) * pooled + np.float32(weights.late) * late
    if np.isnan(scores).any():
        row = int(rows[np.isnan(scores)][0])
        raise ValueError(
            f"item {row % (1 << PLACES)} of segment {row >> PLACES}: its vectors hold NaN, so the index's files have "
            "been altered; delete it and add it again"
        )
    best = np.lexsort((rows, -scores))[:k]
    return Ranked(rows[best], scores[best], pooled[best], late[best])


def _inside(rows: Int[np.ndarray, " rows"], segment: Segment) -> slice:
    return slice(*np.searchsorted(rows, [segment.number << PLACES, (segment.number + 1) << PLACES]).tolist())
