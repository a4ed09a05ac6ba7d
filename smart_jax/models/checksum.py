"""Checksums of a model's parameters, the same on every number and kind of devices."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt

from smart_jax.models.torch_layout import Params
from smart_jax.typing import HostOrDevice

SAMPLED = 32  # rows and columns of a matrix


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

    return [_sum(leaf) for leaf in leaves]


def sample_checksum(params: Params) -> str:
    """Returns 16 hexadecimal digits of all parameters' names and shapes, and of a sample of their values.

    Of each parameter a thousand values count, spread over all, rounded to bfloat16: the digits do not depend on the
    dtype either, and reading them takes milliseconds where `checksum` reads gigabytes.

    Example:
      >>> from flax import nnx
      >>> one = nnx.State({"scale": nnx.Param(jnp.ones(2))})
      >>> sample_checksum(one) == sample_checksum(jax.tree.map(lambda x: x.astype(jnp.float16), one))
      True
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    digest, totals = hashlib.blake2b(digest_size=8), jax.device_get([_sample_sum(leaf) for _, leaf in leaves])
    for (path, leaf), total in zip(leaves, totals, strict=True):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {int(total)}\n".encode())
    return digest.hexdigest()


def _sample_sum(x: jax.Array) -> UInt[HostOrDevice, ""]:
    if x.is_fully_addressable and len(x.devices()) == 1 and next(iter(x.devices())).platform == "cpu":
        some = np.ascontiguousarray(jax.device_get(x)[_sample(x.shape)].astype(jnp.bfloat16))  # a view: not copied
        bits = some.view(np.uint16).astype(np.uint32).reshape(-1)
        return np.asarray(np.sum(bits * (2 * np.arange(some.size, dtype=np.uint32) + 1), dtype=np.uint32))
    total: jax.Array = _sample_sum_of(x)
    return total


@jax.jit
def _sample_sum_of(x: jax.Array) -> UInt[jax.Array, ""]:
    return _sum(x[_sample(x.shape)].astype(jnp.bfloat16))


def _sample(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """Returns where the sample is: rows and columns of matrices, and a few of whatever other axes there are."""
    most = [4] * (len(shape) - 2) + [SAMPLED] * min(len(shape), 2) if len(shape) > 1 else [SAMPLED**2] * len(shape)
    return tuple(slice(None, None, max(1, -(-size // count))) for size, count in zip(shape, most, strict=True))


def _sum(x: jax.Array) -> UInt[jax.Array, ""]:
    bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
    place = jax.lax.iota(jnp.uint32, x.size).reshape(x.shape)
    return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)  # odd: no bit is lost
