"""Results as JSON, as a Markdown table and as a plot, with bootstrap intervals over queries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from eval.bootstrap import interval, resampled_means
from eval.evaluate import Result

# What SMART (arXiv:2605.24938) claims: late interaction adds to the pooled score, and the adapter to late interaction.
DIFFERENCES = (
    ("hybrid", "pooled"),
    ("adapter-late", "late"),
    ("adapter-hybrid", "hybrid"),
    ("adapter-hybrid", "pooled"),
)
AVERAGE = "average"
Estimate = dict[str, float]  # mean, low, high


def summarise(
    results: Sequence[Result],
    *,
    differences: Sequence[tuple[str, str]] = DIFFERENCES,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Means with intervals, ready for JSON.

    Args:
      results: one per benchmark, all of the same metrics.
      differences: pairs (row, minus row), bootstrapped in pairs of the same queries; those whose rows are missing are
        left out.
      samples, seed, level: of the bootstrap.

    Returns:
      {"level", "samples", "benchmarks": [{"name", "queries", "documents", "ranking", "seconds", "rows": {row: {metric:
      {"mean", "low", "high"}}}, "differences": [{"row", "minus", "metrics": {metric: ...}}]}, ...]}. Several benchmarks
      are followed by their unweighted average, over the rows that all of them have; its intervals resample the queries
      within each benchmark.

    Raises:
      ValueError: no results, or results of different metrics.
    """
    if not results:
        raise ValueError("no results to report: run at least one benchmark")
    metrics = _metrics(results[0])
    for result in results:
        if _metrics(result) != metrics:
            raise ValueError(f"benchmark {result.benchmark} has metrics {_metrics(result)}, the first has {metrics}")
    draws = [_draws(result, samples, seed + i) for i, result in enumerate(results)]
    entries = []
    for result, drawn in zip(results, draws, strict=True):
        means = {row: {m: float(v.mean()) for m, v in values.items()} for row, values in result.values.items()}
        facts = {
            "name": result.benchmark,
            "queries": len(result.query_ids),
            "documents": result.documents,
            "ranking": "local" if result.local else "global",
            "seconds": {stage: round(seconds, 3) for stage, seconds in result.seconds.items()},
        }
        entries.append(facts | _figures(means, drawn, differences, level))
    if len(results) > 1:
        entries.append(_average(entries, draws, differences, level))
    return {"level": level, "samples": samples, "metrics": metrics, "benchmarks": entries}


def _metrics(result: Result) -> list[str]:
    return list(next(iter(result.values.values())))


def _draws(result: Result, samples: int, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Resampled means [S] by row and metric; one set of draws for all of them, so that they pair."""
    keys = [(row, metric) for row, values in result.values.items() for metric in values]
    means = resampled_means(np.stack([result.values[r][m] for r, m in keys]), samples=samples, seed=seed)
    drawn: dict[str, dict[str, np.ndarray]] = {}
    for (row, metric), values in zip(keys, means, strict=True):
        drawn.setdefault(row, {})[metric] = values
    return drawn


def _figures(
    means: Mapping[str, Mapping[str, float]],
    draws: Mapping[str, Mapping[str, np.ndarray]],
    differences: Sequence[tuple[str, str]],
    level: float,
) -> dict[str, Any]:
    rows = {row: {m: _estimate(means[row][m], draws[row][m], level) for m in means[row]} for row in means}
    pairs = []
    for row, minus in differences:
        if row in means and minus in means:
            found = {
                m: _estimate(means[row][m] - means[minus][m], draws[row][m] - draws[minus][m], level) for m in rows[row]
            }
            pairs.append({"row": row, "minus": minus, "metrics": found})
    return {"rows": rows, "differences": pairs}


def _estimate(mean: float, draws: np.ndarray, level: float) -> Estimate:
    low, high = interval(draws, level)
    return {"mean": mean, "low": low, "high": high}


def _average(
    entries: Sequence[Mapping[str, Any]],
    draws: Sequence[Mapping[str, Mapping[str, np.ndarray]]],
    differences: Sequence[tuple[str, str]],
    level: float,
) -> dict[str, Any]:
    shared = [row for row in entries[0]["rows"] if all(row in entry["rows"] for entry in entries)]
    metrics = list(entries[0]["rows"][shared[0]]) if shared else []
    means = {r: {m: float(np.mean([e["rows"][r][m]["mean"] for e in entries])) for m in metrics} for r in shared}
    drawn = {r: {m: np.mean([d[r][m] for d in draws], axis=0) for m in metrics} for r in shared}
    facts = {
        "name": AVERAGE,
        "queries": sum(entry["queries"] for entry in entries),
        "documents": sum(entry["documents"] for entry in entries),
        "ranking": None,
        "seconds": {},
    }
    return facts | _figures(means, drawn, differences, level)


def markdown(summary: Mapping[str, Any]) -> str:
    """A table per benchmark: rows by metrics, "mean [low, high]"; then the differences, a star where 0 is outside."""
    level = f"{100 * summary['level']:g} %"
    parts = []
    for entry in summary["benchmarks"]:
        metrics = summary["metrics"]
        head = f"{entry['queries']} queries, {entry['documents']} documents"
        head += f", {entry['ranking']} ranking" if entry["ranking"] else ""
        lines = [f"### {entry['name']} ({head})", "", "| row | " + " | ".join(metrics) + " |"]
        lines.append("|---|" + "---|" * len(metrics))
        for row, figures in entry["rows"].items():
            lines.append(f"| {row} | " + " | ".join(_cell(figures[m]) for m in metrics) + " |")
        for pair in entry["differences"]:
            cells = " | ".join(_cell(pair["metrics"][m], signed=True) for m in metrics)
            lines.append(f"| {pair['row']} − {pair['minus']} | {cells} |")
        parts.append("\n".join(lines))
    parts.append(f"Brackets: {level} bootstrap interval over queries (paired for differences); * = it excludes 0.")
    return "\n\n".join(parts) + "\n"


def _cell(figure: Estimate, *, signed: bool = False) -> str:
    sign = "+" if signed else ""
    text = f"{figure['mean']:{sign}.3f} [{figure['low']:{sign}.3f}, {figure['high']:{sign}.3f}]"
    return text + " *" if signed and excludes_zero(figure) else text


def excludes_zero(figure: Estimate) -> bool:
    """Whether the interval lies on one side of 0."""
    return figure["low"] > 0 or figure["high"] < 0


def plot(summary: Mapping[str, Any], path: str | Path) -> None:
    """Bars of every row, grouped by metric, with the intervals as error bars; one panel per benchmark."""
    entries, metrics = summary["benchmarks"], summary["metrics"]
    names = list(dict.fromkeys(row for entry in entries for row in entry["rows"]))
    colours = {row: colormaps["tab10"](i % 10) for i, row in enumerate(names)}
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
    figure.savefig(path, dpi=150)


def write(summary: Mapping[str, Any], folder: str | Path) -> dict[str, Path]:
    """results.json, results.md and results.png in the folder (made if missing, overwritten if there): their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {kind: folder / f"results.{kind}" for kind in ("json", "md", "png")}
    paths["json"].write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    paths["md"].write_text(markdown(summary), encoding="utf-8")
    plot(summary, paths["png"])
    return paths
