"""Haystack: a retriever over an index, and a ranker by late interaction (extra `haystack`)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import numpy as np

from smart_jax.checkpoint_encoder import load
from smart_jax.index import Hit, Index
from smart_jax.integrations.haystack_filters import to_where
from smart_jax.retrieval import Retriever, score

try:
    from haystack import Document, component, default_from_dict, default_to_dict
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"Haystack's components need haystack-ai, and there is no module {error.name}: "
        "pip install 'smart_jax[haystack]'",
        name=error.name,
    ) from error


@component
class HaystackRetriever:
    """A Haystack retriever: the pages and texts of a `smart_jax.Index` that answer a query.

    Index and model are opened when they are needed, or by `warm_up`. A document's content is the item's text; its meta
    are the item's, and `file_path`, `page_number` (from 1), `pooled` and `late`, so that Haystack's
    `DocumentToImageContent` shows a page that was found to a model that reads images.

    Example:
      >>> import tempfile
      >>> import smart_jax
      >>> index = smart_jax.Index(tempfile.mkdtemp(), model="tiny")
      >>> report = index.add(["Revenue by region", "A list of errors"], ids=["a", "b"], metadata={"year": 2024})
      >>> retriever = HaystackRetriever(index, top_k=1)
      >>> new = {"field": "meta.year", "operator": ">=", "value": 2023}
      >>> retriever.run("errors", filters=new)["documents"][0].content
      'A list of errors'
      >>> index.close()
    """

    def __init__(
        self,
        index: str | Path | Index,
        *,
        top_k: int = 10,
        filters: dict[str, Any] | None = None,
        pooled_weight: float = 1.0,
        late_weight: float = 1.0,
        candidates: int | Literal["auto"] | None = None,
    ):
        """Makes the retriever.

        Args:
          index: a `smart_jax.Index`, or what opens one: its folder, or its address in Qdrant.
          top_k: number of documents.
          filters: of Haystack, on `meta.KEY`, `id`, `meta.file_path` and `meta.page_number`.
          pooled_weight, late_weight, candidates: as in `Index.search`.

        Raises:
          ValueError: the filters are none of Haystack's.
        """
        to_where(filters)
        self._index = index if isinstance(index, Index) else None
        self.index = index.place if isinstance(index, Index) else str(index)
        self.top_k, self.filters, self.candidates = top_k, filters, candidates
        self.pooled_weight, self.late_weight = pooled_weight, late_weight

    def _settings(self) -> dict[str, Any]:
        names = ("index", "top_k", "filters", "pooled_weight", "late_weight", "candidates")
        return {name: getattr(self, name) for name in names}

    def to_dict(self) -> dict[str, Any]:
        """Returns the component for a pipeline's file; the index goes by its place."""
        return default_to_dict(self, **self._settings())

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> HaystackRetriever:
        """Returns the component of a pipeline's file."""
        return default_from_dict(cls, data)

    def warm_up(self) -> None:
        """Opens the index and loads its model."""
        if self._index is None:
            self._index = Index(self.index)
        _ = self._index.model

    @component.output_types(documents=list[Document])
    def run(self, query: str, top_k: int | None = None, filters: dict[str, Any] | None = None) -> dict[str, Any]:
        """Searches the index.

        Args:
          query: a text.
          top_k, filters: in the place of the component's; None = the component's.

        Returns:
          `documents`, the best first.

        Raises:
          FileNotFoundError: there is no index.
          ValueError: the filters are none of Haystack's, or as `Index.search`.
        """
        self.warm_up()
        assert self._index is not None
        how: dict[str, Any] = {
            "pooled_weight": self.pooled_weight,
            "late_weight": self.late_weight,
            "candidates": self.candidates,
        }
        where = to_where(self.filters if filters is None else filters)
        hits = self._index.search({"text": query}, self.top_k if top_k is None else top_k, where=where, **how)
        return {"documents": [_document(hit) for hit in hits]}


def _document(hit: Hit) -> Document:
    facts = {"file_path": hit.path, "page_number": hit.page, "pooled": hit.pooled, "late": hit.late}
    meta = {**hit.metadata, **{name: value for name, value in facts.items() if value is not None}}
    return Document(id=hit.id, content=hit.text, meta=meta, score=hit.score)


@component
class HaystackRanker:
    """A Haystack ranker: the documents of another retriever, ordered anew by late interaction.

    A document is read as its text, as the image in its `blob`, or as the image file that its meta name in `file_path`.

    Example:
      >>> from haystack import Document
      >>> ranker = HaystackRanker("tiny", top_k=1)
      >>> documents = [Document(content="Revenue by region"), Document(content="A list of errors")]
      >>> ranker.run("errors", documents)["documents"][0].content
      'A list of errors'
    """

    def __init__(
        self,
        model: str | Path | Retriever,
        *,
        adapter: str | None = None,
        top_k: int = 10,
        pooled_weight: float = 1.0,
        late_weight: float = 1.0,
        batch_size: int | None = None,
    ):
        """Makes the ranker.

        Args:
          model: what `smart_jax.load` takes, which is loaded when it is needed; or an encoder.
          adapter: of a model that is named: its folder or hub id.
          top_k: number of documents that are kept.
          pooled_weight, late_weight: as in `smart_jax.score`.
          batch_size: as in `smart_jax.Encoder.encode`.

        Raises:
          ValueError: there is an adapter beside an encoder.
        """
        named = isinstance(model, str | Path)
        if adapter is not None and not named:
            raise ValueError("an encoder is loaded already: give it its adapter with with_adapter")
        self.model: str | None = str(model) if isinstance(model, str | Path) else None
        self._encoder: Retriever | None = None if isinstance(model, str | Path) else model
        self.adapter, self.top_k, self.batch_size = adapter, top_k, batch_size
        self.pooled_weight, self.late_weight = pooled_weight, late_weight

    def to_dict(self) -> dict[str, Any]:
        """Returns the component for a pipeline's file.

        Raises:
          ValueError: the model was given as an encoder, which has no name.
        """
        if self.model is None:
            raise ValueError("a ranker that was given an encoder cannot be written to a file: give the model's name")
        names = ("model", "adapter", "top_k", "pooled_weight", "late_weight", "batch_size")
        return default_to_dict(self, **{name: getattr(self, name) for name in names})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> HaystackRanker:
        """Returns the component of a pipeline's file."""
        return default_from_dict(cls, data)

    def warm_up(self) -> None:
        """Loads the model."""
        if self._encoder is None:
            assert self.model is not None
            self._encoder = load(self.model, adapter=self.adapter)

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, Any]:
        """Orders documents by how well they answer a query.

        Args:
          query: a text.
          documents: in any order.
          top_k: in the place of the component's; None = the component's.

        Returns:
          `documents`, the best first, with their scores.

        Raises:
          ValueError, FileNotFoundError: a document has neither text nor image, or its image cannot be read.
        """
        if not documents:
            return {"documents": []}
        self.warm_up()
        assert self._encoder is not None
        how: dict[str, Any] = {"batch_size": self.batch_size, "progress": False}
        q = self._encoder.encode_query([{"text": query}], **how)
        d = self._encoder.encode_document([_item(document) for document in documents], **how)
        scores = np.asarray(score(q, d, pooled_weight=self.pooled_weight, late_weight=self.late_weight))[0]
        best = np.argsort(-scores, kind="stable")[: self.top_k if top_k is None else top_k]
        return {"documents": [dataclasses.replace(documents[i], score=float(scores[i])) for i in best.tolist()]}


def _item(document: Document) -> dict[str, Any]:
    """Returns a document as an item that models read."""
    if document.content:
        return {"text": document.content}
    if document.blob is not None and (document.blob.mime_type or "").startswith("image/"):
        return {"image": document.blob.data}
    if path := document.meta.get("file_path"):
        return {"image": path}
    raise ValueError(f"document {document.id} has neither a text nor an image: leave it out")
