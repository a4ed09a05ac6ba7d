"""docs/architecture.md has a line for every source file and the contract's floors; texts name files that are there."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PACKAGES = ("configs", "recipes", "train", "eval", "smart_jax", "benchmarks")
LINE = re.compile(r"^- `([^`]+\.py)`: (.+)$", re.MULTILINE)
TEXTS = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
PATH = re.compile(rf"\b(?:{'|'.join(PACKAGES)}|docs|tests)/[\w./]+\.(?:py|md|toml|png|cff)\b")


def sources() -> list[str]:
    files = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return sorted(str(path.relative_to(ROOT)) for path in files if path.read_text(encoding="utf-8").strip())


def proposed_line(file: str) -> str:
    """The line that the page could have: the first sentence of the file's docstring."""
    docstring = ast.get_docstring(ast.parse((ROOT / file).read_text(encoding="utf-8"))) or "say what it holds."
    first = " ".join(docstring.split("\n\n")[0].split())
    return f"- `{file}`: {first}"


def test_every_source_file_has_a_line():
    missing = sorted(set(sources()) - {file for file, _ in LINE.findall(PAGE)})
    lines = "\n".join(map(proposed_line, missing))
    assert not missing, f"add to docs/architecture.md, under the headings of the files' folders:\n{lines}"


def test_every_line_names_a_source_file_once():
    lines = Counter(file for file, _ in LINE.findall(PAGE))
    gone = sorted(set(lines) - set(sources()))
    assert not gone, "take out of docs/architecture.md the lines of files that are not there:\n" + "\n".join(gone)
    assert not (twice := [file for file, count in lines.items() if count > 1]), f"leave one line each of {twice}"


def test_a_line_stands_under_its_folder():
    folder = ""
    for text in PAGE.splitlines():
        if heading := re.match(r"^#+ `([^`]+)/`", text):
            folder = heading[1]
        elif line := LINE.match(text):
            assert str(Path(line[1]).parent) == folder, f"move the line of {line[1]} under its folder's heading"


def drawn_floors() -> dict[str, list[tuple[str, frozenset[str]]]]:
    """Floors by container ("" = the packages themselves), from top to bottom: how they are parted, and names."""
    drawing = PAGE.split("```")[1]
    floors: dict[str, list[tuple[str, frozenset[str]]]] = {"": []}
    container = ""
    for text in filter(None, map(str.strip, drawing.splitlines()[1:])):
        if text.endswith("/"):
            container = text.removesuffix("/")
            floors[container] = []
        else:
            floors[container].append(as_floor(re.split(r" {2,}", text.lstrip("│▼ "))[0]))
    return floors


def as_floor(names: str) -> tuple[str, frozenset[str]]:
    separator = ":" if ":" in names else "|"
    return separator, frozenset(name.strip() for name in names.split(separator))


def test_the_drawing_is_the_import_contract():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    contract = {
        container: [as_floor(layer) for layer in entry["layers"]]
        for entry in config["contracts"]
        if entry["type"] == "layers"
        for container in entry.get("containers", [""])
    }
    drawn = drawn_floors()
    for container, floors in contract.items():
        lines = "\n".join(f" {sep} ".join(sorted(names)) for sep, names in floors)
        assert drawn.get(container) == floors, f"draw in docs/architecture.md, {container or 'at the top'}:\n{lines}"
    assert set(drawn) == set(contract), f"draw the floors of {sorted(contract)} and of nothing else"


@pytest.mark.parametrize("text", TEXTS)
def test_paths_are_there(text):
    gone = {path for path in PATH.findall((ROOT / text).read_text(encoding="utf-8")) if not (ROOT / path).is_file()}
    assert not gone, f"{text} names files that are not there: {', '.join(sorted(gone))}"


@pytest.mark.parametrize("config", sorted(path.name for path in (ROOT / "configs").glob("*.py")))
def test_paths_of_configs_are_there(config):
    docstring = ast.get_docstring(ast.parse((ROOT / "configs" / config).read_text(encoding="utf-8"))) or ""
    gone = {path for path in PATH.findall(docstring) if not (ROOT / path).is_file()}
    assert not gone, f"configs/{config} names files that are not there: {', '.join(sorted(gone))}"
