"""Padded shapes of batches, which every process derives from what is stored of the whole batch, asking no other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from smart_jax.inputs import Preprocessor
from train.config import DataConfig
from train.data.clean_queries import clean_query
from train.data.dataset import Example
from train.data.examples import Share
from train.data.outlines import Item, Outline
from train.data.rows import UNREADABLE

_REMEDY = "set config.data.query_length, query_patches, document_length and document_patches"


class Shape(NamedTuple):
    """Padded lengths and patches of a batch's two sides; None = those of its items.

    Attributes:
      query_length, query_patches: of a query.
      document_length, document_patches: of a document.
      query_videos: whether patches of queries have room for a video's frames; documents are all videos, or none is.
    """

    query_length: int | None
    query_patches: int | None
    document_length: int | None
    document_patches: int | None
    query_videos: bool | None = None


class BatchShapes:
    """Shapes of batches: as the config says or, where the batch is shared by processes, of all processes' items."""

    def __init__(self, preprocessor: Preprocessor, config: DataConfig):
        """Takes how items are tokenised, and which sizes are fixed."""
        self._preprocessor, self._config = preprocessor, config
        self._fixed = Shape(config.query_length, config.query_patches, config.document_length, config.document_patches)
        self._of_images: dict[tuple[int, int], tuple[int, int]] = {}

    def __call__(self, examples: Sequence[Example]) -> Shape:
        """Returns the shape of the batch that these examples are a process's part of.

        Raises:
          ValueError: it does not follow from what is stored.
        """
        if not isinstance(examples, Share) or examples.is_whole:
            return self._fixed
        shape = self._fixed if None not in self._fixed[:4] else self._shared(examples)
        return shape._replace(query_videos=examples.has_videos)

    def _shared(self, examples: Share) -> Shape:
        """Returns the sizes that are fixed, and others of the whole batch's items."""
        fixed, outlines = self._fixed, examples.outlines()
        if outlines is not None:
            derived = self._derived(examples, outlines)._asdict()
            return fixed._replace(**{name: size for name, size in derived.items() if getattr(fixed, name) is None})
        if fixed.query_patches is None:
            fixed = fixed._replace(query_patches=0)  # queries are texts where nothing else is said
        if None in fixed[:4]:
            raise ValueError(
                "with several processes the shape of a batch must follow from the data, and these have no sizes (they "
                f"are videos, or were converted by an earlier version): convert the data again, or {_REMEDY}"
            )
        return fixed

    def _derived(self, examples: Share, outlines: Sequence[Outline]) -> Shape:
        negatives = self._config.negatives
        queries = [self._measure({"text": outline.query}, query=True) for outline in outlines]
        documents = []
        for i, outline in enumerate(outlines):
            if all(map(any, outline.sizes[: 1 + negatives])):
                documents += [self._measure_image(size) for size in outline.sizes[: 1 + negatives]]
            else:  # texts, whose records are small
                whole = examples.of_batch(i)
                documents += [self._measure(item) for item in (whole.document, *whole.negatives[:negatives])]
        return Shape(*self._padded(queries), *self._padded(documents))

    def _padded(self, measured: Sequence[tuple[int, int]]) -> tuple[int, int]:
        return self._preprocessor.padded_sizes(*(max(counts) for counts in zip(*measured, strict=True)))

    def _measure_image(self, size: tuple[int, int]) -> tuple[int, int]:
        if size not in self._of_images:
            self._of_images[size] = self._measure({"image": _header(*size)})
        return self._of_images[size]

    def _measure(self, item: Item, *, query: bool = False) -> tuple[int, int]:
        """Returns the tokens and patches of an item; those of one that cannot be read do not count."""
        instruction = self._config.query_instruction if query else self._config.document_instruction
        try:
            item = clean_query(item, self._config.clean_queries) if query else item
            return self._preprocessor.measure(item, instruction=instruction, query=query)
        except UNREADABLE:
            return 1, 0


def _header(width: int, height: int) -> bytes:
    """Returns an image file without its pixels (netpbm), which is all that measuring reads."""
    return b"P6 %d %d 255\n" % (width, height)
