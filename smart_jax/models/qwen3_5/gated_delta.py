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
from jax import lax
from jaxtyping import Array, Float

# Natural logarithm of a share that is 0 in float32, so that what would fade a state more is the same.
NOTHING_LEFT = -128.0
STEPS = 1024.0  # to which sums of logarithms are exact: 2^24 / 1,024 = 128 tokens of a chunk times 128

_einsum = partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def gated_delta(
    q: Float[Array, "B L keys C"],
    k: Float[Array, "B L keys C"],
    v: Float[Array, "B L A width"],
    g: Float[Array, "B L A"],
    beta: Float[Array, "B L A"],
    *,
    chunk: int = 64,
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
    if chunk not in (1, 2, 4, 8, 16, 32, 64, 128):
        raise ValueError(f"a chunk cannot have {chunk} positions: choose a power of two up to 128")
    chunk = min(chunk, 1 << max(length - 1, 0).bit_length())
    grouped = (keys, values // keys)
    chunks = (
        *(_in_chunks(x, chunk, "bnigc->nbgic") for x in (q, k)),
        _in_chunks(v.reshape(*v.shape[:2], *grouped, -1), chunk, "bnigrw->nbgirw"),
        *(_in_chunks(x.reshape(*x.shape[:2], *grouped), chunk, "bnigr->nbgri") for x in (g, beta)),
    )
    empty = jnp.zeros((len(k), keys, k.shape[3], values // keys, v.shape[3]))
    _, read = lax.scan(jax.checkpoint(_step, prevent_cse=False), empty, chunks)
    joined = jnp.einsum("nbgirw->bnigrw", read).reshape(len(v), -1, *v.shape[2:])
    return joined[:, :length]


def _in_chunks(x: Float[Array, "B L ..."], chunk: int, axes: str) -> Float[Array, ...]:
    """Returns float32 in chunks, the last of them filled up with zeros: they write nothing and fade nothing.

    Args:
      x: an array of positions.
      chunk: how many a chunk has.
      axes: by `einsum`, how the array is turned once its second axis is two: chunks n, and positions i of one.
    """
    filled = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, -x.shape[1] % chunk), *((0, 0),) * (x.ndim - 2)))
    return jnp.einsum(axes, filled.reshape(len(x), -1, chunk, *x.shape[2:]))


def _step(
    state: Float[Array, "B keys C shared width"],
    inputs: tuple[
        Float[Array, "B keys chunk C"],
        Float[Array, "B keys chunk C"],
        Float[Array, "B keys chunk shared width"],
        Float[Array, "B keys shared chunk"],
        Float[Array, "B keys shared chunk"],
    ],
) -> tuple[Float[Array, "B keys C shared width"], Float[Array, "B keys chunk shared width"]]:
    """Returns the state after a chunk, and what its positions read."""
    q, k, v, g, beta = inputs
    faded, between, rest = _shares(g)
    products = (_einsum("bgic,bgjc->bgij", x, k)[:, :, None] * between for x in (q, k))
    inside, system = next(products), jnp.tril(beta[..., None] * next(products), -1)
    held, before = (_columns(faded) * _einsum("bgic,bgcrw->bgirw", x, state) for x in (k, q))
    written = _einsum("bgrij,bgjrw->bgirw", _inverse(system), _columns(beta) * (v - held))
    read = before + _einsum("bgrij,bgjrw->bgirw", inside, written)
    kept = faded[:, :, None, :, -1:] * state
    return kept + _einsum("bgic,bgirw->bgcrw", k, _columns(rest) * written), read


def _columns(x: Float[Array, "B keys shared chunk"]) -> Float[Array, "B keys chunk shared 1"]:
    """Returns factors of positions, as they multiply vectors."""
    return jnp.swapaxes(x, 2, 3)[..., None]


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
    causal = jnp.tril(jnp.ones(differences.shape[-2:], bool)).reshape((1,) * (g.ndim - 1) + differences.shape[-2:])
    between = jnp.exp(jnp.where(causal, differences, -jnp.inf))  # masked before: later positions would overflow
    return jnp.exp(coarse + fine), between, between[..., -1, :]


@jax.custom_jvp
def _inverse(system: Float[Array, "*batch n n"]) -> Float[Array, "*batch n n"]:
    """Returns the inverse of I + system, which is 0 on and above its diagonal; n is a power of two."""
    *batch, n, _ = system.shape
    found = jnp.ones((*batch, n, 1, 1), system.dtype)  # inverses of the blocks on the diagonal, of growing size
    while (size := found.shape[-1]) < n:
        pairs = n // (2 * size)
        tiles = system.reshape(*batch, pairs, 2, size, pairs, 2, size)
        below = jnp.stack([tiles[..., i, 1, :, i, 0, :] for i in range(pairs)], axis=-3)
        first, second = found[..., 0::2, :, :], found[..., 1::2, :, :]
        corner = -_einsum("...ij,...jk->...ik", second, _einsum("...ij,...jk->...ik", below, first))
        top = jnp.concatenate([first, jnp.zeros_like(corner)], -1)
        found = jnp.concatenate([top, jnp.concatenate([corner, second], -1)], -2)
    return found.reshape(system.shape)


@_inverse.defjvp
def _inverse_tangent(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    inverse = _inverse(*primals)
    return inverse, -_einsum("...ij,...jk,...kl->...il", inverse, tangents[0], inverse)
