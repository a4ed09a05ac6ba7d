"""Reductions of vectors before they are scored: those of `smart_jax.reductions` that run on a device."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from smart_jax.vectors import l2_normalise


def truncate(x: Float[Array, "*S D"], width: int | None) -> Float[Array, "*S W"]:
    """Cuts vectors to their first components and normalises them again, as `smart_jax.reductions.truncate` does.

    Matryoshka training compares such vectors (Kusupati et al. 2022, arXiv:2205.13147).

    Args:
      x: vectors along the last axis.
      width: components that stay; None = all, as they are.

    Returns:
      Unit vectors of that width, or `x`.

    Example:
      >>> print(truncate(jnp.array([[0.6, 0.0, 0.8]]), 2))
      [[1. 0.]]
    """
    return x if width is None else l2_normalise(x[..., :width])


def pool_tokens(
    tokens: Float[Array, "N L D"], mask: Bool[Array, "N L"], factor: float
) -> tuple[Float[Array, "N runs D"], Bool[Array, "N runs"]]:
    """Replaces runs of kept tokens that follow one another by their L2-normalised means.

    The result is that of `smart_jax.reductions.pool_tokens(embeddings, factor, "sequential")`: n kept tokens leave
    ceil(n / factor) means, of runs whose lengths differ by at most one (Clavie, Chaffin and Adams 2024,
    arXiv:2409.14683). Their other method, hierarchical clustering, does not run on a device. The gradient of a mean
    goes to its members; the choice of members has none.

    Args:
      tokens: token vectors, float32; those that are not kept may hold anything.
      mask: True for kept tokens, which may stand anywhere.
      factor: at least 1.

    Returns:
      The means, and True for those that exist: an item with fewer tokens has fewer means.

    Example:
      >>> tokens = jnp.array([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 9.0]]])
      >>> means, mask = pool_tokens(tokens, jnp.array([[True, True, True, False]]), factor=2)
      >>> print(means[0], mask[0])
      [[1. 0.]
       [0. 1.]] [ True  True]
    """
    if factor == 1:
        return tokens, mask
    groups, kept = _runs(mask, factor)
    count = kept.shape[1]
    sums = jax.vmap(lambda x, group: jax.ops.segment_sum(x, group, count + 1)[:count])(tokens, groups)
    return l2_normalise(sums), kept


def pool_mask(mask: Bool[Array, "N L"], factor: float) -> Bool[Array, "N runs"]:
    """Computes the mask of `pool_tokens` alone.

    Args:
      mask: True for kept tokens.
      factor: at least 1.

    Returns:
      True for the means that exist.

    Example:
      >>> print(pool_mask(jnp.array([[True, True, True, False]]), factor=3))
      [[ True False]]
    """
    return mask if factor == 1 else _runs(mask, factor)[1]


def _runs(mask: Bool[Array, "N L"], factor: float) -> tuple[Int[Array, "N L"], Bool[Array, "N runs"]]:
    """Returns the run of each token, the number of runs for one that is not kept; and which of the runs exist."""
    length = mask.shape[1]
    counts = np.array([math.ceil(n / factor) for n in range(length + 1)], np.int32)  # in float64, as on the host
    kept = mask.sum(axis=1, dtype=jnp.int32)[:, None]
    runs = jnp.asarray(counts)[kept]  # [N, 1]
    nth = jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1
    groups = jnp.where(mask, nth * runs // jnp.maximum(kept, 1), counts[-1])
    return groups, jnp.arange(counts[-1])[None] < runs
