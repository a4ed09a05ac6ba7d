"""Scores of each query with its candidates alone."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import jax
import numpy as np
from jaxtyping import Float, Int

from smart_jax.retrieval.block import Parts
from smart_jax.retrieval.block_plan import COPIED_BYTES, query_plan, usable_in_place
from smart_jax.retrieval.candidates import CandidateLists
from smart_jax.retrieval.embeddings import Embeddings
from smart_jax.retrieval.gathered import Gathered
from smart_jax.retrieval.scattered_scores import best_tile, scattered_scores, views

Documents = Embeddings | Gathered
_POOLED, _LATE = np.eye(2, dtype=np.float32)  # a part's weight, without the other's
ScoreAll = Callable[[Embeddings, Documents, Float[np.ndarray, " 2"]], Float[np.ndarray, "Nq Nd"]]


def candidate_scores(
    q: Embeddings, d: Documents, weights: Float[np.ndarray, " 2"], lists: CandidateLists, score_all: ScoreAll
) -> Float[np.ndarray, "Nq width"]:
    """Returns a row for each query: the scores with its candidates, in their order, and -inf where there is none.

    Args:
      q, d, weights: as `score_all` takes them.
      lists: candidates of each query.
      score_all: scores every query with every document.
    """
    together = lists.together()
    if together is not None:
        scores = _scores_with(q, d, weights, together, score_all)
        if lists.bounds is None:
            return scores
        return lists.table(scores[lists.rows(), np.searchsorted(together, lists.ids)])
    assert lists.bounds is not None
    parts = [
        _scores_with(q[i : i + 1], d, weights, lists.ids[a:b], score_all)[0]
        for i, (a, b) in enumerate(pairwise(lists.bounds.tolist()))
    ]
    return lists.table(np.concatenate([np.empty(0, np.float32), *parts]))


def _scores_with(
    q: Embeddings, d: Documents, weights: Float[np.ndarray, " 2"], ids: Int[np.ndarray, " M"], score_all: ScoreAll
) -> Float[np.ndarray, "Nq M"]:
    """Returns the scores of all queries with some of the documents."""
    parts, chosen = Parts.of(weights), Gathered.of(d, ids)
    total = int(chosen.offsets[-1])
    if not parts.late or total * d.tokens.shape[1] * d.tokens.itemsize <= COPIED_BYTES:
        return score_all(q, chosen.pack((0, len(ids)), parts, total), weights)
    tile = best_tile(np.diff(chosen.offsets), d.tokens.shape[1])
    if tile is None or not isinstance(d, Embeddings) or not usable_in_place(d, parts, jax.default_backend()):
        return score_all(q, chosen, weights)
    scores = _scores_in_place(q, d, weights, ids, tile, score_all)
    if parts.pooled:
        pooled = chosen.pack((0, len(ids)), Parts(pooled=True, late=False), 0)
        scores += score_all(q, pooled, weights * _POOLED)
    return scores


def _scores_in_place(
    q: Embeddings,
    d: Embeddings,
    weights: Float[np.ndarray, " 2"],
    ids: Int[np.ndarray, " M"],
    tile: int,
    score_all: ScoreAll,
) -> Float[np.ndarray, "Nq M"]:
    """Returns the late part of the scores, weighted; documents that no view reaches are packed."""
    scores, rest = np.empty((len(q), len(ids)), np.float32), np.ones(len(ids), bool)
    plan = query_plan(q, Parts(pooled=False, late=True))
    queries = [(run, jax.device_put(plan.block(run))) for run in plan.runs[0]]
    for places, view in views(d, ids, tile):
        rest[places], documents = False, jax.device_put(view)
        for (first, last), block in queries:
            late = jax.device_get(scattered_scores(block.window, block.lengths, documents, tile))
            scores[first:last, places] = late[: last - first, : len(places)]
    scores *= weights[1]
    if rest.any():
        scores[:, rest] = score_all(q, Gathered.of(d, ids[rest]), weights * _LATE)
    return scores
