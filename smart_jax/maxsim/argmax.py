"""The derivative of MaxSim through arg-max indices, whatever computes the two passes.

It needs no similarities: with j*(b, p, n) the position of the maximum,

    d score[b, n] / d q[b, p] = w[b, p] * d[n, j*]          d score[b, n] / d d[n, l] = sum over (b, p) with j* = l of
                                                                                        w[b, p] * q[b, p]

with w = 1 / (number of query tokens) for the mean: one gather and one scatter-add of tokens (`scattered_gradients`), or
two products as large as the forward pass's. Only j* is kept, 4 bytes where the similarities of a document take 4 * L.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from smart_jax.maxsim.arrays import compute_dtype, kept, like
from smart_jax.maxsim.reference import NO_TOKENS

INDEX = "maxsim_index"  # checkpoint_name of the positions: policies may keep them, as a second forward pass costs more
SCATTERED_VALUES = 2**18  # values of the weighted query tokens that the backward pass scatters at once

# (q, d, d_mask, weights of the query tokens [B, P], with_index) -> scores [B, N] and, if asked for, the positions
# [N, B, P] int32 of the maxima. A document without tokens may get any score. A kept token's NaN reaches the scores of
# its item, a dropped one's does not; dropped query tokens are zeros already, of weight 0.
Forward = Callable[[Array, Array, Array | None, Array, bool], tuple[Array, Array | None]]
# (q, d, d_mask, weights, positions, gradient of the scores [B, N]) -> the gradients with respect to q, as wide as the
# scores, and to d, as wide as d.
Gradients = Callable[[Array, Array, Array | None, Array, Array, Array], tuple[Array, Array]]


Cut = Callable[[Array, Sequence[Int[Array, ""] | int], Sequence[int]], Array]  # (array, where it begins, shape)


class Way(NamedTuple):
    """Both passes of an implementation.

    Attributes:
      forward, gradients: of every query with every document.
      pairs: the forward pass of each query with its own documents [B, K, L, D]: scores [B, K] and positions [B, K, P].
        None = that of one query after another.
    """

    forward: Forward
    gradients: Gradients
    pairs: Forward | None = None


@cache
def way_of_pairs(way: Way) -> Way:
    """Returns both passes of each query with its own documents."""
    return Way(way.pairs or each_query(way.forward), partial(_gradients_of_each, way.gradients))


@cache
def each_query(forward: Forward) -> Forward:
    """Returns the forward pass of each query with its own documents, one after another: a query's are work enough."""

    def pairs(
        q: Float[Array, "B P D"],
        d: Float[Array, "B K L D"],
        d_mask: Bool[Array, "B K L"] | None,
        weight: Float[Array, "B P"],
        with_index: bool,
    ) -> tuple[Float[Array, "B K"], Int[Array, "B K P"] | None]:
        def of_one(pair: tuple[Array, Array, Array | None, Array]) -> tuple[Array, Array | None]:
            scores, index = forward(pair[0][None], *pair[1:3], pair[3][None], with_index)
            return scores[0], None if index is None else index[:, 0]

        result: tuple[Array, Array | None] = lax.map(of_one, (q, d, d_mask, weight))
        return result

    return pairs


def _gradients_of_each(gradients: Gradients, *arrays: Array | None) -> tuple[Array, Array]:
    def of_one(pair: tuple[Array, Array, Array | None, Array, Array, Array]) -> tuple[Array, Array]:
        q, d, d_mask, weight, index, g = pair
        dq, dd = gradients(q[None], d, d_mask, weight[None], index[:, None], g[None])
        return dq[0], dd

    result: tuple[Array, Array] = lax.map(of_one, arrays)
    return result


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def argmax_maxsim(
    q: Float[Array, "B P D"],
    d: Float[Array, "*N L D"],
    q_mask: Bool[Array, "B P"] | None,
    d_mask: Bool[Array, "*N L"] | None,
    mean: bool,
    way: Way,
) -> Float[Array, "B _"]:
    """Returns MaxSim of every query with every document; masks of None keep everything. Reverse-mode only.

    With `way_of_pairs(way)` it is that of each query with its own documents: d [B, K, L, D], d_mask [B, K, L], and
    scores [B, K].

    Where several document tokens share the maximum the gradient goes to the first (autodiff of `jnp.max` splits it).
    """
    return _scores(q, d, q_mask, d_mask, mean, way, with_index=False)[0]


def _scores(
    q: Float[Array, "B P D"],
    d: Float[Array, "*N L D"],
    q_mask: Bool[Array, "B P"] | None,
    d_mask: Bool[Array, "*N L"] | None,
    mean: bool,
    way: Way,
    *,
    with_index: bool,
) -> tuple[Float[Array, "B _"], Int[Array, "_ _ P"] | None]:
    weight = _weights(q_mask, q.shape[:2], mean, compute_dtype(q, d))
    scores, index = way.forward(kept(q, q_mask), d, d_mask, weight, with_index)
    if d_mask is not None:
        scores = jnp.where(jnp.any(d_mask, axis=-1), scores, NO_TOKENS)
    return scores, index


# q, d, their masks and the positions of the maxima.
Residuals = tuple[Array, Array, Array | None, Array | None, Array]


def forward_with_residuals(
    q: Float[Array, "B P D"],
    d: Float[Array, "*N L D"],
    q_mask: Bool[Array, "B P"] | None,
    d_mask: Bool[Array, "*N L"] | None,
    mean: bool,
    way: Way,
) -> tuple[Float[Array, "B _"], Residuals]:
    """Returns scores, and what their gradient takes."""
    scores, index = _scores(q, d, q_mask, d_mask, mean, way, with_index=True)
    return scores, (q, d, q_mask, d_mask, checkpoint_name(index, INDEX))


def backward(
    mean: bool, way: Way, residuals: Residuals, g: Float[Array, "B _"]
) -> tuple[Float[Array, "B P D"], Float[Array, "*N L D"], None, None]:
    """Returns the gradients with respect to q and d, and None for the masks."""
    q, d, q_mask, d_mask, index = residuals
    weight = _weights(q_mask, q.shape[:2], mean, compute_dtype(q, d))
    if d_mask is not None:
        g = jnp.where(jnp.any(d_mask, axis=-1), g, 0.0)
    dq, dd = way.gradients(kept(q, q_mask), d, d_mask, weight, index, g.astype(weight.dtype))
    return dq.astype(q.dtype), dd.astype(d.dtype), None, None


# jax.grad outside of jit would run the backward pass as it is written, and compile its loops at every call.
argmax_maxsim.defvjp(forward_with_residuals, jax.jit(backward, static_argnums=(0, 1), inline=True))


def scattered_gradients(
    q: Float[Array, "B P D"],
    d: Float[Array, "N L D"],
    d_mask: Bool[Array, "N L"] | None,
    weight: Float[Array, "B P"],
    index: Int[Array, "N B P"],
    g: Float[Array, "B N"],
    *,
    cut: Cut = lax.dynamic_slice,
) -> tuple[Float[Array, "B P D"], Float[Array, "N L D"]]:
    """Returns the gradients, document by document: `Gradients` by a gather and a scatter-add.

    `cut` takes a document out of all.
    """
    B, P, D = q.shape
    chunk = _chunk(P, B * D)

    def document(
        dq: Float[Array, "B P D"], inputs: tuple[Array, Array | None, Array, Array]
    ) -> tuple[Float[Array, "B P D"], Float[Array, "L D"]]:
        number, keep, where, gn = inputs  # [], [L], [B, P], [B]
        tokens = kept(cut(d, (number, 0, 0), (1, *d.shape[1:]))[0], keep)
        w = gn[:, None] * weight  # [B, P]
        dq += tokens[where].astype(weight.dtype) * w[:, :, None]

        def scatter(i: Int[Array, ""], dd: Float[Array, "L D"]) -> Float[Array, "L D"]:
            qi, wi, at = (lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1) for x in (q, w, where))
            return dd.at[at].add(qi.astype(weight.dtype) * wi[:, :, None])

        start = like(jnp.zeros(tokens.shape, weight.dtype), q, d, g, weight)
        return dq, lax.fori_loop(0, P // chunk, scatter, start).astype(d.dtype)

    start = like(jnp.zeros((B, P, D), weight.dtype), q, d, g, weight)
    gradients: tuple[Array, Array] = lax.scan(document, start, (jnp.arange(len(d)), d_mask, index, g.T))
    return gradients


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
