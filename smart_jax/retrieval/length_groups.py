"""Documents in few groups of like length, so that padding each to its group's longest adds little."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

GROUPS = 8  # at most: each is a pass of its own, and a part of what is compiled
WORTH = 0.01  # of all tokens: what one more group has to save
LENGTHS = 256  # different lengths at most among which groups are chosen


class LengthGroup(NamedTuple):
    """Documents that are padded to one length.

    Attributes:
      items: numbers of the documents, rising.
      length: number of tokens that each is padded to.
    """

    items: Int[np.ndarray, " items"]
    length: int


def length_groups(lengths: Int[np.ndarray, " N"], *, unit: int, devices: int = 1) -> list[LengthGroup]:
    """Returns the documents in the groups that pad least, at most `GROUPS`, the shortest first.

    Args:
      lengths: number of tokens of each document, at least 1.
      unit: a group's length is its longest document's, rounded up to a multiple of this.
      devices: among which each group is divided equally, with empty places where it cannot be.
    """
    if not len(lengths):
        return []
    rounded = -(-lengths // unit) * unit
    step = unit
    while len(np.unique(-(-rounded // step))) > LENGTHS:
        step *= 2
    level = -(-rounded // step)
    levels = np.unique(level)
    bounds = np.searchsorted(levels, level)
    longest = np.asarray([int(rounded[bounds == i].max()) for i in range(len(levels))])
    ends = _ends(np.bincount(bounds), longest, devices)
    group = np.searchsorted(ends, bounds)
    return [LengthGroup(np.flatnonzero(group == i), int(longest[end])) for i, end in enumerate(ends)]


def _ends(counts: Int[np.ndarray, " levels"], longest: Int[np.ndarray, " levels"], devices: int) -> list[int]:
    """Returns the last level of each group, by dynamic programming over where groups end."""
    before = np.concatenate([[0], np.cumsum(counts)])
    here = np.arange(len(counts))
    documents = before[1:][None] - before[:-1][:, None]  # [first level, last level]
    padded = (-(-documents // devices) * devices * longest[None]).astype(np.float64)
    padded[here[:, None] > here[None]] = np.inf
    total = [padded[0]]  # [last level] with one group, two, ...
    came_from: list[Int[np.ndarray, " levels"]] = []
    for _ in range(1, min(GROUPS, len(counts))):
        ways = np.concatenate([[np.inf], total[-1][:-1]])[:, None] + padded
        came_from.append(ways.argmin(axis=0) - 1)
        total.append(ways.min(axis=0))
    cost: Float[np.ndarray, " groups"] = np.asarray([x[-1] for x in total])
    number = int(np.argmin(cost + WORTH * (counts * longest).sum() * np.arange(len(cost))))
    ends = [len(counts) - 1]
    for back in reversed(came_from[:number]):
        ends.append(int(back[ends[-1]]))
    return ends[::-1]
