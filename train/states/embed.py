"""Embeddings of examples whose states are on disk, by an adapter in training."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from smart_jax.retrieval import Embeddings
from smart_jax.runtime import batch_sharding, place, to_host
from train.objective import Objective, Params, StatesBatch

ROWS = 64  # of a device, at most


class StatesEmbedder:
    """Makes of kept states what an encoder with the adapter makes of the items; every process has to call it."""

    def __init__(self, read: Callable[[Int[np.ndarray, " B"]], StatesBatch], objective: Objective):
        """Takes what reads the states of examples by number, and the objective, which has the adapter's structure."""
        assert isinstance(objective.mesh, Mesh)  # not the abstract one of a plan
        self._read, self._mesh = read, objective.mesh

        def encode(params: Params, batch: StatesBatch) -> tuple[Float[Array, "B pooled"], Float[Array, "B L D"]]:
            encoded = objective.encoded(params, batch.hidden(), jnp.asarray(batch.keep_mask))
            return encoded.pooled, encoded.tokens

        self._encode = jax.jit(encode)

    def __call__(self, params: Params, examples: Int[np.ndarray, " N"]) -> Embeddings:
        """Returns embeddings.

        Args:
          params: the adapter's, by name.
          examples: their numbers.
        """
        shards = self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        rows = min(ROWS, -(-len(examples) // shards)) * shards
        pooled, tokens, lengths = [], [], []
        for start in range(0, len(examples), rows):
            some = examples[start : start + rows]
            batch = self._read(np.resize(some, rows))  # the last one repeats its examples
            where = jax.tree.map(lambda _: batch_sharding(self._mesh), batch)
            of_items, of_tokens = (to_host(x)[: len(some)] for x in self._encode(params, place(batch, where)))
            mask = np.asarray(batch.keep_mask)[: len(some)]
            pooled.append(of_items)
            tokens.append(of_tokens[mask])
            lengths.append(mask.sum(axis=1))
        offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
        return Embeddings(np.concatenate(pooled), np.concatenate(tokens), offsets)
