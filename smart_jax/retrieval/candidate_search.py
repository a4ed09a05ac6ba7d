"""The best of each query's candidates."""

from __future__ import annotations

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from smart_jax.retrieval.candidate_scores import candidate_scores
from smart_jax.retrieval.candidates import CandidateLists
from smart_jax.retrieval.embeddings import Embeddings
from smart_jax.retrieval.gathered import Gathered
from smart_jax.retrieval.operands import check_scores
from smart_jax.retrieval.score import score_all
from smart_jax.retrieval.streamed_search import streamed_search

SCORES_AT_ONCE = 2**22  # held for candidates that all queries share: 16 MiB


def candidate_search(
    q: Embeddings,
    d: Embeddings | Gathered,
    weights: Float[np.ndarray, " 2"],
    lists: CandidateLists,
    k: int,
    *,
    mesh: Mesh | None = None,
    device_bytes: int | None = None,
) -> tuple[Float[np.ndarray, "Nq k"], Int[np.ndarray, "Nq k"]]:
    """Returns scores and numbers of the best k of each query's candidates; see `smart_jax.search`.

    Args:
      q, d, weights, mesh, device_bytes: as in `streamed_search`.
      lists: candidates, each once and in rising order.
      k: at least 1.

    Raises:
      ValueError: `mesh` is given with lists of several queries, or a score is NaN or beyond float32.
    """
    k = min(k, lists.width)
    if lists.bounds is None:
        elsewhere = mesh is not None or device_bytes is not None or len(q) * lists.width > SCORES_AT_ONCE
        if elsewhere and k:
            chosen = Gathered.of(d, lists.ids)
            scores, places = streamed_search(q, chosen, weights, k, mesh=mesh, device_bytes=device_bytes)
            return scores, lists.ids[places]
    elif mesh is not None:
        raise ValueError("mesh is given with candidates for each query: leave it out, or pass one list for all")
    numbers = lists.numbers(len(q))
    scores = check_scores(candidate_scores(q, d, weights, lists, score_all), numbers < 0, numbers)
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]  # lists rise: among equals the lowest number comes first
    return np.take_along_axis(scores, best, 1), np.take_along_axis(numbers, best, 1)
