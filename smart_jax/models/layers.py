"""Layers that the backbones share. Attribute names are Hugging Face's, so that weights convert by leaf type."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int


def quick_gelu(x: Array) -> Array:
    return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable] = {
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

VISUAL_FEATURES = "visual features"  # what a vision tower gives, by which a checkpoint's policy can keep it


def rematerialised(layer: Callable[..., Array], remat: bool | str) -> Callable[..., Array]:
    """The call of a layer, computed again in the backward pass by a policy's name; True = "full", False = not."""
    return nnx.remat(layer, policy=REMAT_POLICIES["full" if remat is True else remat]) if remat else layer


def linear(din: int, dout: int, *, bias: bool, std: float, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(din, dout, use_bias=bias, kernel_init=nnx.initializers.normal(std), rngs=rngs)


def layer_norm(width: int, eps: float = 1e-6, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # The fast variance E[x^2] - E[x]^2 loses digits that parity at 2e-5 needs.
    return nnx.LayerNorm(width, epsilon=eps, use_fast_variance=False, rngs=rngs)


def rms_norm(width: int, eps: float, *, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(width, epsilon=eps, rngs=rngs)


def inverse_frequencies(dim: int, theta: float) -> Float[Array, half]:
    return 1.0 / (theta ** (jnp.arange(0, dim, 2, dtype=jnp.float32) / dim))


def rotate(x: Float[Array, "B L A K"], angles: Float[Array, "B L half"]) -> Float[Array, "B L A K"]:
    """Rotary embedding of the halves (x1, x2) of K = 2 * half components, in float32."""
    x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]  # [B, L, 1, half]
    return jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], axis=-1).astype(x.dtype)


def mrope_angles(
    position_ids: Int[Array, "3 B L"], *, dim: int, theta: float, sections: tuple[int, ...], interleaved: bool
) -> Float[Array, "B L half"]:
    """Angles of M-RoPE: each frequency follows the temporal, height or width position.

    Interleaved (Qwen3-VL): frequency f < 3 * section follows axis f mod 3, the rest the temporal one. Chunked
    (Qwen2-VL, Qwen2.5-VL): consecutive runs of `sections` frequencies.
    """
    half = dim // 2
    frequency = jnp.arange(half)
    if interleaved:
        axis = frequency % 3
        limit = jnp.asarray(sections)[axis] * 3
        axis = jnp.where((axis > 0) & (frequency < limit), axis, 0)
    else:
        axis = jnp.repeat(jnp.arange(3), jnp.asarray(sections), total_repeat_length=half)
    angles = position_ids.astype(jnp.float32)[..., None] * inverse_frequencies(dim, theta)  # [3, B, L, half]
    return jnp.take_along_axis(angles, axis[None, None, None, :], axis=0)[0]


class GatedMLP(nnx.Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, width: int, hidden: int, act: str, *, bias: bool = False, std: float, rngs: nnx.Rngs):
        self.gate_proj = linear(width, hidden, bias=bias, std=std, rngs=rngs)
        self.up_proj = linear(width, hidden, bias=bias, std=std, rngs=rngs)
        self.down_proj = linear(hidden, width, bias=bias, std=std, rngs=rngs)
        self.act = ACTIVATIONS[act]

    def __call__(self, x: Float[Array, "B L H"]) -> Float[Array, "B L H"]:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))
