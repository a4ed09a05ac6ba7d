"""Modules of a sentence-transformers folder, as its modules.json lists them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from smart_jax.files import read_json_value, shown

MODULES_FILE = "modules.json"


class SentenceModule(NamedTuple):
    """Module of sentence-transformers.

    Attributes:
      kind: name of its class, without the package.
      path: folder of its files, from the checkpoint's.
    """

    kind: str
    path: str


def read_modules(folder: Path) -> list[SentenceModule]:
    """Returns a folder's modules in their order; none where there is no modules.json.

    Raises:
      ValueError: the file is not a list of modules with their types and paths.
    """
    modules = read_part(folder / MODULES_FILE, list) or []
    try:
        return [SentenceModule(_text(each["type"]).rpartition(".")[2], _text(each["path"])) for each in modules]
    except (TypeError, KeyError) as error:
        raise ValueError(f"{folder / MODULES_FILE}: a module lacks its type or path ({error!r})") from error


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{shown(value)} is no text")
    return value


def read_part(path: Path, kind: type) -> Any:
    """Returns the parsed JSON file, whose content must be a `kind`; None = there is no file."""
    if not path.is_file():
        return None
    content = read_json_value(path, remedy="fetch the checkpoint again")
    if not isinstance(content, kind):
        kinds = f"{path} is a {type(content).__name__}, expected a {kind.__name__}"
        raise ValueError(f"{kinds}: fetch the checkpoint again")
    return content
