"""Device mesh and the rules that place parameters on it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXES = ("data", "fsdp", "tensor")
BATCH = PartitionSpec(("data", "fsdp"))  # batch rows are split over every axis that is not tensor parallel

Rules = Sequence[tuple[str, PartitionSpec]]


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Mesh with axes `("data", "fsdp", "tensor")`; one size may be -1, which takes the devices that are left.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.
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


def batch_sharding(mesh: Mesh, leading: int = 0) -> NamedSharding:
    """Sharding of an array whose batch axis comes after `leading` replicated axes."""
    return NamedSharding(mesh, PartitionSpec(*([None] * leading), *BATCH))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def sharding_for(path: str, shape: Sequence[int], rules: Rules, mesh: Mesh) -> NamedSharding:
    """Sharding of the parameter at `path`: the first rule whose regex matches; axes that do not divide are dropped."""
    for pattern, spec in rules:
        if re.search(pattern, path):
            return NamedSharding(mesh, _fit(spec, shape, mesh))
    return replicated(mesh)


def _fit(spec: PartitionSpec, shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
    return PartitionSpec(
        *(
            axis if axis is not None and size % mesh.shape[axis] == 0 else None
            for axis, size in zip(spec, shape, strict=False)
        )
    )
