"""MaxSim of padded arrays by tiles of documents, in plain XLA.

It goes over tiles of documents and keeps each query token's running maximum, so that [B, P, N, L] never exists.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from smart_jax.maxsim.arrays import compute_dtype, inner_products, like
from smart_jax.typing import Array

TILE_SCORES = 2**18  # similarities at once, 1 MiB in float32: about what stays in a core's cache
LEAST_TOKENS = 128  # document tokens in a tile however many query tokens there are: smaller products run slower


def tiled_forward(
    q: Float[Array, "B P D"],
    d: Float[Array, "N L D"],
    d_mask: Bool[Array, "N L"] | None,
    weight: Float[Array, "B P"],
    with_index: bool,
) -> tuple[Float[Array, "B N"], Int[Array, "N B P"] | None]:
    """Scores, and the positions of the maxima: an `argmax.Forward`."""
    B, P, _ = q.shape
    N, L, _ = d.shape
    documents, tokens = _tile_shape(B * P, N, L)

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
    scores, index = lax.fori_loop(0, -(-N // documents), step, like(start, q, d, weight, d_mask))
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
    start = jnp.full(shape, -jnp.inf, compute_dtype(q, d)), jnp.zeros(shape, jnp.int32) if with_index else None
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
