"""Hybrid scores of every query with every document."""

from __future__ import annotations

import jax
import numpy as np
from jaxtyping import Bool, Float

from smart_jax.retrieval.block import Parts
from smart_jax.retrieval.block_plan import document_plan, query_plan
from smart_jax.retrieval.block_scores import block_scores
from smart_jax.retrieval.embeddings import Embeddings
from smart_jax.retrieval.operands import Items, operands
from smart_jax.typing import HostOrDevice


def score(
    q: Items,
    d: Items,
    *,
    pooled_weight: float = 1.0,
    late_weight: float = 1.0,
    q_mask: Bool[HostOrDevice, "Nq P"] | None = None,
    d_mask: Bool[HostOrDevice, "Nd L"] | None = None,
) -> Float[np.ndarray, "Nq Nd"]:
    """Returns the hybrid score of every query with every document (arXiv:2605.24938).

        score = pooled_weight * <a_q, a_d> + late_weight * (1 / P) * sum_i max_j <q_i, d_j>

    a is the pooled vector and q_i, d_j are the token vectors. Vectors are used as they are: L2-normalise them for
    cosines (embeddings of this library are). Sums are float32 whatever dtype is stored.

    Args:
      q, d: both `Embeddings` (both parts), or both plain arrays of float32, float16 or bfloat16: pooled vectors
        [N, H] (pooled part only), tokens [N, L, D] or a list of tokens [L_i, D] (late part only).
      pooled_weight, late_weight: a weight of 0 leaves the part out.
      q_mask, d_mask: True = kept, for tokens [N, L, D] only.

    Returns:
      float32 [Nq, Nd].

    Raises:
      TypeError: a dtype or a type of input that is not one of these.
      ValueError: the sides differ in kind or width, an array holds NaN or infinity, a mask has the wrong shape, an
        item has no token, or both weights are 0. The message names the side and the item.

    Example:
      A query with tokens (1, 0) and (0, 1), a document with tokens (0.8, -0.6) and (-0.8, 0.6): the pooled part is 0.6
      and the late part (0.8 + 0.6) / 2.

      >>> import numpy as np
      >>> from smart_jax import Embeddings, score
      >>> q = Embeddings(np.float32([[1, 0]]), np.float32([[1, 0], [0, 1]]), [0, 2])
      >>> d = Embeddings(np.float32([[0.6, 0.8]]), np.float32([[0.8, -0.6], [-0.8, 0.6]]), [0, 2])
      >>> score(q, d).round(4)
      array([[1.3]], dtype=float32)
      >>> score(q, d, pooled_weight=0).round(4)
      array([[0.7]], dtype=float32)
    """
    return _score_blocks(*operands(q, d, pooled_weight, late_weight, q_mask, d_mask))


def _score_blocks(q: Embeddings, d: Embeddings, weights: Float[np.ndarray, " 2"]) -> Float[np.ndarray, "Nq Nd"]:
    scores = np.empty((len(q), len(d)), np.float32)
    parts = Parts.of(weights)
    query_blocks, documents = query_plan(q, parts), document_plan(d, parts, jax.default_backend())
    queries = [(first, last, jax.device_put(query_blocks.block((first, last)))) for first, last in query_blocks.runs[0]]
    on_device = jax.device_put(weights)
    for d_first, d_last in documents.runs[0]:
        block = jax.device_put(documents.block((d_first, d_last)))
        for first, last, query_block in queries:
            values = jax.device_get(_score_block(query_block, block, on_device))
            scores[first:last, d_first:d_last] = values[: last - first, : d_last - d_first]
    return scores


_score_block = jax.jit(block_scores)
