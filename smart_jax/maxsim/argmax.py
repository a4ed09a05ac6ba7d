"""The derivative of MaxSim through arg-max indices, whatever computes the forward pass.

It needs no similarities: with j*(b, p, n) the position of the maximum,

    d score[b, n] / d q[b, p] = w[b, p] * d[n, j*]          d score[b, n] / d d[n, l] = sum over (b, p) with j* = l of
                                                                                        w[b, p] * q[b, p]

with w = 1 / (number of query tokens) for the mean: one gather and one scatter-add of rows instead of two products as
large as the forward pass's. Only j* is kept, 4 bytes where the similarities of a document take 4 * L.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Bool, Float

from smart_jax.maxsim.arrays import compute_dtype, like
from smart_jax.maxsim.reference import NO_TOKENS
from smart_jax.typing import Array

INDEX = "maxsim_index"  # checkpoint_name of the positions: policies may keep them, as a second forward pass costs more
SCATTERED_VALUES = 2**18  # values of the weighted query tokens that the backward pass scatters at once

# (q, d, d_mask, weights of the query tokens [B, P], with_index) -> scores [B, N] and, if asked for, the positions
# [N, B, P] int32 of the maxima. A document without tokens may get any score.
Forward = Callable[..., tuple[Array, Array | None]]


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def argmax_maxsim(
    q: Float[Array, "B P D"],
    d: Float[Array, "N L D"],
    q_mask: Bool[Array, "B P"] | None,
    d_mask: Bool[Array, "N L"] | None,
    mean: bool,
    forward: Forward,
) -> Float[Array, "B N"]:
    """MaxSim of every query with every document; masks of None keep everything. Reverse-mode only.

    Where several document tokens share the maximum the gradient goes to the first (autodiff of `jnp.max` splits it).
    """
    return _scores(q, d, q_mask, d_mask, mean, forward, with_index=False)[0]


def _scores(q, d, q_mask, d_mask, mean: bool, forward: Forward, *, with_index: bool) -> tuple[Array, Array | None]:
    weight = _weights(q_mask, q.shape[:2], mean, compute_dtype(q, d))
    q = _kept(q, q_mask)
    scores, index = forward(q, d, d_mask, weight, with_index)
    # XLA's maximum on a CPU skips NaN: look for it in the tokens, which are far fewer than the similarities.
    scores = jnp.where(_has_nan(q, None)[:, None] | _has_nan(d, d_mask), jnp.nan, scores)
    if d_mask is not None:
        scores = jnp.where(jnp.any(d_mask, axis=1), scores, NO_TOKENS)
    return scores, index


def _kept(tokens: Float[Array, "*N L D"], mask: Bool[Array, "*N L"] | None) -> Float[Array, "*N L D"]:
    """Zeros for dropped tokens: a weight of 0 does not silence a NaN."""
    return tokens if mask is None else jnp.where(mask[..., None], tokens, 0)


def _has_nan(tokens: Float[Array, "N L D"], mask: Bool[Array, "N L"] | None) -> Bool[Array, " N"]:
    """Whether a kept token of the item holds NaN (or infinities of both signs, whose products may)."""
    found = jnp.isnan(jnp.sum(tokens, axis=-1, dtype=jnp.promote_types(tokens.dtype, jnp.float32)))
    return jnp.any(found if mask is None else found & mask, axis=1)


def _fwd(q, d, q_mask, d_mask, mean, forward):
    scores, index = _scores(q, d, q_mask, d_mask, mean, forward, with_index=True)
    return scores, (q, d, q_mask, d_mask, checkpoint_name(index, INDEX))


def _bwd(mean: bool, forward: Forward, residuals, g: Float[Array, "B N"]):
    q, d, q_mask, d_mask, index = residuals
    q = _kept(q, q_mask)
    B, P, D = q.shape
    L = d.shape[1]
    dtype = compute_dtype(q, d)
    weight = _weights(q_mask, (B, P), mean, dtype)
    if d_mask is not None:
        g = jnp.where(jnp.any(d_mask, axis=1), g, 0.0)
    chunk = _chunk(P, B * D)

    def document(dq, inputs):
        tokens, keep, where, gn = inputs  # [L, D], [L], [B, P], [B]
        tokens = _kept(tokens, keep)
        w = gn[:, None] * weight  # [B, P]
        dq += tokens[where].astype(dtype) * w[:, :, None]

        def scatter(i, dd):
            qi, wi, at = (lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1) for x in (q, w, where))
            return dd.at[at].add(qi.astype(dtype) * wi[:, :, None])

        dd = lax.fori_loop(0, P // chunk, scatter, like(jnp.zeros((L, D), dtype), q, d, g, q_mask))
        return dq, dd.astype(d.dtype)

    start = like(jnp.zeros((B, P, D), dtype), q, d, g, q_mask)
    dq, dd = lax.scan(document, start, (d, d_mask, index, g.astype(dtype).T))
    return dq.astype(q.dtype), dd, None, None


argmax_maxsim.defvjp(_fwd, _bwd)


def _chunk(length: int, values: int) -> int:
    """Largest divisor of the query length whose query tokens, `values` values each, are scattered at once."""
    return max((c for c in range(1, length + 1) if length % c == 0 and c * values <= SCATTERED_VALUES), default=1)


def _weights(q_mask: Bool[Array, "B P"] | None, shape: tuple[int, int], mean: bool, dtype) -> Float[Array, "B P"]:
    """Weight of each query token in the score; a query without tokens scores 0."""
    if q_mask is None:
        return jnp.full(shape, 1 / shape[1] if mean else 1.0, dtype)
    weight = q_mask.astype(dtype)
    return weight / jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1) if mean else weight
