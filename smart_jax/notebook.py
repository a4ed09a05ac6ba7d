"""Objects as a notebook shows them: a small table of facts."""

from __future__ import annotations

import html
from collections.abc import Mapping


def facts_table(title: str, facts: Mapping[str, object]) -> str:
    """Returns an HTML table with a fact in each row; those that are None are left out.

    Example:
      >>> facts_table("Embeddings", {"items": 1200, "made by": None})
      '<table><caption>Embeddings</caption><tr><th>items</th><td>1,200</td></tr></table>'
    """
    rows = "".join(
        f"<tr><th>{html.escape(name)}</th><td>{html.escape(_said(value))}</td></tr>"
        for name, value in facts.items()
        if value is not None
    )
    return f"<table><caption>{html.escape(title)}</caption>{rows}</table>"


def abbreviated(count: int) -> str:
    """Returns a count in three digits.

    Example:
      >>> abbreviated(2_130_000_000), abbreviated(12)
      ('2.13 B', '12')
    """
    for unit, name in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return str(count)


def memory_size(count: int) -> str:
    """Returns a number of bytes in three digits and their unit.

    Example:
      >>> memory_size(1536), memory_size(3 * 2**30)
      ('1.5 KiB', '3 GiB')
    """
    for power, name in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if count >= 2**power:
            return f"{count / 2**power:.3g} {name}"
    return f"{count} bytes"


def _said(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
