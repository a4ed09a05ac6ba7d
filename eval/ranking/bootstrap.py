"""Bootstrap over queries: percentile intervals of means and, paired, of differences of means.

Rows of one call are resampled with the same queries, so the difference of two rows' resampled means is the paired
bootstrap of their difference.
"""

from __future__ import annotations

import numpy as np

BLOCK = 1 << 22  # resampled indices held at a time


def resampled_means(values: np.ndarray, *, samples: int = 2000, seed: int = 0) -> np.ndarray:
    """Means of queries drawn with replacement.

    Args:
      values: [R, Q], one row per scorer, one column per query.
      samples: number S of resamples.
      seed: of the draws; the same seed and Q give the same draws, whatever R is.

    Returns:
      float64 [R, S].

    Raises:
      ValueError: values is not [R, Q] with at least one query, or samples is below 1.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"values must be [R, Q] with at least one query, not {values.shape}")
    if samples < 1:
        raise ValueError(f"samples is {samples}: it must be at least 1")
    queries = values.shape[1]
    rng = np.random.default_rng(seed)
    means = np.empty((len(values), samples))
    step = max(1, BLOCK // queries)
    for start in range(0, samples, step):
        drawn = rng.integers(queries, size=(min(step, samples - start), queries))
        counts = np.stack([np.bincount(row, minlength=queries) for row in drawn])
        means[:, start : start + len(drawn)] = values @ counts.T / queries
    return means


def interval(means: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Percentile interval of one row of `resampled_means`, or of a difference of two rows: (low, high)."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: it must lie between 0 and 1")
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
