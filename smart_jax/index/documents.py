"""Additions to an index: files, found by their names, and items that are handed over as they are."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smart_jax.files import parse_json_object
from smart_jax.index.where import check_key
from smart_jax.inputs import AUDIO_SUFFIXES, IMAGE_SUFFIXES, Item, item_parts, parse_item

PDFS, TEXTS = (".pdf",), (".txt", ".md", ".rst")
SUFFIXES = (*PDFS, *TEXTS, *IMAGE_SUFFIXES, *AUDIO_SUFFIXES)
EXTRA_KEYS = ("id", "metadata", "file", "password")  # of an item, beside those that the model reads
READ_AT_ONCE = 2**20  # bytes
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


class GivenFile(NamedTuple):
    """A file to be added.

    Attributes:
      path: of the file, as it was given.
      metadata: of its items, a JSON object; None = there is none.
      password: of an encrypted PDF.
      id: of its single item; None = its items are named after the file.
    """

    path: Path
    metadata: str | None = None
    password: str | None = None
    id: str | None = None


class GivenItem(NamedTuple):
    """An item to be added.

    Attributes:
      item: parsed.
      id: of the item.
      hash: of its content.
      metadata: a JSON object; None = there is none.
    """

    item: Item
    id: str
    hash: str
    metadata: str | None = None


Given = GivenFile | GivenItem


def find_given(
    what: Any,
    ids: Sequence[str] | None = None,
    metadata: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
    password: str | None = None,
    *,
    audio: bool = True,
) -> list[Given]:
    """Returns files and items, see `Index.add`; files are not opened. Folders have no audio unless it is wanted.

    Raises:
      FileNotFoundError: a name or a pattern has no file.
      TypeError, ValueError: an item, an id or metadata cannot be used; the message says which.
    """
    if isinstance(what, str | Path):
        if ids is not None:
            raise ValueError("ids are for a list of items: the items of files are named after them")
        if metadata is not None and not isinstance(metadata, Mapping):
            raise TypeError("metadata of files are one mapping for all; give each its own by a list of dicts")
        return [GivenFile(path, dump_metadata(metadata), password) for path in find_files(what, audio=audio)]
    entries = [what] if isinstance(what, Mapping) or not isinstance(what, list | tuple) else list(what)
    for name, values in (("ids", ids), ("metadata", metadata)):
        if isinstance(values, str) or (
            values is not None and not isinstance(values, Mapping) and len(values) != len(entries)
        ):
            raise ValueError(f"{name} must be one for each of {len(entries)} items")
    given: list[Given] = []
    for i, entry in enumerate(entries):
        facts = metadata if metadata is None or isinstance(metadata, Mapping) else metadata[i]
        given += _find_entry(entry, f"item {i}", None if ids is None else ids[i], facts, password, audio)
    names = [each.id for each in given if each.id is not None]
    if twice := {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else None:
        raise ValueError(f"id {sorted(twice)[0]!r} is given twice, to different items: ids are names of single items")
    return given


def find_files(name: str | Path, *, audio: bool = True) -> list[Path]:
    """Returns the file of this name, those of the folder (and its folders), or those that a pattern fits, sorted.

    Of a folder's files audio is left out unless it is wanted.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        wanted = [suffix for suffix in SUFFIXES if audio or suffix not in AUDIO_SUFFIXES]
        there = sorted(each for each in path.rglob("*") if each.suffix.lower() in wanted and each.is_file())
        if not there:
            raise FileNotFoundError(f"folder '{path}' has no file that can be added, such as .pdf, .png or .txt")
        return there
    if path.is_file():
        return [path]
    if there := [each for each in map(Path, sorted(glob.glob(str(path), recursive=True))) if each.is_file()]:
        return there
    raise FileNotFoundError(f"no file '{name}' (from {Path.cwd()}); texts are added as a list: index.add([text])")


def dump_metadata(metadata: Mapping[str, Any] | None) -> str | None:
    """Returns metadata as the catalog keeps them.

    Raises:
      TypeError, ValueError: they are no mapping of names to what JSON can hold, and `load_metadata` reads.
    """
    if not metadata:
        return None
    if not isinstance(metadata, Mapping):
        raise TypeError(f"metadata is a {type(metadata).__name__}, expected a mapping such as {{'year': 2024}}")
    for key in metadata:
        check_key(key)
    try:
        text = _JSON.encode(dict(metadata))
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(
            f"metadata cannot be stored as JSON ({error}): use texts, numbers, True, False and lists"
        ) from None
    parse_json_object(text, "metadata", remedy="use texts, numbers of 64 bits, True, False and lists")
    return text


_OTHER = "give the item other metadata (Index.update with replace=True)"


def load_metadata(text: str | None, item: str) -> dict[str, Any]:
    """Returns metadata that `dump_metadata` has made text of.

    Args:
      text: as the catalog keeps it.
      item: what messages call the item, with the place of the index.

    Raises:
      ValueError: the text is something else.
    """
    return parse_json_object(text or "{}", f"{item}: metadata", remedy=_OTHER, finite=True)


def file_hash(path: Path) -> str:
    """Returns 32 hexadecimal digits of a file's content."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while part := file.read(READ_AT_ONCE):
            digest.update(part)
    return digest.hexdigest()


def _find_entry(
    entry: Any, name: str, given_id: str | None, metadata: Mapping[str, Any] | None, password: str | None, audio: bool
) -> list[Given]:
    content: Any = entry
    if isinstance(entry, Mapping):
        given_id = entry.get("id", given_id)
        metadata = {**(metadata or {}), **(entry.get("metadata") or {})}
        password = entry.get("password", password)
        content = {key: value for key, value in entry.items() if key not in EXTRA_KEYS}
        if "file" in entry:
            if content or given_id is not None:
                raise ValueError(f"{name} has a file, beside which only metadata and password may be given")
            return [
                GivenFile(path, dump_metadata(metadata), password) for path in find_files(entry["file"], audio=audio)
            ]
        for medium in ("image", "audio"):
            if list(content) == [medium] and isinstance(content[medium], str | Path):
                content = Path(content[medium])
                break
    if given_id is not None and (not isinstance(given_id, str) or not given_id):
        raise TypeError(f"{name}: id {given_id!r} must be a text that is not empty")
    if isinstance(content, Path) or (isinstance(content, str) and _names_files(content)):
        files = find_files(content, audio=audio)
        if given_id is not None and (len(files) > 1 or files[0].suffix.lower() in PDFS):
            raise ValueError(f"{name}: the items of '{content}' are named after it, and take no id")
        return [GivenFile(path, dump_metadata(metadata), password, given_id) for path in files]
    parsed = parse_item(content, name=name)
    digest = hashlib.blake2b(digest_size=16)
    for part in item_parts(parsed):
        digest.update(part)
    content_hash = digest.hexdigest()
    return [GivenItem(parsed, given_id or content_hash, content_hash, dump_metadata(metadata))]


def _names_files(text: str) -> bool:
    """Returns whether a text of a list is the name or the pattern of files: it ends as they do, and is no sentence."""
    if not text.lower().endswith(SUFFIXES):
        return False
    return Path(text).is_file() or not any(c.isspace() for c in text)
