"""JSON files that hold one object."""

from __future__ import annotations

import json
from pathlib import Path

from smart_jax.typing import JsonObject


def read_json(path: Path) -> JsonObject:
    """Reads the object in a JSON file; raises ValueError where the file holds something else.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp()) / "config.json"
      >>> _ = path.write_text('{"model_type": "bert"}')
      >>> read_json(path)["model_type"]
      'bert'
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not valid JSON ({error}): download or write the file again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}, expected an object")
    return content
