"""Softmax attention within segments: a function for each way to compute it, and `_choose`, which picks one.

A CPU is bound by its cache, so one head and a block of its queries go at a time. An accelerator takes all heads at
once: by cuDNN's fused attention on a GPU, by Pallas' flash attention for long rows on a TPU, otherwise by XLA alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from smart_jax.models.heads import block_size
from smart_jax.runtime import AXES, BATCH

# Scores of one step on a CPU, of a key head, the query heads that share it and some queries: they fill the 1 MiB that a
# core's cache holds. Fewer than 128 queries would leave the matrix products too small.
CPU_SCORES, CPU_QUERIES = 2**18, 128
# Length up to which a CPU takes all heads at once (measured: the scores of 96 positions stay in the cache anyway).
CPU_WHOLE = 96
# Attention scores that an accelerator holds at once, in query positions x key positions of one head and row.
SCORES_AT_ONCE = 2**21
CUDNN_MASK = 512  # length up to which cuDNN is given a whole mask; not measured on a GPU
FLASH_LENGTH = 512  # length from which on a TPU does not write its scores to memory; not measured on one
FLASH_BLOCKS = (128, 256, 384, 512)  # query and key positions at a time
NOBODY, NOTHING = -2, -1  # segments of queries and of keys that only fill up a block: they equal no other

Implementation = Literal["cudnn", "xla"]  # of jax's attention
Way = Callable[..., Float[Array, "B L A C"]]  # a function of q, k, v and segment


def attention(
    q: Float[Array, "B L A C"],
    k: Float[Array, "B L kv C"],
    v: Float[Array, "B L kv C"],
    segment: Int[Array, "B L"],
    *,
    causal: bool,
    scale: float | None = None,
) -> Float[Array, "B L A C"]:
    """Returns softmax attention within segments, its softmax in float32; A query heads share kv key heads.

    Padding has a segment number of its own, so that it attends to padding only: its states are finite and reach no
    other position.

    Args:
      q, k, v: queries, keys and values; query heads i * A / kv to (i + 1) * A / kv - 1 share key head i.
      segment: number of the segment of each position.
      causal: whether a position attends to none after it.
      scale: factor of the scores; None = C ** -0.5.

    Example:
      >>> x, segment = jnp.arange(4.0).reshape(1, 4, 1, 1), jnp.array([[0, 0, 1, 1]])
      >>> print(attention(0 * x, x, x, segment, causal=False).ravel())  # means of the two segments
      [0.5 0.5 2.5 2.5]
    """
    return partial(_choose(q.shape, q.dtype), causal=causal, **_scaled(scale))(q, k, v, segment)


def window_attention(
    q: Float[Array, "B L A C"],
    k: Float[Array, "B L kv C"],
    v: Float[Array, "B L kv C"],
    segment: Int[Array, "B L"],
    *,
    longest: int,
) -> Float[Array, "B L A C"]:
    """Returns attention that is not causal within segments that are runs of at most `longest` neighbouring positions.

    A position's segment ends less than `longest` positions before and after it, so that a block of queries needs only
    the keys around it: the cost is about L * 3 * longest, and the shapes depend on L alone. A run of padding may be
    longer; it attends to the padding around it.

    Args:
      q, k, v, segment: as of `attention`.
      longest: most positions of a segment.
    """
    if q.shape[1] <= 3 * longest:
        return attention(q, k, v, segment, causal=False)
    if jax.default_backend() == "cpu":
        return _on_each_device(partial(_by_head, causal=False, around=longest))(q, k, v, segment)
    return _by_blocks(q, k, v, segment, block=longest)


def band_attention(
    q: Float[Array, "B L A C"],
    k: Float[Array, "B L kv C"],
    v: Float[Array, "B L kv C"],
    segment: Int[Array, "B L"],
    *,
    band: int,
    scale: float | None = None,
) -> Float[Array, "B L A C"]:
    """Returns attention within segments to the positions at most `band` away, on either side.

    The band moves with the position, where the windows of `window_attention` stand still. A block of queries needs only
    the keys around it, so that the cost of long rows is about L * 2 * band; the shapes depend on L alone.

    Args:
      q, k, v, segment, scale: as of `attention`.
      band: farthest position that is attended to.
    """
    if q.shape[1] <= band + 1:
        return attention(q, k, v, segment, causal=False, scale=scale)
    if jax.default_backend() == "cpu":
        return _on_each_device(partial(_by_head, causal=False, band=band, scale=scale))(q, k, v, segment)
    return _by_band(q, k, v, segment, band=band, scale=scale)


def _scaled(scale: float | None) -> dict[str, float]:
    """Returns the argument of a way for a scale that is not the usual one."""
    return {} if scale is None else {"scale": scale}


def _choose(shape: tuple[int, ...], dtype: jnp.dtype) -> Way:
    """Returns the way for queries of a shape [B, L, A, C] on the default backend."""
    length = shape[1]
    backend = jax.default_backend()
    if backend == "cpu":
        return _by_rows if length <= CPU_WHOLE else _by_head_on_each_device
    if backend == "gpu" and _cudnn_takes(shape, dtype):
        return _by_cudnn_on_each_device
    if backend == "tpu" and length >= FLASH_LENGTH and dtype in (jnp.bfloat16, jnp.float32):
        return _by_flash_on_each_device
    return _by_rows


def _on_each_device(way: Way) -> Way:
    """Returns `way` on each device's rows and heads; the compiler would split no loop over heads and no kernel."""

    def split(q: Array, k: Array, v: Array, segment: Array) -> Array:
        mesh = jax.typeof(q).sharding.mesh
        if set(mesh.axis_names) != set(AXES) or mesh.size == 1 or AxisType.Manual in mesh.axis_types:
            return way(q, k, v, segment)  # one device, or a part of the batch already
        across = mesh.shape["data"] * mesh.shape["fsdp"]
        rows = BATCH[0] if q.shape[0] % across == 0 else None
        heads = "tensor" if k.shape[2] % mesh.shape["tensor"] == 0 else None
        by_head = PartitionSpec(rows, None, heads)
        split_way = jax.shard_map(
            way,
            mesh=mesh,
            in_specs=(by_head, by_head, by_head, PartitionSpec(rows)),
            out_specs=by_head,
            check_vma=False,  # Pallas' kernels do not say over which axes their results vary
        )
        return split_way(q, k, v, segment)

    return split


def _by_head_on_each_device(
    q: Array, k: Array, v: Array, segment: Array, *, causal: bool, scale: float | None = None
) -> Array:
    return _on_each_device(partial(_by_head, causal=causal, scale=scale))(q, k, v, segment)


def _by_flash_on_each_device(
    q: Array, k: Array, v: Array, segment: Array, *, causal: bool, scale: float | None = None
) -> Array:
    if AxisType.Manual in jax.typeof(q).sharding.mesh.axis_types:
        # Inside shard_map, whose check of varying axes asks what Pallas' kernels do not say.
        return _by_rows(q, k, v, segment, causal=causal, scale=scale)
    return _on_each_device(partial(_by_flash, causal=causal, scale=scale))(q, k, v, segment)


def _cudnn_takes(shape: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """Whether cuDNN's fused attention takes these queries: it wants an Ampere GPU or later, 16 bits and even sizes."""
    capability = str(getattr(jax.devices()[0], "compute_capability", ""))
    if not capability.replace(".", "").isdigit():  # not NVIDIA's
        return False
    major = int(capability.split(".")[0])
    return (
        major >= 8
        and dtype in (jnp.bfloat16, jnp.float16)
        and shape[1] % 2 == 0
        and shape[3] % 8 == 0
        and shape[3] <= (256 if major >= 9 else 128)
    )


def _by_cudnn_on_each_device(
    q: Array, k: Array, v: Array, segment: Array, *, causal: bool, scale: float | None = None
) -> Array:
    return _on_each_device(partial(_by_cudnn, causal=causal, scale=scale))(q, k, v, segment)


def _by_cudnn(
    q: Float[Array, "B L A C"],
    k: Float[Array, "B L kv C"],
    v: Float[Array, "B L kv C"],
    segment: Int[Array, "B L"],
    *,
    causal: bool,
    scale: float | None = None,
    implementation: Implementation = "cudnn",
) -> Float[Array, "B L A C"]:
    """Gives cuDNN the length of each row's first segment where only padding follows it, and masks otherwise.

    A mask of all positions by all would take more memory than all else: in long rows one of some queries is there at a
    time. Padding has number 0; behind a length the result is 0.
    """
    length = segment.shape[1]
    fused = partial(jax.nn.dot_product_attention, is_causal=causal, scale=scale, implementation=implementation)
    if length <= CUDNN_MASK:
        out: Array = fused(q, k, v, mask=(segment[:, :, None] == segment[:, None, :])[:, None])
        return out
    first = segment[:, :1]
    lengths = jnp.sum(segment == first, axis=1, dtype=jnp.int32)
    inside = jnp.arange(length)[None] < lengths[:, None]

    def by_length(q: Array, k: Array, v: Array) -> Array:
        out = fused(q, k, v, query_seq_lengths=lengths, key_value_seq_lengths=lengths)
        return jnp.where(inside[..., None, None], out, 0)

    def by_mask(q: Array, k: Array, v: Array) -> Array:
        attend = partial(_attend_masked, scale=scale, implementation=implementation)
        return _by_queries(q, k, v, segment, causal=causal, attend=attend)

    @jax.checkpoint  # otherwise the forward pass would keep what either way needs for the backward pass
    def either(q: Array, k: Array, v: Array) -> Array:
        right_padded = jnp.all(jnp.where(inside, segment == first, segment == 0))
        out: Array = jax.lax.cond(right_padded, by_length, by_mask, q, k, v)
        return out

    out = either(q, k, v)
    return out


def _by_flash(
    q: Float[Array, "B L A C"],
    k: Float[Array, "B L kv C"],
    v: Float[Array, "B L kv C"],
    segment: Int[Array, "B L"],
    *,
    causal: bool,
    scale: float | None = None,
) -> Float[Array, "B L A C"]:
    """Repeats key heads and fills up the length, since the kernel wants as many as query heads and whole blocks."""
    from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes, SegmentIds, flash_attention

    length, width = q.shape[1], q.shape[3]
    block = block_size(length, FLASH_BLOCKS)
    after = -length % block
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    q, k, v = (_pad(x, 0, after).transpose(0, 2, 1, 3) for x in (q, k, v))
    segment = _pad(segment, 0, after, NOTHING)
    out: Array = flash_attention(
        q,
        k,
        v,
        segment_ids=SegmentIds(segment, segment),
        causal=causal,
        sm_scale=_scale(scale, width),
        block_sizes=BlockSizes(
            block_b=1,
            **dict.fromkeys(("block_q", "block_k_major", "block_k"), block),
            **dict.fromkeys(("block_q_major_dkv", "block_k_major_dkv", "block_k_dkv", "block_q_dkv"), block),
            **dict.fromkeys(("block_k_major_dq", "block_k_dq", "block_q_dq"), block),
        ),
    )
    return out.transpose(0, 2, 1, 3)[:, :length]


def _by_head(
    q: Float[Array, "B L A C"],
    k: Float[Array, "B L kv C"],
    v: Float[Array, "B L kv C"],
    segment: Int[Array, "B L"],
    *,
    causal: bool,
    scale: float | None = None,
    around: int | None = None,
    band: int | None = None,
) -> Float[Array, "B L A C"]:
    """Takes a key head of a row and a block of its queries at a time, with all keys or those `around` the block.

    With a `band`, the keys around a block are those that any of its queries attends to.
    """
    batch, length, heads, width = q.shape
    groups = k.shape[2]
    shared = heads // groups
    if band is None:
        blocks, queries = _blocks(length, around or max(CPU_QUERIES, CPU_SCORES // length) // shared or 1)
    else:  # so many queries that they and the 2 * band keys beside theirs have as many scores
        most = int((band**2 + CPU_SCORES // shared) ** 0.5) - band
        blocks, queries = _blocks(length, max(CPU_QUERIES // shared, most) or 1)
    if band is not None and queries + 2 * band < length:
        around = band
    index = jnp.tile(jnp.arange(blocks * queries).reshape(blocks, queries), (1, shared))
    filled = _pad(q * _scale(scale, width), 0, blocks * queries - length).reshape(
        batch, blocks, queries, groups, shared, width
    )
    q = filled.transpose(0, 3, 1, 4, 2, 5).reshape(batch * groups, blocks, shared * queries, width)
    q_segment = _pad(segment, 0, blocks * queries - length, NOBODY).reshape(batch, blocks, queries)
    q_segment = jnp.repeat(jnp.tile(q_segment, (1, 1, shared)), groups, axis=0)
    keys, k_segment = length, segment
    if around is not None:
        after, keys = blocks * queries - length + around, queries + 2 * around
        k, v, k_segment = _pad(k, around, after), _pad(v, around, after), _pad(segment, around, after, NOTHING)
    k = k.transpose(0, 2, 3, 1).reshape(batch * groups, width, -1)
    v = v.transpose(0, 2, 1, 3).reshape(batch * groups, -1, width)
    k_segment = jnp.repeat(k_segment, groups, axis=0)

    def one_head(inputs: tuple[Array, ...]) -> Array:
        q, k, v, q_segment, k_segment = inputs

        @jax.checkpoint  # a backward pass recomputes the scores of a block instead of storing those of every block
        def one_block(block: tuple[Array, ...]) -> Array:
            q, q_segment, index = block  # [shared * queries, C], [shared * queries], [shared * queries]

            def near(x: Array, axis: int) -> Array:
                return x if around is None else jax.lax.dynamic_slice_in_dim(x, index[0], keys, axis)

            mask = q_segment[:, None] == near(k_segment, 0)[None, :]
            if causal:
                mask &= index[:, None] >= jnp.arange(keys)[None, :]
            if band is not None:
                first = 0 if around is None else index[0] - around
                mask &= jnp.abs(index[:, None] - first - jnp.arange(keys)[None, :]) <= band
            scores = jnp.matmul(q, near(k, 1), preferred_element_type=jnp.float32)
            scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
            weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
            out = jnp.matmul(weights.astype(v.dtype), near(v, 0), preferred_element_type=jnp.float32)
            return (out / weights.sum(-1, keepdims=True)).astype(v.dtype)

        out: Array
        if blocks == 1:  # a loop less to compile
            out = one_block((q[0], q_segment[0], index[0]))
        else:
            out = jax.lax.map(one_block, (q, q_segment, index))
        return out

    out: Array = jax.lax.map(one_head, (q, k, v, q_segment, k_segment))
    out = out.reshape(batch, groups, blocks, shared, queries, width).transpose(0, 2, 4, 1, 3, 5)
    return out.reshape(batch, blocks * queries, heads, width)[:, :length]


def _by_rows(
    q: Float[Array, "B L A C"],
    k: Float[Array, "B L kv C"],
    v: Float[Array, "B L kv C"],
    segment: Int[Array, "B L"],
    *,
    causal: bool,
    scale: float | None = None,
) -> Float[Array, "B L A C"]:
    """Takes all heads of all rows at once."""
    return _by_queries(q, k, v, segment, causal=causal, attend=partial(_attend, scale=scale))


def _by_queries(
    q: Float[Array, "B L A C"],
    k: Float[Array, "B L kv C"],
    v: Float[Array, "B L kv C"],
    segment: Int[Array, "B L"],
    *,
    causal: bool,
    attend: Callable[..., Float[Array, "B queries A C"]],
) -> Float[Array, "B L A C"]:
    """Takes as many queries at once as keep a head's scores below `SCORES_AT_ONCE`; `attend` as `_attend`."""
    batch, length, heads, width = q.shape
    blocks, queries = _blocks(length, max(1, SCORES_AT_ONCE // length))
    if blocks == 1:
        return attend(q, k, v, segment, segment, jnp.arange(length), causal)
    queries += queries % 2  # cuDNN takes no odd number with a mask

    def by_block(x: Array, fill: int = 0) -> Array:
        x = _pad(x, 0, blocks * queries - length, fill)
        return x.reshape(batch, blocks, queries, *x.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def one_block(block: tuple[Array, ...]) -> Array:
        q, q_segment, index = block
        return attend(q, k, v, q_segment, segment, index, causal)

    index = jnp.arange(blocks * queries).reshape(blocks, queries)
    out: Array = jax.lax.map(one_block, (by_block(q), by_block(segment, NOBODY), index))  # [blocks, B, queries, A, C]
    return out.swapaxes(0, 1).reshape(batch, blocks * queries, heads, width)[:, :length]


def _by_blocks(
    q: Float[Array, "B L A C"],
    k: Float[Array, "B L kv C"],
    v: Float[Array, "B L kv C"],
    segment: Int[Array, "B L"],
    *,
    block: int,
) -> Float[Array, "B L A C"]:
    """Takes all blocks of queries at once, each with the keys of its block and of the two beside it."""
    batch, length = segment.shape
    blocks = -(-length // block)
    after = blocks * block - length

    def block_of(x: Array, fill: int = 0) -> Array:
        return _pad(x, 0, after, fill).reshape(batch * blocks, block, *x.shape[2:])

    def around(x: Array, fill: int = 0) -> Array:
        x = _pad(x, block, after + block, fill).reshape(batch, blocks + 2, block, *x.shape[2:])
        beside = jnp.concatenate([x[:, i : i + blocks] for i in range(3)], axis=2)
        return beside.reshape(batch * blocks, 3 * block, *x.shape[3:])

    segments = block_of(segment, NOBODY), around(segment, NOTHING)
    out = _attend(block_of(q), around(k), around(v), *segments, jnp.arange(block), False)
    return out.reshape(batch, blocks * block, *q.shape[2:])[:, :length]


def _by_band(
    q: Float[Array, "B L A C"],
    k: Float[Array, "B L kv C"],
    v: Float[Array, "B L kv C"],
    segment: Int[Array, "B L"],
    *,
    band: int,
    scale: float | None,
) -> Float[Array, "B L A C"]:
    """Takes a block of queries of all heads and rows at a time, with the keys that any of them attends to."""
    batch, length, heads, width = q.shape
    blocks, queries = _blocks(length, band)
    if blocks <= 3:  # nearly all keys are around each block
        return _attend(q, k, v, segment, segment, jnp.arange(length), False, scale=scale, band=band)
    after = blocks * queries - length

    def by_block(x: Array, fill: int = 0) -> Array:
        return _pad(x, 0, after, fill).reshape(batch, blocks, queries, *x.shape[2:]).swapaxes(0, 1)

    k, v = (_pad(x, band, after + band) for x in (k, v))
    k_segment = _pad(segment, band, after + band, NOTHING)

    @jax.checkpoint
    def one_block(block: tuple[Array, ...]) -> Array:
        q, q_segment, index = block
        first = index[0] - band
        near_k, near_v, near = (
            jax.lax.dynamic_slice_in_dim(x, index[0], queries + 2 * band, 1) for x in (k, v, k_segment)
        )
        return _attend(q, near_k, near_v, q_segment, near, index, False, scale=scale, band=band, first_key=first)

    index = jnp.arange(blocks * queries).reshape(blocks, queries)
    out: Array = jax.lax.map(one_block, (by_block(q), by_block(segment, NOBODY), index))  # [blocks, B, queries, A, C]
    return out.swapaxes(0, 1).reshape(batch, blocks * queries, heads, width)[:, :length]


def _attend(
    q: Float[Array, "B queries A C"],
    k: Float[Array, "B L kv C"],
    v: Float[Array, "B L kv C"],
    q_segment: Int[Array, "B queries"],
    k_segment: Int[Array, "B L"],
    q_index: Int[Array, " queries"],
    causal: bool,
    *,
    scale: float | None = None,
    band: int | None = None,
    first_key: int | Int[Array, ""] = 0,
) -> Float[Array, "B queries A C"]:
    """Returns attention of all queries to all keys, whose indices begin at `first_key`, computed in one piece."""
    batch, queries, heads, width = q.shape
    groups = k.shape[2]
    mask = _mask(q_segment, k_segment, q_index, causal)
    if band is not None:
        distance = q_index[:, None] - first_key - jnp.arange(k.shape[1])[None, :]  # [queries, L]
        mask &= (jnp.abs(distance) <= band)[None]
    # Scaling q and dividing the result touches C values of a query, where the usual order touches L scores.
    q = (q * _scale(scale, width)).reshape(batch, queries, groups, heads // groups, width)
    scores = jnp.einsum("bqghk,blgk->bghql", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    out = jnp.einsum("bghql,blgk->bghqk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    out = (out / weights.sum(-1, keepdims=True)).astype(v.dtype)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, queries, heads, width)


def _attend_masked(
    q: Float[Array, "B queries A C"],
    k: Float[Array, "B L kv C"],
    v: Float[Array, "B L kv C"],
    q_segment: Int[Array, "B queries"],
    k_segment: Int[Array, "B L"],
    q_index: Int[Array, " queries"],
    causal: bool,
    *,
    scale: float | None,
    implementation: Implementation,
) -> Float[Array, "B queries A C"]:
    """Returns what `_attend` does, by jax's function of a mask."""
    mask = _mask(q_segment, k_segment, q_index, causal)[:, None]
    out: Array = jax.nn.dot_product_attention(q, k, v, mask=mask, scale=scale, implementation=implementation)
    return out


def _mask(
    q_segment: Int[Array, "B queries"], k_segment: Int[Array, "B L"], q_index: Int[Array, " queries"], causal: bool
) -> Bool[Array, "B queries L"]:
    mask = q_segment[:, :, None] == k_segment[:, None, :]
    if causal:
        mask &= (q_index[:, None] >= jnp.arange(k_segment.shape[1])[None, :])[None]
    return mask


def _scale(scale: float | None, width: int) -> float:
    """Returns the factor of the scores of heads of a width."""
    return width**-0.5 if scale is None else scale


def _blocks(length: int, most: int) -> tuple[int, int]:
    """Returns number and size of equal blocks of at most about `most` positions; the last may need filling up."""
    blocks = -(-length // most)
    return blocks, -(-length // blocks)


def _pad(x: Array, before: int, after: int, fill: int = 0) -> Array:
    """Returns x [B, L, ...] with `fill` before and after its L positions."""
    if before == after == 0:
        return x
    return jnp.pad(x, [(0, 0), (before, after)] + [(0, 0)] * (x.ndim - 2), constant_values=fill)
