"""The files of a report."""

from __future__ import annotations

from pathlib import Path

from eval.reports import plots
from eval.reports.report import Report
from eval.reports.results_file import NAME, write_results
from eval.reports.tables import markdown


def write(report: Report, folder: str | Path) -> dict[str, Path]:
    """Writes results.json, results.md and the plots of `eval.reports.plots` to the folder.

    The folder is made if it is missing; files that are there are overwritten.

    Returns:
      Their paths, by what they are.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {"json": folder / NAME, "md": folder / "results.md"}
    write_results(report, paths["json"])
    paths["md"].write_text(markdown(report), encoding="utf-8")
    return paths | plots.write(report, folder)
