"""Output of commands: tables or one JSON document on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import typer

DONE, FAILED, INTERRUPTED = 0, 1, 130  # exit codes; 2, for wrong usage, is the command library's
NUMBERS = ("score", "pooled", "late", "cosine", "share", "lift")  # columns, aligned to the right
SHOWN = 48  # characters of a text in a table


def say(text: str) -> None:
    """Prints a message on stderr."""
    typer.echo(f"smart-jax: {text}", err=True)


def print_json(value: Any) -> None:
    """Prints one JSON document; in ASCII, which every locale can print."""
    typer.echo(json.dumps(value, indent=2, default=str))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a table; into a pipe as wide as it is, so that nothing is lost, and on a terminal folded to its width."""
    from rich.box import SIMPLE_HEAD  # rich takes longer to import than the command library
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="right" if name in NUMBERS else "left", overflow="fold", no_wrap=name in NUMBERS)
    for row in rows:
        table.add_row(*(Text(cell_text(value)) for value in row))
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console = Console(file=sys.stdout, highlight=False, width=Console(width=10**6).measure(table).maximum)
    console.print(table)


def print_facts(facts: Mapping[str, object]) -> None:
    """Prints names and values, one a line."""
    width = max(map(len, facts), default=0)
    for name, value in facts.items():
        typer.echo(f"{name:<{width}}  {cell_text(value)}")


def cell_text(value: object) -> str:
    """Returns a value as a table shows it: in one line, and without characters that would move a terminal's cursor."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={cell_text(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(cell_text, value))
    return "".join(c if c.isprintable() else " " for c in str(value))


def shortened(text: str | None) -> str:
    """Returns the beginning of a text, in one line.

    Example:
      >>> shortened("Revenue\\nby  region")
      'Revenue by region'
    """
    line = " ".join((text or "").split())
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"


def size_of(count: float) -> str:
    """Returns a number of bytes in words.

    Example:
      >>> size_of(300), size_of(2_500_000)
      ('300 B', '2.5 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
