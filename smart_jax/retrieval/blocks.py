"""Packed, ragged items cut into blocks of static shape.

A block is a window of the packed array, usually a view of the host's memory; its size comes from a few powers of two,
so that compilations are few. A device that shares the host's memory uses the tokens where they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from smart_jax.typing import Array, register_arrays

QUERY_TOKENS = 2048  # of the queries that are scored together
DEVICE_BYTES = 2**28  # of a device's memory that scoring takes, unless it is told
DOCUMENT_TOKENS = 2**16  # of a block of documents at most, however narrow they are: each costs a third of a millisecond
ITEMS = 1024  # queries, or documents, of a block
LEAST_TOKENS = 32  # smallest window: a short query's
COPIED_BYTES = 2**22  # of tokens at most, where they are used in place
ALIGNMENT = 64  # bytes: where XLA on a CPU uses an array of the host in place


@dataclasses.dataclass(frozen=True)
class Packed:
    """Queries or documents on the host, as in `Embeddings`; a part that takes no part in the score is None."""

    pooled: Float[np.ndarray, "N H"] | None
    tokens: Float[np.ndarray, "T D"] | Int[np.ndarray, "T D"] | None
    offsets: Int[np.ndarray, " N+1"]
    scales: Float[np.ndarray, " T"] | None = None  # of int8 tokens

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def widths(self) -> dict[str, int]:
        parts = {"pooled vectors": self.pooled, "tokens": self.tokens}
        return {name: part.shape[1] for name, part in parts.items() if part is not None}

    def in_place(self, platform: str) -> bool:
        """Whether the platform's devices can use the tokens where they are."""
        tokens = self.tokens
        return platform == "cpu" and tokens is not None and tokens.flags.c_contiguous and tokens.flags.aligned


@dataclasses.dataclass(frozen=True)
class Limits:
    """Most tokens and items of a block, powers of two."""

    tokens: int
    items: int


@register_arrays
@dataclasses.dataclass(frozen=True)
class Window:
    """M consecutive packed tokens.

    Where `skip` is set, `tokens` are M * D values in a row after so many others: a view of the host's array that starts
    where it is aligned, and so is not copied.
    """

    tokens: Float[Array, "M D"] | Float[Array, " E"]
    skip: Int[Array, ""] | None
    scales: Float[Array, " M"] | None  # of int8 tokens
    owner: Int[Array, " M"]  # slot of the token's item; S = not of this block
    used: Int[Array, " 2"]  # first and last + 1 of the block's own tokens


@register_arrays
@dataclasses.dataclass(frozen=True)
class Block:
    """Consecutive items in arrays of static shape, with S slots for items."""

    first: Int[Array, ""]  # number of the item in slot 0
    pooled: Float[Array, "S H"] | None  # None = a part that is not scored; unused slots are 0
    window: Window | None
    lengths: Int[Array, " S"]  # tokens of each item; 0 = unused slot


def query_blocks(queries: Packed) -> Iterator[tuple[int, int, Block]]:
    """Blocks of one shape, each with its first item and last + 1; a window has few tokens that are no query's."""
    spans = plan(queries.offsets, (0, len(queries)), Limits(QUERY_TOKENS, ITEMS))
    shape = block_shape(queries.offsets, spans, eighths)
    for span in spans:
        yield *span, cut(queries, span, shape, in_place=False)


def document_limits(documents: Packed, platform: str, device_bytes: int | None = None) -> Limits:
    """Limits of a block of documents; None = `DEVICE_BYTES`, or what the longest document needs.

    Raises:
      ValueError: a document does not fit in so many bytes.
    """
    # Two blocks take half of the memory; the maxima of an item's query tokens and the rest take the other.
    block = (DEVICE_BYTES if device_bytes is None else device_bytes) // 4
    tokens, pooled = documents.tokens, documents.pooled
    token = 0 if tokens is None else tokens.shape[1] * tokens.itemsize + 8  # owner and scale
    item = 4 * QUERY_TOKENS + (0 if pooled is None else pooled.shape[1] * pooled.itemsize)
    items = min(ITEMS, power_of_two_within(block // item))
    if device_bytes is None and tokens is not None and documents.in_place(platform):
        # Only what starts with item 0 is copied: that must not be all.
        small = tokens.nbytes <= COPIED_BYTES
        most = power_of_two(len(tokens)) if small else power_of_two_within(len(tokens) // 2)
        return Limits(min(DOCUMENT_TOKENS, most), items)
    if device_bytes is not None:
        longest = int(np.diff(documents.offsets).argmax())
        need = 4 * max(item, token * power_of_two(int(np.diff(documents.offsets)[longest])))
        if need > device_bytes:
            raise ValueError(f"device_bytes is {device_bytes}, but document {longest} needs {need}: raise it")
    return Limits(min(DOCUMENT_TOKENS, power_of_two_within(block // max(token, 1))), items)


def power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def power_of_two_within(n: int) -> int:
    return 1 << max(0, n.bit_length() - 1)


def eighths(n: int) -> int:
    """The next of eight sizes between two powers of two."""
    unit = max(LEAST_TOKENS, power_of_two(n) // 16)
    return -(-n // unit) * unit


def plan(
    offsets: Int[np.ndarray, " N+1"], items: tuple[int, int], limits: Limits, *, in_place: bool = False
) -> list[tuple[int, int]]:
    """The items (first, last + 1) in runs of the same form, as long as both limits allow.

    The limit of tokens grows to hold the longest item. Used in place, the first and the last of all items are runs of
    their own, for these are copied (see `_values`).
    """
    (first, stop), most = items, limits.tokens
    if first < stop:
        most = max(most, power_of_two(int(np.diff(offsets[first : stop + 1]).max())))
    spans = []
    while first < stop:
        last = int(np.searchsorted(offsets, offsets[first] + most, side="right")) - 1
        last = min(last, first + limits.items, stop)
        if in_place and first == 0 and last < stop:
            last = 1
        if in_place and last == len(offsets) - 1 and 0 < first < last - 1:
            last -= 1
        spans.append((first, last))
        first = last
    return spans


def block_shape(
    offsets: Int[np.ndarray, " N+1"], spans: Sequence[tuple[int, int]], window: Callable[[int], int] = power_of_two
) -> tuple[int, int]:
    """Tokens of a window and slots of a block that hold any of the runs."""
    tokens = max((int(offsets[last] - offsets[first]) for first, last in spans), default=1)
    slots = max((last - first for first, last in spans), default=1)
    return max(LEAST_TOKENS, window(tokens)), power_of_two(slots)


def cut(items: Packed, span: tuple[int, int], shape: tuple[int, int], *, in_place: bool) -> Block:
    """The block of one run of items; an empty run gives a block without items."""
    (first, last), (size, slots) = span, shape
    bounds = items.offsets[first : last + 1]
    return Block(
        first=np.int32(first),
        pooled=None if items.pooled is None else _padded(items.pooled[first:last], slots),
        window=None if items.tokens is None else _window(items.tokens, items.scales, bounds, size, slots, in_place),
        lengths=_padded(np.diff(bounds).astype(np.int32), slots),
    )


def _window(
    tokens: np.ndarray, scales: np.ndarray | None, offsets: np.ndarray, size: int, slots: int, in_place: bool
) -> Window:
    """A window of `size` tokens that holds the items between the offsets; at the end of the array it starts earlier."""
    first, last = int(offsets[0]), int(offsets[-1])
    if in_place:
        start, values, skip = _values(tokens, first, last, size)
    else:
        start = max(0, min(first, len(tokens) - size))
        values, skip = _padded(tokens[start : start + size], size), None
    owner = np.full(size, slots, np.int32)
    owner[first - start : last - start] = np.repeat(np.arange(len(offsets) - 1, dtype=np.int32), np.diff(offsets))
    used = np.asarray([first - start, last - start], np.int32)
    scales = None if scales is None else _padded(scales[start : start + size], size)
    return Window(values, skip, scales, owner, used)


def _values(tokens: np.ndarray, first: int, last: int, size: int) -> tuple[int, np.ndarray, np.int32]:
    """A window's first token, the values of its `size` tokens and some more, aligned, and how many come before.

    A view of the array, but where it would reach beyond either end: there a copy of the tokens from `first` to `last`.
    """
    width, slack = tokens.shape[1], ALIGNMENT // tokens.itemsize
    flat, count = tokens.reshape(-1), size * width
    for start in (first, len(tokens) - size - -(-slack // width)):
        skip = (tokens.ctypes.data // tokens.itemsize + start * width) % slack
        begin = start * width - skip
        if begin >= 0 and begin + count + slack <= flat.size and start <= first and last <= start + size:
            return start, flat[begin : begin + count + slack], np.int32(skip)
    values = _aligned_zeros(count + slack, tokens.dtype)
    values[: (last - first) * width] = flat[first * width : last * width]
    return first, values, np.int32(0)


def _aligned_zeros(size: int, dtype: np.dtype) -> np.ndarray:
    """Zeros that XLA on a CPU uses in place."""
    room = np.zeros(size * dtype.itemsize + ALIGNMENT, np.uint8)
    return room[-room.ctypes.data % ALIGNMENT :][: size * dtype.itemsize].view(dtype)


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    if len(rows) == size:
        return rows
    out = np.zeros((size, *rows.shape[1:]), rows.dtype)
    out[: len(rows)] = rows
    return out
