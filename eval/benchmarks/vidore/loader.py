"""Reads a set of ViDoRe in its layout on the hub.

A set is a data set repository of the hub with the folders `queries`, `corpus` and `qrels`, each with parquet files of
one split, "test". These columns are read:

  queries   query-id (integer or string), query (string), language (string, "english"; V2 and V3)
  corpus    corpus-id, image (struct{bytes, path}), and where there is one the page's text, for BM25 only
  qrels     query-id, corpus-id, score (integer, above 0 = relevant)

V3 writes query_id and corpus_id, and its pages' text is `markdown`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from eval.benchmarks.benchmark import Benchmark
from eval.benchmarks.lazy_items import LazyItems
from eval.benchmarks.messages import MAX_NAMED, quoted
from eval.benchmarks.vidore.table import INSTRUCTION, PARTS, VidoreSet, how_to_get, stem
from smart_jax.files import download, files_fingerprint
from smart_jax.tables import Table, is_image, is_text, shards

_logger = logging.getLogger(__name__)


def fetch(entry: VidoreSet, revision: str | None = None) -> Path:
    """Returns the set's folder in the hub's cache, downloaded once (HF_HOME, HF_HUB_OFFLINE, ... are honoured).

    Args:
      entry: of the table.
      revision: branch, tag or commit of the repository; None = the newest.

    Raises:
      FileNotFoundError: no such repository or revision.
      ConnectionError: it is not in the cache and the hub is offline or out of reach.

    Example:
      >>> from unittest.mock import patch
      >>> from eval.benchmarks.vidore import select
      >>> with patch("huggingface_hub.snapshot_download", return_value="cache/tatdqa"):
      ...     print(fetch(select(["tatdqa"])[0]))
      cache/tatdqa
    """
    patterns = [f"{part}/{entry.split}-*.parquet" for part in PARTS]
    command = how_to_get(entry, Path("FOLDER") / stem(entry))
    remedy = f"where there is a connection, run `{command}`, and pass FOLDER as the path"
    try:
        return download(entry.repository, kind="dataset", revision=revision, patterns=patterns, remedy=remedy)
    except (FileNotFoundError, ConnectionError) as error:
        raise type(error)(f"set {entry.name}: {error}") from error


def load(entry: VidoreSet, folder: str | Path) -> Benchmark:
    """Returns the benchmark in a set's folder; pages are read when they are used, one row group at a time.

    Queries of another language than the entry's are left out, and, with a warning, those without a relevant page. Of a
    page that is judged several times for a query the highest grade counts.

    Raises:
      FileNotFoundError: a part, or one of its files, is missing; the message says what to download and where it goes.
      ValueError: a file, column or row is not as in this module's docstring, or contradicts another.

    Example:
      >>> from eval.benchmarks.vidore import select
      >>> load(select(["tatdqa"])[0], "no-such-folder")  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      FileNotFoundError: set ViDoRe_tatdqa: 'no-such-folder/queries' has no file test-*-of-*.parquet. ...
    """
    folder, layout = Path(folder), entry.layout
    try:
        queries, corpus, qrels = (Table(shards(folder / part, entry.split)) for part in PARTS)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"set {entry.name}: {error}. `{how_to_get(entry, folder)}` gets the set") from error
    query_ids = _ids(entry, queries, layout.query_id)
    corpus_ids = _ids(entry, corpus, layout.corpus_id)
    texts = _texts(entry, queries, "query")
    grades = _grades(entry, qrels, query_ids, corpus_ids)
    chosen = list(range(len(query_ids)))
    if entry.language is not None:
        languages = _values(entry, queries, "language", is_text, "string")
        chosen = [i for i in chosen if languages[i] == entry.language]
        if not chosen:
            there = quoted(sorted({str(language) for language in languages}))
            raise ValueError(
                f"set {entry.name}: no query of '{queries.files[0].parent}' has the language '{entry.language}'; "
                f"there are {there}"
            )
    judged = [i for i in chosen if any(grade > 0 for grade in grades.get(query_ids[i], {}).values())]
    if len(judged) < len(chosen):
        _logger.warning(
            "set %s: %d of %d queries have no relevant page and are left out",
            entry.name,
            len(chosen) - len(judged),
            len(chosen),
        )
    if not judged:
        raise ValueError(f"set {entry.name}: no query has a relevant page in '{qrels.files[0].parent}'")
    kept = [query_ids[i] for i in judged]
    return Benchmark(
        name=entry.name,
        queries=[{"text": texts[i]} for i in judged],
        query_ids=kept,
        corpus=_pages(entry, corpus),
        corpus_ids=corpus_ids,
        qrels={query: grades[query] for query in kept},
        texts=_page_texts(entry, corpus),
        instruction=INSTRUCTION,
    )


def _ids(entry: VidoreSet, table: Table, column: str) -> list[str]:
    values = _values(entry, table, column, _is_id, "integer or string")
    first: dict[str, int] = {}
    for row, value in enumerate(map(str, values)):
        if value in first:
            raise ValueError(
                f"set {entry.name}: {table.place(row)}: column '{column}' holds {value}, as does "
                f"{table.place(first[value])}: download the set again"
            )
        first[value] = row
    return list(first)


def _texts(entry: VidoreSet, table: Table, column: str) -> list[str]:
    values = _values(entry, table, column, is_text, "string")
    if (blank := next((row for row, value in enumerate(values) if not value.strip()), None)) is not None:
        raise ValueError(f"set {entry.name}: {table.place(blank)}: column '{column}' is empty")
    return values


def _grades(
    entry: VidoreSet, table: Table, query_ids: Sequence[str], corpus_ids: Sequence[str]
) -> dict[str, dict[str, int]]:
    layout = entry.layout
    columns = []
    for column, known in ((layout.query_id, set(query_ids)), (layout.corpus_id, set(corpus_ids))):
        ids = [str(value) for value in _values(entry, table, column, _is_id, "integer or string")]
        unknown = [row for row, value in enumerate(ids) if value not in known]
        if unknown:
            named = "; ".join(f"{table.place(row)}: {ids[row]}" for row in unknown[:MAX_NAMED])
            other = "queries" if column == layout.query_id else "corpus"
            raise ValueError(
                f"set {entry.name}: {len(unknown)} values of column '{column}' are in no row of the {other} "
                f"({named}): the files are of different versions, or some are missing; download the set again"
            )
        columns.append(ids)
    scores = _values(entry, table, "score", pa.types.is_integer, "integer")
    grades: dict[str, dict[str, int]] = {}
    for query, page, score in zip(*columns, scores, strict=True):
        of_query = grades.setdefault(query, {})
        of_query[page] = max(score, of_query.get(page, score))  # as MMEB-V2 does; merged pages are judged twice
    return grades


def _pages(entry: VidoreSet, table: Table) -> LazyItems:
    _field(entry, table, "image", is_image, "struct{bytes: binary, path: string}")
    records = table.records(["image"])

    def page(number: int) -> dict[str, Any]:
        image: Mapping[str, Any] = records(number)["image"] or {}
        if not image.get("bytes"):
            raise ValueError(
                f"set {entry.name}: {table.place(number)}: column 'image' holds no bytes (path {image.get('path')!r}): "
                "the parquet files of the hub hold the images themselves; download those"
            )
        return {"image": image["bytes"]}

    return LazyItems(len(table), page, source=files_fingerprint(table.files))


def _page_texts(entry: VidoreSet, table: Table) -> list[str] | None:
    """Returns the texts of the pages, empty where a page has none; None = there is no such column, or nothing in it."""
    column = entry.layout.text
    if column not in table.schema.names or pa.types.is_null(table.schema.field(column).type):
        return None
    _field(entry, table, column, is_text, "string")
    texts = [str(text or "") for text in table.column(column)]
    return texts if any(texts) else None


def _values(
    entry: VidoreSet, table: Table, column: str, fits: Callable[[pa.DataType], bool], expected: str
) -> list[Any]:
    """Returns the values of a column that must be there, of that type, and without nulls."""
    _field(entry, table, column, fits, expected)
    values = table.column(column)
    if (null := next((row for row, value in enumerate(values) if value is None), None)) is not None:
        raise ValueError(f"set {entry.name}: {table.place(null)}: column '{column}' is null")
    return values


def _field(entry: VidoreSet, table: Table, column: str, fits: Callable[[pa.DataType], bool], expected: str) -> None:
    names = table.schema.names
    if column not in names:
        raise ValueError(
            f"set {entry.name}: '{table.files[0]}' has no column '{column}'; it has {quoted(names)}. "
            f"`{how_to_get(entry, table.files[0].parents[1])}` gets the set as it is read here"
        )
    kind = table.schema.field(column).type
    if not fits(kind):
        raise ValueError(f"set {entry.name}: '{table.files[0]}': column '{column}' is {kind}, expected {expected}")


def _is_id(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or is_text(kind)
