"""MaxSim of packed, ragged items: blocks of static shape cut out of [T, D], scored tile by tile with a running maximum.

Neither [P, T] (every query token with every document token) nor a padded copy of the corpus ever exists. A block is a
window of the packed array, usually a view; its size comes from a few powers of two, so that compilations are few, while
the number of tiles that are computed follows the tokens that are there.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Float, Int

from smart_jax.maxsim.argmax import inner_products
from smart_jax.typing import Array

TILE_SCORES = 2**20  # similarities at once: 4 MiB in float32
MOST_TOKENS_IN_TILE = 1024
LEAST_TOKENS_IN_TILE = 128
LEAST_TOKENS = 16  # smallest window: a short query's


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Window:
    """M consecutive packed tokens."""

    tokens: Float[Array, "M D"]
    scales: Float[Array, " M"] | None  # of int8 tokens
    owner: Int[Array, " M"]  # slot of the token's item; S = not of this block
    used: Int[Array, " 2"]  # first and last + 1 of the block's own tokens


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Block:
    """Consecutive items in arrays of static shape, with S slots for items."""

    first: Int[Array, ""]  # number of the item in slot 0
    pooled: Float[Array, "S H"] | None  # None = a part that is not scored; unused slots are 0
    window: Window | None
    lengths: Int[Array, " S"]  # tokens of each item; 0 = unused slot


def late(q: Window, q_lengths: Int[Array, " S"], d: Window, documents: int) -> Float[Array, "S Z"]:
    """Mean over each query's tokens of the largest inner product with each document's tokens, float32.

    A document slot (of Z = `documents`) without tokens gets -inf. Holds one tile of similarities and [Z, P] maxima,
    P = query tokens of the window.
    """
    tile = tile_tokens(len(d.tokens), len(q.tokens))

    def step(i, best):
        tokens, scales, owner = jax.tree.map(
            lambda x: lax.dynamic_slice_in_dim(x, i * tile, tile), (d.tokens, d.scales, d.owner)
        )
        similarity = inner_products(tokens, q.tokens)
        if scales is not None:
            similarity *= scales[:, None]
        return best.at[owner].max(similarity, mode="drop")  # [tile, P] into [Z, P]

    best = jnp.full((documents, len(q.tokens)), -jnp.inf, jnp.float32)
    best = lax.fori_loop(d.used[0] // tile, -(-d.used[1] // tile), step, best)
    if q.scales is not None:
        best *= q.scales  # positive: the maxima stay where they are
    # Tokens of no slot have a number that is out of range, and are left out of the sum as of the maximum.
    total = jax.ops.segment_sum(best.T, q.owner, num_segments=len(q_lengths))
    return total / jnp.maximum(q_lengths, 1)[:, None]


def tile_tokens(window: int, query_tokens: int) -> int:
    """Document tokens in a tile: a power of two that divides the window."""
    return min(window, MOST_TOKENS_IN_TILE, max(LEAST_TOKENS_IN_TILE, TILE_SCORES // query_tokens))


def blocks(
    pooled: Float[np.ndarray, "N H"] | None,
    tokens: Float[np.ndarray, "T D"] | None,
    offsets: Int[np.ndarray, " N+1"],
    scales: Float[np.ndarray, " T"] | None = None,
    *,
    max_tokens: int,
    max_items: int,
) -> Iterator[tuple[int, int, Block]]:
    """Cuts items into blocks of one shape: (first item, last item + 1, block).

    Args:
      pooled, tokens, offsets, scales: as in `Embeddings`; None leaves a part out.
      max_tokens: of a window, a power of two; grows to hold the longest item.
      max_items: of a block, a power of two.
    """
    spans = plan(offsets, 0, len(offsets) - 1, max_tokens=max_tokens, max_items=max_items)
    shape = block_shape(offsets, spans)
    for first, last in spans:
        yield first, last, cut(pooled, tokens, offsets, scales, (first, last), shape)


def plan(
    offsets: Int[np.ndarray, " N+1"], start: int, stop: int, *, max_tokens: int, max_items: int
) -> list[tuple[int, int]]:
    """The items from `start` to `stop` in runs (first, last + 1), as long as both limits allow."""
    if start < stop:
        max_tokens = max(max_tokens, power_of_two(int(np.diff(offsets[start : stop + 1]).max())))
    spans, first = [], start
    while first < stop:
        last = int(np.searchsorted(offsets, offsets[first] + max_tokens, side="right")) - 1
        last = min(last, first + max_items, stop)
        spans.append((first, last))
        first = last
    return spans


def block_shape(offsets: Int[np.ndarray, " N+1"], spans: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Tokens of a window and slots of a block that hold any of the runs."""
    tokens = max((int(offsets[last] - offsets[first]) for first, last in spans), default=1)
    slots = max((last - first for first, last in spans), default=1)
    return max(LEAST_TOKENS, power_of_two(tokens)), power_of_two(slots)


def cut(
    pooled: Float[np.ndarray, "N H"] | None,
    tokens: Float[np.ndarray, "T D"] | None,
    offsets: Int[np.ndarray, " N+1"],
    scales: Float[np.ndarray, " T"] | None,
    span: tuple[int, int],
    shape: tuple[int, int],
) -> Block:
    """The block of one run of items; an empty run gives a block without items."""
    (first, last), (size, slots) = span, shape
    bounds = offsets[first : last + 1]
    return Block(
        first=np.int32(first),
        pooled=None if pooled is None else _padded(pooled[first:last], slots),
        window=None if tokens is None else _window(tokens, scales, bounds, size, slots),
        lengths=_padded(np.diff(bounds).astype(np.int32), slots),
    )


def _window(tokens: np.ndarray, scales: np.ndarray | None, offsets: np.ndarray, size: int, slots: int) -> Window:
    """A window of `size` tokens that holds the items between the offsets; at the end of the array it starts earlier."""
    first, last = int(offsets[0]), int(offsets[-1])
    start = max(0, min(first, len(tokens) - size))
    owner = np.full(size, slots, np.int32)
    owner[first - start : last - start] = np.repeat(np.arange(len(offsets) - 1, dtype=np.int32), np.diff(offsets))
    used = np.asarray([first - start, last - start], np.int32)
    of_window = slice(start, start + size)
    scales = None if scales is None else _padded(scales[of_window], size)
    return Window(_padded(tokens[of_window], size), scales, owner, used)


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    if len(rows) == size:
        return rows
    out = np.zeros((size, *rows.shape[1:]), rows.dtype)
    out[: len(rows)] = rows
    return out


def power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()
