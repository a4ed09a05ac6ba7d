"""MaxSim of padded arrays in plain XLA, tile by tile of documents.

Each query token's running maximum is kept, so that of many query tokens [B, P, N, L] never exists. A CPU's tiles stay
in a core's cache. A GPU's fill all of it, as each is two launches: a product, and the maxima of the similarities that
it has written.

A tile is a copy of its tokens, since XLA multiplies no part of an array in place, and where a token meets few query
tokens the copy takes longer than its products. On a CPU such work is one product of whole arrays: the similarities are
then small beside the documents.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from smart_jax.maxsim.argmax import Cut, Way, each_query, scattered_gradients
from smart_jax.maxsim.arrays import compute_dtype, cut_bits, inner_products, largest, like, pad, round_up

TILE_SCORES = 2**18  # similarities at once, 1 MiB in float32: about what stays in a core's cache
LEAST_TOKENS = 128  # document tokens in a tile however many query tokens there are: smaller products run slower
NARROW = 512  # up to this width a GPU's product takes so little time that its similarities must stay in the L2 cache
FEW = 4  # times the query tokens are at most the width: similarities then take a quarter of the documents' memory
TILE_VALUES = 2**21  # of a tile's tokens that few query tokens meet
COLUMNS = 8  # of a product are computed together
BY_COLUMNS = 16, 128  # query tokens whose maxima are sooner found where documents are the rows of the product
GPU_SCORES = 2**23, 2**25  # similarities at once: of narrow tokens, of others
GPU_SHARE = 2**7  # one part in so many of a GPU's memory is the most that the similarities of a tile take

Best = tuple[Array, Array | None]  # the largest similarities, and their positions if asked for


class _Tile(NamedTuple):
    documents: int
    tokens: int  # of each
    largest: Callable[[Array, bool], Best]  # of similarities [B, P, documents, tokens]
    cut: Cut = lax.dynamic_slice


def tiled_forward(
    q: Float[Array, "B P D"],
    d: Float[Array, "N L D"],
    d_mask: Bool[Array, "N L"] | None,
    weight: Float[Array, "B P"],
    with_index: bool,
) -> tuple[Float[Array, "B N"], Int[Array, "N B P"] | None]:
    """Returns scores, and the positions of the maxima: an `argmax.Forward`, for a CPU."""
    B, P, D = q.shape
    if not _are_few(B * P, D):
        tile = _Tile(*_tile_shape(B * P, d.shape, TILE_SCORES), _two_reductions, cut_bits)
        scores, index = _by_tiles(q, d, d_mask, weight, with_index, tile)
        # XLA's maximum on a CPU skips NaN: look for it in the tokens, which are far fewer than the similarities.
        nan = _has_nan(q, None)[:, None] | _has_nan(d, d_mask)[None]
        return jnp.where(nan, jnp.nan, scores), index
    best, index = _few(q.reshape(1, B * P, D), d[None], None if d_mask is None else d_mask[None], with_index)
    scores = _weighted(jnp.moveaxis(best.reshape(-1, B, P), 1, 0), weight)
    return scores, None if index is None else index.reshape(-1, B, P)


def tiled_pairs(
    q: Float[Array, "B P D"],
    d: Float[Array, "B K L D"],
    d_mask: Bool[Array, "B K L"] | None,
    weight: Float[Array, "B P"],
    with_index: bool,
) -> tuple[Float[Array, "B K"], Int[Array, "B K P"] | None]:
    """Returns what `tiled_forward` does of each query and its own documents."""
    if not _are_few(q.shape[1], q.shape[2]):
        return each_query(tiled_forward)(q, d, d_mask, weight, with_index)
    best, index = _few(q, d, d_mask, with_index)
    return _weighted(best, weight), index


def chunked_forward(
    q: Float[Array, "B P D"],
    d: Float[Array, "N L D"],
    d_mask: Bool[Array, "N L"] | None,
    weight: Float[Array, "B P"],
    with_index: bool,
) -> tuple[Float[Array, "B N"], Int[Array, "N B P"] | None]:
    """Returns scores, and the positions of the maxima: an `argmax.Forward`, by tiles for a GPU."""
    shape = _tile_shape(q.shape[0] * q.shape[1], d.shape, _gpu_scores(d.shape[2]))
    tile = _Tile(*shape, lambda similarity, with_index: largest(similarity, 3, with_index))
    return _by_tiles(q, d, d_mask, weight, with_index, tile)


TILED = Way(tiled_forward, partial(scattered_gradients, cut=cut_bits), tiled_pairs)
CHUNKED = Way(chunked_forward, scattered_gradients)


def _are_few(query_tokens: int, width: int) -> bool:
    return FEW * query_tokens <= width


def _few(
    q: Float[Array, "B P D"], d: Float[Array, "B N L D"], d_mask: Bool[Array, "B N L"] | None, with_index: bool
) -> tuple[Float[Array, "B N P"], Int[Array, "B N P"] | None]:
    """Returns the largest similarities of few query tokens, NaN where one is, and their positions.

    Tokens of 16 bits, which a CPU multiplies as float32, are converted tile by tile.
    """
    if d.dtype.itemsize >= 4:
        return _few_at_once(q, d, d_mask, with_index)
    B, N, L, D = d.shape
    count = -(-N // max(1, min(N, TILE_VALUES // (L * D))))
    size = -(-N // count)

    def step(i: Int[Array, ""], found: Best) -> Best:
        at = i // count, jnp.minimum(i % count * size, N - size)
        mask = None if d_mask is None else lax.dynamic_slice(d_mask, (*at, 0), (1, size, L))
        one = lax.dynamic_slice_in_dim(q, at[0], 1)
        new = _few_at_once(one, cut_bits(d, (*at, 0, 0), (1, size, L, D)), mask, with_index)
        updated: Best = jax.tree.map(lambda old, x: lax.dynamic_update_slice(old, x, (*at, 0)), found, new)
        return updated

    shape = B, N, q.shape[1]
    start = jnp.zeros(shape, compute_dtype(q, d)), jnp.zeros(shape, jnp.int32) if with_index else None
    result: Best = lax.fori_loop(0, B * count, step, like(start, q, d, d_mask))
    return result


def _few_at_once(
    q: Float[Array, "B P D"], d: Float[Array, "B N L D"], d_mask: Bool[Array, "B N L"] | None, with_index: bool
) -> tuple[Float[Array, "B N P"], Int[Array, "B N P"] | None]:
    """Returns what `_few` does, in one product."""
    (B, N, L, D), P = d.shape, q.shape[1]
    dtype, columns = compute_dtype(q, d), BY_COLUMNS[0] <= B * P < BY_COLUMNS[1]
    rows, q = d.reshape(B, N * L, D).astype(dtype), q.astype(dtype)
    if columns:
        q = pad(q, (B, round_up(P, COLUMNS), D))
    over, shape = (2, (B, N, L, -1)) if columns else (3, (B, P, N, L))
    product = partial(lax.dot_general, precision=lax.Precision.HIGHEST, preferred_element_type=dtype)
    similarity = product(*((rows, q) if columns else (q, rows)), (((2,), (2,)), ((0,), (0,)))).reshape(shape)
    nan = jnp.isnan(similarity)
    if d_mask is not None:
        kept = d_mask[..., None] if columns else d_mask[:, None]
        nan, similarity = nan & kept, jnp.where(kept, similarity, -jnp.inf)
    # XLA's maximum on a CPU skips NaN, and it sums numbers sooner than it looks for what is true.
    best = jnp.where(jnp.sum(nan.astype(dtype), axis=over) > 0, jnp.nan, jnp.max(similarity, axis=over))
    index = None
    if with_index:
        position = lax.broadcasted_iota(jnp.int32, similarity.shape, over)
        index = jnp.min(jnp.where(similarity == jnp.expand_dims(best, over), position, L - 1), axis=over)
    if columns:
        return best[..., :P], None if index is None else index[..., :P]
    return jnp.moveaxis(best, 1, 2), None if index is None else jnp.moveaxis(index, 1, 2)


def _weighted(best: Float[Array, "B N P"], weight: Float[Array, "B P"]) -> Float[Array, "B N"]:
    """Returns the sums over query tokens; a dropped one, of weight 0, brings no NaN of an infinite token."""
    weight = weight[:, None]
    scores = jnp.sum(jnp.where(weight > 0, best * weight, 0), axis=2)
    return jnp.where(jnp.all(jnp.isnan(best), axis=2), jnp.nan, scores)  # of the document: no query token matters


def _by_tiles(
    q: Float[Array, "B P D"],
    d: Float[Array, "N L D"],
    d_mask: Bool[Array, "N L"] | None,
    weight: Float[Array, "B P"],
    with_index: bool,
    tile: _Tile,
) -> tuple[Float[Array, "B N"], Int[Array, "N B P"] | None]:
    (B, P, _), N = q.shape, len(d)

    def step(i: Int[Array, ""], carry: Best) -> Best:
        scores, index = carry
        # The last tile starts early enough to be whole: documents that it shares with the one before get equal values.
        first = jnp.minimum(i * tile.documents, N - tile.documents)
        best, where = _best(q, d, d_mask, first, tile, with_index)  # [B, P, documents]
        late = jnp.sum(best * weight[:, :, None], axis=1)
        if index is not None and where is not None:
            index = lax.dynamic_update_slice(index, jnp.moveaxis(where, 2, 0), (first, 0, 0))
        return lax.dynamic_update_slice(scores, late, (0, first)), index

    start = jnp.zeros((B, N), weight.dtype), jnp.zeros((N, B, P), jnp.int32) if with_index else None
    result: Best = lax.fori_loop(0, -(-N // tile.documents), step, like(start, q, d, weight, d_mask))
    return result


def _tile_shape(query_tokens: int, documents: tuple[int, ...], scores: int) -> tuple[int, int]:
    """Returns how many documents a tile of at most so many similarities has, and how many tokens of each.

    All tiles are alike, and the last ones begin early enough to be whole: of nearly equal parts little is done twice.
    """
    tokens, (count, length, _) = max(LEAST_TOKENS, scores // query_tokens), documents
    each = max(1, min(count, tokens // length))
    return -(-count // -(-count // each)), -(-length // -(-length // tokens))


def _gpu_scores(width: int) -> int:
    """Returns how many similarities a GPU holds at once: those of the default device, where it is one."""
    stats = jax.devices()[0].memory_stats() if jax.default_backend() == "gpu" else None
    scores = GPU_SCORES[width > NARROW]
    limit = (stats or {}).get("bytes_limit")
    return scores if limit is None else min(scores, limit // (4 * GPU_SHARE))


def _best(
    q: Float[Array, "B P D"],
    d: Float[Array, "N L D"],
    d_mask: Bool[Array, "N L"] | None,
    first: Int[Array, ""],
    tile: _Tile,
    with_index: bool,
) -> tuple[Float[Array, "B P documents"], Int[Array, "B P documents"] | None]:
    """Returns the largest similarity with the tokens of documents first, first + 1, ..., and its position."""
    L = d.shape[1]
    if tile.tokens == L:
        return _best_of_tile(q, d, d_mask, (first, 0), tile, with_index)

    def step(i: Int[Array, ""], carry: Best) -> Best:
        at = jnp.minimum(i * tile.tokens, L - tile.tokens)
        best, where = _best_of_tile(q, d, d_mask, (first, at), tile, with_index)
        # Strictly greater: the first of equal maxima stays. NaN, where `largest` lets it through, stays as well.
        better = (best > carry[0]) | (best != best)
        if where is None or carry[1] is None:
            return jnp.where(better, best, carry[0]), None
        return jnp.where(better, best, carry[0]), jnp.where(better, where, carry[1])

    shape = (*q.shape[:2], tile.documents)
    start = jnp.full(shape, -jnp.inf, compute_dtype(q, d)), jnp.zeros(shape, jnp.int32) if with_index else None
    result: Best = lax.fori_loop(0, -(-L // tile.tokens), step, like(start, q, d, d_mask))
    return result


def _best_of_tile(
    q: Float[Array, "B P D"],
    d: Float[Array, "N L D"],
    d_mask: Bool[Array, "N L"] | None,
    at: tuple[Int[Array, ""], Int[Array, ""] | int],
    tile: _Tile,
    with_index: bool,
) -> tuple[Float[Array, "B P documents"], Int[Array, "B P documents"] | None]:
    """Returns what `_best` does, of one tile whose first document and token are at `at`."""
    shape = tile.documents, tile.tokens
    block = tile.cut(d, (*at, 0), (*shape, d.shape[2]))
    similarity = inner_products(q, block.reshape(tile.documents * tile.tokens, -1))  # [B, P, documents * tokens]
    similarity = similarity.reshape(*q.shape[:2], *shape)
    if d_mask is not None:
        similarity = jnp.where(lax.dynamic_slice(d_mask, at, shape), similarity, -jnp.inf)
    best, where = tile.largest(similarity, with_index)
    return best, None if where is None else where + at[1]


def _two_reductions(
    similarity: Float[Array, "B P documents tokens"], with_index: bool
) -> tuple[Float[Array, "B P documents"], Int[Array, "B P documents"] | None]:
    """Returns the largest similarities and their first positions: a CPU does not vectorise reductions of pairs."""
    best = jnp.max(similarity, axis=-1)
    if not with_index:
        return best, None
    position = lax.broadcasted_iota(jnp.int32, similarity.shape, 3)
    last = similarity.shape[3] - 1
    return best, jnp.min(jnp.where(similarity == best[..., None], position, last), axis=-1)


def _has_nan(tokens: Float[Array, "N L D"], mask: Bool[Array, "N L"] | None) -> Bool[Array, " N"]:
    """Returns whether a kept token of the item holds NaN (or infinities of both signs, whose products may)."""
    nan = jnp.isnan(jnp.sum(tokens, axis=-1, dtype=jnp.promote_types(tokens.dtype, jnp.float32)))
    return jnp.any(nan if mask is None else nan & mask, axis=1)
