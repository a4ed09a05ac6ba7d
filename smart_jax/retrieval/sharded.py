"""Documents of a search spread over devices: a part of nearly equal bytes each, streamed block by block.

Every device keeps the best k of its own part; one gather of these, and of nothing else, ends the search. A process
reads only the parts of its own devices, so that the documents may be memory-mapped files on several hosts.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Float, Int

from smart_jax.retrieval.blocks import Block, Limits, Packed, block_shape, cut, document_limits, plan, query_blocks
from smart_jax.retrieval.packed import block_scores
from smart_jax.typing import Array

AXIS = "documents"
SPLIT, WHOLE = PartitionSpec(AXIS), PartitionSpec()

Best = tuple[Array, Array]  # scores, float32, and indices, int32, of the k best so far: [devices, S, k] or [S, k]


def search_packed(
    q: Packed, d: Packed, weights: Float[np.ndarray, " 2"], k: int, mesh: Mesh | None, device_bytes: int | None
) -> tuple[Float[np.ndarray, "Nq k"], Int[np.ndarray, "Nq k"]]:
    """The k (1 .. documents) best of each query by `block_scores`; see `smart_jax.search`."""
    scores, indices = np.empty((len(q), k), np.float32), np.empty((len(q), k), np.int64)
    devices = document_mesh(mesh)
    limits = document_limits(d, devices.devices[0].platform, device_bytes)
    spans, queries = [], []
    for first, last, block in query_blocks(q):
        spans.append((first, last))
        queries.append(replicate(block, devices))
    weights = replicate(weights, devices)
    best = [_nothing_yet(devices, len(block.lengths), k) for block in queries]
    for block in stream(d, devices, limits):
        jax.block_until_ready(best)  # no more than two blocks at a time: the one before was scored meanwhile
        best = [_search_block(old, own, block, weights, devices) for old, own in zip(best, queries, strict=True)]
    for (first, last), found in zip(spans, best, strict=True):
        values, where = (np.asarray(x) for x in _merge(found, devices))
        scores[first:last], indices[first:last] = values[: last - first], where[: last - first]
    return scores, indices


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


def stream(documents: Packed, mesh: Mesh, limits: Limits) -> Iterator[Block]:
    """Blocks with one more, leading axis, over the devices of a `document_mesh`: the next block of each one's part."""
    offsets = documents.offsets
    in_place = documents.in_place(mesh.devices[0].platform)
    plans = [plan(offsets, part, limits, in_place=in_place) for part in parts(offsets, mesh.size)]
    shape = block_shape(offsets, [span for spans in plans for span in spans])
    end = (len(documents),) * 2
    for number in range(max(map(len, plans), default=0)):
        spans = [spans[number] if number < len(spans) else end for spans in plans]
        yield _put(mesh, {i: cut(documents, spans[i], shape, in_place=in_place) for i in _own(mesh)})


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A copy of the arrays on every device."""
    return jax.device_put(tree, NamedSharding(mesh, WHOLE))


def _own(mesh: Mesh) -> list[int]:
    return [i for i, device in enumerate(mesh.devices) if device.process_index == jax.process_index()]


def _put(mesh: Mesh, blocks: dict[int, Block]) -> Block:
    """The blocks of this process's devices as part of arrays over all of them."""
    placed = [jax.device_put(jax.tree.map(_row, block), mesh.devices[i]) for i, block in blocks.items()]
    sharding = NamedSharding(mesh, SPLIT)

    def together(*rows: jax.Array) -> jax.Array:
        shape = (mesh.size, *rows[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, list(rows))

    return jax.tree.map(together, *placed)


def _row(x: np.ndarray) -> np.ndarray:
    return np.asarray(x)[None]


@partial(jax.jit, static_argnames="mesh")
def _search_block(best: Best, q: Block, d: Block, weights: Float[Array, " 2"], mesh: Mesh) -> Best:
    """Merges each device's block of documents into its best so far."""

    def own(best: Best, q: Block, d: Block, weights: Float[Array, " 2"]) -> Best:
        (old, old_indices), d = jax.tree.map(lambda x: x[0], (best, d))
        new = jnp.where(d.lengths > 0, block_scores(q, d, weights), -jnp.inf)
        new_indices = jnp.broadcast_to(d.first + jnp.arange(new.shape[1], dtype=jnp.int32), new.shape)
        scores, indices = jnp.concatenate([old, new], 1), jnp.concatenate([old_indices, new_indices], 1)
        return jax.tree.map(lambda x: x[None], _largest(scores, indices, old.shape[1]))

    specs = (SPLIT, WHOLE, SPLIT, WHOLE)
    return jax.shard_map(own, mesh=mesh, in_specs=specs, out_specs=SPLIT, check_vma=False)(best, q, d, weights)


@partial(jax.jit, static_argnames="mesh")
def _merge(best: Best, mesh: Mesh) -> Best:
    """The best of all devices, on every device; all that is ever exchanged between them."""
    k = best[0].shape[2]
    best = lax.with_sharding_constraint(best, NamedSharding(mesh, WHOLE))
    scores, indices = (jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1) for x in best)
    return _largest(scores, indices, k)


def _largest(scores: Float[Array, "S C"], indices: Int[Array, "S C"], k: int) -> Best:
    # top_k puts the first of equal values first, and lower indices always stand before higher ones.
    values, at = lax.top_k(scores, k)
    return values, jnp.take_along_axis(indices, at, axis=1)


def _nothing_yet(mesh: Mesh, slots: int, k: int) -> Best:
    split, shape = NamedSharding(mesh, SPLIT), (mesh.size, slots, k)
    return jnp.full(shape, -jnp.inf, jnp.float32, device=split), jnp.full(shape, -1, jnp.int32, device=split)
