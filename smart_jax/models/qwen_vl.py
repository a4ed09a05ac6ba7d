"""The Qwen-VL family as an encoder.

It has Qwen2-VL (arXiv:2409.12191), Qwen2.5-VL (arXiv:2502.13923) and Qwen3-VL (arXiv:2511.21631), between which the
config's switches choose. The vision tower makes visual tokens, which take their places among the text's embeddings, and
the decoder follows. Everything runs inside jit on one `Batch` of static shape; visual tokens are gathered into the
sequence by index, so that a padded position can never matter. Layers are unrolled, not scanned: DeepStack and the
chosen layers read states between layers, and a scan over stacked weights would have to be cut at each of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from smart_jax.models import layers as L
from smart_jax.models.batch import Batch, Hidden
from smart_jax.models.pooling import last_state, mean_state
from smart_jax.models.qwen_vl_config import QwenVLConfig
from smart_jax.models.qwen_vl_text import TextModel
from smart_jax.models.qwen_vl_vision import VisionModel

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
    (r"^(visual\.merger)\.norm\.", r"\1.ln_q."),
    (r"^(visual\.merger)\.linear_fc1\.", r"\1.mlp.0."),
    (r"^(visual\.merger)\.linear_fc2\.", r"\1.mlp.2."),
    (r"^(visual\.blocks\.\d+\.mlp)\.linear_(fc[12])\.", r"\1.\2."),
)


class QwenVL(nnx.Module):
    """A backbone of the family.

    Parameters are created in float32 with the config's initializer_range. Computing follows the parameters' dtype, with
    rotary angles, the norms' statistics and the softmax in float32.
    """

    text_model = TextModel  # class of the decoder

    def __init__(self, config: QwenVLConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.visual = VisionModel(config.vision, rngs=rngs)
        self.language_model = self.text_model(config.text, rngs=rngs)
        if (projector := config.projector) is not None:
            width, std = config.text.hidden_size, config.text.initializer_range
            self.token_projector = L.linear(width, projector.width, bias=projector.bias, std=std, rngs=rngs)

    def __call__(self, batch: Batch, layers: Sequence[int] = (-1,), *, remat: bool | str = False) -> Hidden:
        """Returns the states of a batch.

        Args:
          batch: padded arrays of static shape.
          layers: which states to return, as indices into transformers' `hidden_states`: 0 = embeddings, -1 = after the
            final norm; there are depth + 1.
          remat: compute each layer again in a backward pass instead of storing its activations: all of them (True), or
            those that a policy of `layers.REMAT_POLICIES` does not keep.

        Returns:
          `Hidden` in the parameters' dtype. `pooled` is the mean of the last states at `batch.pool_mask` or, without a
          mask, the state of each row's last attended position, and of width 0 if the config says that there is none;
          `tokens` are the projector's, if the model has one.
        """
        depth = self.config.text.num_hidden_layers
        chosen = [range(depth + 1)[i] for i in layers]
        x = self.language_model.embed_tokens.embedding[jnp.asarray(batch.input_ids)]  # [B, L, H]
        deepstack: list[Array] = []
        if batch.vision is not None:
            visual, deepstack = checkpoint_name(self.visual(batch.vision, remat=remat), L.VISUAL_FEATURES)
            x = jnp.where((jnp.asarray(batch.index) >= 0)[..., None], L.gathered(visual, batch.index), x)
            deepstack = [L.gathered(features, batch.index) for features in deepstack if self.config.use_deepstack]
        states = self.language_model(x, batch, deepstack, set(chosen), remat)
        last = states[depth]
        if not self.config.pooled:
            pooled = last[:, 0, :0]
        elif batch.pool_mask is None:
            pooled = last_state(last, batch.attention_mask)
        else:
            pooled = mean_state(last, batch.pool_mask).astype(last.dtype)
        return Hidden(
            pooled=pooled,
            states=jnp.stack([states[i] for i in chosen], axis=2),
            tokens=None if self.config.projector is None else self.token_projector(last)[..., : self.config.token_dim],
        )
