"""The engine of a place: a folder, or the address of a collection."""

from __future__ import annotations

from pathlib import Path

from smart_jax.index.engine import Engine
from smart_jax.index.local import LocalEngine
from smart_jax.index.qdrant import is_address, open_qdrant
from smart_jax.index.store import Store


def open_engine(place: str | Path, *, create: bool, api_key: str | None = None) -> Engine:
    """Opens the engine of a place, or makes one there.

    Raises:
      FileNotFoundError: there is no index, and none is to be made.
      ValueError: the place holds something else, or is no address.
    """
    if is_address(place):
        return open_qdrant(str(place), create=create, api_key=api_key)
    return LocalEngine(Store(Path(place), create=create))
