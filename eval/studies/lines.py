"""Lines of the study's tables, and which of them are on the Pareto front."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from eval.ranking import Estimate


@dataclasses.dataclass(frozen=True)
class Compared:
    """A figure, and its difference from that of the default line; None where the default has no such figure."""

    estimate: Estimate
    difference: Estimate | None


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a section's table, averaged over benchmarks.

    Attributes:
      name: heads the line.
      facts: further columns by name, such as bytes.
      scores: figures by kind ("late", "hybrid"), then metric.
    """

    name: str
    facts: Mapping[str, float]
    scores: Mapping[str, Mapping[str, Compared]]

    def mean(self, kind: str, metric: str) -> float:
        """Returns a figure without its interval."""
        return self.scores[kind][metric].estimate.mean


@dataclasses.dataclass(frozen=True)
class BenchmarkSize:
    """A benchmark's name, and how many queries and pages it has."""

    name: str
    queries: int
    pages: int


@dataclasses.dataclass(frozen=True)
class SubjectReport:
    """Tables of one subject.

    Attributes:
      name: of the subject.
      benchmarks: that the tables are averaged over.
      sections: lines by section.
    """

    name: str
    benchmarks: Sequence[BenchmarkSize]
    sections: Mapping[str, Sequence[Line]]


def front(lines: Sequence[Line], metric: str) -> list[bool]:
    """Returns which lines of the storage section are on the Pareto front of bytes and the hybrid's figure."""
    return pareto([line.facts["bytes"] for line in lines], [line.mean("hybrid", metric) for line in lines])


def pareto(sizes: Sequence[float], qualities: Sequence[float]) -> list[bool]:
    """Returns which points no other beats: at most as large and better, or smaller and at least as good.

    Example:
      >>> pareto([1, 2, 3], [0.5, 0.4, 0.9])
      [True, False, True]
    """
    return [
        not any(
            (s <= size and q > quality) or (s < size and q >= quality) for s, q in zip(sizes, qualities, strict=True)
        )
        for size, quality in zip(sizes, qualities, strict=True)
    ]
