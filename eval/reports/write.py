"""The files of a report."""

from __future__ import annotations

from pathlib import Path

from eval.reports import plots
from eval.reports.report import Report
from eval.reports.results_file import NAME, write_results
from eval.reports.tables import markdown
from smart_jax.files import write_whole_text


def write(report: Report, folder: str | Path) -> dict[str, Path]:
    """Writes results.json, results.md and the plots of `eval.reports.plots` to the folder.

    The folder is made if it is missing; files that are there are overwritten.

    Returns:
      Their paths, by what they are.

    Example:
      >>> import tempfile
      >>> import numpy as np
      >>> from eval.methods import Result
      >>> from eval.reports import summarise
      >>> values = {"bm25": {"hit@1": np.array([1.0, 0.0])}}
      >>> report = summarise([Result("pages", ["q0", "q1"], 9, False, values, seconds={})])
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     sorted(path.name for path in write(report, folder).values())
      ['results.json', 'results.md', 'results.png']
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {"json": folder / NAME, "md": folder / "results.md"}
    write_results(report, paths["json"])
    write_whole_text(paths["md"], markdown(report))
    return paths | plots.write(report, folder)
