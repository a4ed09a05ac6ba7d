"""Conditions on metadata, as SQL: values are bound, and names are checked and quoted."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

Value = str | int | float | bool
ITEM_FIELDS = {"id": "item.id", "page": "item.page"}
SOURCE_FIELDS = {"file": "source.file", "path": "source.path"}
LOGIC = ("and", "or", "not")
RANGES = {"gt": ">", "gte": ">=", "lt": "<", "lte": "<="}
RESERVED = (*LOGIC, *ITEM_FIELDS, *SOURCE_FIELDS)


class Condition(NamedTuple):
    """A condition in SQL.

    Attributes:
      sql: an expression on the tables `item` and `source`.
      values: that are bound to its question marks, in order.
      keys: of the metadata that it asks for.
    """

    sql: str
    values: tuple[Any, ...] = ()
    keys: frozenset[str] = frozenset()


def parse_where(where: Mapping[str, Any]) -> Condition:
    """Returns what a `where` of `Index.search` asks for.

    Args:
      where: by key of the metadata, or `id`, `page`, `file` (name of the file) or `path`: a value (equal to it), a
        list (equal to one of them), or a mapping of eq, ne, in, gt, gte, lt, lte (numbers with numbers, texts with
        texts), contains (a list has the value, or it is the value) and exists (True, False). All must hold. `and` and
        `or` take a list of such mappings, `not` takes one. An item that lacks a key fulfils nothing but `ne`, `not` and
        `{"exists": False}`.

    Raises:
      ValueError, TypeError: the condition is of another form; the message says where.

    Example:
      >>> parse_where({"year": {"gte": 2023}}).values
      (2023,)
    """
    if not isinstance(where, Mapping):
        raise TypeError(f"where is a {type(where).__name__}, expected a mapping such as {{'year': {{'gte': 2023}}}}")
    if not where:
        return Condition("1")
    return _join("AND", [_entry(key, wanted) for key, wanted in where.items()])


def index_statement(key: str) -> str:
    """Returns the SQL that makes an index on a key of the metadata, if there is none.

    Example:
      >>> index_statement("year")
      'CREATE INDEX IF NOT EXISTS "metadata year" ON item (json_extract(metadata, \\'$."year"\\'))'
    """
    expression = _expression(key)
    return f'CREATE INDEX IF NOT EXISTS "metadata {key}" ON item ({expression.replace("item.metadata", "metadata")})'


@functools.cache
def check_key(key: object) -> str:
    """Returns a key that metadata may have.

    Raises:
      ValueError: it is no text, has a quote or a control character, or has another meaning in a `where`.
    """
    if not isinstance(key, str) or not key or {'"', chr(92)} & set(key) or not key.isprintable() or len(key) > 200:
        raise ValueError(
            f"metadata key {key!r}: it must be a printable text without double quote and backslash, up to 200 long"
        )
    if key in RESERVED:
        raise ValueError(f"metadata key {key!r}: the name has another meaning; of these are {', '.join(RESERVED)}")
    return key


def _entry(key: str, wanted: Any) -> Condition:
    if key in ("and", "or"):
        if not isinstance(wanted, list | tuple) or not wanted:
            raise TypeError(f"where: '{key}' takes a list of mappings, not {wanted!r}")
        return _join(key.upper(), [parse_where(each) for each in wanted])
    if key == "not":
        inner = parse_where(wanted)
        return inner._replace(sql=f"NOT coalesce({inner.sql}, 0)")
    if key in SOURCE_FIELDS:
        return _of_source(key, wanted)
    if key in ITEM_FIELDS:
        return _field(key, ITEM_FIELDS[key], wanted)
    return _field(key, _expression(check_key(key)), wanted)._replace(keys=frozenset([key]))


def _of_source(key: str, wanted: Any) -> Condition:
    """Returns a condition on an item's file; of an item that has none, only what says so is true."""
    if not isinstance(wanted, Mapping) or not wanted:
        inner = _field(key, SOURCE_FIELDS[key], wanted)
        return inner._replace(sql=f"item.source IN (SELECT number FROM source WHERE {inner.sql})")
    parts = []
    for name, value in wanted.items():
        if name == "exists":
            parts.append(_operator(key, "item.source", name, value))
        elif name == "ne":
            inner = _of_source(key, value if isinstance(value, str) else {"eq": value})
            parts.append(inner._replace(sql=f"NOT coalesce({inner.sql}, 0)"))
        else:
            inner = _operator(key, SOURCE_FIELDS[key], name, value)
            parts.append(inner._replace(sql=f"item.source IN (SELECT number FROM source WHERE {inner.sql})"))
    return _join("AND", parts)


def _field(key: str, expression: str, wanted: Any) -> Condition:
    if isinstance(wanted, Mapping):
        if not wanted:
            raise ValueError(f"where: '{key}' has an empty mapping: give eq, in, gte, exists or the like")
        return _join("AND", [_operator(key, expression, name, value) for name, value in wanted.items()])
    return _operator(key, expression, "in" if isinstance(wanted, list | tuple) else "eq", wanted)


def _operator(key: str, expression: str, name: str, value: Any) -> Condition:
    if name in RANGES:
        return _range(key, expression, name, value)
    if name == "eq":
        return Condition(f"{expression} = ?", (_value(key, value),))
    if name == "ne":
        return Condition(f"NOT coalesce({expression} = ?, 0)", (_value(key, value),))
    if name == "in":
        if not isinstance(value, list | tuple):
            raise TypeError(f"where: '{key}' asks for 'in' with {value!r}: give a list")
        values = tuple(_value(key, each) for each in value)
        return Condition(f"{expression} IN ({', '.join('?' * len(values))})", values)
    if name == "contains":
        if not expression.startswith("json_extract"):
            raise ValueError(f"where: '{key}' holds no list: use 'eq' or 'in'")
        each = expression.replace("json_extract", "json_each", 1)
        return Condition(f"EXISTS (SELECT 1 FROM {each} WHERE json_each.value = ?)", (_value(key, value),))
    if name == "exists":
        if not isinstance(value, bool):
            raise TypeError(f"where: '{key}' asks for 'exists' with {value!r}: give True or False")
        return Condition(f"{expression} IS {'NOT ' if value else ''}NULL")
    raise ValueError(f"where: '{key}' asks for '{name}': known are eq, ne, in, {', '.join(RANGES)}, contains, exists")


def _range(key: str, expression: str, name: str, value: Any) -> Condition:
    bound = _value(key, value)
    # SQLite puts every number before every text: the other bound leaves out what is of another kind.
    kind = f"{expression} >= ''" if isinstance(bound, str) else f"{expression} < ''"
    if isinstance(bound, str) and expression.startswith("json_extract"):  # a list is a text to SQLite
        kind += f" AND {expression.replace('json_extract', 'json_type', 1)} = 'text'"
    return Condition(f"({expression} {RANGES[name]} ? AND {kind})", (bound,))


def _value(key: str, value: Any) -> Value:
    if not isinstance(value, str | int | float) or value != value:
        raise TypeError(f"where: '{key}' is compared with {value!r}: give a text, a number, True or False")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise ValueError(f"where: '{key}' is compared with {value}: integers have at most 64 bits")
    return value


def _expression(key: str) -> str:
    quoted = key.replace("'", "''")
    return f"json_extract(item.metadata, '$.\"{quoted}\"')"


def _join(word: str, conditions: Sequence[Condition]) -> Condition:
    if len(conditions) == 1:
        return conditions[0]
    keys = frozenset[str]().union(*(each.keys for each in conditions))
    values = tuple(value for each in conditions for value in each.values)
    return Condition("(" + f" {word} ".join(each.sql for each in conditions) + ")", values, keys)
