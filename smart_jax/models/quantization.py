"""Frozen kernels in 8 or 4 bits (arXiv:2305.14314)."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int8, UInt8

from smart_jax.models.placement import mesh_sharding, place_beside

QUANTIZATIONS = ("none", "int8", "nf4")  # "none" = the kernel as it is, see `quantize` for the others
NF4_BLOCK = 64
# Quantiles of the normal distribution, scaled to [-1, 1]: arXiv:2305.14314, appendix E.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


class QuantizedKernel(nnx.Module):
    """A frozen kernel in 8 or 4 bits, see `quantize`."""

    def __init__(self, kernel: Float[Array | jax.ShapeDtypeStruct, "inputs outputs"], kind: str) -> None:
        self.kind, self.dtype = kind, kernel.dtype
        if isinstance(kernel, jax.ShapeDtypeStruct):
            codes, scales = jax.eval_shape(partial(quantize, kind=kind), kernel)
        else:
            codes, scales = jax.jit(quantize, static_argnames="kind")(kernel, kind=kind)
        if (sharding := mesh_sharding(kernel)) is not None:
            codes, scales = (place_beside(x, sharding.spec, kernel) for x in (codes, scales))
        self.codes, self.scales = nnx.Variable(codes), nnx.Variable(scales)

    def product(self, x: Float[Array, "*B inputs"]) -> Float[Array, "*B outputs"]:
        """Returns x W; the backward pass restores the kernel again, so that it is not kept for it."""

        @jax.checkpoint
        def product(x: Array, codes: Array, scales: Array) -> Array:
            return x @ dequantize(codes, scales, self.kind).astype(self.dtype)

        y: Array = product(x, self.codes[...], self.scales[...])
        return y


def quantize(
    kernel: Float[Array, "inputs outputs"], kind: str
) -> tuple[Int8[Array, "inputs outputs"] | UInt8[Array, "half outputs"], Float[Array, "blocks outputs"]]:
    """Returns codes and scales of a kernel.

    int8: codes int8 [inputs, outputs] and one scale for each output (a single block of inputs), its largest absolute
    weight / 127. nf4: codes uint8 [inputs / 2, outputs], input 2 i in the low half of byte i, and one scale for each
    block of inputs, its largest absolute weight. A block has 64 inputs or, where 64 does not divide their number, the
    largest smaller power of two that does.

    Raises:
      ValueError: the number of inputs is odd, and kind is "nf4".
    """
    weight = kernel.astype(jnp.float32)
    if kind == "int8":
        scales = jnp.max(jnp.abs(weight), axis=0, keepdims=True) / 127
        return jnp.round(weight / _not_zero(scales)).astype(jnp.int8), scales
    inputs, outputs = weight.shape
    if inputs % 2:
        raise ValueError(f"lora.quantize 'nf4' needs an even number of inputs, not {inputs}: choose 'int8'")
    blocks = weight.reshape(-1, min(NF4_BLOCK, inputs & -inputs), outputs)
    scales = jnp.max(jnp.abs(blocks), axis=1)  # [blocks, outputs]
    relative = (blocks / _not_zero(scales)[:, None]).reshape(inputs, outputs)
    table = jnp.array(NF4)
    codes = jnp.searchsorted((table[1:] + table[:-1]) / 2, relative).astype(jnp.uint8)  # the nearest
    return codes[::2] | codes[1::2] << 4, scales


def dequantize(
    codes: Int8[Array, "inputs outputs"] | UInt8[Array, "half outputs"],
    scales: Float[Array, "blocks outputs"],
    kind: str,
) -> Float[Array, "inputs outputs"]:
    """Returns the kernel that the codes and scales of `quantize` stand for, float32."""
    if kind == "int8":
        return codes.astype(jnp.float32) * scales
    pairs = jnp.stack([codes & 15, codes >> 4], axis=1)  # [inputs / 2, 2, outputs]
    blocks = jnp.array(NF4)[pairs].reshape(len(scales), -1, scales.shape[1])
    return (blocks * scales[:, None]).reshape(-1, scales.shape[1])


def _not_zero(scales: Array) -> Array:
    return jnp.where(scales == 0, 1, scales)
