"""A comparison of two reports as Markdown tables."""

from __future__ import annotations

from eval.reports.comparison import Comparison, GroupComparison
from eval.reports.tables import table_line


def markdown(comparison: Comparison) -> str:
    """Returns tables of "a → b, difference [low, high]".

    There is one of each group and one of each benchmark; what only one side has is listed below them.

    Example:
      >>> from eval.reports.comparison import Unmatched
      >>> nothing = Unmatched([], [])
      >>> print(markdown(Comparison(0.95, 2000, ["ndcg@5"], [], None, [], nothing, Unmatched(["mrr"], []), nothing)))
      Brackets: 95 % paired bootstrap interval over queries; * = it excludes 0.
      <BLANKLINE>
      - metrics that only a has: mrr
      <BLANKLINE>
    """
    parts = [_group_table(group) for group in comparison.groups]
    for entry in (*comparison.benchmarks, *([comparison.average] if comparison.average else [])):
        head = table_line(["b − a", *comparison.metrics])
        lines = [f"### {entry.name} ({entry.queries} queries)", "", head, "|---" * (1 + len(comparison.metrics)) + "|"]
        for method, changes in entry.changes.items():
            lines.append(table_line([method, *(str(changes[metric]) for metric in comparison.metrics)]))
        unmatched = entry.unmatched.lines("row")
        parts.append("\n".join([*lines, *([""] if unmatched else []), *unmatched]))
    level = f"{100 * comparison.level:g} %"
    parts.append(f"Brackets: {level} paired bootstrap interval over queries; * = it excludes 0.")
    unmatched = comparison.unmatched_groups.lines("group") if comparison.groups else []
    unmatched += comparison.unmatched_benchmarks.lines("benchmark") + comparison.unmatched_metrics.lines("metric")
    return "\n\n".join([*parts, "\n".join(unmatched)] if unmatched else parts) + "\n"


def _group_table(group: GroupComparison) -> str:
    metrics = list(dict.fromkeys(group.benchmarks.values()))
    lines = [table_line([method, str(change)]) for method, change in group.changes.items()]
    table = (
        [table_line(["b − a", " or ".join(metrics)]), "|---|---|", *lines] if lines else ["nothing that both have run"]
    )
    unmatched = group.unmatched.lines("benchmark")
    head = [f"### {group.name}: average of {len(group.benchmarks)}", ""]
    return "\n".join([*head, *table, *([""] if unmatched else []), *unmatched])
