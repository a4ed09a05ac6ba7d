"""MaxSim of packed queries with padded documents, all of them at once: what resident corpora are scored by.

On a TPU products, mask and maximum become one pass over the documents that writes nothing but the maxima; a loop over
chunks would copy the documents. Other compilers write a product before they reduce it, so that documents are scored in
chunks of a size that suits them.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, Num

from smart_jax.maxsim.arrays import inner_products
from smart_jax.runtime import in_one_trace
from smart_jax.typing import HostOrDevice

CPU_SCORES, CPU_VALUES = 2**18, 2**20  # similarities, and the tokens' values, that are in a core's cache at once
GPU_SCORES, NARROW = (2**23, 2**25), 512  # of tokens up to this width, whose similarities have to stay in the L2 cache
EXACT_IN_BFLOAT16 = (jnp.bfloat16, jnp.int8)


def packed_maxsim(
    q: Num[HostOrDevice, "P D"],
    owner: Int[HostOrDevice, " P"],
    q_lengths: Int[HostOrDevice, " B"],
    d: Num[HostOrDevice, "N L D"],
    d_lengths: Int[HostOrDevice, " N"],
    q_scales: Float[HostOrDevice, " P"] | None = None,
    d_scales: Float[HostOrDevice, "N L"] | None = None,
    *,
    platform: str = "cpu",
) -> Float[Array, "B N"]:
    """Returns the late-interaction score of packed queries with padded documents, for values of any stored dtype.

        score[b, n] = (1 / P_b) * sum over b's tokens p of  max over l < d_lengths[n] of <q[p], d[n, l]>

    Products are exact and sums float32, whatever the dtypes (arXiv:2605.24938 has the score).

    Args:
      q: tokens of all queries, float32, float16, bfloat16 or int8.
      owner: the query of each token; tokens of a number that is no query's are left out.
      q_lengths: number of tokens of each query.
      d: document tokens, of one of the same dtypes.
      d_lengths: number of tokens of each document, the first of its row.
      q_scales, d_scales: of int8 tokens.
      platform: of the devices: "cpu", "gpu" or "tpu".

    Returns:
      float32; -inf for a document without tokens.

    Example:
      >>> import jax.numpy as jnp
      >>> q, owner = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([0, 0])
      >>> d = jnp.array([[[0.5, 0.25], [9.0, 9.0]]])
      >>> packed_maxsim(q, owner, jnp.array([2]), d, jnp.array([1]))  # (0.5 + 0.25) / 2
      Array([[0.375]], dtype=float32)
    """
    members = (owner[None] == jnp.arange(len(q_lengths), dtype=owner.dtype)[:, None]).astype(jnp.float32)

    def sums(
        d: Num[HostOrDevice, "n L D"], lengths: Int[HostOrDevice, " n"], scales: Float[HostOrDevice, "n L"] | None
    ) -> Float[Array, "B n"]:
        best = _best(q, d, lengths, scales, platform)
        if q_scales is not None:
            best *= q_scales[:, None]  # positive: the maxima stay where they are
        best = jnp.where((lengths > 0)[None], best, 0)  # -inf must not meet a weight of 0
        return jnp.matmul(members, best, precision=lax.Precision.HIGHEST)

    documents, chunk = (d, d_lengths, d_scales), _chunk(len(q), d.shape, platform)
    if chunk == len(d):
        total = sums(*documents)
    else:

        def step(i: Int[Array, ""], total: Float[Array, "B N"]) -> Float[Array, "B N"]:
            # The last chunk starts early enough to be whole: what it shares with the one before gets equal values.
            first = jnp.minimum(i * chunk, len(d) - chunk)
            part = jax.tree.map(lambda x: _rows(x, first, chunk, platform), documents)
            return lax.dynamic_update_slice_in_dim(total, sums(*part), first, 1)

        start = jnp.zeros((len(q_lengths), len(d)), jnp.float32)
        with jax.disable_jit(False):  # a loop, even in the trace of `in_one_trace`
            total = lax.fori_loop(0, -(-len(d) // chunk), in_one_trace(step), start)
    return jnp.where((d_lengths > 0)[None], total / jnp.maximum(q_lengths, 1)[:, None], -jnp.inf)


def _rows(x: HostOrDevice, first: Int[Array, ""], count: int, platform: str) -> Array:
    """Returns some rows."""
    if x.dtype != jnp.bfloat16 or platform != "cpu":
        return lax.dynamic_slice_in_dim(x, first, count)
    # As integers: XLA for CPUs slices bfloat16 as float32, which it makes of all rows before the loop. The barrier
    # keeps the step to integers within it.
    x, first = lax.optimization_barrier((x, first))
    integers = lax.dynamic_slice_in_dim(lax.bitcast_convert_type(x, jnp.uint16), first, count)
    return lax.bitcast_convert_type(integers, jnp.bfloat16)


def _chunk(query_tokens: int, documents: tuple[int, ...], platform: str) -> int:
    """Returns how many documents are scored at a time."""
    count, length, width = documents
    if platform == "tpu":
        return count
    chunk = (CPU_SCORES if platform == "cpu" else GPU_SCORES[width > NARROW]) // (query_tokens * length)
    if platform == "cpu":
        chunk = min(chunk, CPU_VALUES // (length * width))
    return min(count, max(1, chunk))


def _best(
    q: Num[HostOrDevice, "P D"],
    d: Num[HostOrDevice, "N L D"],
    lengths: Int[HostOrDevice, " N"],
    scales: Float[HostOrDevice, "N L"] | None,
    platform: str,
) -> Float[Array, "P N"]:
    """Returns the largest similarity of each query token with each document; -inf for one without tokens."""
    count, length, width = d.shape
    kept = lax.broadcasted_iota(jnp.int32, (count, length), 1) < lengths[:, None]
    if platform == "cpu":
        # Documents first: maxima are then taken over whole rows of query tokens.
        tokens, queries = d.reshape(count * length, width).astype(jnp.float32), q.astype(jnp.float32)
        similarity = inner_products(tokens, queries).reshape(count, length, -1)
        if scales is not None:
            similarity *= scales[:, :, None]
        return jnp.where(kept[:, :, None], similarity, -jnp.inf).max(axis=1).T
    similarity = exact_products(q, d, platform)
    if scales is not None:
        similarity *= scales[None]
    return jnp.where(kept[None], similarity, -jnp.inf).max(axis=2)


def exact_products(q: Num[HostOrDevice, "P D"], d: Num[HostOrDevice, "... D"], platform: str) -> Float[Array, "P ..."]:
    """Returns all inner products, exact up to float32 sums, in as few passes as the dtypes allow on the platform.

    Example:
      >>> import jax.numpy as jnp
      >>> exact_products(jnp.array([[0.5, 1.0]]), jnp.array([[2, 0], [1, 1]], jnp.int8), "cpu")
      Array([[1. , 1.5]], dtype=float32)
    """
    precision = lax.Precision.HIGHEST
    if q.dtype in EXACT_IN_BFLOAT16 and d.dtype in EXACT_IN_BFLOAT16:
        q, d, precision = q.astype(jnp.bfloat16), d.astype(jnp.bfloat16), lax.Precision.DEFAULT
    elif platform == "tpu" or q.dtype != d.dtype:  # a TPU would round float16 to bfloat16
        q, d = q.astype(jnp.float32), d.astype(jnp.float32)
    return jnp.einsum("pd,...d->p...", q, d, precision=precision, preferred_element_type=jnp.float32)
