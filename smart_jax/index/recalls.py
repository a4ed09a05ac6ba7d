"""Recall of the exact result by first stages, for all numbers of candidates at once, with a bootstrap interval."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

SAMPLES = 2000
LEVEL = 0.95
DRAWN_AT_ONCE = 2**22


class Recall(NamedTuple):
    """Mean recall over queries, with its 95 % interval.

    Attributes:
      candidates: number of them.
      mean, low, high: of the recall.

    Example:
      >>> print(Recall(200, 0.97, 0.96, 0.98))
      0.970 [0.960, 0.980] at 200
    """

    candidates: int
    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}] at {self.candidates:,}"


def recall_at(ranks: Int[np.ndarray, "Nq k"], candidates: int, seed: int = 0) -> Recall:
    """Returns the share of the exact best k that are among so many candidates, and its percentile interval.

    Args:
      ranks: in the first stage, from 1, of each query's exact best k.
      candidates: number of them.
      seed: of the draws of queries, with replacement.

    Example:
      >>> recall_at(np.array([[1, 7], [2, 3]]), 3).mean
      0.75
    """
    kept = (ranks <= candidates).mean(axis=1)
    low, high = np.quantile(_resampled_means(kept, seed), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Recall(candidates, float(kept.mean()), float(low), float(high))


def fewest_candidates(ranks: Int[np.ndarray, "Nq k"], recall: float, most: int, seed: int = 0) -> Recall | None:
    """Returns the smallest number of candidates whose interval's lower end is at least `recall`; None = none is.

    Resampled means rise with the candidates, since the draws are the same: their quantiles do, too.

    Args:
      ranks, seed: as in `recall_at`.
      recall: that is to be kept.
      most: number of candidates, at most.

    Example:
      >>> fewest_candidates(np.array([[1, 7], [2, 3]]), 0.9, 10)
      Recall(candidates=7, mean=1.0, low=1.0, high=1.0)
    """
    fewest = ranks.shape[1]
    if most < fewest or recall_at(ranks, most, seed).low < recall:
        return None
    low, high = fewest - 1, most  # not enough, enough
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if recall_at(ranks, middle, seed).low >= recall else (middle, high)
    return recall_at(ranks, high, seed)


def _resampled_means(values: Float[np.ndarray, " Nq"], seed: int) -> Float[np.ndarray, " samples"]:
    rng, step = np.random.default_rng(seed), max(1, DRAWN_AT_ONCE // len(values))
    counts = (min(step, SAMPLES - first) for first in range(0, SAMPLES, step))
    return np.concatenate([values[rng.integers(len(values), size=(n, len(values)))].mean(axis=1) for n in counts])
