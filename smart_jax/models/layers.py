"""Layers that the backbones share; their attributes have Hugging Face's names, so that weights convert by leaf type."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from smart_jax.typing import HostOrDevice


def quick_gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Returns x sigmoid(1.702 x), the approximation of GELU that CLIP and Qwen2-VL's vision tower use."""
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "quick_gelu": quick_gelu,
}

# What a rematerialised layer keeps for the backward pass: nothing, or the results of its products with weights, from
# which norms, rotations, activations and attention (the scores of all pairs of positions) are computed again.
REMAT_POLICIES: dict[str, Callable[..., bool] | None] = {
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}

VISUAL_FEATURES = "visual features"  # name of a vision tower's results, by which a rematerialisation policy keeps them


def rematerialised(layer: Callable[..., Array], remat: bool | str) -> Callable[..., Array]:
    """Returns a call of a layer that the backward pass computes again.

    Args:
      layer: the call, whose first argument is the layer.
      remat: name of a policy in `REMAT_POLICIES`; True = "full", False = the call as it is.
    """
    if not remat:
        return layer
    again: Callable[..., Array] = nnx.remat(layer, policy=REMAT_POLICIES["full" if remat is True else remat])
    return again


def run(layer: nnx.Module, *args: Any, remat: bool | str, **static: Any) -> Array:
    """Returns what a layer makes of its arguments, by `rematerialised`; `static` are arguments that hold no arrays."""

    def call(layer: Callable[..., Array], *args: Any) -> Array:
        return layer(*args, **static)

    return rematerialised(call, remat)(layer, *args)


def linear(inputs: int, outputs: int, *, bias: bool, std: float, rngs: nnx.Rngs) -> nnx.Linear:
    """Returns a linear map whose kernel is drawn from a normal distribution of standard deviation `std`."""
    return nnx.Linear(inputs, outputs, use_bias=bias, kernel_init=nnx.initializers.normal(std), rngs=rngs)


def layer_norm(width: int, eps: float = 1e-6, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """Returns a LayerNorm that computes its variance in two passes."""
    # The fast variance E[x^2] - E[x]^2 loses digits that parity at 2e-5 needs.
    return nnx.LayerNorm(width, epsilon=eps, use_fast_variance=False, rngs=rngs)


class RMSNorm(nnx.Module):
    """Root mean square norm (arXiv:1910.07467), with its gradient written out.

    It computes what flax's does, but keeps less for the backward pass and passes over fewer arrays of x's size.
    """

    def __init__(self, width: int, eps: float) -> None:
        self.scale = nnx.Param(jnp.ones(width))
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Returns x normalised over its last axis."""
        return rms_normalized(x, self.scale[...], self.eps)


def unit_rms(x: Float[Array, "*batch width"], eps: float) -> Float[Array, "*batch width"]:
    """Returns x / sqrt(mean(x^2) + eps), as of a norm without weights."""
    return rms_normalized(x, jnp.ones(x.shape[-1], x.dtype), eps)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_normalized(
    x: Float[Array, "*batch width"], scale: Float[Array, " width"], eps: float
) -> Float[Array, "*batch width"]:
    """Returns x / sqrt(mean(x^2) + eps) * scale, computed in float32, in x's dtype."""
    return _rms_forward(x, scale, eps)[0]


def _rms_forward(x: Array, scale: Array, eps: float) -> tuple[Array, tuple[Array, ...]]:
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * inverse * _as_wide(scale, x)).astype(x.dtype), (x, scale, inverse)


def _rms_backward(eps: float, saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array]:
    x, scale, inverse = saved
    gradient, unit = gradient.astype(jnp.float32), x.astype(jnp.float32) * inverse
    scaled = gradient * _as_wide(scale, x)
    along = jnp.mean(scaled * unit, axis=-1, keepdims=True)
    of_scale = jnp.sum(gradient * unit, axis=tuple(range(x.ndim - 1)))
    return (inverse * (scaled - along * unit)).astype(x.dtype), of_scale.astype(scale.dtype)


def _as_wide(scale: Float[Array, " width"], x: Float[Array, "*batch width"]) -> Float[Array, "*ones width"]:
    """Returns the scale in float32, with as many axes as x."""
    return jnp.expand_dims(scale.astype(jnp.float32), tuple(range(x.ndim - 1)))


rms_normalized.defvjp(_rms_forward, _rms_backward)


def inverse_frequencies(dim: int, theta: float) -> Float[Array, " half"]:
    """Returns theta^(-2 i / dim) for i = 0 ... dim / 2 - 1: radians by which rotary components turn per position."""
    return 1.0 / (theta ** (jnp.arange(0, dim, 2, dtype=jnp.float32) / dim))


class Rotation(NamedTuple):
    """Cosines and sines of rotary angles, float32."""

    cos: Float[Array, "B L half"]
    sin: Float[Array, "B L half"]


def rotate(x: Float[Array, "B L A C"], rotation: Rotation) -> Float[Array, "B L A C"]:
    """Returns x turned (arXiv:2104.09864): components i and i + C / 2 by the i-th angle, computed in float32."""
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = (turn[:, :, None] for turn in rotation)  # [B, L, 1, half]
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x.dtype)


def rotation_of(
    positions: Int[HostOrDevice, "axes B L"], frequencies: Float[Array, " half"], axes: Int[Array, " half"]
) -> Rotation:
    """Returns the rotation whose frequency f follows the position on axis `axes[f]`."""
    angles = jnp.asarray(positions, jnp.float32)[..., None] * frequencies[None, None, None]  # [axes, B, L, half]
    # Cosines are chosen from, not angles: XLA's CPU compiler gathers once, but would compute a cosine again in every
    # fusion that takes it, for each head of each layer.
    index = axes[None, None, None, :]
    return Rotation(*(jnp.take_along_axis(turn(angles), index, axis=0)[0] for turn in (jnp.cos, jnp.sin)))


def mrope(
    position_ids: Int[HostOrDevice, "3 B L"], *, dim: int, theta: float, sections: tuple[int, ...], interleaved: bool
) -> Rotation:
    """Returns the rotation of M-RoPE (arXiv:2409.12191), in which each frequency follows one of three positions.

    Interleaved (Qwen3-VL): frequency f < 3 * section follows axis f mod 3, and the others the temporal axis. Chunked
    (Qwen2-VL, Qwen2.5-VL): runs of `sections` neighbouring frequencies follow one axis each.

    Args:
      position_ids: temporal, height and width position of each token.
      dim: width of an attention head, 2 * half.
      theta: base of the frequencies.
      sections: how many frequencies follow each axis.
      interleaved: whether the axes take turns.
    """
    half = dim // 2
    frequency = jnp.arange(half)
    if interleaved:
        axis = frequency % 3
        limit = jnp.asarray(sections)[axis] * 3
        axis = jnp.where((axis > 0) & (frequency < limit), axis, 0)
    else:
        axis = jnp.repeat(jnp.arange(3), jnp.asarray(sections), total_repeat_length=half)
    return rotation_of(position_ids, inverse_frequencies(dim, theta), axis)


class GatedMLP(nnx.Module):
    """Gated two-layer network (arXiv:2002.05202): down(act(gate(x)) * up(x))."""

    def __init__(self, width: int, hidden: int, act: str, *, bias: bool = False, std: float, rngs: nnx.Rngs) -> None:
        self.gate_proj = linear(width, hidden, bias=bias, std=std, rngs=rngs)
        self.up_proj = linear(width, hidden, bias=bias, std=std, rngs=rngs)
        self.down_proj = linear(hidden, width, bias=bias, std=std, rngs=rngs)
        self.act = ACTIVATIONS[act]

    def __call__(self, x: Float[Array, "B L H"]) -> Float[Array, "B L H"]:
        """Returns the network's result for each position."""
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


def gathered(features: Float[Array, "G visual H"], index: Int[HostOrDevice, "B L"]) -> Float[Array, "B L H"]:
    """Returns each row's visual tokens out of its bin; 0 where index is -1."""
    index = jnp.asarray(index)
    by_bin = jnp.maximum(index, 0).reshape(features.shape[0], -1)  # [G, B / G * L]
    rows = jnp.take_along_axis(features, by_bin[..., None], axis=1).reshape(*index.shape, -1)
    return jnp.where((index >= 0)[..., None], rows, 0)
