"""Decoder of the Qwen-VL family as an encoder of sequences: attention with M-RoPE, no cache and no lm_head."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from smart_jax.models import layers as L
from smart_jax.models.batch import Batch
from smart_jax.models.heads import Heads
from smart_jax.models.projected_attention import projected_attention
from smart_jax.models.qwen_vl_config import TextConfig


class TextAttention(nnx.Module):
    """Attention, causal unless the config says otherwise, whose query heads share fewer heads of keys and values."""

    def __init__(self, c: TextConfig, *, rngs: nnx.Rngs) -> None:
        self.qk_norm = c.qk_norm
        self.heads = Heads(
            c.num_attention_heads, c.num_key_value_heads, c.head_dim, causal=c.is_causal, eps=c.rms_norm_eps
        )
        linear = partial(L.linear, std=c.initializer_range, rngs=rngs)
        qkv_bias = c.attention_bias or c.qkv_bias
        self.q_proj = linear(c.hidden_size, c.num_attention_heads * c.head_dim, bias=qkv_bias)
        self.k_proj = linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=qkv_bias)
        self.v_proj = linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=qkv_bias)
        self.o_proj = linear(c.num_attention_heads * c.head_dim, c.hidden_size, bias=c.attention_bias)
        if c.qk_norm:
            self.q_norm = L.RMSNorm(c.head_dim, c.rms_norm_eps)
            self.k_norm = L.RMSNorm(c.head_dim, c.rms_norm_eps)

    def __call__(
        self, x: Float[Array, "B L H"], rotation: L.Rotation, segment: Int[Array, "B L"]
    ) -> Float[Array, "B L H"]:
        """Returns attention to the same and earlier positions of each segment, and to later ones if not causal."""
        scales = (self.q_norm.scale[...], self.k_norm.scale[...]) if self.qk_norm else None
        projected = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.o_proj(projected_attention(projected, rotation, segment, self.heads, scales=scales))


class DecoderLayer(nnx.Module):
    """Layer of the decoder: attention and a gated network, each after a norm and added to its input."""

    def __init__(self, c: TextConfig, *, rngs: nnx.Rngs) -> None:
        self.input_layernorm = L.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = TextAttention(c, rngs=rngs)
        self.post_attention_layernorm = L.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = L.GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act, std=c.initializer_range, rngs=rngs)

    def __call__(
        self, x: Float[Array, "B L H"], rotation: L.Rotation, segment: Int[Array, "B L"]
    ) -> Float[Array, "B L H"]:
        """Returns the positions' next states."""
        x = x + self.self_attn(self.input_layernorm(x), rotation, segment)
        return x + self.mlp(self.post_attention_layernorm(x))


class TextModel(nnx.Module):
    """The whole decoder: embeddings, layers and the final norm."""

    def __init__(self, c: TextConfig, *, rngs: nnx.Rngs) -> None:
        self.config = c
        self.embed_tokens = nnx.Embed(
            c.vocab_size, c.hidden_size, embedding_init=nnx.initializers.normal(c.initializer_range), rngs=rngs
        )
        self.layers = nnx.List([self.make_layer(i, rngs=rngs) for i in range(c.num_hidden_layers)])
        self.norm = self.make_norm()

    def make_layer(self, i: int, *, rngs: nnx.Rngs) -> nnx.Module:
        """Returns layer i with random parameters."""
        return DecoderLayer(self.config, rngs=rngs)

    def make_norm(self) -> nnx.Module:
        """Returns the final norm."""
        return L.RMSNorm(self.config.hidden_size, self.config.rms_norm_eps)

    def __call__(
        self,
        x: Float[Array, "B L H"],
        batch: Batch,
        deepstack: Sequence[Float[Array, "B L H"]],
        wanted: set[int],
        remat: bool | str,
    ) -> dict[int, Float[Array, "B L H"]]:
        """Returns the states after the final norm, and the wanted ones of other layers.

        Args:
          x: embeddings of the tokens, with the visual tokens in their places.
          batch: for its positions and its padding.
          deepstack: features that are added to the states after the first layers.
          wanted: which states besides.
          remat: as of `layers.rematerialised`.

        Returns:
          States by their index in transformers' `hidden_states`: 0 = the embeddings, i = after layer i, depth = after
          the final norm.
        """
        c = self.config
        rotation = L.mrope(
            batch.position_ids,
            dim=c.rotary_dim,
            theta=c.rope_theta,
            sections=c.mrope_section,
            interleaved=c.mrope_interleaved,
        )
        segment = jnp.asarray(batch.attention_mask, jnp.int32)
        states = {0: x} if 0 in wanted else {}
        for i, layer in enumerate(self.layers):
            x = L.run(layer, x, rotation, segment, remat=remat)
            if i + 1 in wanted:  # before the DeepStack addition, where transformers records it
                states[i + 1] = x
            if i < len(deepstack):
                x = x + deepstack[i]
        states[c.num_hidden_layers] = self.norm(x) if c.final_norm else x
        return states
