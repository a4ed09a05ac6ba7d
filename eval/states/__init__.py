"""States of a benchmark's items: encoded once, kept on disk, shared by processes, and made into embeddings."""

from eval.states.cache import GIB, Cache, Shards
from eval.states.sides import encode_sides
from eval.states.sources import EmbeddingSource, InMemory, OnDisk
from eval.states.workers import Worker

__all__ = ["GIB", "Cache", "EmbeddingSource", "InMemory", "OnDisk", "Shards", "Worker", "encode_sides"]
