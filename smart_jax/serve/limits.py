"""Limits of a server: what one request may ask for, and how many there may be."""

from __future__ import annotations

import dataclasses

MEBIBYTE = 2**20


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a server, each refused with a message that names it.

    Attributes:
      body_bytes: of a request other than an upload (413).
      upload_bytes: of an upload (413).
      seconds, upload_seconds: until a request is answered with 504; what it has begun ends by itself.
      concurrent: requests that are worked on at a time; more are answered with 429.
      hits: of one search.
      texts: of one request for embeddings, or documents that are reranked.
      pixels: of an image.
      batch: queries that are encoded and searched together.
      window: seconds that a query waits for others when nothing else is being searched.
      cached_pictures: pictures of pages that are kept in memory.

    Example:
      >>> Limits(concurrent=2).hits
      100
    """

    body_bytes: int = 8 * MEBIBYTE
    upload_bytes: int = 256 * MEBIBYTE
    seconds: float = 60.0
    upload_seconds: float = 3600.0
    concurrent: int = 256
    hits: int = 100
    texts: int = 1000
    pixels: int = 50_000_000
    batch: int = 32
    window: float = 0.003
    cached_pictures: int = 200

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 0 if field.name == "window" else 1e-9
            if not least <= value < float("inf"):
                raise ValueError(f"limit {field.name} is {value}: it must be positive and finite")
