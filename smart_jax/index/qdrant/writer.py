"""The writer of a Qdrant collection: items first, then a file's publication, in steps that can be taken again.

Qdrant has no transactions over points. An item alone takes the other's place in one step. The items of a file wait,
until the file is marked as being published; what follows is repeated by the next writer where this one was killed.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection as Several
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from smart_jax.index.documents import load_metadata
from smart_jax.index.explaining import pack_sources, unpack_sources
from smart_jax.index.qdrant.collection import Point
from smart_jax.index.qdrant.payload import (
    BEGUN,
    FILE,
    ITEM,
    PUBLISHING,
    SOURCE,
    WAITING,
    all_of,
    described,
    having,
    in_state,
    item_key,
    item_payload,
    known_item,
    of_keys,
    read_source,
    source_key,
    source_payload,
)
from smart_jax.index.qdrant.store import AT_ONCE, QdrantStore
from smart_jax.index.records import Key, KnownItem, Record, Source
from smart_jax.index.value_cap import choose_factor, pool_long
from smart_jax.index.vector_format import VectorFormat
from smart_jax.retrieval import Embeddings

ITEM_FIELDS = ("id", "hash", "metadata", "page", "source", "file", "path")


class QdrantWriter:
    """Changes an index in a collection."""

    def __init__(self, store: QdrantStore):
        self._store, self._collection = store, store.collection

    def keys(self, ids: Sequence[str] | None, where: Mapping[str, Any] | None) -> list[Key]:
        """Returns the items that have one of the ids, if any are given, and fulfil the condition, if one is."""
        if not self._store.made:
            return []
        condition = self._store.filter(where or {})
        if ids is None:
            return [point.key for point in self._store.scroll(condition, [])]
        wanted = (all_of(condition, having("id", some)) for some in _runs(ids))
        return [point.key for each in wanted for point in self._store.scroll(each, [])]

    def metadata(self, keys: Sequence[Key]) -> list[Mapping[str, Any]]:
        """Returns the metadata of each item."""
        found = {point.key: point.payload for point in self._store.retrieve(list(map(str, keys)), ["id", "metadata"])}
        items = [found[str(key)] for key in keys]
        return [load_metadata(each.get("metadata"), f"item {each['id']!r} of '{self._store.place}'") for each in items]

    def known(self, ids: Sequence[str]) -> dict[str, KnownItem]:
        """Returns the items of these ids; those that there are not are left out."""
        found: dict[str, KnownItem] = {}
        for some in _runs(ids) if self._store.made else ():
            here = all_of(in_state(ITEM), having("id", some))
            for point in self._store.scroll(here, ("id", "hash", "metadata")):
                found[point.payload["id"]] = known_item(point.key, point.payload)
        return found

    def items_of(self, source: int) -> list[KnownItem]:
        """Returns the items of a file that can be found."""
        here = all_of(in_state(ITEM), having("source", [source]))
        return [known_item(point.key, point.payload) for point in self._store.scroll(here, ITEM_FIELDS)]

    def source(self, path: str, *, complete: bool) -> Source | None:
        """Returns the file of a path, all of whose items are there, or not yet; None = there is no such file."""
        here = all_of(in_state(FILE if complete else BEGUN), having("path", [path]))
        found = next(self._store.scroll(here, SOURCE), None)
        return None if found is None else read_source(found.payload)

    def waiting(self, source: int) -> set[int | None]:
        """Returns the pages of a file that wait, unseen, for its others."""
        here = all_of(in_state(WAITING), having("source", [source]))
        return {point.payload.get("page") for point in self._store.scroll(here, ["page"])}

    def path_of(self, name: str) -> str | None:
        """Returns the path of the file whose items are named after this; None = there is none."""
        found = next(self._store.scroll(all_of(in_state(ITEM), having("label", [name])), ["path"]), None)
        return None if found is None else str(found.payload["path"])

    def new_source(self) -> int:
        """Returns a number that no file has had."""
        return secrets.randbits(52)

    def put(
        self,
        embeddings: Embeddings | None,
        records: Sequence[Record],
        *,
        begun: Iterable[Source] = (),
        finished: Several[int] = (),
        dtype: str = "float16",
    ) -> None:
        """Adds items; one whose id is there takes the other's place. Files appear when they are finished.

        Args:
          embeddings, records, begun, finished: as in `Writer.put`.
          dtype: of the tokens, where the collection is new.
        """
        if embeddings is not None:
            self._store.prepare(embeddings, int(embeddings.lengths.max()), dtype)
        sources = [Point(source_key(s.number), source_payload(s, self._store.next_added(1))) for s in begun]
        if sources:
            self._collection.upsert(sources)
        if embeddings is not None:
            self._add(embeddings, records)
        for number in finished:
            self._collection.set_payload({"state": PUBLISHING}, keyed([source_key(number)]))
            self._publish(number)

    def _add(self, embeddings: Embeddings, records: Sequence[Record]) -> None:
        self._index_keys(records)
        added, files = self._store.next_added(len(records)), self._sources(records)
        points = []
        for i, record in enumerate(records):
            item, record, factor = self._fitted(embeddings[i], record)
            source = None if record.source is None else files[record.source]
            payload = item_payload(record, source, added + i, len(item.tokens), factor)
            points.append(Point(item_key(record), payload, item.pooled[0], item.tokens.astype(np.float32)))
        self._collection.upsert(points)
        alone = [record for record in records if record.source is None]
        for some in _runs(alone):  # of a file, an item of the same id has another key
            former = all_of(in_state(ITEM), having("id", [r.id for r in some]), but=[of_keys(map(item_key, some))])
            self._collection.delete(former)

    def _fitted(self, item: Embeddings, record: Record) -> tuple[Embeddings, Record, int]:
        """Returns an item as it is stored, below the cap, and by how much its tokens were pooled."""
        layout, narrowing = self._store.layout, self._store.narrowing
        if narrowing is not None:
            item = narrowing.of_model(item)
        factor = choose_factor(len(item.tokens), layout.token_width, self._store.cap)
        if factor > 1:
            item, groups = pool_long(item, factor)
            if record.tokens is not None:
                record = record._replace(tokens=pack_sources(unpack_sources(record.tokens).grouped(groups)))
        return VectorFormat(layout.dtype, layout.pooled_width, layout.token_width).stored(item), record, factor

    def _sources(self, records: Sequence[Record]) -> dict[int, Source]:
        keys = sorted({source_key(record.source) for record in records if record.source is not None})
        return {p.payload["source"]: read_source(p.payload) for p in self._store.retrieve(keys, SOURCE)}

    def _index_keys(self, records: Sequence[Record]) -> None:
        """Makes indexes on the keys of metadata."""
        kinds: dict[str, Any] = {"number": "float", "numbers": "float", "string": "keyword", "strings": "keyword"}
        for text in {record.metadata for record in records}:
            payload = described({}, text)
            for kind, index in kinds.items():
                for name in payload[kind]:
                    self._store.index_key(f"{kind}.{name}", index)

    def _publish(self, number: int) -> None:
        """Puts the items that wait for a file in the place of those of the same path, and of the same ids."""
        (file,) = self._collection.retrieve([source_key(number)], SOURCE)
        source = read_source(file.payload)
        of_file = having("source", [number])
        self._collection.set_payload({"state": ITEM}, all_of(in_state(WAITING), of_file))
        same_path = all_of(in_state(ITEM), having("path", [source.path]), but=[of_file])
        self._collection.delete(same_path)
        ids = [point.payload["id"] for point in self._store.scroll(all_of(in_state(ITEM), of_file), ["id"])]
        for some in _runs(ids):
            self._collection.delete(all_of(in_state(ITEM), having("id", some), but=[of_file]))
        former = all_of(in_state(FILE), having("path", [source.path]))
        self._collection.delete(former)
        self._collection.set_payload({"state": FILE}, keyed([file.key]))

    def repair(self) -> None:
        """Finishes what a killed writer was publishing."""
        for point in self._store.scroll(all_of(in_state(PUBLISHING)), SOURCE):
            self._publish(point.payload["source"])

    def describe(self, changes: Iterable[tuple[str | None, Key]]) -> None:
        """Gives items other metadata: a JSON object or None, and the item."""
        by_text = sorted(changes, key=lambda change: change[0] or "")
        for text, same in groupby(by_text, key=lambda change: change[0]):
            keys = [str(key) for _, key in same]
            self._index_keys([Record("", "", metadata=text)])
            fields: dict[tuple[str, ...], list[str]] = {}
            for point in self._store.retrieve(keys, ITEM_FIELDS):
                fields.setdefault(tuple(described(point.payload, text)["has"]), []).append(point.key)
            for has, some in fields.items():
                payload = described({}, text) | {"has": list(has)}
                for run in _runs(some):
                    self._collection.set_payload(payload, keyed(run))

    def delete(self, keys: Iterable[Key]) -> None:
        """Removes items, and files that have none left."""
        chosen = [str(key) for key in keys]
        there = [point.payload for point in self._store.retrieve(chosen, ["source"])]
        sources = {int(payload["source"]) for payload in there if "source" in payload}
        for some in _runs(chosen):
            self._collection.delete(keyed(some))
        for number in sources:
            if not self._collection.count(all_of(in_state(ITEM), having("source", [number]))):
                self._collection.delete(keyed([source_key(number)]))

    def forget(self, source: int) -> None:
        """Removes what waits of a file."""
        self._collection.delete(all_of(in_state(WAITING), having("source", [source])))
        self._collection.delete(keyed([source_key(source)]))

    def compact(self) -> None:
        """Removes what waits of files whose adding was cut off; Qdrant gives room back by itself."""
        for point in list(self._store.scroll(all_of(in_state(BEGUN)), ["source"])):
            self.forget(point.payload["source"])


def keyed(keys: Iterable[Key]) -> dict[str, Any]:
    """Returns the filter of points of these keys."""
    return all_of(of_keys(keys))


def _runs(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Yields values, as many as a request names."""
    return (values[first : first + AT_ONCE] for first in range(0, len(values), AT_ONCE))
