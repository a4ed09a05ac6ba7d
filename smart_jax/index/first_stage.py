"""First stages of a search: what each item's score is taken to be before the best are scored exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from smart_jax.index.centroid_scores import centroid_scores
from smart_jax.index.sign_scores import sign_scores
from smart_jax.index.snapshot import PLACES, Segment, Snapshot
from smart_jax.index.stages import StageName
from smart_jax.retrieval import Embeddings

SCORES_AT_ONCE = 2**25  # of queries with items

Masks = Sequence[Bool[np.ndarray, " N"] | None]


class Weights(NamedTuple):
    """Weights of the parts of the score."""

    pooled: float = 1.0
    late: float = 1.0


class FirstStage(NamedTuple):
    """Choice of the items that are scored exactly.

    Attributes:
      name: of the stage.
      candidates: number of items that it chooses.
    """

    name: StageName
    candidates: int


def first_scores(
    name: StageName, queries: Embeddings, snapshot: Snapshot, allowed: Masks, weights: Weights
) -> tuple[Float[np.ndarray, "Nq N"], Int[np.ndarray, " N"]]:
    """Returns what a first stage takes the scores of all items to be, and the items' rows, which rise.

    "pooled" takes the cosines of pooled vectors alone; the others add to these, by the weights, the late score that the
    marks of tokens give. Items that are not allowed have -inf.

    Args:
      name: of a stage; one of marks is kept by the snapshot.
      queries: any number of them.
      snapshot: of the index, with at least one segment.
      allowed: for each segment, which items may be found; None = all.
      weights: of the score.

    Raises:
      ValueError: the marks of a segment are damaged.
    """
    pooled_weight = (np.sign(weights.pooled) or 1.0) if name == "pooled" else weights.pooled
    wanted = np.ascontiguousarray(queries.pooled.T, np.float32) * np.float32(pooled_weight)
    scores, numbers = [], []
    for segment, mask in zip(snapshot.segments, allowed, strict=True):
        values = segment.embeddings.pooled @ wanted
        if name != "pooled":
            values += np.float32(weights.late) * _late(name, queries, snapshot, segment, mask).T
        if mask is not None:
            values[~mask] = -np.inf
        scores.append(values)
        numbers.append((segment.number << PLACES) + np.arange(len(values)))
    return np.concatenate(scores).T, np.concatenate(numbers)


def _late(
    name: StageName, queries: Embeddings, snapshot: Snapshot, segment: Segment, mask: Bool[np.ndarray, " N"] | None
) -> Float[np.ndarray, "Nq N"]:
    marks, offsets = segment.marks[name], segment.embeddings.offsets
    try:
        if name == "binary":
            return sign_scores(queries, marks, offsets, mask)
        assert snapshot.centroids is not None
        return centroid_scores(queries, snapshot.centroids, marks, offsets, mask)
    except IndexError as error:  # all marks are looked up, so that none need be read before
        raise ValueError(
            f"'stages/{snapshot.stages[name].file(segment.number)}' is damaged ({error}): restore the file, or call "
            f"index.keep_stages without '{name}' and then with it"
        ) from error


def best_rows(
    name: StageName, queries: Embeddings, snapshot: Snapshot, allowed: Masks, weights: Weights, most: int
) -> list[Int[np.ndarray, " rows"]]:
    """Returns the rows of the best items for each query, in no order; takes what `first_scores` does, and how many."""
    items, found = sum(len(segment.embeddings) for segment in snapshot.segments), []
    most, step = min(most, items), max(1, SCORES_AT_ONCE // items)
    for first in range(0, len(queries), step):
        scores, rows = first_scores(name, queries[first : first + step], snapshot, allowed, weights)
        best = np.argpartition(scores, items - most, axis=1)[:, items - most :]
        # NaN, which comes last, is left in: scored exactly, it is named.
        found += [rows[places[~np.isneginf(values[places])]] for values, places in zip(scores, best, strict=True)]
    return found
