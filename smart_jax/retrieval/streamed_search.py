"""Search over documents that are streamed to devices: a share of nearly equal bytes each, block by block.

Every device keeps the best k of its own share; one gather of these, and of nothing else, ends the search. A process
reads only the shares of its own devices, so that the documents may be memory-mapped files on several hosts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree

from smart_jax.retrieval.block import Block, Parts, Run
from smart_jax.retrieval.block_plan import Plan, document_plan, power_of_two, query_plan
from smart_jax.retrieval.block_scores import block_scores, score_block
from smart_jax.retrieval.embeddings import Embeddings
from smart_jax.retrieval.gathered import Gathered
from smart_jax.retrieval.top_k import TopK, ordered
from smart_jax.runtime import bounded, place

AXIS = "documents"
LEAST_KEPT = 128  # of each query on several devices: up to there, k is not compiled
SPLIT, WHOLE = PartitionSpec(AXIS), PartitionSpec()

# Scores, float32, and indices, int32, of the k best so far: [devices, queries, k] or [queries, k].
Best = tuple[Float[Array, "*devices queries k"], Int[Array, "*devices queries k"]]


def streamed_search(
    q: Embeddings,
    d: Embeddings | Gathered,
    weights: Float[np.ndarray, " 2"],
    k: int,
    *,
    allow: Bool[np.ndarray, " Nd"] | None = None,
    mesh: Mesh | None = None,
    device_bytes: int | None = None,
) -> tuple[Float[np.ndarray, "Nq k"], Int[np.ndarray, "Nq k"]]:
    """Returns scores and indices of the k (1 .. documents that are allowed) best of each query; see `smart_jax.search`.

    Args:
      q, d: of the same widths in the parts that are scored.
      weights: of the pooled and the late part; one of 0 leaves the part out.
      k, allow, mesh, device_bytes: as in `smart_jax.search`.
    """
    parts, devices = Parts.of(weights), document_mesh(mesh)
    if devices.size == 1 and jax.process_count() == 1:
        return _search_on_one(q, d, weights, k, devices.devices[0], device_bytes, allow)
    scores, indices = np.empty((len(q), k), np.float32), np.empty((len(q), k), np.int64)
    platform = devices.devices[0].platform
    documents = document_plan(d, parts, platform, devices=devices.size, device_bytes=device_bytes)
    documents = dataclasses.replace(documents, allow=allow)
    queries = query_plan(q, parts)
    (query_runs,) = queries.runs
    query_blocks = [replicate(queries.block(run), devices) for run in query_runs]
    on_devices = replicate(weights, devices)
    most = max(LEAST_KEPT, power_of_two(k))
    best = [_nothing_yet(devices, queries.slots, most) for _ in query_runs]
    for block in stream(documents, devices):
        jax.block_until_ready(best)  # no more than two blocks at a time: the one before was scored meanwhile
        best = [
            _search_block(old, query_block, block, on_devices, devices)
            for old, query_block in zip(best, query_blocks, strict=True)
        ]
    for (first, last), of_devices in zip(query_runs, best, strict=True):
        values, positions = jax.device_get(_merge(of_devices, devices))
        scores[first:last], indices[first:last] = values[: last - first, :k], positions[: last - first, :k]
    return scores, indices


def _search_on_one(
    q: Embeddings,
    d: Embeddings | Gathered,
    weights: Float[np.ndarray, " 2"],
    k: int,
    device: jax.Device,
    device_bytes: int | None,
    allow: Bool[np.ndarray, " Nd"] | None,
) -> tuple[Float[np.ndarray, "Nq k"], Int[np.ndarray, "Nq k"]]:
    """Returns what `streamed_search` does: one device scores, and the host keeps the best, whatever the k."""
    parts = Parts.of(weights)
    documents = document_plan(d, parts, device.platform, device_bytes=device_bytes)
    queries = query_plan(q, parts)
    ((query_runs,), (document_runs,)) = queries.runs, documents.runs
    query_blocks = [jax.device_put(queries.block(run), device) for run in query_runs]
    on_device = jax.device_put(weights, device)
    best = [TopK(last - first, k) for first, last in query_runs]

    def keep(run: Run, scores: list[Array]) -> None:
        of_run = None if allow is None else allow[slice(*run)]
        for found, of_queries in zip(best, jax.device_get(scores), strict=True):
            found.add(of_queries[: found.queries, : run[1] - run[0]], run[0], of_run)

    before: tuple[Run, list[Array]] | None = None
    for run in document_runs:
        block = jax.device_put(documents.block(run), device)
        if before:
            jax.block_until_ready(before[1])  # no more than two blocks at a time: this one was on its way meanwhile
        scores = [score_block(query_block, block, on_device) for query_block in query_blocks]
        if before:
            keep(*before)  # while the device scores
        before = run, scores
    if before:
        keep(*before)
    found = [x.result() for x in best]
    if not found:
        return np.empty((0, k), np.float32), np.empty((0, k), np.int64)
    return np.concatenate([x[0] for x in found]), np.concatenate([x[1] for x in found])


def document_mesh(mesh: Mesh | None) -> Mesh:
    """Returns all devices of a mesh in a row; None = the default device."""
    if mesh is not None:
        return Mesh(mesh.devices.reshape(-1), (AXIS,))
    return Mesh(np.asarray(list(jax.device_put(np.zeros(())).devices())), (AXIS,))


def stream(documents: Plan, mesh: Mesh) -> Iterator[Block]:
    """Yields the next block of each device of a `document_mesh`, with one more, leading axis over the devices."""
    own = [i for i, device in enumerate(mesh.devices) if device.process_index == jax.process_index()]
    for number in range(documents.rounds):
        yield _put(mesh, {i: documents.block(documents.run(i, number)) for i in own})


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """Returns a copy of the arrays on every device; every process has them whole."""
    return place(tree, NamedSharding(mesh, WHOLE))


def _put(mesh: Mesh, blocks: dict[int, Block]) -> Block:
    """Returns the blocks of this process's devices as part of arrays over all of them."""
    placed = [jax.device_put(jax.tree.map(_with_axis, block), mesh.devices[i]) for i, block in blocks.items()]
    sharding = NamedSharding(mesh, SPLIT)

    def together(*shards: jax.Array) -> jax.Array:
        shape = (mesh.size, *shards[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, list(shards))

    block: Block = jax.tree.map(together, *placed)
    return block


def _with_axis(x: np.ndarray) -> np.ndarray:
    return np.asarray(x)[None]


@bounded
@partial(jax.jit, static_argnames="mesh")
def _search_block(best: Best, q: Block, d: Block, weights: Float[Array, " 2"], mesh: Mesh) -> Best:
    """Returns the best so far with each device's block of documents merged into them."""

    def on_device(best: Best, q: Block, d: Block, weights: Float[Array, " 2"]) -> Best:
        (old, old_indices), d = jax.tree.map(lambda x: x[0], (best, d))
        new = jnp.where(d.lengths > 0, block_scores(q, d, weights), -jnp.inf)
        new_indices = jnp.broadcast_to(d.first + jnp.arange(new.shape[1], dtype=jnp.int32), new.shape)
        scores, indices = jnp.concatenate([old, new], 1), jnp.concatenate([old_indices, new_indices], 1)
        merged: Best = jax.tree.map(lambda x: x[None], _largest(scores, indices, old.shape[1]))
        return merged

    specs = (SPLIT, WHOLE, SPLIT, WHOLE)
    run = jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=SPLIT, check_vma=False)
    merged: Best = run(best, q, d, weights)
    return merged


@bounded
@partial(jax.jit, static_argnames="mesh")
def _merge(best: Best, mesh: Mesh) -> tuple[Float[Array, "queries k"], Int[Array, "queries k"]]:
    """Returns the best of all devices, on every device; all that is ever exchanged between them."""
    k = best[0].shape[2]
    best = lax.with_sharding_constraint(best, NamedSharding(mesh, WHOLE))
    scores, indices = (jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1) for x in best)
    return _largest(scores, indices, k)


def _largest(scores: Float[Array, "queries candidates"], indices: Int[Array, "queries candidates"], k: int) -> Best:
    # top_k puts the first of equal values first, and lower indices always stand before higher ones.
    values, at = lax.top_k(ordered(scores), k)
    return values, jnp.take_along_axis(indices, at, axis=1)


def _nothing_yet(mesh: Mesh, slots: int, k: int) -> Best:
    shape = (mesh.size, slots, k)
    nothing = np.full(shape, -np.inf, np.float32), np.full(shape, -1, np.int32)
    best: Best = place(nothing, NamedSharding(mesh, SPLIT))
    return best
