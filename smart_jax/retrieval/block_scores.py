"""Scores of blocks on a device: tiles of document tokens, with a running maximum for each document.

Neither [P, T] (every query token with every document token) nor a padded copy of the corpus ever exists. The number of
tiles that are computed follows the number of tokens that there are.

Block sizes: a tile of document tokens stays in a processor's caches, with the queries and its similarities; products of
[document tokens, query tokens] are folded into [documents, query tokens] one document token at a time, which costs next
to nothing beside them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Num

from smart_jax.maxsim import inner_products
from smart_jax.retrieval.block import Block, Window
from smart_jax.retrieval.block_plan import power_of_two_within
from smart_jax.runtime import bounded
from smart_jax.typing import HostOrDevice

TILE_SCORES = 2**18  # similarities at once, 1 MiB in float32
TILE_VALUES = 2**19  # of a tile's tokens, 2 MiB in float32
TOKENS_IN_TILE = 512, 2048  # least: smaller products run slower; most: more would be computed beyond a block's tokens


def block_scores(q: Block, d: Block, weights: Float[Array, " 2"]) -> Float[Array, "queries documents"]:
    """Returns weights[0] * pooled + weights[1] * late; a part that either block does not hold is left out."""
    total = jnp.zeros((len(q.lengths), len(d.lengths)), jnp.float32)
    if q.pooled is not None and d.pooled is not None:
        total += weights[0] * inner_products(q.pooled, d.pooled)
    if q.window is not None and d.window is not None:
        total += weights[1] * late_scores(q.window, q.lengths, d.window, len(d.lengths))
    return total


score_block = bounded(jax.jit(block_scores))


def late_scores(
    q: Window, q_lengths: Int[HostOrDevice, " queries"], d: Window, documents: int
) -> Float[Array, "queries documents"]:
    """Returns the mean over a query's tokens of the largest inner product with a document's tokens, float32.

    Holds one tile of similarities and [documents, P] maxima, P = query tokens of the window.

    Args:
      q: window of the queries, as a matrix.
      q_lengths: number of tokens of each query.
      d: window of the documents.
      documents: number of slots for documents; one without tokens gets -inf.
    """
    tile = tile_tokens(len(d.owner), q.tokens.shape)

    def step(i: Int[Array, ""], best: Float[Array, "documents P"]) -> Float[Array, "documents P"]:
        tokens, scales, owner = _tile(d, i * tile, tile, q.tokens.shape[1])
        similarity = inner_products(tokens, q.tokens)
        if scales is not None:
            similarity *= scales[:, None]
        return best.at[owner].max(similarity, mode="drop")  # [tile, P] into [documents, P]

    best = jnp.full((documents, len(q.owner)), -jnp.inf, jnp.float32)
    best = lax.fori_loop(d.used[0] // tile, -(-d.used[1] // tile), step, best)
    return late_means(best, q, q_lengths)


def late_means(
    best: Float[Array, "documents P"], q: Window, q_lengths: Int[HostOrDevice, " queries"]
) -> Float[Array, "queries documents"]:
    """Returns the means over each query's tokens of their maxima over each document's tokens."""
    if q.scales is not None:
        best *= q.scales[None]  # positive: the maxima stay where they are
    # Tokens of no slot have a number that is out of range, and are left out of the sum as of the maximum.
    total = jax.ops.segment_sum(best.T, q.owner, num_segments=len(q_lengths))
    return total / jnp.maximum(q_lengths, 1)[:, None]


def _tile(
    window: Window, start: Int[Array, ""], size: int, width: int
) -> tuple[Num[Array, "tile D"], Float[Array, " tile"] | None, Int[Array, " tile"]]:
    """Returns tokens, scales and owners of `size` tokens from `start`."""
    scales, owner = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, start, size), (window.scales, window.owner))
    if window.skip is None:
        return lax.dynamic_slice_in_dim(window.tokens, start, size), scales, owner
    values = lax.dynamic_slice_in_dim(window.tokens, window.skip + start * width, size * width)
    return values.reshape(size, width), scales, owner


def tile_tokens(window: int, queries: tuple[int, ...]) -> int:
    """Returns the number of document tokens in a tile: a power of two that divides the window's.

    Args:
      window: number of tokens of the documents' window.
      queries: shape [P, D] of the queries' window.
    """
    tokens, width = queries
    least, most = TOKENS_IN_TILE
    fits = min(TILE_SCORES // tokens, TILE_VALUES // width)
    return min(window, most, max(least, power_of_two_within(fits)))
