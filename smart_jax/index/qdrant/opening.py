"""The engine of an address."""

from __future__ import annotations

from smart_jax.index.qdrant.address import parse_address
from smart_jax.index.qdrant.client_collection import QdrantCollection
from smart_jax.index.qdrant.collection import Collection
from smart_jax.index.qdrant.engine import QdrantEngine
from smart_jax.index.qdrant.store import QdrantStore


def open_qdrant(place: str, *, create: bool, api_key: str | None = None) -> QdrantEngine:
    """Opens the index in the collection of an address, or makes one there.

    Raises:
      FileNotFoundError: there is no index, and none is to be made.
      ValueError: the collection holds something else, or it is no address.

    Example:
      >>> engine = open_qdrant("qdrant://:memory:/papers", create=True)
      >>> engine.place, len(engine)
      ('qdrant://:memory:/papers', 0)
      >>> engine.close()
    """
    collection = open_collection(place, api_key)
    try:
        return QdrantEngine(QdrantStore(collection, create=create))
    except BaseException:
        collection.close()
        raise


def open_collection(place: str, api_key: str | None = None) -> Collection:
    """Returns the collection of an address, which may not have been made."""
    return QdrantCollection(parse_address(place), api_key)
