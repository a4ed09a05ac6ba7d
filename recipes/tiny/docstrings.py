"""The documentation installed with Python, read from source files with `ast`: nothing is imported, nothing downloaded.

The standard library is read by a fixed list of modules, so that its part is the same on every machine with the same
Python version; installed packages are whatever is there.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import sysconfig
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from recipes.tiny.typeset import printable

# Modules of Python 3.11 to 3.14 that hold at least a few docstrings and that distributions do not split off.
# fmt: off
TRAIN_MODULES = (
    "_collections_abc", "_pyio", "_strptime", "argparse", "ast", "base64", "bdb", "bisect", "bz2", "calendar",
    "cmd", "code", "codecs", "codeop", "collections", "compileall", "concurrent", "configparser", "contextlib",
    "csv", "ctypes", "curses", "dataclasses", "datetime", "dbm", "difflib", "dis", "doctest", "encodings",
    "enum", "filecmp", "fileinput", "fnmatch", "fractions", "ftplib", "functools", "getopt", "getpass",
    "gettext", "glob", "graphlib", "gzip", "hashlib", "heapq", "hmac", "html", "http", "imaplib", "inspect",
    "io", "ipaddress", "json", "linecache", "locale", "lzma", "mailbox", "mimetypes", "modulefinder",
    "multiprocessing", "ntpath", "numbers", "operator", "optparse", "os", "pathlib", "pdb", "pickle",
    "pickletools", "pkgutil", "platform", "plistlib", "poplib", "posixpath", "pprint", "profile", "pstats",
    "py_compile", "pyclbr", "pydoc", "queue", "quopri", "random", "re", "reprlib", "rlcompleter", "runpy",
    "sched", "secrets", "selectors", "shelve", "shlex", "shutil", "site", "smtplib", "socket", "socketserver",
    "sqlite3", "ssl", "statistics", "string", "subprocess", "symtable", "sysconfig", "tabnanny", "tarfile",
    "tempfile", "textwrap", "threading", "timeit", "tokenize", "tomllib", "trace", "traceback", "tracemalloc",
    "types", "urllib", "uuid", "venv", "warnings", "wave", "weakref", "webbrowser", "wsgiref", "xmlrpc",
    "zipapp", "zipfile", "zipimport", "zoneinfo",
)
# fmt: on
HELD_OUT_MODULES = ("_pydecimal", "asyncio", "email", "importlib", "logging", "typing", "unittest", "xml")
# Not written by the people whose names the packages carry, or not prose.
_SKIPPED_PARTS = {"tests", "test", "_vendor", "vendor", "site-packages", "__pycache__", "testing", "idle_test"}
_SHINGLE = 4  # words


@dataclasses.dataclass(frozen=True)
class Docstring:
    """One documented module, class or function.

    Attributes:
      module: top-level module or package.
      name: dotted path of the object, "email.message.Message.get".
      summary: its first paragraph, on one line, printable ASCII.
      body: the rest, on one line, printable ASCII; may be empty.
    """

    module: str
    name: str
    summary: str
    body: str

    @property
    def text(self) -> str:
        return f"{self.summary} {self.body}".strip()


def read_module(root: Path, module: str) -> Iterator[Docstring]:
    """Docstrings of `root`/module.py or of every file below `root`/module, in order of file name and line.

    Tests, vendored copies and files that this Python cannot parse are left out; nothing if the module is not there.
    """
    single, package = root / f"{module}.py", root / module
    files = [single] if single.is_file() else sorted(package.rglob("*.py"))
    for file in files:
        relative = file.relative_to(root)
        if _SKIPPED_PARTS.isdisjoint(relative.parts[1:]):
            dotted = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
            yield from read_source(file, dotted, module)


def read_source(file: Path, dotted: str, module: str) -> Iterator[Docstring]:
    """Docstrings of one source file; none if it does not parse."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return
    yield from _walk(tree, dotted, module)


def _walk(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str, module: str):
    if docstring := ast.get_docstring(node):
        summary, _, body = docstring.strip().partition("\n\n")
        if summary := printable(summary):
            yield Docstring(module, name, summary, printable(body))
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _walk(child, f"{name}.{child.name}", module)


def standard_library(modules: Sequence[str]) -> list[Docstring]:
    """Docstrings of the named modules of the running Python, near-duplicates removed."""
    root = Path(sysconfig.get_paths()["stdlib"])
    return without_near_duplicates([d for module in modules for d in read_module(root, module)])


def installed_packages(skip: Iterable[str] = ()) -> list[Docstring]:
    """Docstrings of every package in site-packages but those named in `skip`, near-duplicates removed."""
    root = Path(sysconfig.get_paths()["purelib"])
    skip = set(skip)
    names = sorted({path.name.removesuffix(".py") for path in root.iterdir() if _is_module(path)} - skip)
    return without_near_duplicates([d for name in names for d in read_module(root, name)])


def _is_module(path: Path) -> bool:
    return (path.is_dir() and path.name.isidentifier()) or path.suffix == ".py"


def without_near_duplicates(
    docstrings: Iterable[Docstring], known: Iterable[Docstring] = (), *, threshold: float = 0.5
) -> list[Docstring]:
    """Drops a docstring if that share of its 4-word shingles stands in ONE docstring kept before it or in `known`.

    Containment rather than Jaccard: a short copy of a long page is a duplicate too. Words are compared in lower case
    without punctuation. A docstring too short for a shingle is one shingle.
    """
    first_owner: dict[int, list[int]] = {}
    for number, docstring in enumerate(known):
        for shingle in shingles(docstring.text):
            first_owner.setdefault(shingle, []).append(number)
    kept, number = [], 1 << 40
    for docstring in docstrings:
        mine = shingles(docstring.text)
        owners = [owner for shingle in mine for owner in first_owner.get(shingle, ())]
        shared = np.unique(owners, return_counts=True)[1].max() if owners else 0
        if shared >= threshold * len(mine):
            continue
        number += 1
        kept.append(docstring)
        for shingle in mine:
            # A phrase of hundreds of pages identifies none of them; the cap bounds the time.
            if len(owned := first_owner.setdefault(shingle, [])) < 64:
                owned.append(number)
    return kept


def shingles(text: str) -> set[int]:
    """Hashes of all runs of four words, the same on every machine."""
    words = re.findall(r"[a-z0-9]+", text.lower())
    runs = [words[i : i + _SHINGLE] for i in range(max(1, len(words) - _SHINGLE + 1))]
    return {zlib.crc32(" ".join(run).encode()) for run in runs}


def without_names(text: str, name: str, mask: str = "___") -> str:
    """The text with the last part of a dotted name masked wherever it stands as a word, in either case.

    >>> without_names("Message.get returns it; target is kept.", "email.message.Message.get")
    'Message.___ returns it; target is kept.'
    """
    own = re.escape(name.rpartition(".")[2].strip("_"))
    if not own:
        return text
    return re.sub(rf"(?<![A-Za-z0-9])_*{own}_*(?![A-Za-z0-9])", mask, text, flags=re.IGNORECASE)
