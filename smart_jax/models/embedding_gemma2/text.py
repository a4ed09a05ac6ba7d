"""Text encoder of EmbeddingGemma 2: layers that attend to all positions or to near ones, and a projection per token.

Each layer adds a third block beside attention and network: a gated share of what its own map makes of the embeddings
that the encoder began with ("per-layer embeddings", PLE). Layers are unrolled, since those with a window and those
without one differ in the shapes of their weights.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from smart_jax.models import layers as L
from smart_jax.models.batch import Batch
from smart_jax.models.embedding_gemma2.config import LayerHeads, TextConfig
from smart_jax.models.heads import Heads
from smart_jax.models.projected_attention import projected_attention
from smart_jax.typing import HostOrDevice

SCALE = 1.0  # of the scores: queries and keys are normalised


class TextAttention(nnx.Module):
    """Attention to all positions, or to those within the window, with normalised queries, keys and values."""

    def __init__(self, c: TextConfig, own: LayerHeads, *, rngs: nnx.Rngs) -> None:
        self.heads = Heads(
            c.num_attention_heads,
            own.num_key_value_heads,
            own.head_dim,
            causal=False,
            eps=c.rms_norm_eps,
            scale=SCALE,
            band=None if own.full else c.sliding_window,
            value_norm=True,
        )
        linear = partial(L.linear, bias=c.attention_bias, std=c.initializer_range, rngs=rngs)
        self.q_proj = linear(c.hidden_size, c.num_attention_heads * own.head_dim)
        self.k_proj = linear(c.hidden_size, own.num_key_value_heads * own.head_dim)
        self.v_proj = linear(c.hidden_size, own.num_key_value_heads * own.head_dim)
        self.o_proj = linear(c.num_attention_heads * own.head_dim, c.hidden_size)
        self.q_norm = L.RMSNorm(own.head_dim, c.rms_norm_eps)
        self.k_norm = L.RMSNorm(own.head_dim, c.rms_norm_eps)

    def __call__(
        self, x: Float[Array, "B L H"], rotation: L.Rotation, segment: Int[Array, "B L"]
    ) -> Float[Array, "B L H"]:
        """Returns attention within each segment."""
        scales = self.q_norm.scale[...], self.k_norm.scale[...]
        projected = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        return self.o_proj(projected_attention(projected, rotation, segment, self.heads, scales=scales))


class PerLayerBlock(nnx.Module):
    """Block of a layer that adds its per-layer embeddings, gated by the states."""

    def __init__(self, c: TextConfig, *, rngs: nnx.Rngs) -> None:
        linear = partial(L.linear, bias=False, std=c.initializer_range, rngs=rngs)
        self.per_layer_input_gate = linear(c.hidden_size, c.hidden_size_per_layer_input)
        self.per_layer_projection = linear(c.hidden_size_per_layer_input, c.hidden_size)
        self.post_per_layer_input_norm = L.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.act = L.ACTIVATIONS[c.hidden_activation]

    def __call__(self, x: Float[Array, "B L H"], own: Float[Array, "B L ple"]) -> Float[Array, "B L H"]:
        """Returns the positions' next states; `own` are the layer's embeddings."""
        gated = self.act(self.per_layer_input_gate(x)) * own
        return x + self.post_per_layer_input_norm(self.per_layer_projection(gated))


class EncoderLayer(nnx.Module):
    """Layer: attention, a gated network and the per-layer block; the first two stand between two norms each."""

    def __init__(self, c: TextConfig, own: LayerHeads, *, rngs: nnx.Rngs) -> None:
        self.input_layernorm = L.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = TextAttention(c, own, rngs=rngs)
        self.post_attention_layernorm = L.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.pre_feedforward_layernorm = L.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = L.GatedMLP(
            c.hidden_size, c.intermediate_size, c.hidden_activation, std=c.initializer_range, rngs=rngs
        )
        self.post_feedforward_layernorm = L.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.ple_block = PerLayerBlock(c, rngs=rngs)
        self.layer_scalar = nnx.Param(jnp.ones(1))

    def __call__(
        self,
        x: Float[Array, "B L H"],
        own: Float[Array, "B L ple"],
        rotation: L.Rotation,
        segment: Int[Array, "B L"],
    ) -> Float[Array, "B L H"]:
        """Returns the positions' next states; `own` are the layer's embeddings."""
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), rotation, segment))
        x = x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))
        scalar = jax.lax.stop_gradient(self.layer_scalar[...].astype(x.dtype))  # of the checkpoint; it is not trained
        return self.ple_block(x, own) * scalar[None, None]


class PerLayerEmbeddings(nnx.Module):
    """Map of the embeddings to those of each layer; there is no table of them."""

    def __init__(self, c: TextConfig, *, rngs: nnx.Rngs) -> None:
        width = c.hidden_size_per_layer_input
        self.per_layer_model_projection = L.linear(
            c.hidden_size, c.num_hidden_layers * width, bias=False, std=c.initializer_range, rngs=rngs
        )
        self.per_layer_projection_norm = L.RMSNorm(width, c.rms_norm_eps)
        self.layers, self.width, self.scale = c.num_hidden_layers, width, c.hidden_size**-0.5

    def __call__(self, x: Float[Array, "B L H"]) -> Float[Array, "B L layers ple"]:
        """Returns the embeddings of each layer."""
        projected = self.per_layer_model_projection(x) * self.scale
        return self.per_layer_projection_norm(projected.reshape(*x.shape[:2], self.layers, self.width))


class TextModel(nnx.Module):
    """The whole encoder: embeddings, layers, the final norm and the projection of each token."""

    def __init__(self, c: TextConfig, *, rngs: nnx.Rngs) -> None:
        self.config = c
        self.embed_tokens = nnx.Embed(
            c.vocab_size, c.hidden_size, embedding_init=nnx.initializers.normal(c.initializer_range), rngs=rngs
        )
        self.layers = nnx.List([EncoderLayer(c, own, rngs=rngs) for own in c.heads])
        self.norm = L.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.ple = PerLayerEmbeddings(c, rngs=rngs)
        self.embedding_projection = L.linear(
            c.hidden_size, c.embedding_dim, bias=False, std=c.initializer_range, rngs=rngs
        )

    def embed(self, ids: Int[HostOrDevice, "B L"]) -> Float[Array, "B L H"]:
        """Returns the tokens' embeddings, scaled; soft tokens that take their places are not."""
        table = self.embed_tokens.embedding[...]
        return table[jnp.asarray(ids)] * jnp.asarray(self.config.hidden_size**0.5, table.dtype)  # rounded first

    def run_layers(
        self, x: Float[Array, "B L H"], batch: Batch, wanted: set[int], remat: bool | str = False
    ) -> dict[int, Float[Array, "B L H"]]:
        """Returns the wanted states before the norm and the projection.

        Args:
          x: embeddings of the tokens, with soft tokens in their places.
          batch: for its positions and its padding.
          wanted: 0 = the embeddings, i = after layer i.
          remat: as of `layers.rematerialised`.
        """
        c = self.config
        positions, segment = jnp.asarray(batch.position_ids)[:1], jnp.asarray(batch.attention_mask, jnp.int32)
        rotations = {}
        for own in set(c.heads):
            theta = c.full_rope_theta if own.full else c.rope_theta
            turns = L.inverse_frequencies(own.head_dim, theta)
            rotations[own] = L.rotation_of(positions, turns, jnp.zeros(own.head_dim // 2, jnp.int32))
        per_layer = self.ple(x)
        states = {0: x} if 0 in wanted else {}
        for i, (own, layer) in enumerate(zip(c.heads, self.layers, strict=True)):
            x = L.run(layer, x, per_layer[:, :, i], rotations[own], segment, remat=remat)
            if i + 1 in wanted:
                states[i + 1] = x
        return states

    def read(self, x: Float[Array, "B L H"]) -> Float[Array, "B L D"]:
        """Returns states as they leave the encoder, normalised and projected: of the last layer, or of another."""
        vectors: Array = self.embedding_projection(self.norm(x))
        return vectors
