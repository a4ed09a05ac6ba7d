"""The Qdrant engine: an index in a collection of a cluster, which scores inside."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from smart_jax.index.choosing import pooled_candidates
from smart_jax.index.documents import load_metadata
from smart_jax.index.engine import ExplainKey, Wanted, Where
from smart_jax.index.explaining import StoredTrace
from smart_jax.index.hits import Hit, StoredItem
from smart_jax.index.index_info import IndexInfo
from smart_jax.index.qdrant.collection import Payload, Point
from smart_jax.index.qdrant.payload import (
    FILE,
    ITEM,
    RECORD,
    SHOWN,
    SOURCE,
    WAITING,
    all_of,
    having,
    in_state,
    known_item,
    read_record,
    read_source,
)
from smart_jax.index.qdrant.search import Asked, find
from smart_jax.index.qdrant.store import QdrantStore
from smart_jax.index.qdrant.writer import QdrantWriter
from smart_jax.index.records import Key, ListedItem, Record, Source
from smart_jax.retrieval import Embeddings

AT_ONCE = 1000  # points without vectors
PIECE = 2**22  # characters of a fact that a point keeps
MOST_TEXTS = 10_000  # of which those in a range are chosen
WIDTHS = ("pooled_width", "model_width")
SAMPLED_VALUES = 2**22  # of tokens that evidence is compared with
FIXED_FIELDS: Mapping[str, Any] = {
    **dict.fromkeys(("state", "id", "path", "file", "label", "has"), "keyword"),
    **dict.fromkeys(("source", "page", "added", "length", "pooled"), "integer"),
}


class QdrantEngine:
    """An index in a collection; everybody who knows the address searches it.

    Attributes:
      store: that has the points.
    """

    def __init__(self, store: QdrantStore):
        self.store = store
        self._others: list[tuple[str, Embeddings]] | None = None

    @property
    def place(self) -> str:
        """Address of the collection."""
        return str(self.store.collection.place)

    def fact(self, name: str) -> Any:
        """Returns what is known of the index by this name; None = nothing."""
        return self.store.fact(name)

    def set_facts(self, facts: Mapping[str, Any]) -> None:
        """States facts of the index."""
        self.store.set_facts(facts)

    def __len__(self) -> int:
        return self.store.collection.count(all_of(in_state(ITEM))) if self.store.made else 0

    def __contains__(self, item_id: object) -> bool:
        if not self.store.made or not isinstance(item_id, str):
            return False
        return self.store.collection.count(all_of(in_state(ITEM), having("id", [item_id]))) > 0

    def key(self, item_id: str) -> Key:
        """Returns the key of an item; raises KeyError where there is none of this id."""
        found = next(self.store.scroll(all_of(in_state(ITEM), having("id", [item_id])), []), None)
        if found is None:
            raise KeyError(item_id)
        return found.key

    def items(self, where: Where) -> Iterator[StoredItem]:
        """Yields the items that fulfil a condition, in the order in which they were added."""
        for point in self.store.scroll(self.store.filter(where), SHOWN):
            yield StoredItem(**shown(point.payload, self.place))

    def info(self) -> IndexInfo:
        """Returns what is in the index, in numbers; bytes are those of the vectors."""
        counts: dict[str, Any] = dict.fromkeys(("items", "files", "waiting", "tokens", "bytes"), 0)
        vectors: dict[str, Any] = {}
        if self.store.made:
            for name, state in (("items", ITEM), ("files", FILE), ("waiting", WAITING)):
                counts[name] = self.store.collection.count(all_of(in_state(state)))
            here = all_of(in_state(ITEM))
            lengths = self.store.collection.values("length", here, self.store.cap)
            counts["tokens"] = sum(int(length) * count for length, count in lengths.items())
            row_bytes = self.store.layout.token_width * np.dtype(self.store.layout.dtype).itemsize
            counts["bytes"] = counts["items"] * 4 * self.store.layout.pooled_width + counts["tokens"] * row_bytes
            more = {"key": "pooled", "range": {"gte": 2}}
            vectors = {**self.store.once("vectors"), "pooled_items": self.store.collection.count(all_of(here, more))}
        model = self.store.fact("model") or {}
        return IndexInfo(self.place, **counts, removed=0, segments=0, vectors=vectors, model=model)

    @contextlib.contextmanager
    def writing(self) -> Iterator[QdrantWriter]:
        """Yields a writer, after what an earlier one was killed over is finished; there may be others."""
        writer = QdrantWriter(self.store)
        writer.repair()
        yield writer
        self._others = None

    def as_stored(self, queries: Embeddings) -> Embeddings:
        """Returns queries in the form of the stored tokens, as Qdrant rounds them, in float32.

        Raises:
          ValueError: their widths are not those of the index.
        """
        fields = self.store.once("vectors")
        widths, own = (
            (queries.pooled.shape[1], queries.tokens.shape[1]),
            (fields["pooled_width"], fields["model_width"]),
        )
        if widths != own:
            raise ValueError(
                f"the query has pooled width {widths[0]} and token width {widths[1]}, the index {own[0]} and {own[1]}: "
                "encode it with the model of the index"
            )
        queries = queries.astype(np.float32)
        if self.store.narrowing is not None:
            queries = self.store.narrowing(queries)
        tokens = queries.tokens.astype(self.store.layout.dtype).astype(np.float32)
        return dataclasses.replace(queries, tokens=tokens)

    def search(self, queries: Embeddings, wanted: Wanted, explain: Sequence[ExplainKey]) -> list[list[Hit]]:
        """Returns the hits of each query."""
        if not self.store.made:
            return [[] for _ in explain]
        asked = Asked(
            self.as_stored(queries),
            self.store.filter(wanted.where),
            wanted.k,
            wanted.weights,
            pooled_candidates(wanted),
        )
        found = find(self.store.collection, asked)
        keys = sorted({each.key for some in found for each in some})
        payloads = {point.key: point.payload for point in self.store.retrieve(keys, [*SHOWN, "added"])}
        hits = []
        for some, why in zip(found, explain, strict=True):
            there = [each for each in some if each.key in payloads]  # but for what was removed meanwhile
            there.sort(key=lambda each: (-each.score, payloads[each.key]["added"]))
            fields = [
                {**shown(payloads[e.key], self.place), "score": e.score, "pooled": e.pooled, "late": e.late}
                for e in there
            ]
            hits.append([Hit(**f, explain=partial(why, e.key)) for f, e in zip(fields, there, strict=True)])
        return hits

    def traced(self, key: Key, sample: int) -> tuple[StoredTrace, Embeddings | None]:
        """Returns what is stored of an item, and so many others that its evidence is compared with.

        Raises:
          ValueError: the item was removed or replaced since.
        """
        found = self.store.collection.retrieve([str(key)], [*RECORD, "path", "how", "state"], vectors=True)
        if not found or found[0].payload.get("state") != ITEM:
            raise ValueError("the item was removed or replaced since: search again")
        payload, record = found[0].payload, read_record(found[0].payload)
        path, how = payload.get("path"), payload.get("how")
        digest = None if path is None else record.hash
        stored = StoredTrace(join(found), record.tokens, record.text, path, digest, how, record.page)
        if not sample:
            return stored, None
        if self._others is None:
            self._others = self._some(sample + 1)
        others = [each for name, each in self._others if name != key][:sample]
        return stored, Embeddings.concatenate(others) if others else None

    def _some(self, most: int) -> list[tuple[str, Embeddings]]:
        """Returns some items, of limited size; keys are hashes, so that the first of them are of all kinds."""
        heads = self.store.collection.some(all_of(in_state(ITEM)), most, ["length"])
        sizes = np.cumsum([point.payload["length"] * self.store.layout.token_width for point in heads])
        keys = [point.key for point in heads[: max(8, int(np.searchsorted(sizes, SAMPLED_VALUES)))]]
        return [(point.key, join([point])) for point in self.store.retrieve(keys, [], vectors=True)]

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Dtypes that tokens are stored as."""
        return ("float16", "float32")

    def prepare(self, documents: Embeddings, longest: int) -> None:
        """Makes the collection for documents such as these, of so many tokens at most."""
        self.store.prepare(documents, longest, self.fact("made")["dtype"])

    def sample(self, most: int) -> Embeddings | None:
        """Returns some of the items; None = there are none."""
        some = self._some(most) if self.store.made else []
        return Embeddings.concatenate([each for _, each in some]) if some else None

    def longest(self) -> int:
        """Returns the number of tokens of the longest item."""
        return max(map(int, self.store.collection.values("length", all_of(in_state(ITEM)), self.store.cap)), default=0)

    def sources(self) -> list[Source]:
        """Returns the files all of whose items are there."""
        return [read_source(point.payload) for point in self.store.scroll(all_of(in_state(FILE)), SOURCE)]

    def list_items(self, source: int | None) -> list[ListedItem]:
        """Returns the items of a file, or those of none, in the order in which they were added."""
        where = all_of(in_state(ITEM), *([] if source is None else [having("source", [source])]))
        if source is None:
            where = all_of(where, but=[having("has", ["path"])])
        fields = ("id", "hash", "metadata", "page")
        found = ((point.payload, known_item(point.key, point.payload)) for point in self.store.scroll(where, fields))
        return [ListedItem(payload["id"], payload.get("page"), known) for payload, known in found]

    def read(self, keys: Sequence[Key]) -> tuple[Embeddings, list[Record]]:
        """Returns vectors and records of items.

        Raises:
          ValueError: one was removed since.
        """
        found = {
            point.key: point for point in self.store.collection.retrieve(list(map(str, keys)), RECORD, vectors=True)
        }
        if len(found) < len(keys):
            raise ValueError("an item was removed or replaced meanwhile: call it again")
        points = [found[str(key)] for key in keys]
        return join(points), [read_record(point.payload) for point in points]

    def close(self) -> None:
        """Ends the connection."""
        self.store.collection.close()


def join(points: Sequence[Point]) -> Embeddings:
    """Returns the vectors of points as embeddings, in float32."""
    pooled = [point.pooled for point in points if point.pooled is not None]
    tokens = [point.late for point in points if point.late is not None]
    if min(len(pooled), len(tokens)) < len(points):
        raise ValueError("a point has no vectors: the collection is damaged")
    offsets = np.concatenate([[0], np.cumsum([len(part) for part in tokens])]).astype(np.int64)
    return Embeddings(np.stack(pooled), np.concatenate(tokens), offsets)


def shown(payload: Payload, place: str) -> dict[str, Any]:
    """Returns the fields of a `StoredItem` in a collection, which messages name."""
    fields = {name: payload.get(name) for name in SHOWN}
    return fields | {"metadata": load_metadata(payload.get("metadata"), f"item {payload.get('id')!r} of '{place}'")}
