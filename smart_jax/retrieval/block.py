"""A block: consecutive items of `Embeddings` in arrays of static shape, as devices score them.

A block's tokens are a window of the packed array, usually a view of the host's memory. A device that shares the host's
memory uses them where they are.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num

from smart_jax.retrieval.embeddings import Embeddings
from smart_jax.typing import HostOrDevice, register_arrays

ALIGNMENT = 64  # bytes: where XLA on a CPU uses an array of the host in place

Run = tuple[int, int]  # consecutive items: the first, and the last + 1


class Parts(NamedTuple):
    """Parts of the score that are computed; blocks hold nothing of the others."""

    pooled: bool
    late: bool

    @classmethod
    def of(cls, weights: Float[np.ndarray, " 2"]) -> Parts:
        """Returns the parts that have a weight."""
        pooled, late = (weights != 0).tolist()
        return cls(pooled, late)


@register_arrays
@dataclasses.dataclass(frozen=True)
class Window:
    """Consecutive packed tokens, some of which belong to the block's items.

    Attributes:
      tokens: [window, D]; or, where `skip` is set, the window's values in a row among some others: a view of the host's
        array that starts where it is aligned, and so is not copied.
      skip: how many values come before the window's first; None = `tokens` is a matrix.
      scales: of int8 tokens, else None.
      owner: slot of each token's item; the number of slots where the item is not of this block.
      used: first and last + 1 of the tokens that belong to the block's items.
    """

    tokens: Num[HostOrDevice, "window D"] | Num[HostOrDevice, " values"]
    skip: Int[HostOrDevice, ""] | None
    scales: Float[HostOrDevice, " window"] | None
    owner: Int[HostOrDevice, " window"]
    used: Int[HostOrDevice, " 2"]


@register_arrays
@dataclasses.dataclass(frozen=True)
class Block:
    """Consecutive items, one to a slot; the last slots may be unused.

    Attributes:
      first: number of the item in slot 0.
      pooled: pooled vectors, zeros in unused slots; None = this part is not scored.
      window: their tokens; None = this part is not scored.
      lengths: number of tokens of each item; 0 = unused slot.
    """

    first: Int[HostOrDevice, ""]
    pooled: Float[HostOrDevice, "slots H"] | None
    window: Window | None
    lengths: Int[HostOrDevice, " slots"]


def cut(items: Embeddings, run: Run, parts: Parts, *, window: int, slots: int, in_place: bool) -> Block:
    """Returns the block of a run of items; an empty run gives a block without items.

    Args:
      items: from which the block is cut.
      run: has at most `window` tokens and `slots` items.
      parts: what the block holds.
      window: number of tokens of its window.
      slots: number of its slots.
      in_place: whether a device may use the host's tokens where they are, see `Window.skip`.
    """
    first, last = run
    bounds = items.offsets[first : last + 1]
    return Block(
        first=np.asarray(first, np.int32),
        pooled=_padded(items.pooled[first:last], slots) if parts.pooled else None,
        window=_window(items, bounds, window, slots, in_place) if parts.late else None,
        lengths=_padded(np.diff(bounds).astype(np.int32), slots),
    )


def _window(items: Embeddings, bounds: Int[np.ndarray, " bounds"], size: int, slots: int, in_place: bool) -> Window:
    """Returns a window of `size` tokens with the items between the bounds; at the array's end it starts earlier."""
    tokens, first, last = items.tokens, int(bounds[0]), int(bounds[-1])
    skip: Int[np.ndarray, ""] | None = None
    if in_place:
        start, values, skip = values_in_place(tokens, first, last, size)
    else:
        start = max(0, min(first, len(tokens) - size))
        values = _padded(tokens[start : start + size], size)
    owner = np.full(size, slots, np.int32)
    owner[first - start : last - start] = np.repeat(np.arange(len(bounds) - 1, dtype=np.int32), np.diff(bounds))
    used = np.asarray([first - start, last - start], np.int32)
    scales = None if items.scales is None else _padded(items.scales[start : start + size], size)
    return Window(values, skip, scales, owner, used)


def values_in_place(
    tokens: Num[np.ndarray, "T D"], first: int, last: int, size: int
) -> tuple[int, Num[np.ndarray, " values"], Int[np.ndarray, ""]]:
    """Returns a window's first token, its values and some more, aligned, and how many of these come before its own.

    The values are a view of the array, except where it would reach beyond either end: there they are a copy of the
    tokens from `first` to `last`.
    """
    width, slack = tokens.shape[1], ALIGNMENT // tokens.itemsize
    flat, count = tokens.reshape(-1), size * width
    for start in (first, len(tokens) - size - -(-slack // width)):
        skip = (tokens.ctypes.data // tokens.itemsize + start * width) % slack
        begin = start * width - skip
        if begin >= 0 and begin + count + slack <= flat.size and start <= first and last <= start + size:
            return start, flat[begin : begin + count + slack], np.asarray(skip, np.int32)
    values = aligned_zeros((count + slack,), tokens.dtype)
    values[: (last - first) * width] = flat[first * width : last * width]
    return first, values, np.zeros((), np.int32)


def aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Returns zeros that XLA on a CPU uses in place; what is not written takes no memory."""
    count = math.prod(shape) * dtype.itemsize
    room = np.zeros(count + ALIGNMENT, np.uint8)
    return room[-room.ctypes.data % ALIGNMENT :][:count].view(dtype).reshape(shape)


def _padded(values: np.ndarray, size: int) -> np.ndarray:
    """Returns the array with zeros after it along its first axis, up to `size`; the array itself if it is as long."""
    if len(values) == size:
        return values
    out = np.zeros((size, *values.shape[1:]), values.dtype)
    out[: len(values)] = values
    return out
