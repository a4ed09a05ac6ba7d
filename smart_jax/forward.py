"""The forward pass of a batch: backbone, projection if there is one, and unit length; one compiled function."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Float

from smart_jax.models import Batch, Params, batch_axes
from smart_jax.runtime import batch_sharding, place
from smart_jax.vectors import l2_normalise

# The structure of a module and its arrays; jit takes both as one argument.
Split = tuple[nnx.GraphDef[Any], Params]


class Vectors(NamedTuple):
    """Vectors of a padded batch, on the device.

    Attributes:
      pooled: L2-normalised pooled vectors, of the dtype asked for.
      states: L2-normalised states of each layer, of the same dtype; a projection makes one vector of all layers.
      norms: float32 lengths of the states before they were normalised; 1 after a projection.
    """

    pooled: Float[Array, "B pooled"]
    states: Float[Array, "B L layers D"]
    norms: Float[Array, "B L layers"]


class Computation(NamedTuple):
    """Choice of the vectors to compute.

    Attributes:
      layers: layers whose states are computed with, as indices into transformers' `hidden_states`.
      own_head: whether the last states go through the model's own head, if it has one.
      dtype: dtype of the pooled vectors and the states.
      projection: an adapter, which projects the layers' states; None = they stay as they are.
    """

    layers: tuple[int, ...]
    own_head: bool
    dtype: np.dtype
    projection: Split | None = None


@partial(jax.jit, static_argnames=("layers", "own_head", "dtype"))
def compute(
    backbone: Split, projection: Split | None, batch: Batch, layers: tuple[int, ...], own_head: bool, dtype: np.dtype
) -> Vectors:
    """Runs the backbone on a batch, and the projection on its states if there is one."""
    hidden = nnx.merge(*backbone)(batch, layers=layers)
    pooled, states = hidden.pooled, hidden.states
    if own_head and hidden.tokens is not None:
        states = hidden.tokens[:, :, None]
    if projection is not None:
        adapter = nnx.merge(*projection)
        pooled, states = adapter.pooled(pooled), adapter(states, batch.keep_mask)[:, :, None]
        return Vectors(pooled.astype(dtype), states.astype(dtype), jnp.ones(states.shape[:3], jnp.float32))
    norms = jnp.linalg.norm(states.astype(jnp.float32), axis=-1)
    return Vectors(l2_normalise(pooled).astype(dtype), l2_normalise(states).astype(dtype), norms)


def abstract_batch(batch: Batch, mesh: Mesh | None) -> Batch:
    """Returns the batch's shapes, with their places on the mesh as `put_batch` chooses them, in the arrays' places."""

    def shape(array: np.ndarray, axis: int) -> jax.ShapeDtypeStruct:
        sharding = None if mesh is None else batch_sharding(mesh, leading=axis)
        return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding)

    shapes: Batch = jax.tree.map(shape, batch, batch_axes(batch))
    return shapes


def put_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Returns the batch on the mesh, its rows split over the data axes."""
    placed: Batch = place(batch, jax.tree.map(lambda axis: batch_sharding(mesh, leading=axis), batch_axes(batch)))
    return placed
