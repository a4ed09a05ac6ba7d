"""MaxSim of padded arrays in plain XLA, tile by tile of documents.

Each query token's running maximum is kept, so that [B, P, N, L] never exists.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from smart_jax.maxsim.arrays import compute_dtype, inner_products, like

TILE_SCORES = 2**18  # similarities at once, 1 MiB in float32: about what stays in a core's cache
LEAST_TOKENS = 128  # document tokens in a tile however many query tokens there are: smaller products run slower


def tiled_forward(
    q: Float[Array, "B P D"],
    d: Float[Array, "N L D"],
    d_mask: Bool[Array, "N L"] | None,
    weight: Float[Array, "B P"],
    with_index: bool,
) -> tuple[Float[Array, "B N"], Int[Array, "N B P"] | None]:
    """Returns scores, and the positions of the maxima: an `argmax.Forward`."""
    B, P, _ = q.shape
    N, L, _ = d.shape
    documents, tokens = _tile_shape(B * P, N, L)

    def step(i: Int[Array, ""], carry: tuple[Array, Array | None]) -> tuple[Array, Array | None]:
        scores, index = carry
        # The last tile starts early enough to be whole: documents that it shares with the one before get equal values.
        first = jnp.minimum(i * documents, N - documents)
        best, where = _best(q, d, d_mask, first, (documents, tokens), with_index)  # [B, P, documents]
        late = jnp.sum(best * weight[:, :, None], axis=1)
        if index is not None and where is not None:
            index = lax.dynamic_update_slice(index, jnp.moveaxis(where, 2, 0), (first, 0, 0))
        return lax.dynamic_update_slice(scores, late, (0, first)), index

    start = jnp.zeros((B, N), weight.dtype), jnp.zeros((N, B, P), jnp.int32) if with_index else None
    result: tuple[Array, Array | None] = lax.fori_loop(0, -(-N // documents), step, like(start, q, d, weight, d_mask))
    return result


def _tile_shape(query_tokens: int, documents: int, length: int) -> tuple[int, int]:
    """Returns how many documents a tile has, and how many tokens of each."""
    tokens = max(LEAST_TOKENS, TILE_SCORES // query_tokens)
    return max(1, min(documents, tokens // length)), min(length, tokens)


def _best(
    q: Float[Array, "B P D"],
    d: Float[Array, "N L D"],
    d_mask: Bool[Array, "N L"] | None,
    first: Int[Array, ""],
    tile: tuple[int, int],
    with_index: bool,
) -> tuple[Float[Array, "B P documents"], Int[Array, "B P documents"] | None]:
    """Returns the largest similarity with the tokens of documents first, first + 1, ..., and its position."""
    L, (documents, tokens) = d.shape[1], tile
    if tokens == L:
        return _best_of_tile(q, d, d_mask, (first, 0), tile, with_index)

    def step(i: Int[Array, ""], carry: tuple[Array, Array | None]) -> tuple[Array, Array | None]:
        at = jnp.minimum(i * tokens, L - tokens)
        best, where = _best_of_tile(q, d, d_mask, (first, at), tile, with_index)
        if where is None or carry[1] is None:
            return jnp.maximum(carry[0], best), None
        better = best > carry[0]  # strictly: the first of equal maxima stays
        return jnp.where(better, best, carry[0]), jnp.where(better, where, carry[1])

    shape = (*q.shape[:2], documents)
    start = jnp.full(shape, -jnp.inf, compute_dtype(q, d)), jnp.zeros(shape, jnp.int32) if with_index else None
    result: tuple[Array, Array | None] = lax.fori_loop(0, -(-L // tokens), step, like(start, q, d, d_mask))
    return result


def _best_of_tile(
    q: Float[Array, "B P D"],
    d: Float[Array, "N L D"],
    d_mask: Bool[Array, "N L"] | None,
    at: tuple[Int[Array, ""], Int[Array, ""] | int],
    tile: tuple[int, int],
    with_index: bool,
) -> tuple[Float[Array, "B P documents"], Int[Array, "B P documents"] | None]:
    """Returns what `_best` does, of one tile whose first document and token are at `at`."""
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
