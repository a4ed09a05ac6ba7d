"""Steps of the pipeline for items: measure, tokenise, collate, start the computation, fetch vectors."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from PIL import Image

from smart_jax.encoding.encoded_item import EncodedItem
from smart_jax.encoding.shape_compiler import CompilerThreads
from smart_jax.encoding.window import Look
from smart_jax.forward import Vectors
from smart_jax.inputs import Item, Items, Preprocessor, TokenizedItem, audio_shape
from smart_jax.models import Batch, Grid
from smart_jax.runtime import to_host

# Of a batch, beside the pixels: ids, positions, masks and indices of a token; places and segments of a patch.
TOKEN_BYTES, PATCH_BYTES = 26, 48
FRAME_BYTES = 4 * 128  # of the features of a frame of audio


class Side(NamedTuple):
    """Prompt of items, see `Preprocessor.tokenize`.

    Attributes:
      instruction: of items that carry none of their own.
      query: whether they are queries.

    Example:
      >>> Side("Find the page.", query=True).query
      True
    """

    instruction: str | None = None
    query: bool = False


class _Dispatched(NamedTuple):
    """A batch whose vectors are being computed, and its items without their pixels."""

    items: list[TokenizedItem]
    vectors: Vectors


class ItemWork:
    """The `Work` of encoding items."""

    def __init__(
        self,
        preprocessor: Preprocessor,
        items: Items,
        compute: Callable[[Batch], Vectors],
        side: Side,
        *,
        rows: int,
        devices: int,
        expect: Callable[[int, int], None] | None,
        compiler: CompilerThreads | None,
    ):
        self._preprocessor, self._items, self._compute, self._side = preprocessor, items, compute, side
        self._rows, self._devices, self._expect, self._compiler = rows, devices, expect, compiler
        self.cut: dict[int, tuple[int, int]] = {}  # tokens and those left out, by item
        self.unheard: dict[int, float] = {}  # seconds of audio that were left out, by item
        # Sequences that make their items when asked, such as pages of a PDF or rows of a table, need not stand threads.
        self._reading: AbstractContextManager[Any] = contextlib.nullcontext() if items.in_memory else threading.Lock()

    def look(self, number: int) -> Look:
        """Returns an item's size, and its content unless that is in memory anyway."""
        with self._reading:
            item = self._items[number]
        outline = self._preprocessor.outline(item, **self._how(number))
        if outline.cut:
            self.cut[number] = len(outline) + outline.cut, outline.cut
        if outline.unheard:
            self.unheard[number] = outline.unheard
        patches = sum(int(np.prod(grid)) for grid in outline.grids)
        each = outline.patches.shape[1] * outline.patches.itemsize
        clips = tuple(map(len, outline.audio))
        look = Look(number, (patches, len(outline)), int(outline.keep.sum()), each, clips=clips)
        if not patches:  # what is heard is in the outline
            return look._replace(content=outline, held=sum(clip.nbytes for clip in outline.audio), ready=True)
        if self._items.in_memory:
            return look
        if (held := _held_bytes(item)) <= patches * each:
            return look._replace(content=item, held=held)
        tokenized = self._preprocessor.tokenize(item, **self._how(number))
        return look._replace(content=tokenized, held=tokenized.patches.nbytes, ready=True)

    def looked(self, look: Look) -> None:
        """Passes on how many tokens of an item are kept."""
        if self._expect is not None:
            self._expect(look.number, look.kept)

    def read(self, look: Look) -> TokenizedItem:
        """Returns an item with its pixels."""
        return self._preprocessor.tokenize(self._item(look), **self._how(look.number))

    def planned(self, batches: Sequence[Sequence[Look]]) -> None:
        """Has programs for the batches' shapes compiled while items are decoded."""
        if self._compiler is None or (len(batches) == 1 and all(look.ready for look in batches[0])):
            return
        for looks in batches:
            key = self._key([look.size for look in looks], [look.clips for look in looks])
            self._compiler.begin(key, partial(self._example, looks))

    def _key(self, sizes: Sequence[tuple[int, int]], clips: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """Returns the padded sizes of a batch whose items have these numbers of patches, of tokens, and of frames."""
        patches, tokens = (max(size[axis] for size in sizes) for axis in (0, 1))
        return self._rows, *self._preprocessor.padded_sizes(tokens, patches), *audio_shape(clips)

    def _example(self, looks: Sequence[Look]) -> Batch:
        """Returns a batch of items of these sizes without their pixels."""
        items = []
        for look in looks:
            item = (
                look.content if look.ready else self._preprocessor.outline(self._item(look), **self._how(look.number))
            )
            pixels = np.broadcast_to(item.patches.dtype.type(0), (look.size[0], item.patches.shape[1]))
            items.append(dataclasses.replace(item, patches=pixels))
        return self._preprocessor.collate(items, batch_size=self._rows, shards=self._devices)

    def _item(self, look: Look) -> Any:
        return self._items[look.number] if look.content is None else look.content

    def bytes_of(self, looks: Sequence[Look]) -> tuple[int, int]:
        """Returns the bytes of the items' pixels and of the padded batch."""
        own = sum(look.size[0] * look.patch_bytes for look in looks)
        patches, tokens = (max(look.size[axis] for look in looks) for axis in (0, 1))
        each = max(look.patch_bytes for look in looks)
        length, bin_size = self._preprocessor.padded_sizes(tokens, patches)
        count, frames = audio_shape([look.clips for look in looks])
        audio = count * frames * (FRAME_BYTES + 1)
        own += sum(sum(look.clips) * FRAME_BYTES for look in looks)
        return own, self._rows * (length * TOKEN_BYTES + bin_size * (each + PATCH_BYTES) + audio)

    def collate(self, items: Sequence[TokenizedItem]) -> tuple[list[TokenizedItem], Batch]:
        """Returns the padded batch, and its items without their pixels and without the bands of their audio."""
        batch = self._preprocessor.collate(items, batch_size=self._rows, shards=self._devices)
        bare = [
            dataclasses.replace(
                item, patches=item.patches[:0].copy(), audio=tuple(clip[:, :0].copy() for clip in item.audio)
            )
            for item in items
        ]
        return bare, batch

    def dispatch(self, batch: tuple[list[TokenizedItem], Batch]) -> _Dispatched:
        """Starts the computation, and the copy of its result to the host."""
        vectors = self._computed(batch)
        for vector in vectors:
            if isinstance(vector, jax.Array) and vector.is_fully_addressable:
                vector.copy_to_host_async()
        return _Dispatched(batch[0], vectors)

    def _computed(self, batch: tuple[list[TokenizedItem], Batch]) -> Vectors:
        if self._compiler is None:
            return self._compute(batch[1])
        sizes = [(sum(int(np.prod(grid)) for grid in item.grids), len(item)) for item in batch[0]]
        key = self._key(sizes, [tuple(map(len, item.audio)) for item in batch[0]])
        with self._compiler.said(key):
            self._compiler.wait(key)
            return self._compute(batch[1])

    def fetch(self, numbers: Sequence[int], dispatched: _Dispatched) -> list[EncodedItem]:
        """Returns the vectors of the items' kept tokens."""
        pooled, states, norms = map(to_host, dispatched.vectors)
        encoded = []
        for b, (number, item) in enumerate(zip(numbers, dispatched.items, strict=True)):
            kept = np.flatnonzero(item.keep)
            ids, grids = item.input_ids[kept], self._grids(item)
            # Copies: a view would keep the vectors of the whole batch alive.
            encoded.append(EncodedItem(number, pooled[b].copy(), states[b, kept], norms[b, kept], ids, grids))
        return encoded

    def _grids(self, item: TokenizedItem) -> list[Grid]:
        """Returns the sizes of the item's kept visual tokens, which are all of them or none."""
        if not np.isin(item.input_ids[item.keep], self._preprocessor.visual_ids).any():
            return []
        merge = self._preprocessor.merge_size
        return [(t, h // merge, w // merge) for t, h, w in item.grids]

    def _how(self, number: int) -> dict[str, Any]:
        return {"instruction": self._side.instruction, "query": self._side.query, "name": f"item {number}"}


def _held_bytes(item: Item) -> int:
    """Returns the bytes of the images, videos and audio that an item holds in memory."""

    def size(medium: Any) -> int:
        if isinstance(medium, list | tuple):
            return sum(map(size, medium))
        if isinstance(medium, np.ndarray):
            return medium.nbytes
        if isinstance(medium, Image.Image):
            return medium.width * medium.height * len(medium.getbands())
        return sys.getsizeof(medium)

    return size(item.images) + size(item.videos) + size(item.audios)
