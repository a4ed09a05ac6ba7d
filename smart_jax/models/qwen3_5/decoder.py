"""Decoder of Qwen3.5 as an encoder of sequences: layers of linear attention and, between them, of gated attention."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from smart_jax.models import layers as L
from smart_jax.models.attention import attention
from smart_jax.models.qwen3_5.config import FULL, Qwen35TextConfig
from smart_jax.models.qwen3_5.linear_attention import GatedDeltaNet
from smart_jax.models.qwen_vl_text import TextModel


class ZeroCentredRMSNorm(nnx.Module):
    """Root mean square norm whose scale is 1 + w: its parameter is what is added to 1."""

    def __init__(self, width: int, eps: float) -> None:
        self.scale = nnx.Param(jnp.zeros(width))
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch width"]) -> Float[Array, "*batch width"]:
        """Returns x normalised over its last axis."""
        return L.rms_normalized(x, 1.0 + self.scale[...].astype(jnp.float32), self.eps)


class GatedAttention(nnx.Module):
    """Softmax attention whose result is multiplied, for each head, by a gate that is projected beside its query."""

    def __init__(self, c: Qwen35TextConfig, *, rngs: nnx.Rngs) -> None:
        self.width, self.turned, self.causal = c.head_dim, c.rotary_dim, c.is_causal
        linear = partial(L.linear, bias=c.attention_bias, std=c.initializer_range, rngs=rngs)
        self.q_proj = linear(c.hidden_size, c.num_attention_heads * 2 * c.head_dim)
        self.k_proj = linear(c.hidden_size, c.num_key_value_heads * c.head_dim)
        self.v_proj = linear(c.hidden_size, c.num_key_value_heads * c.head_dim)
        self.o_proj = linear(c.num_attention_heads * c.head_dim, c.hidden_size)
        self.q_norm = ZeroCentredRMSNorm(c.head_dim, c.rms_norm_eps)
        self.k_norm = ZeroCentredRMSNorm(c.head_dim, c.rms_norm_eps)

    def __call__(
        self, x: Float[Array, "B L H"], rotation: L.Rotation, segment: Int[Array, "B L"]
    ) -> Float[Array, "B L H"]:
        """Returns attention to the positions of each segment: all, or the same and earlier ones."""
        heads = (*x.shape[:2], -1)
        q, gate = jnp.split(self.q_proj(x).reshape(*heads, 2 * self.width), 2, axis=-1)
        k, v = (project(x).reshape(*heads, self.width) for project in (self.k_proj, self.v_proj))
        q, k = self._turn(self.q_norm(q), rotation), self._turn(self.k_norm(k), rotation)
        out = attention(q, k, v, segment, causal=self.causal)
        return self.o_proj((out * jax.nn.sigmoid(gate)).reshape(heads))

    def _turn(self, x: Float[Array, "B L A C"], rotation: L.Rotation) -> Float[Array, "B L A C"]:
        """Returns heads whose first components are turned."""
        return jnp.concatenate([L.rotate(x[..., : self.turned], rotation), x[..., self.turned :]], axis=-1)


class DecoderLayer(nnx.Module):
    """Layer of the decoder: attention of either kind and a gated network, each after a norm and added to its input."""

    def __init__(self, c: Qwen35TextConfig, kind: str, *, rngs: nnx.Rngs) -> None:
        self.full = kind == FULL
        self.input_layernorm = ZeroCentredRMSNorm(c.hidden_size, c.rms_norm_eps)
        if self.full:
            self.self_attn = GatedAttention(c, rngs=rngs)
        else:
            self.linear_attn = GatedDeltaNet(c, rngs=rngs)
        self.post_attention_layernorm = ZeroCentredRMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = L.GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act, std=c.initializer_range, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B L H"], rotation: L.Rotation, segment: Int[Array, "B L"]
    ) -> Float[Array, "B L H"]:
        """Returns the positions' next states."""
        normed = self.input_layernorm(x)
        x = x + (self.self_attn(normed, rotation, segment) if self.full else self.linear_attn(normed))
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(TextModel):
    """The whole decoder: embeddings, layers and the final norm."""

    config: Qwen35TextConfig

    def make_layer(self, i: int, *, rngs: nnx.Rngs) -> DecoderLayer:
        """Returns layer i with random parameters."""
        return DecoderLayer(self.config, self.config.layer_types[i], rngs=rngs)

    def make_norm(self) -> ZeroCentredRMSNorm:
        """Returns the final norm."""
        return ZeroCentredRMSNorm(self.config.hidden_size, self.config.rms_norm_eps)
