"""Layers that the backbones share. Attribute names are Hugging Face's, so that weights convert by leaf type."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

ACTIVATIONS: dict[str, Callable] = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
}

# Scores of more query x key pairs than this are computed in blocks of queries: 2**20 float32 scores are 4 MiB a head,
# about what stays in a CPU's cache; a page of 1,024 patches still takes one block.
SCORES_AT_ONCE = 2**20


def linear(din: int, dout: int, *, bias: bool, std: float, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(din, dout, use_bias=bias, kernel_init=nnx.initializers.normal(std), rngs=rngs)


def layer_norm(width: int, *, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # The fast variance E[x^2] - E[x]^2 loses digits that parity at 2e-5 needs.
    return nnx.LayerNorm(width, epsilon=1e-6, use_fast_variance=False, rngs=rngs)


def rms_norm(width: int, eps: float, *, rngs: nnx.Rngs) -> nnx.RMSNorm:
    return nnx.RMSNorm(width, epsilon=eps, rngs=rngs)


def inverse_frequencies(dim: int, theta: float) -> Float[Array, "half"]:
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
    Never holds more than SCORES_AT_ONCE scores a head and row.
    """
    length = q.shape[1]
    block = length
    while block * length > SCORES_AT_ONCE and block % 2 == 0:
        block //= 2
    if block == length:
        return _attend(q, k, v, segment, segment, jnp.arange(length), causal)

    def attend_block(start: jax.Array) -> jax.Array:
        def rows(x: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(x, start, block, axis=1)

        return _attend(rows(q), k, v, rows(segment), segment, start + jnp.arange(block), causal)

    # The checkpoint keeps a backward pass from storing every block's scores.
    out = jax.lax.map(jax.checkpoint(attend_block), jnp.arange(0, length, block))  # [blocks, B, block, A, K]
    return jnp.moveaxis(out, 0, 1).reshape(q.shape)


def _attend(q, k, v, q_segment, k_segment, q_index, causal):
    batch, rows, heads, width = q.shape
    groups = k.shape[2]
    mask = q_segment[:, :, None] == k_segment[:, None, :]  # [B, Q, L]
    if causal:
        mask &= q_index[:, None] >= jnp.arange(k.shape[1])[None, :]
    q = q.reshape(batch, rows, groups, heads // groups, width)
    scores = jnp.einsum("bqghk,blgk->bghql", q, k, preferred_element_type=jnp.float32) * width**-0.5
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bghql,blgk->bqghk", weights, v).reshape(batch, rows, heads, width)


class GatedMLP(nnx.Module):
    """down(act(gate(x)) * up(x)), without biases."""

    def __init__(self, width: int, hidden: int, act: str, *, std: float, rngs: nnx.Rngs):
        self.gate_proj = linear(width, hidden, bias=False, std=std, rngs=rngs)
        self.up_proj = linear(width, hidden, bias=False, std=std, rngs=rngs)
        self.down_proj = linear(hidden, width, bias=False, std=std, rngs=rngs)
        self.act = ACTIVATIONS[act]

    def __call__(self, x: Float[Array, "B L H"]) -> Float[Array, "B L H"]:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))
