"""BERT as a text encoder (arXiv:1810.04805), pooled as in Sentence-BERT (arXiv:1908.10084).

Each block normalises after its residual sum. Segment ids are all 0: retrievers encode one text at a time.
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
from smart_jax.typing import HostOrDevice

SHARDING_RULES = (
    (r"(query|key|value|intermediate\.dense)\.kernel$", P("fsdp", "tensor")),
    (r"output\.dense\.kernel$", P("tensor", "fsdp")),
    (r"word_embeddings\.embedding$", P("fsdp", None)),
)
# The classifier over [CLS], the heads of pre-training, and a buffer of old checkpoints.
IGNORED = r"(bert\.)?(pooler\..+|embeddings\.position_ids)|cls\..+"


class Embeddings(nnx.Module):
    def __init__(self, c: BertConfig, *, rngs: nnx.Rngs):
        def table(rows: int) -> nnx.Embed:
            init = nnx.initializers.normal(c.initializer_range)
            return nnx.Embed(rows, c.hidden_size, embedding_init=init, rngs=rngs)

        self.word_embeddings = table(c.vocab_size)
        self.position_embeddings = table(c.max_position_embeddings)
        self.token_type_embeddings = table(c.type_vocab_size)
        self.LayerNorm = L.layer_norm(c.hidden_size, c.layer_norm_eps, rngs=rngs)

    def __call__(self, ids: Int[HostOrDevice, "B L"], positions: Int[HostOrDevice, "B L"]) -> Float[Array, "B L H"]:
        x = self.word_embeddings.embedding[ids] + self.token_type_embeddings.embedding[0]
        return self.LayerNorm(x + self.position_embeddings.embedding[positions])


class Projections(nnx.Module):
    def __init__(self, c: BertConfig, *, rngs: nnx.Rngs):
        def linear() -> nnx.Linear:
            return L.linear(c.hidden_size, c.hidden_size, bias=True, std=c.initializer_range, rngs=rngs)

        self.query, self.key, self.value = linear(), linear(), linear()
        self.heads = c.num_attention_heads

    def __call__(self, x: Float[Array, "B L H"], segment: Int[Array, "B L"]) -> Float[Array, "B L H"]:
        heads = (*x.shape[:2], self.heads, x.shape[2] // self.heads)
        q, k, v = (project(x).reshape(heads) for project in (self.query, self.key, self.value))  # [B, L, A, C]
        return attention(q, k, v, segment, causal=False).reshape(x.shape)


class Output(nnx.Module):
    """LayerNorm(residual + Linear(x))."""

    def __init__(self, c: BertConfig, din: int, *, rngs: nnx.Rngs):
        self.dense = L.linear(din, c.hidden_size, bias=True, std=c.initializer_range, rngs=rngs)
        self.LayerNorm = L.layer_norm(c.hidden_size, c.layer_norm_eps, rngs=rngs)

    def __call__(self, x: Float[Array, "B L inputs"], residual: Float[Array, "B L H"]) -> Float[Array, "B L H"]:
        return self.LayerNorm(residual + self.dense(x))


class Attention(nnx.Module):
    def __init__(self, c: BertConfig, *, rngs: nnx.Rngs):
        self.self = Projections(c, rngs=rngs)
        self.output = Output(c, c.hidden_size, rngs=rngs)

    def __call__(self, x: Float[Array, "B L H"], segment: Int[Array, "B L"]) -> Float[Array, "B L H"]:
        return self.output(self.self(x, segment), x)


class Intermediate(nnx.Module):
    def __init__(self, c: BertConfig, *, rngs: nnx.Rngs):
        self.dense = L.linear(c.hidden_size, c.intermediate_size, bias=True, std=c.initializer_range, rngs=rngs)
        self.act = L.ACTIVATIONS[c.hidden_act]

    def __call__(self, x: Float[Array, "B L H"]) -> Float[Array, "B L inputs"]:
        return self.act(self.dense(x))


class Layer(nnx.Module):
    def __init__(self, c: BertConfig, *, rngs: nnx.Rngs):
        self.attention = Attention(c, rngs=rngs)
        self.intermediate = Intermediate(c, rngs=rngs)
        self.output = Output(c, c.intermediate_size, rngs=rngs)

    def __call__(self, x: Float[Array, "B L H"], segment: Int[Array, "B L"]) -> Float[Array, "B L H"]:
        x = self.attention(x, segment)
        return self.output(self.intermediate(x), x)


class Encoder(nnx.Module):
    def __init__(self, c: BertConfig, *, rngs: nnx.Rngs):
        self.layer = nnx.List([Layer(c, rngs=rngs) for _ in range(c.num_hidden_layers)])


class Bert(nnx.Module):
    """Parameters are created in float32 with the config's initializer_range; computing follows the parameters' dtype,
    with the norms' statistics, the softmax and the mean in float32."""

    def __init__(self, config: BertConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.embeddings = Embeddings(config, rngs=rngs)
        self.encoder = Encoder(config, rngs=rngs)

    def __call__(self, batch: Batch, layers: Sequence[int] = (-1,), *, remat: bool | str = False) -> Hidden:
        """States of a batch of texts.

        Args:
          batch: padded arrays of static shape, without images. A row whose first token, [CLS], is kept has nothing
            else to keep: the states there are then the pooled ones of each layer.
          layers: which states, as indices into transformers' `hidden_states` (0 = embeddings; depth + 1 of them).
          remat: recompute each layer in a backward pass instead of storing its activations: all of it (True), or what a
            policy of `layers.REMAT_POLICIES` does not keep.

        Returns:
          `Hidden`: `pooled` [B, H], the mean over attended tokens or the first of them, and `states` [B, L, layers, H].
        """
        chosen = [range(self.config.num_hidden_layers + 1)[i] for i in layers]
        segment = jnp.asarray(batch.attention_mask, jnp.int32)
        x = self.embeddings(batch.input_ids, batch.position_ids[0])
        found = {0: x}
        call = L.rematerialised(Layer.__call__, remat)
        for i, layer in enumerate(self.encoder.layer, start=1):
            x = call(layer, x, segment)
            if i in chosen:
                found[i] = x
        states = jnp.stack([found[i] for i in chosen], axis=2)  # [B, L, layers, H]
        first = jnp.argmax(batch.attention_mask, axis=1)[:, None]  # [B, 1]
        alone = (jnp.arange(x.shape[1]) == first) & batch.keep_mask  # [B, L]
        states = jnp.where(alone[:, :, None, None], self._pool(states, batch)[:, None].astype(x.dtype), states)
        return Hidden(pooled=self._pool(x[:, :, None], batch)[:, 0], states=states)

    def _pool(self, states: Float[Array, "B L layers H"], batch: Batch) -> Float[Array, "B layers H"]:
        mask = batch.attention_mask
        if self.config.pooling == "cls":
            return jnp.take_along_axis(states, jnp.argmax(mask, axis=1)[:, None, None, None], axis=1)[:, 0]
        weights = mask / mask.sum(axis=1, keepdims=True)
        return jnp.einsum("blnh,bl->bnh", states.astype(jnp.float32), weights)
