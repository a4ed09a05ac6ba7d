"""Figures in files: readable on a light and on a dark ground, with labels that do not lie upon each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from adjustText import adjust_text
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.spines import Spine
from matplotlib.text import Text

DPI = 150
INK = "0.5"  # as far from white as from black


def save(figure: Figure, path: Path, dpi: int = DPI) -> None:
    """Writes a figure without a ground of its own; what is black in it becomes grey.

    Args:
      figure: of matplotlib.
      path: a PNG file.
      dpi: pixels an inch.

    Example:
      >>> import tempfile
      >>> figure = Figure(figsize=(2, 1))
      >>> line = figure.subplots().plot([1, 2], color="black")
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save(figure, Path(folder) / "line.png")
    """
    for axis in figure.axes:
        axis.tick_params(which="both", color=INK)  # of those, too, that are made as the figure is drawn
    for artist in figure.findobj(lambda each: isinstance(each, Line2D | Text | LineCollection | Spine)):
        for part in ("color", "edgecolor", "markeredgecolor"):
            if (read := getattr(artist, f"get_{part}", None)) is not None and _is_black(read()):
                getattr(artist, f"set_{part}")(INK)
    figure.savefig(path, dpi=dpi, transparent=True)


def _is_black(colour: Any) -> bool:
    colours = to_rgba_array(colour)
    return len(colours) > 0 and bool(np.all(colours[:, :3] == 0))


def label_points(axis: Axes, points: Sequence[tuple[str, float, float]], fontsize: float = 5) -> None:
    """Writes the names of points beside them, moved apart where they would lie upon each other."""
    FigureCanvasAgg(axis.figure)  # type: ignore[arg-type]  # measures the texts
    texts = [axis.text(x, y, name, fontsize=fontsize) for name, x, y in points]
    at = {"x": [x for _, x, _ in points], "y": [y for _, _, y in points]}
    how: dict[str, Any] = {"iter_lim": 1000, "arrowprops": {"arrowstyle": "-", "color": INK, "lw": 0.4}}
    adjust_text(texts, ax=axis, **at, **how)
