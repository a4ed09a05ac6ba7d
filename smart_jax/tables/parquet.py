"""Tables in parquet files, one or several shards of one table: columns at once, records when they are asked for."""

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
    """Returns the names of the splits that a folder has parquet files of; none where it is no folder.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> (folder / "test-00000-of-00001.parquet").touch()
      >>> splits(folder), splits(folder / "missing")
      (['test'], [])
    """
    matches = (_SHARD.fullmatch(path.name) for path in sorted(folder.glob("*.parquet")))
    return list(dict.fromkeys(match["split"] for match in matches if match))


def shards(folder: Path, split: str) -> list[Path]:
    """Returns the parquet files of a split, in order.

    Args:
      folder: with files SPLIT-NUMBER-of-COUNT.parquet, as the hub's `datasets` names them.
      split: such as "test".

    Raises:
      FileNotFoundError: the folder has none, or not all of them.
      ValueError: the files are those of several versions.

    Example:
      >>> import tempfile
      >>> folder = Path(tempfile.mkdtemp())
      >>> (folder / "test-00000-of-00002.parquet").touch()
      >>> shards(folder, "test")
      Traceback (most recent call last):
      FileNotFoundError: ... lacks test-00001-of-00002.parquet: download the rest
    """
    files = [(match, path) for path in sorted(folder.glob("*.parquet")) if (match := _SHARD.fullmatch(path.name))]
    mine = [(int(match["number"]), int(match["count"]), path) for match, path in files if match["split"] == split]
    if not mine:
        others = sorted({match["split"] for match, _ in files})
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
    """Records of parquet files of the same columns, numbered through all of them.

    Attributes:
      files: their paths.
      schema: of the first.

    Example:
      >>> import tempfile
      >>> file = Path(tempfile.mkdtemp()) / "test-00000-of-00001.parquet"
      >>> pq.write_table(pa.table({"id": ["a", "b"], "text": ["one", "two"]}), file)
      >>> table = Table([file])
      >>> len(table), table.column("id")
      (2, ['a', 'b'])
      >>> table.records(["text"])(1)
      {'text': 'two'}
    """

    def __init__(self, files: Sequence[Path]):
        """Reads the files' footers.

        Raises:
          ValueError: a file is no parquet file, or has other columns than the first.
        """
        self.files = list(files)
        self._parquet = [open_parquet(file) for file in self.files]
        self.schema: pa.Schema = self._parquet[0].schema_arrow
        for file, parquet in zip(self.files, self._parquet, strict=True):
            if not parquet.schema_arrow.equals(self.schema):
                raise ValueError(f"'{file}' has other columns than '{self.files[0]}': download both again")
        self._starts: list[int] = np.cumsum([0, *(parquet.metadata.num_rows for parquet in self._parquet)]).tolist()

    def __len__(self) -> int:
        return self._starts[-1]

    def column(self, name: str) -> list[object]:
        """Returns all values of a column.

        Raises:
          ValueError: a file is corrupt.
        """
        each = zip(self.files, self._parquet, strict=True)
        return [value for file, parquet in each for value in _read(file, parquet, name)]

    def place(self, record: int) -> str:
        """Returns where a record is, for messages."""
        file = bisect.bisect_right(self._starts, record) - 1
        return f"row {record - self._starts[file]} of '{self.files[file]}'"

    def records(self, columns: Sequence[str]) -> Records:
        """Returns a reader of these columns of single records."""
        return Records(self._parquet, columns)


class Records:
    """Reader of single records of parquet files by number, as dicts; holds one row group at a time, as Arrow does.

    Example:
      >>> import tempfile
      >>> file = Path(tempfile.mkdtemp()) / "pages.parquet"
      >>> pq.write_table(pa.table({"id": ["a", "b"]}), file)
      >>> Records([open_parquet(file)], ["id"])(1)
      {'id': 'b'}
    """

    def __init__(self, files: Sequence[pq.ParquetFile], columns: Sequence[str]):
        """Takes open files, see `open_parquet`, and the columns to read."""
        self._groups = [(file, group) for file in files for group in range(file.num_row_groups)]
        sizes = [file.metadata.row_group(group).num_rows for file, group in self._groups]
        self._starts: list[int] = np.cumsum([0, *sizes]).tolist()
        self._columns = list(columns)
        self._held: tuple[int, pa.Table | None] = (-1, None)

    def __call__(self, index: int) -> dict[str, Any]:
        """Returns the values of a record by column."""
        at = bisect.bisect_right(self._starts, index) - 1
        number, table = self._held
        if number != at or table is None:
            self._held = (-1, None)  # before the next is read
            file, group = self._groups[at]
            table = file.read_row_group(group, columns=self._columns)
            self._held = (at, table)
        (record,) = table.slice(index - self._starts[at], 1).to_pylist()
        return dict(record)


def open_parquet(file: Path) -> pq.ParquetFile:
    """Opens a parquet file, whose footer is read; a context manager closes it.

    Raises:
      ValueError: it is no parquet file, or a corrupt one.

    Example:
      >>> import tempfile
      >>> file = Path(tempfile.mkdtemp()) / "pages.parquet"
      >>> pq.write_table(pa.table({"id": ["a", "b"]}), file)
      >>> with open_parquet(file) as parquet:
      ...     parquet.metadata.num_rows
      2
    """
    try:
        return pq.ParquetFile(file, pre_buffer=False)  # which would hold a row group of pages twice
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"'{file}' is no parquet file, or corrupt ({error}): download it again") from error


def read_in_order(file: Path, columns: Sequence[str], *, at_once: int = 32) -> Iterator[dict[str, Any]]:
    """Yields the records of a parquet file, of which few are in memory at a time.

    Args:
      file: its path.
      columns: those that are read.
      at_once: records that are read together, at most; they are of one row group.

    Raises:
      ValueError: the file is no parquet file, or a corrupt one; the message names the row group.

    Example:
      >>> import tempfile
      >>> file = Path(tempfile.mkdtemp()) / "pages.parquet"
      >>> pq.write_table(pa.table({"id": ["a", "b"], "text": ["one", "two"]}), file)
      >>> list(read_in_order(file, ["text"]))
      [{'text': 'one'}, {'text': 'two'}]
    """
    with open_parquet(file) as parquet:
        for group in range(parquet.num_row_groups):
            try:
                for batch in parquet.iter_batches(at_once, row_groups=[group], columns=list(columns)):
                    yield from batch.to_pylist()
            except (pa.ArrowException, OSError) as error:
                raise ValueError(f"'{file}' is corrupt in row group {group} ({error}): download it again") from error


def _read(file: Path, parquet: pq.ParquetFile, name: str) -> list[object]:
    try:
        return list(parquet.read([name])[name].to_pylist())
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"'{file}' is corrupt in column '{name}' ({error}): download it again") from error
