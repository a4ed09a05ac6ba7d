"""MaxSim of padded arrays as products of whole operands, which XLA's compiler for TPUs fuses with what follows.

The forward pass is one fusion of product, mask, maximum and its position: similarities do not reach memory, and
documents are read once for each group of query tokens, neither copied nor padded. The backward pass builds the one-hot
matrices of its two products inside them. Elsewhere XLA has no such fusion, and holds all similarities [B, P, N, L].
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num

from smart_jax.maxsim.argmax import Way
from smart_jax.maxsim.arrays import compute_dtype, kept, largest, like, pad

QUERY_TOKENS = 8192  # at once: with more the compiler's choice of windows becomes erratic
ROWS = 8  # of a tile in a TPU's memory


def best_similarities(
    q: Num[Array, "Q D"],
    d: Num[Array, "N L D"],
    d_mask: Bool[Array, "N L"] | None = None,
    *,
    with_index: bool = False,
) -> tuple[Float[Array, "Q N"], Int[Array, "Q N"] | None]:
    """Returns each query token's largest inner product with each document's kept tokens, and its first position.

    Args:
      q: query tokens.
      d: document tokens. Products are exact in float32: pairs of bfloat16 are multiplied as they are, other types in as
        many passes as float32 takes.
      d_mask: True = kept; None keeps all. A document without tokens has -inf: replace it before it meets a weight of 0.
      with_index: whether positions are asked for, else None.
    """
    # Query tokens last take a tenth less time (compiler's estimate), but of documents that fill the tiles of a TPU's
    # memory the compiler may then write all similarities, as those of one matrix product.
    last = d.shape[1] % ROWS == 0
    similarity = _product("qd,nld->qnl", q, d) if last else _product("nld,qd->nlq", d, q)

    if d_mask is not None:
        similarity = jnp.where(jnp.expand_dims(d_mask, 0 if last else 2), similarity, -jnp.inf)
    best, index = largest(similarity, 2 if last else 1, with_index)
    if not last:
        best, index = best.T, None if index is None else index.T
    return best, index


def fused_forward(
    q: Float[Array, "B P D"],
    d: Float[Array, "N L D"],
    d_mask: Bool[Array, "N L"] | None,
    weight: Float[Array, "B P"],
    with_index: bool,
) -> tuple[Float[Array, "B N"], Int[Array, "N B P"] | None]:
    """Returns scores, and the positions of the maxima: an `argmax.Forward`.

    Queries go in groups of at most `QUERY_TOKENS` tokens; a longer query is cut in pieces, whose scores are added.
    """
    (B, P, D), N = q.shape, d.shape[0]
    # What queries are computed by would join the fusion, which then takes a tenth more time for one query.
    q = lax.optimization_barrier(q)
    pieces = -(-P // QUERY_TOKENS)
    length = -(-P // pieces)
    groups = -(-B * pieces // (QUERY_TOKENS // length))
    size = -(-B * pieces // groups)

    def grouped(x: Float[Array, "B P *D"]) -> Float[Array, "groups size length *D"]:
        rest = x.shape[2:]
        x = pad(x, (B, pieces * length, *rest)).reshape(B * pieces, length, *rest)
        return pad(x, (groups * size, length, *rest)).reshape(groups, size, length, *rest)

    def score(group: tuple[Array, Array]) -> tuple[Float[Array, "size N"], Int[Array, "N size length"] | None]:
        q, weight = group
        best, index = best_similarities(q.reshape(size * length, D), d, d_mask, with_index=with_index)
        if d_mask is not None:
            best = jnp.where(jnp.any(d_mask, axis=1)[None], best, 0.0)
        late = jnp.sum(best.reshape(size, length, N) * weight[:, :, None], axis=1)
        return late, None if index is None else index.T.reshape(N, size, length)

    if groups == pieces == 1:
        return score((q, weight))
    of_groups = lax.map(score, (grouped(q), grouped(weight)))
    scores = of_groups[0].reshape(groups * size, N)[: B * pieces].reshape(B, pieces, N).sum(axis=1)
    if of_groups[1] is None:
        return scores, None
    index = jnp.moveaxis(of_groups[1], 0, 1).reshape(N, groups * size, length)[:, : B * pieces]
    return scores, index.reshape(N, B, pieces * length)[:, :, :P]


def one_hot_gradients(
    q: Float[Array, "B P D"],
    d: Float[Array, "N L D"],
    d_mask: Bool[Array, "N L"] | None,
    weight: Float[Array, "B P"],
    index: Int[Array, "N B P"],
    g: Float[Array, "B N"],
) -> tuple[Float[Array, "B P D"], Float[Array, "N L D"]]:
    """Returns the gradients by two products with the weights at the positions of the maxima: `argmax.Gradients`.

    Of bfloat16 tokens the weights are rounded to bfloat16, as the gradient will be.
    """
    (B, P, D), (N, L, _) = q.shape, d.shape
    q, d = q.reshape(B * P, D), kept(d, d_mask)
    at, w = index.reshape(N, B * P, 1), (g.T[:, :, None] * weight[None]).reshape(N, B * P, 1)
    place = like(lax.broadcasted_iota(jnp.int32, (1, 1, L), 2), at)
    matrix = jnp.where(at == place, w, 0.0)  # [N, B * P, L]
    if q.dtype == d.dtype == jnp.bfloat16:
        matrix = matrix.astype(jnp.bfloat16)
    dq = _product("nql,nld->qd", matrix, d).reshape(B, P, D)
    # As one product of documents that fill tiles the compiler would write it in another order, and copy it.
    dd = (
        _product("nql,qd->nld", matrix, q)
        if L % ROWS
        else _product("nql,nqd->nld", matrix, jnp.broadcast_to(q[None], (N, *q.shape)))
    )
    return dq, dd.astype(d.dtype)


FUSED = Way(fused_forward, one_hot_gradients)


def _product(axes: str, a: Num[Array, ...], b: Num[Array, ...]) -> Float[Array, ...]:
    """Returns sums of products in float32, of unrounded operands."""
    dtype, exact = compute_dtype(a, b), lax.Precision.DEFAULT
    if not a.dtype == b.dtype == jnp.bfloat16:
        # TPUs have no float16, and would round it. What was converted from 16 or 8 bits takes fewer passes.
        a, b, exact = a.astype(dtype), b.astype(dtype), lax.Precision.HIGHEST
    product: Array = jnp.einsum(axes, a, b, precision=exact, preferred_element_type=dtype)
    return product
