"""Plots of a report: methods, gains, hybrid against pooled, and quality against storage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.ranking import Estimate
from eval.reports.drawing import label_points, save
from eval.reports.report import AverageReport, BenchmarkReport, Pair, Report

MOST_PANELS = 12  # benchmarks with a panel of their own
Colour: TypeAlias = tuple[float, float, float, float]


def write(report: Report, folder: Path) -> dict[str, Path]:
    """Writes those of the plots that say something of these results; earlier ones are removed.

    results.png           methods by metrics, a panel for each benchmark, where they are few
    gains.png             each difference of two methods, task by task, sorted
    hybrid_pooled.png     a point per task: pooled across, hybrid up
    storage.png           quality against bytes per document, a line per task and the mean
    """
    drawn = {"png": ("results.png", methods), "gains": ("gains.png", gains)}
    drawn |= {"hybrid_pooled": ("hybrid_pooled.png", hybrid_against_pooled), "storage": ("storage.png", storage)}
    paths = {}
    for kind, (name, draw) in drawn.items():
        path = folder / name
        path.unlink(missing_ok=True)
        if (figure := draw(report)) is not None:
            save(figure, path)
            paths[kind] = path
    return paths


def methods(report: Report) -> Figure | None:
    """Draws bars of every method, grouped by metric, with the intervals as error bars; None = too many benchmarks."""
    panels: list[BenchmarkReport | AverageReport] = [*report.benchmarks, *([report.average] if report.average else [])]
    if len(panels) > MOST_PANELS:
        return None
    names = list(dict.fromkeys(method for panel in panels for method in panel.estimates))
    size = (max(6.0, 1.2 + 0.24 * len(report.metrics) * (len(names) + 1)), 3.4 * len(panels))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False)
    for axis, panel in zip(axes[:, 0], panels, strict=True):
        _draw_methods(axis, panel, report.metrics, _colours(names))
    shown = axes[0, 0].get_legend_handles_labels()
    figure.legend(*shown, loc="outside upper center", fontsize=8, ncols=min(len(names), 4), frameon=False)
    return figure


def _draw_methods(
    axis: Axes, panel: BenchmarkReport | AverageReport, metrics: Sequence[str], colours: dict[str, Colour]
) -> None:
    width = 0.85 / max(len(panel.estimates), 1)
    for i, (method, estimates) in enumerate(panel.estimates.items()):
        at = np.arange(len(metrics)) + (i - (len(panel.estimates) - 1) / 2) * width
        shown = [estimates[metric] for metric in metrics]
        means = [estimate.mean for estimate in shown]
        error_bars: dict[str, Any] = {"yerr": _error_bars(shown), "error_kw": {"lw": 0.8}, "capsize": 1.5}
        axis.bar(at, means, width, label=method, color=colours[method], **error_bars)
    axis.set_xticks(np.arange(len(metrics)), metrics)
    axis.set_ylim(0, 1)
    axis.set_title(f"{panel.name}: {panel.queries} queries, {panel.documents} documents", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)


def _error_bars(estimates: Sequence[Estimate]) -> np.ndarray:
    """Returns lengths [2, estimates] below and above the means.

    Rounding, or a skewed bootstrap, may put a mean a hair outside its interval.
    """
    below = [estimate.mean - estimate.low for estimate in estimates]
    return np.maximum([below, [estimate.high - estimate.mean for estimate in estimates]], 0)


def gains(report: Report) -> Figure | None:
    """Draws a panel per difference: bars by benchmark in the primary metric, largest first; None = no difference."""
    panels: dict[Pair, list[tuple[str, Estimate]]] = {}
    for benchmark in report.benchmarks:
        metric = report.primary_metric(benchmark.name)
        for pair, by_metric in benchmark.differences.items():
            panels.setdefault(pair, []).append((f"{benchmark.name} ({metric})", by_metric[metric]))
    if not panels:
        return None
    tallest = max(map(len, panels.values()))
    figure = Figure(figsize=(4.2 * len(panels) + 1.5, 1.2 + 0.2 * tallest), layout="constrained")
    for axis, (pair, bars) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        bars = sorted(bars, key=lambda bar: bar[1].mean)
        shown = [gain for _, gain in bars]
        colours = ["tab:green" if gain.mean > 0 else "tab:red" for gain in shown]
        error_bars: dict[str, Any] = {"xerr": _error_bars(shown), "error_kw": {"lw": 0.7}, "capsize": 1.5}
        axis.barh(np.arange(len(bars)), [gain.mean for gain in shown], color=colours, **error_bars)
        axis.set_yticks(np.arange(len(bars)), [name for name, _ in bars], fontsize=6)
        axis.axvline(0, color="black", lw=0.8)
        axis.set_title(str(pair), fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def hybrid_against_pooled(report: Report) -> Figure | None:
    """Draws a point per benchmark in its primary metric; above the diagonal late interaction gains.

    Returns:
      None where no benchmark has both methods.
    """
    points = []
    for benchmark in report.benchmarks:
        if {"pooled", "hybrid"} <= set(benchmark.estimates):
            metric = report.primary_metric(benchmark.name)
            pooled, hybrid = (benchmark.estimates[method][metric].mean for method in ("pooled", "hybrid"))
            points.append((benchmark.name, pooled, hybrid))
    if not points:
        return None
    figure = Figure(figsize=(5, 5), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="grey", lw=0.8, ls="--")
    for _, pooled, hybrid in points:
        axis.plot(pooled, hybrid, "o", ms=4, color="tab:green" if hybrid > pooled else "tab:red")
    _finish(axis, "pooled", "hybrid")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    label_points(axis, points)
    return figure


def storage(report: Report) -> Figure | None:
    """Draws the primary metric against bytes per document, both of each method; None = no method has vectors."""
    tasks = [benchmark for benchmark in report.benchmarks if benchmark.bytes_per_document]
    if not tasks:
        return None
    names = list(dict.fromkeys(method for task in tasks for method in task.bytes_per_document))
    colours, figure = _colours(names), Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for method in names:
        have = [task for task in tasks if method in task.estimates]
        sizes = [task.bytes_per_document[method] for task in have]
        values = [task.estimates[method][report.primary_metric(task.name)].mean for task in have]
        axis.plot(sizes, values, "o", ms=2.5, alpha=0.5, color=colours[method])
        # Equal sizes stay what they are: a rounded logarithm would make an axis of no width.
        mean = sizes[0] if len(set(sizes)) == 1 else np.exp(np.mean(np.log(sizes))), np.mean(values)
        axis.plot(*mean, "D", ms=8, color=colours[method], label=f"{method}: {mean[0]:,.0f} bytes, {mean[1]:.3f}")
    axis.set_xscale("log")
    axis.legend(fontsize=7, frameon=False, title="diamonds: means", title_fontsize=7)
    _finish(axis, "bytes per document", "primary metric")
    return figure


def _colours(names: Sequence[str]) -> dict[str, Colour]:
    return {name: colormaps["tab10"](i % 10) for i, name in enumerate(names)}


def _finish(axis: Axes, x: str, y: str) -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.spines[["top", "right"]].set_visible(False)
