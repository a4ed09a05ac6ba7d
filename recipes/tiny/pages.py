"""Retrieval on pages of the documentation installed with Python: docstrings typeset as images, and queries for them.

Two kinds of query:
  meaning  the summary line of a docstring; its page shows the rest, with the object's own name masked on both sides
  wording  5 to 8 consecutive words of the page, of which 25 % are dropped

    python -m recipes.tiny.pages pairs --out build/pages/train --height 128 --width 256 --count 4000
    python -m recipes.tiny.pages benchmark --out build/pages/wording --kind wording --height 128 --width 256

`pairs` writes training pairs in the layout and columns of the ColPali training set, which `python -m train.data`
converts; `benchmark` writes a held-out benchmark that `Benchmark.load` opens. Neither the held-out modules nor any
near-duplicate of their docstrings are in the pairs.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from eval.benchmarks.benchmark import Benchmark
from recipes.tiny.docstrings import (
    HELD_OUT_MODULES,
    TRAIN_MODULES,
    Docstring,
    installed_packages,
    standard_library,
    without_names,
    without_near_duplicates,
)
from recipes.tiny.typeset import CELL_HEIGHT, CELL_WIDTH, random_layout, typeset, typeset_grid

KINDS = ("wording", "meaning")
STYLES = ("grid", "print")
DROPPED = 0.25  # share of a wording query's words
QUERY_WORDS = (5, 8)
QUERY_CHARACTERS = 64  # of a wording query; identifiers joined by dots can be long
MIN_FILL = 0.8  # of the characters that a grid page holds: the least text of a benchmark's docstring
PAIR_SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("image_filename", pa.string()),
        ("query", pa.string()),
        ("answer", pa.string()),
        ("source", pa.string()),
        ("page", pa.string()),
    ]
)
ROWS_PER_FILE = 20_000


@dataclasses.dataclass(frozen=True)
class Canvas:
    """How a page looks.

    Attributes:
      height, width: pixels; for style "grid" multiples of 16 and 8.
      style: "grid" = monospace cells of 8 x 16 px, "print" = a random proportional layout for each page.
    """

    height: int = 128
    width: int = 256
    style: str = "grid"

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ValueError(f"style is '{self.style}': choose one of {', '.join(STYLES)}")

    def draw(self, text: str, rng: np.random.Generator) -> tuple[Image.Image, str]:
        """The page, RGB, and the part of the text that it shows."""
        if self.style == "print":
            return typeset(text, self.height, self.width, random_layout(rng))
        pixels, shown = typeset_grid(text, self.height, self.width)
        return Image.fromarray(pixels), shown

    @property
    def characters(self) -> int:
        """About as many fit: exact for the grid, of a middling font for print."""
        area = self.height * self.width
        return area // (CELL_HEIGHT * CELL_WIDTH if self.style == "grid" else 22 * 9)


def wording_query(shown: str, rng: np.random.Generator) -> str:
    """5 to 8 consecutive words of what a page shows, a quarter of them dropped at random (one always stays)."""
    words = shown.split()
    if not words:
        raise ValueError("a page without words has no wording query")
    count = min(int(rng.integers(QUERY_WORDS[0], QUERY_WORDS[1] + 1)), len(words))
    start = int(rng.integers(0, len(words) - count + 1))
    run = words[start : start + count]
    kept = [word for word in run if rng.random() >= DROPPED] or run[:1]
    return " ".join(kept)[:QUERY_CHARACTERS].strip()


def meaning_texts(docstring: Docstring) -> tuple[str, str]:
    """Query and page text of a docstring's meaning pair; the page is empty if there is nothing but a summary."""
    return tuple(without_names(text, docstring.name) for text in (docstring.summary, docstring.body))  # type: ignore


def benchmark(
    docstrings: Sequence[Docstring],
    kind: str,
    canvas: Canvas,
    *,
    count: int = 500,
    seed: int = 0,
    fill: float = MIN_FILL,
    name: str | None = None,
) -> Benchmark:
    """One page and one query per docstring, for `count` docstrings whose text nearly fills the page.

    Args:
      docstrings: held out, without near-duplicates.
      kind: of the queries, "wording" or "meaning".
      canvas: of the pages.
      count: of pages; all that fill one, if there are fewer.
      seed: of the pages' order and layouts, and of the wording queries' words. The choice of pages is the same for
        every seed if `count` takes all.
      fill: share of the page that a docstring's text must fill. Emptier pages are easier: fewer words to tell apart.
      name: of the benchmark.

    Raises:
      ValueError: an unknown kind, or fewer than two docstrings fill a page.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is '{kind}': choose one of {', '.join(KINDS)}")
    rng = np.random.default_rng(seed)
    texts = [meaning_texts(d) if kind == "meaning" else ("", d.text) for d in docstrings]
    least = fill * canvas.characters * (0.5 if kind == "meaning" else 1.0)  # bodies are shorter than docstrings
    full = [i for i, (_, page) in enumerate(texts) if len(page) >= least]
    if len(full) < 2:
        raise ValueError(f"{len(full)} docstrings fill a page of {canvas.characters} characters: take a smaller page")
    pages: list[Any] = []
    shown, queries, ids = list[str](), list[str](), list[str]()
    for i in rng.permutation(len(full)):
        query, text = texts[full[i]]
        page, visible = canvas.draw(text, rng)
        if visible in shown:  # docstrings that part company after the page's end
            continue
        pages.append(page)
        shown.append(visible)
        queries.append(query or wording_query(visible, rng))
        ids.append(f"{len(ids):04d}-{docstrings[full[i]].name}")
        if len(ids) == count:
            break
    return Benchmark(
        name=name or f"pages-{kind}-{canvas.height}x{canvas.width}",
        queries=queries,
        query_ids=[f"q-{i}" for i in ids],
        corpus=pages,
        corpus_ids=ids,
        qrels={f"q-{i}": {i: 1} for i in ids},
        texts=shown,
    )


def training_pairs(
    docstrings: Sequence[Docstring],
    canvas: Canvas,
    *,
    count: int,
    seed: int = 0,
    meaning: float = 0.0,
    shuffled: float = 0.0,
    accept: Callable[[str], bool] | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of `PAIR_SCHEMA`: `count` pages, each of another place in some docstring.

    Args:
      docstrings: of training modules.
      canvas: of the pages.
      count: of pairs.
      seed: of all random choices.
      meaning: share of pairs whose query is the summary (where there is a body to show), the rest are wording queries.
      shuffled: share of pages whose words come from random places of the docstrings: nothing can be guessed there.
      accept: of a query, whether to use it; otherwise another pair is drawn. None = all.
    """
    if not docstrings:
        raise ValueError("no docstrings to make pages of")
    rng = np.random.default_rng(seed)
    number = 0
    while number < count:
        docstring = docstrings[int(rng.integers(len(docstrings)))]
        query, text = _pair_texts(docstring, docstrings, canvas, rng, meaning, shuffled)
        if len(text.split()) < min(QUERY_WORDS[0], canvas.characters // 8):
            continue
        page, shown = canvas.draw(text, rng)
        if not shown:  # one word too long for the page
            continue
        query = query or wording_query(shown, rng)
        if not query or (accept is not None and not accept(query)):
            continue
        file = f"{number:07d}.png"
        yield {
            "image": {"bytes": _png(page), "path": file},
            "image_filename": file,
            "query": query,
            "answer": shown,
            "source": docstring.module,
            "page": docstring.name,
        }
        number += 1


def _pair_texts(
    docstring: Docstring,
    docstrings: Sequence[Docstring],
    canvas: Canvas,
    rng: np.random.Generator,
    meaning: float,
    shuffled: float,
) -> tuple[str, str]:
    """Query (empty = a wording query is to be drawn from what the page shows) and the page's text."""
    if rng.random() < meaning:
        query, body = meaning_texts(docstring)
        if len(body) >= canvas.characters // 4:
            return query, body
    if rng.random() < shuffled:
        return "", _random_words(docstrings, canvas.characters, rng)
    return "", _window(docstring.text, canvas.characters, rng)


def _window(text: str, characters: int, rng: np.random.Generator) -> str:
    """The text from a random word on; from the first if it does not fill more than a page."""
    if len(text) <= characters:
        return text
    start = int(rng.integers(0, len(text) - characters // 2))
    cut = text[start : start + characters + 80]  # more than the page shows
    return cut if start == 0 else cut.partition(" ")[2]


def _random_words(docstrings: Sequence[Docstring], characters: int, rng: np.random.Generator) -> str:
    words: list[str] = []
    while sum(map(len, words)) + len(words) < characters:
        source = docstrings[int(rng.integers(len(docstrings)))].text.split()
        words.extend(source[int(i)] for i in rng.integers(len(source), size=4))
    return " ".join(words)


def _png(page: Image.Image) -> bytes:
    file = io.BytesIO()
    gray = page.convert("L")  # text has no colours; the reader makes it RGB again
    gray.save(file, "png", compress_level=1)
    return file.getvalue()


def write_pairs(folder: str | Path, rows: Iterable[dict[str, Any]]) -> int:
    """Writes `folder`/data/train-NNNNN-of-MMMMM.parquet; returns the number of rows.

    Raises:
      FileExistsError: the folder has parquet files already.
    """
    data = Path(folder) / "data"
    data.mkdir(parents=True, exist_ok=True)
    if any(data.glob("*.parquet")):
        raise FileExistsError(f"{data} has parquet files: remove them or choose another --out")
    written, files = 0, list[Path]()
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, ROWS_PER_FILE)):
        files.append(data / f"part-{len(files)}")
        pq.write_table(pa.Table.from_pylist(batch, schema=PAIR_SCHEMA), files[-1], row_group_size=1000)
        written += len(batch)
    for number, file in enumerate(files):
        file.rename(data / f"train-{number:05d}-of-{len(files):05d}.parquet")
    return written


def held_out() -> list[Docstring]:
    """Docstrings of the standard library's held-out modules: for evaluation only."""
    return standard_library(HELD_OUT_MODULES)


def for_training(*, packages: bool = False) -> list[Docstring]:
    """Docstrings of the standard library's training modules and, if asked, of every installed package.

    None is a near-duplicate of a held-out one.
    """
    library = without_near_duplicates(standard_library(TRAIN_MODULES), held_out())
    if not packages:
        return library
    return library + without_near_duplicates(installed_packages(), [*library, *held_out()])


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m recipes.tiny.pages", description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("pairs", "benchmark"))
    parser.add_argument("--out", required=True, help="folder to write")
    parser.add_argument("--height", type=int, default=128)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--style", choices=STYLES, default="grid")
    parser.add_argument("--count", type=int, default=500, help="pages")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, default="wording", help="benchmark: of the queries")
    parser.add_argument("--meaning", type=float, default=0.0, help="pairs: share of queries that are summaries")
    parser.add_argument("--shuffled", type=float, default=0.0, help="pairs: share of pages of random words")
    parser.add_argument("--packages", action="store_true", help="pairs: installed packages too")
    options = parser.parse_args(arguments)
    canvas = Canvas(options.height, options.width, options.style)
    if options.what == "benchmark":
        made = benchmark(held_out(), options.kind, canvas, count=options.count, seed=options.seed)
        made.save(options.out)
        print(f"{options.out}: {len(made.queries)} queries, {len(made.corpus)} pages of held-out modules")
        return
    rows = training_pairs(
        for_training(packages=options.packages),
        canvas,
        count=options.count,
        seed=options.seed,
        meaning=options.meaning,
        shuffled=options.shuffled,
    )
    print(f"{options.out}: {write_pairs(options.out, rows)} pairs")


if __name__ == "__main__":
    main()
