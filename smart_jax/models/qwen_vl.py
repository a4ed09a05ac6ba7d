"""The Qwen-VL family as an encoder: no cache, no lm_head, static shapes.

Qwen2-VL (arXiv:2409.12191), Qwen2.5-VL (arXiv:2502.13923) and Qwen3-VL (arXiv:2511.21631); where they differ is said by
switches of the config. Vision tower, merger and DeepStack, then the decoder with M-RoPE. Everything runs inside jit on
one `Batch`; visual features are gathered into the sequence by index, so a padded position can never matter.
Layers are unrolled, not scanned: DeepStack and the chosen layers read states between layers, and a scan over stacked
weights would have to be cut at each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Shaped

from smart_jax.models import layers as L
from smart_jax.models.attention import attention, window_attention
from smart_jax.models.batch import Batch, Hidden, VisionBatch
from smart_jax.models.qwen_vl_config import QwenVLConfig, TextConfig, VisionConfig
from smart_jax.typing import HostOrDevice

# Megatron layout: a pair of matrices is split by columns then by rows; fsdp takes the other side.
SHARDING_RULES = (
    (r"(qkv|q_proj|k_proj|v_proj|gate_proj|up_proj|linear_fc1)\.kernel$", P("fsdp", "tensor")),
    (r"(o_proj|down_proj|linear_fc2|attn\.proj)\.kernel$", P("tensor", "fsdp")),
    (r"embed_tokens\.embedding$", P("fsdp", None)),
    (r"patch_embed\.proj\.kernel$", P(None, "fsdp")),
)

# Checkpoints of Qwen2-VL and Qwen2.5-VL: other prefixes, and positions in a torch Sequential.
QWEN2_NAMES = (
    (r"^model\.visual\.", "visual."),
    (r"^model\.language_model\.", "model."),
    (r"^model\.multi_vector_projector\.", "multi_vector_projector."),
    (r"^(visual\.merger)\.norm\.", r"\1.ln_q."),
    (r"^(visual\.merger)\.linear_fc1\.", r"\1.mlp.0."),
    (r"^(visual\.merger)\.linear_fc2\.", r"\1.mlp.2."),
    (r"^(visual\.blocks\.\d+\.mlp)\.linear_(fc[12])\.", r"\1.\2."),
)


class VisionMLP(nnx.Module):
    def __init__(self, c: VisionConfig, *, rngs: nnx.Rngs):
        std = c.initializer_range
        self.linear_fc1 = L.linear(c.hidden_size, c.intermediate_size, bias=True, std=std, rngs=rngs)
        self.linear_fc2 = L.linear(c.intermediate_size, c.hidden_size, bias=True, std=std, rngs=rngs)
        self.act = L.ACTIVATIONS[c.hidden_act]

    def __call__(self, x: Float[Array, "G V W"]) -> Float[Array, "G V W"]:
        return self.linear_fc2(self.act(self.linear_fc1(x)))


class VisionAttention(nnx.Module):
    def __init__(self, c: VisionConfig, *, rngs: nnx.Rngs):
        self.qkv = L.linear(c.hidden_size, 3 * c.hidden_size, bias=True, std=c.initializer_range, rngs=rngs)
        self.proj = L.linear(c.hidden_size, c.hidden_size, bias=True, std=c.initializer_range, rngs=rngs)
        self.heads = c.num_heads

    def __call__(
        self,
        x: Float[Array, "G V W"],
        rotation: L.Rotation,
        segment: Int[Array, "G V"],
        longest: int | None = None,
    ) -> Float[Array, "G V W"]:
        """Attention within segments; `longest`: each of them is one run of at most so many patches."""
        batch, patches, width = x.shape
        qkv = self.qkv(x).reshape(batch, patches, 3, self.heads, width // self.heads)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]  # [G, V, A, C]
        q, k = L.rotate(q, rotation), L.rotate(k, rotation)
        if longest is None:
            out = attention(q, k, v, segment, causal=False)
        else:
            out = window_attention(q, k, v, segment, longest=longest)
        return self.proj(out.reshape(batch, patches, width))


class VisionBlock(nnx.Module):
    def __init__(self, c: VisionConfig, *, rngs: nnx.Rngs):
        self.norm1 = _vision_norm(c, c.hidden_size, rngs=rngs)
        self.norm2 = _vision_norm(c, c.hidden_size, rngs=rngs)
        self.attn = VisionAttention(c, rngs=rngs)
        self.mlp: nnx.Module
        if c.gated_mlp:
            std = c.initializer_range
            self.mlp = L.GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act, bias=True, std=std, rngs=rngs)
        else:
            self.mlp = VisionMLP(c, rngs=rngs)

    def __call__(self, x: Array, rotation: L.Rotation, segment: Array, longest: int | None = None) -> Array:
        x = x + self.attn(self.norm1(x), rotation, segment, longest)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nnx.Module):
    """merge x merge neighbouring patches -> one visual token; the norm comes before or after the grouping."""

    def __init__(self, c: VisionConfig, *, norm_after: bool, rngs: nnx.Rngs):
        self.width = c.hidden_size * c.spatial_merge_size**2
        self.norm_after = norm_after
        self.norm = _vision_norm(c, self.width if norm_after else c.hidden_size, rngs=rngs)
        self.linear_fc1 = L.linear(self.width, self.width, bias=True, std=c.initializer_range, rngs=rngs)
        self.linear_fc2 = L.linear(self.width, c.out_hidden_size, bias=True, std=c.initializer_range, rngs=rngs)

    def __call__(self, x: Float[Array, "G V W"]) -> Float[Array, "G visual H"]:
        if not self.norm_after:
            x = self.norm(x)
        x = x.reshape(x.shape[0], -1, self.width)
        if self.norm_after:
            x = self.norm(x)
        return self.linear_fc2(L.ACTIVATIONS["gelu"](self.linear_fc1(x)))  # exact GELU, unlike the blocks'


class PatchEmbed(nnx.Module):
    """The reference's Conv3d with stride = kernel is one matrix product over flattened patches."""

    def __init__(self, c: VisionConfig, *, rngs: nnx.Rngs):
        self.proj = L.linear(c.patch_values, c.hidden_size, bias=c.patch_bias, std=c.initializer_range, rngs=rngs)

    def __call__(self, patches: Float[Array, "G V E"]) -> Float[Array, "G V W"]:
        return self.proj(patches.astype(self.proj.kernel.dtype))


class VisionModel(nnx.Module):
    def __init__(self, c: VisionConfig, *, rngs: nnx.Rngs):
        self.config = c
        self.patch_embed = PatchEmbed(c, rngs=rngs)
        if c.num_position_embeddings is not None:
            self.pos_embed = nnx.Embed(
                c.num_position_embeddings,
                c.hidden_size,
                embedding_init=nnx.initializers.normal(c.initializer_range),
                rngs=rngs,
            )
        self.blocks = nnx.List([VisionBlock(c, rngs=rngs) for _ in range(c.depth)])
        self.merger = PatchMerger(c, norm_after=False, rngs=rngs)
        self.deepstack_merger_list = nnx.List(
            [PatchMerger(c, norm_after=True, rngs=rngs) for _ in c.deepstack_visual_indexes]
        )

    def __call__(
        self, v: VisionBatch, *, remat: bool | str = False
    ) -> tuple[Float[Array, "G visual H"], list[Float[Array, "G visual H"]]]:
        """Visual tokens after the merger, and one set of DeepStack features per tap."""
        c = self.config
        if (c.grid_side is None, c.window_size is None) != (v.interp_w is None, v.window is None):
            raise ValueError("the batch's learned positions or attention windows are of another backbone")
        x = self.patch_embed(jnp.asarray(v.patches))
        if v.interp_idx is not None and v.interp_w is not None:
            weights = jnp.asarray(v.interp_w, x.dtype)
            x = x + jnp.einsum("gviw,gvi->gvw", self.pos_embed.embedding[v.interp_idx], weights)
        coords, segment, order = jnp.asarray(v.coords), jnp.asarray(v.segment), None
        window = None if v.window is None else jnp.asarray(v.window)
        if window is not None:  # as in the reference, the patches of a window are neighbours until the merger
            order = jnp.argsort(window, axis=1)
            x, coords, segment, window = (_reorder(values, order) for values in (x, coords, segment, window))
        rotation = self._rotation(coords)
        deepstack = []
        for i, block in enumerate(self.blocks):
            if window is None or c.window_patches is None or i in c.fullatt_block_indexes:
                x = _call(block, remat, x, rotation, segment)
            else:
                x = _call(block, remat, x, rotation, window, longest=c.window_patches**2)
            if i in c.deepstack_visual_indexes:
                tap = c.deepstack_visual_indexes.index(i)
                deepstack.append(self.deepstack_merger_list[tap](_restore(x, order)))
        return self.merger(_restore(x, order)), deepstack

    def _rotation(self, coords: Int[Array, "G V 2"]) -> L.Rotation:
        """The first half of a head's frequencies turns by the patch's row, the second by its column."""
        quarter = self.config.hidden_size // self.config.num_heads // 4
        frequencies = jnp.tile(L.inverse_frequencies(2 * quarter, self.config.rope_theta), 2)
        return L.rotation_of(jnp.moveaxis(coords, -1, 0), frequencies, jnp.repeat(jnp.arange(2), quarter))


class TextAttention(nnx.Module):
    def __init__(self, c: TextConfig, *, rngs: nnx.Rngs):
        self.head_dim, self.qk_norm = c.head_dim, c.qk_norm
        kw: dict[str, Any] = {"std": c.initializer_range, "rngs": rngs}
        qkv_bias = c.attention_bias or c.qkv_bias
        self.q_proj = L.linear(c.hidden_size, c.num_attention_heads * c.head_dim, bias=qkv_bias, **kw)
        self.k_proj = L.linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=qkv_bias, **kw)
        self.v_proj = L.linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=qkv_bias, **kw)
        self.o_proj = L.linear(c.num_attention_heads * c.head_dim, c.hidden_size, bias=c.attention_bias, **kw)
        if c.qk_norm:
            self.q_norm = L.RMSNorm(c.head_dim, c.rms_norm_eps)
            self.k_norm = L.RMSNorm(c.head_dim, c.rms_norm_eps)

    def __call__(
        self, x: Float[Array, "B L H"], rotation: L.Rotation, segment: Int[Array, "B L"]
    ) -> Float[Array, "B L H"]:
        heads = (*x.shape[:2], -1, self.head_dim)
        q, k, v = (proj(x).reshape(heads) for proj in (self.q_proj, self.k_proj, self.v_proj))
        if self.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = L.rotate(q, rotation), L.rotate(k, rotation)  # [B, L, A, C], [B, L, kv, C]
        out = attention(q, k, v, segment, causal=True)
        return self.o_proj(out.reshape(*x.shape[:2], -1))


class DecoderLayer(nnx.Module):
    def __init__(self, c: TextConfig, *, rngs: nnx.Rngs):
        self.input_layernorm = L.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = TextAttention(c, rngs=rngs)
        self.post_attention_layernorm = L.RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = L.GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act, std=c.initializer_range, rngs=rngs)

    def __call__(self, x: Array, rotation: L.Rotation, segment: Array) -> Array:
        x = x + self.self_attn(self.input_layernorm(x), rotation, segment)
        return x + self.mlp(self.post_attention_layernorm(x))


class TextModel(nnx.Module):
    def __init__(self, c: TextConfig, *, rngs: nnx.Rngs):
        self.config = c
        self.embed_tokens = nnx.Embed(
            c.vocab_size, c.hidden_size, embedding_init=nnx.initializers.normal(c.initializer_range), rngs=rngs
        )
        self.layers = nnx.List([DecoderLayer(c, rngs=rngs) for _ in range(c.num_hidden_layers)])
        self.norm = L.RMSNorm(c.hidden_size, c.rms_norm_eps)

    def __call__(
        self, x: Float[Array, "B L H"], batch: Batch, deepstack: Sequence[Array], wanted: set[int], remat: bool | str
    ) -> dict[int, Float[Array, "B L H"]]:
        """The wanted states by index: 0 = embeddings, i = after layer i, depth = after the final norm."""
        c = self.config
        rotation = L.mrope(
            batch.position_ids,
            dim=c.head_dim,
            theta=c.rope_theta,
            sections=c.mrope_section,
            interleaved=c.mrope_interleaved,
        )
        segment = jnp.asarray(batch.attention_mask, jnp.int32)
        states = {0: x} if 0 in wanted else {}
        for i, layer in enumerate(self.layers):
            x = _call(layer, remat, x, rotation, segment)
            if i + 1 in wanted:  # as transformers records it: before the DeepStack addition
                states[i + 1] = x
            if i < len(deepstack):
                x = x + deepstack[i]
        states[c.num_hidden_layers] = self.norm(x)
        return states


class QwenVL(nnx.Module):
    """A backbone of the family.

    Parameters are created in float32 with the config's initializer_range; computing follows the parameters' dtype, with
    rotary angles, norms' statistics and softmax in float32.
    """

    def __init__(self, config: QwenVLConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.visual = VisionModel(config.vision, rngs=rngs)
        self.language_model = TextModel(config.text, rngs=rngs)
        if config.token_dim is not None:  # of jina-embeddings-v4 (arXiv:2506.18902)
            width, std = config.text.hidden_size, config.text.initializer_range
            self.multi_vector_projector = L.linear(width, config.token_dim, bias=True, std=std, rngs=rngs)

    def __call__(self, batch: Batch, layers: Sequence[int] = (-1,), *, remat: bool | str = False) -> Hidden:
        """States of a batch.

        Args:
          batch: padded arrays of static shape, see `Batch`.
          layers: which states, as indices into transformers' `hidden_states` (depth + 1 of them; -1 = after the
            final norm).
          remat: recompute each layer in a backward pass instead of storing its activations: all of it (True), or what a
            policy of `layers.REMAT_POLICIES` does not keep.

        Returns:
          `Hidden`: `pooled` [B, H], the mean of the states at `batch.pool_mask` after the final norm, or without it the
          state of each row's last attended position, `states` [B, L, layers, H] and, of a model with a projector,
          `tokens` [B, L, D], all in the parameters' dtype.
        """
        depth = self.config.text.num_hidden_layers
        chosen = [range(depth + 1)[i] for i in layers]
        x = self.language_model.embed_tokens.embedding[batch.input_ids]  # [B, L, H]
        deepstack: list[Array] = []
        if batch.vision is not None:
            merged, deepstack = checkpoint_name(self.visual(batch.vision, remat=remat), L.VISUAL_FEATURES)
            x = jnp.where((batch.index >= 0)[..., None], _gather(merged, batch.index), x)
            deepstack = [_gather(features, batch.index) for features in deepstack if self.config.use_deepstack]
        states = self.language_model(x, batch, deepstack, set(chosen), remat)
        tokens = None if self.config.token_dim is None else self.multi_vector_projector(states[depth])
        chosen_states = jnp.stack([states[i] for i in chosen], axis=2)
        return Hidden(pooled=_pool(states[depth], batch), states=chosen_states, tokens=tokens)


def _vision_norm(c: VisionConfig, width: int, *, rngs: nnx.Rngs) -> nnx.LayerNorm | L.RMSNorm:
    return L.RMSNorm(width, 1e-6) if c.rms_norm else L.layer_norm(width, rngs=rngs)


def _pool(states: Float[Array, "B L H"], batch: Batch) -> Float[Array, "B H"]:
    if batch.pool_mask is not None:
        weights = batch.pool_mask / batch.pool_mask.sum(axis=1, keepdims=True)
        # Not a product of matrices, which accelerators round to bfloat16.
        return (states.astype(jnp.float32) * weights[..., None]).sum(axis=1).astype(states.dtype)
    last = states.shape[1] - 1 - jnp.argmax(batch.attention_mask[:, ::-1], axis=1)  # [B]
    return jnp.take_along_axis(states, last[:, None, None], axis=1)[:, 0]


def _gather(features: Float[Array, "G visual H"], index: Int[HostOrDevice, "B L"]) -> Float[Array, "B L H"]:
    """Each row's visual tokens out of its bin; 0 where index is -1."""
    by_bin = jnp.maximum(index, 0).reshape(features.shape[0], -1)  # [G, B / G * L]
    rows = jnp.take_along_axis(features, by_bin[..., None], axis=1).reshape(*index.shape, -1)
    return jnp.where((index >= 0)[..., None], rows, 0)


def _reorder(x: Shaped[Array, "G V *rest"], order: Int[Array, "G V"]) -> Shaped[Array, "G V *rest"]:
    return jnp.take_along_axis(x, order.reshape(order.shape + (1,) * (x.ndim - 2)), axis=1)


def _restore(x: Shaped[Array, "G V *rest"], order: Int[Array, "G V"] | None) -> Shaped[Array, "G V *rest"]:
    return x if order is None else _reorder(x, jnp.argsort(order, axis=1))


def _call(layer: nnx.Module, remat: bool | str, *args: Any, **options: Any) -> Array:
    """The layer's result; `options` are static."""

    def call(layer: Any, *args: Any) -> Array:
        return layer(*args, **options)

    return L.rematerialised(call, remat)(layer, *args)
