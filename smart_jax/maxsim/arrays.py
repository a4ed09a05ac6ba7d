"""Products, dtypes, padding, and mesh axes: what the implementations of MaxSim share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Float, Num

from smart_jax.typing import Array


def inner_products(q: Num[Array, "*S D"], d: Num[Array, "T D"]) -> Float[Array, "*S T"]:
    """Inner products accumulated in float32 (float64 if an operand is), without rounding the operands."""
    dtype = compute_dtype(q, d)
    # Equal half-precision types stay: their products are exact in float32.
    if q.dtype != d.dtype or q.dtype == jnp.int8:
        q, d = q.astype(dtype), d.astype(dtype)
    return jnp.einsum("...d,td->...t", q, d, precision=lax.Precision.HIGHEST, preferred_element_type=dtype)


def compute_dtype(q, d) -> jnp.dtype:
    return jnp.promote_types(jnp.promote_types(q.dtype, d.dtype), jnp.float32)


def like(tree, *arrays):
    """The tree, varying over the manual mesh axes that any of the arrays vary over: what shard_map asks of a carry."""
    axes = frozenset().union(*(jax.typeof(x).manual_axis_type.varying for x in arrays if x is not None))
    return jax.tree.map(lambda x: _vary(x, axes), tree)


def _vary(x, axes: frozenset):
    missing = axes - jax.typeof(x).manual_axis_type.varying
    return lax.pcast(x, tuple(missing), to="varying") if missing else x


def pad(x: Array, shape: tuple[int, ...]) -> Array:
    """Zeros after each axis up to `shape`: they change no inner product, and are not kept as tokens."""
    return jnp.pad(x, [(0, size - old) for old, size in zip(x.shape, shape, strict=True)])


def round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit
