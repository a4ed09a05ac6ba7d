"""Tokens as 8-bit integers with a scale each, made at about the speed of memory."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from smart_jax.runtime import bounded

LARGEST = 127
UNIT = np.float32(1 / LARGEST)
# Smaller ones have no reciprocal, or belong to components that XLA takes for 0 and NumPy does not.
LEAST_SCALE = 4 * np.finfo(np.float32).tiny
VALUES = 2**20  # of a chunk, which stays in the cache from the search for its maxima to its rounding
LEAST_LANES = 64
INTEGERS = np.float32(1.5 * 2**23)  # a float32 of this size holds an integer in its last bits


def quantize(tokens: Float[np.ndarray, "T D"]) -> tuple[Int[np.ndarray, "T D"], Float[np.ndarray, " T"]]:
    """Returns int8 [T, D] and float32 scales [T]: each token's largest component becomes 127 or -127.

    Large arrays go through XLA on the host, whole chunks at a time, so that there is one compilation for a width.
    """
    integers, scales = np.empty(tokens.shape, np.int8), np.empty(len(tokens), np.float32)
    step = max(1, VALUES // tokens.shape[1])
    cpu = _cpu() if len(tokens) >= step else None
    for start in range(0, len(tokens), step):
        chunk = tokens[start : start + step]
        if cpu is not None and len(chunk) == step:
            made = jax.device_get(_by_xla(jax.device_put(chunk, cpu)))
        else:
            made = _by_numpy(chunk)
        integers[start : start + step], scales[start : start + step] = made
    return integers, scales


def _cpu() -> jax.Device | None:
    """Returns the host as a device, or None where JAX was told to leave it out."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


def _by_numpy(tokens: Float[np.ndarray, "T D"]) -> tuple[Int[np.ndarray, "T D"], Float[np.ndarray, " T"]]:
    part = tokens.astype(np.float32)
    scales = np.abs(part).max(axis=1, initial=0) * UNIT
    scales[scales < LEAST_SCALE] = 1  # a token of zeros
    part *= (1 / scales)[:, None]
    return np.rint(part, out=part).astype(np.int8), scales


@bounded
@jax.jit
def _by_xla(tokens: Float[Array, "T D"]) -> tuple[Int[Array, "T D"], Float[Array, " T"]]:
    part = tokens.astype(jnp.float32)
    scales = _largest(jnp.abs(part), in_slices=tokens.dtype.itemsize == 2) * UNIT
    scales = jnp.where(scales < LEAST_SCALE, 1, scales)
    sums = jnp.rint(part * (1 / scales)[:, None]) + INTEGERS  # exact, and faster than XLA's conversion, which clamps
    return lax.bitcast_convert_type(sums, jnp.int32).astype(jnp.int8), scales


def _largest(values: Float[Array, "T D"], in_slices: bool) -> Float[Array, " T"]:
    """Returns each row's maximum: in slices, first of these, component by component, all in operations on vectors.

    That is worth it where the values are converted on the way.
    """
    width = values.shape[1]
    lanes = max(LEAST_LANES, width // 8)
    if not in_slices or width % lanes:
        return values.max(axis=1)
    best = values[:, :lanes]
    for start in range(lanes, width, lanes):
        best = jnp.maximum(best, values[:, start : start + lanes])
    return best.max(axis=1)
