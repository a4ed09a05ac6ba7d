"""Compares two reports query by query."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from eval.benchmarks import abridged
from eval.ranking import Estimate, interval, resampled_means, shared_keys
from eval.reports.report import AVERAGE, BenchmarkReport, Report


@dataclasses.dataclass(frozen=True)
class Change:
    """A figure of both reports.

    Attributes:
      a, b: the means.
      difference: b - a.
    """

    a: float
    b: float
    difference: Estimate

    def __str__(self) -> str:
        return f"{self.a:.3f} → {self.b:.3f}, {self.difference.signed()}"

    def to_json(self) -> dict[str, float]:
        """Returns the means, and mean, low and high of the difference."""
        return {"a": self.a, "b": self.b, **dataclasses.asdict(self.difference)}


@dataclasses.dataclass(frozen=True)
class Unmatched:
    """Names that only one of the two reports has."""

    a: Sequence[str]
    b: Sequence[str]

    @classmethod
    def of(cls, a: Iterable[str], b: Iterable[str]) -> Unmatched:
        """Returns what only a has and what only b has, in their order.

        Example:
          >>> Unmatched.of(["late", "bm25"], ["late"])
          Unmatched(a=['bm25'], b=[])
        """
        first, second = dict.fromkeys(a), dict.fromkeys(b)  # sets in order
        return cls([name for name in first if name not in second], [name for name in second if name not in first])

    def lines(self, what: str) -> list[str]:
        """Returns the items of a Markdown list."""
        sides = (("a", self.a), ("b", self.b))
        return [f"- {what}s that only {side} has: {', '.join(names)}" for side, names in sides if names]


@dataclasses.dataclass(frozen=True)
class BenchmarkComparison:
    """A benchmark, or the average of all.

    Attributes:
      name: of the benchmark.
      queries: how many there are.
      changes: by method, then metric.
      unmatched: methods that only one side has.
    """

    name: str
    queries: int
    changes: Mapping[str, Mapping[str, Change]]
    unmatched: Unmatched


@dataclasses.dataclass(frozen=True)
class GroupComparison:
    """Averages over a group's benchmarks that both have run, each in its primary metric.

    Attributes:
      name: of the group.
      benchmarks: the primary metric by name.
      changes: by method, of the methods that all benchmarks have on both sides.
      unmatched: benchmarks that only one side has run.
    """

    name: str
    benchmarks: Mapping[str, str]
    changes: Mapping[str, Change]
    unmatched: Unmatched


@dataclasses.dataclass(frozen=True, repr=False)
class Comparison:
    """All differences b - a.

    Attributes:
      level, samples: of the bootstrap.
      metrics: that are compared; groups have their own.
      benchmarks: that both have.
      average: over several benchmarks, of the methods that all of them have on both sides.
      groups: of the same name.
      unmatched_benchmarks, unmatched_metrics, unmatched_groups: what only one side has; groups where some are shared.

    Example:
      >>> nothing, mrr = Unmatched([], []), Unmatched(["mrr"], [])
      >>> comparison = Comparison(0.95, 2000, ["ndcg@5"], [], None, [], nothing, mrr, nothing)
      >>> comparison.to_json()["metrics_without_counterpart"]
      {'a': ['mrr'], 'b': []}
    """

    level: float
    samples: int
    metrics: Sequence[str]
    benchmarks: Sequence[BenchmarkComparison]
    average: BenchmarkComparison | None
    groups: Sequence[GroupComparison]
    unmatched_benchmarks: Unmatched
    unmatched_metrics: Unmatched
    unmatched_groups: Unmatched

    def __repr__(self) -> str:
        return f"Comparison({len(self.benchmarks)} benchmarks, {len(self.groups)} groups, {', '.join(self.metrics)})"

    def _repr_markdown_(self) -> str:
        from eval.reports.comparison_tables import markdown  # which takes comparisons

        return markdown(self)

    def to_json(self) -> dict[str, Any]:
        """Returns the comparison as an object of JSON, the average after the benchmarks; `rows` are by method."""
        entries = [*self.benchmarks, *([self.average] if self.average else [])]
        stored: dict[str, Any] = {
            "level": self.level,
            "samples": self.samples,
            "metrics": self.metrics,
            "benchmarks": [
                {
                    "name": entry.name,
                    "queries": entry.queries,
                    "rows": {
                        method: {metric: change.to_json() for metric, change in changes.items()}
                        for method, changes in entry.changes.items()
                    },
                    "rows_without_counterpart": dataclasses.asdict(entry.unmatched),
                }
                for entry in entries
            ],
            "without_counterpart": dataclasses.asdict(self.unmatched_benchmarks),
            "metrics_without_counterpart": dataclasses.asdict(self.unmatched_metrics),
        }
        if self.groups:
            stored["groups"] = [
                {
                    "name": group.name,
                    "benchmarks": group.benchmarks,
                    "without_counterpart": dataclasses.asdict(group.unmatched),
                    "rows": {method: change.to_json() for method, change in group.changes.items()},
                }
                for group in self.groups
            ]
            stored["groups_without_counterpart"] = dataclasses.asdict(self.unmatched_groups)
        return stored


class _Draws(NamedTuple):
    """Means of a and b, and resampled means of b - a."""

    a: float
    b: float
    draws: Float[np.ndarray, " samples"]

    @classmethod
    def average(cls, parts: Sequence[_Draws]) -> _Draws:
        a, b, draws = zip(*parts, strict=True)
        return cls(float(np.mean(a)), float(np.mean(b)), np.mean(draws, axis=0))

    def change(self, level: float) -> Change:
        return Change(self.a, self.b, Estimate(self.b - self.a, *interval(self.draws, level)))


_ByMethod = dict[str, dict[str, _Draws]]  # by method, then metric


def compare(
    a: Report,
    b: Report,
    *,
    metrics: Sequence[str] | None = None,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Comparison:
    """Returns the differences b - a with paired bootstrap intervals over queries.

    Args:
      a, b: a query is known by its id, the order does not matter.
      metrics: names; None = those that both have. Groups keep their own.
      samples, seed, level: of the bootstrap. The queries of each benchmark are resampled, the same for every method.

    Raises:
      ValueError: there is nothing to compare, a metric that one of them lacks, a benchmark with other queries, another
        number of documents or another way of ranking, or one with another primary metric in a's group than in b's.

    Example:
      >>> from eval.methods import Result
      >>> from eval.reports import summarise
      >>> def report(x, y):
      ...     values = {"late": {"hit@1": np.array([x, y])}}
      ...     return summarise([Result("pages", ["q0", "q1"], 9, False, values, {})], samples=10)
      >>> comparison = compare(report(0.0, 0.5), report(0.5, 1.0), samples=10)
      >>> print(comparison.benchmarks[0].changes["late"]["hit@1"])
      0.250 → 0.750, +0.500 [+0.500, +0.500] *
    """
    ours, theirs = _by_name(a), _by_name(b)
    shared = [name for name in ours if name in theirs]
    if not shared:
        raise ValueError(f"no benchmark is in both: a has {abridged(ours)}, b has {abridged(theirs)}")
    chosen = _choose_metrics(a.metrics, b.metrics, metrics)
    primary = _shared_groups(a, b)
    needed = list(dict.fromkeys([*chosen, *(metric for group in primary.values() for metric in group.values())]))
    drawn = {name: _draw(ours[name], theirs[name], needed, samples, seed + i) for i, name in enumerate(shared)}
    of_chosen = [_of_metrics(drawn[name], chosen) for name in shared]
    benchmarks = [
        BenchmarkComparison(
            name, ours[name].queries, _changes(part, level), Unmatched.of(ours[name].values, theirs[name].values)
        )
        for name, part in zip(shared, of_chosen, strict=True)
    ]
    return Comparison(
        level=level,
        samples=samples,
        metrics=chosen,
        benchmarks=benchmarks,
        average=_average(benchmarks, of_chosen, level) if len(benchmarks) > 1 else None,
        groups=_compare_groups(a, b, primary, drawn, level),
        unmatched_benchmarks=Unmatched.of(ours, theirs),
        unmatched_metrics=Unmatched.of(a.metrics, b.metrics),
        unmatched_groups=Unmatched.of(_groups(a), _groups(b)),
    )


def _by_name(report: Report) -> dict[str, BenchmarkReport]:
    return {benchmark.name: benchmark for benchmark in report.benchmarks}


def _groups(report: Report) -> dict[str, Mapping[str, str]]:
    """Returns the primary metrics of each group's benchmarks that were run, by name."""
    return {group.name: group.benchmarks for group in report.groups}


def _shared_groups(a: Report, b: Report) -> dict[str, dict[str, str]]:
    """Returns the primary metrics of the groups that both have, of the benchmarks that both have run."""
    ours, theirs = _groups(a), _groups(b)
    shared = {}
    for group in (name for name in ours if name in theirs):
        metrics = {name: metric for name, metric in ours[group].items() if name in theirs[group]}
        for name, metric in metrics.items():
            if theirs[group][name] != metric:
                raise ValueError(
                    f"group {group}: the primary metric of {name} is {metric} in a and {theirs[group][name]} in b: "
                    "run both with the same groups"
                )
        shared[group] = metrics
    return shared


def _compare_groups(
    a: Report, b: Report, primary: Mapping[str, Mapping[str, str]], drawn: Mapping[str, _ByMethod], level: float
) -> list[GroupComparison]:
    ours, theirs, groups = _groups(a), _groups(b), []
    for group, metrics in primary.items():
        parts = [{method: means[metric] for method, means in drawn[name].items()} for name, metric in metrics.items()]
        averaged = {method: _Draws.average([part[method] for part in parts]) for method in shared_keys(parts)}
        changes = {method: means.change(level) for method, means in averaged.items()}
        groups.append(GroupComparison(group, metrics, changes, Unmatched.of(ours[group], theirs[group])))
    return groups


def _choose_metrics(a: Sequence[str], b: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    shared = [metric for metric in a if metric in b]
    if wanted is None and not shared:
        raise ValueError(f"no metric is in both: a has {', '.join(a)}, b has {', '.join(b)}")
    if unknown := [metric for metric in wanted or () if metric not in shared]:
        raise ValueError(f"{', '.join(unknown)} is not in both: a has {', '.join(a)}, b has {', '.join(b)}")
    return list(wanted or shared)


def _draw(a: BenchmarkReport, b: BenchmarkReport, metrics: Sequence[str], samples: int, seed: int) -> _ByMethod:
    """Returns the means and resamples of one benchmark, of the methods that both have."""
    _check_same(a, b)
    methods = [method for method in a.values if method in b.values]
    if not methods:
        return {}
    place = {query: i for i, query in enumerate(b.query_ids)}
    order = [place[query] for query in a.query_ids]
    keys = [(method, metric) for method in methods for metric in metrics]
    pairs = [(np.array(a.values[m][metric]), np.array(b.values[m][metric])[order]) for m, metric in keys]
    draws = resampled_means(np.stack([y - x for x, y in pairs]), samples=samples, seed=seed)
    drawn: _ByMethod = {method: {} for method in methods}
    for (method, metric), (x, y), of_difference in zip(keys, pairs, draws, strict=True):
        drawn[method][metric] = _Draws(float(x.mean()), float(y.mean()), of_difference)
    return drawn


def _check_same(a: BenchmarkReport, b: BenchmarkReport) -> None:
    for what, ours, theirs in (("documents", a.documents, b.documents), ("ranking", a.ranking, b.ranking)):
        if ours != theirs:
            raise ValueError(f"benchmark {a.name}: {what} is {ours} in a and {theirs} in b: they cannot be compared")
    unmatched = Unmatched.of(a.query_ids, b.query_ids)
    if unmatched.a or unmatched.b:
        sides = (("a", unmatched.a), ("b", unmatched.b))
        parts = [f"only {side} has {abridged(ids)}" for side, ids in sides if ids]
        raise ValueError(
            f"benchmark {a.name} has other queries in a than in b: {'; '.join(parts)}. Run both with the same "
            "max_queries and seed"
        )


def _of_metrics(drawn: _ByMethod, metrics: Sequence[str]) -> _ByMethod:
    return {method: {metric: means[metric] for metric in metrics} for method, means in drawn.items()}


def _changes(drawn: _ByMethod, level: float) -> dict[str, dict[str, Change]]:
    return {m: {metric: part.change(level) for metric, part in means.items()} for m, means in drawn.items()}


def _average(
    benchmarks: Sequence[BenchmarkComparison], drawn: Sequence[_ByMethod], level: float
) -> BenchmarkComparison:
    averaged = {
        method: {metric: _Draws.average([part[method][metric] for part in drawn]) for metric in drawn[0][method]}
        for method in shared_keys(drawn)
    }
    queries = sum(benchmark.queries for benchmark in benchmarks)
    return BenchmarkComparison(AVERAGE, queries, _changes(averaged, level), Unmatched([], []))
