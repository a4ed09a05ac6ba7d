"""The demo's report, one HTML file: what late interaction adds, questions with their evidence, what training gained.

    python -m recipes.demo --run build/demo
    python -m recipes.demo --run build/demo --pdf manual.pdf --question "how much memory do I need"

all-MiniLM-L6-v2, untrained, answers LIMIT's queries, and questions to the text of a PDF: yours, or a manual of modules
of the standard library, which is written here. The embedded model, with the adapter that was trained, is asked pictures
of held-out pages; the questions are the first ones of the evaluation, not chosen.
"""

from __future__ import annotations

import argparse
import base64
import html
import importlib
import pydoc
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

import smart_jax
from recipes.tiny import Canvas, held_out, make_benchmark
from smart_jax.index import Hit

PAGES, QUESTIONS = 100, 4
MODULES = ("csv", "difflib", "random", "shutil", "statistics", "textwrap")
ASKED = ("break a long paragraph into lines", "the middle value of data", "the dialect of a file with separated values")
LINES, MOST_PAGES, COLUMNS = 46, 6, 88  # of a page, of a module, of a line
HEIGHT, WIDTH = 128, 256  # of pages, in pixels
WEIGHTS = {"pooled": (1.0, 0.0), "late": (0.0, 1.0), "hybrid": (1.0, 1.0)}
HEAD = """<!DOCTYPE html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><title>smart_jax: the demo</title>
<style>
body{font:16px/1.6 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;font-size:.9em;display:block;overflow-x:auto}
td,th{padding:.2em .8em;text-align:left;border-bottom:1px solid rgba(128,128,128,.4)}
td,th{white-space:nowrap}
img{max-width:100%}
figure.smart-evidence{max-width:38rem}
</style>
<h1>smart_jax: the demo</h1>
"""


class Question(NamedTuple):
    """A question and the name of the file that it was made from; None = nobody knows."""

    text: str
    file: str | None = None


def write_pages(folder: Path, count: int = PAGES) -> list[Question]:
    """Writes held-out pages as pictures and returns a question for each.

    Args:
      folder: that is emptied.
      count: number of pages.
    """
    canvas = Canvas(HEIGHT, WIDTH, "grid")
    benchmark = make_benchmark(held_out(), "wording", canvas, count=count)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    questions = []
    for name, page, query in zip(benchmark.corpus_ids, benchmark.corpus, benchmark.queries, strict=True):
        page.save(folder / f"{name}.png")
        questions.append(Question(query, f"{name}.png"))
    return questions


def write_manual(path: Path, modules: Sequence[str] = MODULES) -> Path:
    """Writes the documentation of modules of the standard library as a PDF with a text layer.

    Args:
      path: of the PDF.
      modules: names; the first pages of each.
    """
    with rc_context({"pdf.fonttype": 42, "font.family": "DejaVu Sans Mono"}), PdfPages(path) as pdf:
        for name in modules:
            text = pydoc.plain(pydoc.render_doc(importlib.import_module(name)))
            lines = [
                row for line in text.splitlines() for row in textwrap.wrap(line, COLUMNS, drop_whitespace=False) or [""]
            ]
            for start in range(0, min(len(lines), MOST_PAGES * LINES), LINES):
                figure = Figure(figsize=(8.27, 11.69))  # A4, in inches
                page = "\n".join(lines[start : start + LINES])
                figure.text(0.07, 0.95, page, fontsize=8.5, verticalalignment="top", parse_math=False)
                pdf.savefig(figure)
    return path


def ask(index: smart_jax.Index, question: Question) -> str:
    """Returns a question's part of the report: the rank of its page by each score, and the best page with evidence."""
    by_score: dict[str, list[Hit]] = {
        name: index.search(question.text, len(index), pooled_weight=pooled, late_weight=late)
        for name, (pooled, late) in WEIGHTS.items()
    }
    best = by_score["hybrid"][0]
    lines = [f"<h3>{html.escape(question.text)}</h3>"]
    if question.file is not None:
        ranks = {
            name: next(i for i, hit in enumerate(hits, 1) if hit.file == question.file)
            for name, hits in by_score.items()
        }
        said = ", ".join(f"{name} {rank}" for name, rank in ranks.items())
        lines.append(f"<p>Its page is, of {len(index)}, number: {said}. The best by the hybrid score:</p>")
    lines += [f"<p><code>{html.escape(best.id)}</code></p>", best.explain().html()]
    return "\n".join(lines)


def report(run: Path, pdf: Path | None = None, questions: Sequence[str] = ()) -> str:
    """Returns the report.

    Args:
      run: folder of the demo, with adapter, results and those of LIMIT in it; pages and indexes are written to it.
      pdf: a file to be asked; None = the manual.
      questions: to it; none = those to the manual.

    Raises:
      FileNotFoundError: the demo has not been run there.
    """
    parts = [HEAD, "<h2>What one vector cannot say: LIMIT, by an untrained MiniLM</h2>", *_measured(run / "limit")]
    if pdf is None:
        pdf, questions = write_manual(run / "manual.pdf"), ASKED
    parts.append(f"<h2>Questions to {html.escape(pdf.name)}</h2>")
    parts += _answers(run / "pdf_index", "minilm", None, pdf, [Question(text) for text in questions])
    made = write_pages(run / "pages")
    parts.append(f"<h2>Questions to {len(made)} pictures of pages</h2>")
    parts += _answers(run / "index", "tiny", run / "run" / "adapter", run / "pages", made[:QUESTIONS])
    return "\n".join([*parts, "<h2>What post-training gained</h2>", *_measured(run / "results")])


def _measured(results: Path) -> Iterator[str]:
    """Yields an evaluation's tables and its plot."""
    yield from _tables((results / "results.md").read_text(encoding="utf-8"))
    plot = base64.b64encode((results / "results.png").read_bytes()).decode()
    yield f'<img alt="The same as a plot" src="data:image/png;base64,{plot}">'


def _answers(
    folder: Path, model: str, adapter: Path | None, files: Path, questions: Sequence[Question]
) -> Iterator[str]:
    shutil.rmtree(folder, ignore_errors=True)
    with smart_jax.Index(folder, model=model, adapter=adapter) as index:
        added = index.add(files)
        if added.failed:
            raise ValueError(str(added))
        for question in questions:
            yield ask(index, question)


def _tables(markdown: str) -> Iterator[str]:
    """Yields the headings, tables and paragraphs of a report's Markdown as HTML."""
    rows: list[str] = []
    for line in [*markdown.splitlines(), ""]:
        if line.startswith("|"):
            cells = [html.escape(cell.strip()) for cell in line.strip("|").split("|")]
            kind = "td" if rows else "th"
            if any(cell.strip("-") for cell in cells):
                rows.append("<tr>" + "".join(f"<{kind}>{cell}</{kind}>" for cell in cells))
            continue
        if rows:
            yield f"<table>{''.join(rows)}</table>"
            rows = []
        if line:
            yield (
                f"<h3>{html.escape(line.lstrip('# '))}</h3>" if line.startswith("#") else f"<p>{html.escape(line)}</p>"
            )


def main() -> None:
    """Writes the report into the folder of the demo."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("build/demo"), help="folder of the demo")
    parser.add_argument("--pdf", type=Path, help="a PDF that is asked; without one, a manual that is written here")
    parser.add_argument("--question", action="append", default=[], help="to the PDF; may be given again")
    given = parser.parse_args()
    if bool(given.pdf) != bool(given.question):
        parser.error("--pdf and --question go together")
    path = given.run / "report.html"
    path.write_text(report(given.run, given.pdf, given.question), encoding="utf-8")
    print(f"the report, with questions and their evidence: {path}")


if __name__ == "__main__":
    main()
