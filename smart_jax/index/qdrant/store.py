"""Contents of an index's Qdrant collection: its facts, the layout of its vectors, and its points."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from smart_jax.files import checked_int, parse_json
from smart_jax.index.qdrant.collection import Collection, FieldKind, Filter, Layout, Point
from smart_jax.index.qdrant.filter import make_filter
from smart_jax.index.qdrant.payload import FACT, ITEM, all_of, fact_key, in_state
from smart_jax.index.value_cap import CAP, Narrowing, choose_width
from smart_jax.retrieval import Embeddings

AT_ONCE = 1000  # points without vectors
INDEXED_KEYS = 64  # fields of metadata
PIECE = 2**22  # characters of a fact that a point keeps
MOST_TEXTS = 10_000  # of which those in a range are chosen
FIXED_FIELDS: Mapping[str, Any] = {
    **dict.fromkeys(("state", "id", "path", "file", "label", "has"), "keyword"),
    **dict.fromkeys(("source", "page", "added", "length", "pooled"), "integer"),
}


class QdrantStore:
    """Points of an index in a collection, and what is known of them all.

    Attributes:
      collection: that has the points.
      cap: values of a point's tokens: fewer.
    """

    def __init__(self, collection: Collection, *, create: bool, cap: int = CAP):
        """Opens the index in a collection.

        Raises:
          FileNotFoundError: there is none, and it is not to be made.
          ValueError: the collection holds something else.
        """
        self.collection, self.cap = collection, cap
        self._pending: dict[str, Any] = {}
        self._kept: dict[str, Any] = {}
        self._narrowing: Narrowing | None = None
        self._last_added = 0
        self._keys: set[str] = set()
        self._made = False
        if not self.made:
            if collection.exists():
                raise ValueError(f"'{collection.place}' is no index: give another name, or delete the collection")
            if not create:
                raise FileNotFoundError(f"no index '{collection.place}': name a model to make one there")

    @property
    def place(self) -> str:
        """Address of the collection."""
        return self.collection.place

    @property
    def made(self) -> bool:
        """Whether the collection is there: it is made with the first items, perhaps by another process."""
        if not self._made:
            self._made = self.collection.exists() and self._read_fact("made") is not None
        return self._made

    def fact(self, name: str) -> Any:
        """Returns what is known of the index by this name; None = nothing."""
        return self._read_fact(name) if self.made else self._pending.get(name)

    def _read_fact(self, name: str) -> Any:
        pieces: list[str] = []
        count = 1
        while len(pieces) < count:
            keys = [fact_key(name, piece) for piece in range(len(pieces), min(count, len(pieces) + 4))]
            found = {p.key: p.payload for p in self.collection.retrieve(keys, ["value", "count"])}
            if len(found) < len(keys):
                return None
            pieces += [found[key]["value"] for key in keys]
            count = checked_int(found[keys[0]]["count"], f"'{self.place}': pieces of {name}")
        text = "".join(str(piece) for piece in pieces)
        return parse_json(text, f"'{self.place}': {name}", remedy="copy the index to another collection again")

    def set_facts(self, facts: Mapping[str, Any]) -> None:
        """States facts of the index."""
        if not self.made:
            self._pending |= facts
            return
        points = []
        for name, value in facts.items():
            text = json.dumps(value)
            pieces = [text[i : i + PIECE] for i in range(0, len(text), PIECE)]
            shared = {"state": FACT, "name": name, "count": len(pieces)}
            points += [Point(fact_key(name, i), shared | {"value": piece}) for i, piece in enumerate(pieces)]
        self.collection.upsert(points)

    @property
    def layout(self) -> Layout:
        """Widths and dtype of the vectors."""
        fields = self.once("vectors")
        return Layout(fields["pooled_width"], fields["token_width"], fields["name"])

    @property
    def narrowing(self) -> Narrowing | None:
        """Components that make the tokens narrower; None = they are as the model makes them."""
        if (fields := self.once("narrowing")) is None:
            return None
        if self._narrowing is None:
            self._narrowing = Narrowing.from_json(fields)
        return self._narrowing

    def once(self, name: str) -> Any:
        """Returns a fact that never changes."""
        if name not in self._kept:
            self._kept[name] = self.fact(name)
        return self._kept[name]

    def prepare(self, documents: Embeddings, longest: int, dtype: str) -> None:
        """Makes the collection, if there is none, for such documents.

        Args:
          documents: some, of which the narrower tokens are learnt, if they must be.
          longest: number of tokens of the longest document.
          dtype: of the stored tokens.
        """
        if self.made:
            return
        narrowing = None
        if fields := self._pending.get("narrowing"):  # of the index that this is to be a copy of
            narrowing = Narrowing.from_json(fields)
            documents = narrowing.of_model(documents)
        width = documents.tokens.shape[1]
        chosen = choose_width(longest, width, self.cap)
        if narrowing is not None and chosen < width:
            raise ValueError("the index has narrower tokens, and these are too long for Qdrant all the same: pool them")
        if chosen < width:
            narrowing = Narrowing.fit(documents, chosen)
        if not documents.pooled.shape[1]:
            raise ValueError(
                "the model has no pooled vectors, by which Qdrant chooses what it scores: keep its index in a folder"
            )
        layout = Layout(documents.pooled.shape[1], chosen, dtype)
        self.collection.create(layout)
        for field, kind in FIXED_FIELDS.items():
            self.collection.index(field, kind)
        self._made, self._kept = True, {}
        model_width = width if narrowing is None else len(narrowing.components)
        vectors = {**layout._asdict(), "name": layout.dtype, "model_width": model_width}
        vectors.pop("dtype")
        facts = {"vectors": vectors, "narrowing": None if narrowing is None else narrowing.to_json()}
        self.set_facts({**self._pending, **facts})

    def index_key(self, field: str, kind: FieldKind) -> None:
        """Makes an index on a field of the metadata, if there is none, and there are not many."""
        if field not in self._keys and len(self._keys) < INDEXED_KEYS:
            self.collection.index(field, kind)
            self._keys.add(field)

    def next_added(self, count: int) -> int:
        """Returns the first of so many numbers that rise from item to item."""
        first = max(time.time_ns() // 1000, self._last_added + 1)  # below 2**53
        self._last_added = first + count
        return first

    def filter(self, where: Mapping[str, Any]) -> Filter:
        """Returns the filter of items that fulfil a condition."""
        return all_of(in_state(ITEM), make_filter(where, self._texts))

    def _texts(self, field: str) -> list[str]:
        if not self.made:
            return []
        self.collection.index(field, "keyword")
        values = self.collection.values(field, all_of(in_state(ITEM)), MOST_TEXTS + 1)
        if len(values) > MOST_TEXTS:
            raise ValueError(
                f"where: '{field}' has more than {MOST_TEXTS} different texts, and Qdrant has no ranges of texts: "
                "compare numbers, or use 'in'"
            )
        return list(values)

    def scroll(self, where: Filter, fields: Sequence[str]) -> Iterator[Point]:
        """Yields all points that a filter lets through, in the order in which they were added."""
        after: int | None = None
        while self.made:
            some = self.collection.scroll(where, AT_ONCE, [*fields, "added"], after=after)
            yield from some
            if len(some) < AT_ONCE:
                return
            after = some[-1].payload["added"]

    def retrieve(self, keys: Sequence[str], fields: Sequence[str], *, vectors: bool = False) -> Iterator[Point]:
        """Yields the points of these keys, in any order; those that there are not are left out."""
        for first in range(0, len(keys), AT_ONCE):
            yield from self.collection.retrieve(keys[first : first + AT_ONCE], fields, vectors=vectors)
