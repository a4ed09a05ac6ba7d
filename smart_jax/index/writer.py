"""The one writer of an index: vectors first, then a transaction of the catalog that makes them count."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from smart_jax.index.catalog import ITEM_COLUMNS
from smart_jax.index.lookups import Lookups
from smart_jax.index.records import Key, Record, Source
from smart_jax.index.segment_files import SEGMENTS, Extent, SegmentFiles
from smart_jax.index.snapshot import PLACES, Segment, extents
from smart_jax.index.stage_writer import StageWriter
from smart_jax.index.stages import Marked
from smart_jax.index.value_cap import Narrowing
from smart_jax.index.vector_format import VectorFormat
from smart_jax.retrieval import Embeddings

if TYPE_CHECKING:
    from smart_jax.index.store import Store

SEGMENT_BYTES = 2**32  # of tokens, after which another segment is begun
COPIED_BYTES = 2**26  # of tokens that compacting holds in memory


class Writer(Lookups):
    """Changes a store; `Store.writing` gives one."""

    def __init__(self, store: Store, segment_bytes: int = SEGMENT_BYTES):
        super().__init__(store.catalog)
        self._store, self._segment_bytes = store, segment_bytes
        self._stages = StageWriter(store)

    def new_source(self) -> int:
        """Returns a number that no source has had."""
        number = int(self._catalog.get("sources") or 0) + 1
        with self._catalog.writing():
            self._catalog.set("sources", number)
        return number

    def put(
        self,
        embeddings: Embeddings | None,
        records: Sequence[Record],
        *,
        begun: Iterable[Source] = (),
        finished: Collection[int] = (),
        dtype: str = "float16",
    ) -> None:
        """Adds items, in one transaction; an item whose id is there takes the other's place.

        Items of a source that is not finished wait, unseen, until it is: then they take the place of all items of the
        same path.

        Args:
          embeddings: of the items, in any dtype; None = there are none.
          records: of the items.
          begun: sources that some of the items are the first of.
          finished: numbers of the sources all of whose items are there now.
          dtype: of the tokens of a store that is empty.
        """
        if embeddings is not None and (narrowing := self._catalog.get("narrowing")):
            embeddings = Narrowing.from_json(narrowing).of_model(embeddings)
        first = 0
        with ThreadPoolExecutor(1, "write") as disk, self._catalog.writing() as db:
            if embeddings is not None:
                files, extent = self._files(embeddings, dtype), self._tail(db)
                stored = files.format.stored(embeddings)
                written = disk.submit(files.append, extent, stored)
                self._stages.add(extent, stored)
                if self._store.files is None:
                    self._catalog.set("vectors", files.format.to_json())
                first = (extent.number << PLACES) + extent.items
            db.executemany("INSERT INTO source VALUES (?, ?, ?, ?, ?, ?, 0)", begun)
            for number in finished:
                _publish(db, number)
            rows = [(row, *record) for row, record in enumerate(records, first)]
            waiting = [row for row in rows if row[3] is not None and row[3] not in finished]
            if waiting:
                db.executemany("INSERT INTO staged VALUES (?, ?, ?, ?, ?, ?)", (row[:6] for row in waiting))
                db.executemany("INSERT INTO dead VALUES (?)", (row[:1] for row in waiting))
            shown = rows if not waiting else [row for row in rows if row[3] is None or row[3] in finished]
            kill(db, "id", [row[1] for row in shown])
            db.executemany("INSERT INTO item VALUES (?, ?, ?, ?, ?, ?)", (row[:6] for row in shown))
            contents = [(row[0], *row[6:]) for row in rows if row[6] is not None or row[7] is not None]
            db.executemany("INSERT INTO content VALUES (?, ?, ?)", contents)
            if embeddings is not None:
                self._grow(db, written.result())  # on the disk, before they count

    def _files(self, embeddings: Embeddings, dtype: str) -> SegmentFiles:
        return self._store.files or SegmentFiles(self._store.folder / SEGMENTS, VectorFormat.of(embeddings, dtype))

    def _tail(self, db: sqlite3.Connection) -> Extent:
        """Returns the segment that is written to: the last one, or a new one if that is full."""
        there, files = extents(db), self._store.files
        if there and files and there[-1].tokens * files.format.row_bytes()[".tokens"] < self._segment_bytes:
            return there[-1]
        return Extent(self._new_number(), 0, 0)

    def _new_number(self) -> int:
        """Returns the number of a new segment: who still reads an old one never meets another of its number."""
        return int(self._catalog.get("segments") or 0) + 1

    def _grow(self, db: sqlite3.Connection, extent: Extent) -> None:
        db.execute("INSERT OR REPLACE INTO segment VALUES (?, ?, ?)", extent)
        self._catalog.set("segments", max(extent.number, int(self._catalog.get("segments") or 0)))

    def delete(self, keys: Iterable[Key]) -> None:
        """Removes items, in one transaction; their vectors stay in the files until these are compacted."""
        chosen = list(keys)
        with self._catalog.writing() as db:
            among = (
                "SELECT DISTINCT source FROM item WHERE row IN (SELECT value FROM json_each(?)) AND source IS NOT NULL"
            )
            sources = db.execute(among, (json.dumps(chosen),)).fetchall()
            kill(db, "row", chosen)
            empty = "NOT EXISTS (SELECT 1 FROM item WHERE item.source = source.number)"
            db.executemany(f"DELETE FROM source WHERE number = ? AND {empty}", sources)

    def describe(self, changes: Iterable[tuple[str | None, Key]]) -> None:
        """Gives items other metadata, in one transaction.

        Args:
          changes: the metadata, a JSON object or None, and the row of each item.
        """
        with self._catalog.writing() as db:
            db.executemany("UPDATE item SET metadata = ? WHERE row = ?", changes)

    def forget(self, source: int) -> None:
        """Removes what waits of a source."""
        with self._catalog.writing() as db:
            _forget(db, [source])

    def compact(self) -> None:
        """Writes the segments that hold removed items, or little, again without them; one transaction changes over."""
        with self._store.reading() as (_, snapshot):
            stale = self._stale(snapshot.segments)
        files = self._store.files
        if not stale or files is None:
            with self._catalog.writing() as db:
                _forget(db, _unfinished(db))
            return
        moved: list[tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]] = []
        grown: dict[int, Extent] = {}
        extent = Extent(self._new_number(), 0, 0)
        for segment, places in _live_places(stale):
            if extent.tokens * files.format.row_bytes()[".tokens"] >= self._segment_bytes:
                extent = Extent(extent.number + 1, 0, 0)
            new = (extent.number << PLACES) + np.arange(extent.items, extent.items + len(places))
            moved.append(((segment.number << PLACES) + places, new))
            self._stages.copy(extent, segment, places)
            extent = grown[extent.number] = files.append(extent, segment.embeddings[places])
        numbers = [segment.number for segment in stale]
        with self._catalog.writing() as db:
            _forget(db, _unfinished(db))
            _move(db, moved)
            for number in numbers:
                db.execute("DELETE FROM dead WHERE row >> ? = ?", (PLACES, number))
                db.execute("DELETE FROM segment WHERE number = ?", (number,))
            for extent in grown.values():
                self._grow(db, extent)
        files.remove(numbers)
        self._stages.trim()
        self._catalog.shrink()

    def refresh_stages(self) -> None:
        """Learns other centroids if the index has outgrown those that it keeps."""
        if not (stages := self._store.stages()):
            return
        with self._catalog.reading() as db:
            tokens = sum(extent.tokens for extent in extents(db))
        if any(stage.outgrown(tokens) for stage in stages):
            self.keep_stages()

    def keep_stages(self, names: Collection[Marked] | None = None) -> None:
        """Keeps these first stages and no others, of all that is there; None = those that it keeps, brought up to date.

        Raises:
          ValueError: there is nothing to make them of.
        """
        with self._store.reading() as (_, snapshot):
            there = [stage.name for stage in self._store.stages()]
        wanted = there if names is None else names
        if wanted and not len(snapshot):
            if names is None:
                return
            raise ValueError(f"'{self._store.folder}' holds no items: add some before a first stage is made")
        self._stages.keep(wanted, snapshot)

    def _stale(self, segments: Sequence[Segment]) -> list[Segment]:
        small = [s for s in segments if s.embeddings.tokens.nbytes < self._segment_bytes // 2]
        stale = [s for s in segments if s.live < len(s.embeddings)]
        if stale or len(small) > 1:
            stale += [s for s in small if s not in stale]
        return sorted(stale, key=lambda segment: segment.number)


def kill(db: sqlite3.Connection, column: str, values: Sequence[Any]) -> None:
    """Removes the items that have one of the values in a column."""
    if not values:
        return
    among = "IN (SELECT value FROM json_each(?))"  # one text of any number of them
    found = db.execute(f"SELECT row FROM item WHERE {column} {among}", (json.dumps(values),)).fetchall()
    if found:
        rows = (json.dumps([row for (row,) in found]),)
        db.execute("INSERT INTO dead SELECT value FROM json_each(?)", rows)
        for table in ("content", "item"):
            db.execute(f"DELETE FROM {table} WHERE row {among}", rows)


def _publish(db: sqlite3.Connection, number: int) -> None:
    """Puts the items that wait for a source in the place of those of the same path."""
    path = db.execute("SELECT path FROM source WHERE number = ?", (number,)).fetchone()[0]
    former = [old for (old,) in db.execute("SELECT number FROM source WHERE path = ? AND complete", (path,))]
    kill(db, "source", former)
    db.executemany("DELETE FROM source WHERE number = ?", ((old,) for old in former))
    kill(db, "id", [name for (name,) in db.execute("SELECT id FROM staged WHERE source = ?", (number,))])
    db.execute("DELETE FROM dead WHERE row IN (SELECT row FROM staged WHERE source = ?)", (number,))
    db.execute(f"INSERT INTO item SELECT {ITEM_COLUMNS} FROM staged WHERE source = ?", (number,))
    db.execute("DELETE FROM staged WHERE source = ?", (number,))
    db.execute("UPDATE source SET complete = 1 WHERE number = ?", (number,))


def _forget(db: sqlite3.Connection, sources: Iterable[int]) -> None:
    for source in sources:
        db.execute("DELETE FROM content WHERE row IN (SELECT row FROM staged WHERE source = ?)", (source,))
        db.execute("DELETE FROM staged WHERE source = ?", (source,))
        db.execute("DELETE FROM source WHERE number = ?", (source,))


def _unfinished(db: sqlite3.Connection) -> list[int]:
    return [number for (number,) in db.execute("SELECT number FROM source WHERE NOT complete")]


def _live_places(segments: Iterable[Segment]) -> Iterator[tuple[Segment, Int[np.ndarray, " n"]]]:
    """Yields places of items of one segment after another, as many as are copied at a time."""
    for segment in segments:
        alive = np.arange(len(segment.embeddings)) if segment.alive is None else np.flatnonzero(segment.alive)
        if not alive.size:
            continue
        tokens = segment.embeddings.tokens
        bytes_before = np.cumsum(segment.embeddings.lengths[alive]) * (tokens.shape[1] * tokens.itemsize)
        cuts = np.searchsorted(bytes_before, np.arange(COPIED_BYTES, int(bytes_before[-1]), COPIED_BYTES))
        for places in np.split(alive, np.unique(cuts)):
            if places.size:
                yield segment, places


def _move(db: sqlite3.Connection, moved: Iterable[tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]]) -> None:
    """Gives items their new rows."""
    db.execute("CREATE TEMP TABLE IF NOT EXISTS moved (old INTEGER PRIMARY KEY, new INTEGER)")
    db.execute("DELETE FROM moved")
    for old, new in moved:
        db.executemany("INSERT INTO moved VALUES (?, ?)", zip(old.tolist(), new.tolist(), strict=True))
    for table in ("item", "content"):
        new_row = f"(SELECT new FROM moved WHERE old = {table}.row)"
        db.execute(f"UPDATE {table} SET row = {new_row} WHERE row IN (SELECT old FROM moved)")
