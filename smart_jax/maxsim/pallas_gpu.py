"""MaxSim of padded arrays as a Pallas kernel for NVIDIA Hopper (Mosaic GPU).

The grid goes over blocks of query tokens and runs of documents. In each thread block one warpgroup only fetches (TMA):
blocks of a document's tokens, slice by slice of their width, into a ring of slots in shared memory, on into the next
document without a pause. One or two other warpgroups multiply them (WGMMA) with query tokens of their own, the sums in
registers, and fold each product's largest similarity per query token, and its position, into a running maximum.
Similarities never leave registers; what does is one maximum, and one position if asked for, per query token and
document. The query tokens stay in shared memory if their width lets them, and else come along slice by slice.

float32: the tensor cores would round it to TF32, 11 bits. Each value is split into three bfloat16 terms instead, whose
sum it is exactly (down to 2**-102), and the product is the sum of the six products of terms above 2**-24 of it. The
leading one is summed apart from the other five: the tensor cores truncate where they add, each time up to one unit of
the last place, which six times as many additions to a sum near 1 would make more than 1e-5 at width 4096.

Block sizes: two warpgroups of 128 query tokens and 128 document tokens read each value from shared memory seldom enough
for full speed, and a product of 128 x 128 leaves half of a thread's 224 registers; float32, with two sums, halves the
query tokens. Slices of 128 bytes are the widest that shared memory is swizzled for; float32, with three terms of each,
takes half of that, for as many slots. 64 query tokens are the least that WGMMA multiplies.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Bool, Float, Int

from smart_jax.maxsim.arrays import compute_dtype, like, pad, round_up

DOCUMENT_TOKENS = 128
SHARED_BYTES = 200 * 2**10  # for operands, of the 227 KiB that a thread block may take
SLOTS = 8
THREAD_BLOCKS = 4 * 132  # at most, about: a few for each multiprocessor, which runs one at a time
INTERPRETED_THREAD_BLOCKS = 1  # the interpreter compiles each anew

Ref = Any  # an array in memory, or a barrier, that a kernel uses: Pallas has no public type for it
Index = int | Array  # a number that is known when the kernel is compiled, or when it runs


class _Tiling(NamedTuple):
    terms: int  # of each operand's value
    groups: int  # warpgroups that multiply
    rows: int  # query tokens of each
    columns: int  # document tokens of a block
    width: int  # of a slice
    blocks: int  # of each document
    documents: int  # of each thread block


def gpu_forward(
    q: Float[Array, "B P D"],
    d: Float[Array, "N L D"],
    d_mask: Bool[Array, "N L"] | None,
    weight: Float[Array, "B P"],
    with_index: bool,
) -> tuple[Float[Array, "B N"], Int[Array, "N B P"] | None]:
    """Returns scores, and the positions of the maxima: an `argmax.Forward`. Interpreted where there is no GPU.

    Raises:
      TypeError: tokens are float64, in which the tensor cores do not sum.
    """
    if compute_dtype(q, d) == jnp.float64:
        raise TypeError("float64 tokens: the GPU kernel computes in float32; use implementation 'xla'")
    (B, P, D), (N, L, _) = q.shape, d.shape
    half = q.dtype == d.dtype and q.dtype in (jnp.bfloat16, jnp.float16)
    groups, width = 1 if B * P <= 64 else 2, 64 if half else 32
    rows = 128 if half and B * P > 128 else 64
    query_tokens, columns = round_up(B * P, groups * rows), min(DOCUMENT_TOKENS, round_up(L, 8))
    length = round_up(L, columns)
    work = N * query_tokens // (groups * rows)
    documents = -(-work // (THREAD_BLOCKS if _compiled() else INTERPRETED_THREAD_BLOCKS))
    tiling = _Tiling(1 if half else 3, groups, rows, columns, width, length // columns, min(documents, N))
    q = pad(q.reshape(B * P, D), (query_tokens, round_up(D, width)))
    d = pad(d, (N, length, round_up(D, width))).reshape(N * length, -1)
    if not half:
        q, d = _bfloat16_terms(q), _bfloat16_terms(d)
    keep = None
    if d_mask is not None or length != L:
        keep = jnp.ones((N, L), jnp.float32) if d_mask is None else d_mask.astype(jnp.float32)
        keep = pad(keep, (N, length)).reshape(-1)
    best, *index = _best(q, d, keep, tiling, with_index)
    scores = jnp.einsum("nbp,bp->bn", best[:, : B * P].reshape(N, B, P), weight, precision="highest")
    return scores, index[0][:, : B * P].reshape(N, B, P) if with_index else None


def _best(
    q: Float[Array, "Q W"], d: Float[Array, "M W"], keep: Float[Array, " M"] | None, tiling: _Tiling, with_index: bool
) -> list[Array]:
    """Returns each query token's largest inner product with each document's kept tokens, [N, Q]; its first position."""
    terms, groups, rows, columns, width, blocks, documents = tiling
    N, Q, slices = d.shape[0] // (blocks * columns), q.shape[0], q.shape[1] // (terms * width)
    q_bytes, d_bytes = groups * rows * terms * width * 2, columns * terms * width * 2  # of a slice
    resident = slices * q_bytes <= SHARED_BYTES // 2
    fit = (SHARED_BYTES - slices * q_bytes) // d_bytes if resident else SHARED_BYTES // (q_bytes + d_bytes)
    slots = min(fit, SLOTS, documents * blocks * slices)

    q, d, keep = like((q, d, keep), q, d, keep)
    axes = jax.typeof(q).manual_axis_type
    dtypes = (jnp.float32, jnp.int32) if with_index else (jnp.float32,)
    layout = plgpu.TilingTransform((8, width)), plgpu.SwizzleTransform(2 * width)
    compiled = _compiled()
    scratch: dict[str, Any] = {  # shapes of memory and barriers
        "q_smem": plgpu.SMEM((slices if resident else slots, groups, terms, rows, width), q.dtype, transforms=layout),
        "d_smem": plgpu.SMEM((slots, terms, columns, width), d.dtype, transforms=layout),
        "keep_smem": None if keep is None else plgpu.SMEM((slots, columns), jnp.float32),
        "out_smem": [plgpu.SMEM((groups, rows), t) for t in dtypes],
        "turned": None if compiled else plgpu.SMEM((groups, width, columns), d.dtype),
        "q_loaded": plgpu.Barrier(num_arrivals=slices * groups * terms) if resident else None,
        "loaded": plgpu.Barrier(
            num_arrivals=terms * (1 if resident else 1 + groups) + (keep is not None), num_barriers=slots
        ),
        "consumed": plgpu.Barrier(num_arrivals=groups, num_barriers=slots),
    }
    best: list[Array] = plgpu.kernel(
        partial(_kernel, tiling=tiling, masked=keep is not None),
        out_type=[jax.ShapeDtypeStruct((N, Q), t, manual_axis_type=axes) for t in dtypes],
        scratch_types=scratch,
        grid=(-(-N // documents), Q // (groups * rows)),
        grid_names=("documents", "queries"),
        num_threads=groups + 1,
        thread_name="warpgroup",
        kernel_name="maxsim",
        interpret=None if compiled else _interpreter(),
    )(*(x for x in (q, d, keep) if x is not None))
    return best


def _kernel(
    *refs: Ref,
    tiling: _Tiling,
    masked: bool,
    q_smem: Ref,
    d_smem: Ref,
    keep_smem: Ref,
    out_smem: Ref,
    turned: Ref,
    q_loaded: Ref,
    loaded: Ref,
    consumed: Ref,
) -> None:
    q, d, *others = refs
    keep: Ref = others[0] if masked else None
    out = others[1:] if masked else others
    terms, groups, rows, columns, width, blocks, documents = tiling
    slices, slots, resident = q.shape[1] // (terms * width), d_smem.shape[0], q_loaded is not None
    group = lax.axis_index("warpgroup")
    # The last run of documents starts early enough to be whole: what it shares with the one before is written twice.
    first = jnp.minimum(lax.axis_index("documents") * documents, out[0].shape[0] - documents)
    query = lax.axis_index("queries") * groups

    # A step is a slice of a block of a document's tokens.
    @pl.when(group == groups)
    def _fetch() -> None:
        if groups == 2:
            plgpu.set_max_registers(56, action="decrease")

        def fetch(source: Ref, row: tuple[Index, int], part: Index, target: Ref, barrier: Ref) -> None:
            for term in range(terms):
                at = pl.ds(*row), pl.ds((term * slices + part) * width, width)
                plgpu.copy_gmem_to_smem(source.at[at], target.at[term], barrier)

        def fetch_queries(part: Index, slot: Index, barrier: Ref) -> None:
            for g in range(groups):
                fetch(q, ((query + g) * rows, rows), part, q_smem.at[slot, g], barrier)

        def fetch_step(step: Index, slot: Index) -> None:
            block, part = first * blocks + lax.div(step, jnp.int32(slices)), lax.rem(step, jnp.int32(slices))
            fetch(d, (block * columns, columns), part, d_smem.at[slot], loaded.at[slot])
            if not resident:
                fetch_queries(part, slot, loaded.at[slot])
            if masked:
                plgpu.copy_gmem_to_smem(keep.at[pl.ds(block * columns, columns)], keep_smem.at[slot], loaded.at[slot])

        if resident:
            pl.loop(0, slices)(lambda part: fetch_queries(part, part, q_loaded))
        pl.loop(0, slots)(lambda step: fetch_step(step, step))

        steps = documents * blocks * slices

        @pl.loop(slots, steps + slots)  # to the last slot's release: the interpreter wants each awaited
        def _(step: Index) -> None:
            slot = lax.rem(step, jnp.int32(slots))
            plgpu.barrier_wait(consumed.at[slot])
            pl.when(step < steps)(lambda: fetch_step(step, slot))

    @pl.when(group < groups)
    def _compute() -> None:
        if groups == 2:
            plgpu.set_max_registers(224, action="increase")
        if resident:
            plgpu.barrier_wait(q_loaded)

        def multiply(block: Index, *sums: Ref) -> Array:
            """Returns the similarities [rows, columns] of a block, whose last slice is not released yet."""

            def add(part: Index, _: None) -> None:
                step = block * slices + part
                slot = lax.rem(step, jnp.int32(slots))
                plgpu.barrier_wait(loaded.at[slot])
                for of_d in range(terms):
                    tokens = _transposed(d_smem.at[slot, of_d], turned, group)
                    for of_q in range(terms - of_d):
                        queries = q_smem.at[part if resident else slot, group, of_q]
                        plgpu.wgmma(sums[of_q + of_d > 0], queries, tokens)
                plgpu.wgmma_wait(terms * (terms + 1) // 2)  # those of the slice before are done
                pl.when(part > 0)(lambda: plgpu.barrier_arrive(consumed.at[lax.rem(step - 1, jnp.int32(slots))]))

            lax.fori_loop(0, slices, add, None)
            total: Array = sums[0][...] if terms == 1 else sums[0][...] + sums[1][...]
            return total

        def fold(block: Index, carry: list[Array]) -> list[Array]:
            sums = [plgpu.ACC((rows, columns), jnp.float32)] * min(terms, 2)  # type: ignore[attr-defined]
            similarity = pl.run_scoped(partial(multiply, block), *sums)
            slot = lax.rem((block + 1) * slices - 1, jnp.int32(slots))
            if masked:
                kept = _cast(keep_smem[slot], plgpu.Layout.WGMMA.reduce(0))
                kept = lax.broadcast_in_dim(kept, similarity.shape, [1])
                similarity = jnp.where(kept > 0, similarity, -jnp.inf)
            plgpu.barrier_arrive(consumed.at[slot])
            top = _maximum(similarity)
            if len(carry) == 1:
                return [jnp.maximum(carry[0], top)]  # of which NaN is one, as in jax.numpy everywhere
            best, index = carry
            position = _cast(lax.broadcasted_iota(jnp.int32, similarity.shape, 1), plgpu.Layout.WGMMA)
            at_top = similarity == lax.broadcast_in_dim(top, similarity.shape, [0])
            where = jnp.min(jnp.where(at_top, position, columns - 1), axis=1) + lax.rem(block, blocks) * columns
            # Strictly greater: the first of equal maxima stays. A NaN enters, and nothing is greater than it.
            better = (top > best) | (top != top)
            return [jnp.where(better, top, best), jnp.where(better, where, index)]

        @pl.loop(0, documents)
        def _(document: Index) -> None:
            empty = jnp.full((rows,), -jnp.inf, jnp.float32), jnp.zeros((rows,), jnp.int32)
            start = [_cast(x, plgpu.Layout.WGMMA.reduce(1)) for x in empty[: len(out)]]
            best = lax.fori_loop(document * blocks, (document + 1) * blocks, fold, start)
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the last document's have been read
            for value, smem, gmem in zip(best, out_smem, out, strict=True):
                smem[group] = value
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(smem.at[group], gmem.at[first + document, pl.ds((query + group) * rows, rows)])

        plgpu.wait_smem_to_gmem(0)


def _compiled() -> bool:
    return jax.default_backend() == "gpu"


def _interpreter() -> object:
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams  # it has no public name yet

    return InterpretGPUParams()


def _cast(x: Array, layout: Any) -> Array:  # a Layout, or what its `reduce` returns, which has no public type
    """Returns the value spread over the warpgroup's threads as the layout says; the interpreter knows no layouts."""
    return plgpu.layout_cast(x, layout) if _compiled() else x


def _maximum(x: Array) -> Array:
    """Returns the largest values of rows, of which NaN is one; to the interpreter's, a CPU's, it is not."""
    top = jnp.max(x, axis=1)
    return top if _compiled() else jnp.where(jnp.any(x != x, axis=1), jnp.nan, top)


def _transposed(tokens: Ref, turned: Ref, group: Index) -> Ref:
    """Returns document tokens as WGMMA's second operand; the interpreter's cannot read a transposed view of them."""
    if turned is None:
        return plgpu.transpose_ref(tokens, (1, 0))
    turned[group] = tokens[...].T
    return turned.at[group]


def _bfloat16_terms(x: Float[Array, "M W"]) -> Float[Array, "M 3*W"]:
    """Returns high, middle and low terms, side by side, whose sum is x."""
    x = x.astype(jnp.float32)
    high = lax.reduce_precision(x, 8, 7)  # a cast there and back the compiler may leave out
    middle = lax.reduce_precision(x - high, 8, 7)
    return jnp.concatenate([high, middle, x - high - middle], axis=1).astype(jnp.bfloat16)
