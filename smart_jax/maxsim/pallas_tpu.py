"""MaxSim of padded arrays as a Pallas kernel for TPU (Mosaic).

The grid goes over documents, blocks of query tokens, and blocks of a document's tokens, the last one innermost. Each
step multiplies a block of query tokens with a block of document tokens on the matrix unit and folds the product, 128
columns at a time, into a running maximum [query tokens, 128] and its position, which stay in vector memory: each lane
has its own maximum, so that lanes are compared with each other once per document, not once per block. Similarities
never leave vector memory; what does is one maximum, and one position, per query token and document.

Block sizes: 128 query tokens fill the rows of the matrix unit (256 in its newer generations, which gain little from
it here: a query rarely has more tokens). Document tokens are the most of 512, 256 and 128 with which a block fits in
`VMEM_BYTES`. Where none does, more is asked for; TPUs since v5e have it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from smart_jax.maxsim.arrays import compute_dtype, like, pad, round_up

LANES, QUERY_TOKENS = 128, 128
DOCUMENT_TOKENS = (512, 256, 128)
VMEM_BYTES = 14 * 2**20  # of the 16 MiB that a kernel may take without asking
NO_POSITION = 2**31 - 1

Ref = Any  # an array in memory that a kernel reads and writes: Pallas has no public type for it


def tpu_forward(
    q: Float[Array, "B P D"],
    d: Float[Array, "N L D"],
    d_mask: Bool[Array, "N L"] | None,
    weight: Float[Array, "B P"],
    with_index: bool,
) -> tuple[Float[Array, "B N"], Int[Array, "N B P"] | None]:
    """Returns scores, and the positions of the maxima: an `argmax.Forward`. Interpreted where there is no TPU.

    Raises:
      TypeError: tokens are float64, which a TPU does not compute in.
    """
    if compute_dtype(q, d) == jnp.float64:
        raise TypeError("float64 tokens: the TPU kernel computes in float32; use implementation 'xla'")
    # Equal bfloat16 operands go into the matrix unit as they are; it has no float16.
    dtype = jnp.bfloat16 if q.dtype == d.dtype == jnp.bfloat16 else jnp.float32
    (B, P, D), (N, L, _) = q.shape, d.shape
    width, query_tokens = round_up(D, LANES), round_up(B * P, 16)
    rows = min(QUERY_TOKENS, query_tokens)
    query_tokens = round_up(query_tokens, rows)
    columns = _document_tokens(L, rows, width, dtype)
    length = round_up(L, columns)
    keep = jnp.ones((N, L), jnp.float32) if d_mask is None else d_mask.astype(jnp.float32)
    best, index = _best(
        pad(q.reshape(B * P, D).astype(dtype), (query_tokens, width)),
        pad(d.astype(dtype), (N, length, width)),
        pad(keep, (N, length))[:, None],
        rows,
        columns,
    )
    best, index = (x[:, 0, : B * P].reshape(N, B, P) for x in (best, index))
    return jnp.einsum("nbp,bp->bn", best, weight, precision="highest"), index if with_index else None


def _best(
    q: Float[Array, "Q W"], d: Float[Array, "N T W"], keep: Float[Array, "N 1 T"], rows: int, columns: int
) -> tuple[Float[Array, "N 1 Q"], Int[Array, "N 1 Q"]]:
    """Returns each query token's largest inner product with each document's kept tokens, and its first position."""
    (Q, W), (N, T, _) = q.shape, d.shape
    q, d, keep = like((q, d, keep), q, d, keep)
    axes = jax.typeof(q).manual_axis_type
    vmem = _vmem_bytes(rows, columns, W, q.dtype)
    out = pl.BlockSpec((None, 1, rows), lambda n, i, j: (n, 0, i))
    best: tuple[Array, Array] = pl.pallas_call(
        partial(_kernel, blocks=T // columns),
        grid=(N, Q // rows, T // columns),
        in_specs=[
            pl.BlockSpec((rows, W), lambda n, i, j: (i, 0)),
            pl.BlockSpec((None, columns, W), lambda n, i, j: (n, j, 0)),
            pl.BlockSpec((None, 1, columns), lambda n, i, j: (n, 0, j)),
        ],
        out_specs=[out, out],
        out_shape=[jax.ShapeDtypeStruct((N, 1, Q), t, manual_axis_type=axes) for t in (jnp.float32, jnp.int32)],
        scratch_shapes=[pltpu.VMEM((rows, LANES), jnp.float32), pltpu.VMEM((rows, LANES), jnp.int32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=None if vmem <= VMEM_BYTES else vmem + 2**21,
        ),
        cost_estimate=pl.CostEstimate(
            flops=2 * N * Q * T * W,
            bytes_accessed=N * T * W * d.dtype.itemsize * (Q // rows) + 8 * N * Q,
            transcendentals=0,
        ),
        interpret=jax.default_backend() != "tpu",
        name="maxsim",
    )(q, d, keep)
    return best


def _kernel(q: Ref, d: Ref, keep: Ref, best_out: Ref, index_out: Ref, best: Ref, index: Ref, *, blocks: int) -> None:
    block, columns = pl.program_id(2), d.shape[0]

    @pl.when(block == 0)
    def _() -> None:
        best[...] = jnp.full(best.shape, -jnp.inf, best.dtype)
        index[...] = jnp.full(index.shape, NO_POSITION, index.dtype)

    precision = lax.Precision.HIGHEST if q.dtype == jnp.float32 else lax.Precision.DEFAULT
    across = (((1,), (1,)), ((), ()))
    similarity = lax.dot_general(q[...], d[...], across, precision=precision, preferred_element_type=jnp.float32)
    similarity = jnp.where(keep[...] > 0, similarity, -jnp.inf)  # [rows, columns]
    lane = lax.broadcasted_iota(jnp.int32, best.shape, 1)
    for start in range(0, columns, LANES):
        new = similarity[:, start : start + LANES]
        # Strictly greater: the first of equal maxima stays. A NaN enters, and nothing is greater than it.
        better = (new > best[...]) | (new != new)
        best[...] = jnp.where(better, new, best[...])
        index[...] = jnp.where(better, block * columns + start + lane, index[...])

    @pl.when(block == blocks - 1)
    def _() -> None:
        values, positions = best[...].T, index[...].T  # [LANES, rows]
        top = jnp.max(values, axis=0, keepdims=True)
        best_out[...] = top
        index_out[...] = jnp.min(jnp.where(values == top, positions, NO_POSITION), axis=0, keepdims=True)


def _document_tokens(length: int, rows: int, width: int, dtype: DTypeLike) -> int:
    """Returns the number of document tokens of a block."""
    for tokens in DOCUMENT_TOKENS:
        if _vmem_bytes(rows, tokens, width, dtype) <= VMEM_BYTES and tokens < 2 * round_up(length, LANES):
            return tokens
    return DOCUMENT_TOKENS[-1]


def _vmem_bytes(rows: int, columns: int, width: int, dtype: DTypeLike) -> int:
    """Returns the vector memory of a block: both operands twice, as the next is fetched meanwhile, and the product's.

    The product of float32 takes document tokens apart into bfloat16 terms, and keeps them where there is more than one
    tile (libtpu 0.0.42).
    """
    token = width * jnp.dtype(dtype).itemsize
    terms = 2 * columns * token if dtype == jnp.float32 and columns > LANES else 0
    return 2 * (rows + columns) * token + terms
