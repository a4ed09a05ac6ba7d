"""Payloads of a Qdrant collection: what an index keeps of items, files and itself.

Each point has a `state`: an item, an item that waits for the rest of its file, a file, a file that is begun or being
published, or a fact of the index.
"""

from __future__ import annotations

import base64
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from smart_jax.index.qdrant.collection import Filter, Payload
from smart_jax.index.qdrant.filter import typed_fields
from smart_jax.index.records import Key, KnownItem, Record, Source

ITEM, WAITING, FILE, BEGUN, PUBLISHING, FACT = "item", "waiting", "file", "begun", "publishing", "fact"
SHOWN = ("id", "file", "path", "page", "metadata", "text")
RECORD = ("id", "hash", "source", "page", "metadata", "text", "tokens")
SOURCE = ("source", "path", "file", "hash", "size", "how")
NAMESPACE = uuid.UUID("0f3c5b5e-6a8e-5d0c-9c66-6b1f5b1c6a57")


def item_key(record: Record) -> str:
    """Returns the key of an item's point: that of its id, or of its id in its file, which another version has not.

    Example:
      >>> item_key(Record("a", "")) == item_key(Record("a", "0")) != item_key(Record("a", "", source=1))
      True
    """
    return _key(record.id if record.source is None else f"{record.source}/{record.id}", "item")


def source_key(number: int) -> str:
    """Returns the key of a file's point."""
    return _key(str(number), "source")


def fact_key(name: str, piece: int) -> str:
    """Returns the key of a piece of a fact."""
    return _key(f"{name}/{piece}", "fact")


def _key(name: str, kind: str) -> str:
    return str(uuid.uuid5(NAMESPACE, f"{kind} {name}"))


def item_payload(record: Record, source: Source | None, added: int, length: int, factor: int) -> dict[str, Any]:
    """Returns the payload of an item.

    Args:
      record: of the item.
      source: its file; None = it has none.
      added: a number that later items have larger ones than.
      length: number of its tokens.
      factor: by how much they were pooled.
    """
    fields: dict[str, Any] = {"state": ITEM if source is None else WAITING, "id": record.id, "hash": record.hash}
    fields |= {"added": added, "length": length, "pooled": factor} | typed_fields(record.metadata)
    fields["has"] = [*fields["has"], "id"]
    if source is not None:
        fields |= {"source": source.number, "file": source.file, "path": source.path, "how": source.how}
        fields |= {"label": record.id.removesuffix(f"#{record.page}")}
        fields["has"] += ["file", "path"] if record.page is None else ["file", "path", "page"]
    optional = {"page": record.page, "text": record.text}
    fields |= {name: value for name, value in optional.items() if value is not None}
    return fields if record.tokens is None else fields | {"tokens": base64.b64encode(record.tokens).decode()}


def described(payload: Payload, metadata: str | None) -> dict[str, Any]:
    """Returns the fields of an item that change with its metadata."""
    own = [name for name in ("id", "file", "path", "page") if payload.get(name) is not None]
    fields = typed_fields(metadata)
    return fields | {"has": [*fields["has"], *own]}


def source_payload(source: Source, added: int) -> dict[str, Any]:
    """Returns the payload of a file that is begun."""
    fields = source._asdict()
    return {**fields, "state": BEGUN, "source": fields.pop("number"), "added": added}


def read_source(payload: Payload) -> Source:
    """Returns the file of a payload."""
    return Source(*(payload[name] for name in SOURCE))


def read_record(payload: Payload) -> Record:
    """Returns the record of an item's payload."""
    fields: dict[str, Any] = {name: payload.get(name) for name in RECORD}
    tokens = None if fields["tokens"] is None else base64.b64decode(fields["tokens"])
    return Record(**{**fields, "metadata": fields["metadata"] or None, "tokens": tokens})


def known_item(key: Key, payload: Payload) -> KnownItem:
    """Returns what a writer asks of an item."""
    return KnownItem(key, payload["hash"], payload.get("metadata") or None)


def in_state(*states: str) -> dict[str, Any]:
    """Returns the condition that a point is in one of the states."""
    return {"key": "state", "match": {"any": list(states)}}


def having(field: str, values: Sequence[Any]) -> dict[str, Any]:
    """Returns the condition that a field has one of the values."""
    return {"key": field, "match": {"any": list(values)}}


def of_keys(keys: Iterable[Key]) -> dict[str, Any]:
    """Returns the condition that a point has one of the keys."""
    return {"has_id": [str(key) for key in keys]}


def all_of(*conditions: Filter, but: Sequence[Filter] = ()) -> dict[str, Any]:
    """Returns the filter of points that fulfil all conditions, and none of the others.

    Example:
      >>> all_of(in_state("item"), but=[of_keys(["a"])])
      {'must': [{'key': 'state', 'match': {'any': ['item']}}], 'must_not': [{'has_id': ['a']}]}
    """
    return {"must": list(conditions)} | ({"must_not": list(but)} if but else {})
