"""Conditions on metadata as Qdrant's filters, with the meaning that they have in the local index.

Values lie in the payload by their kind: numbers (and True, False) in `number`, texts in `string`, members of lists in
`numbers` and `strings`, all by their keys; `has` names the keys. So no text is compared with a number, and a list
equals nothing.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from smart_jax.index.documents import load_metadata
from smart_jax.index.where import ITEM_FIELDS, RANGES, SOURCE_FIELDS, check_key, parse_where

Values = Callable[[str], Sequence[str]]  # of a field of texts: all that it has
COMPARE: dict[str, Callable[[str, str], bool]] = {
    "gt": str.__gt__,
    "gte": str.__ge__,
    "lt": str.__lt__,
    "lte": str.__le__,
}
LARGEST = sys.float_info.max


def make_filter(where: Mapping[str, Any], values: Values) -> dict[str, Any]:
    """Returns the filter of a `where`, as `parse_where` takes it.

    Args:
      where: the condition.
      values: returns the texts that a field has, of which those in a range are chosen: Qdrant has no ranges of texts.

    Raises:
      ValueError, TypeError: as `parse_where`.

    Example:
      >>> make_filter({"year": {"gte": 2023}}, lambda field: [])
      {'must': [{'key': 'number.year', 'range': {'gte': 2023}}]}
    """
    parse_where(where)
    return {"must": [_entry(key, wanted, values) for key, wanted in where.items()]}


def typed_fields(metadata: str | None) -> dict[str, Any]:
    """Returns the payload's fields of an item's metadata, a JSON object or None.

    Example:
      >>> fields = typed_fields('{"year": 2024, "team": "eu", "tags": ["a", 1]}')
      >>> fields["number"], fields["string"], fields["numbers"], fields["strings"], fields["has"]
      ({'year': 2024}, {'team': 'eu'}, {'tags': [1]}, {'tags': ['a']}, ['year', 'team', 'tags'])
    """
    fields: dict[str, Any] = {"number": {}, "string": {}, "numbers": {}, "strings": {}, "has": []}
    for key, value in load_metadata(metadata, "an item").items():
        name = field_name(key)
        if value is not None:
            fields["has"].append(name)
        if isinstance(value, str):
            fields["string"][name] = value
        elif isinstance(value, int | float):
            fields["number"][name] = _number(value)
        elif isinstance(value, list):
            fields["numbers"][name] = [_number(each) for each in value if isinstance(each, int | float)]
            fields["strings"][name] = [each for each in value if isinstance(each, str)]
    return fields | {"metadata": metadata or ""}


def field_name(key: str) -> str:
    """Returns a key in letters that a path of Qdrant may have.

    Example:
      >>> field_name("year"), field_name("due date")
      ('year', 'due-20-date')
    """
    return re.sub(r"[^A-Za-z0-9_]", lambda found: f"-{ord(found[0]):x}-", key)


def _entry(key: str, wanted: Any, values: Values) -> dict[str, Any]:
    if key in ("and", "or"):
        return {"must" if key == "and" else "should": [make_filter(each, values) for each in wanted]}
    if key == "not":
        return {"must_not": [make_filter(wanted, values)]}
    if not isinstance(wanted, Mapping):
        wanted = {"in" if isinstance(wanted, list | tuple) else "eq": wanted}
    conditions = [_operator(key, name, value, values) for name, value in wanted.items()]
    return conditions[0] if len(conditions) == 1 else {"must": conditions}


def _operator(key: str, name: str, value: Any, values: Values) -> dict[str, Any]:
    if name in RANGES:
        return _range(_field(key, value), name, value, values)
    if name == "eq":
        return _equal(_field(key, value), value)
    if name == "ne":
        return {"must_not": [_equal(_field(key, value), value)]}
    if name == "in":
        return _any([_equal(_field(key, each), each) for each in value])
    if name == "contains":
        return _any([_equal(_field(key, value, several=several), value) for several in (False, True)])
    there = {"key": "has", "match": {"value": key if _own(key) else field_name(key)}}
    return {"must" if value else "must_not": [there]}


def _own(key: str) -> bool:
    """Returns whether the key is a field of items, and not of their metadata."""
    return key in ITEM_FIELDS or key in SOURCE_FIELDS


def _field(key: str, value: Any, *, several: bool = False) -> str | None:
    """Returns the payload's field of a key where values of this kind lie; None = it has no such values."""
    text = isinstance(value, str)
    if _own(key):
        return key if text != (key == "page") else None
    return f"{'string' if text else 'number'}{'s' * several}.{field_name(check_key(key))}"


def _equal(field: str | None, value: Any) -> dict[str, Any]:
    if field is None:
        return _any([])
    if isinstance(value, str):
        return {"key": field, "match": {"value": value}}
    return {"key": field, "range": {"gte": _number(value), "lte": _number(value)}}


def _range(field: str | None, name: str, value: Any, values: Values) -> dict[str, Any]:
    if field is None:
        return _any([])
    if isinstance(value, str):
        return {"key": field, "match": {"any": [each for each in values(field) if COMPARE[name](each, value)]}}
    return {"key": field, "range": {name: _number(value)}}


def _any(conditions: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns a condition that one of them must fulfil; of none, one that nothing fulfils."""
    return {"should": conditions} if conditions else {"must": [{"has_id": []}]}


def _number(value: float) -> float:
    """Returns a number as Qdrant takes it: True is 1, as in SQL, and what is infinite the largest."""
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return int(value)
    return min(max(float(value), -LARGEST), LARGEST)
