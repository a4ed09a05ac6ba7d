"""Scores of all queries and documents of a benchmark by one kind of interaction."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from smart_jax.retrieval import Embeddings, score


def pooled_scores(q: Embeddings, d: Embeddings) -> Float[np.ndarray, "Nq Nd"]:
    """Returns the cosines of the pooled vectors, computed from float32 queries."""
    return np.asarray(score(q.astype(np.float32), d, late_weight=0.0))


def late_scores(q: Embeddings, d: Embeddings) -> Float[np.ndarray, "Nq Nd"]:
    """Returns the mean MaxSim of the tokens, computed from float32 queries."""
    return np.asarray(score(q.astype(np.float32), d, pooled_weight=0.0))
