"""An index in Qdrant: the engine that keeps items in a collection and scores inside of it."""

from smart_jax.index.qdrant.address import is_address
from smart_jax.index.qdrant.opening import open_qdrant

__all__ = ["is_address", "open_qdrant"]
