"""Reports of results: tables with intervals, groups of benchmarks, published figures, plots, leaderboard files.

`leaderboard` and `published` are modules of public functions.
"""

from eval.reports import leaderboard, published
from eval.reports.comparison import Comparison, compare
from eval.reports.comparison_tables import markdown as comparison_markdown
from eval.reports.drawing import save as save_figure
from eval.reports.groups import Group, check_groups
from eval.reports.published import Published
from eval.reports.report import (
    AverageReport,
    BenchmarkReport,
    Failure,
    GroupReport,
    Pair,
    PublishedFigures,
    Report,
    summarise,
)
from eval.reports.results_file import read_results
from eval.reports.tables import markdown, table_line
from eval.reports.write import write

__all__ = [
    "AverageReport",
    "BenchmarkReport",
    "Comparison",
    "Failure",
    "Group",
    "GroupReport",
    "Pair",
    "Published",
    "PublishedFigures",
    "Report",
    "check_groups",
    "compare",
    "comparison_markdown",
    "leaderboard",
    "markdown",
    "published",
    "read_results",
    "save_figure",
    "summarise",
    "table_line",
    "write",
]
