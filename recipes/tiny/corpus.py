"""The docstrings that pages are made of: which are trained on, and which are held out for evaluation.

The standard library is read by a fixed list of modules, so that its part is the same on every machine with the same
Python version; of other packages, whatever is installed is read.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from recipes.tiny.docstrings import Docstring, read_module
from recipes.tiny.near_duplicates import without_near_duplicates

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


def standard_library(modules: Sequence[str]) -> list[Docstring]:
    """Reads the docstrings of the named modules of the running Python, without near-duplicates.

    Example:
      >>> standard_library(["bisect"])[1].name
      'bisect.insort_right'
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    return without_near_duplicates(docstring for module in modules for docstring in read_module(root, module))


def installed_packages() -> list[Docstring]:
    """Reads the docstrings of every package in site-packages, without near-duplicates."""
    root = Path(sysconfig.get_paths()["purelib"])
    names = sorted({path.name.removesuffix(".py") for path in root.iterdir() if _is_module(path)})
    return without_near_duplicates(docstring for name in names for docstring in read_module(root, name))


def _is_module(path: Path) -> bool:
    return (path.is_dir() and path.name.isidentifier()) or path.suffix == ".py"


@functools.cache
def held_out() -> tuple[Docstring, ...]:
    """Reads the docstrings of the standard library's held-out modules, which only evaluations may use.

    Returns:
      About 1,700 docstrings without near-duplicates among them; read once in a process.

    Example:
      >>> sorted({docstring.module for docstring in held_out()})[:3]
      ['_pydecimal', 'asyncio', 'email']
    """
    return tuple(standard_library(HELD_OUT_MODULES))


@functools.cache
def for_training(*, packages: bool = False) -> tuple[Docstring, ...]:
    """Reads the docstrings of the standard library's training modules, none of which repeats a held-out one.

    It takes several seconds, and a minute or more with all installed packages, once in a process.

    Args:
      packages: adds those of every installed package.

    Returns:
      Docstrings without near-duplicates among them or of held-out ones.
    """
    library = without_near_duplicates(standard_library(TRAIN_MODULES), held_out())
    if not packages:
        return tuple(library)
    return (*library, *without_near_duplicates(installed_packages(), [*library, *held_out()]))


def kept_for_training(file: Path) -> list[Docstring]:
    """Reads `for_training(packages=True)` from a JSONL file, which is written if it is not there."""
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        # A docstring about a tokenizer may spell a marker of the prompt, which no text may contain.
        lines = [json.dumps(dataclasses.asdict(d)) for d in for_training(packages=True) if "<|" not in d.text]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return [Docstring(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
