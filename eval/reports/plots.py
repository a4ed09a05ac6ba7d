"""Plots of a summary of `eval.reports.report`: rows, gains, hybrid against pooled, and quality against storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

MOST_PANELS = 12  # benchmarks with a panel of their own
DPI = 150
Summary = Mapping[str, Any]


def write(summary: Summary, folder: Path) -> dict[str, Path]:
    """Those of the plots that say something of these results; earlier ones are removed.

    results.png           rows by metrics, a panel for each benchmark, where they are few
    gains.png             each difference of two rows, task by task, sorted
    hybrid_pooled.png     a point per task: pooled across, hybrid up
    storage.png           quality against bytes per document, a line per task and the mean
    """
    drawn = {"png": ("results.png", rows), "gains": ("gains.png", gains)}
    drawn |= {"hybrid_pooled": ("hybrid_pooled.png", hybrid_against_pooled), "storage": ("storage.png", storage)}
    paths = {}
    for kind, (name, draw) in drawn.items():
        path = folder / name
        path.unlink(missing_ok=True)
        if (figure := draw(summary)) is not None:
            figure.savefig(path, dpi=DPI)
            paths[kind] = path
    return paths


def rows(summary: Summary) -> Figure | None:
    """Bars of every row, grouped by metric, with the intervals as error bars; None = too many benchmarks."""
    entries, metrics = summary["benchmarks"], summary["metrics"]
    if len(entries) > MOST_PANELS:
        return None
    names = list(dict.fromkeys(row for entry in entries for row in entry["rows"]))
    colours = _colours(names)
    size = (max(6.0, 1.2 + 0.24 * len(metrics) * (len(names) + 1)), 3.4 * len(entries))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(entries), 1, squeeze=False)
    for axis, entry in zip(axes[:, 0], entries, strict=True):
        width = 0.85 / max(len(entry["rows"]), 1)
        for i, (row, figures) in enumerate(entry["rows"].items()):
            means = np.array([figures[m]["mean"] for m in metrics])
            low, high = (np.array([figures[m][side] for m in metrics]) for side in ("low", "high"))
            at = np.arange(len(metrics)) + (i - (len(entry["rows"]) - 1) / 2) * width
            # Rounding, or a skewed bootstrap, may put the mean a hair outside its interval.
            bars = np.maximum([means - low, high - means], 0)
            axis.bar(at, means, width, label=row, color=colours[row], yerr=bars, error_kw={"lw": 0.8}, capsize=1.5)
        axis.set_xticks(np.arange(len(metrics)), metrics)
        axis.set_ylim(0, 1)
        axis.set_title(f"{entry['name']}: {entry['queries']} queries, {entry['documents']} documents", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0, 0].legend(fontsize=8, ncols=min(len(names), 4), frameon=False)
    return figure


def gains(summary: Summary) -> Figure | None:
    """A panel per difference: bars by benchmark in the primary metric, largest first, with intervals; None = none."""
    found: dict[str, list[tuple[str, Mapping[str, float]]]] = {}
    for entry, metric in _tasks(summary):
        for pair in entry["differences"]:
            title = f"{pair['row']} − {pair['minus']}"
            found.setdefault(title, []).append((f"{entry['name']} ({metric})", pair["metrics"][metric]))
    if not found:
        return None
    tallest = max(map(len, found.values()))
    figure = Figure(figsize=(4.2 * len(found) + 1.5, 1.2 + 0.2 * tallest), layout="constrained")
    for axis, (title, bars) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        bars = sorted(bars, key=lambda bar: bar[1]["mean"])
        means = np.array([bar["mean"] for _, bar in bars])
        spread = np.maximum([means - [bar["low"] for _, bar in bars], [bar["high"] for _, bar in bars] - means], 0)
        colours = ["tab:green" if mean > 0 else "tab:red" for mean in means]
        axis.barh(np.arange(len(bars)), means, color=colours, xerr=spread, error_kw={"lw": 0.7}, capsize=1.5)
        axis.set_yticks(np.arange(len(bars)), [name for name, _ in bars], fontsize=6)
        axis.axvline(0, color="black", lw=0.8)
        axis.set_title(title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def hybrid_against_pooled(summary: Summary) -> Figure | None:
    """A point per benchmark in its primary metric; above the diagonal late interaction gains. None = no such rows."""
    points = [
        (entry["name"], *(entry["rows"][row][metric]["mean"] for row in ("pooled", "hybrid")))
        for entry, metric in _tasks(summary)
        if {"pooled", "hybrid"} <= set(entry["rows"])
    ]
    if not points:
        return None
    figure = Figure(figsize=(5, 5), layout="constrained")
    axis = figure.subplots()
    axis.plot([0, 1], [0, 1], color="grey", lw=0.8, ls="--")
    for name, pooled, hybrid in points:
        axis.plot(pooled, hybrid, "o", ms=4, color="tab:green" if hybrid > pooled else "tab:red")
        axis.annotate(name, (pooled, hybrid), fontsize=5, xytext=(3, -2), textcoords="offset points")
    _finish(axis, "pooled", "hybrid")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    return figure


def storage(summary: Summary) -> Figure | None:
    """Primary metric against bytes per document, both of each row; None = no row has vectors."""
    tasks = [(entry, metric) for entry, metric in _tasks(summary) if entry["bytes_per_document"]]
    if not tasks:
        return None
    names = list(dict.fromkeys(row for entry, _ in tasks for row in entry["bytes_per_document"]))
    colours, figure = _colours(names), Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    for row in names:
        own = [(e["bytes_per_document"][row], e["rows"][row][m]["mean"]) for e, m in tasks if row in e["rows"]]
        sizes, values = zip(*own, strict=True)
        axis.plot(sizes, values, "o", ms=2.5, alpha=0.5, color=colours[row])
        mean = np.exp(np.mean(np.log(sizes))), np.mean(values)
        axis.plot(*mean, "D", ms=8, color=colours[row], label=f"{row}: {mean[0]:,.0f} bytes, {mean[1]:.3f}")
    axis.set_xscale("log")
    axis.legend(fontsize=7, frameon=False, title="diamonds: means", title_fontsize=7)
    _finish(axis, "bytes per document", "primary metric")
    return figure


def _tasks(summary: Summary) -> list[tuple[Mapping[str, Any], str]]:
    """Benchmarks, without their average, and the primary metric of each."""
    primary = {name: metric for group in summary.get("groups", ()) for name, metric in group["benchmarks"].items()}
    return [
        (entry, primary.get(entry["name"], summary["metrics"][0]))
        for entry in summary["benchmarks"]
        if entry["ranking"] is not None
    ]


def _colours(names: Sequence[str]) -> dict[str, Any]:
    return {name: colormaps["tab10"](i % 10) for i, name in enumerate(names)}


def _finish(axis: Axes, x: str, y: str) -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.spines[["top", "right"]].set_visible(False)
