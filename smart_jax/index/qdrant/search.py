"""Searches of a Qdrant collection: the hybrid score inside the engine, and its parts for what was found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from smart_jax.index.first_stage import Weights
from smart_jax.index.qdrant.collection import Collection, Filter, Hybrid, Nearest
from smart_jax.index.qdrant.payload import all_of, of_keys
from smart_jax.retrieval import Embeddings


class Asked(NamedTuple):
    """A search.

    Attributes:
      queries: in the form of the stored tokens, float32.
      filter: of the items that may be found.
      k: number of hits.
      weights: of the score.
      candidates: number of the items with the best pooled vectors of which the best k are chosen; None = all.
    """

    queries: Embeddings
    filter: Filter
    k: int
    weights: Weights
    candidates: int | None


class FoundPoint(NamedTuple):
    """A point that was found, with its score, and the parts of it before they are weighted."""

    key: str
    score: float
    pooled: float
    late: float


def find(collection: Collection, asked: Asked) -> list[list[FoundPoint]]:
    """Returns the best points of each query, in any order."""
    most = collection.count(asked.filter)
    if not most:
        return [[] for _ in asked.queries.pooled]
    requests = [_request(asked, i, most) for i in range(len(asked.queries))]
    keys = [[each.key for each in some] for some in collection.query(requests)]
    return _parts(collection, asked, keys)


def _request(asked: Asked, i: int, most: int) -> Nearest | Hybrid:
    pooled_weight, late_weight = asked.weights
    tokens, sign = _tokens(asked.queries, i), np.float32(np.sign(pooled_weight) or 1.0)
    first = most if asked.candidates is None else min(most, max(asked.k, asked.candidates))
    limit = min(asked.k, most)
    if late_weight == 0:
        first = limit
    nearest = Nearest(asked.queries.pooled[i] * sign, asked.filter, first, exact=asked.candidates is None)
    if late_weight == 0:
        return nearest
    # The pooled vector is signed as its weight, and Qdrant sums over the query's tokens.
    return Hybrid(nearest, tokens, (abs(pooled_weight), late_weight / len(tokens)), limit)


def _parts(collection: Collection, asked: Asked, keys: Sequence[Sequence[str]]) -> list[list[FoundPoint]]:
    """Returns the points with both parts of their scores, which one more call asks the engine for."""
    requests: list[Nearest | Hybrid] = []
    for i, some in enumerate(keys):
        for vector in (asked.queries.pooled[i], _tokens(asked.queries, i)):
            requests.append(Nearest(vector, all_of(of_keys(some)), max(1, len(some))))
    scores = [{each.key: each.score for each in answer} for answer in collection.query(requests)]
    found = []
    for i, some in enumerate(keys):
        count = len(_tokens(asked.queries, i))
        of_query = []
        for key in some:
            if key in scores[2 * i] and key in scores[2 * i + 1]:  # it was not removed meanwhile
                pooled, late = scores[2 * i][key], scores[2 * i + 1][key] / count
                total = asked.weights.pooled * pooled + asked.weights.late * late
                of_query.append(FoundPoint(key, total, pooled, late))
        found.append(of_query)
    return found


def _tokens(queries: Embeddings, i: int) -> np.ndarray:
    return queries.tokens[queries.offsets[i] : queries.offsets[i + 1]]
