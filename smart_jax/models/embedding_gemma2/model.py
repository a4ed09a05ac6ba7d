"""EmbeddingGemma 2 as an encoder of texts and of what its towers make of images and audio.

Soft tokens take their places among the text's embeddings before the first layer, and are like other tokens from there
on. The encoder's projection acts on each token, so that the pooled vector is the mean of the token vectors. Everything
runs inside jit on one `Batch` of static shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from smart_jax.models import layers as L
from smart_jax.models.batch import Batch, Hidden
from smart_jax.models.embedding_gemma2.audio import AudioTower, with_audio
from smart_jax.models.embedding_gemma2.config import EmbeddingGemma2Config
from smart_jax.models.embedding_gemma2.linears import SoftTokenEmbedder
from smart_jax.models.embedding_gemma2.text import TextModel
from smart_jax.models.embedding_gemma2.vision import VisionModel
from smart_jax.models.pooling import mean_state

# Megatron layout: a pair of matrices is split by columns then by rows; fsdp takes the other side.
SHARDING_RULES = (
    (
        r"(q_proj|k_proj|v_proj|gate_proj|up_proj|per_layer_input_gate|ffw_layer_1|linear_start)(\.linear)?\.kernel$",
        P("fsdp", "tensor"),
    ),
    (r"(o_proj|down_proj|per_layer_projection|post|ffw_layer_2|linear_end)(\.linear)?\.kernel$", P("tensor", "fsdp")),
    (r"(per_layer_model_projection|embedding_projection)\.kernel$", P("fsdp", None)),
    (r"embed_tokens\.embedding$", P("fsdp", None)),
    (r"input_proj\.kernel$", P(None, "fsdp")),
    (r"position_embedding_table$", P(None, "fsdp", None)),
)
# Tensors of towers that config.json leaves out, as transformers leaves them out.
IGNORED = r"(model\.)?(vision_tower|embed_vision|audio_tower|embed_audio)\..+"


class EmbeddingGemma2(nnx.Module):
    """A backbone with the towers that its config has.

    Parameters are created in float32 with the config's initializer_range. Computing follows the parameters' dtype, with
    rotary angles, the norms' statistics and the softmax in float32.

    Example:
      >>> from smart_jax.models.embedding_gemma2.config import TextConfig
      >>> text = TextConfig(vocab_size=9, hidden_size=4, intermediate_size=8, num_hidden_layers=1, full_head_dim=4,
      ...                   hidden_size_per_layer_input=2, embedding_dim=6)
      >>> model = EmbeddingGemma2(EmbeddingGemma2Config(text=text), rngs=nnx.Rngs(0))
      >>> model.language_model.embedding_projection.kernel.shape
      (4, 6)
    """

    def __init__(self, config: EmbeddingGemma2Config, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.language_model = TextModel(config.text, rngs=rngs)
        if (vision := config.vision) is not None:
            self.vision_tower = VisionModel(vision, rngs=rngs)
            self.embed_vision = SoftTokenEmbedder(
                vision.hidden_size,
                config.text.hidden_size,
                eps=vision.rms_norm_eps,
                std=config.text.initializer_range,
                rngs=rngs,
            )
        if (audio := config.audio) is not None:
            self.audio_tower = AudioTower(audio, rngs=rngs)
            self.embed_audio = SoftTokenEmbedder(
                audio.output_proj_dims,
                config.text.hidden_size,
                eps=audio.rms_norm_eps,
                std=config.text.initializer_range,
                rngs=rngs,
            )

    def __call__(self, batch: Batch, layers: Sequence[int] = (-1,), *, remat: bool | str = False) -> Hidden:
        """Returns the states of a batch.

        Args:
          batch: padded arrays of static shape.
          layers: which states to return, by the layer that they leave: 0 = the embeddings, -1 = the last; there are
            depth + 1. All go through the final norm and the projection, so that they have one width.
          remat: compute each layer again in a backward pass instead of storing its activations: all of them (True), or
            those that a policy of `layers.REMAT_POLICIES` does not keep.

        Returns:
          `Hidden` in the parameters' dtype. `pooled` is the mean of the last states at `batch.pool_mask`, or over all
          attended positions.

        Raises:
          ValueError: the batch has images or audio, and the model no tower for them.
        """
        depth = self.config.text.num_hidden_layers
        chosen = [range(depth + 1)[i] for i in layers]
        x = self._with_images(self.language_model.embed(batch.input_ids), batch, remat)
        x = self._with_audio(x, batch, remat)
        states = self.language_model.run_layers(x, batch, {*chosen, depth}, remat)
        read = {i: self.language_model.read(state) for i, state in states.items()}
        mask = batch.attention_mask if batch.pool_mask is None else batch.pool_mask
        return Hidden(
            pooled=mean_state(read[depth], mask).astype(x.dtype),
            states=jnp.stack([read[i] for i in chosen], axis=2),
        )

    def _with_images(self, x: Float[Array, "B L H"], batch: Batch, remat: bool | str) -> Float[Array, "B L H"]:
        """Returns the embeddings with visual tokens in their places."""
        if batch.vision is None:
            return x
        if self.config.vision is None:
            raise ValueError("the batch has images, but this checkpoint has no vision tower (vision_config is null)")
        visual = self.embed_vision(self.vision_tower(batch.vision, remat=remat))
        visual = checkpoint_name(visual, L.VISUAL_FEATURES)
        return jnp.where((jnp.asarray(batch.index) >= 0)[..., None], L.gathered(visual, batch.index), x)

    def _with_audio(self, x: Float[Array, "B L H"], batch: Batch, remat: bool | str) -> Float[Array, "B L H"]:
        """Returns the embeddings with the soft tokens of audio in their places."""
        if batch.audio is None:
            return x
        if self.config.audio is None:
            raise ValueError("the batch has audio, but this checkpoint has no audio tower (audio_config is null)")
        soft, _ = self.audio_tower(batch.audio.features, batch.audio.mask, remat=remat)
        soft = checkpoint_name(self.embed_audio(soft), L.VISUAL_FEATURES)
        return with_audio(x, soft, batch.audio.index)
