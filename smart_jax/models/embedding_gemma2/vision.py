"""Vision tower of EmbeddingGemma 2, which is Gemma 4's: patches of images of any shape to visual tokens."""

from __future__ import annotations

from functools import partial

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from smart_jax.models import layers as L
from smart_jax.models.attention import attention
from smart_jax.models.batch import VisionBatch
from smart_jax.models.embedding_gemma2.config import VisionConfig
from smart_jax.models.embedding_gemma2.linears import ClippableLinear
from smart_jax.models.pixels import Normalisation, byte_values
from smart_jax.models.placement import split_by_rows
from smart_jax.typing import HostOrDevice

SCALE = 1.0  # of the scores: queries and keys are normalised


def _linear(c: VisionConfig, inputs: int, outputs: int, *, rngs: nnx.Rngs) -> ClippableLinear:
    return ClippableLinear(inputs, outputs, clipped=c.use_clipped_linears, std=c.initializer_range, rngs=rngs)


class VisionMLP(nnx.Module):
    """Gated network of a layer: down(act(gate(x)) * up(x))."""

    def __init__(self, c: VisionConfig, *, rngs: nnx.Rngs) -> None:
        self.gate_proj = _linear(c, c.hidden_size, c.intermediate_size, rngs=rngs)
        self.up_proj = _linear(c, c.hidden_size, c.intermediate_size, rngs=rngs)
        self.down_proj = _linear(c, c.intermediate_size, c.hidden_size, rngs=rngs)
        self.act = L.ACTIVATIONS[c.hidden_activation]

    def __call__(self, x: Float[Array, "G V W"]) -> Float[Array, "G V W"]:
        """Returns the network's result for each patch."""
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class VisionAttention(nnx.Module):
    """Attention between the patches of an image, with normalised queries, keys and values."""

    def __init__(self, c: VisionConfig, *, rngs: nnx.Rngs) -> None:
        linear = partial(_linear, c, rngs=rngs)
        self.q_proj = linear(c.hidden_size, c.num_attention_heads * c.head_dim)
        self.k_proj = linear(c.hidden_size, c.num_key_value_heads * c.head_dim)
        self.v_proj = linear(c.hidden_size, c.num_key_value_heads * c.head_dim)
        self.o_proj = linear(c.num_attention_heads * c.head_dim, c.hidden_size)
        self.q_norm = L.RMSNorm(c.head_dim, c.rms_norm_eps)
        self.k_norm = L.RMSNorm(c.head_dim, c.rms_norm_eps)
        self.width, self.eps = c.head_dim, c.rms_norm_eps

    def __call__(
        self, x: Float[Array, "G V W"], rotation: L.Rotation, segment: Int[Array, "G V"]
    ) -> Float[Array, "G V W"]:
        """Returns attention within segments; `rotation` as of `VisionModel`."""
        heads = (*x.shape[:2], -1, self.width)
        q, k, v = (project(x).reshape(heads) for project in (self.q_proj, self.k_proj, self.v_proj))  # [G, V, A, C]
        q, k = (_rotate_halves(x, rotation) for x in (self.q_norm(q), self.k_norm(k)))
        out = attention(q, k, L.unit_rms(v, self.eps), segment, causal=False, scale=SCALE)
        return self.o_proj(out.reshape(*x.shape[:2], -1))


def _rotate_halves(x: Float[Array, "G V A C"], rotation: L.Rotation) -> Float[Array, "G V A C"]:
    """Returns heads of which either half is turned by itself: the first along x, the second along y."""
    along = jnp.split(x, 2, axis=-1)
    turns = zip(*(jnp.split(part, 2, axis=-1) for part in rotation), strict=True)
    return jnp.concatenate([L.rotate(part, L.Rotation(*turn)) for part, turn in zip(along, turns, strict=True)], -1)


class VisionLayer(nnx.Module):
    """Layer of the tower: attention and a gated network, each between two norms and added to its input."""

    def __init__(self, c: VisionConfig, *, rngs: nnx.Rngs) -> None:
        self.input_layernorm = L.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = VisionAttention(c, rngs=rngs)
        self.post_attention_layernorm = L.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.pre_feedforward_layernorm = L.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = VisionMLP(c, rngs=rngs)
        self.post_feedforward_layernorm = L.RMSNorm(c.hidden_size, c.rms_norm_eps)

    def __call__(
        self, x: Float[Array, "G V W"], rotation: L.Rotation, segment: Int[Array, "G V"]
    ) -> Float[Array, "G V W"]:
        """Returns the patches' next states."""
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x), rotation, segment))
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class VisionEncoder(nnx.Module):
    """The layers, under the name that checkpoints give them."""

    def __init__(self, c: VisionConfig, *, rngs: nnx.Rngs) -> None:
        self.layers = nnx.List([VisionLayer(c, rngs=rngs) for _ in range(c.num_hidden_layers)])


class PatchEmbedder(nnx.Module):
    """Projection of a patch's pixels, and the learned positions of its column and its row."""

    def __init__(self, c: VisionConfig, *, rngs: nnx.Rngs) -> None:
        self.input_proj = L.linear(c.patch_values, c.hidden_size, bias=False, std=c.initializer_range, rngs=rngs)
        shape = (2, c.position_embedding_size, c.hidden_size)
        self.position_embedding_table = nnx.Param(nnx.initializers.normal(c.initializer_range)(rngs.params(), shape))

    def __call__(
        self, patches: UInt8[HostOrDevice, "G V E"], coords: Int[HostOrDevice, "G V 2"], how: Normalisation
    ) -> Float[Array, "G V W"]:
        """Returns the patches' first states, in the parameters' dtype; `how` their bytes become values."""
        values = byte_values(patches, how, dtype=self.input_proj.kernel.dtype)
        rows, columns = jnp.moveaxis(jnp.asarray(coords), -1, 0)
        of_columns, of_rows = self.position_embedding_table[...]
        states: Array = self.input_proj(split_by_rows(values)) + of_columns[columns] + of_rows[rows]
        return states


class VisionModel(nnx.Module):
    """The whole tower: embedding, layers, and the mean of the patches of each visual token."""

    def __init__(self, c: VisionConfig, *, rngs: nnx.Rngs) -> None:
        self.config = c
        self.patch_embedder = PatchEmbedder(c, rngs=rngs)
        self.encoder = VisionEncoder(c, rngs=rngs)
        if c.standardize:
            self.std_bias, self.std_scale = nnx.Param(jnp.zeros(c.hidden_size)), nnx.Param(jnp.ones(c.hidden_size))

    def __call__(self, v: VisionBatch, *, remat: bool | str = False) -> Float[Array, "G visual W"]:
        """Returns the visual tokens of patches whose squares stand together; there is no norm at the end."""
        x = L.run(self.patch_embedder, v.patches, v.coords, remat=remat, how=v.normalisation)
        rotation, segment = self._rotation(jnp.asarray(v.coords)), jnp.asarray(v.segment)
        for layer in self.encoder.layers:
            x = L.run(layer, x, rotation, segment, remat=remat)
        return self._pool(x)

    def _pool(self, x: Float[Array, "G V W"]) -> Float[Array, "G visual W"]:
        """Returns the mean of each square of patches, scaled and perhaps standardised in float32."""
        squares = x.reshape(x.shape[0], -1, self.config.pooling_kernel_size**2, x.shape[2])
        mean = squares.astype(jnp.float32).mean(axis=2).astype(x.dtype)  # rounded as in the reference
        pooled = mean.astype(jnp.float32) * self.config.hidden_size**0.5
        if self.config.standardize:
            bias, scale = (each[...].astype(jnp.float32)[None, None] for each in (self.std_bias, self.std_scale))
            pooled = (pooled - bias) * scale
        tokens: Array = pooled.astype(x.dtype)
        return tokens

    def _rotation(self, coords: Int[Array, "G V 2"]) -> L.Rotation:
        """Returns the angles of either half of a head, side by side: of the column, then of the row."""
        quarter = self.config.head_dim // 4
        frequencies = jnp.tile(L.inverse_frequencies(2 * quarter, self.config.rope_theta), 2)
        return L.rotation_of(jnp.moveaxis(coords, -1, 0), frequencies, jnp.repeat(jnp.array([1, 0]), quarter))
