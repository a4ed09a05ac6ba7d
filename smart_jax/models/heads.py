"""Heads of an attention, and how the kernels for TPU split rows into blocks; Pallas is not imported for it."""

from __future__ import annotations

from typing import NamedTuple

LANES = 128
NARROW = (32, 64)  # widths of heads of which a block holds several
STEP_COST = 2**17  # scores in whose time a step begins and ends; not measured
LONGEST = 2**15  # positions whose keys fit in vector memory


class Heads(NamedTuple):
    """Heads of an attention.

    Attributes:
      queries: number of heads.
      keys: number of heads of keys and values; neighbouring query heads share one.
      width: of a head.
      causal: whether a position attends to none after it.
      eps: of the norms of queries, keys and values.
      scale: factor of the scores; None = width ** -0.5.
      band: farthest position that is attended to, where rows are not causal; None = there is no bound.
      value_norm: whether values are normalised, by a norm without weights.
    """

    queries: int
    keys: int
    width: int
    causal: bool
    eps: float = 1e-6
    scale: float | None = None
    band: int | None = None
    value_norm: bool = False

    @property
    def lanes(self) -> int:
        """Columns of a block."""
        return max(LANES, self.width)

    @property
    def scaling(self) -> float:
        """Factor of the scores."""
        return self.width**-0.5 if self.scale is None else self.scale

    @property
    def shared(self) -> int:
        """Number of query heads that share a head of keys."""
        return self.queries // self.keys


def takes(heads: Heads, length: int) -> bool:
    """Whether blocks of whole lanes hold whole heads, and vector memory the keys of a row."""
    if heads.width in NARROW:
        whole = heads.shared == 1 and heads.keys * heads.width % LANES == 0
    else:
        whole = heads.width % LANES == 0
    return whole and length <= LONGEST


def block_size(length: int, sizes: tuple[int, ...]) -> int:
    """Returns the number of positions of a block, of those given, with which the steps of a row take least."""
    return min(sizes, key=lambda size: (-(-length // size)) ** 2 * (size**2 + STEP_COST))
