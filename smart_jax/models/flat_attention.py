"""Attention for TPU (Mosaic) that reads the projections of queries, keys and values as their products leave them.

Queries, keys and values are columns of arrays [B, L, W]. A block of them is some positions by 128 lanes, which are one
head of 128 or several narrower ones, so that neither heads nor halves of them ever become an axis: where they do, XLA
moves every array to another layout, which takes longer than the products (an estimate of its compiler). Norms and
rotary turns happen inside, where a block lies in vector memory anyway; so does the bound of how far a query sees.

The grid goes over rows, heads of keys, blocks of the queries that share them, and blocks of keys, the last innermost.
The first block of queries prepares all keys of its head and leaves them in vector memory for the others. The running
maximum and the sum of the softmax, like its result, stand in the lanes of their head. Blocks of queries and keys that
have no segment in common, or are too far apart, are skipped: the frames of a video cost no more than their own.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from smart_jax.models.heads import Heads, block_size

BLOCKS = (256, 384, 512, 640, 768)  # positions of a block; more would not fit in vector memory beside the keys
NOTHING = -1  # segment of keys that only fill up a block: it equals no other

Ref = Any  # an array in memory that a kernel reads and writes: Pallas has no public type for it


def flat_attention(
    projected: tuple[Float[Array, "B L _"], ...],
    scales: tuple[Float[Array, " C"], Float[Array, " C"]] | None,
    turns: tuple[Float[Array, "B L half"], Float[Array, "B L half"]],
    segment: Int[Array, "B L"],
    heads: Heads,
) -> Float[Array, "B L W"]:
    """Returns attention within segments of normalised and turned queries and keys, its heads side by side.

    Args:
      projected: queries, keys and values, each with its heads side by side; or one array of all three side by side.
      scales: of the norms of queries and keys; None = there are no norms.
      turns: cosines and sines of the rotary angles.
      segment: number of the segment of each position, not negative.
      heads: that the projections have; `takes` says which may be.
    """
    (batch, length, _), lanes, dtype = projected[0].shape, heads.lanes, projected[0].dtype
    block = block_size(length, BLOCKS)
    blocks, across = -(-length // block), heads.queries * heads.width // lanes
    groups = across // heads.shared
    firsts = (0, across, across + groups) if len(projected) == 1 else (0, 0, 0)
    q, k, v = projected * 3 if len(projected) == 1 else projected
    packed = jnp.tile(jnp.concatenate(turns, -1), (1, 1, lanes // heads.width))  # [B, L, lanes]
    filled = jnp.pad(segment, ((0, 0), (0, blocks * block - length)), constant_values=NOTHING)
    of_blocks = jnp.where(filled < 0, segment[:, -1:], filled).reshape(batch, blocks, block)
    norms = () if scales is None else tuple(jnp.tile(x, lanes // heads.width)[None] for x in scales)
    in_specs = _blocks_read(heads, block, blocks, firsts)
    seen = length if heads.band is None else min(length, 2 * heads.band + block)
    pairs = batch * length * seen * heads.queries // (1 + heads.causal)
    out: Array = pl.pallas_call(
        partial(_kernel, heads=heads, length=length, blocks=blocks, normed=bool(norms)),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, groups, heads.shared * blocks, blocks),
            in_specs=[*in_specs, *[pl.BlockSpec((1, lanes), lambda *_: (0, 0)) for _ in norms]],
            out_specs=_of_queries(heads, block, blocks, first=0),
            scratch_shapes=[
                pltpu.VMEM((block, lanes), dtype),
                pltpu.VMEM((blocks, block, lanes), dtype),
                *[pltpu.VMEM((block, lanes), jnp.float32) for _ in range(3)],
            ],
        ),
        out_shape=jax.ShapeDtypeStruct((batch, length, heads.queries * heads.width), dtype),
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary", "arbitrary"),
            vmem_limit_bytes=2**25 + blocks * block * lanes * dtype.itemsize,
        ),
        cost_estimate=pl.CostEstimate(
            flops=4 * pairs * heads.width,
            transcendentals=pairs,
            bytes_accessed=4 * batch * length * heads.queries * heads.width * dtype.itemsize,
        ),
        name="flat_attention",
    )(of_blocks.min(-1), of_blocks.max(-1), q, k, v, packed, packed, segment[..., None], filled[:, None], *norms)
    return out


# Indices of a step: row b, head of keys g, block i of the queries that share it, block j of keys.


def _of_queries(heads: Heads, block: int, blocks: int, *, first: int) -> pl.BlockSpec:
    """Returns which block of queries, or of what becomes of them, a step has; `first` = that of the first head."""
    return pl.BlockSpec(
        (None, block, heads.lanes),
        lambda b, g, i, j, *_: (b, lax.rem(i, blocks), first + g * heads.shared + lax.div(i, blocks)),
    )


def _blocks_read(heads: Heads, block: int, blocks: int, firsts: tuple[int, ...]) -> list[pl.BlockSpec]:
    """Returns which blocks a step has of queries, keys, values, turns and segments of queries and of keys."""
    (first_q, first_k, first_v), whole = firsts, (None, block, heads.lanes)

    def prepared(j: Array, i: Array) -> Array:  # fetched only while keys are prepared
        return jnp.where(i == 0, j, blocks - 1)

    def attended(j: Array, i: Array) -> Array:  # none is fetched while blocks are skipped
        if heads.band is not None:
            reach = _reach(heads.band, block)
            return jnp.clip(j, jnp.maximum(lax.rem(i, blocks) - reach, 0), lax.rem(i, blocks) + reach)
        return jnp.minimum(j, lax.rem(i, blocks)) if heads.causal else j

    return [
        _of_queries(heads, block, blocks, first=first_q),
        pl.BlockSpec(whole, lambda b, g, i, j, *_: (b, prepared(j, i), first_k + g)),
        pl.BlockSpec(whole, lambda b, g, i, j, *_: (b, attended(j, i), first_v + g)),
        pl.BlockSpec(whole, lambda b, g, i, j, *_: (b, lax.rem(i, blocks), 0)),
        pl.BlockSpec(whole, lambda b, g, i, j, *_: (b, prepared(j, i), 0)),
        pl.BlockSpec((None, block, 1), lambda b, g, i, j, *_: (b, lax.rem(i, blocks), 0)),
        pl.BlockSpec((None, 1, block), lambda b, g, i, j, *_: (b, 0, attended(j, i))),
    ]


def _reach(band: int, block: int) -> int:
    """Returns how many blocks further the farthest is that holds a key within the band of some query."""
    return (band + block - 1) // block


def _kernel(low: Ref, high: Ref, *refs: Ref, heads: Heads, length: int, blocks: int, normed: bool) -> None:
    q, k, v, q_turns, k_turns, q_segment, k_segment, *rest = refs
    q_scale, k_scale = rest[:2] if normed else (None, None)
    out, ready_q, ready_k, top, total, result = rest[2 * normed :]
    b, i, j = pl.program_id(0), pl.program_id(2), pl.program_id(3)
    at, block = lax.rem(i, blocks), q.shape[0]

    @pl.when(i == 0)
    def _() -> None:
        ready_k[j] = _ready(k[...], k_turns[...], k_scale, heads).astype(ready_k.dtype)

    @pl.when(j == 0)
    def _() -> None:
        ready_q[...] = (_ready(q[...], q_turns[...], q_scale, heads) * heads.scaling).astype(ready_q.dtype)
        top[...] = jnp.full(top.shape, -jnp.inf, top.dtype)
        total[...], result[...] = jnp.zeros(total.shape, total.dtype), jnp.zeros(result.shape, result.dtype)

    shares = (low[b, at] <= high[b, j]) & (low[b, j] <= high[b, at])

    if heads.causal:
        shares &= j <= at
    if heads.band is not None:
        shares &= lax.abs(at - j) <= _reach(heads.band, block)

    @pl.when(shares)
    def _() -> None:
        mask = q_segment[...] == k_segment[...]  # [queries, keys]
        if heads.causal or heads.band is not None:
            rows, columns = (lax.broadcasted_iota(jnp.int32, mask.shape, axis) for axis in (0, 1))
            ahead = (at - j) * block + rows - columns
            mask &= ahead >= 0 if heads.band is None else lax.abs(ahead) <= heads.band
        values = v[...]
        if heads.value_norm:
            values = _unit(values.astype(jnp.float32), heads).astype(values.dtype)
        if length % block:  # what fills up the last block may be NaN
            inside = lax.broadcasted_iota(jnp.int32, values.shape, 0) < length - j * block
            values = jnp.where(inside, values, jnp.zeros_like(values))
        lane = lax.broadcasted_iota(jnp.int32, top.shape, 1)
        new_top, sums, added = top[...], total[...], result[...]
        for first in range(0, heads.lanes, heads.width):
            mine = (lane >= first) & (lane < first + heads.width)
            queries = ready_q[...] if heads.lanes == heads.width else jnp.where(mine, ready_q[...], 0)
            scores = lax.dot_general(queries, ready_k[j], (((1,), (1,)), ((), ())), preferred_element_type=jnp.float32)
            scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
            before = new_top[:, first : first + 1]
            highest = jnp.maximum(before, scores.max(1, keepdims=True))  # [queries, 1]
            weights = jnp.exp(scores - highest)
            fade = jnp.exp(before - highest)
            product = lax.dot(weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
            new_top = jnp.where(mine, highest, new_top)
            sums = jnp.where(mine, sums * fade + weights.sum(1, keepdims=True), sums)
            added = jnp.where(mine, added * fade + product, added)
        top[...], total[...], result[...] = new_top, sums, added

    @pl.when(j == blocks - 1)
    def _() -> None:
        out[...] = (result[...] / total[...]).astype(out.dtype)


def _ready(x: Array, turns: Array, scale: Ref | None, heads: Heads) -> Array:
    """Returns the heads in the lanes of x, normalised and turned, float32; `turns` = cosines, then sines, of each."""
    x = x.astype(jnp.float32)
    lane = lax.broadcasted_iota(jnp.int32, x.shape, 1)
    if scale is not None:
        x = _unit(x, heads) * scale[...].astype(jnp.float32)
    half = heads.width // 2
    left = lax.rem(lane, heads.width) < half

    def swapped(x: Array) -> Array:
        """Returns the halves of each head in each other's place."""
        right = pltpu.roll(x, half, 1)
        return right if heads.width == heads.lanes else jnp.where(left, pltpu.roll(x, heads.lanes - half, 1), right)

    other = swapped(turns)
    return x * jnp.where(left, turns, other) + swapped(x) * jnp.where(left, -other, turns)


def _unit(x: Array, heads: Heads) -> Array:
    """Returns the heads in the lanes of x, float32, each divided by its root mean square."""
    lane = lax.broadcasted_iota(jnp.int32, x.shape, 1)
    squares, inverse = x * x, jnp.zeros_like(x)
    for first in range(0, heads.lanes, heads.width):
        mine = (lane >= first) & (lane < first + heads.width)
        mean = jnp.where(mine, squares, 0).sum(1, keepdims=True) / heads.width
        inverse = jnp.where(mine, lax.rsqrt(mean + heads.eps), inverse)
    return x * inverse
