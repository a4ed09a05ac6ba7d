"""Scores as SMART's reference implementation computes them, in NumPy float32.

Followed, in the reference's order of operations: eval/src/evaluation/mmeb_v2/eval_embedding_late_interaction.py of
github.com/HanSolo9682/SMART. It is slow, and holds every similarity of a chunk of queries and candidates: an oracle,
and what to evaluate with when a figure must owe nothing to another way of computing the same score.

Behind the inner products every operation is the same one of IEEE 754 as there, except for the order in which a query's
maxima are added: one after the other here, in torch's there. How an inner product is summed is up to the matrix library
on both sides. So scores agree bit for bit where these sums are exact, else within rounding: 1e-6 for cosines.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float32

from smart_jax.retrieval import Embeddings

QUERY_CHUNK, CANDIDATE_CHUNK = 4, 64  # the reference's late_query_chunk_size and late_candidate_chunk_size


def reference_scores(
    q: Embeddings, d: Embeddings, *, pooled_weight: float = 1.0, late_weight: float = 1.0
) -> Float32[np.ndarray, "Nq Nd"]:
    """Returns the scores of every query with every document, as the reference's `_rank_global` computes them.

    In chunks of queries and candidates, each padded to its longest with zeros: products of all tokens, the least
    float32 in place of a padded candidate token's, the maximum over a candidate's tokens, 0 in place of a padded query
    token's, the sum over query tokens divided by their number; then pooled_weight * pooled + late_weight * that.

    Args:
      q, d: of any dtype; computed in float32.
      pooled_weight, late_weight: the reference's lambda_anchor and lambda_late; a part of weight 0 is not computed.

    Raises:
      ValueError: both weights are 0, or the widths of a part differ.

    Example:
      >>> x, y = np.eye(2, dtype=np.float32)
      >>> q = Embeddings(pooled=x[None], tokens=np.stack([x, y]), offsets=np.array([0, 2]))
      >>> d = Embeddings(pooled=x[None], tokens=x[None], offsets=np.array([0, 1]))
      >>> reference_scores(q, d).tolist()  # 1, and (1 + 0) / 2
      [[1.5]]
    """
    if not pooled_weight and not late_weight:
        raise ValueError("pooled_weight and late_weight are both 0: nothing is left to score")
    parts = [("pooled vectors", q.pooled, d.pooled)] * bool(pooled_weight)
    parts += [("tokens", q.tokens, d.tokens)] * bool(late_weight)
    for name, ours, theirs in parts:
        if ours.shape[1] != theirs.shape[1]:
            raise ValueError(f"{name} of q have width {ours.shape[1]}, of d {theirs.shape[1]}")
    q, d = q.astype(np.float32), d.astype(np.float32)
    if not late_weight:
        return np.float32(pooled_weight) * (q.pooled @ d.pooled.T)
    late = np.empty((len(q), len(d)), np.float32)
    for start in range(0, len(q), QUERY_CHUNK):
        late[start : start + QUERY_CHUNK] = _late(q[start : start + QUERY_CHUNK], d)
    if not pooled_weight:
        return np.float32(late_weight) * late
    return np.float32(pooled_weight) * (q.pooled @ d.pooled.T) + np.float32(late_weight) * late


def _late(q: Embeddings, d: Embeddings) -> Float32[np.ndarray, "Nq Nd"]:
    """Returns what `compute_late_scores_for_query_batch` does."""
    queries, q_mask = _padded(q)
    B, P, D = queries.shape
    counts = q_mask.sum(axis=1).astype(np.float32)
    parts = []
    for start in range(0, len(d), CANDIDATE_CHUNK):
        candidates, mask = _padded(d[start : start + CANDIDATE_CHUNK])
        C, L, _ = candidates.shape
        similarities = (queries.reshape(B * P, D) @ candidates.reshape(C * L, D).T).reshape(B, P, C, L)
        best = np.where(mask, similarities, np.finfo(np.float32).min).max(axis=3)  # [B, P, C]
        best = np.where(q_mask[:, :, None], best, np.float32(0))
        parts.append(best.sum(axis=1) / counts[:, None])
    return np.concatenate(parts, axis=1) if parts else np.empty((B, 0), np.float32)


def _padded(x: Embeddings) -> tuple[Float32[np.ndarray, "N L D"], Bool[np.ndarray, "N L"]]:
    """Returns the tokens, zeros behind those of an item, and a mask that is True on an item's tokens."""
    mask = np.arange(int(x.lengths.max())) < x.lengths[:, None]
    tokens = np.zeros((*mask.shape, x.tokens.shape[1]), np.float32)
    tokens[mask] = x.tokens
    return tokens, mask
