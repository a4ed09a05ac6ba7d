"""Layers of EmbeddingGemma 2's audio tower: convolutions, and a conformer that attends in blocks."""

from __future__ import annotations

import math
from functools import reduce

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from smart_jax.models import layers as L
from smart_jax.models.embedding_gemma2.config import AudioConfig
from smart_jax.models.embedding_gemma2.linears import ClippableLinear

Frames = Float[Array, "M frames W"]  # states of M clips, whose frames are 40 ms apart


def _linear(c: AudioConfig, inputs: int, outputs: int, *, rngs: nnx.Rngs) -> ClippableLinear:
    return ClippableLinear(inputs, outputs, clipped=c.use_clipped_linears, std=c.initializer_range, rngs=rngs)


def bounded(x: Frames, c: AudioConfig) -> Frames:
    """Returns x without values beyond +-gradient_clipping, or beyond what its dtype holds."""
    most = min(c.gradient_clipping, float(jnp.finfo(x.dtype).max))
    return jnp.clip(x, -most, most)


class ScaleNorm(nnx.Module):
    """LayerNorm over the channels with a scale and no bias."""

    def __init__(self, width: int, eps: float) -> None:
        self.scale, self.eps = nnx.Param(jnp.ones(width)), eps

    def __call__(self, x: Float[Array, "M T F channels"]) -> Float[Array, "M T F channels"]:
        """Returns x with mean 0 and variance 1 over its last axis, scaled; computed in float32."""
        wide = x.astype(jnp.float32)
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * self.scale[...].astype(jnp.float32)[None, None, None]).astype(x.dtype)


class Convolution(nnx.Module):
    """Convolution of 3 x 3 with a stride of 2 and a padding of 1; its weight has torch's layout."""

    def __init__(self, inputs: int, outputs: int, std: float, *, rngs: nnx.Rngs) -> None:
        shape = (outputs, inputs, 3, 3)
        self.weight = nnx.Param(std * jax.random.normal(rngs.params(), shape))

    def __call__(self, x: Float[Array, "M T F inputs"]) -> Float[Array, "M T2 F2 outputs"]:
        """Returns the convolved features; of T rows (T + 1) // 2 are left, and of F columns as many."""
        weight = self.weight[...]
        layout = jax.lax.conv_dimension_numbers(x.shape, weight.shape, ("NHWC", "OIHW", "NHWC"))
        return jax.lax.conv_general_dilated(
            x.astype(weight.dtype), weight, (2, 2), ((1, 1), (1, 1)), dimension_numbers=layout
        )


class Subsampling(nnx.Module):
    """Convolution, norm and ReLU; what is no audio is zeroed before."""

    def __init__(self, c: AudioConfig, inputs: int, outputs: int, *, rngs: nnx.Rngs) -> None:
        self.conv = Convolution(inputs, outputs, c.initializer_range, rngs=rngs)
        self.norm = ScaleNorm(outputs, c.rms_norm_eps)

    def __call__(
        self, x: Float[Array, "M T F inputs"], mask: Bool[Array, "M T"]
    ) -> tuple[Float[Array, "M T2 F2 outputs"], Bool[Array, "M T2"]]:
        """Returns half as many rows, and which of them are audio."""
        x = self.conv(jnp.where(mask[:, :, None, None], x, 0))
        return jax.nn.relu(self.norm(x)), mask[:, ::2]


class SubsampleProjection(nnx.Module):
    """Two convolutions, which leave a frame of 40 ms for four of 10 ms, and the projection to the tower's width."""

    def __init__(self, c: AudioConfig, *, rngs: nnx.Rngs) -> None:
        first, second = c.subsampling_conv_channels
        self.layer0 = Subsampling(c, 1, first, rngs=rngs)
        self.layer1 = Subsampling(c, first, second, rngs=rngs)
        width = first // 4 * second  # transformers takes the first layer's channels for the number of mel bands
        self.input_proj_linear = L.linear(width, c.hidden_size, bias=False, std=c.initializer_range, rngs=rngs)

    def __call__(
        self, features: Float[Array, "M T F"], mask: Bool[Array, "M T"]
    ) -> tuple[Frames, Bool[Array, "M frames"]]:
        """Returns the first states of the clips' frames, and which of these are audio."""
        x, mask = self.layer0(features[..., None], mask)
        x, mask = self.layer1(x, mask)
        return self.input_proj_linear(x.reshape(*x.shape[:2], -1)), mask


class FeedForward(nnx.Module):
    """Half a feed-forward step of a conformer: x + weight * norm(ffw2(silu(ffw1(norm(x)))))."""

    def __init__(self, c: AudioConfig, *, rngs: nnx.Rngs) -> None:
        self.c = c
        self.ffw_layer_1 = _linear(c, c.hidden_size, 4 * c.hidden_size, rngs=rngs)
        self.ffw_layer_2 = _linear(c, 4 * c.hidden_size, c.hidden_size, rngs=rngs)
        self.pre_layer_norm, self.post_layer_norm = (L.RMSNorm(c.hidden_size, 1e-6) for _ in range(2))

    def __call__(self, x: Frames) -> Frames:
        """Returns the next states of the frames."""
        step = self.ffw_layer_1(self.pre_layer_norm(bounded(x, self.c)))
        step = self.ffw_layer_2(L.ACTIVATIONS[self.c.hidden_act](step))
        return x + self.post_layer_norm(bounded(step, self.c)) * self.c.residual_weight


class LightConvolution(nnx.Module):
    """Gated depthwise convolution over a frame and those before it."""

    def __init__(self, c: AudioConfig, *, rngs: nnx.Rngs) -> None:
        self.c = c
        self.linear_start = _linear(c, c.hidden_size, 2 * c.hidden_size, rngs=rngs)
        self.linear_end = _linear(c, c.hidden_size, c.hidden_size, rngs=rngs)
        self.depthwise_conv1d = CausalDepthwise(c.hidden_size, c.conv_kernel_size, c.initializer_range, rngs=rngs)
        self.pre_layer_norm, self.conv_norm = (L.RMSNorm(c.hidden_size, c.rms_norm_eps) for _ in range(2))

    def __call__(self, x: Frames) -> Frames:
        """Returns the next states of the frames."""
        value, gate = jnp.split(self.linear_start(self.pre_layer_norm(x)), 2, axis=-1)
        step = self.depthwise_conv1d(value * jax.nn.sigmoid(gate))
        step = self.conv_norm(bounded(step, self.c))
        return x + self.linear_end(L.ACTIVATIONS[self.c.hidden_act](step))


class CausalDepthwise(nnx.Module):
    """Convolution of each channel over the last frames; its weight has torch's layout, [channels, 1, frames]."""

    def __init__(self, width: int, size: int, std: float, *, rngs: nnx.Rngs) -> None:
        self.weight = nnx.Param(std * jax.random.normal(rngs.params(), (width, 1, size)))

    def __call__(self, x: Frames) -> Frames:
        """Returns for each frame the weighted sum of it and those before it."""
        weight = self.weight[...]
        size, length = weight.shape[2], x.shape[1]
        x = jnp.pad(x, ((0, 0), (size - 1, 0), (0, 0)))
        shifted = [x[:, i : i + length] * weight[None, None, :, 0, i] for i in range(size)]
        return reduce(jnp.add, shifted)


class BlockAttention(nnx.Module):
    """Attention of a frame to itself and some before it, in blocks, with relative positions (arXiv:1901.02860)."""

    def __init__(self, c: AudioConfig, *, rngs: nnx.Rngs) -> None:
        self.c, self.heads, self.width = c, c.num_attention_heads, c.hidden_size // c.num_attention_heads
        inner, std = self.heads * self.width, c.initializer_range
        self.q_proj, self.k_proj, self.v_proj = (_linear(c, c.hidden_size, inner, rngs=rngs) for _ in range(3))
        self.post = _linear(c, c.hidden_size, c.hidden_size, rngs=rngs)
        self.relative_k_proj = L.linear(c.hidden_size, inner, bias=False, std=std, rngs=rngs)
        self.per_dim_scale = nnx.Param(jnp.zeros(self.width))

    def __call__(
        self, x: Frames, distances: Float[Array, "distances W"], seen: Bool[Array, "M blocks rows context"]
    ) -> Frames:
        """Returns what each frame reads of those that it sees; scores and softmax in float32.

        Args:
          x: states of the frames.
          distances: a vector for each distance, the greatest first; see `distance_vectors`.
          seen: of each block's rows, which frames of its context they attend to; see `block_context`.
        """
        c, M, length = self.c, *x.shape[:2]
        q, k, v = (p(x).astype(jnp.float32) for p in (self.q_proj, self.k_proj, self.v_proj))
        scale = jax.nn.softplus(self.per_dim_scale[...].astype(jnp.float32)) * (self.width**-0.5 / math.log(2))
        blocks, rows, context = seen.shape[1:]
        q = jnp.pad(q, ((0, 0), (0, blocks * rows - length), (0, 0)))
        q = q.reshape(M, blocks, rows, self.heads, self.width) * scale[None, None, None, None]
        index = _context_index(c, blocks) + c.attention_context_left - 1  # of frames that are padded on the left
        margin = ((0, 0), (c.attention_context_left - 1, rows - 1), (0, 0))
        k, v = (jnp.pad(t, margin)[:, index].reshape(M, blocks, context, self.heads, -1) for t in (k, v))
        k = k * (math.log(1 + math.e) / math.log(2))
        relative = self.relative_k_proj(distances.astype(x.dtype)).astype(jnp.float32)
        relative = relative.reshape(-1, self.heads, self.width)
        scores = jnp.einsum("mbrac,mbsac->mabrs", q, k)
        scores = scores + _shifted(jnp.einsum("mbrac,pac->mabrp", q, relative), context)
        scores = jnp.tanh(scores / c.attention_logit_cap) * c.attention_logit_cap
        scores = jnp.where(seen[:, None], scores, c.attention_invalid_logits_value)
        read = jnp.einsum("mabrs,mbsac->mbrac", jax.nn.softmax(scores, axis=-1), v)
        read = read.reshape(M, blocks * rows, -1)[:, :length]
        return self.post(read.astype(x.dtype))


def _shifted(
    scores: Float[Array, "M A blocks rows distances"], context: int
) -> Float[Array, "M A blocks rows context"]:
    """Returns scores by distance as scores by frame of the context: those of row r begin at its r-th frame."""
    *batch, rows, distances = scores.shape
    padded = jnp.pad(scores, ((0, 0),) * (len(batch) + 1) + ((0, context + 1 - distances),))
    flat = padded.reshape(*batch, rows * (context + 1))[..., : rows * context]
    return flat.reshape(*batch, rows, context)


def _context_index(c: AudioConfig, blocks: int) -> np.ndarray:
    """Returns the number of each frame of each block's context; some are before the first or after the last."""
    context = c.attention_chunk_size + c.attention_context_left - 1
    starts = np.arange(blocks) * c.attention_chunk_size - (c.attention_context_left - 1)
    return starts[:, None] + np.arange(context)


def block_context(c: AudioConfig, mask: Bool[Array, "M frames"]) -> Bool[Array, "M blocks rows context"]:
    """Returns which frames of its block's context each frame attends to: itself, and those before it that are audio."""
    length, rows = mask.shape[1], c.attention_chunk_size
    blocks = -(-length // rows)
    keys = _context_index(c, blocks)
    distance = np.arange(blocks * rows).reshape(blocks, rows, 1) - keys[:, None]
    near = (distance >= 0) & (distance < c.attention_context_left - 1)
    there = (keys >= 0) & (keys < length)
    audio = mask[:, np.clip(keys, 0, length - 1)] & there[None]
    seen: Array = audio[:, :, None] & (near & (np.arange(blocks * rows) < length).reshape(blocks, rows, 1))[None]
    return seen


def distance_vectors(c: AudioConfig) -> Float[np.ndarray, "distances W"]:
    """Returns sines and then cosines of the distances from half a context to 0, float32."""
    context = c.attention_chunk_size + c.attention_context_left - 1
    half = c.hidden_size // 2
    rates = np.exp(np.arange(half, dtype=np.float32) * np.float32(-math.log(10_000) / max(half - 1, 1)))
    angles = np.arange(context // 2, -1, -1, dtype=np.float32)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


class ConformerLayer(nnx.Module):
    """Layer of the tower: half a feed-forward step, attention, light convolution, half a step, norm."""

    def __init__(self, c: AudioConfig, *, rngs: nnx.Rngs) -> None:
        self.c = c
        self.feed_forward1, self.feed_forward2 = (FeedForward(c, rngs=rngs) for _ in range(2))
        self.self_attn = BlockAttention(c, rngs=rngs)
        self.lconv1d = LightConvolution(c, rngs=rngs)
        self.norm_pre_attn, self.norm_post_attn, self.norm_out = (L.RMSNorm(c.hidden_size, 1e-6) for _ in range(3))

    def __call__(
        self, x: Frames, distances: Float[Array, "distances W"], seen: Bool[Array, "M blocks rows context"]
    ) -> Frames:
        """Returns the next states of the frames; the arguments are those of `BlockAttention`."""
        x = self.feed_forward1(x)
        step = self.self_attn(self.norm_pre_attn(bounded(x, self.c)), distances, seen)
        x = x + self.norm_post_attn(bounded(step, self.c))
        x = self.feed_forward2(self.lconv1d(x))
        return self.norm_out(bounded(x, self.c))
