"""Items of a local index as they are stored: listed, and read with all that is known of them."""

from __future__ import annotations

from collections.abc import Sequence

from smart_jax.index.records import Key, KnownItem, ListedItem, Record, Source
from smart_jax.index.store import Store
from smart_jax.retrieval import Embeddings

RECORD = (
    "SELECT item.id, item.hash, item.source, item.page, item.metadata, content.text, content.tokens FROM item "
    "LEFT JOIN content ON content.row = item.row WHERE item.row = ?"
)


def list_sources(store: Store) -> list[Source]:
    """Returns the files all of whose items are there."""
    with store.catalog.reading() as db:
        query = "SELECT number, path, file, hash, size, how FROM source WHERE complete ORDER BY number"
        return [Source(*found) for found in db.execute(query)]


def list_items(store: Store, source: int | None) -> list[ListedItem]:
    """Returns the items of a file, or those of none, in the order in which they were added."""
    query = "SELECT id, page, row, hash, metadata FROM item WHERE source IS ? ORDER BY row"
    with store.catalog.reading() as db:
        return [ListedItem(name, page, KnownItem(*found)) for name, page, *found in db.execute(query, (source,))]


def read_stored(store: Store, keys: Sequence[Key]) -> tuple[Embeddings, list[Record]]:
    """Returns vectors and records of items.

    Raises:
      ValueError: one was removed since it was listed.
    """
    parts, records = [], []
    with store.reading() as (db, snapshot):
        for key in keys:
            item, found = snapshot.item(int(key)), db.execute(RECORD, (key,)).fetchone()
            if item is None or found is None:
                raise ValueError("an item was removed or replaced meanwhile: call it again")
            parts.append(item)
            records.append(Record(*found))
    return Embeddings.concatenate(parts), records


def longest(store: Store) -> int:
    """Returns the number of tokens of the longest item."""
    with store.reading() as (_, snapshot):
        lengths = [
            s.embeddings.lengths if s.alive is None else s.embeddings.lengths[s.alive] for s in snapshot.segments
        ]
    return max((int(each.max(initial=0)) for each in lengths), default=0)
