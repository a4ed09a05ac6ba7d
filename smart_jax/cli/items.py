"""Queries and documents that a command line names: as arguments, or in files."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from smart_jax.cli.output import shortened


def read_lines(name: str) -> list[Any]:
    """Returns the items of a file: of .jsonl a JSON text or object a line, of any other a text a line; "-" = stdin.

    Empty lines are left out.

    Raises:
      OSError: the file cannot be read.
      ValueError: a line is not JSON; the message says which.
    """
    content = sys.stdin.read() if name == "-" else Path(name).expanduser().read_text(encoding="utf-8")
    lines = [(number, line) for number, line in enumerate(content.splitlines(), 1) if line.strip()]
    if not name.endswith(".jsonl"):
        return [line.strip() for _, line in lines]
    from smart_jax.files import parse_json

    items = []
    for number, line in lines:
        items.append(parse_json(line, f"{name}, line {number}"))
    return items


def given_queries(queries: Sequence[str] | None, file: str | None, images: Sequence[str] | None = None) -> list[Any]:
    """Returns the queries of a command: texts, those of a file, images.

    Raises:
      typer.BadParameter: there is none.
    """
    found = [*(queries or ()), *(read_lines(file) if file else ()), *({"image": name} for name in images or ())]
    if not found:
        raise typer.BadParameter("there is no query: give a text, or a file of them by --queries")
    return found


def given_documents(documents: Sequence[str], file: str | None) -> list[Any]:
    """Returns the documents of a command: images, audio and text files by their names, everything else as texts.

    Raises:
      typer.BadParameter: there is none, or one is a PDF.
    """
    found = [_document(each) for each in documents] + (read_lines(file) if file else [])
    if not found:
        raise typer.BadParameter("there is no document: give texts, images, or a file of them by --documents")
    return found


def _document(given: str) -> Any:
    from smart_jax.inputs import AUDIO_SUFFIXES, IMAGE_SUFFIXES

    suffix = Path(given).suffix.lower()
    if suffix == ".pdf":
        raise typer.BadParameter(f"'{given}' is a PDF, whose pages an index has: smart-jax index add INDEX '{given}'")
    if suffix in IMAGE_SUFFIXES and not any(c.isspace() for c in suffix):
        return {"image": given}
    if suffix in AUDIO_SUFFIXES and Path(given).is_file():
        return {"audio": given}
    is_file = suffix in (".txt", ".md", ".rst") and Path(given).is_file()
    return Path(given).read_text(encoding="utf-8") if is_file else given


def name_of(item: Any) -> str:
    """Returns what an item is called in a table."""
    if isinstance(item, dict):
        return shortened(str(item.get("id") or item.get("image") or item.get("audio") or item.get("text") or item))
    return shortened(str(item))
