"""Links that leave docs/, such as `../benchmarks/README.md`: on the site they lead to the repository."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from sphinx.application import Sphinx

OUTSIDE = re.compile(r"\]\(\.\./(?!\.)([^)\s]+)\)")


def link_to_repository(app: Sphinx, page: str, source: list[str]) -> None:
    """Replaces the links of a page that lead out of docs/."""
    urls = tomllib.loads((Path(app.srcdir).parent / "pyproject.toml").read_text())["project"]["urls"]
    source[0] = OUTSIDE.sub(rf"]({urls['Repository']}/blob/main/\1)", source[0])


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the extension."""
    app.connect("source-read", link_to_repository)
    return {"parallel_read_safe": True}
