"""Conditions and metadata as they are written on a command line: JSON, or short forms such as `year>=2023`."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import typer

_SHORT = re.compile(r"\s*([^<>=!~\s](?:[^<>=!~]*[^<>=!~\s])?)\s*(>=|<=|!=|==|=|>|<|~)(?![<>=!~])\s*(.*?)\s*", re.DOTALL)
_OPERATORS = {">=": "gte", "<=": "lte", ">": "gt", "<": "lt", "!=": "ne", "~": "contains"}
WHERE_FORMS = "'year>=2023', 'team=sales', 'team!=sales', 'tags~eu' (a list that holds it), or JSON"


def parse_conditions(texts: Sequence[str] | None) -> dict[str, Any] | None:
    """Returns the `where` of an index for what is given by --where, all of which must hold; None = nothing is.

    Raises:
      typer.BadParameter: one has neither form.

    Example:
      >>> parse_conditions(["year>=2023", "team=sales"])
      {'and': [{'year': {'gte': 2023}}, {'team': 'sales'}]}
    """
    if not texts:
        return None
    conditions = [_condition(text) for text in texts]
    return conditions[0] if len(conditions) == 1 else {"and": conditions}


def parse_metadata(texts: Sequence[str] | None) -> dict[str, Any] | None:
    """Returns the metadata for what is given by --metadata: a JSON object, or KEY=VALUE; None = nothing is.

    Raises:
      typer.BadParameter: one has neither form.

    Example:
      >>> parse_metadata(["year=2024", "team=sales", "draft=false", 'code="007"'])
      {'year': 2024, 'team': 'sales', 'draft': False, 'code': '007'}
    """
    facts: dict[str, Any] = {}
    for text in texts or ():
        if text.lstrip().startswith("{"):
            facts |= _json_object(text)
            continue
        key, sign, value = text.partition("=")
        if not sign or not key.strip():
            raise typer.BadParameter(f"{text!r} is no KEY=VALUE, such as year=2024, and no JSON object")
        facts[key.strip()] = _value(value.strip())
    return facts or None


def _condition(text: str) -> dict[str, Any]:
    if text.lstrip().startswith("{"):
        return _json_object(text)
    if (found := _SHORT.fullmatch(text)) is None:
        raise typer.BadParameter(f"{text!r} is no condition: write {WHERE_FORMS}")
    key, sign, value = found[1], found[2], _value(found[3])
    return {key: value if sign in ("=", "==") else {_OPERATORS[sign]: value}}


def _value(text: str) -> Any:
    """Returns a number, true, false, a quoted text or a list as JSON has them, and everything else as a text."""
    from smart_jax.files import parse_json, shown

    if text in ("NaN", "Infinity", "-Infinity"):
        return text
    try:
        value = parse_json(text, shown(text), remedy="write less, or a text in quotes", finite=True)
    except ValueError as error:
        if isinstance(error.__cause__, json.JSONDecodeError):
            return text
        raise typer.BadParameter(str(error)) from None
    return text if value is None or isinstance(value, dict) else value


def _json_object(text: str) -> dict[str, Any]:
    from smart_jax.files import parse_json_object, shown

    try:
        return parse_json_object(text, shown(text), remedy="repair it", finite=True)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
