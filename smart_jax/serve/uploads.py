"""Folder of uploaded files, whose names come from clients and are therefore made harmless first."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from smart_jax.index import SUFFIXES

LONGEST_NAME = 180  # bytes before the ending: file systems take 255 in all


class Uploads:
    """The folder that uploaded files lie in, and nothing else.

    Attributes:
      folder: made with the first upload.
    """

    def __init__(self, folder: Path):
        self.folder = folder.absolute()

    def path(self, name: str) -> Path:
        """Returns where a file of a client's name lies; nothing in the name leads out of the folder.

        Raises:
          ValueError: the name ends in nothing that an index can read, or nothing is left of it.
        """
        return self.folder / harmless_name(name)

    def files(self) -> list[Path]:
        """Returns the files, by name."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if path.is_file() and path.suffix.lower() in SUFFIXES)

    @contextlib.contextmanager
    def placing(self, name: str, content: BinaryIO) -> Iterator[Path]:
        """Yields the file's place, with the new content; if the block raises, the former content is there again."""
        path = self.path(name)
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=self.folder) as aside:
            new, former = Path(aside) / "new", Path(aside) / "former"
            with new.open("wb") as file:
                shutil.copyfileobj(content, file, 2**20)
            if path.is_file():
                os.replace(path, former)
            os.replace(new, path)
            try:
                yield path
            except BaseException:
                path.unlink()
                if former.is_file():
                    os.replace(former, path)
                raise

    def remove(self, path: Path) -> None:
        """Removes one of the files; a path elsewhere is left alone."""
        if path.parent == self.folder:
            path.unlink(missing_ok=True)


def harmless_name(name: str) -> str:
    """Returns the last part of a client's file name, of letters, digits, dots, dashes, underscores and spaces.

    Raises:
      ValueError: it ends in nothing that an index can read, or nothing is left of it.

    Example:
      >>> harmless_name("../../etc/report.pdf"), harmless_name("C:\\\\tmp\\\\a<b>.PNG")
      ('report.pdf', 'a_b_.PNG')
    """
    last = re.split(r"[/\\]", unicodedata.normalize("NFC", name))[-1]
    stem, dot, suffix = re.sub(r"[^\w.() -]", "_", last).strip(" .").rpartition(".")
    if f".{suffix.lower()}" not in SUFFIXES or not dot:
        raise ValueError(
            f"'{last}' is no file that an index reads: it must end in {', '.join(SUFFIXES[:6])} or the like"
        )
    stem = stem.encode()[:LONGEST_NAME].decode(errors="ignore").strip(" .")
    if not stem.strip("_ ."):
        raise ValueError(f"'{last}' has no name before its ending")
    return f"{stem}.{suffix}"
