"""The local engine: an index in a folder, SQLite and segments of vectors."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from jaxtyping import Bool

from smart_jax.index.certificate import Certificate
from smart_jax.index.certifying import Target, certify
from smart_jax.index.choosing import first_stage_of
from smart_jax.index.engine import ExplainKey, Wanted, Where
from smart_jax.index.explaining import StoredTrace
from smart_jax.index.hits import Hit, StoredItem, read_hits, read_items
from smart_jax.index.index_info import IndexInfo
from smart_jax.index.ranking import rank
from smart_jax.index.records import Key, ListedItem, Record, Source
from smart_jax.index.snapshot import Snapshot
from smart_jax.index.spans import span_queries
from smart_jax.index.stages import Marked, StageName
from smart_jax.index.store import Store
from smart_jax.index.stored_items import list_items, list_sources, longest, read_stored
from smart_jax.index.value_cap import Narrowing
from smart_jax.index.vector_format import STORED
from smart_jax.index.where import Condition, index_statement, parse_where
from smart_jax.index.writer import Writer
from smart_jax.retrieval import Embeddings

ITEMS_AT_ONCE = 1000
MASKS_KEPT = 16  # of conditions
STORED_TRACE = (
    "SELECT content.tokens, content.text, source.path, source.hash, source.how, item.page FROM item "
    "LEFT JOIN content ON content.row = item.row LEFT JOIN source ON source.number = item.source WHERE item.row = ?"
)
INDEXED_FROM = 5000  # items: in fewer, a search for metadata looks at all of them

Mask = Bool[np.ndarray, " _"] | None


class LocalEngine:
    """An index in a folder, which many processes search while one writes.

    Attributes:
      store: of the folder.
    """

    def __init__(self, store: Store):
        self.store = store
        self._indexed: set[str] = set()
        self._masks: dict[tuple[Any, ...], list[Mask]] = {}

    @property
    def place(self) -> str:
        """The folder, as text."""
        return str(self.store.folder)

    def fact(self, name: str) -> Any:
        """Returns what is known of the index by this name; None = nothing."""
        return self.store.catalog.get(name)

    def set_facts(self, facts: Mapping[str, Any]) -> None:
        """States facts of the index, in one transaction."""
        with self.store.catalog.writing():
            for name, value in facts.items():
                self.store.catalog.set(name, value)

    def __len__(self) -> int:
        with self.store.catalog.reading() as db:
            return int(db.execute("SELECT count(*) FROM item").fetchone()[0])

    def __contains__(self, item_id: object) -> bool:
        with self.store.catalog.reading() as db:
            return db.execute("SELECT 1 FROM item WHERE id = ?", (item_id,)).fetchone() is not None

    def key(self, item_id: str) -> Key:
        """Returns the row of an item; raises KeyError where there is none of this id."""
        with self.store.catalog.reading() as db:
            found = db.execute("SELECT row FROM item WHERE id = ?", (item_id,)).fetchone()
        if found is None:
            raise KeyError(item_id)
        return int(found[0])

    def items(self, where: Where) -> Iterator[StoredItem]:
        """Yields the items that fulfil a condition, in the order in which they were added."""
        condition, last = parse_where(where), -1
        while True:
            with self.store.catalog.reading() as db:  # some at a time, so that none who stops early holds it
                values = (*condition.values, last)
                later = f"{condition.sql} AND item.row > ?"
                some = list(read_items(db, later, values, place=self.place, most=ITEMS_AT_ONCE))
            if not some:
                return
            last = some[-1][0]
            for _, fields in some:
                yield StoredItem(**fields)

    def info(self) -> IndexInfo:
        """Returns what is in the index, in numbers."""
        return IndexInfo.of(self.store)

    def writing(self) -> AbstractContextManager[Writer]:
        """Yields the one writer, as `Store.writing` does."""
        return self.store.writing()

    def as_stored(self, queries: Embeddings) -> Embeddings:
        """Returns the queries; in a copy of an index whose tokens were made narrower, they are so, too."""
        narrowing = self.store.catalog.get("narrowing")
        return queries if narrowing is None else Narrowing.from_json(narrowing).of_model(queries)

    def search(self, queries: Embeddings, wanted: Wanted, explain: Sequence[ExplainKey]) -> list[list[Hit]]:
        """Returns the hits of each query, all as of one moment."""
        condition, queries = parse_where(wanted.where), self.as_stored(queries)
        self._index_keys(condition)
        with self.store.reading() as (db, snapshot):
            self._check_widths(queries)
            allowed = self._allowed(db, snapshot, condition)
            verdict = self.store.catalog.get("verdict") if wanted.candidates == "auto" else None
            stage = first_stage_of(wanted, snapshot, allowed, verdict)
            ranked = rank(queries, snapshot, allowed, wanted.k, wanted.weights, stage)
            return [read_hits(db, each, why, place=self.place) for each, why in zip(ranked, explain, strict=True)]

    def _allowed(self, db: sqlite3.Connection, snapshot: Snapshot, condition: Condition) -> list[Mask]:
        """Returns, for each segment, which items are in the index and fulfil the condition; None = all."""
        if condition.sql == "1":
            return [segment.alive for segment in snapshot.segments]
        key = (snapshot.generation, condition.sql, *map(repr, condition.values))
        if (masks := self._masks.get(key)) is None:
            found = db.execute(f"SELECT item.row FROM item WHERE {condition.sql}", condition.values).fetchall()
            masks = list(snapshot.allowed(np.sort(np.fromiter((row for (row,) in found), np.int64, len(found)))))
            while len(self._masks) >= MASKS_KEPT:
                self._masks.pop(next(iter(self._masks)), None)
            self._masks[key] = masks
        return masks

    def _check_widths(self, queries: Embeddings) -> None:
        if (files := self.store.files) is None:
            return
        widths = queries.pooled.shape[1], queries.tokens.shape[1]
        if widths != (files.format.pooled_width, files.format.token_width):
            raise ValueError(
                f"the query has pooled width {widths[0]} and token width {widths[1]}, the index "
                f"{files.format.pooled_width} and {files.format.token_width}: encode it with the model of the index"
            )

    def _index_keys(self, condition: Condition) -> None:
        """Makes indexes on keys that are asked for, where there is something to gain."""
        if not (new := condition.keys - self._indexed) or len(self) < INDEXED_FROM:
            return
        self._indexed |= new
        with contextlib.suppress(sqlite3.OperationalError), self.store.catalog.writing() as db:  # or it is read-only
            for key in sorted(new):
                db.execute(index_statement(key))

    def traced(self, key: Key, sample: int) -> tuple[StoredTrace, Embeddings | None]:
        """Returns what is stored of an item, and so many others that its evidence is compared with.

        Raises:
          ValueError: the item was removed or replaced since.
        """
        row = int(key)
        with self.store.reading() as (db, snapshot):
            found = db.execute(STORED_TRACE, (row,)).fetchone()
            item = snapshot.item(row)
            if found is None or item is None:
                raise ValueError("the item was removed or replaced since: search again")
            return StoredTrace(item, *found), snapshot.sample(sample, without=row)

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Dtypes that tokens are stored as."""
        return STORED

    def prepare(self, documents: Embeddings, longest: int) -> None:
        """Does nothing: a folder takes documents of any length."""

    def sample(self, most: int) -> Embeddings | None:
        """Returns some of the items, spread over all; None = there are none."""
        with self.store.reading() as (_, snapshot):
            return snapshot.sample(most, without=-1)

    def longest(self) -> int:
        """Returns the number of tokens of the longest item."""
        return longest(self.store)

    def sources(self) -> list[Source]:
        """Returns the files all of whose items are there."""
        return list_sources(self.store)

    def list_items(self, source: int | None) -> list[ListedItem]:
        """Returns the items of a file, or those of none, in the order in which they were added."""
        return list_items(self.store, source)

    def read(self, keys: Sequence[Key]) -> tuple[Embeddings, list[Record]]:
        """Returns vectors and records of items; raises ValueError where one was removed since it was listed."""
        return read_stored(self.store, keys)

    def spans(self) -> list[dict[str, str]]:
        """Returns one or two words of up to 200 of the texts; raises what `span_queries` does."""
        return span_queries(self.store)

    def certify(self, queries: Embeddings, target: Target, stages: Sequence[StageName], source: str) -> Certificate:
        """Measures first stages and stores the verdict; raises what `certifying.certify` does."""
        queries = self.as_stored(queries)
        self._check_widths(queries)
        return certify(self.store, queries, target, stages, source=source)

    def keep_stages(self, names: Sequence[Marked]) -> None:
        """Keeps what these first stages need, and removes what others need; raises what `Writer.keep_stages` does."""
        with self.store.writing() as writer:
            writer.keep_stages(names)
            with self.store.catalog.writing():
                self.store.catalog.set("kept", list(names))

    def close(self) -> None:
        """Closes the catalog."""
        self.store.close()
