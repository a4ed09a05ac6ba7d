"""Routes in the shapes that clients know: embeddings as OpenAI and Jina have them, reranking as Jina and Cohere do."""

from __future__ import annotations

import base64
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from jaxtyping import Float
from pydantic import AliasChoices, BaseModel, Field

from smart_jax.retrieval import Embeddings, score
from smart_jax.serve.content import Anything, to_item
from smart_jax.serve.context import ERRORS, Context, refusing
from smart_jax.serve.schemas import check_most
from smart_jax.serve.service import Service

TOGETHER = 32  # items that are encoded before another request has its turn
QUERY_TASKS = ("query", "retrieval.query", "search_query")

router = APIRouter(tags=["clients"], responses=ERRORS)


class EmbeddingsRequest(BaseModel):
    """Items to be embedded; fields that only other models have are passed over."""

    input: Anything | list[Anything] = Field(description="A text, an object of text and image, or a list of these.")
    model: str | None = Field(None, description="Passed over: the server has one.")
    task: str = Field(
        "document",
        validation_alias=AliasChoices("task", "input_type", "prompt_name"),
        description="`retrieval.query`, `search_query` or `query` for queries; all else is documents.",
    )
    return_multivector: bool = Field(False, description="Whether all token vectors are returned, not the pooled one.")
    dimensions: int | None = None
    encoding_format: Literal["float", "base64"] = Field(
        "float",
        validation_alias=AliasChoices("encoding_format", "embedding_type"),
        description="base64: of float32, little-endian.",
    )


class RerankRequest(BaseModel):
    """A query, and documents that are put in order by it."""

    query: Anything
    documents: list[Anything] = Field(min_length=1)
    model: str | None = Field(None, description="Passed over: the server has one.")
    top_n: int | None = Field(None, ge=1, description="Number of results; null = all.")
    return_documents: bool = False


@router.post("/v1/embeddings")
async def embeddings(request: EmbeddingsRequest, service: Context) -> Response:
    """Returns pooled vectors as `embedding`, or with `return_multivector` all token vectors as `embeddings`."""
    given = request.input if isinstance(request.input, list) else [request.input]
    with refusing():
        check_most("the number of inputs", len(given), service.limits.texts)
        if not given:
            raise ValueError("input is empty")
        items = [to_item(each, service.limits) for each in given]
        found = await _encoded(service, items, query=request.task in QUERY_TASKS)
        width = (found.tokens if request.return_multivector else found.pooled).shape[1]
        if request.dimensions not in (None, width):
            raise ValueError(f"dimensions is {request.dimensions}: vectors of this model have {width}")
    return await service.read(_embeddings_answer, found, request, service.model_name())


def _embeddings_answer(found: Embeddings, request: EmbeddingsRequest, model: str | None) -> Response:
    tokens = int(found.lengths.sum())
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    data = [_datum(i, found[i], request) for i in range(len(found))]
    return JSONResponse({"object": "list", "data": data, "model": model, "usage": usage})


def _datum(number: int, item: Embeddings, request: EmbeddingsRequest) -> dict[str, Any]:
    coded: Callable[[Any], Any] = _base64 if request.encoding_format == "base64" else _numbers
    if request.return_multivector:
        return {"object": "embedding", "index": number, "embeddings": [coded(token) for token in item.tokens]}
    return {"object": "embedding", "index": number, "embedding": coded(item.pooled[0])}


def _numbers(vector: Float[np.ndarray, " D"]) -> list[float]:
    numbers: list[float] = vector.tolist()
    return numbers


def _base64(vector: Float[np.ndarray, " D"]) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


@router.post("/rerank")
@router.post("/v1/rerank", include_in_schema=False)
@router.post("/v2/rerank", include_in_schema=False)
async def rerank(request: RerankRequest, service: Context) -> dict[str, Any]:
    """Returns documents by their score for a query, the best first: pooled and late, with weights of 1."""
    with refusing():
        check_most("the number of documents", len(request.documents), service.limits.texts)
        query = await _encoded(service, [to_item(request.query, service.limits)], query=True)
        documents = await _encoded(service, [to_item(each, service.limits) for each in request.documents], query=False)
    scores = (await service.read(score, query, documents))[0]
    order = np.argsort(-scores, kind="stable")[: request.top_n].tolist()
    results = [{"index": i, "relevance_score": float(scores[i])} for i in order]
    if request.return_documents:
        for result in results:
            document = request.documents[result["index"]]
            result["document"] = (
                {"text": document} if isinstance(document, str) else document.model_dump(exclude_none=True)
            )
    tokens = int(query.lengths.sum() + documents.lengths.sum())
    usage = {"total_tokens": tokens, "prompt_tokens": tokens}
    return {"id": f"rerank-{time.time_ns():x}", "model": service.model_name(), "results": results, "usage": usage}


async def _encoded(service: Service, items: list[dict[str, Any]], *, query: bool) -> Embeddings:
    encode = service.encode_queries if query else service.encode_documents
    parts = [items[i : i + TOGETHER] for i in range(0, len(items), TOGETHER)]
    return Embeddings.concatenate([await service.read(encode, part) for part in parts])


@router.get("/v1/models")
async def models(service: Context) -> dict[str, Any]:
    """Returns the model of the server, as the only one."""
    return {"object": "list", "data": [{"id": service.model_name(), "object": "model", "owned_by": "smart_jax"}]}
