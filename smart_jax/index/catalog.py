"""The catalog of an index: one SQLite database with ids, metadata, origins, tombstones and the lengths of segments.

A transaction of the catalog is the only switch: vectors in the segments' files do not count until one says so. SQLite's
write-ahead log lets readers go on beside the one writer, each in the state that its transaction began with.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from smart_jax.files import parse_json

FORMAT, VERSION = "smart_jax.index", 1
ITEM_COLUMNS = "row, id, hash, source, page, metadata"

# Rows are numbers of segments, times 2**32, plus places in them. What few searches read is not among the items.
SCHEMA = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
CREATE TABLE segment (number INTEGER PRIMARY KEY, items INTEGER NOT NULL, tokens INTEGER NOT NULL);
CREATE TABLE source (
  number INTEGER PRIMARY KEY, path TEXT NOT NULL, file TEXT NOT NULL, hash TEXT NOT NULL, size INTEGER NOT NULL,
  how TEXT NOT NULL, complete INTEGER NOT NULL, UNIQUE (path, complete));
CREATE TABLE item (
  row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, hash TEXT NOT NULL, source INTEGER, page INTEGER, metadata TEXT);
CREATE TABLE staged (
  row INTEGER PRIMARY KEY, id TEXT NOT NULL, hash TEXT NOT NULL, source INTEGER NOT NULL, page INTEGER, metadata TEXT);
CREATE TABLE content (row INTEGER PRIMARY KEY, text TEXT, tokens BLOB);
CREATE TABLE dead (row INTEGER PRIMARY KEY);
CREATE INDEX item_source ON item (source, page) WHERE source IS NOT NULL;
CREATE INDEX source_file ON source (file);
INSERT INTO about VALUES ('generation', '0');
"""


class Catalog:
    """The database of an index, with a connection for each thread.

    Attributes:
      path: of the database.
    """

    def __init__(self, path: Path, *, create: bool):
        """Opens the database, or makes it.

        Raises:
          FileNotFoundError: there is none, and it is not to be made.
          ValueError: the file is no catalog of an index, or one of another version.
        """
        self.path = path
        self._threads = threading.local()
        self._connections: list[sqlite3.Connection] = []
        weakref.finalize(self, _close, self._connections)
        if not path.is_file():
            if not create:
                raise FileNotFoundError(f"no index in '{path.parent}': name a model to make one there")
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._check(create)
        except BaseException:
            self.close()
            raise

    def _check(self, create: bool) -> None:
        try:
            if create and not self._tables():
                with self.writing() as db:
                    if not self._tables():  # by another process, meanwhile
                        for statement in SCHEMA.split(";\n"):
                            db.execute(statement)
                        self.set("format", [FORMAT, VERSION])
            if "about" not in self._tables():
                raise ValueError(f"'{self.path}' is not the catalog of an index: give another folder")
            if (found := self.get("format")) != [FORMAT, VERSION]:
                raise ValueError(f"'{self.path}' is a catalog of version {found}, this library reads {VERSION}")
        except sqlite3.DatabaseError as error:
            raise ValueError(f"'{self.path}' cannot be read as a catalog ({error}): restore or remove it") from error

    def _tables(self) -> list[str]:
        return [name for (name,) in self._connection().execute("SELECT name FROM sqlite_master WHERE type = 'table'")]

    def _connection(self) -> sqlite3.Connection:
        db: sqlite3.Connection | None = getattr(self._threads, "db", None)
        if db is None:
            db = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
            self._threads.db = db
            self._connections.append(db)
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # of a new one
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            db.execute("PRAGMA journal_size_limit = 0")
            db.execute("PRAGMA mmap_size = 268435456")
        return db

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Yields a connection that sees one state until the end of the block, whatever is written meanwhile."""
        with self._explained():
            db = self._connection()
            if db.in_transaction:
                yield db
                return
            db.execute("BEGIN")
            try:
                yield db
            finally:
                db.rollback()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Says of a damaged database which it is; that another process holds it is another thing."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.IntegrityError) or "locked" in str(error) or "disk" in str(error)[:5]:
                raise
            raise ValueError(f"'{self.path}' is damaged ({error}): restore it, or make the index again") from error

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Yields a connection whose changes appear together at the end of the block, or not at all if it raises."""
        db = self._connection()
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
            db.execute("UPDATE about SET value = value + 1 WHERE key = 'generation'")
            db.commit()
        except BaseException:
            db.rollback()
            raise

    def generation(self, db: sqlite3.Connection) -> int:
        """Returns a number that every change raises."""
        found = db.execute("SELECT value FROM about WHERE key = 'generation'").fetchone()
        if found is None or not str(found[0]).isdecimal():
            raise ValueError(f"'{self.path}' is damaged (it has no generation): restore it, or make the index again")
        return int(found[0])

    def get(self, key: str) -> Any:
        """Returns a fact of the index, None where it is not stated."""
        with self._explained():
            found = self._connection().execute("SELECT value FROM about WHERE key = ?", (key,)).fetchone()
        return None if found is None else parse_json(found[0], f"'{self.path}': {key}", remedy="restore the index")

    def set(self, key: str, value: Any) -> None:
        """States a fact of the index, within `writing`."""
        self._connection().execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (key, json.dumps(value)))

    def shrink(self) -> None:
        """Gives the room that removed items have left in the database back to the disk."""
        self._connection().execute("PRAGMA incremental_vacuum").fetchall()

    def close(self) -> None:
        """Closes all connections; the last of all processes leaves the database in one file."""
        _close(self._connections)
        self._threads = threading.local()


def _close(connections: list[sqlite3.Connection]) -> None:
    while connections:
        connections.pop().close()
