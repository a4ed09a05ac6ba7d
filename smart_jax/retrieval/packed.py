"""MaxSim of packed, ragged items: blocks scored tile by tile with a running maximum.

Neither [P, T] (every query token with every document token) nor a padded copy of the corpus ever exists. The number of
tiles that are computed follows the tokens that are there.

Block sizes: a tile of document tokens stays in a processor's caches, with the queries and its similarities; products of
[document tokens, query tokens] are folded into [documents, query tokens] row by row, which costs next to nothing
beside them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int

from smart_jax.maxsim import inner_products
from smart_jax.retrieval.blocks import (
    Block,
    Packed,
    Window,
    block_shape,
    cut,
    document_limits,
    plan,
    power_of_two_within,
    query_blocks,
)
from smart_jax.typing import Array

TILE_SCORES = 2**18  # similarities at once, 1 MiB in float32
TILE_VALUES = 2**19  # of a tile's tokens, 2 MiB in float32
TOKENS_IN_TILE = 128, 2048  # least: smaller products run slower; most: more would be computed beyond a block's tokens


def packed_scores(q: Packed, d: Packed, weights: Float[np.ndarray, " 2"]) -> Float[np.ndarray, "Nq Nd"]:
    """weights[0] * pooled + weights[1] * late of every query with every document, float32."""
    result = np.empty((len(q), len(d)), np.float32)
    queries = [(first, last, jax.device_put(block)) for first, last, block in query_blocks(q)]
    platform = jax.default_backend()
    in_place = d.in_place(platform)
    spans = plan(d.offsets, (0, len(d)), document_limits(d, platform), in_place=in_place)
    shape = block_shape(d.offsets, spans)
    for d_first, d_last in spans:
        block = jax.device_put(cut(d, (d_first, d_last), shape, in_place=in_place))
        for first, last, query_block in queries:
            values = np.asarray(_score_block(query_block, block, weights))
            result[first:last, d_first:d_last] = values[: last - first, : d_last - d_first]
    return result


def block_scores(q: Block, d: Block, weights: Float[Array, " 2"]) -> Float[Array, "S Z"]:
    """weights[0] * pooled + weights[1] * late; a part that is None on either side is left out."""
    total = jnp.zeros((len(q.lengths), len(d.lengths)), jnp.float32)
    if q.pooled is not None and d.pooled is not None:
        total += weights[0] * inner_products(q.pooled, d.pooled)
    if q.window is not None and d.window is not None:
        total += weights[1] * late(q.window, q.lengths, d.window, len(d.lengths))
    return total


_score_block = jax.jit(block_scores)


def late(q: Window, q_lengths: Int[Array, " S"], d: Window, documents: int) -> Float[Array, "S Z"]:
    """Mean over each query's tokens of the largest inner product with each document's tokens, float32.

    A document slot (of Z = `documents`) without tokens gets -inf. Holds one tile of similarities and [Z, P] maxima,
    P = query tokens of the window. The queries' window must not skip values.
    """
    tile = tile_tokens(len(d.owner), q.tokens.shape)

    def step(i, best):
        tokens, scales, owner = _tile(d, i * tile, tile, q.tokens.shape[1])
        similarity = inner_products(tokens, q.tokens)
        if scales is not None:
            similarity *= scales[:, None]
        return best.at[owner].max(similarity, mode="drop")  # [tile, P] into [Z, P]

    best = jnp.full((documents, len(q.owner)), -jnp.inf, jnp.float32)
    best = lax.fori_loop(d.used[0] // tile, -(-d.used[1] // tile), step, best)
    if q.scales is not None:
        best *= q.scales  # positive: the maxima stay where they are
    # Tokens of no slot have a number that is out of range, and are left out of the sum as of the maximum.
    total = jax.ops.segment_sum(best.T, q.owner, num_segments=len(q_lengths))
    return total / jnp.maximum(q_lengths, 1)[:, None]


def _tile(window: Window, start: Int[Array, ""], size: int, width: int) -> tuple[Array, Array | None, Array]:
    """Tokens, scales and owners of `size` tokens from `start`."""
    scales, owner = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size), (window.scales, window.owner))
    if window.skip is None:
        return lax.dynamic_slice_in_dim(window.tokens, start, size), scales, owner
    values = lax.dynamic_slice_in_dim(window.tokens, window.skip + start * width, size * width)
    return values.reshape(size, width), scales, owner


def tile_tokens(window: int, queries: tuple[int, int]) -> int:
    """Document tokens in a tile: a power of two that divides the window. `queries` are [P, D]."""
    tokens, width = queries
    least, most = TOKENS_IN_TILE
    fits = min(TILE_SCORES // tokens, TILE_VALUES // width)
    return min(window, most, max(least, power_of_two_within(fits)))
