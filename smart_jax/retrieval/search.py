"""Exact search for the best documents of each query, with or without a second look in full precision."""

from __future__ import annotations

from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from smart_jax.retrieval.embeddings import Embeddings
from smart_jax.retrieval.operands import Items, operands
from smart_jax.retrieval.score import score
from smart_jax.retrieval.streamed_search import streamed_search
from smart_jax.typing import HostOrDevice

SHORTLIST = 4  # times k documents are scored again


def search(
    q: Items,
    d: Items,
    k: int = 10,
    *,
    pooled_weight: float = 1.0,
    late_weight: float = 1.0,
    q_mask: Bool[HostOrDevice, "Nq P"] | None = None,
    d_mask: Bool[HostOrDevice, "Nd L"] | None = None,
    rescore: Embeddings | None = None,
    mesh: Mesh | None = None,
    device_bytes: int | None = None,
) -> tuple[Float[np.ndarray, "Nq k"], Int[np.ndarray, "Nq k"]]:
    """Returns the k best documents of each query, exactly, in one pass over the documents; [Nq, Nd] never exists.

    The documents stay on the host, or in the file that they are mapped from, and are streamed to the devices: a block
    is on its way while the one before is scored.

    Args:
      q, d: as in `score`.
      k: at least 1; more than there are documents gives them all.
      pooled_weight, late_weight, q_mask, d_mask: as in `score`.
      rescore: the same documents in full precision, where `d` holds them in less: the best 4 * k are scored again with
        them. They are read for these only, and may be mapped from a file.
      mesh: devices that share the work, each with consecutive documents of nearly equal bytes; None = the default
        device. With several processes all pass the same arguments, and each reads its own devices' documents.
      device_bytes: bytes of memory on each device that the search keeps to; None = 256 MiB, or what the longest
        document needs.

    Returns:
      The scores, float32 [Nq, min(k, Nd)], falling, and the documents' indices, int64. Among equal scores the lowest
      index comes first.

    Raises:
      TypeError: as `score`, or `rescore` is given with arrays.
      ValueError: as `score`; k is not an integer of at least 1, `rescore` has another number of items than d, or a
        document needs more than `device_bytes`.

    Example:
      >>> import numpy as np
      >>> from smart_jax import search
      >>> documents = np.float32([[0, 1], [1, 0], [0.6, 0.8]])  # pooled vectors
      >>> scores, indices = search(np.float32([[1, 0]]), documents, k=2)
      >>> indices
      array([[1, 2]])
      >>> scores
      array([[1. , 0.6]], dtype=float32)
    """
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
        raise ValueError(f"k is {k!r}: it must be an integer of at least 1")
    if rescore is not None:
        return _rescored(q, d, int(k), rescore, pooled_weight, late_weight, mesh=mesh, device_bytes=device_bytes)
    queries, documents, weights = operands(q, d, pooled_weight, late_weight, q_mask, d_mask)
    k = min(int(k), len(documents))
    if k == 0:
        return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    return streamed_search(queries, documents, weights, k, mesh=mesh, device_bytes=device_bytes)


def _rescored(
    q: Items, d: Items, k: int, exact: Embeddings, pooled_weight: float, late_weight: float, **options: Any
) -> tuple[Float[np.ndarray, "Nq k"], Int[np.ndarray, "Nq k"]]:
    """Returns the best k by `exact` among the best SHORTLIST * k by `d`."""
    if not (isinstance(q, Embeddings) and isinstance(d, Embeddings) and isinstance(exact, Embeddings)):
        raise TypeError("rescore is for Embeddings: pass q, d and rescore as such")
    if len(exact) != len(d):
        raise ValueError(f"rescore has {len(exact)} items, d has {len(d)}: they must be the same documents")
    _, shortlists = search(q, d, SHORTLIST * k, pooled_weight=pooled_weight, late_weight=late_weight, **options)
    k = min(k, len(d))
    scores, indices = np.empty((len(q), k), np.float32), np.empty((len(q), k), np.int64)
    for i, shortlist in enumerate(shortlists):
        if k:
            query, documents = q[i : i + 1], exact[shortlist]
            (values,) = score(query, documents, pooled_weight=pooled_weight, late_weight=late_weight)
            best = np.lexsort((shortlist, -values))[:k]  # by score, then by index
            scores[i], indices[i] = values[best], shortlist[best]
    return scores, indices
