"""The derivative of MaxSim through arg-max indices, whatever computes the forward pass.

It needs no similarities: with j*(b, p, n) the position of the maximum,

    d score[b, n] / d q[b, p] = w[b, p] * d[n, j*]          d score[b, n] / d d[n, l] = sum over (b, p) with j* = l of
                                                                                        w[b, p] * q[b, p]

with w = 1 / (number of query tokens) for the mean: one gather and one scatter-add of tokens instead of two products as
large as the forward pass's. Only j* is kept, 4 bytes where the similarities of a document take 4 * L.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from smart_jax.maxsim.arrays import compute_dtype, like
from smart_jax.maxsim.reference import NO_TOKENS

INDEX = "maxsim_index"  # checkpoint_name of the positions: policies may keep them, as a second forward pass costs more
SCATTERED_VALUES = 2**18  # values of the weighted query tokens that the backward pass scatters at once

# (q, d, d_mask, weights of the query tokens [B, P], with_index) -> scores [B, N] and, if asked for, the positions
# [N, B, P] int32 of the maxima. A document without tokens may get any score.
Forward = Callable[[Array, Array, Array | None, Array, bool], tuple[Array, Array | None]]


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def argmax_maxsim(
    q: Float[Array, "B P D"],
    d: Float[Array, "N L D"],
    q_mask: Bool[Array, "B P"] | None,
    d_mask: Bool[Array, "N L"] | None,
    mean: bool,
    forward: Forward,
) -> Float[Array, "B N"]:
    """Returns MaxSim of every query with every document; masks of None keep everything. Reverse-mode only.

    Where several document tokens share the maximum the gradient goes to the first (autodiff of `jnp.max` splits it).
    """
    return _scores(q, d, q_mask, d_mask, mean, forward, with_index=False)[0]


def _scores(
    q: Float[Array, "B P D"],
    d: Float[Array, "N L D"],
    q_mask: Bool[Array, "B P"] | None,
    d_mask: Bool[Array, "N L"] | None,
    mean: bool,
    forward: Forward,
    *,
    with_index: bool,
) -> tuple[Float[Array, "B N"], Int[Array, "N B P"] | None]:
    weight = _weights(q_mask, q.shape[:2], mean, compute_dtype(q, d))
    q = _kept(q, q_mask)
    scores, index = forward(q, d, d_mask, weight, with_index)
    # XLA's maximum on a CPU skips NaN: look for it in the tokens, which are far fewer than the similarities.
    scores = jnp.where(_has_nan(q, None)[:, None] | _has_nan(d, d_mask)[None], jnp.nan, scores)
    if d_mask is not None:
        scores = jnp.where(jnp.any(d_mask, axis=1), scores, NO_TOKENS)
    return scores, index


def _kept(tokens: Float[Array, "*N L D"], mask: Bool[Array, "*N L"] | None) -> Float[Array, "*N L D"]:
    """Returns the tokens with zeros for dropped ones: a weight of 0 does not silence a NaN."""
    return tokens if mask is None else jnp.where(mask[..., None], tokens, 0)


def _has_nan(tokens: Float[Array, "N L D"], mask: Bool[Array, "N L"] | None) -> Bool[Array, " N"]:
    """Returns whether a kept token of the item holds NaN (or infinities of both signs, whose products may)."""
    nan = jnp.isnan(jnp.sum(tokens, axis=-1, dtype=jnp.promote_types(tokens.dtype, jnp.float32)))
    return jnp.any(nan if mask is None else nan & mask, axis=1)


# q, d, their masks and the positions of the maxima.
Residuals = tuple[Array, Array, Array | None, Array | None, Array]


def _fwd(
    q: Float[Array, "B P D"],
    d: Float[Array, "N L D"],
    q_mask: Bool[Array, "B P"] | None,
    d_mask: Bool[Array, "N L"] | None,
    mean: bool,
    forward: Forward,
) -> tuple[Float[Array, "B N"], Residuals]:
    scores, index = _scores(q, d, q_mask, d_mask, mean, forward, with_index=True)
    return scores, (q, d, q_mask, d_mask, checkpoint_name(index, INDEX))


def _bwd(
    mean: bool, forward: Forward, residuals: Residuals, g: Float[Array, "B N"]
) -> tuple[Float[Array, "B P D"], Float[Array, "N L D"], None, None]:
    q, d, q_mask, d_mask, index = residuals
    q = _kept(q, q_mask)
    B, P, D = q.shape
    L = d.shape[1]
    dtype = compute_dtype(q, d)
    weight = _weights(q_mask, (B, P), mean, dtype)
    if d_mask is not None:
        g = jnp.where(jnp.any(d_mask, axis=1), g, 0.0)
    chunk = _chunk(P, B * D)

    def document(
        dq: Float[Array, "B P D"], inputs: tuple[Array, Array | None, Array, Array]
    ) -> tuple[Float[Array, "B P D"], Float[Array, "L D"]]:
        tokens, keep, where, gn = inputs  # [L, D], [L], [B, P], [B]
        tokens = _kept(tokens, keep)
        w = gn[:, None] * weight  # [B, P]
        dq += tokens[where].astype(dtype) * w[:, :, None]

        def scatter(i: Int[Array, ""], dd: Float[Array, "L D"]) -> Float[Array, "L D"]:
            qi, wi, at = (lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1) for x in (q, w, where))
            return dd.at[at].add(qi.astype(dtype) * wi[:, :, None])

        dd = lax.fori_loop(0, P // chunk, scatter, like(jnp.zeros((L, D), dtype), q, d, g, q_mask))
        return dq, dd.astype(d.dtype)

    start = like(jnp.zeros((B, P, D), dtype), q, d, g, q_mask)
    dq, dd = lax.scan(document, start, (d, d_mask, index, g.astype(dtype).T))
    return dq.astype(q.dtype), dd, None, None


argmax_maxsim.defvjp(_fwd, _bwd)


def _chunk(length: int, values: int) -> int:
    """Returns the largest divisor of the query length whose tokens, of `values` values, are scattered at once."""
    return max((c for c in range(1, length + 1) if length % c == 0 and c * values <= SCATTERED_VALUES), default=1)


def _weights(
    q_mask: Bool[Array, "B P"] | None, shape: tuple[int, ...], mean: bool, dtype: DTypeLike
) -> Float[Array, "B P"]:
    """Returns the weight of each query token in the score; a query without tokens scores 0."""
    if q_mask is None:
        return jnp.full(shape, 1 / shape[1] if mean else 1.0, dtype)
    weight = q_mask.astype(dtype)
    return weight / jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1) if mean else weight
