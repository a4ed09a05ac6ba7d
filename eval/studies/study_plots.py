"""Plots of the study: quality against storage, late weight and hidden layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.reports import save_figure
from eval.studies.lines import Line, SubjectReport, front
from eval.studies.panels import finish, panels
from eval.studies.settings import SEPARATOR, UNREDUCED

COLOURS = {UNREDUCED: "tab:blue", "int8": "tab:orange", "binary": "tab:green", "binary both": "tab:red"}
MARKERS = {"": "o", "pool": "v", "runs": "s", "grid": "D"}
CENTRED = " centred"  # ends the name of a layer whose tokens' mean was subtracted


def plot_storage(subjects: Sequence[SubjectReport], metric: str, path: Path) -> None:
    """Draws quality against bytes of a page, one panel a subject, with the Pareto front."""
    figure, axes = panels([subject.name for subject in subjects], width=5.2, height=4.4)
    for axis, subject in zip(axes, subjects, strict=True):
        _draw_storage(axis, subject.sections["storage"], metric)
        axis.set_xscale("log")
        finish(axis, x="bytes a page (tokens, scales, offset, pooled vector)", y=f"hybrid {metric}")
    keys = [(name, "o", colour) for name, colour in COLOURS.items()]
    keys += [(name or "all tokens", marker, "0.5") for name, marker in MARKERS.items()]
    for name, marker, colour in keys:
        axes[-1].plot([], [], ls="", ms=5, label=name, marker=marker, color=colour)
    axes[-1].legend(fontsize=7, frameon=False, loc="lower right", ncols=2)
    save_figure(figure, path)


def _draw_storage(axis: Axes, lines: Sequence[Line], metric: str) -> None:
    points = [(line.facts["bytes"], line.mean("hybrid", metric)) for line in lines]
    best = sorted(point for point, on in zip(points, front(lines, metric), strict=True) if on)
    axis.plot(*zip(*best, strict=True), color="0.6", lw=1, zorder=1, drawstyle="steps-post", label="Pareto front")
    for line, point in zip(lines, points, strict=True):
        if line.facts["tokens"] == 0:
            axis.plot(*point, marker="*", color="black", ms=9, ls="", label="pooled vector only")
        else:
            bits, tokens = _style(line.name)
            axis.plot(*point, marker=MARKERS[tokens], color=COLOURS[bits], ms=5, ls="", alpha=0.85)


def _style(name: str) -> tuple[str, str]:
    """Returns the precision and the token reduction of a setting."""
    steps = name.split(SEPARATOR)
    bits = steps[-1] if steps[-1] in COLOURS else UNREDUCED
    return bits, next((kind for step in steps if (kind := step.partition(" ")[0]) in MARKERS), "")


def plot_late_weight(subjects: Sequence[SubjectReport], metric: str, path: Path) -> None:
    """Draws the hybrid's quality along the late weight, one line a subject, with its interval."""
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axis = figure.subplots()
    for subject in subjects:
        lines = [line for line in subject.sections["late weight"] if _is_number(line.name)]
        weights = [float(line.name) for line in lines]
        shown = [line.scores["hybrid"][metric].estimate for line in lines]
        (drawn,) = axis.plot(weights, [estimate.mean for estimate in shown], marker=".", label=subject.name)
        bounds = [estimate.low for estimate in shown], [estimate.high for estimate in shown]
        axis.fill_between(weights, *bounds, color=drawn.get_color(), alpha=0.12, lw=0)
    finish(axis, x="late weight (pooled weight 1)", y=metric)
    axis.legend(fontsize=8, frameon=False)
    save_figure(figure, path)


def _is_number(text: str) -> bool:
    return text.replace(".", "", 1).isdigit()


def plot_layers(subjects: Sequence[SubjectReport], metric: str, path: Path) -> None:
    """Draws late and hybrid by hidden layer, one panel a subject, beside the pooled vector's figure."""
    figure, axes = panels([subject.name for subject in subjects], width=4.4, height=3.6)
    for axis, subject in zip(axes, subjects, strict=True):
        lines = subject.sections["layers"]
        plain = [line for line in lines if not line.name.endswith(CENTRED)]
        centred = [line for line in lines if line.name.endswith(CENTRED)]
        numbers = [int(line.name) for line in plain]
        for kind, colour in (("late", "tab:blue"), ("hybrid", "tab:orange")):
            for shown, style, note in ((plain, "-", ""), (centred, "--", CENTRED)):
                values = [line.mean(kind, metric) for line in shown]
                axis.plot(numbers, values, style, marker=".", color=colour, label=kind + note)
        pooled = subject.sections["storage"][0].mean("hybrid", metric)
        axis.axhline(pooled, color="black", lw=0.8, ls=":", label="pooled")
        axis.set_xticks(numbers)
        finish(axis, x="hidden layer (-1 = after the final norm)", y=metric)
    axes[0].legend(fontsize=7, frameon=False)
    save_figure(figure, path)
