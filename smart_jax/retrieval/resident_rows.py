"""Documents as rows on devices, padded to their group's length on the host and put there piece by piece."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Float, Int, PyTree

from smart_jax.retrieval.embeddings import INT8, Embeddings
from smart_jax.retrieval.length_groups import LengthGroup, length_groups
from smart_jax.retrieval.resident_search import NO_ITEM, SPLIT, WHOLE, Documents, Group
from smart_jax.runtime import bounded, place

PIECE_BYTES = 2**26  # that are padded on the host at a time, for each device
ROWS, LANES = 8, 128  # a TPU stores tokens in tiles of so many rows and columns; elsewhere groups end at so many rows

Rows = Callable[[Int[np.ndarray, " _"]], PyTree]  # makes arrays of documents' rows; zeros where there is NO_ITEM


def device_groups(lengths: Int[np.ndarray, " N"], dtype: np.dtype, mesh: Mesh) -> list[LengthGroup]:
    """Returns the documents' groups on the devices of a `document_mesh`, of lengths that suit these."""
    if mesh.devices[0].platform != "tpu":
        return length_groups(lengths, unit=ROWS, devices=mesh.size)
    groups = length_groups(lengths, unit=1, devices=mesh.size)
    if dtype != INT8:
        return groups
    # A multiple of 32 tokens has a layout in memory that the program does not read: it would copy the documents.
    return [group._replace(length=group.length + (group.length % 32 == 0)) for group in groups]


def device_bytes(documents: Embeddings, groups: list[LengthGroup], mesh: Mesh) -> int:
    """Returns how many bytes the documents take on each device."""
    lanes, rows = (LANES, ROWS) if mesh.devices[0].platform == "tpu" else (1, 1)
    width, pooled_width = (_round_up(x.shape[1], lanes) for x in (documents.tokens, documents.pooled))
    token = width * documents.tokens.itemsize + (0 if documents.scales is None else 4)
    item = pooled_width * documents.pooled.itemsize + 8  # with its length and number
    return sum(_rows(group, mesh.size) * (_round_up(group.length, rows) * token + item) for group in groups)


def put_documents(documents: Embeddings, groups: list[LengthGroup], mesh: Mesh) -> Documents:
    """Returns the documents on the devices of a `document_mesh`."""
    items = [_items(group, mesh.size) for group in groups]
    token = documents.tokens.shape[1] * documents.tokens.itemsize
    placed = tuple(
        _put(partial(_padded, documents, group.length), numbers, group.length * token, mesh)
        for group, numbers in zip(groups, items, strict=True)
    )
    if not placed:
        return Documents(None, ())
    pooled = documents.pooled.shape[1] * documents.pooled.itemsize
    return Documents(_put(partial(_pooled, documents), np.concatenate(items, axis=1), pooled, mesh), placed)


def abstract_documents(documents: Embeddings, groups: list[LengthGroup], mesh: Mesh) -> Documents:
    """Returns shapes and places of what `put_documents` returns, for documents of the same widths and dtypes."""
    one, sharding = np.full(1, NO_ITEM, np.int32), NamedSharding(mesh, SPLIT)
    rows = [_rows(group, mesh.size) for group in groups]
    example = Documents(_pooled(documents, one), tuple(_padded(documents, group.length, one) for group in groups))

    def shape(path: tuple[Any, ...], x: np.ndarray) -> jax.ShapeDtypeStruct:
        count = rows[path[1].idx] if path[0].name == "groups" else sum(rows)
        return jax.ShapeDtypeStruct((count * mesh.size, *x.shape[1:]), x.dtype, sharding=sharding)

    shapes: Documents = jax.tree_util.tree_map_with_path(shape, example)
    return shapes


def _round_up(n: int, unit: int) -> int:
    return -(-n // unit) * unit


def _rows(group: LengthGroup, devices: int) -> int:
    """Returns how many rows of a group each device has."""
    return -(-len(group.items) // devices)


def _items(group: LengthGroup, devices: int) -> Int[np.ndarray, "devices rows"]:
    """Returns the numbers of the documents in each device's rows; `NO_ITEM` in empty ones."""
    items = np.full(devices * _rows(group, devices), NO_ITEM, np.int32)
    items[: len(group.items)] = group.items
    return items.reshape(devices, -1)


def _padded(documents: Embeddings, length: int, items: Int[np.ndarray, " rows"]) -> Group:
    """Returns rows of a group; empty ones come last."""
    tokens, offsets, scales = documents.tokens, documents.offsets, documents.scales
    group = Group(
        tokens=np.zeros((len(items), length, tokens.shape[1]), tokens.dtype),
        scales=None if scales is None else np.zeros((len(items), length), np.float32),
        lengths=np.zeros(len(items), np.int32),
        items=items,
    )
    some = items[items != NO_ITEM]
    group.lengths[: len(some)] = offsets[some + 1] - offsets[some]
    for padded, packed in ((group.tokens, tokens), (group.scales, scales)):
        if padded is not None and packed is not None:
            for row, item in enumerate(some):
                first, last = offsets[item], offsets[item + 1]
                padded[row, : last - first] = packed[first:last]
    return group


def _pooled(documents: Embeddings, items: Int[np.ndarray, " rows"]) -> Float[np.ndarray, "rows H"]:
    pooled, some = documents.pooled, items != NO_ITEM
    rows: np.ndarray = np.zeros((len(items), pooled.shape[1]), pooled.dtype)
    rows[some] = pooled[items[some]]
    return rows


def _put(rows: Rows, items: Int[np.ndarray, "devices rows"], row_bytes: int, mesh: Mesh) -> PyTree:
    """Returns arrays of rows on the devices, put there piece by piece.

    Args:
      rows: makes the rows of some documents.
      items: numbers of the documents in each device's rows.
      row_bytes: of a row.
      mesh: the devices.
    """
    own = [i for i, device in enumerate(mesh.devices) if device.process_index == jax.process_index()]
    count = items.shape[1]
    size = min(count, max(1, PIECE_BYTES // max(row_bytes, 1)))

    def piece(first: int) -> PyTree:
        return _together([jax.device_put(rows(items[i, first : first + size]), mesh.devices[i]) for i in own], mesh)

    if size == count:
        return piece(0)
    former, whole = None, None
    for start in range(0, count, size):
        first = min(start, count - size)  # the last piece starts early enough to be whole
        new = piece(first)
        jax.block_until_ready(former)  # no more than two pieces on the host at a time
        whole = _empty(new, count, mesh) if whole is None else whole
        whole = _written(whole, new, place(np.asarray(first, np.int32), NamedSharding(mesh, WHOLE)), mesh)
        former = new
    return whole


def _together(parts: list[PyTree], mesh: Mesh) -> PyTree:
    """Returns the rows of this process's devices as part of arrays over all of them."""
    sharding = NamedSharding(mesh, SPLIT)

    def together(*shards: jax.Array) -> jax.Array:
        shape = (mesh.size * len(shards[0]), *shards[0].shape[1:])
        return jax.make_array_from_single_device_arrays(shape, sharding, list(shards))

    return jax.tree.map(together, *parts)


def _empty(piece: PyTree, rows: int, mesh: Mesh) -> PyTree:
    """Returns zeros like a piece, with so many rows on each device."""
    shapes = jax.tree.map(lambda x: (rows * mesh.size, *x.shape[1:]), piece)

    def zeros() -> PyTree:
        return jax.tree.map(lambda x, shape: jnp.zeros(shape, x.dtype), piece, shapes)

    return jax.jit(zeros, out_shardings=NamedSharding(mesh, SPLIT))()


@bounded
@partial(jax.jit, static_argnames="mesh", donate_argnums=0)
def _written(whole: PyTree, piece: PyTree, first: Int[Array, ""], mesh: Mesh) -> PyTree:
    """Returns the arrays with each device's rows of a piece in them, from row `first` on."""

    def on_device(whole: PyTree, piece: PyTree, first: Int[Array, ""]) -> PyTree:
        return jax.tree.map(lambda x, y: lax.dynamic_update_slice_in_dim(x, y, first, 0), whole, piece)

    run = jax.shard_map(on_device, mesh=mesh, in_specs=(SPLIT, SPLIT, WHOLE), out_specs=SPLIT, check_vma=False)
    return run(whole, piece, first)
