"""BERT as a text encoder (arXiv:1810.04805), pooled as in Sentence-BERT (arXiv:1908.10084).

Each layer normalises after its residual sum. Segment ids are all 0, since retrievers encode one text at a time.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from smart_jax.models import layers as L
from smart_jax.models.attention import attention
from smart_jax.models.batch import Batch, Hidden
from smart_jax.models.bert_config import BertConfig
from smart_jax.models.pooling import first_state, mean_state
from smart_jax.typing import HostOrDevice

SHARDING_RULES = (
    (r"(query|key|value|intermediate\.dense)\.kernel$", P("fsdp", "tensor")),
    (r"output\.dense\.kernel$", P("tensor", "fsdp")),
    (r"word_embeddings\.embedding$", P("fsdp", None)),
)
# Tensors that no embedding uses: the classifier over [CLS], the heads of pre-training, a buffer of old checkpoints.
IGNORED = r"(bert\.)?(pooler\..+|embeddings\.position_ids)|cls\..+"


class Embeddings(nnx.Module):
    """Sum of the embeddings of tokens, positions and segments, normalised."""

    def __init__(self, c: BertConfig, *, rngs: nnx.Rngs) -> None:
        def table(rows: int) -> nnx.Embed:
            init = nnx.initializers.normal(c.initializer_range)
            return nnx.Embed(rows, c.hidden_size, embedding_init=init, rngs=rngs)

        self.word_embeddings = table(c.vocab_size)
        self.position_embeddings = table(c.max_position_embeddings)
        self.token_type_embeddings = table(c.type_vocab_size)
        self.LayerNorm = L.layer_norm(c.hidden_size, c.layer_norm_eps, rngs=rngs)

    def __call__(self, ids: Int[HostOrDevice, "B L"], positions: Int[HostOrDevice, "B L"]) -> Float[Array, "B L H"]:
        """Returns the states before the first layer."""
        x = self.word_embeddings.embedding[jnp.asarray(ids)] + self.token_type_embeddings.embedding[None, :1]
        x = x + self.position_embeddings.embedding[jnp.asarray(positions)]
        states: Array = self.LayerNorm(x)
        return states


class Projections(nnx.Module):
    """Attention of every attended position to every other, before its output map."""

    def __init__(self, c: BertConfig, *, rngs: nnx.Rngs) -> None:
        def linear() -> nnx.Linear:
            return L.linear(c.hidden_size, c.hidden_size, bias=True, std=c.initializer_range, rngs=rngs)

        self.query, self.key, self.value = linear(), linear(), linear()
        self.heads = c.num_attention_heads

    def __call__(self, x: Float[Array, "B L H"], segment: Int[Array, "B L"]) -> Float[Array, "B L H"]:
        """Returns the heads' results side by side."""
        heads = (*x.shape[:2], self.heads, x.shape[2] // self.heads)
        q, k, v = (project(x).reshape(heads) for project in (self.query, self.key, self.value))  # [B, L, A, C]
        return attention(q, k, v, segment, causal=False).reshape(x.shape)


class Output(nnx.Module):
    """Linear map, added to a residual and normalised."""

    def __init__(self, c: BertConfig, inputs: int, *, rngs: nnx.Rngs) -> None:
        self.dense = L.linear(inputs, c.hidden_size, bias=True, std=c.initializer_range, rngs=rngs)
        self.LayerNorm = L.layer_norm(c.hidden_size, c.layer_norm_eps, rngs=rngs)

    def __call__(self, x: Float[Array, "B L inputs"], residual: Float[Array, "B L H"]) -> Float[Array, "B L H"]:
        """Returns LayerNorm(residual + dense(x))."""
        states: Array = self.LayerNorm(residual + self.dense(x))
        return states


class Attention(nnx.Module):
    """Attention with its output map and norm."""

    def __init__(self, c: BertConfig, *, rngs: nnx.Rngs) -> None:
        self.self = Projections(c, rngs=rngs)
        self.output = Output(c, c.hidden_size, rngs=rngs)

    def __call__(self, x: Float[Array, "B L H"], segment: Int[Array, "B L"]) -> Float[Array, "B L H"]:
        """Returns the states after attention."""
        return self.output(self.self(x, segment), x)


class Intermediate(nnx.Module):
    """Widening map of a layer, with its activation."""

    def __init__(self, c: BertConfig, *, rngs: nnx.Rngs) -> None:
        self.dense = L.linear(c.hidden_size, c.intermediate_size, bias=True, std=c.initializer_range, rngs=rngs)
        self.act = L.ACTIVATIONS[c.hidden_act]

    def __call__(self, x: Float[Array, "B L H"]) -> Float[Array, "B L inputs"]:
        """Returns act(dense(x))."""
        return self.act(self.dense(x))


class Layer(nnx.Module):
    """Layer of the encoder: attention, then a two-layer network."""

    def __init__(self, c: BertConfig, *, rngs: nnx.Rngs) -> None:
        self.attention = Attention(c, rngs=rngs)
        self.intermediate = Intermediate(c, rngs=rngs)
        self.output = Output(c, c.intermediate_size, rngs=rngs)

    def __call__(self, x: Float[Array, "B L H"], segment: Int[Array, "B L"]) -> Float[Array, "B L H"]:
        """Returns the positions' next states."""
        x = self.attention(x, segment)
        return self.output(self.intermediate(x), x)


class Encoder(nnx.Module):
    """The layers, under the name that checkpoints give them."""

    def __init__(self, c: BertConfig, *, rngs: nnx.Rngs) -> None:
        self.layer = nnx.List([Layer(c, rngs=rngs) for _ in range(c.num_hidden_layers)])


class Bert(nnx.Module):
    """A BERT that encodes texts.

    Parameters are created in float32 with the config's initializer_range. Computing follows the parameters' dtype, with
    the norms' statistics, the softmax and the mean in float32.
    """

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        self.embeddings = Embeddings(config, rngs=rngs)
        self.encoder = Encoder(config, rngs=rngs)

    def __call__(self, batch: Batch, layers: Sequence[int] = (-1,), *, remat: bool | str = False) -> Hidden:
        """Returns the states of a batch of texts.

        Args:
          batch: padded arrays of static shape, without images. Where a row keeps its first token, [CLS], its item has
            no other token to keep: the states there are then the pooled ones of each layer.
          layers: which states to return, as indices into transformers' `hidden_states`: 0 = embeddings, -1 = after the
            last layer; there are depth + 1.
          remat: compute each layer again in a backward pass instead of storing its activations: all of them (True), or
            those that a policy of `layers.REMAT_POLICIES` does not keep.

        Returns:
          `Hidden`, whose `pooled` is the mean over attended positions (float32) or the state of the first of them, as
          the config says.
        """
        chosen = [range(self.config.num_hidden_layers + 1)[i] for i in layers]
        mask = jnp.asarray(batch.attention_mask)
        segment = mask.astype(jnp.int32)
        x = self.embeddings(batch.input_ids, batch.position_ids[0])
        states_of = {0: x}
        for i, layer in enumerate(self.encoder.layer, start=1):
            x = L.run(layer, x, segment, remat=remat)
            if i in chosen:
                states_of[i] = x
        states = jnp.stack([states_of[i] for i in chosen], axis=2)  # [B, L, layers, H]
        pool = first_state if self.config.pooling == "cls" else mean_state
        first = jnp.argmax(mask, axis=1)[:, None]  # [B, 1]
        alone = (jnp.arange(x.shape[1])[None] == first) & batch.keep_mask  # [B, L]
        states = jnp.where(alone[:, :, None, None], pool(states, mask)[:, None].astype(x.dtype), states)
        return Hidden(pooled=pool(x, mask), states=states)
