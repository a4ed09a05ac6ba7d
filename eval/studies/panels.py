"""Axes that the plots of the studies share."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def panels(titles: Sequence[str], *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Returns a figure with a row of axes, one of each title; width and height of each are in inches."""
    figure = Figure(figsize=(width * len(titles), height), layout="constrained")
    axes = list(figure.subplots(1, len(titles), squeeze=False)[0])
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=10)
    return figure, axes


def finish(axis: Axes, *, x: str | None = None, y: str) -> None:
    """Labels an axis, and gives it a grid."""
    if x is not None:
        axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
