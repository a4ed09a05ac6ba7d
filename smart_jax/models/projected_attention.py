"""Attention of projected queries, keys and values: their heads, norms and rotary turns, by `attention` or all in one.

On a TPU a kernel does all of it without moving a head to another layout, see `flat_attention`. It has no backward pass:
where a gradient is taken, the forward pass goes by `attention`, too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float, Int

from smart_jax.models import layers as L
from smart_jax.models.attention import FLASH_LENGTH, attention, band_attention, window_attention
from smart_jax.models.heads import Heads, takes
from smart_jax.runtime import AXES, BATCH

Projected = tuple[Float[Array, "B L _"], ...]  # queries, keys and values; or one array of all three, side by side
Scales = tuple[Float[Array, " C"], Float[Array, " C"]]


def projected_attention(
    projected: Projected,
    rotation: L.Rotation,
    segment: Int[Array, "B L"],
    heads: Heads,
    *,
    scales: Scales | None = None,
    longest: int | None = None,
) -> Float[Array, "B L W"]:
    """Returns attention within segments of normalised and turned queries and keys, its heads side by side.

    Args:
      projected: queries, keys and values, each with its heads side by side; or one array of all three side by side.
      rotation: turns queries and keys.
      segment: number of the segment of each position, as of `attention`.
      heads: that the projections have.
      scales: of the norms of queries and keys; None = there are no norms.
      longest: as of `window_attention`; None = segments may have any length.
    """
    if longest is None and _is_flat(projected[0], heads):
        return _flat(projected, scales, rotation, segment, heads)
    return _by_head(projected, scales, rotation, segment, heads, longest)


def _by_head(
    projected: Projected,
    scales: Scales | None,
    rotation: L.Rotation,
    segment: Int[Array, "B L"],
    heads: Heads,
    longest: int | None = None,
) -> Float[Array, "B L W"]:
    """Makes heads an axis, and calls `attention` or `window_attention`."""
    batch, length, _ = projected[0].shape
    if len(projected) == 1:
        qkv = projected[0].reshape(batch, length, 3, heads.queries, heads.width)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]  # [B, L, A, C]
    else:
        q, k, v = (x.reshape(batch, length, -1, heads.width) for x in projected)  # k, v: [B, L, kv, C]
    if scales is not None:
        q, k = (L.rms_normalized(x, scale, heads.eps) for x, scale in zip((q, k), scales, strict=True))
    q, k = L.rotate(q, rotation), L.rotate(k, rotation)
    if heads.value_norm:
        v = L.unit_rms(v, heads.eps)
    if heads.band is not None:
        out = band_attention(q, k, v, segment, band=heads.band, scale=heads.scale)
    elif longest is None:
        out = attention(q, k, v, segment, causal=heads.causal, scale=heads.scale)
    else:
        out = window_attention(q, k, v, segment, longest=longest)
    return out.reshape(batch, length, -1)


def _is_flat(x: Float[Array, "B L _"], heads: Heads) -> bool:
    """Whether the kernel takes projections, of which x is one."""
    mesh = jax.typeof(x).sharding.mesh
    whole = mesh.shape.get("tensor", 1) == 1 and AxisType.Manual not in mesh.axis_types  # all heads, outside shard_map
    return (
        jax.default_backend() == "tpu"
        and whole
        and x.dtype in (jnp.bfloat16, jnp.float32)
        and x.shape[1] >= FLASH_LENGTH
        and takes(heads, x.shape[1])
    )


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _flat(
    projected: Projected, scales: Scales | None, rotation: L.Rotation, segment: Int[Array, "B L"], heads: Heads
) -> Float[Array, "B L W"]:
    """Runs the kernel on each device's rows; the compiler would split none."""
    from smart_jax.models.flat_attention import flat_attention  # Pallas takes 0.1 s to import: only for TPUs

    run, mesh = partial(flat_attention, heads=heads), jax.typeof(projected[0]).sharding.mesh
    if set(mesh.axis_names) == set(AXES) and mesh.size > 1:
        across = mesh.shape["data"] * mesh.shape["fsdp"]
        rows = PartitionSpec(BATCH[0] if segment.shape[0] % across == 0 else None)
        run = jax.shard_map(
            run,
            mesh=mesh,
            in_specs=(rows, PartitionSpec(), rows, rows),
            out_specs=rows,
            check_vma=False,  # Pallas' kernels do not say over which axes their results vary
        )
    out: Array = run(projected, scales, rotation, segment)
    return out


def _flat_forward(
    projected: Projected, scales: Scales | None, rotation: L.Rotation, segment: Int[Array, "B L"], heads: Heads
) -> tuple[Array, Callable[[Array], tuple[Any, Any]]]:
    return jax.vjp(lambda x, of_norms: _by_head(x, of_norms, rotation, segment, heads), projected, scales)


def _flat_backward(
    heads: Heads, pull_back: Callable[[Array], tuple[Any, Any]], gradient: Array
) -> tuple[Any, Any, None, None]:
    """Returns no gradient of the rotation: angles follow from whole numbers."""
    return (*pull_back(gradient), None, None)


_flat.defvjp(_flat_forward, _flat_backward)
