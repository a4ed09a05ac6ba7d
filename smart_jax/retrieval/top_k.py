"""The best documents of each query: kept on the host while scores come in, without a compilation, or on devices."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class TopK:
    """The k largest scores so far of each query, with their documents; of equal scores the lowest document comes first.

    A score and its document make one integer, the smaller the better: its upper half falls as the score rises, and its
    lower half is the document. NaN, whatever its sign, is above all others, so that who checks the best meets it.

    Args:
      queries: number of queries.
      k: how many documents of each are kept.
    """

    def __init__(self, queries: int, k: int) -> None:
        self.queries, self.k = queries, k
        self._keys = np.empty((queries, 0), np.int64)

    def add(
        self,
        scores: Float[np.ndarray, "queries documents"],
        first: int,
        allow: Bool[np.ndarray, " documents"] | None = None,
    ) -> None:
        """Takes in the scores of documents `first`, `first` + 1, and so on, or of those that are allowed."""
        documents = np.arange(first, first + scores.shape[1])
        if allow is not None:
            scores, documents = scores[:, allow], documents[allow]
        scores = np.where(np.isnan(scores), np.float32(np.nan), scores)
        upper = (~_ordered(np.add(scores, 0.0).view(np.int32))).astype(np.int64) << 32  # + 0.0: no zero is negative
        keys = np.concatenate([self._keys, upper | documents], axis=1)
        self._keys = np.partition(keys, self.k - 1, axis=1)[:, : self.k] if keys.shape[1] > self.k else keys

    def result(self) -> tuple[Float[np.ndarray, "queries k"], Int[np.ndarray, "queries k"]]:
        """Returns scores, falling, and documents, int64; fewer than k where fewer came in."""
        keys = np.sort(self._keys, axis=1)
        return _ordered(~(keys >> 32).astype(np.int32)).view(np.float32), keys & 0xFFFF_FFFF


def _ordered(bits: Int[np.ndarray, "*shape"]) -> Int[np.ndarray, "*shape"]:
    """Returns integers in the order of the floats that have these bits, or, given such integers, the bits."""
    other: Int[np.ndarray, "*shape"] = bits ^ (bits >> 31 & 0x7FFF_FFFF)
    return other


def ordered(scores: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns scores that `lax.top_k` orders as `TopK` does: it has -0.0 below 0.0, and a negative NaN below all."""
    return jnp.where(scores == 0, 0.0, jnp.where(jnp.isnan(scores), jnp.nan, scores))
