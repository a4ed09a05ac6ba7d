"""Judgements in a benchmark's folder: qrels in tsv, JSON lines or parquet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.benchmarks.raw_records import read_columns, read_json_lines, read_lines
from smart_jax.files import checked_float, checked_int, shown
from smart_jax.tables import Table, shards, splits

QRELS_HEADER = ["query-id", "corpus-id", "score"]
SPLIT = "test"
LARGEST = 2**31 - 1  # grade


def read_qrels(folder: Path, split: str) -> dict[str, dict[str, int]]:
    """Returns the grades of documents, by query id then document id.

    Raises:
      FileNotFoundError: there are no judgements of the split; the message names the splits there are.
      ValueError: a judgement is not as described, or a pair is judged twice.
    """
    qrels: dict[str, dict[str, int]] = {}
    for place, (query, document, grade) in _judgements(folder, split):
        if document in qrels.setdefault(query, {}):
            raise ValueError(f"{place}: query {query}, document {document} is judged twice")
        qrels[query][document] = grade
    return qrels


def _judgements(folder: Path, split: str) -> Iterator[tuple[str, tuple[str, str, int]]]:
    """Yields where each judgement is, for messages, and its query, document and grade."""
    single = [folder / "qrels.tsv", folder / "qrels.jsonl"]
    named = [folder / "qrels" / f"{split}.{suffix}" for suffix in ("tsv", "jsonl")]
    path = next((p for p in (*named, *(single if split == SPLIT else ())) if p.exists()), None)
    if path is None:
        parent = next((folder / name for name in _QRELS_FOLDERS if split in splits(folder / name)), None)
        if parent is None:
            raise FileNotFoundError(_no_qrels(folder, split))
        return _of_table(Table(shards(parent, split)))
    return _of_tsv(path) if path.suffix == ".tsv" else _of_jsonl(path)


_QRELS_FOLDERS = ("qrels", "data", "default")


def _no_qrels(folder: Path, split: str) -> str:
    there = [path.stem for path in sorted((folder / "qrels").glob("*")) if path.suffix in (".tsv", ".jsonl")]
    there += [other for name in _QRELS_FOLDERS for other in splits(folder / name)]
    if there:
        return f"{folder} has no judgements of the split {split!r}; it has {', '.join(map(repr, dict.fromkeys(there)))}"
    if split != SPLIT:
        return f"{folder} has no judgements of the split {split!r}: no file qrels/{split}.tsv"
    return f"{folder} has neither qrels.tsv nor qrels/{split}.tsv, nor one of them as jsonl or parquet"


def _of_tsv(path: Path) -> Iterator[tuple[str, tuple[str, str, int]]]:
    for number, line in enumerate(_text_lines(path), 1):
        fields = line.split("\t")
        if not line or (number == 1 and fields == QRELS_HEADER):
            continue
        try:
            query, document, grade = fields
            yield f"{path}, line {number}", (query, document, _grade(grade))
        except ValueError:
            raise ValueError(
                f"{path}, line {number}: expected query, document, integer score, not {shown(line)}"
            ) from None


def _text_lines(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for line in read_lines(file, path):
            yield line.decode("utf-8").rstrip("\r\n")


def _of_jsonl(path: Path) -> Iterator[tuple[str, tuple[str, str, int]]]:
    for number, record in enumerate(read_json_lines(path), 1):
        yield f"{path}, judgement {number}", _of_record(record, f"{path}, judgement {number}")


def _of_table(table: Table) -> Iterator[tuple[str, tuple[str, str, int]]]:
    for number, record in enumerate(read_columns(table, QRELS_HEADER)):
        yield table.place(number), _of_record(record, table.place(number))


def _of_record(record: Mapping[str, Any], place: str) -> tuple[str, str, int]:
    try:
        return str(record["query-id"]), str(record["corpus-id"]), _grade(record["score"])
    except (KeyError, TypeError, ValueError):
        found = ", ".join(f"{shown(key)}: {shown(value)}" for key, value in list(record.items())[:9])
        raise ValueError(f"{place}: expected {', '.join(QRELS_HEADER)} (an integer), not {{{found}}}") from None


def _grade(value: Any) -> int:
    """Returns an integer, also where it is written 1.0."""
    number = checked_float(value if isinstance(value, int) else float(value), "the grade", positive=False)
    return checked_int(int(number) if number.is_integer() else value, "the grade", least=-LARGEST, most=LARGEST)
