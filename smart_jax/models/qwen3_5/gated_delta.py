"""The gated delta rule (arXiv:2412.06464) in chunks: linear attention whose state forgets, and corrects itself.

A head's state S [C, width] holds values under keys. A token fades it, and writes by how much its value differs from
what the state holds under its key; then it reads:

    S <- e^g S;  S <- S + k (beta (v - S^T k))^T;  o = S^T q.

Within a chunk the writes x follow from each other by a triangular system (I + A) x = r. There A_ij for j < i is
beta_i (k_i . k_j) e^(c_i - c_j), c the running sum of g, and r what a token would write if the chunk began with it.
The inverse of I + A is put together from those of blocks on its diagonal. Powers of A, which doubling multiplies, would
lose every digit where keys resemble each other: they grow by many orders before they vanish, the inverse does not.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

# Natural logarithm of a share that is 0 in float32, so that what would fade a state more is the same.
NOTHING_LEFT = -128.0
STEPS = 1024.0  # to which sums of logarithms are exact: 2^24 / 1,024 = 128 tokens of a chunk times 128

# Positions of a chunk. A TPU's products are of 128 rows and columns, whether an array fills them or not.
CHUNKS = {"cpu": 32, "gpu": 64, "tpu": 128}

_einsum = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def gated_delta(
    q: Float[Array, "B L keys C"],
    k: Float[Array, "B L keys C"],
    v: Float[Array, "B L A width"],
    g: Float[Array, "B L A"],
    beta: Float[Array, "B L A"],
    *,
    chunk: int | None = None,
) -> Float[Array, "B L A width"]:
    """Returns what each position reads of the state that it and the positions before it have left.

    The state is zero before the first position. Everything is computed in float32, with products at full precision.
    The backward pass keeps the arguments and the state before each chunk, and computes the rest again.

    Args:
      q: queries, already normalised and scaled.
      k: keys of unit length; each head of them serves as many neighbouring heads of values as there are for one.
      v: values.
      g: natural logarithm of the share of the state that stays at each position; not positive.
      beta: by how much of the difference a position corrects the state, 0 to 1.
      chunk: positions of a chunk, a power of two up to 128: those of one are computed at once, and chunks in turn.
        None = what suits the device, see `CHUNKS`.

    Returns:
      Sums of values, float32.

    Raises:
      ValueError: the heads of keys do not divide those of values, or the chunk is none of 1, 2, 4, ... 128.

    Example:
      >>> q = k = jnp.ones((1, 3, 1, 1))
      >>> v = jnp.array([4.0, 0.0, 1.0]).reshape(1, 3, 1, 1)
      >>> half, nothing = jnp.full((1, 3, 1), 0.5), jnp.zeros((1, 3, 1))
      >>> gated_delta(q, k, v, nothing, half).ravel()
      Array([2., 1., 1.], dtype=float32)
    """
    length, keys, values = k.shape[1], k.shape[2], v.shape[2]
    if values % keys:
        raise ValueError(f"{keys} heads of keys cannot serve {values} heads of values: choose a multiple of {keys}")
    chunk = CHUNKS.get(jax.default_backend(), 64) if chunk is None else chunk
    if chunk not in (1, 2, 4, 8, 16, 32, 64, 128):
        raise ValueError(f"a chunk cannot have {chunk} positions: choose a power of two up to 128")
    chunk = min(chunk, 1 << max(length - 1, 0).bit_length())
    chunks = tuple(_in_chunks(x, chunk) for x in (q, k, v, g, beta))
    empty = jnp.zeros((len(k), values, k.shape[3], v.shape[3]))
    _, read = lax.scan(jax.checkpoint(_step, prevent_cse=False), empty, chunks)
    joined = jnp.einsum("nbaiw->bniaw", read).reshape(len(v), -1, *v.shape[2:])
    return joined[:, :length]


def _in_chunks(x: Float[Array, "B L heads ..."], chunk: int) -> Float[Array, "chunks B heads chunk ..."]:
    """Returns float32 in chunks, the last of them filled up with zeros: they write nothing and fade nothing."""
    filled = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, -x.shape[1] % chunk), *((0, 0),) * (x.ndim - 2)))
    return jnp.einsum("bnia...->nbai...", filled.reshape(len(x), -1, chunk, *x.shape[2:]))


def _step(
    state: Float[Array, "B A C width"],
    inputs: tuple[
        Float[Array, "B keys chunk C"],
        Float[Array, "B keys chunk C"],
        Float[Array, "B A chunk width"],
        Float[Array, "B A chunk"],
        Float[Array, "B A chunk"],
    ],
) -> tuple[Float[Array, "B A C width"], Float[Array, "B A chunk width"]]:
    """Returns the state after a chunk, and what its positions read."""
    q, k, v, g, beta = inputs
    shared = v.shape[1] // k.shape[1]
    faded, between, rest = _shares(g)
    faded, rest, beta = faded[..., None], rest[..., None], beta[..., None]
    inside, others = (between * jnp.repeat(_einsum("bgic,bgjc->bgij", x, k), shared, 1) for x in (q, k))
    inverse = _inverse(_where(_below(1, k.shape[2]), beta * others))
    q, k = (jnp.repeat(x, shared, 1) for x in (q, k))
    held, before = (_einsum("baic,bacw->baiw", x, state) for x in (k, q))
    written = _einsum("baij,bajw->baiw", inverse, beta * v - beta * faded * held)
    read = faded * before + _einsum("baij,bajw->baiw", inside, written)
    return faded[:, :, -1:] * state + _einsum("baic,baiw->bacw", k, rest * written), read


def _shares(
    g: Float[Array, "*heads chunk"],
) -> tuple[Float[Array, "*heads chunk"], Float[Array, "*heads chunk chunk"], Float[Array, "*heads chunk"]]:
    """Returns which share is left at each position of the state before the chunk, and of what others wrote.

    Returns:
      The share of the state before the chunk; at position i of what position j wrote, 0 where j is later; and at the
      last position of what each wrote.
    """
    # A sum of logarithms is split in two: one of whole steps, which is exact, and one of what is left of them, which is
    # small. A difference of plain sums would have their error, which is large where one token fades very much.
    g = jnp.maximum(g, NOTHING_LEFT)
    coarse = lax.stop_gradient(jnp.round(g * STEPS) / STEPS)
    coarse, fine = jnp.cumsum(coarse, -1), jnp.cumsum(g - coarse, -1)
    differences = (coarse[..., :, None] - coarse[..., None, :]) + (fine[..., :, None] - fine[..., None, :])
    causal = np.tri(g.shape[-1], dtype=bool)
    between = jnp.exp(_where(causal, differences, -jnp.inf))  # masked before: later positions would overflow
    return jnp.exp(coarse + fine), between, jnp.exp((coarse[..., -1:] - coarse) + (fine[..., -1:] - fine))


def _where(
    mask: Bool[np.ndarray, "n n"], x: Float[Array, "*batch n n"], other: float = 0.0
) -> Float[Array, "*batch n n"]:
    """Returns the matrices where the mask is true, and the other value elsewhere."""
    return jnp.where(mask.reshape((1,) * (x.ndim - 2) + mask.shape), x, other)


def _below(size: int, n: int) -> Bool[np.ndarray, "n n"]:
    """Returns where a matrix lies below the blocks of a size on its diagonal."""
    block = np.arange(n) // size
    return block[:, None] > block


@jax.custom_jvp
def _inverse(system: Float[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
    """Returns the inverse of I + system, which is 0 on and above its diagonal; n is a power of two."""
    n = system.shape[-1]
    system = lax.optimization_barrier(system)  # else XLA computes it again, with its exponentials, for every product
    found = jnp.broadcast_to(jnp.eye(n), system.shape)  # inverses of the blocks on the diagonal, of growing size
    size = 1
    while size < n:
        # The corner between two blocks is -second corner first. Whole products, most of whose factors are zeros, take a
        # TPU less time than to cut the corners out of arrays that lie in tiles of 128 columns.
        corners = _where(_below(size, n) & ~_below(2 * size, n), system)
        product = partial(_einsum, "...ij,...jk->...ik")
        found = found - (corners if size == 1 else product(found, product(corners, found)))
        size *= 2
    return found


@_inverse.defjvp
def _inverse_tangent(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    inverse = _inverse(*primals)
    return inverse, -_einsum("...ij,...jk,...kl->...il", inverse, tangents[0], inverse)
