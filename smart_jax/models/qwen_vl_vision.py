"""Vision tower of the Qwen-VL family: patches -> visual tokens, and the features that DeepStack adds to the decoder."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, Shaped, UInt8

from smart_jax.models import layers as L
from smart_jax.models.batch import VisionBatch
from smart_jax.models.heads import Heads
from smart_jax.models.pixels import Normalisation, normalised
from smart_jax.models.placement import split_by_rows
from smart_jax.models.projected_attention import projected_attention
from smart_jax.models.qwen_vl_config import VisionConfig
from smart_jax.typing import HostOrDevice


class VisionMLP(nnx.Module):
    """Two-layer network of a block: fc2(act(fc1(x)))."""

    def __init__(self, c: VisionConfig, *, rngs: nnx.Rngs) -> None:
        std = c.initializer_range
        self.linear_fc1 = L.linear(c.hidden_size, c.intermediate_size, bias=True, std=std, rngs=rngs)
        self.linear_fc2 = L.linear(c.intermediate_size, c.hidden_size, bias=True, std=std, rngs=rngs)
        self.act = L.ACTIVATIONS[c.hidden_act]

    def __call__(self, x: Float[Array, "G V W"]) -> Float[Array, "G V W"]:
        """Returns the network's result for each patch."""
        return self.linear_fc2(self.act(self.linear_fc1(x)))


class VisionAttention(nnx.Module):
    """Attention between the patches of a frame, or of a window of it."""

    def __init__(self, c: VisionConfig, *, rngs: nnx.Rngs) -> None:
        self.qkv = L.linear(c.hidden_size, 3 * c.hidden_size, bias=True, std=c.initializer_range, rngs=rngs)
        self.proj = L.linear(c.hidden_size, c.hidden_size, bias=True, std=c.initializer_range, rngs=rngs)
        self.heads = Heads(c.num_heads, c.num_heads, c.hidden_size // c.num_heads, causal=False)

    def __call__(
        self,
        x: Float[Array, "G V W"],
        rotation: L.Rotation,
        segment: Int[Array, "G V"],
        longest: int | None = None,
    ) -> Float[Array, "G V W"]:
        """Returns attention within segments; with `longest`, each must be a run of at most so many patches."""
        return self.proj(projected_attention((self.qkv(x),), rotation, segment, self.heads, longest=longest))


class VisionBlock(nnx.Module):
    """Layer of the tower: attention and a two-layer network, each after a norm and added to its input."""

    def __init__(self, c: VisionConfig, *, rngs: nnx.Rngs) -> None:
        self.norm1 = _vision_norm(c, c.hidden_size, rngs=rngs)
        self.norm2 = _vision_norm(c, c.hidden_size, rngs=rngs)
        self.attn = VisionAttention(c, rngs=rngs)
        self.mlp: L.GatedMLP | VisionMLP
        if c.gated_mlp:
            std = c.initializer_range
            self.mlp = L.GatedMLP(c.hidden_size, c.intermediate_size, c.hidden_act, bias=True, std=std, rngs=rngs)
        else:
            self.mlp = VisionMLP(c, rngs=rngs)

    def __call__(
        self, x: Float[Array, "G V W"], rotation: L.Rotation, segment: Int[Array, "G V"], longest: int | None = None
    ) -> Float[Array, "G V W"]:
        """Returns the patches' next states; `segment` and `longest` as of `VisionAttention`."""
        x = x + self.attn(self.norm1(x), rotation, segment, longest)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nnx.Module):
    """Projection of merge x merge neighbouring patches to a visual token; its norm is before or after the grouping."""

    def __init__(self, c: VisionConfig, *, norm_after: bool, rngs: nnx.Rngs) -> None:
        self.width = c.hidden_size * c.spatial_merge_size**2
        self.norm_after = norm_after
        self.norm = _vision_norm(c, self.width if norm_after else c.hidden_size, rngs=rngs)
        self.linear_fc1 = L.linear(self.width, self.width, bias=True, std=c.initializer_range, rngs=rngs)
        self.linear_fc2 = L.linear(self.width, c.out_hidden_size, bias=True, std=c.initializer_range, rngs=rngs)

    def __call__(self, x: Float[Array, "G V W"]) -> Float[Array, "G visual H"]:
        """Returns the visual tokens of patches whose merge x merge groups stand together."""
        if not self.norm_after:
            x = self.norm(x)
        x = x.reshape(x.shape[0], -1, self.width)
        if self.norm_after:
            x = self.norm(x)
        return self.linear_fc2(L.ACTIVATIONS["gelu"](self.linear_fc1(x)))  # exact GELU, unlike the blocks'


class PatchEmbed(nnx.Module):
    """Projection of normalised patches: the reference's Conv3d, whose stride is its kernel, as one matrix product."""

    def __init__(self, c: VisionConfig, *, rngs: nnx.Rngs) -> None:
        self.proj = L.linear(c.patch_values, c.hidden_size, bias=c.patch_bias, std=c.initializer_range, rngs=rngs)
        self.size, self.frames = c.patch_size, c.temporal_patch_size

    def __call__(self, patches: UInt8[HostOrDevice, "G V E"], how: Normalisation) -> Float[Array, "G V W"]:
        """Returns the patches' first states, in the parameters' dtype; `how` their bytes become values."""
        dtype = self.proj.kernel.dtype
        values = normalised(patches, how, size=self.size, frames=self.frames, dtype=dtype)
        return self.proj(split_by_rows(values))


class VisionModel(nnx.Module):
    """The whole tower: embedding, blocks, and the mergers of the last states and of DeepStack's."""

    def __init__(self, c: VisionConfig, *, rngs: nnx.Rngs) -> None:
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
        """Returns the merged visual tokens, and the DeepStack features of each tapped block.

        Raises:
          ValueError: the batch has learned positions or windows where the tower has none, or the other way round.
        """
        c = self.config
        if (c.grid_side is None, c.window_size is None) != (v.interp_w is None, v.window is None):
            raise ValueError("the batch's learned positions or attention windows are of another backbone")
        # A backward pass with `remat` keeps the patches' bytes, an eighth or a quarter of their values.
        x = L.run(self.patch_embed, v.patches, remat=remat, how=v.normalisation)
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
                x = L.run(block, x, rotation, segment, remat=remat)
            else:
                x = L.run(block, x, rotation, window, remat=remat, longest=c.window_patches**2)
            if i in c.deepstack_visual_indexes:
                tap = c.deepstack_visual_indexes.index(i)
                deepstack.append(self.deepstack_merger_list[tap](_restore(x, order)))
        return self.merger(_restore(x, order)), deepstack

    def _rotation(self, coords: Int[Array, "G V 2"]) -> L.Rotation:
        """Returns angles of which a head's first half follows the patch's row and the second its column."""
        quarter = self.config.hidden_size // self.config.num_heads // 4
        frequencies = jnp.tile(L.inverse_frequencies(2 * quarter, self.config.rope_theta), 2)
        return L.rotation_of(jnp.moveaxis(coords, -1, 0), frequencies, jnp.repeat(jnp.arange(2), quarter))


def _vision_norm(c: VisionConfig, width: int, *, rngs: nnx.Rngs) -> nnx.LayerNorm | L.RMSNorm:
    return L.RMSNorm(width, 1e-6) if c.rms_norm else L.layer_norm(width, rngs=rngs)


def _reorder(x: Shaped[Array, "G V *rest"], order: Int[Array, "G V"]) -> Shaped[Array, "G V *rest"]:
    """Returns the patches of each bin in an order."""
    return jnp.take_along_axis(x, order.reshape(order.shape + (1,) * (x.ndim - 2)), axis=1)


def _restore(x: Shaped[Array, "G V *rest"], order: Int[Array, "G V"] | None) -> Shaped[Array, "G V *rest"]:
    """Returns the patches in the order that they had before `_reorder`; None = they were not reordered."""
    return x if order is None else _reorder(x, jnp.argsort(order, axis=1))
