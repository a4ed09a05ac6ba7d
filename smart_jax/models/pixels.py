"""Bytes of images to the values that a vision tower reads, inside jit.

A patch leaves the host as the bytes of its pixels: an eighth of its float32 values, of which a still image has each
twice. The reference rescales a byte in float64 and normalises it in float32; a table of those values, one for each byte
of a channel, is exact. On an accelerator arithmetic is cheaper than a table, and as exact in bfloat16, with the
constants that models use. A TPU, which looks values up one by one, computes in float32, too: the last bits may differ.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, UInt8

from smart_jax.typing import HostOrDevice


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """Value of a byte of a pixel: (byte * rescale_factor - mean) / std, for each RGB channel.

    Attributes:
      mean, std: of red, green and blue.
      rescale_factor: applied to a byte first.

    Example:
      >>> Normalisation().table()[0, [0, 255]].tolist()
      [-1.0, 1.0]
    """

    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    rescale_factor: float = 1 / 255

    def table(self) -> Float[np.ndarray, "3 256"]:
        """Returns the value of every byte, rounded as in the reference: rescaled in float64, then in float32."""
        rescaled = (np.arange(256, dtype=np.float64) * self.rescale_factor).astype(np.float32)
        mean, std = (np.array(x, np.float32)[:, None] for x in (self.mean, self.std))
        return (rescaled[None] - mean) / std

    def line(self) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]:
        """Returns centre and scale in float32, by which (byte - centre) * scale is about the value."""
        mean, std = np.array(self.mean), np.array(self.std)
        return (mean / self.rescale_factor).astype(np.float32), (self.rescale_factor / std).astype(np.float32)

    def is_linear(self, dtype: DTypeLike) -> bool:
        """Returns whether `line`, rounded to the dtype, gives the table's values in it, however float32 is rounded."""
        if jnp.finfo(dtype).nmant >= jnp.finfo(jnp.float32).nmant:
            return False
        kind = jnp.dtype(dtype)
        centre, scale = (x[:, None].astype(np.float64) for x in self.line())
        line, table = (np.arange(256.0)[None] - centre) * scale, self.table().astype(kind)
        error = 1.01 * 2.0**-23 * np.abs(line)  # of a difference and a product, both rounded to float32
        return all(np.array_equal((line + e).astype(kind), table) for e in (-error, error))


def normalised(
    patches: UInt8[HostOrDevice, "G V E"], how: Normalisation, *, size: int, frames: int, dtype: DTypeLike
) -> Float[Array, "G V values"]:
    """Returns the values of patches in the order of the reference: channel, frame, row, column.

    Args:
      patches: bytes in the order frame, row, column, channel; of one frame, which then stands for all, or of `frames`.
      how: from a byte to a value.
      size: side of a patch in pixels.
      frames: number of frames of a patch.
      dtype: of the result. The values are those of `how.table()`, rounded to it; in float32 on a TPU, within 6e-7.

    Raises:
      ValueError: the patches are of another size.

    Example:
      >>> patches = np.zeros((1, 4, 12), np.uint8)
      >>> normalised(patches, Normalisation(), size=2, frames=2, dtype=jnp.float32).shape
      (1, 4, 24)
    """
    bins, count, stored = patches.shape
    one_frame = 3 * size**2
    if stored not in (one_frame, frames * one_frame):
        raise ValueError(f"patches have {stored} bytes, expected {one_frame} for a frame, of 1 or {frames} frames")
    values = byte_values(patches, how, dtype=dtype).reshape(bins, count, stored // one_frame, size, size, 3)
    values = jnp.moveaxis(values, -1, 2)  # [G, V, 3, stored frames, size, size]
    return jnp.broadcast_to(values, (bins, count, 3, frames, size, size)).reshape(bins, count, -1)


def byte_values(
    patches: UInt8[HostOrDevice, "G V E"], how: Normalisation, *, dtype: DTypeLike
) -> Float[Array, "G V E"]:
    """Returns the values of bytes in their own order, of which the channel is the last axis.

    Args:
      patches: bytes of patches, channel by channel of each pixel.
      how, dtype: as of `normalised`.

    Example:
      >>> byte_values(np.full((1, 1, 3), 255, np.uint8), Normalisation(), dtype=jnp.float32).tolist()
      [[[1.0, 1.0, 1.0]]]
    """
    x = jnp.asarray(patches)
    x = x.reshape(*x.shape[:2], -1, 3)
    if jax.default_backend() == "tpu" or how.is_linear(dtype):
        centre, scale = (jnp.asarray(constant).reshape(1, 1, 1, 3) for constant in how.line())
        values = ((x.astype(jnp.float32) - centre) * scale).astype(dtype)
    else:
        place = x.astype(jnp.int32) + 256 * jnp.arange(3).reshape(1, 1, 1, 3)
        values = jnp.asarray(how.table().reshape(-1), dtype).at[place].get(mode="promise_in_bounds")
    return values.reshape(patches.shape)
