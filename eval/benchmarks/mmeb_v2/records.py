"""Annotations record by record, from parquet files, JSON lines or a JSON list; a value is checked where it is used."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.benchmarks.mmeb_v2.table import Source
from smart_jax.files import parse_json
from smart_jax.tables import Table, shards


@dataclasses.dataclass(frozen=True)
class Record:
    """One annotation.

    Attributes:
      place: where it is, for messages, such as "row 3 of 'FILE'".
      values: by column.

    Example:
      >>> Record("row 3 of 'x.jsonl'", {"query": "a cat"}).text("query")
      'a cat'
    """

    place: str
    values: Mapping[str, Any]

    def text(self, column: str, *, optional: bool = False) -> str:
        """Returns a text, as it is; "" for null if it is optional.

        Raises:
          ValueError: no such column, or its value is of another kind, as in every method here.
        """
        value = self._value(column)
        if optional and value is None:
            return ""
        if not isinstance(value, str):
            raise self.wrong(column, "a text")
        return value

    def texts(self, column: str) -> list[str]:
        """Returns a list of texts."""
        value = self._value(column)
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise self.wrong(column, "a list of texts")
        return value

    def filled(self, column: str) -> str:
        """Returns a text that is not blank; of a list of texts the first."""
        several = isinstance(self._value(column), list)
        text = next(iter(self.texts(column)), "") if several else self.text(column)
        if not text.strip():
            raise self.wrong(column, "a text that is not empty")
        return text

    def name(self, column: str) -> str:
        """Returns a name, which is a text or an integer."""
        value = self._value(column)
        if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
            raise self.wrong(column, "a text or an integer")
        return str(value)

    def dicts(self, column: str) -> list[Record]:
        """Returns the records of a list inside this one."""
        value = self._value(column)
        if not isinstance(value, list) or not all(isinstance(inner, dict) for inner in value):
            raise self.wrong(column, "a list of objects")
        return [Record(f"{self.place}: column '{column}', entry {i}", inner) for i, inner in enumerate(value)]

    def wrong(self, column: str, expected: str) -> ValueError:
        """Returns an error that says what was expected in a column, and what is there."""
        return ValueError(f"{self.place}: column '{column}' is {_short(self.values.get(column))}, expected {expected}")

    def _value(self, column: str) -> Any:
        if column not in self.values:
            there = ", ".join(map(repr, self.values))
            raise ValueError(f"{self.place} has no column '{column}'; it has {there}")
        return self.values[column]


def read(source: Source, root: str | Path) -> Iterator[Record]:
    """Yields a task's annotations one by one; those of a subset have its name in the column "subset".

    Raises:
      FileNotFoundError: a file is missing; the message says what to download and where it goes.
      ValueError: a file is corrupt, or has no rows.
    """
    for subset in source.subsets or ("",):
        count = 0
        for record in _read(_find(source, Path(root), subset)):
            count += 1
            yield dataclasses.replace(record, values={**record.values, "subset": subset}) if subset else record
        if not count:
            raise ValueError(f"{_places(source, Path(root), subset)[0]} has no rows: download it again")


def are_there(source: Source, root: str | Path) -> bool:
    """Returns whether `read` finds all files."""
    return all(_first(_places(source, Path(root), subset)) for subset in source.subsets or ("",))


def how_to_get(source: Source, root: str | Path) -> str:
    """Returns the command that puts the annotations where `read` finds them."""
    pattern = source.files.replace("{subset}", "*")
    pattern = pattern if Path(pattern).suffix else f"{pattern}-*.parquet"
    folder = shlex.quote(str(Path(root) / source.repository))
    return f"hf download --repo-type dataset {source.repository} --include '{pattern}' --local-dir {folder}"


def _places(source: Source, root: Path, subset: str) -> list[Path]:
    """Returns where a file may be: in a copy of its repository, with or without the owner's folder, or in VLM2Vec's."""
    inside = source.files.replace("{subset}", subset)
    folders = (root / source.repository, root / source.repository.rpartition("/")[2])
    return [*(folder / inside for folder in folders), root / source.local.replace("{subset}", subset)]


def _find(source: Source, root: Path, subset: str) -> Path:
    places = _places(source, root, subset)
    if (place := _first(places)) is None:
        looked = ", ".join(f"'{each}'" for each in places)
        raise FileNotFoundError(
            f"the annotations are in none of {looked} (parquet files are NAME-*-of-*.parquet). "
            f"`{how_to_get(source, root)}` gets them"
        )
    return place


def _first(places: Sequence[Path]) -> Path | None:
    return next((p for p in places if p.is_file() or any(p.parent.glob(f"{p.name}-*.parquet"))), None)


def _read(path: Path) -> Iterator[Record]:
    if not path.is_file():
        return _parquet(shards(path.parent, path.name))
    with open(path, "rb") as file:  # the hub's .json files may be either
        first = next((line.lstrip()[:1] for line in file if line.strip()), b"")
    return _list(path) if first == b"[" and path.suffix == ".json" else _lines(path)


def _parquet(files: Sequence[Path]) -> Iterator[Record]:
    table = Table(files)
    records = table.records(table.schema.names)
    return (Record(table.place(i), records(i)) for i in range(len(table)))


def _lines(path: Path) -> Iterator[Record]:
    with open(path, "rb") as file:
        lines = ((number, line) for number, line in enumerate(file, 1) if line.strip())
        for row, (number, line) in enumerate(lines):
            yield _record(path, row, _json(path, line, f", line {number}"))


def _list(path: Path) -> Iterator[Record]:
    values = _json(path, path.read_bytes(), "")
    if not isinstance(values, list):
        raise ValueError(f"'{path}' is {_short(values)}, expected a list of objects")
    return (_record(path, row, value) for row, value in enumerate(values))


def _json(path: Path, text: bytes, where: str) -> Any:
    return parse_json(text, f"'{path}'{where}", remedy="download it again")


def _record(path: Path, row: int, value: Any) -> Record:
    if not isinstance(value, dict):
        raise ValueError(f"row {row} of '{path}' is {_short(value)}, expected an object")
    return Record(f"row {row} of '{path}'", value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
