"""Service that answers the requests of one application: the index, threads that ask it, and what it keeps in memory."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from smart_jax.evidence import Evidence
from smart_jax.index import Hit, Index
from smart_jax.retrieval import Embeddings
from smart_jax.serve.batching import Batcher
from smart_jax.serve.kept import Kept
from smart_jax.serve.limits import Limits
from smart_jax.serve.metrics import Metrics
from smart_jax.serve.searching import Search, search_together
from smart_jax.serve.uploads import Uploads

READERS = 4  # threads for items, pictures, evidence and clients' embeddings
EVIDENCE_KEPT = 32  # vectors of a page each
WARM_UP = "page"

logger = logging.getLogger("smart_jax.serve")
Result = TypeVar("Result")


class Service:
    """An index with the threads that ask it.

    One thread encodes and searches batches of queries, some read, one writes: an upload keeps no search waiting. The
    encoder answers one of them at a time; what an upload encodes goes on beside that.

    Attributes:
      index: that is served.
      uploads: folder of uploaded files.
      token: that changes ask for; None = nothing can be changed.
      limits: of requests.
      metrics: figures.
      encoder: lock of the encoder.
      pictures: of pages, encoded.
      ready: whether it is warmed up and not closing.
    """

    def __init__(self, index: Index, uploads: Path, token: str | None, limits: Limits, *, warm_up: bool = True):
        self.index, self.uploads, self.token, self.limits = index, Uploads(uploads), token, limits
        self.metrics = Metrics()
        self.encoder = threading.Lock()
        self.pictures: Kept[bytes] = Kept(limits.cached_pictures)
        self.ready = False
        self._evidence: Kept[Evidence] = Kept(EVIDENCE_KEPT)
        self._warm_up = warm_up

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Has threads until the end of the block, which waits for what they are at."""
        self._searcher, self._writer = (ThreadPoolExecutor(1, thread_name_prefix=name) for name in ("search", "write"))
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="read")
        self._batches = Batcher(self._search_batch, most=self.limits.batch, window=self.limits.window)
        self._batches.start()
        warming = asyncio.create_task(self._prepare())
        try:
            yield
        finally:
            self.ready = False
            warming.cancel()
            await self._batches.stop()
            for threads in (self._searcher, self._readers, self._writer):
                await asyncio.to_thread(threads.shutdown, cancel_futures=True)

    async def _prepare(self) -> None:
        """Compiles the encoder for the batches that queries come in, before the first asks."""
        size, first = 1, Search({"text": WARM_UP}, k=1)
        try:
            if self._warm_up:
                await self._search_batch([first])
            while self._warm_up and size <= self.limits.batch:
                await self._on(self._searcher, self.encode_queries, [{"text": WARM_UP}] * size)
                size *= 2
        except Exception:
            logger.exception("the model cannot be used: the server will not be ready")
        else:
            self.ready = True

    async def read(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Returns what a function that reads the index returns, in a thread for that."""
        return await self._on(self._readers, function, *arguments)

    async def write(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Returns what a function that changes the index returns; one at a time."""
        return await self._on(self._writer, function, *arguments)

    @staticmethod
    async def _on(threads: ThreadPoolExecutor, function: Callable[..., Result], *arguments: Any) -> Result:
        return await asyncio.get_running_loop().run_in_executor(threads, function, *arguments)

    async def search(self, search: Search) -> list[Hit]:
        """Returns the hits of a search, which is made together with others that are waiting."""
        return await self._batches.ask(search)

    async def _search_batch(self, searches: Sequence[Search]) -> Sequence[list[Hit] | Exception]:
        self.metrics.batches.observe(len(searches))
        return await self._on(self._searcher, search_together, self.index, searches, self.encode_queries)

    def encode_queries(self, items: Sequence[Any]) -> Embeddings:
        """Returns embeddings of queries, as the index searches with them."""
        with self.encoder:
            return self.index.encode_query(items)

    def encode_documents(self, items: Sequence[Any]) -> Embeddings:
        """Returns embeddings of documents."""
        with self.encoder:
            return self.index.model.encode_document(items, progress=False)

    def model_name(self) -> str | None:
        """Returns the model's name, of a folder its last part; None = it has none."""
        name = (self.index.info().model or {}).get("name")
        return Path(name).name if name and Path(name).is_absolute() else name

    def explain(self, search: Search, item_id: str) -> Evidence:
        """Returns the evidence of an item for a query.

        Raises:
          KeyError: the index has no such item.
          ValueError: it cannot be explained.
        """
        with self.encoder:
            hits = self.index.search(search.query, 1, **(search.options() | {"where": {"id": item_id}}))
            if not hits:
                raise KeyError(item_id)
            key = repr(search), hits[0].id, hits[0].score, file_state(hits[0].path)
            known = None if "image" in search.query else self._evidence.get(key)
            if known is None:
                known = hits[0].explain()
                self._evidence.keep(key, known)
        return known

    def picture(self, item_id: str, number: int, width: int) -> bytes:
        """Returns one of an item's pictures as JPEG.

        Raises:
          KeyError: the index has no such item.
          IndexError: it has no such picture, or its file is gone or was changed.
        """
        item = next(self.index.items({"id": item_id}), None)
        if item is None:
            raise KeyError(item_id)
        key = item_id, number, width, file_state(item.path)
        if (known := self.pictures.get(key)) is None:
            traced = self.index.trace(item_id)
            if number >= len(traced.pictures):
                raise IndexError(number)
            known = jpeg(traced.open_picture(number), width)
            self.pictures.keep(key, known)
        return known


def file_state(path: str | None) -> tuple[int, int] | None:
    """Returns time and size of an item's file, by which it is seen to have changed."""
    try:
        found = None if path is None else os.stat(path)
    except OSError:
        return None
    return None if found is None else (found.st_mtime_ns, found.st_size)


def jpeg(picture: Image.Image, width: int) -> bytes:
    """Returns a picture of at most this width as a JPEG file."""
    file = io.BytesIO()
    small = picture.convert("RGB")
    small.thumbnail((width, 8 * width), Image.Resampling.LANCZOS)
    small.save(file, "JPEG", quality=85)
    return file.getvalue()
