"""The reference: a page for every package that has an `__all__`, with each public name on one of them.

The pages are written as the site is built. A name that several packages export is described where a user finds it
first, and named with a link in the others.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer
from sphinx.util.inspect import stringify_signature

ROOTS = ("smart_jax", "train", "eval")
FOLDER = "reference"
ARRAY = re.compile(r"(\w+)\[(?:ndarray|(?:[\w.]+\.)?Array), '([^']*)'\]")  # a type of jaxtyping
TWICE = re.compile(r"(\w+\['[^']*'\]) \| \1")  # on the host, or on a device
LONGEST_VALUE = 100  # characters of a constant


def public_packages(roots: tuple[str, ...] = ROOTS) -> Iterator[ModuleType]:
    """Yields the packages that say what is public, the outer ones first."""
    for root in roots:
        package = importlib.import_module(root)
        inner = sorted(each.name for each in pkgutil.walk_packages(package.__path__, f"{root}.") if each.ispkg)
        for name in (root, *inner):
            module = importlib.import_module(name)
            if getattr(module, "__all__", None):
                yield module


def pages() -> dict[str, str]:
    """Returns the text of the page of every package, by its name."""
    modules = list(public_packages())
    first = {("", id(module)): module.__name__ for module in modules}  # name and identity of what -> where it is
    texts = {}
    for module in modules:
        own, others = [], []
        for name in module.__all__:
            value, here = getattr(module, name), f"{module.__name__}.{name}"
            known = first.get(("", id(value))) or first.setdefault((name, id(value)), here)
            if known == here and ("", id(value)) not in first:
                own.append(name)
            else:
                others.append((name, known))
        texts[module.__name__] = _page(module, own, others)
    return texts


def _page(module: ModuleType, own: list[str], others: list[tuple[str, str]]) -> str:
    lines = [f"# {module.__name__}", "", "```{eval-rst}", inspect.getdoc(module) or "", ""]
    lines += [f".. py:module:: {module.__name__}", "   :no-index:", ""]
    for name in own:
        lines += _entry(module, name)
    if others:
        lines += ["Described elsewhere:", ""]
        lines += [_reference(name, known) for name, known in others]
    return "\n".join([*lines, "```", ""])


def _reference(name: str, known: str) -> str:
    return f"- :doc:`{name} <{known}>`" if known in sys.modules else f"- :py:obj:`{name} <{known}>`"


def _entry(module: ModuleType, name: str) -> list[str]:
    value, full = getattr(module, name), f"{module.__name__}.{name}"
    if inspect.ismodule(value):
        return [f".. automodule:: {value.__name__}", ""]
    if inspect.isclass(value):
        return [f".. {'autoexception' if issubclass(value, BaseException) else 'autoclass'}:: {full}", ""]
    if inspect.isroutine(value):
        return [f".. autofunction:: {full}", ""]
    shown = repr(value)
    lines = [f".. py:data:: {name}", *([f"   :value: {shown}"] if len(shown) <= LONGEST_VALUE else []), ""]
    return [*lines, *(f"   {line}" for line in _comment(module, name)), ""]


def _comment(module: ModuleType, name: str) -> list[str]:
    """Returns the docstring of a constant, which stands below it in the module that it comes from."""
    for statement in ast.parse(inspect.getsource(module)).body:
        if isinstance(statement, ast.ImportFrom) and any(
            (each.asname or each.name) == name for each in statement.names
        ):
            return _comment(importlib.import_module(statement.module or ""), name)
    return ModuleAnalyzer.for_module(module.__name__).find_attr_docs().get(("", name), [])


def write_pages(app: Sphinx) -> None:
    """Writes the pages and their table of contents into the folder of the sources, and leaves equal ones alone."""
    texts = pages()
    toc = "\n".join(["# Reference", "", "```{toctree}", *texts, "```", ""])
    folder = Path(app.srcdir) / FOLDER
    folder.mkdir(exist_ok=True)
    texts["index"] = toc
    for file in folder.glob("*.md"):
        if file.stem not in texts:  # of a package that is not there any more
            file.unlink()
    for name, text in texts.items():
        file = folder / f"{name}.md"
        if not file.exists() or file.read_text() != text:
            file.write_text(text)


def shorten(app: Sphinx, kind: str, name: str, value: Any, options: Any, signature: Any, returns: Any) -> Any:
    """Returns a signature with arrays as `Float['N D']`, and a class's own where flax wraps it."""
    if kind == "class" and signature and "*args" in signature:
        signature = stringify_signature(_without_self(inspect.signature(value.__init__)), show_return_annotation=False)
    return tuple(text and TWICE.sub(r"\1", ARRAY.sub(r"\1['\2']", text)) for text in (signature, returns))


def _without_self(signature: inspect.Signature) -> inspect.Signature:
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-process-signature", shorten)
    return {"parallel_read_safe": True}
