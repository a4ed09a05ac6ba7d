"""Vectors of one encoded item, and many of them packed as `Embeddings` or `States`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from smart_jax.models import Grid
from smart_jax.retrieval import Embeddings, Provenance, States


class EncodedItem(NamedTuple):
    """Vectors of an item's kept tokens, on the host, without its pixels.

    Attributes:
      number: of the item.
      pooled, states, norms: as in `smart_jax.forward.Vectors`, of one row.
      ids: token ids.
      grids: sizes of its kept visual tokens, in visual tokens.

    Example:
      >>> item = EncodedItem(0, np.float32([1, 0]), np.float32([[[0, 1]]]), np.float32([[5]]), np.int32([7]), [])
      >>> len(item.ids)
      1
    """

    number: int
    pooled: Float[np.ndarray, " H"]
    states: Float[np.ndarray, "kept layers D"]
    norms: Float[np.ndarray, "kept layers"]
    ids: Int[np.ndarray, " kept"]
    grids: list[Grid]


def pack_embeddings(items: list[EncodedItem], provenance: Provenance | None = None) -> Embeddings:
    """Returns the embeddings of items in this order, which are taken out of the list: memory holds them once.

    Raises:
      ValueError: an item holds NaN or infinity.

    Example:
      >>> item = EncodedItem(0, np.float32([1, 0]), np.float32([[[0, 1]]]), np.float32([[5]]), np.int32([7]), [])
      >>> pack_embeddings([item])
      Embeddings(1 items, 1 tokens, pooled width 2, token width 2, float32)
    """
    packed = _packed(items, "pooled", "states")
    return Embeddings(packed["pooled"], packed["states"][:, 0], packed["offsets"], provenance=provenance)


def pack_states(items: list[EncodedItem], **facts: Any) -> States:
    """Returns the states of items in this order, which are taken out of the list: memory holds them once.

    Args:
      items: of one model.
      **facts: visual_ids, layers, depth and provenance of `States`.

    Raises:
      ValueError: an item holds NaN or infinity.

    Example:
      >>> item = EncodedItem(0, np.float32([1, 0]), np.float32([[[0, 1]]]), np.float32([[5]]), np.int32([7]), [])
      >>> pack_states([item], visual_ids=(), layers=(-1,), depth=4)
      States(1 items, 1 tokens, layers (-1,) of 4 blocks, width 2, float32)
    """
    grids = [[i, *grid] for i, item in enumerate(items) for grid in item.grids]
    packed = _packed(items, "pooled", "states", "norms", "ids")
    states = States(**packed, grids=np.array(grids, np.int32).reshape(-1, 4), **facts)
    states.check_finite()
    return states


def _packed(items: list[EncodedItem], *names: str) -> dict[str, Any]:
    """Returns fields of all items, one item after another, and "offsets": where the kept tokens of each are."""
    offsets = np.cumsum([0, *(len(item.states) for item in items)], dtype=np.int64)
    packed = {"offsets": offsets}
    for name in names:
        first = getattr(items[0], name)
        shape = (len(items), *first.shape) if name == "pooled" else (int(offsets[-1]), *first.shape[1:])
        packed[name] = np.empty(shape, first.dtype)  # takes memory where it is written
    for place in reversed(range(len(items))):
        item = items.pop()
        for name in names:
            at: int | slice = place if name == "pooled" else slice(offsets[place], offsets[place + 1])
            packed[name][at] = getattr(item, name)
    return packed
