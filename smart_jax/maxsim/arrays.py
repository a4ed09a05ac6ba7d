"""Inner products, dtypes, padding and mesh axes: what the implementations of MaxSim share."""

from __future__ import annotations

from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Num

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


def compute_dtype(q: HostOrDevice, d: HostOrDevice) -> jnp.dtype:
    """Returns the dtype of products and sums: float32, or float64 if an operand is."""
    return jnp.promote_types(jnp.promote_types(q.dtype, d.dtype), jnp.float32)


def like(tree: Tree, *arrays: Array | None) -> Tree:
    """Returns the tree, varying over the manual mesh axes that any array varies over, as shard_map asks of a carry."""
    axes: frozenset[str] = frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in arrays if x is not None))
    varying: Tree = jax.tree.map(lambda x: _vary(x, axes), tree)
    return varying


def _vary(x: Array, axes: frozenset[str]) -> Array:
    missing = axes - jax.typeof(x).manual_axis_type.varying
    return lax.pcast(x, tuple(missing), to="varying") if missing else x


def pad(x: Array, shape: tuple[int, ...]) -> Array:
    """Returns the array with zeros after each axis up to `shape`: they change no inner product."""
    return jnp.pad(x, [(0, size - old) for old, size in zip(x.shape, shape, strict=True)])


def round_up(n: int, unit: int) -> int:
    """Returns the smallest multiple of the unit that is at least n."""
    return -(-n // unit) * unit
