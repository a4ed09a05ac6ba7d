"""GradCache (Gao et al., arXiv:2101.06983): a contrastive batch larger than a backbone's activations leave room for.

The loss needs the vectors of every item, but not the activations of every item at once. Items pass through the backbone
chunk by chunk, and only their vectors are kept. Once the gradient of the loss with respect to these is known, each
chunk passes again, now with its activations, and its part of the weights' gradient is added up. In JAX that is a
checkpointed scan, and the gradient is that of the whole batch. A frozen vision tower needs no second pass: its
features, far fewer than its activations, are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from smart_jax.models import Batch, Hidden, batch_axes
from smart_jax.runtime import BATCH
from train.objective.partition import Params

Compute = Callable[[Params, Batch, Int[Array, " c"]], Hidden]


def in_chunks(
    compute: Compute,
    weights: Params,
    batch: Batch,
    *,
    size: int | None,
    mesh: Mesh | AbstractMesh,
    trained: bool,
    kept: tuple[str, ...] = (),
) -> Hidden:
    """Computes `compute(weights, batch, rows)` for all rows of a batch, differentiable in the weights.

    Args:
      compute: function of the weights, some rows, and their numbers in the batch; each row is computed by itself.
      weights: parameters by name.
      batch: B rows, split over the mesh's data axes, with a bin of patches for each.
      size: largest number of rows at a time, over all devices; each device takes a share of its rows. None = all.
      mesh: where the batch is.
      trained: whether a chunk is computed again in the backward pass; False = there is no backward pass.
      kept: names (`jax.ad_checkpoint.checkpoint_name`) of values that are kept for it rather than computed again.

    Returns:
      What `compute` returns for the whole batch.

    Raises:
      ValueError: rows share bins of patches, or `size` is below the number of devices that share the batch.
    """
    count, devices = len(batch.input_ids), mesh.shape["data"] * mesh.shape["fsdp"]
    rows = jnp.arange(count)
    chunk = count if size is None else _largest(count, size, devices)
    if chunk == count:
        return compute(weights, batch, rows)
    if batch.vision is not None and len(batch.vision.patches) != count:
        raise ValueError("rows of this batch share bins of patches: collate it without `shards`")

    def split(x: Array, axis: int) -> Array:
        """Turns [..., B, ...] into [chunks, ..., chunk, ...]; every chunk has rows of each device."""
        parts = x.reshape(*x.shape[:axis], devices, count // chunk, chunk // devices, *x.shape[axis + 1 :])
        parts = jnp.moveaxis(parts, axis + 1, 0)
        parts = parts.reshape(len(parts), *x.shape[:axis], chunk, *x.shape[axis + 1 :])
        return _placed(parts, mesh, axis + 1)

    def join(x: Array) -> Array:
        parts = jnp.moveaxis(x.reshape(count // chunk, devices, chunk // devices, *x.shape[2:]), 0, 1)
        return _placed(parts.reshape(count, *x.shape[2:]), mesh, 0)

    def of_chunk(weights: Params, batch: Batch, rows: Int[Array, " c"]) -> Hidden:
        if mesh.shape["fsdp"] > 1:
            # Weights that are split come from the other devices for each chunk. Without the barrier all of them would
            # come once, before the loop, and stay.
            weights, _ = lax.optimization_barrier((weights, rows[0].astype(jnp.float32)))
        return compute(weights, batch, rows)

    parts = jax.tree.map(split, batch, batch_axes(batch))
    # In a scan, nothing can merge the second pass with the first: no barrier is needed against it.
    policy = jax.checkpoint_policies.save_only_these_names(*kept)
    function = partial(jax.checkpoint, prevent_cse=False, policy=policy)(of_chunk) if trained else of_chunk
    return jax.tree.map(join, lax.map(lambda part: function(weights, *part), (parts, split(rows, 0))))


def _largest(count: int, size: int, devices: int) -> int:
    """Returns the largest size of a chunk that divides the rows and is divided by the devices."""
    sizes = [n for n in range(devices, min(size, count) + 1, devices) if count % n == 0]
    if not sizes:
        raise ValueError(f"chunk_size {size} is below the {devices} devices that share the batch: raise it")
    return sizes[-1]


def _placed(x: Array, mesh: Mesh | AbstractMesh, axis: int) -> Array:
    return lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(*[None] * axis, *BATCH)))
