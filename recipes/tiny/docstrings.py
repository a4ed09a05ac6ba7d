"""Docstrings, read from source files with `ast`: nothing is imported, nothing downloaded."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Iterator
from pathlib import Path

from recipes.tiny.typeset import printable

# Parts of a path below which docstrings are not prose, or not written by the authors of the package.
_SKIPPED_PARTS = {"tests", "test", "_vendor", "vendor", "site-packages", "__pycache__", "testing", "idle_test"}


@dataclasses.dataclass(frozen=True)
class Docstring:
    """The documentation of one module, class or function.

    Attributes:
      module: top-level module or package.
      name: dotted path of the documented object, such as "email.message.Message.get".
      summary: first paragraph, on one line, in printable ASCII.
      body: the other paragraphs, on one line, in printable ASCII; empty where there are none.

    Example:
      >>> Docstring("m", "m.f", "Return the value.", "It is a number.").text
      'Return the value. It is a number.'
    """

    module: str
    name: str
    summary: str
    body: str

    @property
    def text(self) -> str:
        """Summary and body on one line."""
        return f"{self.summary} {self.body}".strip()


def read_module(root: Path, module: str) -> Iterator[Docstring]:
    """Reads the docstrings of `root`/module.py, or of every file below `root`/module.

    Tests, vendored copies and files that the running Python cannot parse are left out.

    Args:
      root: the folder of the module.
      module: its name; a module that is not there has no docstrings.

    Yields:
      Docstrings in the order of file names and lines.
    """
    single, package = root / f"{module}.py", root / module
    files = [single] if single.is_file() else sorted(package.rglob("*.py"))
    for file in files:
        relative = file.relative_to(root)
        if _SKIPPED_PARTS.isdisjoint(relative.parts[1:]):
            dotted = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
            yield from read_source(file, dotted, module)


def read_source(file: Path, dotted: str, module: str) -> Iterator[Docstring]:
    """Reads the docstrings of one source file; a file that does not parse has none."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return
    yield from _walk(tree, dotted, module)


def _walk(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str, module: str
) -> Iterator[Docstring]:
    if docstring := ast.get_docstring(node):
        summary, _, body = docstring.strip().partition("\n\n")
        if summary := printable(summary):
            yield Docstring(module, name, summary, printable(body))
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _walk(child, f"{name}.{child.name}", module)
