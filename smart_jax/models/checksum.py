"""Checksum of a model's parameters, the same on every number and kind of devices."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import UInt

from smart_jax.models.torch_layout import Params


def checksum(params: Params) -> str:
    """Returns 16 hexadecimal digits of all parameters' names, shapes, dtypes and values.

    Values are summed as integers, which has no rounding: the digits do not depend on the devices.

    Example:
      >>> from flax import nnx
      >>> len(checksum(nnx.State({"scale": nnx.Param(jnp.ones(2))})))
      16
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    digest = hashlib.blake2b(digest_size=8)
    for (path, leaf), total in zip(leaves, array_sums([leaf for _, leaf in leaves]), strict=True):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype} {int(total)}\n".encode())
    return digest.hexdigest()


@jax.jit
def array_sums(leaves: Sequence[jax.Array]) -> list[UInt[jax.Array, ""]]:
    """Returns a sum of each array's bits, weighted by place and modulo 2**32.

    Example:
      >>> [int(total) for total in array_sums([jnp.array([1, 2], jnp.int32), jnp.array([2, 1], jnp.int32)])]
      [7, 5]
    """

    def total(x: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
        place = jax.lax.iota(jnp.uint32, x.size).reshape(x.shape)
        return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)  # odd: no bit is lost

    return [total(leaf) for leaf in leaves]
