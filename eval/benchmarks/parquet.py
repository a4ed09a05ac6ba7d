"""Tables in parquet files, one or several shards of one table: columns at once, rows when they are asked for."""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# As the hub's `datasets` names them, with or without the hash that it once added.
_SHARD = re.compile(r"(?P<split>\w+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?:-[0-9a-f]+)?\.parquet")


def splits(folder: Path) -> list[str]:
    """Names of the splits that a folder has parquet files of; none where it is no folder."""
    matches = (_SHARD.fullmatch(path.name) for path in sorted(folder.glob("*.parquet")))
    return list(dict.fromkeys(match["split"] for match in matches if match))


def shards(folder: Path, split: str) -> list[Path]:
    """The parquet files of a split, in order.

    Raises:
      FileNotFoundError: the folder has none, or not all of them.
      ValueError: the files are those of several versions.
    """
    found = [(match, path) for path in sorted(folder.glob("*.parquet")) if (match := _SHARD.fullmatch(path.name))]
    mine = [(int(match["number"]), int(match["count"]), path) for match, path in found if match["split"] == split]
    if not mine:
        others = sorted({match["split"] for match, _ in found})
        hint = f"; there are files of {', '.join(map(repr, others))}" if others else ""
        raise FileNotFoundError(f"'{folder}' has no file {split}-*-of-*.parquet{hint}")
    count = mine[0][1]
    numbers = [number for number, _, _ in mine]
    if any(other != count for _, other, _ in mine) or len(set(numbers)) < len(numbers):
        names = ", ".join(path.name for _, _, path in mine)
        raise ValueError(f"'{folder}' has files of several versions ({names}): empty it and download it again")
    if missing := [f"{split}-{i:05}-of-{count:05}.parquet" for i in range(count) if i not in numbers]:
        raise FileNotFoundError(f"'{folder}' lacks {', '.join(missing)}: download the rest")
    return [path for _, _, path in sorted(mine)]


class Table:
    """Rows of parquet files of the same columns, numbered through all of them.

    Attributes:
      files: their paths.
      schema: of the first.
    """

    def __init__(self, files: Sequence[Path]):
        """Reads the files' footers.

        Raises:
          ValueError: a file is no parquet file, or has other columns than the first.
        """
        self.files = list(files)
        self._parquet = [_open(file) for file in self.files]
        self.schema: pa.Schema = self._parquet[0].schema_arrow
        for file, parquet in zip(self.files, self._parquet, strict=True):
            if not parquet.schema_arrow.equals(self.schema):
                raise ValueError(f"'{file}' has other columns than '{self.files[0]}': download both again")
        self._starts = np.cumsum([0, *(parquet.metadata.num_rows for parquet in self._parquet)]).tolist()

    def __len__(self) -> int:
        return self._starts[-1]

    def column(self, name: str) -> list[Any]:
        """All values of a column.

        Raises:
          ValueError: a file is corrupt.
        """
        return [value for file, parquet in self._each() for value in _read(file, parquet, name)]

    def place(self, row: int) -> str:
        """Where a row is, for messages."""
        file = bisect.bisect_right(self._starts, row) - 1
        return f"row {row - self._starts[file]} of '{self.files[file]}'"

    def rows(self, columns: Sequence[str]) -> Rows:
        return Rows(self._parquet, columns)

    def _each(self) -> Iterator[tuple[Path, pq.ParquetFile]]:
        return zip(self.files, self._parquet, strict=True)


class Rows:
    """Rows of parquet files by number, as dicts; holds one row group at a time, in Arrow's memory."""

    def __init__(self, files: Sequence[pq.ParquetFile], columns: Sequence[str]):
        self._groups = [(file, group) for file in files for group in range(file.num_row_groups)]
        sizes = [file.metadata.row_group(group).num_rows for file, group in self._groups]
        self._starts = np.cumsum([0, *sizes]).tolist()
        self._columns = list(columns)
        self._held: tuple[int, pa.Table | None] = (-1, None)

    def __call__(self, index: int) -> dict[str, Any]:
        at = bisect.bisect_right(self._starts, index) - 1
        number, table = self._held
        if number != at or table is None:
            self._held = (-1, None)  # before the next is read
            file, group = self._groups[at]
            table = file.read_row_group(group, columns=self._columns)
            self._held = (at, table)
        return table.slice(index - self._starts[at], 1).to_pylist()[0]


def _open(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, pre_buffer=False)  # which would hold a row group of pages twice
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"'{file}' is no parquet file, or corrupt ({error}): download it again") from error


def _read(file: Path, parquet: pq.ParquetFile, name: str) -> list[Any]:
    try:
        return parquet.read([name])[name].to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"'{file}' is corrupt in column '{name}' ({error}): download it again") from error
