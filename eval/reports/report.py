"""Results of benchmarks as a report: means with bootstrap intervals over queries, differences, averages and groups."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from eval.methods import Result
from eval.ranking import Drawn, Estimate, average, resample, shared_keys
from eval.reports.groups import Group, check_groups

AVERAGE = "average"
DECIMALS = 7  # of the values per query
ByMetric: TypeAlias = Mapping[str, Estimate]


class Pair(NamedTuple):
    """Two methods whose difference is reported.

    Example:
      >>> print(Pair("hybrid", "pooled"))
      hybrid − pooled
    """

    method: str
    minus: str

    def __str__(self) -> str:
        return f"{self.method} − {self.minus}"


# What SMART (arXiv:2605.24938) claims: late interaction adds to the pooled score, and the adapter to late interaction.
DIFFERENCES = (
    Pair("hybrid", "pooled"),
    Pair("adapter-late", "late"),
    Pair("adapter-hybrid", "hybrid"),
    Pair("adapter-hybrid", "pooled"),
)


@dataclasses.dataclass(frozen=True)
class BenchmarkReport:
    """Figures of one benchmark.

    Attributes:
      name: of the benchmark.
      queries, documents: how many there are.
      ranking: whether each query ranked the whole corpus, or only its own candidates.
      bytes_per_document: mean size in the index that a method needs; methods without vectors are left out.
      estimates: by method, then metric.
      differences: likewise, of the pairs whose methods were both evaluated.
      query_ids: ids of the queries.
      values: one value per query, rounded, by method, then metric.

    Example:
      >>> hit = {"late": {"hit@1": Estimate(1.0, 1.0, 1.0)}}
      >>> report = BenchmarkReport("pages", 1, 9, "global", {}, hit, {}, ["q0"], {"late": {"hit@1": [1.0]}})
      >>> print(report.estimates["late"]["hit@1"])
      1.000 [1.000, 1.000]
    """

    name: str
    queries: int
    documents: int
    ranking: Literal["global", "local"]
    bytes_per_document: Mapping[str, float]
    estimates: Mapping[str, ByMetric]
    differences: Mapping[Pair, ByMetric]
    query_ids: Sequence[str]
    values: Mapping[str, Mapping[str, Sequence[float]]]


@dataclasses.dataclass(frozen=True)
class AverageReport:
    """Unweighted averages over all benchmarks, of the methods that all of them have.

    Attributes:
      queries, documents: how many all benchmarks have together.
      estimates: by method, then metric; their intervals resample the queries within each benchmark.
      differences: likewise, of the pairs whose methods all benchmarks have.

    Example:
      >>> AverageReport(queries=20, documents=90, estimates={}, differences={}).name
      'average'
    """

    queries: int
    documents: int
    estimates: Mapping[str, ByMetric]
    differences: Mapping[Pair, ByMetric]

    @property
    def name(self) -> str:
        """Label that stands in the place of a benchmark's name."""
        return AVERAGE


@dataclasses.dataclass(frozen=True)
class PublishedFigures:
    """Figures that others have published for the benchmarks of a group that were run.

    Attributes:
      model, source, date: as in `Published`.
      figures: in the primary metric, by benchmark.
      average: over the same benchmarks; None where that cannot be told.
      claim: what the source states of them in words; None = nothing.

    Example:
      >>> PublishedFigures("rival", "a paper", "2026-01-02", figures={"pages": 0.5}, average=0.5).average
      0.5
    """

    model: str
    source: str
    date: str
    figures: Mapping[str, float]
    average: float | None
    claim: str | None = None


@dataclasses.dataclass(frozen=True)
class GroupReport:
    """Averages over those benchmarks of a group that were run, each in its primary metric.

    Attributes:
      name: of the group.
      benchmarks: the primary metric of each benchmark that was run, by name.
      missing: names of the others.
      estimates: by method, of the methods that all benchmarks have.
      differences: of the pairs whose methods all benchmarks have.
      published: to stand beside them.

    Example:
      >>> late = {"late": Estimate(0.5, 0.4, 0.6)}
      >>> GroupReport("both", {"pages": "ndcg@5"}, ["clips"], late, differences={}, published=[]).missing
      ['clips']
    """

    name: str
    benchmarks: Mapping[str, str]
    missing: Sequence[str]
    estimates: Mapping[str, Estimate]
    differences: Mapping[Pair, Estimate]
    published: Sequence[PublishedFigures]


@dataclasses.dataclass(frozen=True)
class Failure:
    """A benchmark that could not be evaluated, and why.

    Example:
      >>> Failure("pages", "FileNotFoundError: no PDF pages.pdf").name
      'pages'
    """

    name: str
    error: str


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """All figures of an evaluation, and what it was.

    Attributes:
      level, samples: of the bootstrap.
      metrics: names, in the order of the tables.
      benchmarks: those that were evaluated.
      average: over all of them; None where there is one benchmark, or where there are groups.
      groups: of benchmarks that are averaged together.
      failed: benchmarks that are missing.
      config, environment: settings, devices and versions of the run; empty where they are not known.

    Example:
      >>> Report(level=0.95, samples=2000, metrics=["ndcg@5", "mrr"], benchmarks=[]).primary_metric("pages")
      'ndcg@5'
    """

    level: float
    samples: int
    metrics: Sequence[str]
    benchmarks: Sequence[BenchmarkReport]
    average: AverageReport | None = None
    groups: Sequence[GroupReport] = ()
    failed: Sequence[Failure] = ()
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # values of JSON, here and below
    environment: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        methods = dict.fromkeys(name for benchmark in self.benchmarks for name in benchmark.estimates)
        said = f"{len(self.benchmarks)} benchmarks by {', '.join(methods) or 'no method'}"
        return f"Report({said}, {len(self.failed)} failed, metrics {', '.join(self.metrics)})"

    def _repr_markdown_(self) -> str:
        from eval.reports.tables import markdown  # which takes reports

        return markdown(self)

    def primary_metric(self, benchmark: str) -> str:
        """Returns the metric by which a benchmark is reported: its last group's, or the first of all."""
        primary = {name: metric for group in self.groups for name, metric in group.benchmarks.items()}
        return primary.get(benchmark, self.metrics[0])


def summarise(
    results: Sequence[Result],
    *,
    groups: Sequence[Group] = (),
    differences: Sequence[tuple[str, str]] = DIFFERENCES,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Report:
    """Returns means with intervals.

    Args:
      results: one per benchmark, all of the same metrics.
      groups: of benchmarks; each is averaged by itself, and there is no average of all.
      differences: pairs (method, minus method), bootstrapped in pairs of the same queries; those whose methods are
        missing are left out.
      samples, seed, level: of the bootstrap.

    Raises:
      ValueError: no results, results of different metrics, or a group whose primary metric is not among them.

    Example:
      >>> values = {"late": {"hit@1": np.array([1.0, 1.0])}, "pooled": {"hit@1": np.array([1.0, 0.0])}}
      >>> result = Result("pages", ["q0", "q1"], documents=9, local=False, values=values, seconds={})
      >>> report = summarise([result], differences=[("late", "pooled")], samples=100)
      >>> print(report.benchmarks[0].differences["late", "pooled"]["hit@1"])
      0.500 [0.000, 1.000]
    """
    if not results:
        raise ValueError("no results to report: run at least one benchmark")
    metrics = _metrics(results[0])
    for result in results:
        if _metrics(result) != metrics:
            raise ValueError(f"benchmark {result.benchmark} has metrics {_metrics(result)}, the first has {metrics}")
    check_groups(groups, [result.benchmark for result in results], metrics)
    pairs = [Pair(*pair) for pair in differences]
    drawn = [resample(result.values, samples=samples, seed=seed + i) for i, result in enumerate(results)]
    benchmarks = [_benchmark(result, of, pairs, level) for result, of in zip(results, drawn, strict=True)]
    averaged = None if groups or len(results) == 1 else _average(benchmarks, drawn, pairs, level)
    by_name = {result.benchmark: of for result, of in zip(results, drawn, strict=True)}
    grouped = [_group(group, by_name, pairs, level) for group in groups]
    return Report(level, samples, metrics, benchmarks, averaged, grouped)


def _metrics(result: Result) -> list[str]:
    return list(next(iter(result.values.values())))


def _benchmark(
    result: Result, drawn: Mapping[str, Mapping[str, Drawn]], pairs: Sequence[Pair], level: float
) -> BenchmarkReport:
    values = {
        method: {metric: np.round(x, DECIMALS).tolist() for metric, x in metrics.items()}
        for method, metrics in result.values.items()
    }
    return BenchmarkReport(
        name=result.benchmark,
        queries=len(result.query_ids),
        documents=result.documents,
        ranking="local" if result.local else "global",
        bytes_per_document={method: round(size, 1) for method, size in result.bytes_per_document.items()},
        estimates=_estimates(drawn, level),
        differences=_estimates(_subtract(drawn, pairs), level),
        query_ids=list(result.query_ids),
        values=values,
    )


def _average(
    benchmarks: Sequence[BenchmarkReport],
    drawn: Sequence[Mapping[str, Mapping[str, Drawn]]],
    pairs: Sequence[Pair],
    level: float,
) -> AverageReport:
    averaged = average(drawn)
    return AverageReport(
        queries=sum(benchmark.queries for benchmark in benchmarks),
        documents=sum(benchmark.documents for benchmark in benchmarks),
        estimates=_estimates(averaged, level),
        differences=_estimates(_subtract(averaged, pairs), level),
    )


def _group(
    group: Group, drawn: Mapping[str, Mapping[str, Mapping[str, Drawn]]], pairs: Sequence[Pair], level: float
) -> GroupReport:
    run = {name: metric for name, metric in group.metrics.items() if name in drawn}
    averaged = {
        method: Drawn.average([drawn[name][method][metric] for name, metric in run.items()])
        for method in shared_keys([drawn[name] for name in run])
    }
    gains = {pair: averaged[pair.method] - averaged[pair.minus] for pair in pairs if set(pair) <= set(averaged)}
    return GroupReport(
        name=group.name,
        benchmarks=run,
        missing=[name for name in group.metrics if name not in run],
        estimates={method: mean.estimate(level) for method, mean in averaged.items()},
        differences={pair: gain.estimate(level) for pair, gain in gains.items()},
        published=_published(group, run),
    )


def _subtract(drawn: Mapping[str, Mapping[str, Drawn]], pairs: Sequence[Pair]) -> dict[Pair, dict[str, Drawn]]:
    return {
        pair: {metric: mean - drawn[pair.minus][metric] for metric, mean in drawn[pair.method].items()}
        for pair in pairs
        if pair.method in drawn and pair.minus in drawn
    }


def _estimates(drawn: Mapping[Any, Mapping[str, Drawn]], level: float) -> dict[Any, dict[str, Estimate]]:
    return {key: {metric: mean.estimate(level) for metric, mean in means.items()} for key, means in drawn.items()}


def _published(group: Group, run: Mapping[str, str]) -> list[PublishedFigures]:
    """Returns what is published for the benchmarks that were run; entries that say nothing of them are left out."""
    published = []
    for entry in group.published:
        figures = {name: x for name, m in run.items() if (x := entry.figures.get(m, {}).get(name)) is not None}
        average = float(np.mean(list(figures.values()))) if run and len(figures) == len(run) else None
        if average is None and len(run) == len(group.metrics):
            metrics = ", ".join(sorted(set(group.metrics.values())))
            average = entry.averages.get(metrics, {}).get(group.name)
        claim = entry.claims.get(group.name) if run else None
        if figures or average is not None or claim is not None:
            published.append(PublishedFigures(entry.model, entry.source, str(entry.date), figures, average, claim))
    return published
