"""Softmax attention within segments, one function per way to compute it; `_choose` says which one where.

A CPU is bound by its cache, so one head and a block of its queries go at a time. An accelerator takes all heads at
once: cuDNN's fused attention on a GPU, Pallas' flash attention for long rows on a TPU, otherwise XLA alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, Int

from smart_jax.runtime import AXES, BATCH

# Scores of one step on a CPU: those of a key head, the query heads that share it and some queries. They fill the 1 MiB
# that a core's cache holds, but fewer than 128 queries would leave the matrix products too small.
CPU_SCORES, CPU_QUERIES = 2**18, 128
# Positions up to which a CPU takes all heads at once (measured: of 96 and fewer the scores stay in the cache anyway).
CPU_WHOLE = 96
# Attention scores that an accelerator holds at once, in query positions x key positions of one head and row.
SCORES_AT_ONCE = 2**21
FLASH_LENGTH = 512  # positions from which on a TPU does not write its scores to memory; not measured on one
FLASH_BLOCKS = (512, 256, 128)  # query and key positions at a time: the largest that divides the length
NOBODY, NOTHING = -2, -1  # segments of queries and keys that only fill up a block: they equal no other

Way = Callable[..., Float[Array, "B L A C"]]  # of q, k, v and segment


def attention(
    q: Float[Array, "B L A C"],
    k: Float[Array, "B L kv C"],
    v: Float[Array, "B L kv C"],
    segment: Int[Array, "B L"],
    *,
    causal: bool,
) -> Float[Array, "B L A C"]:
    """Softmax attention within segments (softmax in float32); A query heads share kv key heads in groups of A / kv.

    Padding has a segment number of its own, so it attends to padding only: its state is finite and reaches nobody.
    """
    return partial(_choose(q.shape, q.dtype), causal=causal)(q, k, v, segment)


def window_attention(
    q: Float[Array, "B L A C"],
    k: Float[Array, "B L kv C"],
    v: Float[Array, "B L kv C"],
    segment: Int[Array, "B L"],
    *,
    longest: int,
) -> Float[Array, "B L A C"]:
    """`attention`, not causal, within segments each of which is one run of at most `longest` neighbouring positions.

    A position's segment ends less than `longest` positions before and after it, wherever the others begin: blocks of
    queries see only the keys around them. So the cost is about L * 3 * longest, and the shapes depend on L alone.
    Padding may be longer; it attends to the padding around it.
    """
    if q.shape[1] <= 3 * longest:
        return attention(q, k, v, segment, causal=False)
    if jax.default_backend() == "cpu":
        return _on_each_device(partial(_by_head, causal=False, around=longest))(q, k, v, segment)
    return _by_blocks(q, k, v, segment, block=longest)


def _choose(shape: tuple[int, ...], dtype: jnp.dtype) -> Way:
    """Returns the way for queries of a shape [B, L, A, C] on the default backend."""
    length = shape[1]
    backend = jax.default_backend()
    if backend == "cpu":
        return _by_rows if length <= CPU_WHOLE else _by_head_on_each_device
    if backend == "gpu" and _cudnn_takes(shape, dtype):
        return _by_cudnn
    if backend == "tpu" and length >= FLASH_LENGTH and dtype in (jnp.bfloat16, jnp.float32):
        return _by_flash_on_each_device
    return _by_rows


def _on_each_device(way: Way) -> Way:
    """The way on each device's own rows and heads: of a loop over heads, or a kernel, the compiler would split none."""

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


def _by_head_on_each_device(q: Array, k: Array, v: Array, segment: Array, *, causal: bool) -> Array:
    return _on_each_device(partial(_by_head, causal=causal))(q, k, v, segment)


def _by_flash_on_each_device(q: Array, k: Array, v: Array, segment: Array, *, causal: bool) -> Array:
    return _on_each_device(partial(_by_flash, causal=causal))(q, k, v, segment)


def _cudnn_takes(shape: tuple[int, ...], dtype: jnp.dtype) -> bool:
    """What cuDNN's fused attention asks for: a GPU from Ampere on, 16 bits, some head widths, even lengths."""
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


def _by_cudnn(
    q: Float[Array, "B L A C"],
    k: Float[Array, "B L kv C"],
    v: Float[Array, "B L kv C"],
    segment: Int[Array, "B L"],
    *,
    causal: bool,
    implementation: Literal["cudnn", "xla"] = "cudnn",
) -> Float[Array, "B L A C"]:
    """Segments are a mask of L x L, one for all heads: lengths would say only that a row is padded on the right."""
    mask = segment[:, None, :, None] == segment[:, None, None, :]
    return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal, implementation=implementation)


def _by_flash(
    q: Float[Array, "B L A C"],
    k: Float[Array, "B L kv C"],
    v: Float[Array, "B L kv C"],
    segment: Int[Array, "B L"],
    *,
    causal: bool,
) -> Float[Array, "B L A C"]:
    """The kernel has as many key heads as query heads, and lengths that are a multiple of its blocks'."""
    from jax.experimental.pallas.ops.tpu.flash_attention import BlockSizes, SegmentIds, flash_attention

    length, width = q.shape[1], q.shape[3]
    after = -length % FLASH_BLOCKS[-1]
    block = next(size for size in FLASH_BLOCKS if (length + after) % size == 0)
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    q, k, v = (_pad(x, 0, after).transpose(0, 2, 1, 3) for x in (q, k, v))
    segment = _pad(segment, 0, after, NOTHING)
    out = flash_attention(
        q,
        k,
        v,
        segment_ids=SegmentIds(segment, segment),
        causal=causal,
        sm_scale=width**-0.5,
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
    around: int | None = None,
) -> Float[Array, "B L A C"]:
    """One key head of one row, and a block of its queries, at a time; of the keys those `around` the block, or all."""
    batch, length, heads, width = q.shape
    groups = k.shape[2]
    shared = heads // groups
    blocks, rows = _blocks(length, around or max(CPU_QUERIES, CPU_SCORES // length) // shared or 1)
    index = jnp.tile(jnp.arange(blocks * rows).reshape(blocks, rows), (1, shared))
    filled = _pad(q * width**-0.5, 0, blocks * rows - length).reshape(batch, blocks, rows, groups, shared, width)
    q = filled.transpose(0, 3, 1, 4, 2, 5).reshape(batch * groups, blocks, shared * rows, width)
    q_segment = _pad(segment, 0, blocks * rows - length, NOBODY).reshape(batch, blocks, rows)
    q_segment = jnp.repeat(jnp.tile(q_segment, (1, 1, shared)), groups, axis=0)
    keys, k_segment = length, segment
    if around is not None:
        after, keys = blocks * rows - length + around, rows + 2 * around
        k, v, k_segment = _pad(k, around, after), _pad(v, around, after), _pad(segment, around, after, NOTHING)
    k = k.transpose(0, 2, 3, 1).reshape(batch * groups, width, -1)
    v = v.transpose(0, 2, 1, 3).reshape(batch * groups, -1, width)
    k_segment = jnp.repeat(k_segment, groups, axis=0)

    def one_head(row: tuple[Array, ...]) -> Array:
        q, k, v, q_segment, k_segment = row

        @jax.checkpoint  # a backward pass recomputes the scores of a block instead of storing those of every block
        def one_block(block: tuple[Array, ...]) -> Array:
            q, q_segment, index = block  # [shared * rows, C], [shared * rows], [shared * rows]

            def near(x: Array, axis: int) -> Array:
                return x if around is None else jax.lax.dynamic_slice_in_dim(x, index[0], keys, axis)

            mask = q_segment[:, None] == near(k_segment, 0)[None, :]
            if causal:
                mask &= index[:, None] >= jnp.arange(keys)[None, :]
            scores = jnp.matmul(q, near(k, 1), preferred_element_type=jnp.float32)
            scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
            weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
            out = jnp.matmul(weights.astype(v.dtype), near(v, 0), preferred_element_type=jnp.float32)
            return (out / weights.sum(-1, keepdims=True)).astype(v.dtype)

        if blocks == 1:  # a loop less to compile
            return one_block((q[0], q_segment[0], index[0]))
        return jax.lax.map(one_block, (q, q_segment, index))

    out = jax.lax.map(one_head, (q, k, v, q_segment, k_segment))
    out = out.reshape(batch, groups, blocks, shared, rows, width).transpose(0, 2, 4, 1, 3, 5)
    return out.reshape(batch, blocks * rows, heads, width)[:, :length]


def _by_rows(
    q: Float[Array, "B L A C"],
    k: Float[Array, "B L kv C"],
    v: Float[Array, "B L kv C"],
    segment: Int[Array, "B L"],
    *,
    causal: bool,
) -> Float[Array, "B L A C"]:
    """All heads of all rows, and so many queries at a time that their scores stay below `SCORES_AT_ONCE`."""
    batch, length, heads, width = q.shape
    blocks, rows = _blocks(length, max(1, SCORES_AT_ONCE // length))
    if blocks == 1:
        return _attend(q, k, v, segment, segment, jnp.arange(length), causal)

    def by_block(x: Array, fill: int = 0) -> Array:
        x = _pad(x, 0, blocks * rows - length, fill)
        return x.reshape(batch, blocks, rows, *x.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def one_block(block: tuple[Array, ...]) -> Array:
        q, q_segment, index = block
        return _attend(q, k, v, q_segment, segment, index, causal)

    index = jnp.arange(blocks * rows).reshape(blocks, rows)
    out = jax.lax.map(one_block, (by_block(q), by_block(segment, NOBODY), index))  # [blocks, B, rows, A, C]
    return out.swapaxes(0, 1).reshape(batch, blocks * rows, heads, width)[:, :length]


def _by_blocks(
    q: Float[Array, "B L A C"],
    k: Float[Array, "B L kv C"],
    v: Float[Array, "B L kv C"],
    segment: Int[Array, "B L"],
    *,
    block: int,
) -> Float[Array, "B L A C"]:
    """All blocks of queries at once, each with the keys of its own block and of the two beside it."""
    batch, length = segment.shape
    blocks = -(-length // block)
    after = blocks * block - length

    def own(x: Array, fill: int = 0) -> Array:
        return _pad(x, 0, after, fill).reshape(batch * blocks, block, *x.shape[2:])

    def around(x: Array, fill: int = 0) -> Array:
        x = _pad(x, block, after + block, fill).reshape(batch, blocks + 2, block, *x.shape[2:])
        beside = jnp.concatenate([x[:, i : i + blocks] for i in range(3)], axis=2)
        return beside.reshape(batch * blocks, 3 * block, *x.shape[3:])

    segments = own(segment, NOBODY), around(segment, NOTHING)
    out = _attend(own(q), around(k), around(v), *segments, jnp.arange(block), False)
    return out.reshape(batch, blocks * block, *q.shape[2:])[:, :length]


def _attend(
    q: Float[Array, "B queries A C"],
    k: Float[Array, "B L kv C"],
    v: Float[Array, "B L kv C"],
    q_segment: Int[Array, "B queries"],
    k_segment: Int[Array, "B L"],
    q_index: Int[Array, " queries"],
    causal: bool,
) -> Float[Array, "B queries A C"]:
    """In one piece."""
    batch, rows, heads, width = q.shape
    groups = k.shape[2]
    mask = q_segment[:, :, None] == k_segment[:, None, :]  # [B, queries, L]
    if causal:
        mask &= q_index[:, None] >= jnp.arange(k.shape[1])[None, :]
    # Scaling q and dividing the result touches C values a row where the usual order touches L scores.
    q = (q * width**-0.5).reshape(batch, rows, groups, heads // groups, width)
    scores = jnp.einsum("bqghk,blgk->bghql", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    out = jnp.einsum("bghql,blgk->bghqk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    out = (out / weights.sum(-1, keepdims=True)).astype(v.dtype)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, rows, heads, width)


def _blocks(length: int, most: int) -> tuple[int, int]:
    """Number and size of equal blocks of at most about `most` positions; the last one may need filling up."""
    blocks = -(-length // most)
    return blocks, -(-length // blocks)


def _pad(x: Array, before: int, after: int, fill: int = 0) -> Array:
    """Of [B, L, ...], at both ends of L."""
    if before == after == 0:
        return x
    return jnp.pad(x, [(0, 0), (before, after)] + [(0, 0)] * (x.ndim - 2), constant_values=fill)
