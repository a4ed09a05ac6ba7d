"""Addresses of collections: of a Qdrant server, or of the client's local mode."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

SCHEMES = {"qdrant": "http", "qdrant+https": "https"}
PORT, MEMORY = 6333, ":memory:"
KEY_VARIABLE = "QDRANT_API_KEY"
FORMS = "'qdrant://host:6333/name', 'qdrant+https://host/name', 'qdrant://:memory:/name' or 'qdrant:///folder/name'"


class Address(NamedTuple):
    """Address of a collection.

    Attributes:
      place: the address as text.
      name: of the collection.
      url: of the server; None = there is none: the client itself keeps the points.
      folder: where it keeps them; None = in memory.
    """

    place: str
    name: str
    url: str | None = None
    folder: Path | None = None

    @property
    def local(self) -> bool:
        """Whether there is no server."""
        return self.url is None

    def client_options(self, api_key: str | None = None) -> dict[str, Any]:
        """Returns the arguments of a `QdrantClient`; the key defaults to the one in the environment."""
        if self.url is not None:
            return {"url": self.url, "api_key": api_key or os.environ.get(KEY_VARIABLE), "timeout": 600}
        return {"location": MEMORY} if self.folder is None else {"path": str(self.folder)}


def is_address(place: object) -> bool:
    """Returns whether a place is an address rather than a folder.

    Example:
      >>> is_address("qdrant://localhost:6333/papers"), is_address("papers")
      (True, False)
    """
    return isinstance(place, str) and place.split(":", 1)[0] in SCHEMES and "://" in place


def parse_address(place: str) -> Address:
    """Returns the address that a text says.

    Raises:
      ValueError: it is no address of a collection.

    Example:
      >>> parse_address("qdrant+https://example.org/papers")
      Address(place='qdrant+https://example.org/papers', name='papers', url='https://example.org:6333', folder=None)
      >>> parse_address("qdrant:///srv/index/papers").client_options()
      {'path': '/srv/index'}
    """
    rest = place.split("://", 1)[1]
    if rest.startswith(MEMORY + "/"):
        return Address(place, _checked(rest[len(MEMORY) + 1 :], place))
    host, _, path = rest.partition("/")
    prefix, _, name = path.rpartition("/")
    if host in ("", ".", ".."):
        return Address(place, _checked(name, place), folder=Path(f"{host}/{prefix}"))
    parts = urlsplit(f"{SCHEMES[place.split(':', 1)[0]]}://{host}")
    try:
        port = parts.port or PORT
    except ValueError:
        raise ValueError(f"'{place}' has a port that is no number: write {FORMS}") from None
    if parts.username is not None:
        raise ValueError(f"a key in the address ends in logs: pass api_key=, or set {KEY_VARIABLE}")
    return Address(
        place, _checked(name, place), f"{parts.scheme}://{parts.hostname}:{port}{'/' * bool(prefix)}{prefix}"
    )


def _checked(name: str, place: str) -> str:
    if not name or not all(c.isalnum() or c in "._-" for c in name):
        raise ValueError(
            f"'{place}' does not end in the name of a collection, of letters, digits, . _ -: write {FORMS}"
        )
    return name
