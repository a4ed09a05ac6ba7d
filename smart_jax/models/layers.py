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

# Attention scores held at once, in query positions x key positions of one head and row. An accelerator takes every head
# in one step until a long image would fill its memory. A CPU is bound by its cache: past 256 positions, one group of
# heads and 256 queries at a time is 2.3 times faster than the whole (measured at 4 x 1,024 patches, 6 heads of 64).
SCORES_AT_ONCE = 2**21
CPU_ROWS, CPU_WHOLE = 256, 256


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


def attention(
    q: Float[Array, "B L A K"],
    k: Float[Array, "B L G K"],
    v: Float[Array, "B L G K"],
    segment: Int[Array, "B L"],
    *,
    causal: bool,
) -> Float[Array, "B L A K"]:
    """Softmax attention within segments (softmax in float32); A query heads share G key heads in groups of A / G.

    Padding has a segment number of its own, so it attends to padding only: its state is finite and reaches nobody.
    """
    _, length, heads, _ = q.shape
    groups = k.shape[2]
    group_step, rows = _step(length, groups)
    if group_step == groups and rows == length:
        return _attend(q, k, v, segment, segment, jnp.arange(length), causal)
    head_step, blocks = group_step * heads // groups, length // rows

    @jax.checkpoint  # a backward pass recomputes the scores of a step instead of storing those of every step
    def attend_step(i: jax.Array) -> jax.Array:
        g, start = i // blocks, i % blocks * rows

        def some_rows(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, start, rows, axis=1)

        def some_heads(x: jax.Array, step: int) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, g * step, step, axis=2)

        return _attend(
            some_heads(some_rows(q), head_step),
            some_heads(k, group_step),
            some_heads(v, group_step),
            some_rows(segment),
            segment,
            start + jnp.arange(rows),
            causal,
        )

    out = jax.lax.map(attend_step, jnp.arange(groups // group_step * blocks))  # [steps, B, rows, head_step, K]
    out = out.reshape(groups // group_step, blocks, *out.shape[1:])
    return out.transpose(2, 1, 3, 0, 4, 5).reshape(q.shape)


def _step(length: int, groups: int) -> tuple[int, int]:
    """Key heads and query rows of one step."""
    if jax.default_backend() == "cpu":
        if length <= CPU_WHOLE:
            return groups, length
        return 1, _power_of_two_divisor(length, CPU_ROWS)
    if length * length <= SCORES_AT_ONCE:
        return groups, length
    return groups, _power_of_two_divisor(length, SCORES_AT_ONCE // length)


def _power_of_two_divisor(length: int, most: int) -> int:
    divisor = 1
    while length % (2 * divisor) == 0 and 2 * divisor <= most:
        divisor *= 2
    return divisor if divisor >= 32 else length  # an odd length that no bucket gives is not worth many tiny steps


def _attend(
    q: Float[Array, "B Q A K"],
    k: Float[Array, "B L G K"],
    v: Float[Array, "B L G K"],
    q_segment: Int[Array, "B Q"],
    k_segment: Int[Array, "B L"],
    q_index: Int[Array, " Q"],
    causal: bool,
) -> Float[Array, "B Q A K"]:
    batch, rows, heads, width = q.shape
    groups = k.shape[2]
    mask = q_segment[:, :, None] == k_segment[:, None, :]  # [B, Q, L]
    if causal:
        mask &= q_index[:, None] >= jnp.arange(k.shape[1])[None, :]
    # Scaling q and dividing the result touches K values a row where the usual order touches L scores.
    q = (q * width**-0.5).reshape(batch, rows, groups, heads // groups, width)
    scores = jnp.einsum("bqghk,blgk->bghql", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    out = jnp.einsum("bghql,blgk->bghqk", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
    out = (out / weights.sum(-1, keepdims=True)).astype(v.dtype)
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, rows, heads, width)


class GatedMLP(nnx.Module):
    """down(act(gate(x)) * up(x))."""

    def __init__(self, width: int, hidden: int, act: str, *, bias: bool = False, std: float, rngs: nnx.Rngs):
        self.gate_proj = linear(width, hidden, bias=bias, std=std, rngs=rngs)
        self.up_proj = linear(width, hidden, bias=bias, std=std, rngs=rngs)
        self.down_proj = linear(hidden, width, bias=bias, std=std, rngs=rngs)
        self.act = ACTIVATIONS[act]

    def __call__(self, x: Float[Array, "B L H"]) -> Float[Array, "B L H"]:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))
