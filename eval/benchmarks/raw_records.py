"""Records of files of JSON lines and of tables, as they are stored."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from smart_jax.tables import Table


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a file of JSON lines, which may be compressed by gzip.

    Raises:
      ValueError: a line is not a JSON object; the message names it.
    """
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number} is not valid JSON ({error})") from error
            if not isinstance(record, dict):
                raise ValueError(f"{path}, line {number} is not a JSON object")
            yield record


def read_columns(table: Table, columns: Iterable[str]) -> list[dict[str, Any]]:
    """Returns a table's records, with those of the columns that are there."""
    there = [name for name in columns if name in table.schema.names]
    values = [table.column(name) for name in there]
    return [dict(zip(there, record, strict=True)) for record in zip(*values, strict=True)]
