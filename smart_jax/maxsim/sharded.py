"""Documents of a search spread over devices: a part of nearly equal bytes each, streamed block by block.

Every device keeps the best k of its own part; one gather of these, and of nothing else, ends the search. A process
reads only the parts of its own devices, so that the documents may be memory-mapped files on several hosts.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from smart_jax.maxsim.packed import Block, block_shape, cut, plan

AXIS = "documents"
SPLIT, WHOLE = PartitionSpec(AXIS), PartitionSpec()


def document_mesh(mesh: Mesh | None) -> Mesh:
    """All devices of a mesh in a row; None = the default device."""
    if mesh is not None:
        return Mesh(mesh.devices.reshape(-1), (AXIS,))
    return Mesh(np.asarray(list(jnp.zeros(()).devices())), (AXIS,))


def parts(offsets: Int[np.ndarray, " N+1"], count: int) -> list[tuple[int, int]]:
    """`count` runs of consecutive items, (first, last + 1), of nearly equal numbers of tokens; some may be empty."""
    ideal = int(offsets[-1]) * np.arange(1, count) / count
    after = np.searchsorted(offsets, ideal)
    before = np.maximum(after - 1, 0)
    nearest = np.where(ideal - offsets[before] < offsets[after] - ideal, before, after)
    return list(pairwise([0, *nearest.tolist(), len(offsets) - 1]))


def stream(
    pooled: Float[np.ndarray, "N H"] | None,
    tokens: Float[np.ndarray, "T D"] | None,
    offsets: Int[np.ndarray, " N+1"],
    scales: Float[np.ndarray, " T"] | None,
    mesh: Mesh,
    *,
    max_tokens: int,
    max_items: int,
) -> Iterator[Block]:
    """Blocks with one more, leading axis, over the devices of a `document_mesh`: the next block of each one's part."""
    limits = {"max_tokens": max_tokens, "max_items": max_items}
    plans = [plan(offsets, first, last, **limits) for first, last in parts(offsets, mesh.size)]
    shape = block_shape(offsets, [span for spans in plans for span in spans])
    end = (len(offsets) - 1,) * 2
    for number in range(max(map(len, plans), default=0)):
        spans = [spans[number] if number < len(spans) else end for spans in plans]
        yield _put(mesh, {i: cut(pooled, tokens, offsets, scales, spans[i], shape) for i in _own(mesh)})


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A copy of the arrays on every device."""
    return jax.device_put(tree, NamedSharding(mesh, WHOLE))


def _own(mesh: Mesh) -> list[int]:
    return [i for i, device in enumerate(mesh.devices) if device.process_index == jax.process_index()]


def _put(mesh: Mesh, blocks: dict[int, Block]) -> Block:
    """The blocks of this process's devices as part of arrays over all of them."""

    def together(*leaves: np.ndarray) -> jax.Array:
        pieces = [jax.device_put(np.asarray(x)[None], mesh.devices[i]) for i, x in zip(blocks, leaves, strict=True)]
        shape = (mesh.size, *np.shape(leaves[0]))
        return jax.make_array_from_single_device_arrays(shape, NamedSharding(mesh, SPLIT), pieces)

    return jax.tree.map(together, *blocks.values())
