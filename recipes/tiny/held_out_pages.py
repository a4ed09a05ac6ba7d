"""Benchmarks of pages: one page for each docstring that nearly fills it, and one query for each page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from eval.benchmarks import Benchmark
from recipes.tiny.canvas import Canvas
from recipes.tiny.docstrings import Docstring
from recipes.tiny.queries import KINDS, meaning_texts, wording_query

MIN_FILL = 0.8  # of the characters that a grid page holds: the least text of a benchmark's docstring
_SHORTER_BODY = 0.5  # bodies are shorter than whole docstrings, so they need to fill only this share of the least


def make_benchmark(
    docstrings: Sequence[Docstring],
    kind: str,
    canvas: Canvas,
    *,
    count: int = 500,
    seed: int = 0,
    fill: float = MIN_FILL,
    name: str | None = None,
) -> Benchmark:
    """Makes a benchmark of one page and one query for each docstring whose text nearly fills the page.

    Args:
      docstrings: held out, without near-duplicates.
      kind: of the queries: "wording" = some words of the page, "meaning" = the summary, for the page without it.
      canvas: of the pages.
      count: number of pages; all docstrings that fill a page, if there are fewer.
      seed: of the pages' order and layouts, and of the words of wording queries. The choice of the pages is the same
        for every seed if `count` takes all.
      fill: share of the page that a docstring's text must fill. Emptier pages are easier: they have fewer words to tell
        apart.
      name: of the benchmark; None = made of kind and size.

    Returns:
      The benchmark, with the text that each page shows.

    Raises:
      ValueError: the kind is unknown, or fewer than two docstrings fill a page.

    Example:
      >>> pages = [Docstring("m", f"m.f{i}", f"Return column {i} of a table.", "") for i in range(3)]
      >>> benchmark = make_benchmark(pages, "wording", Canvas(32, 64), count=2)
      >>> len(benchmark.queries), benchmark.corpus[0].size, benchmark.texts[0]
      (2, (64, 32), 'Return column 2')
    """
    if kind not in KINDS:
        raise ValueError(f"kind is '{kind}': choose one of {', '.join(KINDS)}")
    full = _filling(docstrings, kind, fill * canvas.characters)
    if len(full) < 2:
        raise ValueError(f"{len(full)} docstrings fill a page of {canvas.characters} characters: take a smaller page")
    pages: list[Image.Image] = []
    shown, queries, ids = list[str](), list[str](), list[str]()
    for docstring, query, page, visible in _draw(full, canvas, np.random.default_rng(seed)):
        pages.append(page)
        shown.append(visible)
        queries.append(query)
        ids.append(f"{len(ids):04d}-{docstring.name}")
        if len(ids) == count:
            break
    return Benchmark(
        name=name or f"pages-{kind}-{canvas.height}x{canvas.width}",
        queries=queries,
        query_ids=[f"q-{page_id}" for page_id in ids],
        corpus=pages,
        corpus_ids=ids,
        qrels={f"q-{page_id}": {page_id: 1} for page_id in ids},
        texts=shown,
    )


def _filling(docstrings: Sequence[Docstring], kind: str, characters: float) -> list[tuple[Docstring, str, str]]:
    """Returns docstrings that fill a page, with their queries (empty = a wording query) and their pages' texts."""
    meaning = kind == "meaning"
    texts = [(d, *(meaning_texts(d) if meaning else ("", d.text))) for d in docstrings]
    least = characters * (_SHORTER_BODY if meaning else 1.0)
    return [entry for entry in texts if len(entry[2]) >= least]


def _draw(
    full: Sequence[tuple[Docstring, str, str]], canvas: Canvas, rng: np.random.Generator
) -> Iterator[tuple[Docstring, str, Image.Image, str]]:
    """Yields docstrings in random order with query, page and shown text; each shown text once."""
    seen: set[str] = set()
    for index in rng.permutation(len(full)):
        docstring, query, text = full[index]
        page, visible = canvas.draw(text, rng)
        if visible in seen:  # two docstrings that differ only after the page's end
            continue
        seen.add(visible)
        yield docstring, query or wording_query(visible, rng), page, visible
