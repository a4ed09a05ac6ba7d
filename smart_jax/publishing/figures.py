"""Figures of an evaluation for a model card, read from the results.json that docs/publishing.md describes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smart_jax.files import read_json

NAME = "results.json"
ADAPTER = "adapter-"  # how the names of methods with an adapter begin


class Interval(NamedTuple):
    """A mean over queries with its confidence interval.

    Example:
      >>> print(Interval(0.436, 0.396, 0.474))
      .436 [.396, .474]
    """

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{_short(self.mean)} [{_short(self.low)}, {_short(self.high)}]"


def _short(value: float) -> str:
    """Returns three decimals without the zero before the point."""
    text = f"{value:.3f}"
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


class Difference(NamedTuple):
    """The gain of one method over another, by metric.

    Example:
      >>> gain = Difference("hybrid", "pooled", {"hit@1": Interval(0.5, 0.25, 0.75)})
      >>> print(gain.method, "−", gain.minus, gain.metrics["hit@1"])
      hybrid − pooled .500 [.250, .750]
    """

    method: str
    minus: str
    metrics: Mapping[str, Interval]


@dataclasses.dataclass(frozen=True)
class BenchmarkFigures:
    """Figures of one benchmark, or of the average of all.

    Attributes:
      name: of the benchmark.
      queries, documents: how many there are.
      average: whether it is the average of the others.
      methods: figures by method, then metric.
      differences: gains of one method over another.

    Example:
      >>> BenchmarkFigures("pages", 500, 500, False, {"late": {"hit@1": Interval(0.5, 0.4, 0.6)}}, []).name
      'pages'
    """

    name: str
    queries: int
    documents: int
    average: bool
    methods: Mapping[str, Mapping[str, Interval]]
    differences: Sequence[Difference]


@dataclasses.dataclass(frozen=True)
class Figures:
    """Figures of an evaluation.

    Attributes:
      level: of the intervals, such as 0.95.
      metrics: names, in the order of the tables.
      benchmarks: those that were evaluated, and their average if there is one.
      model: what was evaluated, as the evaluation was told; None = it does not say.

    Example:
      >>> Figures(0.95, ["ndcg@5"], [], model="tiny").metrics
      ['ndcg@5']
    """

    level: float
    metrics: Sequence[str]
    benchmarks: Sequence[BenchmarkFigures]
    model: str | None = None

    @property
    def methods(self) -> list[str]:
        """Names of all methods, each once."""
        return list(dict.fromkeys(method for benchmark in self.benchmarks for method in benchmark.methods))


def read_figures(path: str | Path) -> Figures:
    """Reads the results.json of an evaluation, given as its path or its folder's.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is no such file.

    Example:
      >>> import json, pathlib, tempfile
      >>> row = {"ndcg@5": {"mean": 0.5, "low": 0.4, "high": 0.6}}
      >>> pages = {"name": "pages", "queries": 9, "documents": 9, "ranking": "global", "rows": {"late": row}}
      >>> results = {"level": 0.95, "metrics": ["ndcg@5"], "benchmarks": [pages]}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = pathlib.Path(folder, "results.json").write_text(json.dumps(results))
      ...     print(read_figures(folder).benchmarks[0].methods["late"]["ndcg@5"])
      .500 [.400, .600]
    """
    file = Path(path) / NAME if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no file '{file}': give a folder that python -m eval.run wrote, or its {NAME}")
    stored = read_json(file)
    try:
        model = dict(stored.get("config") or {}).get("model")
        benchmarks = [_benchmark(entry) for entry in stored["benchmarks"]]
        return Figures(float(stored["level"]), list(stored["metrics"]), benchmarks, model)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"'{file}' is not a {NAME} of python -m eval.run ({type(error).__name__}: {error}): evaluate again"
        ) from error


def _benchmark(entry: Mapping[str, Any]) -> BenchmarkFigures:
    return BenchmarkFigures(
        name=str(entry["name"]),
        queries=int(entry["queries"]),
        documents=int(entry["documents"]),
        average=entry["ranking"] is None,
        methods={method: _by_metric(figures) for method, figures in entry["rows"].items()},
        differences=[
            Difference(each["row"], each["minus"], _by_metric(each["metrics"])) for each in entry.get("differences", ())
        ],
    )


def _by_metric(figures: Mapping[str, Mapping[str, float]]) -> dict[str, Interval]:
    return {
        metric: Interval(float(each["mean"]), float(each["low"]), float(each["high"]))
        for metric, each in figures.items()
    }
