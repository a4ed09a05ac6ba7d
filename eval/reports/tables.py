"""A report as Markdown tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from eval.reports.report import AverageReport, BenchmarkReport, GroupReport, Report


def markdown(report: Report) -> str:
    """Returns tables as text, figures as "mean [low, high]", differences with a star where 0 is outside.

    There is one table of each group: benchmarks by methods, in the primary metric, and what is published; then one of
    each benchmark and of the average: methods by metrics. Benchmarks that failed are named last.

    Example:
      >>> from eval.reports import Failure
      >>> report = Report(0.95, 2000, ["mrr"], benchmarks=[], failed=[Failure("pages", "ValueError: empty")])
      >>> print(markdown(report))  # doctest: +ELLIPSIS
      ### 1 benchmarks failed
      <BLANKLINE>
      - pages: ValueError: empty
      <BLANKLINE>
      Brackets: 95 % bootstrap interval over queries ...
    """
    benchmarks = {benchmark.name: benchmark for benchmark in report.benchmarks}
    parts = [_group_table(group, benchmarks) for group in report.groups]
    parts += [_table(benchmark, report.metrics) for benchmark in report.benchmarks]
    if report.average is not None:
        parts.append(_table(report.average, report.metrics))
    if report.failed:
        lines = [f"- {failure.name}: {failure.error}" for failure in report.failed]
        parts.append("\n".join([f"### {len(lines)} benchmarks failed", "", *lines]))
    level = f"{100 * report.level:g} %"
    parts.append(f"Brackets: {level} bootstrap interval over queries (paired for differences); * = it excludes 0.")
    return "\n\n".join(parts) + "\n"


def _table(of: BenchmarkReport | AverageReport, metrics: Sequence[str]) -> str:
    head = f"{of.queries} queries, {of.documents} documents"
    head += f", {of.ranking} ranking" if isinstance(of, BenchmarkReport) else ""
    lines = [f"### {of.name} ({head})", "", table_line(["row", *metrics]), "|---" * (1 + len(metrics)) + "|"]
    for method, estimates in of.estimates.items():
        lines.append(table_line([method, *(str(estimates[metric]) for metric in metrics)]))
    for pair, gains in of.differences.items():
        lines.append(table_line([str(pair), *(gains[metric].signed() for metric in metrics)]))
    return "\n".join(lines)


def _group_table(group: GroupReport, benchmarks: Mapping[str, BenchmarkReport]) -> str:
    lines = [
        f"### {group.name}: {len(group.benchmarks)} of {len(group.benchmarks) + len(group.missing)} benchmarks",
        "",
    ]
    if group.benchmarks:
        lines += [*_group_lines(group, benchmarks), ""]
    lines += [f"- {pair}, average: {gain.signed()}" for pair, gain in group.differences.items()]
    if group.missing:
        lines.append(f"- missing: {', '.join(group.missing)}")
    for entry in group.published:
        claim = "" if entry.claim is None else f" states: {entry.claim}"
        lines.append(f"- {entry.model}: {entry.source} ({entry.date}){claim}")
    return "\n".join(lines).rstrip()


def _group_lines(group: GroupReport, benchmarks: Mapping[str, BenchmarkReport]) -> list[str]:
    """Returns the lines of a group's table: its benchmarks, then their average."""
    methods = list(dict.fromkeys(method for name in group.benchmarks for method in benchmarks[name].estimates))
    published = [entry for entry in group.published if entry.figures or entry.average is not None]
    head = ["benchmark", "metric", *methods, *(f"{entry.model}, published" for entry in published)]
    lines = [table_line(head), "|---" * len(head) + "|"]
    for name, metric in group.benchmarks.items():
        estimates = benchmarks[name].estimates
        cells = [str(estimates[method][metric]) if method in estimates else "" for method in methods]
        lines.append(table_line([name, metric, *cells, *(_share(entry.figures.get(name)) for entry in published)]))
    cells = [str(group.estimates[method]) if method in group.estimates else "" for method in methods]
    title = f"average of {len(group.benchmarks)}"
    return [*lines, table_line([title, "", *cells, *(_share(entry.average) for entry in published)])]


def _share(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.3f}"


def table_line(cells: Sequence[str]) -> str:
    """Returns a line of a table.

    Example:
      >>> table_line(["late", "0.5"])
      '| late | 0.5 |'
    """
    return f"| {' | '.join(cells)} |"
