"""Bootstrap over queries: percentile intervals of means and, paired, of differences of means.

All rows of one call are resampled with the same queries, so the difference of two rows' resampled means is the paired
bootstrap of their difference.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

BLOCK = 1 << 22  # resampled indices held at a time
Key = TypeVar("Key", bound=Hashable)


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over queries, or a difference of means, and its interval.

    Example:
      >>> gain = Estimate(mean=0.02, low=0.01, high=0.03)
      >>> print(gain, gain.signed(), gain.excludes_zero)
      0.020 [0.010, 0.030] +0.020 [+0.010, +0.030] * True
    """

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of 0."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def signed(self) -> str:
        """Returns the text of a difference: with signs, and a star where the interval excludes 0."""
        text = f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"
        return f"{text} *" if self.excludes_zero else text


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A mean over queries, and the same mean of resampled queries.

    Attributes:
      mean: over the queries.
      draws: float64 [S], over each resample.

    Example:
      >>> late, pooled = Drawn(0.5, np.array([0.4, 0.6])), Drawn(0.25, np.array([0.25, 0.25]))
      >>> (late - pooled).draws
      array([0.15, 0.35])
      >>> Drawn.average([late, pooled]).mean
      0.375
    """

    mean: float
    draws: Float[np.ndarray, " samples"]

    def __sub__(self, other: Drawn) -> Drawn:
        return Drawn(self.mean - other.mean, self.draws - other.draws)

    @classmethod
    def average(cls, parts: Sequence[Drawn]) -> Drawn:
        """Returns the unweighted average of means over different queries."""
        return cls(float(np.mean([part.mean for part in parts])), np.mean([part.draws for part in parts], axis=0))

    def estimate(self, level: float = 0.95) -> Estimate:
        """Returns the mean with its percentile interval."""
        return Estimate(self.mean, *interval(self.draws, level))


def resample(
    values: Mapping[Key, Mapping[str, np.ndarray]], *, samples: int = 2000, seed: int = 0
) -> dict[Key, dict[str, Drawn]]:
    """Returns the mean and resampled means of every row of values, all of them with the same draws.

    Args:
      values: one value per query by row (a method, say), then metric.
      samples, seed: as in `resampled_means`.

    Example:
      >>> drawn = resample({"late": {"hit@1": np.array([1.0, 0.0])}}, samples=3)
      >>> drawn["late"]["hit@1"].mean, drawn["late"]["hit@1"].draws.shape
      (0.5, (3,))
    """
    keys = [(row, metric) for row, metrics in values.items() for metric in metrics]
    draws = resampled_means(np.stack([values[row][metric] for row, metric in keys]), samples=samples, seed=seed)
    drawn: dict[Key, dict[str, Drawn]] = {}
    for (row, metric), of_row in zip(keys, draws, strict=True):
        drawn.setdefault(row, {})[metric] = Drawn(float(np.mean(values[row][metric])), of_row)
    return drawn


def average(parts: Sequence[Mapping[Key, Mapping[str, Drawn]]]) -> dict[Key, dict[str, Drawn]]:
    """Returns the unweighted average of several benchmarks' means, of the rows that all of them have.

    Args:
      parts: of each benchmark, as of `resample`.

    Example:
      >>> parts = [resample({"late": {"hit@1": np.array([x])}}, samples=1) for x in (0.0, 1.0)]
      >>> average(parts)["late"]["hit@1"].mean
      0.5
    """
    return {
        row: {metric: Drawn.average([part[row][metric] for part in parts]) for metric in parts[0][row]}
        for row in shared_keys(parts)
    }


def shared_keys(parts: Sequence[Mapping[Key, Any]]) -> list[Key]:
    """Returns the keys that all parts have, in the order of the first.

    Example:
      >>> shared_keys([{"late": 1, "bm25": 2}, {"late": 3}])
      ['late']
    """
    return [key for key in parts[0] if all(key in part for part in parts)] if parts else []


def resampled_means(values: np.ndarray, *, samples: int = 2000, seed: int = 0) -> Float[np.ndarray, "rows samples"]:
    """Returns the means of queries that are drawn with replacement.

    Args:
      values: [rows, queries], of any numeric type.
      samples: number of resamples.
      seed: of the draws; the same seed and number of queries give the same draws, whatever the rows are.

    Returns:
      float64 [rows, samples].

    Raises:
      ValueError: values has not two axes, or no query, or samples is below 1.

    Example:
      >>> resampled_means(np.array([[1.0, 1.0, 1.0]]), samples=2)
      array([[1., 1.]])
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
        counts = np.stack([np.bincount(sample, minlength=queries) for sample in drawn])
        means[:, start : start + len(drawn)] = values @ counts.T / queries
    return means


def interval(means: Float[np.ndarray, " samples"], level: float = 0.95) -> tuple[float, float]:
    """Returns the percentile interval (low, high) of one row of `resampled_means`, or of a difference of two rows.

    Raises:
      ValueError: the level is not between 0 and 1.

    Example:
      >>> interval(np.arange(101.0), level=0.5)
      (25.0, 75.0)
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: it must lie between 0 and 1")
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
