"""Pages to embeddings, by the model of an index; those that it cannot read are told apart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from smart_jax.evidence import TokenSources
from smart_jax.index.explaining import pack_sources
from smart_jax.index.pages import Page
from smart_jax.index.text_windows import Window, join, prefix_tokens, windows
from smart_jax.retrieval import Embeddings, Retriever, reductions

BAD_ITEM = (ValueError, TypeError, OSError)  # what an item that cannot be read raises


class EncodedPages(NamedTuple):
    """Outcome of some pages.

    Attributes:
      embeddings: of the pages that could be read, in order; None = none could.
      good: indices of these.
      errors: what is wrong with the others, by their indices.
      sources: what the tokens of the pages that could be read stand for, packed; None = the model does not tell.
    """

    embeddings: Embeddings | None
    good: list[int]
    errors: dict[int, str]
    sources: list[bytes | None]


@dataclasses.dataclass(frozen=True)
class PageEncoder:
    """A model as an index uses it for documents.

    Attributes:
      model: the model.
      instruction: of documents; None = the model's default.
      dtype: of the embeddings.
      batch_size: as in `Encoder.encode`.
      pool: about so many tokens of a document become one, their mean; 1 = none do.
    """

    model: Retriever
    instruction: str | None = None
    dtype: str = "float16"
    batch_size: int | None = None
    pool: float = 1.0

    @property
    def texts_only(self) -> bool:
        """Whether the model reads nothing but texts."""
        return tuple(getattr(self._preprocessor, "modalities", ())) == ("text",)

    @property
    def _preprocessor(self) -> Any:
        return getattr(self.model, "preprocessor", None)

    def __call__(self, pages: Sequence[Page]) -> EncodedPages:
        """Returns the embeddings of pages; a page that cannot be read does not keep the others from it."""
        try:
            embeddings, sources = self._encode(pages)
            if self.pool > 1:
                embeddings, sources = _pooled(embeddings, sources, self.pool)
            return EncodedPages(embeddings, list(range(len(pages))), {}, [_packed(each) for each in sources])
        except BAD_ITEM as error:
            if len(pages) == 1:
                return EncodedPages(None, [], {0: str(error)}, [])
        middle = len(pages) // 2
        left, right = self(pages[:middle]), self(pages[middle:])
        parts = [half.embeddings for half in (left, right) if half.embeddings is not None]
        errors = left.errors | {middle + i: error for i, error in right.errors.items()}
        good = left.good + [middle + i for i in right.good]
        joined = Embeddings.concatenate(parts) if parts else None
        return EncodedPages(joined, good, errors, left.sources + right.sources)

    def _encode(self, pages: Sequence[Page]) -> tuple[Embeddings, list[TokenSources | None]]:
        if self.texts_only:
            return self._encode_texts(pages)
        contents = _Contents(pages, self._sources)
        embeddings = self._embed(contents)
        return embeddings, _fitting([contents.sources.get(i) for i in range(len(pages))], embeddings)

    def _encode_texts(self, pages: Sequence[Page]) -> tuple[Embeddings, list[TokenSources | None]]:
        cut = [self._windows(page) for page in pages]
        items = [
            page.content() if len(of_page) == 1 else {"text": window.text}
            for page, of_page in zip(pages, cut, strict=True)
            for window in of_page
        ]
        flat = self._embed(items)
        if len(items) > len(pages):
            prefix, bounds = prefix_tokens(self._preprocessor, self.instruction), np.cumsum([0, *map(len, cut)])
            parts = [flat[first:last] for first, last in pairwise(bounds.tolist())]
            flat = Embeddings.concatenate([join(*each, prefix) for each in zip(parts, cut, strict=True)])
        return flat, _fitting([self._sources_of_text(page) for page in pages], flat)

    def _sources_of_text(self, page: Page) -> TokenSources | None:
        if page.text is None or not hasattr(self._preprocessor, "origins"):
            return self._sources(page.content())
        return TokenSources.of_whole_text(self._preprocessor, page.text, instruction=self.instruction)

    def _sources(self, item: Any) -> TokenSources | None:
        """Returns what the tokens of an item stand for; None = the model does not tell."""
        if not hasattr(self._preprocessor, "origins"):
            return None
        return TokenSources.of(self._preprocessor, item, instruction=self.instruction)

    def _windows(self, page: Page) -> list[Window]:
        if page.text is None:
            return [Window("", 0, 0)]  # as it is: the model says what is wrong with it
        return windows(self._preprocessor, page.text, instruction=self.instruction)

    def _embed(self, items: Sequence[Any]) -> Embeddings:
        how: dict[str, Any] = {"batch_size": self.batch_size, "dtype": np.dtype(self.dtype), "progress": False}
        return self.model.encode_document(items, instruction=self.instruction, **how)


class _Contents(Sequence[Any]):
    """Items that the model takes, one for each page, made where it is read, and traced while it is there.

    Attributes:
      sources: what the tokens of the pages that were read stand for, by their indices.
    """

    def __init__(self, pages: Sequence[Page], trace: Callable[[Any], TokenSources | None]):
        self._pages, self._trace = pages, trace
        self.sources: dict[int, TokenSources | None] = {}

    def __len__(self) -> int:
        return len(self._pages)

    def __getitem__(self, index: Any) -> Any:
        content = self._pages[index].content()
        if index not in self.sources:
            self.sources[index] = self._trace(content)
        return content


def _fitting(sources: list[TokenSources | None], embeddings: Embeddings) -> list[TokenSources | None]:
    """Returns the sources, None in the place of those that are not of as many vectors as their item has."""
    lengths = embeddings.lengths.tolist()
    return [s if s is not None and len(s) == n else None for s, n in zip(sources, lengths, strict=True)]


def _pooled(
    embeddings: Embeddings, sources: list[TokenSources | None], factor: float
) -> tuple[Embeddings, list[TokenSources | None]]:
    groups = reductions.group_tokens(embeddings, factor)
    pooled = reductions.pool_groups(embeddings, groups)
    grouped: list[TokenSources | None] = []
    for i, source in enumerate(sources):
        of_item = groups[embeddings.offsets[i] : embeddings.offsets[i + 1]] - pooled.offsets[i]
        grouped.append(None if source is None else source.grouped(of_item))
    return pooled, grouped


def _packed(sources: TokenSources | None) -> bytes | None:
    return None if sources is None else pack_sources(sources)
