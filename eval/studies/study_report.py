"""The study as JSON, as one long CSV table, as Markdown tables and as plots."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.reports.report import cell

COLOURS = {"float16": "tab:blue", "int8": "tab:orange", "binary": "tab:green", "binary both": "tab:red"}
MARKERS = {"": "o", "pool": "v", "runs": "s", "grid": "D"}
CENTRED = " centred"  # ends the name of a layer whose tokens' mean was subtracted
ON_FRONT = "•"
Table = Sequence[Mapping[str, Any]]  # rows as `eval.study` makes them


def pareto(sizes: Sequence[float], qualities: Sequence[float]) -> list[bool]:
    """Which points no other beats: at most as large and better, or smaller and at least as good."""
    return [
        not any(
            (s <= size and q > quality) or (s < size and q >= quality) for s, q in zip(sizes, qualities, strict=True)
        )
        for size, quality in zip(sizes, qualities, strict=True)
    ]


def front(table: Table, metric: str) -> list[bool]:
    """Which rows of the storage table are on the Pareto front of bytes and the hybrid's figure."""
    return pareto([row["bytes"] for row in table], [row["hybrid"][metric]["mean"] for row in table])


def markdown(summary: Mapping[str, Any]) -> str:
    """A table of each section of each subject: "first metric / second ...", and differences in the first."""
    metrics = summary["metrics"]
    parts = []
    for subject in summary["subjects"]:
        counts = {f"{b['queries']} queries, {b['pages']} pages" for b in subject["benchmarks"]}
        names = ", ".join(b["name"] for b in subject["benchmarks"])
        parts.append(f"## {subject['name']}\n\n{names} ({'; '.join(sorted(counts))} each)")
        for name, table in subject["sections"].items():
            if len(table) == 1:  # nothing to compare
                continue
            marks = front(table, metrics[0]) if name == "storage" else [False] * len(table)
            parts.append(f"### {name}\n\n{_table(table, metrics, marks)}")
    parts.append(
        f"Figures: {' / '.join(metrics)}, averaged over the benchmarks. Brackets: {100 * summary['level']:g} % paired "
        f"bootstrap interval over queries of the difference in {metrics[0]} from the default; * = it excludes 0. "
        f"{ON_FRONT} = on the Pareto front of bytes and the hybrid's {metrics[0]}. Bytes are those of a page's tokens, "
        "scales, offset and pooled vector."
    )
    return "\n\n".join(parts) + "\n"


def _table(table: Table, metrics: Sequence[str], marks: Sequence[bool]) -> str:
    kinds = [kind for kind in ("late", "hybrid") if any(kind in row for row in table)]
    facts = [fact for fact in table[-1] if fact != "name" and not _is_kind(table[-1][fact])]
    lines = ["| | " + " | ".join([*facts, *(head for kind in kinds for head in (kind, "difference"))]) + " |"]
    lines.append("|---" * (1 + len(facts) + 2 * len(kinds)) + "|")
    for row, mark in zip(table, marks, strict=True):
        cells = [f"{row['name']} {ON_FRONT}" if mark else row["name"], *(_number(row[fact]) for fact in facts)]
        for kind in kinds:
            figures = row.get(kind)
            cells.append("" if figures is None else " / ".join(f"{figures[m]['mean']:.3f}" for m in metrics))
            difference = (figures or {}).get(metrics[0], {}).get("difference")
            same = difference is None or not (difference["low"] or difference["high"])
            cells.append("" if difference is None or same else cell(difference, signed=True))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _is_kind(value: Any) -> bool:
    return isinstance(value, Mapping)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def write(summary: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """study.json, study.csv, study.md and a plot of each section in the folder (made if missing): their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("study.json", "study.csv", "study.md", "storage.png", "late_weight.png", "layers.png")
    paths = {name: folder / name for name in names}
    paths["study.json"].write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    paths["study.md"].write_text(markdown(summary), encoding="utf-8")
    _write_csv(summary, paths["study.csv"])
    plot_storage(summary, paths["storage.png"])
    plot_late_weight(summary, paths["late_weight.png"])
    plot_layers(summary, paths["layers.png"])
    return paths


def _write_csv(summary: Mapping[str, Any], path: Path) -> None:
    columns = ("mean", "low", "high")
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        heads = [*columns, *(f"difference_{name}" for name in columns)]
        writer.writerow(["subject", "section", "row", "bytes", "kind", "metric", *heads])
        for subject in summary["subjects"]:
            for section, table in subject["sections"].items():
                for row in table:
                    for kind in filter(lambda key: _is_kind(row[key]), row):
                        for metric, figure in row[kind].items():
                            start = [subject["name"], section, row["name"], row.get("bytes", ""), kind, metric]
                            difference = figure.get("difference", {})
                            values = [*(figure[c] for c in columns), *(difference.get(c, "") for c in columns)]
                            writer.writerow([*start, *values])


def plot_storage(summary: Mapping[str, Any], path: Path) -> None:
    """Quality against bytes of a page, one panel a subject, with the Pareto front."""
    metric = summary["metrics"][0]
    figure, axes = _panels(summary, width=5.2, height=4.4)
    for axis, subject in zip(axes, summary["subjects"], strict=True):
        table = subject["sections"]["storage"]
        chosen = sorted(
            (row["bytes"], row["hybrid"][metric]["mean"])
            for row, on in zip(table, front(table, metric), strict=True)
            if on
        )
        axis.plot(*zip(*chosen, strict=True), color="0.6", lw=1, zorder=1, drawstyle="steps-post", label="Pareto front")
        for row in table:
            bits, tokens = _style(row["name"])
            at = row["bytes"], row["hybrid"][metric]["mean"]
            if row["tokens"] == 0:
                axis.plot(*at, marker="*", color="black", ms=9, ls="", label="pooled vector only")
            else:
                axis.plot(*at, marker=MARKERS[tokens], color=COLOURS[bits], ms=5, ls="", alpha=0.85)
        axis.set_xscale("log")
        axis.set_xlabel("bytes a page (tokens, scales, offset, pooled vector)")
        axis.set_ylabel(f"hybrid {metric}")
        axis.grid(alpha=0.25)
    keys = [(name, "o", colour) for name, colour in COLOURS.items()]
    keys += [(name or "all tokens", marker, "0.5") for name, marker in MARKERS.items()]
    for name, marker, colour in keys:
        axes[-1].plot([], [], ls="", ms=5, label=name, marker=marker, color=colour)
    axes[-1].legend(fontsize=7, frameon=False, loc="lower right", ncols=2)
    figure.savefig(path, dpi=110)


def _style(name: str) -> tuple[str, str]:
    """The precision and the token reduction of a setting."""
    steps = name.split(" + ")
    bits = steps[-1] if steps[-1] in COLOURS else "float16"
    return bits, next((kind for step in steps if (kind := step.partition(" ")[0]) in MARKERS), "")


def plot_late_weight(summary: Mapping[str, Any], path: Path) -> None:
    """The hybrid's quality along the late weight, one line a subject, with its interval."""
    metric = summary["metrics"][0]
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axis = figure.subplots()
    for subject in summary["subjects"]:
        rows = [row for row in subject["sections"]["late weight"] if _is_number(row["name"])]
        weights = [float(row["name"]) for row in rows]
        mean, low, high = (np.array([row["hybrid"][metric][c] for row in rows]) for c in ("mean", "low", "high"))
        (line,) = axis.plot(weights, mean, marker=".", label=subject["name"])
        axis.fill_between(weights, low, high, color=line.get_color(), alpha=0.12, lw=0)
    axis.set_xlabel("late weight (pooled weight 1)")
    axis.set_ylabel(metric)
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def plot_layers(summary: Mapping[str, Any], path: Path) -> None:
    """Late and hybrid by hidden layer, one panel a subject, beside the pooled vector's figure."""
    metric = summary["metrics"][0]
    figure, axes = _panels(summary, width=4.4, height=3.6)
    for axis, subject in zip(axes, summary["subjects"], strict=True):
        table = subject["sections"]["layers"]
        plain = [row for row in table if not row["name"].endswith(CENTRED)]
        numbers = [int(row["name"]) for row in plain]
        centred = [row for row in table if row["name"].endswith(CENTRED)]
        for kind, colour in (("late", "tab:blue"), ("hybrid", "tab:orange")):
            for rows, style, note in ((plain, "-", ""), (centred, "--", CENTRED)):
                values = [row[kind][metric]["mean"] for row in rows]
                axis.plot(numbers, values, style, marker=".", color=colour, label=kind + note)
        pooled = subject["sections"]["storage"][0]["hybrid"][metric]["mean"]
        axis.axhline(pooled, color="black", lw=0.8, ls=":", label="pooled")
        axis.set_xticks(numbers)
        axis.set_xlabel("hidden layer (-1 = after the final norm)")
        axis.set_ylabel(metric)
        axis.grid(alpha=0.25)
    axes[0].legend(fontsize=7, frameon=False)
    figure.savefig(path, dpi=110)


def _panels(summary: Mapping[str, Any], *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A row of axes, one a subject."""
    subjects = summary["subjects"]
    figure = Figure(figsize=(width * len(subjects), height), layout="constrained")
    axes = list(figure.subplots(1, len(subjects), squeeze=False)[0])
    for axis, subject in zip(axes, subjects, strict=True):
        axis.set_title(subject["name"], fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes
