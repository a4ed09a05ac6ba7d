"""JSON as files hold it, read in one way: whatever a file holds, it is parsed or refused with the file's name."""

from __future__ import annotations

import json
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

MAX_DEPTH = 64  # levels of nested lists and objects
MAX_BYTES = 2**26  # of a file: parsed, it takes up to twenty times as much memory
MAX_BITS = 64  # of an integer: others fit no array
_REMEDY = "download or write the file again"


def read_json(path: Path, *, remedy: str = _REMEDY, most: int = MAX_BYTES, bits: int = MAX_BITS) -> dict[str, Any]:
    """Reads the object in a JSON file.

    Args:
      path: of the file.
      remedy: what to do about a bad one, for the message.
      most: bytes that the file may have.
      bits: that an integer may have.

    Raises:
      OSError: the file cannot be read.
      ValueError: it holds something else, is larger, nested deeper than `MAX_DEPTH`, or has an integer of more bits;
        the message names the file.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "config.json"
      >>> _ = path.write_text('{"model_type": "bert"}')
      >>> read_json(path)["model_type"]
      'bert'
    """
    return _object(read_json_value(path, remedy=remedy, most=most, bits=bits), str(path), remedy)


def read_json_value(
    path: Path, *, remedy: str = _REMEDY, most: int = MAX_BYTES, bits: int = MAX_BITS
) -> Any:  # whatever the file holds
    """Reads a JSON file of any kind; raises what `read_json` does.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "modules.json"
      >>> _ = path.write_text("[1, 2]")
      >>> read_json_value(path)
      [1, 2]
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        data = file.read(size + 1) if size <= most else b""
    if len(data) != size:  # a device, to which a link may lead, has no size and no end
        raise ValueError(f"{path} has more than the {min(size, most)} bytes that such a file may have: {remedy}")
    return parse_json(data, str(path), remedy=remedy, bits=bits)


def parse_json(
    text: str | bytes, name: str, *, remedy: str = _REMEDY, finite: bool = False, bits: int = MAX_BITS
) -> Any:
    """Parses JSON that came from a file, a record or a request, whatever it holds.

    Args:
      text: JSON, as text or as bytes in UTF-8.
      name: what messages call it.
      remedy: what to do about a bad one, for the message.
      finite: whether NaN and infinite numbers, which JSON has not, are refused, too.
      bits: that an integer may have.

    Raises:
      ValueError: it is not JSON, is nested deeper than `MAX_DEPTH`, or has an integer of more bits, or a number that is
        not finite and must be.

    Example:
      >>> parse_json("[" * 9999, "notes.json")
      Traceback (most recent call last):
      ValueError: notes.json is not valid JSON (nested deeper than 64 levels): download or write the file again
    """
    try:
        decoded = text.decode("utf-8") if isinstance(text, bytes) else text
        content = json.loads(decoded, parse_int=partial(_integer, bits=bits), **(_FINITE if finite else {}))
        if decoded.count("[") + decoded.count("{") > MAX_DEPTH:
            _check_depth(content)
    except RecursionError as error:
        raise ValueError(f"{name} is not valid JSON ({_TOO_DEEP}): {remedy}") from error
    except ValueError as error:
        raise ValueError(f"{name} is not valid JSON ({error}): {remedy}") from error
    return content


def parse_json_object(text: str | bytes, name: str, *, remedy: str = _REMEDY, finite: bool = False) -> dict[str, Any]:
    """Parses a JSON object; raises what `parse_json` does, and ValueError where it is something else.

    Example:
      >>> parse_json_object('{"year": 2024}', "metadata of item 'a'")
      {'year': 2024}
      >>> parse_json_object('{"year": NaN}', "metadata of item 'a'", remedy="add it again", finite=True)
      Traceback (most recent call last):
      ValueError: metadata of item 'a' is not valid JSON (NaN is no finite number): add it again
    """
    return _object(parse_json(text, name, remedy=remedy, finite=finite), name, remedy)


def _object(content: object, name: str, remedy: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise ValueError(f"{name} holds a JSON {type(content).__name__}, expected an object: {remedy}")
    return content


_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"


def _integer(digits: str, *, bits: int) -> int:
    if len(digits) > bits or abs(value := int(digits)) >= 2**bits:
        raise ValueError(f"an integer of {len(digits)} digits, which no {bits} bits hold")
    return value


def _number(digits: str) -> float:
    if not math.isfinite(value := float(digits)):
        raise ValueError(f"{digits[:20]} is no finite number")
    return value


_FINITE: dict[str, Any] = {"parse_float": _number, "parse_constant": _number}


def _check_depth(content: object) -> None:
    level = [content]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise ValueError(_TOO_DEEP)
