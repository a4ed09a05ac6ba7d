"""Training pairs of pages and queries, in the layout and the columns of the ColPali training set."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from recipes.tiny.canvas import Canvas
from recipes.tiny.docstrings import Docstring
from recipes.tiny.queries import QUERY_WORDS, meaning_texts, wording_query

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
RECORDS_PER_FILE = 20_000


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
    """Yields pairs of a query and a page, each page from another place in some docstring.

    Args:
      docstrings: of training modules.
      canvas: of the pages.
      count: number of pairs.
      seed: of all random choices.
      meaning: share of the pairs whose query is a summary, for a page of the body; the others have wording queries.
      shuffled: share of the pages whose words come from random places of the docstrings: nothing can be guessed there.
      accept: says of a query whether to use it; if not, another pair is drawn. None = all are used.

    Yields:
      Records of `PAIR_SCHEMA`.

    Raises:
      ValueError: there are no docstrings.

    Example:
      >>> docstring = Docstring("m", "m.f", "Return the value.", "It is the number that the table holds.")
      >>> pair = next(training_pairs([docstring], Canvas(32, 64), count=1, seed=3))
      >>> pair["query"], pair["answer"], pair["image"]["path"]
      ('value. is', 'value. It is', '0000000.png')
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
        if not shown:  # the first word is too long for the page
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
    """Returns the query and the page's text; an empty query = one is drawn from the words that the page shows."""
    if rng.random() < meaning:
        query, body = meaning_texts(docstring)
        if len(body) >= canvas.characters // 4:
            return query, body
    if rng.random() < shuffled:
        return "", _random_words(docstrings, canvas.characters, rng)
    return "", _window(docstring.text, canvas.characters, rng)


def _window(text: str, characters: int, rng: np.random.Generator) -> str:
    """Returns the text from a random word on, or all of it where it does not fill more than a page."""
    if len(text) <= characters:
        return text
    start = int(rng.integers(0, len(text) - characters // 2))
    cut = text[start : start + characters + 80]  # more than the page shows
    return cut if start == 0 else cut.partition(" ")[2]


def _random_words(docstrings: Sequence[Docstring], characters: int, rng: np.random.Generator) -> str:
    """Returns words from random places, as many as fill the characters."""
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


def write_pairs(folder: str | Path, records: Iterable[dict[str, Any]]) -> int:
    """Writes `folder`/data/train-NNNNN-of-MMMMM.parquet, which `python -m train.data` converts.

    Args:
      folder: to write to; it may hold other files.
      records: as `training_pairs` yields them.

    Returns:
      The number of records.

    Raises:
      FileExistsError: the folder has parquet files already.

    Example:
      >>> import tempfile
      >>> docstring = Docstring("m", "m.f", "Return the value.", "It is the number that the table holds.")
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_pairs(folder, training_pairs([docstring], Canvas(32, 64), count=4))
      4
    """
    data = Path(folder) / "data"
    data.mkdir(parents=True, exist_ok=True)
    if any(data.glob("*.parquet")):
        raise FileExistsError(f"{data} has parquet files: remove them or choose another --out")
    written, files = 0, list[Path]()
    iterator = iter(records)
    while batch := list(itertools.islice(iterator, RECORDS_PER_FILE)):
        files.append(data / f"part-{len(files)}")
        pq.write_table(pa.Table.from_pylist(batch, schema=PAIR_SCHEMA), files[-1], row_group_size=1000)
        written += len(batch)
    for number, file in enumerate(files):
        file.rename(data / f"train-{number:05d}-of-{len(files):05d}.parquet")
    return written
