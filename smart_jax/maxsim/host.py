"""MaxSim of packed tokens on the host, in NumPy: for calls that are over before a compiler would be.

As in the block scores of devices, tiles of document tokens stay in a processor's caches with their similarities, and
are folded into a running maximum for each document: [query tokens, document tokens] never exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Num

from smart_jax.maxsim.reference import NO_TOKENS

QUERY_TOKENS = 2048  # scored together
TILE_SCORES = 2**18  # similarities at once, 1 MiB in float32
TILE_VALUES = 2**19  # of a tile's tokens, 2 MiB in float32
TOKENS_IN_TILE = 128, 2048  # least: smaller products run slower; most: beyond it nothing is gained
MAXIMA = 2**20  # at once, 4 MiB in float32
# From so many query tokens on, a maximum by rows, one call for each document, takes less time than one by columns.
BY_ROWS = 96
PAIR_SCORES = 2**16  # similarities of a query with its own documents, from which on each query has a product of its own


class Packed(NamedTuple):
    """Tokens of items that follow one another, at least one of each item.

    Attributes:
      tokens: finite or not, float32, float16, bfloat16, or int8 with scales.
      offsets: where each item's tokens begin, and where the last item's end.
      scales: of int8 tokens, else None.
      rows: which rows of `tokens` are meant, where not all are: what offsets count.

    Example:
      >>> Packed(np.float32([[1, 0], [0, 1], [0.6, 0.8]]), np.array([0, 1, 3])).some(1, 2).offsets
      array([1, 3])
    """

    tokens: Num[np.ndarray, "T D"]
    offsets: Int[np.ndarray, " bounds"]
    scales: Float[np.ndarray, " T"] | None = None
    rows: Int[np.ndarray, " kept"] | None = None

    def some(self, first: int, last: int) -> Packed:
        """Returns the items from `first` until `last`."""
        return self._replace(offsets=self.offsets[first : last + 1])

    def window(self, start: int, stop: int, room: Float[np.ndarray, "most D"]) -> Float[np.ndarray, "window D"]:
        """Returns the tokens from `start` until `stop` in float32, not scaled; in `room` if they are stored in less."""
        tokens = self.tokens[start:stop] if self.rows is None else self.tokens[self.rows[start:stop]]
        return tokens if tokens.dtype == np.float32 else _float32(tokens, room[: stop - start])


def packed_scores(q: Packed, d: Packed, *, mean: bool = True) -> Float[np.ndarray, "Nq Nd"]:
    """Returns the mean, or the sum, over a query's tokens of the largest inner product with a document's tokens.

    Products and sums are float32. Where a token is NaN, the scores of its query or its document are.

    Example:
      >>> q = Packed(np.float32([[1, 0], [0, 1]]), np.array([0, 2]))
      >>> d = Packed(np.float16([[0.5, 0.25], [-1, 0], [0, 1]]), np.array([0, 2, 3]))
      >>> packed_scores(q, d)
      array([[0.375, 0.5  ]], dtype=float32)
    """
    scores = np.empty((len(q.offsets) - 1, len(d.offsets) - 1), np.float32)
    for first, last in _query_runs(q.offsets):
        queries = q.some(first, last)
        begin, end = int(queries.offsets[0]), int(queries.offsets[-1])
        tokens = queries.window(begin, end, np.empty((end - begin, q.tokens.shape[1]), np.float32))
        step = max(1, MAXIMA // len(tokens))
        for at in range(0, scores.shape[1], step):
            best = _maxima(tokens, d.some(at, min(at + step, scores.shape[1])))
            if q.scales is not None:
                best *= q.scales[begin:end, None]  # positive: the maxima stay where they are
            scores[first:last, at : at + step] = _sums(best, queries.offsets - begin)
    if mean:
        scores /= np.diff(q.offsets).astype(np.float32)[:, None]
    return scores


def host_inner_products(q: Num[np.ndarray, "Nq H"], d: Num[np.ndarray, "Nd H"]) -> Float[np.ndarray, "Nq Nd"]:
    """Returns the inner products of all rows in float32.

    Example:
      >>> host_inner_products(np.float32([[0.5, 1]]), np.float16([[2, 0], [1, 1]]))
      array([[1. , 1.5]], dtype=float32)
    """
    q, products = _float32(q), np.empty((len(q), len(d)), np.float32)
    step = len(d) if d.dtype == np.float32 else max(1, TILE_VALUES // d.shape[1])
    for at in range(0, len(d), max(1, step)):
        products[:, at : at + step] = q @ _float32(d[at : at + step]).T
    return products


def host_maxsim(
    q: Float[np.ndarray, "B P D"],
    d: Float[np.ndarray, "N L D"],
    q_mask: Bool[np.ndarray, "B P"] | None,
    d_mask: Bool[np.ndarray, "N L"] | None,
    *,
    mean: bool,
) -> Float[np.ndarray, "B N"]:
    """Returns what `smart_jax.maxsim` does with padded arrays, float32."""
    queries, asked = _packed(q, q_mask)
    documents, scored = _packed(d, d_mask)
    scores = np.zeros((len(q), len(d)), np.float32)
    scores[:, ~scored] = NO_TOKENS
    if asked.any() and scored.any():
        scores[np.ix_(asked, scored)] = packed_scores(queries, documents, mean=mean)
    if not asked.all():
        scores[np.ix_(~asked, _have_nan(d, d_mask))] = np.nan
    return scores


def _have_nan(d: Float[np.ndarray, "*N L D"], mask: Bool[np.ndarray, "*N L"] | None) -> Bool[np.ndarray, "*N"]:
    """Returns which items have NaN in a kept token: no query's maxima tell, where a query has no token."""
    tokens = np.isnan(d).any(axis=-1)
    found: Bool[np.ndarray, "*N"] = (tokens if mask is None else tokens & mask).any(axis=-1)
    return found


def host_maxsim_pairs(
    q: Float[np.ndarray, "B P D"],
    d: Float[np.ndarray, "B K L D"],
    q_mask: Bool[np.ndarray, "B P"] | None,
    d_mask: Bool[np.ndarray, "B K L"] | None,
    *,
    mean: bool,
) -> Float[np.ndarray, "B K"]:
    """Returns what `smart_jax.maxsim_pairs` does, float32."""
    B, P = q.shape[:2]
    _, K, L, _ = d.shape
    each = P * K * L
    scores = np.empty((B, K), np.float32)
    step = 1 if each >= PAIR_SCORES else max(1, TILE_SCORES // each)
    for at in range(0, B, step):
        some = slice(at, at + step)
        masks = [None if mask is None else mask[some] for mask in (q_mask, d_mask)]
        if each >= PAIR_SCORES:
            scores[some] = host_maxsim(q[some], d[at], masks[0], None if d_mask is None else d_mask[at], mean=mean)
        else:
            scores[some] = _pairs(_float32(q[some]), _float32(d[some]), *masks, mean=mean)
    return scores


def _pairs(
    q: Float[np.ndarray, "B P D"],
    d: Float[np.ndarray, "B K L D"],
    q_mask: Bool[np.ndarray, "B P"] | None,
    d_mask: Bool[np.ndarray, "B K L"] | None,
    *,
    mean: bool,
) -> Float[np.ndarray, "B K"]:
    """Returns scores of a few queries, by one call for all their products."""
    (B, P, D), (_, K, L, _) = q.shape, d.shape
    similarity = np.matmul(q, d.reshape(B, K * L, D).transpose(0, 2, 1)).reshape(B, P, K, L)
    if d_mask is not None:
        np.copyto(similarity, -np.inf, where=~d_mask[:, None])
    best = similarity.max(axis=3)  # [B, P, K]
    empty = np.zeros((B, K), bool) if d_mask is None else np.logical_not(d_mask.any(axis=2))
    np.copyto(best, 0, where=empty[:, None])
    if q_mask is not None:
        np.copyto(best, 0, where=~q_mask[:, :, None])
    scores: Float[np.ndarray, "B K"] = best.sum(axis=1)
    if mean:
        scores /= P if q_mask is None else np.maximum(q_mask.sum(axis=1), 1).astype(np.float32)[:, None]
    scores[empty] = NO_TOKENS
    if q_mask is not None and not q_mask.any(axis=1).all():
        without = np.logical_not(q_mask.any(axis=1, keepdims=True))
        scores[without & _have_nan(d, d_mask)] = np.nan
    return scores


def _packed(
    x: Float[np.ndarray, "N L D"], mask: Bool[np.ndarray, "N L"] | None
) -> tuple[Packed, Bool[np.ndarray, " N"]]:
    """Returns the kept tokens of the items that have any, and which items these are."""
    tokens = x.reshape(-1, x.shape[2])
    if mask is None:
        return Packed(tokens, np.arange(len(x) + 1) * x.shape[1]), np.ones(len(x), bool)
    lengths = mask.sum(axis=1)
    some = lengths > 0
    return Packed(tokens, np.concatenate([[0], np.cumsum(lengths[some])]), rows=np.flatnonzero(mask)), some


def _query_runs(offsets: Int[np.ndarray, " bounds"]) -> Iterator[tuple[int, int]]:
    """Yields consecutive queries of at most `QUERY_TOKENS`, or one that has more."""
    first, count = 0, len(offsets) - 1
    while first < count:
        fits = int(np.searchsorted(offsets, offsets[first] + QUERY_TOKENS, side="right")) - 1
        last = max(first + 1, min(fits, count))
        yield first, last
        first = last


def _maxima(q: Float[np.ndarray, "Q D"], d: Packed) -> Float[np.ndarray, "Q N"]:
    """Returns each document's largest inner product with each query token."""
    width = q.shape[1]
    begin, end = int(d.offsets[0]), int(d.offsets[-1])
    least, most = TOKENS_IN_TILE
    tile = max(1, min(most, max(least, min(TILE_SCORES // len(q), TILE_VALUES // width)), end - begin))
    room = np.empty((0 if d.tokens.dtype == np.float32 else tile, width), np.float32)
    products = np.empty(tile * len(q), np.float32)
    rows = len(q) >= BY_ROWS
    best = np.full((len(d.offsets) - 1, len(q))[:: 1 if rows else -1], -np.inf, np.float32)
    for start in range(begin, end, tile):
        stop = min(start + tile, end)
        first = int(np.searchsorted(d.offsets, start, side="right")) - 1
        last = int(np.searchsorted(d.offsets, stop, side="left"))
        bounds = np.clip(d.offsets[first : last + 1], start, stop) - start
        tokens, out = d.window(start, stop, room), products[: (stop - start) * len(q)]
        scales = None if d.scales is None else d.scales[start:stop]
        if rows:
            _fold_rows(np.matmul(tokens, q.T, out=out.reshape(-1, len(q))), scales, bounds.tolist(), best[first:last])
        else:
            similarity = np.matmul(q, tokens.T, out=out.reshape(len(q), -1))
            if scales is not None:
                similarity *= scales
            found = best[:, first:last]
            np.maximum(found, np.maximum.reduceat(similarity, bounds[:-1], axis=1), out=found)
    return best.T if rows else best


def _fold_rows(
    similarity: Float[np.ndarray, "tile Q"],
    scales: Float[np.ndarray, " tile"] | None,
    bounds: list[int],
    best: Float[np.ndarray, "documents Q"],
) -> None:
    """Puts the maxima of a tile's documents, which begin at the bounds, into `best`, where those are larger."""
    if scales is not None:
        similarity *= scales[:, None]
    for i in range(len(best)):
        found = np.maximum.reduce(similarity[bounds[i] : bounds[i + 1]], axis=0)
        np.maximum(best[i], found, out=best[i])


def _sums(best: Float[np.ndarray, "Q N"], offsets: Int[np.ndarray, " bounds"]) -> Float[np.ndarray, "queries N"]:
    """Returns the sums of each query's rows."""
    length, rest = divmod(len(best), len(offsets) - 1)
    if rest == 0 and (np.diff(offsets) == length).all():
        equal: Float[np.ndarray, "queries N"] = best.reshape(-1, length, best.shape[1]).sum(axis=1)
        return equal
    ragged: Float[np.ndarray, "queries N"] = np.add.reduceat(best, offsets[:-1], axis=0)
    return ragged


def _float32(
    x: Num[np.ndarray, "*shape"], out: Float[np.ndarray, "*shape"] | None = None
) -> Float[np.ndarray, "*shape"]:
    """Returns the values in float32, exactly.

    NumPy converts float16 one by one: their bits are put where float32 has them instead, and the exponent, which
    counts from another number, is set right by a product.
    """
    if x.dtype == np.float32:
        return x
    out = np.empty(x.shape, np.float32) if out is None else out
    if x.dtype != np.float16:
        np.copyto(out, x)
        return out
    half = x.view(np.int16)
    if (half & 0x7FFF).max(initial=0) >= 0x7C00:  # infinity or NaN
        np.copyto(out, x)
        return out
    bits = out.view(np.int32)
    np.copyto(bits, half)  # the sign goes to all higher bits
    bits <<= 13
    bits &= np.int32(-0x7000_2000)  # 0x8FFFE000: the sign, exponent and fraction
    out *= np.float32(2**112)
    return out
