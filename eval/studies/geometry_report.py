"""The report of token geometry as JSON, as a Markdown table and as a plot."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib.figure import Figure

from eval.reports import save_figure, table_line
from eval.studies.panels import finish

METHODS = ("pooled", "late", "late, own words", "hybrid")
STATISTICS = ("token cosine", "pooled cosine", "gap", "gap in sd")
Figures: TypeAlias = dict[str, float]  # by METHODS and STATISTICS


@dataclasses.dataclass(frozen=True)
class GeometryReport:
    """Figures of models along training.

    Attributes:
      metric: of the methods.
      benchmarks: names of those that figures are averaged over.
      models: figures of each run, by the name of the model, in the order of training.
      config, environment: settings, devices and versions.
      seconds: wall time.

    Example:
      >>> figures = dict.fromkeys((*METHODS, *STATISTICS), 0.5)
      >>> GeometryReport("ndcg@5", ["pages"], {"new": [figures, figures]}, {}, {}, seconds=1.0).runs
      2
    """

    metric: str
    benchmarks: Sequence[str]
    models: Mapping[str, Sequence[Figures]]
    config: Mapping[str, Any]  # values of JSON, here and below
    environment: Mapping[str, Any]
    seconds: float

    @property
    def runs(self) -> int:
        """Number of runs."""
        return len(next(iter(self.models.values())))

    def to_json(self) -> dict[str, Any]:
        """Returns the report as an object of JSON."""
        return {
            "metric": self.metric,
            "runs": self.runs,
            "benchmarks": self.benchmarks,
            "models": [{"name": name, "runs": runs} for name, runs in self.models.items()],
            "config": self.config,
            "environment": self.environment,
            "seconds": self.seconds,
        }


def markdown(report: GeometryReport) -> str:
    """Returns a table: models by figures, "mean [least, largest of the runs]".

    Example:
      >>> figures = dict.fromkeys((*METHODS, *STATISTICS), 0.5)
      >>> text = markdown(GeometryReport("ndcg@5", ["pages"], {"new": [figures]}, {}, {}, seconds=1.0))
      >>> text.splitlines()[2][:31]
      '| new | 0.500 [0.500, 0.500] | '
    """
    names = (*METHODS, *STATISTICS)
    lines = [f"| | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for model, runs in report.models.items():
        cells = []
        for name in names:
            values = [figures[name] for figures in runs]
            cells.append(f"{np.mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]")
        lines.append(table_line([model, *cells]))
    note = f"{', '.join(METHODS)}: {report.metric}, mean over {len(report.benchmarks)} benchmarks and "
    return "\n".join(lines) + f"\n\n{note}{report.runs} runs; brackets: the least and the largest of the runs.\n"


def write(report: GeometryReport, folder: Path) -> dict[str, Path]:
    """Writes geometry.json, geometry.md and geometry.png to the folder (made if missing), and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / name for name in ("geometry.json", "geometry.md", "geometry.png")}
    paths["geometry.json"].write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
    paths["geometry.md"].write_text(markdown(report), encoding="utf-8")
    plot(report, paths["geometry.png"])
    return paths


def plot(report: GeometryReport, path: Path) -> None:
    """Draws the metric and the statistics along training: means of the runs as lines, their range as bands."""
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    groups = (METHODS, STATISTICS[:2], STATISTICS[3:])
    for axis, names, label in zip(axes, groups, (report.metric, "mean cosine", "standard deviations"), strict=True):
        for name in names:
            values = np.array([[figures[name] for figures in runs] for runs in report.models.values()])
            at = np.arange(len(values))
            (drawn,) = axis.plot(at, values.mean(axis=1), marker=".", label=name)
            axis.fill_between(at, values.min(axis=1), values.max(axis=1), color=drawn.get_color(), alpha=0.2, lw=0)
        ticks = [model.removesuffix("/model") for model in report.models]
        axis.set_xticks(np.arange(len(ticks)), ticks, rotation=30, ha="right", fontsize=8)
        finish(axis, y=label)
        axis.legend(fontsize=8, frameon=False)
    save_figure(figure, path)
