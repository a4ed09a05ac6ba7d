"""results.json: a report on disk, written and read here only.

level, samples, metrics     as in `Report`
benchmarks                  one object each, then the average, whose ranking is null and which has no values; `rows` and
                            `values` are by method, then metric; of a difference, `row` is the method
groups                      where there are some: `rows` by method
failed, config, environment as in `Report`
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.ranking import Estimate
from eval.reports.report import (
    AVERAGE,
    AverageReport,
    BenchmarkReport,
    ByMetric,
    Failure,
    GroupReport,
    Pair,
    PublishedFigures,
    Report,
)
from smart_jax.files import read_json, shown, write_whole_text

NAME = "results.json"
MAX_BYTES = 2**30  # it has every query's values
Json = dict[str, Any]  # an object of JSON


def write_results(report: Report, path: Path) -> None:
    """Writes the file; a list of numbers or texts is on one line."""
    write_whole_text(path, _dump(_to_json(report)) + "\n")


def read_results(path: str | Path) -> Report:
    """Reads the results.json of a run, given as its path or its folder's.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is not one, or was written before values per query were.

    Example:
      >>> read_results("no-such-folder")
      Traceback (most recent call last):
      FileNotFoundError: no file 'no-such-folder': give a folder that python -m eval.run wrote, or its results.json
    """
    file = Path(path) / NAME if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no file '{file}': give a folder that python -m eval.run wrote, or its results.json")
    stored = read_json(file, remedy="evaluate again", most=MAX_BYTES)
    if not isinstance(stored.get("benchmarks"), list):
        raise ValueError(f"'{file}' has no benchmarks: it is not a results.json of python -m eval.run")
    try:
        return _from_json(stored)
    except ValueError as error:
        raise ValueError(f"'{file}': {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"'{file}' is not a results.json of python -m eval.run ({type(error).__name__}: {error}): evaluate again"
        ) from error


def _to_json(report: Report) -> Json:
    benchmarks = [
        {
            "name": benchmark.name,
            "queries": benchmark.queries,
            "documents": benchmark.documents,
            "ranking": benchmark.ranking,
            "bytes_per_document": benchmark.bytes_per_document,
            **_figures(benchmark),
            "query_ids": benchmark.query_ids,
            "values": benchmark.values,
        }
        for benchmark in report.benchmarks
    ]
    if (average := report.average) is not None:
        facts = {"name": AVERAGE, "queries": average.queries, "documents": average.documents}
        benchmarks.append({**facts, "ranking": None, "bytes_per_document": {}, **_figures(average)})
    stored = {"level": report.level, "samples": report.samples, "metrics": report.metrics, "benchmarks": benchmarks}
    if report.groups:
        stored["groups"] = [_group_to_json(group) for group in report.groups]
    failed = [dataclasses.asdict(failure) for failure in report.failed]
    return {**stored, "failed": failed, "config": report.config, "environment": report.environment}


def _figures(of: BenchmarkReport | AverageReport) -> Json:
    return {
        "rows": {method: _metrics(by_metric) for method, by_metric in of.estimates.items()},
        "differences": [
            {"row": pair.method, "minus": pair.minus, "metrics": _metrics(by_metric)}
            for pair, by_metric in of.differences.items()
        ],
    }


def _metrics(by_metric: ByMetric) -> Json:
    return {metric: dataclasses.asdict(estimate) for metric, estimate in by_metric.items()}


def _group_to_json(group: GroupReport) -> Json:
    return {
        "name": group.name,
        "benchmarks": group.benchmarks,
        "missing": group.missing,
        "rows": _metrics(group.estimates),
        "differences": [
            {"row": pair.method, "minus": pair.minus, **dataclasses.asdict(estimate)}
            for pair, estimate in group.differences.items()
        ],
        "published": [dataclasses.asdict(entry) for entry in group.published],
    }


def _from_json(stored: Mapping[str, Any]) -> Report:
    entries = stored["benchmarks"]
    averages = [entry for entry in entries if entry["ranking"] is None]
    return Report(
        level=stored["level"],
        samples=stored["samples"],
        metrics=stored["metrics"],
        benchmarks=[_read_benchmark(entry) for entry in entries if entry["ranking"] is not None],
        average=_read_average(averages[0]) if averages else None,
        groups=[_read_group(group) for group in stored.get("groups", ())],
        failed=tuple(Failure(**failure) for failure in stored.get("failed", ())),
        config=stored.get("config", {}),
        environment=stored.get("environment", {}),
    )


def _read_benchmark(entry: Mapping[str, Any]) -> BenchmarkReport:
    name = entry["name"]
    if "values" not in entry or "query_ids" not in entry:
        raise ValueError(
            f"benchmark {name} has no values per query, which python -m eval.run did not write at first: run it again"
        )
    count = len(entry["query_ids"])
    for method, by_metric in entry["values"].items():
        for metric, values in by_metric.items():
            for value in values:
                _number(value, f"benchmark {name}, row {method}, {metric}")
            if len(values) != count:
                raise ValueError(
                    f"benchmark {name}, row {method}, {metric} has {len(values)} values for {count} queries: run it "
                    "again"
                )
    return BenchmarkReport(
        name=name,
        queries=entry["queries"],
        documents=entry["documents"],
        ranking=entry["ranking"],
        bytes_per_document=entry.get("bytes_per_document", {}),
        estimates=_read_estimates(entry),
        differences=_read_differences(entry),
        query_ids=entry["query_ids"],
        values=entry["values"],
    )


def _read_average(entry: Mapping[str, Any]) -> AverageReport:
    return AverageReport(entry["queries"], entry["documents"], _read_estimates(entry), _read_differences(entry))


def _read_estimates(entry: Mapping[str, Any]) -> dict[str, ByMetric]:
    return {method: _read_metrics(by_metric) for method, by_metric in entry["rows"].items()}


def _read_differences(entry: Mapping[str, Any]) -> dict[Pair, ByMetric]:
    return {Pair(stored["row"], stored["minus"]): _read_metrics(stored["metrics"]) for stored in entry["differences"]}


def _read_metrics(by_metric: Mapping[str, Any]) -> dict[str, Estimate]:
    return {metric: _read_estimate(figure) for metric, figure in by_metric.items()}


def _read_estimate(figure: Mapping[str, Any]) -> Estimate:
    mean, low, high = (_number(figure[name], name) for name in ("mean", "low", "high"))
    return Estimate(mean, low, high)


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {shown(value)}, expected a number")
    return float(value)


def _read_group(group: Mapping[str, Any]) -> GroupReport:
    return GroupReport(
        name=group["name"],
        benchmarks=group["benchmarks"],
        missing=group["missing"],
        estimates=_read_metrics(group["rows"]),
        differences={Pair(stored["row"], stored["minus"]): _read_estimate(stored) for stored in group["differences"]},
        published=[PublishedFigures(**entry) for entry in group["published"]],
    )


def _dump(value: Any, indent: str = "") -> str:
    """Returns JSON as of `json.dumps` with an indent of 2, except that a list of numbers or texts stays on one line."""
    deeper = indent + "  "
    if isinstance(value, Mapping) and value:
        parts = [f"{json.dumps(key)}: {_dump(item, deeper)}" for key, item in value.items()]
        return "{\n" + ",\n".join(deeper + part for part in parts) + f"\n{indent}}}"
    if _is_list(value) and any(isinstance(item, Mapping) or _is_list(item) for item in value):
        return "[\n" + ",\n".join(deeper + _dump(item, deeper) for item in value) + f"\n{indent}]"
    return json.dumps(value)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)
