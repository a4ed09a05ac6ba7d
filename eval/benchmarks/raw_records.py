"""Records of files of JSON lines and of tables, as they are stored."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from smart_jax.files import parse_json
from smart_jax.tables import Table

MAX_BYTES = 2**26  # of a line


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Yields the objects of a file of JSON lines, which may be compressed by gzip.

    Raises:
      ValueError: a line is not a JSON object; the message names it.
    """
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        for number, line in enumerate(read_lines(file, path), 1):
            if not line.strip():
                continue
            record = parse_json(line, f"{path}, line {number}")
            if not isinstance(record, dict):
                raise ValueError(f"{path}, line {number} is not a JSON object")
            yield record


def read_lines(file: gzip.GzipFile | io.BufferedReader, path: Path) -> Iterator[bytes]:
    """Yields lines, none of which is read without bound: a few kilobytes of gzip can be gigabytes of one line.

    Raises:
      ValueError: a line is too long, or the file is truncated.
    """
    try:
        while line := file.readline(MAX_BYTES + 1):
            if len(line) > MAX_BYTES:
                raise ValueError(f"{path} has a line of more than {MAX_BYTES} bytes: is it a file of JSON lines?")
            yield line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is truncated or corrupt ({error}): download it again") from error


def read_columns(table: Table, columns: Iterable[str]) -> list[dict[str, Any]]:
    """Returns a table's records, with those of the columns that are there."""
    there = [name for name in columns if name in table.schema.names]
    values = [table.column(name) for name in there]
    return [dict(zip(there, record, strict=True)) for record in zip(*values, strict=True)]
