"""Audio tower of EmbeddingGemma 2: mel features of clips to soft tokens, one for 40 ms.

It is Gemma 4's, a conformer (arXiv:2005.08100) after the Universal Speech Model's (arXiv:2303.01037).
"""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from smart_jax.models import layers as L
from smart_jax.models.embedding_gemma2.audio_layers import (
    ConformerLayer,
    SubsampleProjection,
    block_context,
    distance_vectors,
)
from smart_jax.models.embedding_gemma2.config import AudioConfig
from smart_jax.typing import HostOrDevice


class AudioTower(nnx.Module):
    """The whole tower; its soft tokens are as wide as `config.output_proj_dims`.

    Padding never matters: a frame sees none after it but those of its own convolutions, which are zeroed where `mask`
    is false.
    """

    def __init__(self, config: AudioConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.subsample_conv_projection = SubsampleProjection(config, rngs=rngs)
        self.layers = nnx.List([ConformerLayer(config, rngs=rngs) for _ in range(config.num_hidden_layers)])
        std = config.initializer_range
        self.output_proj = L.linear(config.hidden_size, config.output_proj_dims, bias=True, std=std, rngs=rngs)

    def __call__(
        self,
        features: Float[HostOrDevice, "M T F"],
        mask: Bool[HostOrDevice, "M T"],
        *,
        remat: bool | str = False,
    ) -> tuple[Float[Array, "M frames D"], Bool[Array, "M frames"]]:
        """Returns the soft tokens of M clips, and which of them are audio: a clip's first ones.

        Args:
          features: log mel energies of frames that are 10 ms apart; see `smart_jax.inputs.audio`.
          mask: which frames are audio.
          remat: as of `QwenVL.__call__`.
        """
        dtype = self.output_proj.kernel.dtype
        x, mask = self.subsample_conv_projection(jnp.asarray(features, dtype), jnp.asarray(mask))
        seen, distances = block_context(self.config, mask), jnp.asarray(distance_vectors(self.config))
        for layer in self.layers:
            x = L.run(layer, x, distances, seen, remat=remat)
        return self.output_proj(x), mask


def with_audio(
    x: Float[Array, "B L H"], soft: Float[Array, "M frames H"], index: Int[HostOrDevice, "B L"]
) -> Float[Array, "B L H"]:
    """Returns the sequence's embeddings with soft tokens in their places.

    Args:
      x: embeddings of the tokens.
      soft: soft tokens of M = B * clips clips; row b has clips b * clips to (b + 1) * clips - 1.
      index: number of a position's soft token among its row's frames, clip after clip; -1 = another token.
    """
    index = jnp.asarray(index)
    by_row = soft.reshape(x.shape[0], -1, soft.shape[-1])
    chosen = jnp.take_along_axis(by_row, jnp.maximum(index, 0)[..., None], axis=1)
    return jnp.where((index >= 0)[..., None], chosen.astype(x.dtype), x)
