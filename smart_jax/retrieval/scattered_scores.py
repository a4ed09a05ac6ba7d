"""Late scores of some documents of a corpus that is in the host's memory, or mapped, where a CPU reads it in place.

A compiled call gets a view of the corpus, whose size is a power of two of tokens, and where in it the documents are: so
it copies nothing, and another choice of documents compiles nothing new.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int, Num

from smart_jax.maxsim import inner_products
from smart_jax.retrieval.block import ALIGNMENT, Window, values_in_place
from smart_jax.retrieval.block_plan import power_of_two, power_of_two_within
from smart_jax.retrieval.block_scores import TILE_VALUES, late_means
from smart_jax.retrieval.embeddings import Embeddings
from smart_jax.runtime import bounded
from smart_jax.typing import HostOrDevice, register_arrays

TILES = range(128, 257, 16)  # numbers of document tokens that are multiplied at once
MOST_WASTE = 1.2  # times the documents' tokens are computed at most; else they are packed, which costs a copy
NEARLY = 1.05  # times the least that any tile computes: larger tiles are faster
VIEW_VALUES = 2**30  # of a view, whose values are counted in int32
LEAST_DOCUMENTS = 16  # of a call's slots


@register_arrays
@dataclasses.dataclass(frozen=True)
class Scattered:
    """Documents somewhere in a view of packed tokens.

    Attributes:
      values: of the view's tokens, and some before and behind them, so that the first is aligned.
      skip: how many of the values come before the first token's.
      scales: of int8 tokens, with as many in front as `scales_skip` says; else None.
      scales_skip: see `scales`.
      spans: each document's first token in the view, and its last + 1; equal in unused slots.
      count: number of slots that are used.
    """

    values: Num[HostOrDevice, " values"]
    skip: Int[HostOrDevice, ""]
    scales: Float[HostOrDevice, " scales"] | None
    scales_skip: Int[HostOrDevice, ""] | None
    spans: Int[HostOrDevice, "2 slots"]
    count: Int[HostOrDevice, ""]


def best_tile(lengths: Int[np.ndarray, " M"], width: int) -> int | None:
    """Returns the number of tokens of a tile that suits documents of these lengths best; None = none does well."""
    tiles = np.asarray([tile for tile in TILES[::-1] if tile == TILES[0] or tile * width <= TILE_VALUES])
    computed = (-(-lengths // tiles[:, None]) * tiles[:, None]).sum(axis=1)
    good = np.flatnonzero(computed <= min(NEARLY * computed.min(), MOST_WASTE * lengths.sum()))
    return int(tiles[good[0]]) if good.size else None


def views(d: Embeddings, ids: Int[np.ndarray, " M"], tile: int) -> Iterator[tuple[Int[np.ndarray, " _"], Scattered]]:
    """Yields views of the corpus, and the places among `ids` of the documents that lie in each.

    A document at either end of the corpus may lie in none.
    """
    edge = _edge(d)
    size = power_of_two_within(max(1, min(len(d.tokens) - 2 * edge, VIEW_VALUES // d.tokens.shape[1])))
    starts, stops, last = d.offsets[ids], d.offsets[ids + 1], len(d.tokens) - size - edge
    left = np.flatnonzero((starts >= edge) & (stops <= last + size) & (stops - starts <= size) & (size >= tile))
    left = left[np.argsort(starts[left], kind="stable")]
    while left.size:
        at = min(int(starts[left[0]]), last)
        inside = stops[left] <= at + size
        places, left = left[inside], left[~inside]
        yield places, _scattered(d, at, size, np.stack([starts[places], stops[places]]) - at)


def _edge(d: Embeddings) -> int:
    """Returns how many tokens at either end may be out of reach, since a view starts where memory is aligned."""
    row: int = d.tokens.shape[1] * d.tokens.itemsize
    return -(-ALIGNMENT // (row if d.scales is None else min(row, d.scales.itemsize)))


def _scattered(d: Embeddings, at: int, size: int, spans: Int[np.ndarray, "2 M"]) -> Scattered:
    """Returns the view of `size` tokens from `at` on, with documents there."""
    _, values, skip = values_in_place(d.tokens, at, at + size, size)
    scales, scales_skip = None, None
    if d.scales is not None:
        _, scales, scales_skip = values_in_place(d.scales[:, None], at, at + size, size)
    padded = np.zeros((2, max(LEAST_DOCUMENTS, power_of_two(spans.shape[1]))), np.int32)
    padded[:, : spans.shape[1]] = spans
    return Scattered(values, skip, scales, scales_skip, padded, np.asarray(spans.shape[1], np.int32))


@bounded
@partial(jax.jit, static_argnames="tile")
def scattered_scores(
    q: Window, q_lengths: Int[HostOrDevice, " queries"], d: Scattered, tile: int
) -> Float[Array, "queries slots"]:
    """Returns the late score of each query with the document of each slot; -inf in unused slots.

    Args:
      q: window of the queries, as a matrix.
      q_lengths: number of tokens of each query.
      d: documents.
      tile: number of document tokens that are multiplied at once.
    """
    width = q.tokens.shape[1]
    tokens = (d.values.shape[0] - ALIGNMENT // d.values.dtype.itemsize) // width

    def part(at: Int[Array, ""]) -> Float[Array, "tile P"]:
        part = lax.dynamic_slice_in_dim(d.values, d.skip + at * width, tile * width).reshape(tile, width)
        similarity = inner_products(part, q.tokens)
        if d.scales is not None and d.scales_skip is not None:
            similarity *= lax.dynamic_slice_in_dim(d.scales, d.scales_skip + at, tile)[:, None]
        return similarity

    def document(i: Int[Array, ""], best: Float[Array, "slots P"]) -> Float[Array, "slots P"]:
        first, last = d.spans[0, i], d.spans[1, i]

        def step(number: Int[Array, ""], largest: Float[Array, " P"]) -> Float[Array, " P"]:
            at = jnp.clip(first + number * tile, 0, tokens - tile)
            position = at + jnp.arange(tile)
            own = (position >= first) & (position < last)
            return jnp.maximum(largest, jnp.where(own[:, None], part(at), -jnp.inf).max(axis=0))

        nothing = jnp.full(best.shape[1], -jnp.inf, jnp.float32)
        return best.at[i].set(lax.fori_loop(0, -(-(last - first) // tile), step, nothing))

    best = jnp.full((d.spans.shape[1], len(q.owner)), -jnp.inf, jnp.float32)
    return late_means(lax.fori_loop(0, d.count, document, best), q, q_lengths)
