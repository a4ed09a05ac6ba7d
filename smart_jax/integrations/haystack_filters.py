"""Haystack's filters as the conditions of `Index.search`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_OPERATORS = {"==": "eq", "!=": "ne", ">": "gt", ">=": "gte", "<": "lt", "<=": "lte", "in": "in"}
_FIELDS = {"file_path": "path", "page_number": "page"}  # as Haystack's converters call them


def to_where(filters: Mapping[str, Any] | None) -> dict[str, Any]:
    """Returns a condition of `Index.search` that says what a filter of Haystack does.

    Args:
      filters: `{"field": "meta.year", "operator": ">=", "value": 2023}`, or conditions that AND, OR and NOT combine;
        None or empty = all.

    Raises:
      ValueError: it is no such filter.

    Example:
      >>> to_where({"field": "meta.year", "operator": ">=", "value": 2023})
      {'year': {'gte': 2023}}
      >>> to_where({"operator": "NOT", "conditions": [{"field": "meta.page_number", "operator": "in", "value": [1]}]})
      {'not': {'and': [{'page': {'in': [1]}}]}}
    """
    if not filters:
        return {}
    operator, conditions = filters.get("operator"), filters.get("conditions")
    if operator in ("AND", "OR", "NOT") and isinstance(conditions, list | tuple):
        joined = {"or" if operator == "OR" else "and": [to_where(each) for each in conditions]}
        return {"not": joined} if operator == "NOT" else joined
    if isinstance(field := filters.get("field"), str) and "value" in filters:
        name, value = field.removeprefix("meta."), filters["value"]
        name = _FIELDS.get(name, name)
        if value is None and operator in ("==", "!="):
            return {name: {"exists": operator == "!="}}
        if operator == "not in":
            return {"not": {name: {"in": list(value)}}}
        if operator in _OPERATORS:
            return {name: {_OPERATORS[operator]: value}}
    raise ValueError(
        f"filters has {dict(filters)!r}: give field, operator ({', '.join([*_OPERATORS, 'not in'])}) and value, or "
        "conditions and operator AND, OR or NOT"
    )
