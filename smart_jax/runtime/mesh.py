"""Device mesh and the rules that place parameters on it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree
from numpy.typing import ArrayLike

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))  # batch rows are split over every axis that is not tensor parallel

# Regular expressions of parameters' paths, and how the parameters are split.
Rules = Sequence[tuple[str, PartitionSpec]]


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh with the axes `("data", "fsdp", "tensor")`.

    Args:
      data, fsdp, tensor: number of devices along each axis; one of them may be -1, which takes the devices that are
        left.
      devices: devices of the mesh; None = all.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.

    Example:
      >>> import jax
      >>> dict(make_mesh(data=1, devices=jax.devices()[:1]).shape)
      {'data': 1, 'fsdp': 1, 'tensor': 1}
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [data, fsdp, tensor]
    known = int(np.prod([s for s in sizes if s != -1]))
    if sizes.count(-1) > 1 or min(sizes) < -1 or 0 in sizes:
        raise ValueError(f"mesh sizes {dict(zip(AXES, sizes, strict=True))}: each is >= 1, at most one may be -1")
    sizes = [len(devices) // known if s == -1 else s for s in sizes]
    if int(np.prod(sizes)) != len(devices):
        raise ValueError(
            f"mesh {dict(zip(AXES, sizes, strict=True))} needs {int(np.prod(sizes))} devices, but there are "
            f"{len(devices)}: choose sizes whose product is the device count, or pass devices="
        )
    return Mesh(np.asarray(devices).reshape(sizes), AXES)


def batch_sharding(mesh: Mesh | AbstractMesh, leading: int = 0) -> NamedSharding:
    """Returns the sharding of an array whose batch axis comes after `leading` replicated axes.

    Example:
      >>> import jax
      >>> tuple(batch_sharding(make_mesh(devices=jax.devices()[:1]), leading=1).spec)
      (None, ('data', 'fsdp'))
    """
    return NamedSharding(mesh, PartitionSpec(*([None] * leading), *BATCH))


def replicated(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Returns the sharding of an array that every device has whole.

    Example:
      >>> import jax
      >>> replicated(make_mesh(devices=jax.devices()[:1])).is_fully_replicated
      True
    """
    return NamedSharding(mesh, PartitionSpec())


def place(tree: PyTree, sharding: PyTree) -> PyTree:
    """Puts arrays that every process has whole on the devices; each process places the parts of its own devices.

    Args:
      tree: pytree of arrays.
      sharding: a NamedSharding, or a pytree of them in the same structure.

    Example:
      >>> import jax, numpy as np
      >>> placed = place({"a": np.zeros(4)}, replicated(make_mesh(devices=jax.devices()[:1])))
      >>> placed["a"].sharding.is_fully_replicated
      True
    """
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(value: ArrayLike, sharding: NamedSharding) -> jax.Array:
        if sharding.is_fully_addressable or (isinstance(value, jax.Array) and not value.is_fully_addressable):
            placed: jax.Array = jax.device_put(value, sharding)
            return placed
        # device_put would send the whole array around, to see whether all processes have the same one.
        value = np.asarray(value)
        return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])

    if isinstance(sharding, NamedSharding):
        return jax.tree.map(lambda value: put(value, sharding), tree)
    return jax.tree.map(put, tree, sharding)


def to_host(x: ArrayLike) -> np.ndarray:
    """Returns the whole array. One that is split over processes is gathered, so every process must call this.

    Example:
      >>> import jax.numpy as jnp
      >>> to_host(jnp.arange(3))
      array([0, 1, 2], dtype=int32)
    """
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))


def batch_part(mesh: Mesh) -> tuple[int, int]:
    """Returns `(index, count)`: this process prepares part `index` of `count` equal parts of a batch.

    Processes between which the axis "tensor" is split prepare the same part.

    Raises:
      ValueError: the devices of the processes do not make equal parts.

    Example:
      >>> import jax
      >>> batch_part(make_mesh(devices=jax.devices()[:1]))
      (0, 1)
    """
    owned: dict[int, set[int]] = {}
    for row, devices in enumerate(mesh.devices.reshape(-1, mesh.shape["tensor"])):
        for device in devices:
            owned.setdefault(device.process_index, set()).add(row)
    parts = sorted({tuple(sorted(rows)) for rows in owned.values()})
    if len(set(map(len, parts))) > 1 or len(set().union(*parts)) < sum(map(len, parts)):
        raise ValueError(
            f"the processes' devices do not split the batch into equal parts (mesh {dict(mesh.shape)}): choose sizes "
            "such that the axis tensor is within a process, or over whole ones"
        )
    return parts.index(tuple(sorted(owned[jax.process_index()]))), len(parts)


def sharding_for(path: str, shape: Sequence[int], rules: Rules, mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Returns the sharding of a parameter: that of the first rule whose regular expression is found in its path.

    Axes of the mesh that do not divide the parameter's axis are left out.

    Args:
      path: names from the model to the parameter, with dots between them.
      shape: of the parameter.
      rules: see `smart_jax.models.Architecture`.
      mesh: from `make_mesh`, or one of abstract devices.

    Example:
      >>> import jax
      >>> mesh = make_mesh(devices=jax.devices()[:1])
      >>> tuple(sharding_for("layers.0.kernel", (4, 8), [("kernel$", PartitionSpec("fsdp", "tensor"))], mesh).spec)
      ('fsdp', 'tensor')
    """
    for pattern, spec in rules:
        if re.search(pattern, path):
            return NamedSharding(mesh, _fit(spec, shape, mesh))
    return replicated(mesh)


def _fit(spec: PartitionSpec, shape: Sequence[int], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    return PartitionSpec(
        *(
            axis if axis is not None and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(spec, shape, strict=False)
        )
    )
