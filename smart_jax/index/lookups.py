"""Questions that a writer asks of the catalog before it changes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from smart_jax.files import shown
from smart_jax.index.catalog import Catalog
from smart_jax.index.documents import load_metadata
from smart_jax.index.records import Key, KnownItem, Source
from smart_jax.index.where import parse_where


class Lookups:
    """Items and files that a catalog has."""

    def __init__(self, catalog: Catalog):
        self._catalog = catalog

    def keys(self, ids: Sequence[str] | None, where: Mapping[str, Any] | None) -> list[Key]:
        """Returns the items that have one of the ids, if any are given, and fulfil the condition, if one is."""
        condition = parse_where(where or {})
        with self._catalog.reading() as db:
            query = f"SELECT item.row FROM item WHERE {condition.sql}"
            if ids is None:
                return [row for (row,) in db.execute(query, condition.values)]
            each = (db.execute(f"{query} AND item.id = ?", (*condition.values, name)).fetchone() for name in ids)
            return sorted({row for found in each if found is not None for row in found})

    def metadata(self, keys: Sequence[Key]) -> list[Mapping[str, Any]]:
        """Returns the metadata of each item."""
        query = "SELECT metadata, id FROM item WHERE row = ?"
        with self._catalog.reading() as db:
            found = [db.execute(query, (key,)).fetchone() for key in keys]
        return [load_metadata(text, f"item {shown(name)} of '{self._catalog.path.parent}'") for text, name in found]

    def known(self, ids: Sequence[str]) -> dict[str, KnownItem]:
        """Returns the items of these ids; those that there are not are left out."""
        query = "SELECT id, row, hash, metadata FROM item WHERE id IN (SELECT value FROM json_each(?))"
        with self._catalog.reading() as db:
            return {name: KnownItem(*found) for name, *found in db.execute(query, (json.dumps(list(ids)),))}

    def items_of(self, source: int) -> list[KnownItem]:
        """Returns the items of a file that can be found."""
        with self._catalog.reading() as db:
            found = db.execute("SELECT row, hash, metadata FROM item WHERE source = ?", (source,)).fetchall()
        return [KnownItem(*each) for each in found]

    def source(self, path: str, *, complete: bool) -> Source | None:
        """Returns the file of a path, all of whose items are there, or not yet; None = there is no such file."""
        query = "SELECT number, path, file, hash, size, how FROM source WHERE path = ? AND complete = ?"
        with self._catalog.reading() as db:
            found = db.execute(query, (path, complete)).fetchone()
        return None if found is None else Source(*found)

    def waiting(self, source: int) -> set[int | None]:
        """Returns the pages of a file that wait, unseen, for its others."""
        with self._catalog.reading() as db:
            found = db.execute("SELECT page FROM staged WHERE source = ?", (source,)).fetchall()
        return {page for (page,) in found}

    def path_of(self, name: str) -> str | None:
        """Returns the path of the file whose items are named after this; None = there is none."""
        query = (
            "SELECT source.path FROM item JOIN source ON source.number = item.source "
            "WHERE item.id IN (?, ? || '#1') OR (item.id > ? || '#' AND item.id < ? || '$') LIMIT 1"
        )
        with self._catalog.reading() as db:
            found = db.execute(query, (name, name, name, name)).fetchone()
        return None if found is None else str(found[0])
