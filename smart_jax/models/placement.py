"""Placing an array beside another that is already on a mesh, or splitting it by rows as batches are."""

from __future__ import annotations

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from smart_jax.runtime import AXES, BATCH, place, sharding_for


def mesh_sharding(x: jax.Array | jax.ShapeDtypeStruct) -> NamedSharding | None:
    """Returns how an array is split over a mesh; None = it is on no mesh."""
    sharding = getattr(x, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) else None


def place_beside(
    x: jax.Array | jax.ShapeDtypeStruct, spec: PartitionSpec, other: jax.Array | jax.ShapeDtypeStruct
) -> jax.Array | jax.ShapeDtypeStruct:
    """Returns x on the mesh of `other`, split where the axes divide, and abstract where `other` is."""
    beside = mesh_sharding(other)
    assert beside is not None
    sharding = sharding_for("", x.shape, [("", spec)], beside.mesh)
    if isinstance(other, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    placed: jax.Array = place(x, sharding)
    return placed


def split_by_rows(x: jax.Array) -> jax.Array:
    """Returns x with its rows split over the devices that share a batch, as its batch is; otherwise as it is.

    For where the compiler would go by the weights: with those that fsdp splits it gave every device all rows.
    """
    mesh = jax.typeof(x).sharding.mesh
    if set(mesh.axis_names) != set(AXES) or AxisType.Manual in mesh.axis_types:
        return x
    if x.shape[0] % (mesh.shape["data"] * mesh.shape["fsdp"]):
        return x
    split: jax.Array = jax.lax.with_sharding_constraint(x, NamedSharding(mesh, BATCH))
    return split
