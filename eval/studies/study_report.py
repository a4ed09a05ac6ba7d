"""The study as JSON, as one long CSV table, as Markdown tables and as plots."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.ranking import Estimate
from eval.reports import table_line
from eval.studies import study_plots
from eval.studies.lines import Compared, Line, SubjectReport, front

ON_FRONT = "•"
PLOTS = {
    "storage": study_plots.plot_storage,
    "late weight": study_plots.plot_late_weight,
    "layers": study_plots.plot_layers,
}


@dataclasses.dataclass(frozen=True)
class StudyReport:
    """All figures of a study.

    Attributes:
      metrics: names; differences and plots are of the first.
      level: of the bootstrap.
      subjects: what was studied.
      config, environment: settings, devices and versions.
      seconds: wall time.

    Example:
      >>> StudyReport(["ndcg@5"], 0.95, subjects=[], config={}, environment={}, seconds=1.0).to_json()["subjects"]
      []
    """

    metrics: Sequence[str]
    level: float
    subjects: Sequence[SubjectReport]
    config: Mapping[str, Any]  # values of JSON, here and below
    environment: Mapping[str, Any]
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Returns the report as an object of JSON; a line's facts and kinds stand beside its name."""
        return {
            "metrics": self.metrics,
            "level": self.level,
            "subjects": [
                {
                    "name": subject.name,
                    "benchmarks": [dataclasses.asdict(size) for size in subject.benchmarks],
                    "sections": {
                        name: [_line_to_json(line) for line in lines] for name, lines in subject.sections.items()
                    },
                }
                for subject in self.subjects
            ],
            "config": self.config,
            "environment": self.environment,
            "seconds": self.seconds,
        }


def _line_to_json(line: Line) -> dict[str, Any]:
    scores = {kind: {m: _figure(figure) for m, figure in by_metric.items()} for kind, by_metric in line.scores.items()}
    return {"name": line.name, **line.facts, **scores}


def _figure(figure: Compared) -> dict[str, Any]:
    difference = {} if figure.difference is None else {"difference": dataclasses.asdict(figure.difference)}
    return dataclasses.asdict(figure.estimate) | difference


def markdown(report: StudyReport) -> str:
    """Returns a table of each section of each subject: "first metric / second ...", and differences in the first.

    Example:
      >>> report = StudyReport(["ndcg@5", "mrr"], 0.95, subjects=[], config={}, environment={}, seconds=1.0)
      >>> markdown(report).split(",")[0]
      'Figures: ndcg@5 / mrr'
    """
    first, parts = report.metrics[0], []
    for subject in report.subjects:
        counts = {f"{size.queries} queries, {size.pages} pages" for size in subject.benchmarks}
        names = ", ".join(size.name for size in subject.benchmarks)
        parts.append(f"## {subject.name}\n\n{names} ({'; '.join(sorted(counts))} each)")
        for name, lines in subject.sections.items():
            if len(lines) == 1:  # nothing to compare
                continue
            marks = front(lines, first) if name == "storage" else [False] * len(lines)
            parts.append(f"### {name}\n\n{_table(lines, report.metrics, marks)}")
    parts.append(
        f"Figures: {' / '.join(report.metrics)}, averaged over the benchmarks. Brackets: {100 * report.level:g} % "
        f"paired bootstrap interval over queries of the difference in {first} from the default; * = it excludes 0. "
        f"{ON_FRONT} = on the Pareto front of bytes and the hybrid's {first}. Bytes are those of a page's tokens, "
        "scales, offset and pooled vector."
    )
    return "\n\n".join(parts) + "\n"


def _table(lines: Sequence[Line], metrics: Sequence[str], marks: Sequence[bool]) -> str:
    kinds = [kind for kind in ("late", "hybrid") if any(kind in line.scores for line in lines)]
    facts = list(lines[-1].facts)
    heads = ["", *facts, *(head for kind in kinds for head in (kind, "difference"))]
    rows = [f"| | {' | '.join(heads[1:])} |", "|---" * len(heads) + "|"]
    for line, mark in zip(lines, marks, strict=True):
        cells = [f"{line.name} {ON_FRONT}" if mark else line.name, *(_number(line.facts[fact]) for fact in facts)]
        for kind in kinds:
            figures = line.scores.get(kind)
            cells.append("" if figures is None else " / ".join(f"{figures[m].estimate.mean:.3f}" for m in metrics))
            cells.append("" if figures is None else _difference(figures[metrics[0]].difference))
        rows.append(table_line(cells))
    return "\n".join(rows)


def _difference(difference: Estimate | None) -> str:
    """Returns the text of a difference, empty where it is that of the default from itself."""
    same = difference is None or not (difference.low or difference.high)
    return "" if difference is None or same else difference.signed()


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def write(report: StudyReport, folder: Path) -> dict[str, Path]:
    """Writes study.json, study.csv, study.md and plots to the folder (made if missing), and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / name for name in ("study.json", "study.csv", "study.md")}
    paths["study.json"].write_text(json.dumps(report.to_json(), indent=1) + "\n", encoding="utf-8")
    paths["study.md"].write_text(markdown(report), encoding="utf-8")
    _write_csv(report, paths["study.csv"])
    for section, plot in PLOTS.items():
        if all(section in subject.sections for subject in report.subjects):
            path = folder / f"{section.replace(' ', '_')}.png"
            plot(report.subjects, report.metrics[0], path)
            paths[path.name] = path
    return paths


def _write_csv(report: StudyReport, path: Path) -> None:
    columns = [field.name for field in dataclasses.fields(Estimate)]
    heads = ["subject", "section", "row", "bytes", "kind", "metric", *columns, *(f"difference_{c}" for c in columns)]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(heads)
        for subject in report.subjects:
            for section, lines in subject.sections.items():
                for line in lines:
                    start = [subject.name, section, line.name, line.facts.get("bytes", "")]
                    writer.writerows([*start, *cells] for cells in _csv_cells(line, len(columns)))


def _csv_cells(line: Line, count: int) -> list[list[Any]]:
    """Returns kind, metric, estimate and difference of each figure of a line."""
    return [
        [
            *(kind, metric, *dataclasses.astuple(figure.estimate)),
            *(dataclasses.astuple(figure.difference) if figure.difference else [""] * count),
        ]
        for kind, by_metric in line.scores.items()
        for metric, figure in by_metric.items()
    ]
