"""What the loss does to vectors before they are scored: `smart_jax.reductions` of arrays on a device."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from train.objective.losses import unit


def truncate(x: Float[Array, "*S D"], width: int | None) -> Float[Array, "*S W"]:
    """The first `width` components, L2-normalised again, as `reductions.truncate`; None = all, as they are.

    What Matryoshka training cuts to (Kusupati et al. 2022, arXiv:2205.13147).
    """
    return x if width is None else unit(x[..., :width])


def pool_tokens(
    tokens: Float[Array, "N L D"], mask: Bool[Array, "N L"], factor: float
) -> tuple[Float[Array, "N G D"], Bool[Array, "N G"]]:
    """The L2-normalised means of runs of kept tokens that follow one another, and which of them there are.

    The same as `reductions.pool_tokens(embeddings, factor, "sequential")` of the kept tokens: of n of them ceil(n /
    factor) means are left, of runs of equal lengths or one apart (Clavie, Chaffin and Adams 2024, arXiv:2409.14683).
    Their other method, hierarchical clustering, does not run on a device. The gradient of a mean goes to its members;
    which these are has none.

    Args:
      tokens: float32; those that are not kept may hold anything.
      mask: kept tokens, anywhere in the row.
      factor: at least 1.
    """
    if factor == 1:
        return tokens, mask
    groups, kept = _runs(mask, factor)
    count = kept.shape[1]
    sums = jax.vmap(lambda x, group: jax.ops.segment_sum(x, group, count + 1)[:count])(tokens, groups)
    return unit(sums), kept


def pool_mask(mask: Bool[Array, "N L"], factor: float) -> Bool[Array, "N G"]:
    """Which means there are, as from `pool_tokens`."""
    return mask if factor == 1 else _runs(mask, factor)[1]


def _runs(mask: Bool[Array, "N L"], factor: float) -> tuple[Int[Array, "N L"], Bool[Array, "N G"]]:
    """Each token's run, G for a token that is not kept; and whether there is a run 0 .. G - 1."""
    length = mask.shape[1]
    counts = np.array([math.ceil(n / factor) for n in range(length + 1)], np.int32)  # in float64, as on the host
    kept = mask.sum(axis=1, dtype=jnp.int32)[:, None]
    runs = jnp.asarray(counts)[kept]  # [N, 1]
    nth = jnp.cumsum(mask, axis=1, dtype=jnp.int32) - 1
    groups = jnp.where(mask, nth * runs // jnp.maximum(kept, 1), counts[-1])
    return groups, jnp.arange(counts[-1])[None] < runs
