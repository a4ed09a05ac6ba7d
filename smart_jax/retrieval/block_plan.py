"""A plan of blocks: which items each block holds, and the one shape that all of them have.

The shape comes from a few powers of two, so that compilations are few; a block is as large as memory and limits allow.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Int

from smart_jax.retrieval.block import Block, Parts, Run, cut
from smart_jax.retrieval.embeddings import Embeddings
from smart_jax.retrieval.gathered import Gathered

QUERY_TOKENS = 2048  # of the queries that are scored together
DEVICE_BYTES = 2**28  # of a device's memory that scoring takes, unless it is told
DOCUMENT_TOKENS = 2**16  # of a block of documents at most, however narrow they are: each costs a third of a millisecond
ITEMS = 1024  # queries, or documents, of a block
LEAST_TOKENS = 32  # smallest window: a short query's
COPIED_BYTES = 2**22  # of tokens at most, where they are used in place
PACKED_BYTES = 2**24  # of a block that is packed in the host's memory, which its processor's cache may hold


@dataclasses.dataclass(frozen=True)
class Limits:
    """Largest numbers of tokens and of items of a block, powers of two."""

    tokens: int
    items: int


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """Items cut into blocks of one shape.

    Attributes:
      items: what is cut.
      parts: what the blocks hold.
      runs: the items of each device's blocks.
      window: number of tokens of a block's window.
      slots: number of a block's slots for items.
      in_place: whether devices use the host's tokens where they are.
      allow: which items may be found; None = all.
    """

    items: Embeddings | Gathered
    parts: Parts
    runs: list[list[Run]]
    window: int
    slots: int
    in_place: bool
    allow: Bool[np.ndarray, " N"] | None = None

    @property
    def rounds(self) -> int:
        """Number of blocks of the device that has most."""
        return max(map(len, self.runs))

    def run(self, device: int, number: int) -> Run:
        """Returns the items of a device's block of this number, none if it has fewer blocks."""
        return self.runs[device][number] if number < len(self.runs[device]) else (len(self.items), len(self.items))

    def block(self, run: Run) -> Block:
        """Returns the block of a run of items."""
        shape: dict[str, int] = {"window": self.window, "slots": self.slots}
        if isinstance(self.items, Embeddings):
            block = cut(self.items, run, self.parts, in_place=self.in_place, **shape)
        else:
            packed = self.items.pack(run, self.parts, self.window)
            block = cut(packed, (0, len(packed.offsets) - 1), self.parts, in_place=False, **shape)
            block = dataclasses.replace(block, first=np.asarray(run[0], np.int32))
        if self.allow is not None:
            block.lengths[: run[1] - run[0]] *= self.allow[slice(*run)]  # without tokens, as an unused slot
        return block


def query_plan(queries: Embeddings, parts: Parts) -> Plan:
    """Returns the blocks of queries; their windows have few tokens that are no query's."""
    offsets, limits = _bounds(queries, parts), Limits(QUERY_TOKENS, ITEMS)
    count = len(runs(offsets, (0, len(queries)), limits))
    if count < 2:
        return make_plan(queries, parts, limits, window=eighths)
    # Of nearly equal sizes: the last one, which has the shape of the others, would be mostly padding.
    equal = -(-int(offsets[-1]) // count)
    for tokens in (equal, equal + int(np.diff(offsets).max())):
        closer = Limits(min(QUERY_TOKENS, tokens), ITEMS)
        if len(runs(offsets, (0, len(queries)), closer)) == count:
            return make_plan(queries, parts, closer, window=sixteenths)
    return make_plan(queries, parts, limits, window=eighths)


def document_plan(
    documents: Embeddings | Gathered, parts: Parts, platform: str, *, devices: int = 1, device_bytes: int | None = None
) -> Plan:
    """Returns the blocks of documents, of which each device gets about the same number of tokens.

    Args:
      documents: to be scored.
      parts: which are scored.
      platform: of the devices, such as "cpu" or "tpu".
      devices: number of devices.
      device_bytes: memory that scoring may take on each; None = `DEVICE_BYTES`, or what the longest document needs.

    Raises:
      ValueError: a document does not fit in so many bytes.
    """
    in_place = usable_in_place(documents, parts, platform)
    limits = document_limits(documents, parts, in_place=in_place, device_bytes=device_bytes, platform=platform)
    return make_plan(documents, parts, limits, devices=devices, in_place=in_place)


def make_plan(
    items: Embeddings | Gathered,
    parts: Parts,
    limits: Limits,
    *,
    devices: int = 1,
    in_place: bool = False,
    window: Callable[[int], int] | None = None,
) -> Plan:
    """Returns the blocks of items that keep to the limits.

    Args:
      items, parts: as in `Plan`.
      limits: of each block.
      devices: number of devices.
      in_place: as in `Plan`.
      window: rounds the largest number of tokens of a block up; None = to a power of two.
    """
    offsets = _bounds(items, parts)
    shares = split(offsets, devices)
    device_runs = [runs(offsets, share, limits, in_place=in_place) for share in shares]
    together = [run for own in device_runs for run in own]
    tokens = max((int(offsets[last] - offsets[first]) for first, last in together), default=1)
    slots = max((last - first for first, last in together), default=1)
    size = max(LEAST_TOKENS, (window or power_of_two)(tokens))
    return Plan(items, parts, device_runs, window=size, slots=power_of_two(slots), in_place=in_place)


def usable_in_place(items: Embeddings | Gathered, parts: Parts, platform: str) -> bool:
    """Returns whether the platform's devices can use the tokens where they are."""
    if isinstance(items, Gathered):
        return False
    flags = items.tokens.flags
    return platform == "cpu" and parts.late and flags.c_contiguous and flags.aligned


def document_limits(
    documents: Embeddings | Gathered,
    parts: Parts,
    *,
    in_place: bool = False,
    device_bytes: int | None = None,
    platform: str = "cpu",
) -> Limits:
    """Returns the limits of a block of documents.

    Raises:
      ValueError: a document does not fit in `device_bytes`.
    """
    # Two blocks take half of the memory; the maxima of an item's query tokens and the rest take the other.
    block = (DEVICE_BYTES if device_bytes is None else device_bytes) // 4
    if device_bytes is None and platform == "cpu" and isinstance(documents, Gathered):
        block = PACKED_BYTES
    tokens, pooled = documents.tokens, documents.pooled
    token = tokens.shape[1] * tokens.itemsize + 8 if parts.late else 0  # with its owner and scale
    item = 4 * QUERY_TOKENS + (pooled.shape[1] * pooled.itemsize if parts.pooled else 0)
    items = min(ITEMS, power_of_two_within(block // item))
    if device_bytes is None and in_place:
        # Only what starts with item 0 is copied: that must not be all.
        small = tokens.nbytes <= COPIED_BYTES
        most = power_of_two(len(tokens)) if small else power_of_two_within(len(tokens) // 2)
        return Limits(min(DOCUMENT_TOKENS, most), items)
    if device_bytes is not None:
        lengths = np.diff(_bounds(documents, parts))
        longest = int(lengths.argmax())
        need = 4 * max(item, token * power_of_two(int(lengths[longest])))
        if need > device_bytes:
            raise ValueError(f"device_bytes is {device_bytes}, but document {longest} needs {need}: raise it")
    return Limits(min(DOCUMENT_TOKENS, power_of_two_within(block // max(token, 1))), items)


def _bounds(items: Embeddings | Gathered, parts: Parts) -> Int[np.ndarray, " bounds"]:
    """Returns the offsets that blocks are planned by: of the tokens, or of one for each item where none are scored."""
    return items.offsets if parts.late else np.arange(len(items) + 1)


def split(offsets: Int[np.ndarray, " bounds"], count: int) -> list[Run]:
    """Returns `count` runs that hold all items, of nearly equal numbers of tokens; some may be empty."""
    ideal = int(offsets[-1]) * np.arange(1, count) / count
    after = np.searchsorted(offsets, ideal)
    before = np.maximum(after - 1, 0)
    nearest = np.where(ideal - offsets[before] < offsets[after] - ideal, before, after)
    return list(pairwise([0, *nearest.tolist(), len(offsets) - 1]))


def runs(offsets: Int[np.ndarray, " bounds"], share: Run, limits: Limits, *, in_place: bool = False) -> list[Run]:
    """Returns the share's items in runs, each as long as both limits allow.

    The limit of tokens grows to hold the longest item. Used in place, the first and the last of all items are runs of
    their own, since these are copied (see `block.values_in_place`).
    """
    (first, stop), most = share, limits.tokens
    if first < stop:
        most = max(most, power_of_two(int(np.diff(offsets[first : stop + 1]).max())))
    done = []
    while first < stop:
        last = int(np.searchsorted(offsets, offsets[first] + most, side="right")) - 1
        last = min(last, first + limits.items, stop)
        if in_place and first == 0 and last < stop:
            last = 1
        if in_place and last == len(offsets) - 1 and 0 < first < last - 1:
            last -= 1
        done.append((first, last))
        first = last
    return done


def power_of_two(n: int) -> int:
    """Returns the smallest power of two that is at least n, and at least 1."""
    return 1 << max(0, n - 1).bit_length()


def power_of_two_within(n: int) -> int:
    """Returns the largest power of two that is at most n, and at least 1."""
    return 1 << max(0, n.bit_length() - 1)


def eighths(n: int) -> int:
    """Returns the next of eight sizes between two powers of two."""
    return _stepped(n, 8)


def sixteenths(n: int) -> int:
    """Returns the next of sixteen sizes between two powers of two."""
    return _stepped(n, 16)


def _stepped(n: int, steps: int) -> int:
    unit = max(LEAST_TOKENS, power_of_two(n) // (2 * steps))
    return -(-n // unit) * unit
