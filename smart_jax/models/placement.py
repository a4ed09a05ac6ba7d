"""Placing an array beside another that is already on a mesh."""

from __future__ import annotations

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from smart_jax.runtime import place, sharding_for


def mesh_sharding(x: jax.Array | jax.ShapeDtypeStruct) -> NamedSharding | None:
    """Returns how an array is split over a mesh; None = it is on no mesh."""
    sharding = getattr(x, "sharding", None)
    return sharding if isinstance(sharding, NamedSharding) else None


def place_beside(
    x: jax.Array | jax.ShapeDtypeStruct, spec: PartitionSpec, other: jax.Array | jax.ShapeDtypeStruct
) -> jax.Array | jax.ShapeDtypeStruct:
    """Returns x on the mesh of `other`, split where the axes divide, and abstract where `other` is."""
    beside = mesh_sharding(other)
    assert beside is not None and isinstance(beside.mesh, Mesh)
    sharding = sharding_for("", x.shape, [("", spec)], beside.mesh)
    if isinstance(other, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    placed: jax.Array = place(x, sharding)
    return placed
