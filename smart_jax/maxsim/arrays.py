"""Inner products, maxima, dtypes, padding and mesh axes: what the implementations of MaxSim share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int, Num

from smart_jax.typing import HostOrDevice

Tree = TypeVar("Tree")


def inner_products(q: Num[HostOrDevice, "*P D"], d: Num[HostOrDevice, "T D"]) -> Float[Array, "*P T"]:
    """Returns the inner products of all vectors, accumulated in float32 without rounding the operands.

    Args:
      q: vectors along the last axis.
      d: as many rows as there are inner products with each of these.

    Returns:
      float32, or float64 if an operand is.

    Example:
      >>> import jax.numpy as jnp
      >>> inner_products(jnp.array([0.5, 1.0]), jnp.array([[2, 0], [1, 1]], jnp.int8))
      Array([1. , 1.5], dtype=float32)
    """
    dtype = compute_dtype(q, d)
    # Equal half-precision types stay: their products are exact in float32.
    if q.dtype != d.dtype or q.dtype == jnp.int8:
        q, d = q.astype(dtype), d.astype(dtype)
    return jnp.einsum("...d,td->...t", q, d, precision=lax.Precision.HIGHEST, preferred_element_type=dtype)


def largest(
    x: Float[Array, "*shape"], axis: int, with_index: bool
) -> tuple[Float[Array, "*reduced"], Int[Array, "*reduced"] | None]:
    """Returns the maximum along an axis, and its first position if asked for; NaN is larger than any number.

    `jnp.max` leaves open what becomes of NaN, and on a CPU skips it.
    """
    low = jnp.array(-jnp.inf, x.dtype)
    if not with_index:
        best: Array = lax.reduce(x, like(low, x), _larger, (axis,))
        return best, None
    position = lax.broadcasted_iota(jnp.int32, x.shape, axis)
    start = like((low, jnp.int32(x.shape[axis])), x)
    return lax.reduce((x, like(position, x)), start, _first_of_larger, (axis,))  # type: ignore[no-any-return]


def _larger(a: Float[Array, ""], b: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.where((a > b) | (a != a), a, b)


def _first_of_larger(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
    (x, i), (y, j) = a, b
    larger = (x > y) | (x != x)
    return jnp.where(larger, x, y), jnp.where(larger | ((x == y) & (i < j)), i, j)


def kept(tokens: Float[Array, "*N L D"], mask: Bool[Array, "*N L"] | None) -> Float[Array, "*N L D"]:
    """Returns the tokens with zeros for dropped ones: a weight of 0 does not silence a NaN."""
    return tokens if mask is None else jnp.where(mask[..., None], tokens, 0)


def cut_bits(x: Array, at: Sequence[Int[Array, ""] | int], shape: Sequence[int]) -> Array:
    """Returns the part of an array that begins at `at`, of float16 as float32; a loop that cuts converts no others.

    XLA for CPUs cuts such floats as float32, to which it converts all of the array before the loop. Of integers it does
    not; the barrier keeps the step to integers within the loop.
    """
    if x.dtype not in (jnp.bfloat16, jnp.float16):
        part: Array = lax.dynamic_slice(x, at, shape)
        return part
    x, at = lax.optimization_barrier((x, tuple(map(jnp.asarray, at))))
    part = lax.bitcast_convert_type(lax.dynamic_slice(lax.bitcast_convert_type(x, jnp.uint16), at, shape), x.dtype)
    return part.astype(jnp.float32) if x.dtype == jnp.float16 else part


def compute_dtype(q: HostOrDevice, d: HostOrDevice) -> jnp.dtype:
    """Returns the dtype of products and sums: float32, or float64 if an operand is."""
    return jnp.promote_types(jnp.promote_types(q.dtype, d.dtype), jnp.float32)


def like(tree: Tree, *arrays: HostOrDevice | None) -> Tree:
    """Returns the tree, varying over the manual mesh axes that any array varies over, as shard_map asks of a carry."""
    axes: frozenset[str] = frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in arrays if x is not None))
    varying: Tree = jax.tree.map(lambda x: _vary(x, axes), tree)
    return varying


def _vary(x: HostOrDevice, axes: frozenset[str]) -> HostOrDevice:
    missing = axes - jax.typeof(x).manual_axis_type.varying
    return lax.pcast(x, tuple(missing), to="varying") if missing else x


def pad(x: Array, shape: tuple[int, ...]) -> Array:
    """Returns the array with zeros after each axis up to `shape`: they change no inner product."""
    return jnp.pad(x, [(0, size - old) for old, size in zip(x.shape, shape, strict=True)])


def round_up(n: int, unit: int) -> int:
    """Returns the smallest multiple of the unit that is at least n."""
    return -(-n // unit) * unit
