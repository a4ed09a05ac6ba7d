"""Keys of a config as `--help` lists them: default and meaning, which are the comments and docstrings of its source."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import io
import re
import textwrap
import tokenize
import typing
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

WIDTH = 120
Defaults = type | Callable[[], ConfigDict]  # a dataclass of settings, or what returns them


def key_lines(config: ConfigDict, meanings: Mapping[str, str]) -> Iterator[str]:
    """Yields a line for each key, or two: how it is given, with its default, and what it means; in the meanings' order.

    Example:
      >>> list(key_lines(ConfigDict({"steps": 9, "mesh": {"data": -1}}), {"steps": "number of updates"}))
      ['  --config.steps=9  number of updates', '  --config.mesh.data=-1']
    """
    order = {key: place for place, key in enumerate(meanings)}
    for key, value in sorted(_leaves(config.to_dict()), key=lambda leaf: order.get(leaf[0], len(order))):
        given = f"  --config.{key}={value!r}" if isinstance(value, list | tuple) else f"  --config.{key}={value}"
        meaning = meanings.get(key, "")
        if len(given) + 2 + len(meaning) <= WIDTH:
            yield f"{given}  {meaning}".rstrip()
        else:
            yield given
            yield textwrap.fill(meaning, WIDTH, initial_indent="      ", subsequent_indent="      ")


def _leaves(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{before}{name}.")
        else:
            yield before + name, value


def meanings_of(defaults: Defaults | None, module: ModuleType | None = None) -> dict[str, str]:
    """Returns what the keys of a config mean, in the order of their source; empty texts of those that say nothing.

    Args:
      defaults: of all configs of a program: a dataclass, whose fields have comments or are among the attributes of its
        docstring; or a function with a dictionary in it, whose keys have comments. None = there are none.
      module: of a config file; comments behind `config.KEY = VALUE` in it, and in the config files that it imports, go
        before.

    Example:
      >>> @dataclasses.dataclass
      ... class Settings:
      ...     '''Settings.
      ...
      ...     Attributes:
      ...       steps: number of updates.
      ...     '''
      ...     steps: int = 9
      >>> meanings_of(Settings)
      {'steps': 'number of updates'}
    """
    found: dict[str, str] = {}
    if isinstance(defaults, type):
        found |= _of_dataclass(defaults)
    elif defaults is not None:
        found |= _of_source(inspect.getsource(inspect.unwrap(defaults)))
    if module is not None:
        for other in vars(module).values():
            if isinstance(other, ModuleType) and hasattr(other, "get_config"):
                _add(found, meanings_of(None, other))
        _add(found, _of_source(inspect.getsource(module)))
    return found


def _add(found: dict[str, str], meanings: Mapping[str, str]) -> None:
    """Adds meanings; one that says nothing takes no other's place."""
    for key, meaning in meanings.items():
        found[key] = meaning or found.get(key, "")


def _of_dataclass(cls: Any) -> dict[str, str]:
    kinds, said = typing.get_type_hints(cls), dict[str, str]()
    for base in reversed(cls.__mro__[:-1]):
        _add(said, _attributes(inspect.getdoc(base) or ""))
        with contextlib.suppress(OSError, TypeError):  # of a class that is in no file
            _add(said, _of_source(inspect.getsource(base)))
    found: dict[str, str] = {}
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(kind := kinds[field.name]):
            found |= {f"{field.name}.{name}": meaning for name, meaning in _of_dataclass(kind).items()}
        else:
            found[field.name] = said.get(field.name, "")
    return found


def _attributes(docstring: str) -> dict[str, str]:
    """Returns the section "Attributes:" of a docstring, by name."""
    section = re.search(r"^Attributes:\n((?:  .*\n?|\n)+)", docstring, re.MULTILINE)
    found: dict[str, str] = {}
    for match in re.finditer(r"^  ([\w, ]+): (.+(?:\n    .*)*)", section[1] if section else "", re.MULTILINE):
        meaning = " ".join(match[2].split()).removesuffix(".")
        found |= {name.strip(): meaning for name in match[1].split(",")}
    return found


def _of_source(source: str) -> dict[str, str]:
    """Returns the comments behind `key: kind = value`, `config.key = value` and `"key": value` by key, with dots."""
    source = textwrap.dedent(source)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}
    found: dict[str, str] = {}
    for key, lines in _keys(ast.parse(source)):
        found[key] = next((comments[line] for line in lines if line in comments), "")
    return found


def _keys(tree: ast.AST) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields keys and the lines that their comments may be on."""
    for node in ast.walk(tree):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, (node.lineno, node.end_lineno or node.lineno)
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                for each in target.elts if isinstance(target, ast.Tuple) else [target]:
                    root, _, key = ast.unparse(each).partition(".")
                    if root == "config" and key:
                        yield key, (node.lineno, node.end_lineno or node.lineno)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Dict):
            yield from _dict_keys(node.args[0], "")


def _dict_keys(node: ast.Dict, before: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    for key, value in zip(node.keys, node.values, strict=True):
        if isinstance(key, ast.Constant) and isinstance(key.value, str):
            yield f"{before}{key.value}", (key.lineno, value.end_lineno or key.lineno)
            if isinstance(value, ast.Dict):
                yield from _dict_keys(value, f"{before}{key.value}.")
