"""LangChain: a retriever over an index, and a model's pooled vectors as embeddings (extra `langchain`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from smart_jax.checkpoint_encoder import load
from smart_jax.index import Hit, Index
from smart_jax.retrieval import Retriever

try:
    from langchain_core.callbacks import CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.retrievers import BaseRetriever
    from pydantic import field_validator
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"LangChain's components need langchain-core, and there is no module {error.name}: "
        "pip install 'smart_jax[langchain]'",
        name=error.name,
    ) from error


class LangChainRetriever(BaseRetriever):
    """A LangChain retriever: the pages and texts of a `smart_jax.Index` that answer a query.

    A document's `page_content` is the item's text, empty for a page that was added as an image. Its metadata are the
    item's, and `source` (path of the file), `page` (from 1), `score`, `pooled` and `late`; its id is the item's.

    Args:
      index: a `smart_jax.Index`, or what opens one: its folder, or its address in Qdrant.
      k: number of documents; `invoke(query, k=3)` asks for another.
      where: condition on metadata, as in `Index.search`; `invoke(query, where={"year": 2024})` asks for another.
      pooled_weight, late_weight, candidates: as in `Index.search`.

    Example:
      >>> import tempfile
      >>> import smart_jax
      >>> index = smart_jax.Index(tempfile.mkdtemp(), model="tiny")
      >>> report = index.add(["Revenue by region", "A list of errors"], ids=["a", "b"], metadata={"year": 2024})
      >>> retriever = LangChainRetriever(index=index, k=1)
      >>> (document,) = retriever.invoke("errors")
      >>> document.id, document.page_content, document.metadata["year"]
      ('b', 'A list of errors', 2024)
      >>> index.close()
    """

    index: Any
    k: int = 10
    where: dict[str, Any] | None = None
    pooled_weight: float = 1.0
    late_weight: float = 1.0
    candidates: int | Literal["auto"] | None = None

    @field_validator("index", mode="after")
    @classmethod
    def _opened(cls, index: Any) -> Any:
        return Index(index) if isinstance(index, str | Path) else index

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[Document]:
        how: dict[str, Any] = {
            "pooled_weight": self.pooled_weight,
            "late_weight": self.late_weight,
            "candidates": self.candidates,
        }
        wanted = {"where": self.where if where is None else where, "k": self.k if k is None else k}
        return [_document(hit) for hit in self.index.search({"text": query}, **wanted, **how)]


def _document(hit: Hit) -> Document:
    facts = {"source": hit.path, "page": hit.page, "score": hit.score, "pooled": hit.pooled, "late": hit.late}
    metadata = {**hit.metadata, **{name: value for name, value in facts.items() if value is not None}}
    return Document(page_content=hit.text or "", metadata=metadata, id=hit.id)


class LangChainEmbeddings(Embeddings):
    """A model's pooled vectors of texts as LangChain's `Embeddings`, for its vector stores.

    A vector store of LangChain keeps one vector for each document: late interaction needs `LangChainRetriever`.

    Args:
      model: what `smart_jax.load` takes, or an encoder.
      instruction, document_instruction: of queries and of documents; None = the model's.
      batch_size: as in `smart_jax.Encoder.encode`.

    Example:
      >>> embeddings = LangChainEmbeddings("tiny")
      >>> len(embeddings.embed_query("errors"))
      192
    """

    def __init__(
        self,
        model: str | Path | Retriever,
        *,
        instruction: str | None = None,
        document_instruction: str | None = None,
        batch_size: int | None = None,
    ):
        self.model: Retriever = load(model) if isinstance(model, str | Path) else model
        self.instruction, self.document_instruction, self.batch_size = instruction, document_instruction, batch_size

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Returns the pooled vectors of texts, L2-normalised."""
        return self._embed(texts, self.document_instruction, self.model.encode_document)

    def embed_query(self, text: str) -> list[float]:
        """Returns the pooled vector of a query, L2-normalised."""
        return self._embed([text], self.instruction, self.model.encode_query)[0]

    def _embed(self, texts: Sequence[str], instruction: str | None, encode: Any) -> list[list[float]]:
        if not texts:
            return []
        items = [{"text": text} for text in texts]  # never taken for names of files
        vectors = encode(items, instruction=instruction, batch_size=self.batch_size, progress=False).pooled
        return [[float(x) for x in vector] for vector in vectors]
