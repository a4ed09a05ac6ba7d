"""Centroids of token vectors: learned by k-means, and tokens assigned to the nearest, two bytes each."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, UInt16

from smart_jax.vectors import l2_normalise_on_host

FEWEST, MOST = 2**11, 2**13  # centroids of an index of ordinary size
TOKENS_OF_EACH = 20  # that centroids are learned from
ROUNDS = 4  # a fifth changes next to nothing
SIMILARITIES = 2**22  # at once, 16 MiB


def centroid_count(tokens: int) -> int:
    """Returns how many centroids an index of so many tokens has.

    Example:
      >>> [centroid_count(tokens) for tokens in (100, 20_000, 100_000, 10**8)]
      [25, 4096, 8192, 8192]
    """
    power = 2 ** math.floor(math.log2(32 * math.sqrt(tokens))) if tokens else 1
    return max(1, min(MOST, max(FEWEST, power), tokens // 4))


def learn_centroids(tokens: Float[np.ndarray, "T D"], count: int, seed: int = 0) -> Float[np.ndarray, "centroids D"]:
    """Returns the directions that spherical k-means finds, float32, of length 1; the same for the same tokens and seed.

    Means that are as short as they come take cosines to be lower than they are, and keep less of the exact result. A
    centroid that no token is nearest to begins anew at a token that is far from its own.

    Args:
      tokens: float32, in random order; at least as many as there are centroids.
      count: of the centroids.
      seed: of the first centroids' draw.

    Example:
      >>> tokens = np.float32([[0.6, 0.8], [1, 0], [0.8, 0.6], [0, -1]])
      >>> learn_centroids(tokens, 2).round(2)
      array([[ 0.86,  0.5 ],
             [ 0.  , -1.  ]], dtype=float32)
    """
    rng = np.random.default_rng(seed)
    centroids = l2_normalise_on_host(tokens[np.sort(rng.choice(len(tokens), count, replace=False))])
    for _ in range(ROUNDS):
        nearest, cosines = _nearest(tokens, centroids)
        sizes = np.bincount(nearest, minlength=count)
        filled, order = np.flatnonzero(sizes), np.argsort(nearest, kind="stable")
        centroids = np.empty_like(centroids)
        centroids[filled] = np.add.reduceat(tokens[order], (np.cumsum(sizes) - sizes)[filled], axis=0)
        centroids[sizes == 0] = tokens[np.argsort(cosines, kind="stable")[: count - len(filled)]]
        centroids = l2_normalise_on_host(centroids)
    return centroids


def assign(tokens: Float[np.ndarray, "T D"], centroids: Float[np.ndarray, "centroids D"]) -> UInt16[np.ndarray, " T"]:
    """Returns the centroid of the largest inner product with each token; among equal ones the first.

    Example:
      >>> assign(np.float32([[0, 2], [3, 0]]), np.float32([[0.6, 0.8], [1, 0]])).tolist()
      [0, 1]
    """
    return _nearest(tokens, centroids)[0]


def _nearest(
    tokens: Float[np.ndarray, "T D"], centroids: Float[np.ndarray, "centroids D"]
) -> tuple[UInt16[np.ndarray, " T"], Float[np.ndarray, " T"]]:
    """Returns each token's centroid, and their inner product."""
    nearest, products = np.empty(len(tokens), np.uint16), np.empty(len(tokens), np.float32)
    columns = np.ascontiguousarray(centroids.T)
    for some in _runs(len(tokens), max(1, SIMILARITIES // len(centroids))):
        close = tokens[some] @ columns
        best = close.argmax(axis=1)
        nearest[some], products[some] = best, np.take_along_axis(close, best[:, None], 1)[:, 0]
    return nearest, products


def _runs(count: int, most: int) -> Iterator[slice]:
    return (slice(first, min(first + most, count)) for first in range(0, count, most))
