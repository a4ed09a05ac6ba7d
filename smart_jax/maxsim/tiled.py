"""MaxSim of padded arrays by tiles of documents, in plain XLA, with a backward pass through arg-max indices.

The forward pass goes over tiles of documents and keeps each query token's running maximum, so that [B, P, N, L] never
exists. Its derivative needs no similarities: with j*(b, p, n) the position of the maximum,

    d score[b, n] / d q[b, p] = w[b, p] * d[n, j*]          d score[b, n] / d d[n, l] = sum over (b, p) with j* = l of
                                                                                        w[b, p] * q[b, p]

with w = 1 / (number of query tokens) for the mean: one gather and one scatter-add of rows instead of two products as
large as the forward pass's. Only j* is kept, 4 bytes where the similarities of a document take 4 * L.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from smart_jax.maxsim.reference import NO_TOKENS
from smart_jax.typing import Array

TILE_SCORES = 2**18  # similarities at once, 1 MiB in float32: about what stays in a core's cache
LEAST_TOKENS = 128  # document tokens in a tile however many query tokens there are: smaller products run slower
SCATTERED_VALUES = 2**18  # values of the weighted query tokens that the backward pass scatters at once


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def tiled_maxsim(
    q: Float[Array, "B P D"],
    d: Float[Array, "N L D"],
    q_mask: Bool[Array, "B P"] | None,
    d_mask: Bool[Array, "N L"] | None,
    mean: bool,
) -> Float[Array, "B N"]:
    """MaxSim of every query with every document; masks of None keep everything. Reverse-mode only.

    Where several document tokens share the maximum the gradient goes to the first (autodiff of `jnp.max` splits it).
    """
    return _forward(q, d, q_mask, d_mask, mean, with_index=False)[0]


def _tiled_fwd(q, d, q_mask, d_mask, mean):
    score, index = _forward(q, d, q_mask, d_mask, mean, with_index=True)
    return score, (q, d, q_mask, d_mask, index)


def _forward(q, d, q_mask, d_mask, mean: bool, *, with_index: bool) -> tuple[Array, Array | None]:
    B, P, _ = q.shape
    N, L, _ = d.shape
    documents, tokens = _tile_shape(B * P, N, L)
    weight = _weights(q_mask, (B, P), mean, _compute_dtype(q, d))

    def step(i, carry):
        scores, index = carry
        # The last tile starts early enough to be whole: documents that it shares with the one before get equal values.
        first = jnp.minimum(i * documents, N - documents)
        best, where = _best(q, d, d_mask, first, (documents, tokens), with_index)  # [B, P, documents]
        late = jnp.sum(best * weight[:, :, None], axis=1)
        if with_index:
            index = lax.dynamic_update_slice(index, jnp.moveaxis(where, 2, 0), (first, 0, 0))
        return lax.dynamic_update_slice(scores, late, (0, first)), index

    start = jnp.zeros((B, N), weight.dtype), jnp.zeros((N, B, P), jnp.int32) if with_index else None
    scores, index = lax.fori_loop(0, -(-N // documents), step, like(start, q, d, q_mask, d_mask))
    if d_mask is not None:
        scores = jnp.where(jnp.any(d_mask, axis=1), scores, NO_TOKENS)
    return scores, index


def _tile_shape(query_tokens: int, documents: int, length: int) -> tuple[int, int]:
    """Documents, and tokens of each, in a tile."""
    tokens = max(LEAST_TOKENS, TILE_SCORES // query_tokens)
    return max(1, min(documents, tokens // length)), min(length, tokens)


def _best(q, d, d_mask, first: Int[Array, ""], tile: tuple[int, int], with_index: bool):
    """Largest similarity over the tokens of documents first, first + 1, ..., and its position."""
    L, (documents, tokens) = d.shape[1], tile
    if tokens == L:
        return _best_of_tile(q, d, d_mask, (first, 0), tile, with_index)

    def step(i, carry):
        at = jnp.minimum(i * tokens, L - tokens)
        best, where = _best_of_tile(q, d, d_mask, (first, at), tile, with_index)
        if not with_index:
            return jnp.maximum(carry[0], best), None
        better = best > carry[0]  # strictly: the first of equal maxima stays
        return jnp.where(better, best, carry[0]), jnp.where(better, where, carry[1])

    shape = (*q.shape[:2], documents)
    start = jnp.full(shape, -jnp.inf, _compute_dtype(q, d)), jnp.zeros(shape, jnp.int32) if with_index else None
    return lax.fori_loop(0, -(-L // tokens), step, like(start, q, d, d_mask))


def _best_of_tile(q, d, d_mask, at, tile: tuple[int, int], with_index: bool):
    documents, tokens = tile
    block = lax.dynamic_slice(d, (*at, 0), (documents, tokens, d.shape[2]))
    similarity = inner_products(q, block.reshape(documents * tokens, -1))  # [B, P, documents * tokens]
    similarity = similarity.reshape(*q.shape[:2], documents, tokens)
    if d_mask is not None:
        similarity = jnp.where(lax.dynamic_slice(d_mask, at, tile), similarity, -jnp.inf)
    best = jnp.max(similarity, axis=-1)
    if not with_index:
        return best, None
    # Two plain reductions: XLA's arg-max reduces pairs of value and index, which no backend vectorises as well.
    position = lax.broadcasted_iota(jnp.int32, similarity.shape, 3)
    return best, jnp.min(jnp.where(similarity == best[..., None], position, tokens - 1), axis=-1) + at[1]


def inner_products(q: Float[Array, "*S D"], d: Float[Array, "T D"]) -> Float[Array, "*S T"]:
    """Inner products accumulated in float32 (float64 if an operand is), without rounding the operands."""
    dtype = _compute_dtype(q, d)
    if q.dtype != d.dtype:  # equal half-precision types stay: their products are exact in float32
        q, d = q.astype(dtype), d.astype(dtype)
    return jnp.einsum("...d,td->...t", q, d, precision=lax.Precision.HIGHEST, preferred_element_type=dtype)


def _tiled_bwd(mean: bool, residuals, g: Float[Array, "B N"]):
    q, d, q_mask, d_mask, index = residuals
    B, P, D = q.shape
    L = d.shape[1]
    dtype = _compute_dtype(q, d)
    weight = _weights(q_mask, (B, P), mean, dtype)
    if d_mask is not None:
        g = jnp.where(jnp.any(d_mask, axis=1), g, 0.0)
    chunk = _chunk(P, B * D)

    def document(dq, inputs):
        tokens, where, gn = inputs  # [L, D], [B, P], [B]
        w = gn[:, None] * weight  # [B, P]
        dq += tokens[where].astype(dtype) * w[:, :, None]

        def scatter(i, dd):
            qi, wi, at = (lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1) for x in (q, w, where))
            return dd.at[at].add(qi.astype(dtype) * wi[:, :, None])

        dd = lax.fori_loop(0, P // chunk, scatter, like(jnp.zeros((L, D), dtype), q, d, g, q_mask))
        return dq, dd.astype(d.dtype)

    start = like(jnp.zeros((B, P, D), dtype), q, d, g, q_mask)
    dq, dd = lax.scan(document, start, (d, index, g.astype(dtype).T))
    return dq.astype(q.dtype), dd, None, None


tiled_maxsim.defvjp(_tiled_fwd, _tiled_bwd)


def _chunk(length: int, values: int) -> int:
    """Largest divisor of the query length whose query tokens, `values` values each, are scattered at once."""
    return max((c for c in range(1, length + 1) if length % c == 0 and c * values <= SCATTERED_VALUES), default=1)


def _weights(q_mask: Bool[Array, "B P"] | None, shape: tuple[int, int], mean: bool, dtype) -> Float[Array, "B P"]:
    """Weight of each query token in the score; a query without tokens scores 0."""
    if q_mask is None:
        return jnp.full(shape, 1 / shape[1] if mean else 1.0, dtype)
    weight = q_mask.astype(dtype)
    return weight / jnp.maximum(jnp.sum(weight, axis=1, keepdims=True), 1) if mean else weight


def _compute_dtype(q, d) -> jnp.dtype:
    return jnp.promote_types(jnp.promote_types(q.dtype, d.dtype), jnp.float32)


def like(tree, *arrays):
    """The tree, varying over the manual mesh axes that any of the arrays vary over: what shard_map asks of a carry."""
    axes = frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in arrays if x is not None))
    return jax.tree.map(lambda x: _vary(x, axes), tree)


def _vary(x, axes: frozenset):
    missing = axes - jax.typeof(x).manual_axis_type.varying
    return lax.pcast(x, tuple(missing), to="varying") if missing else x
