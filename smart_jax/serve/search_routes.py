"""Routes of searches: hits, their evidence, and why one is above another."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from fastapi import APIRouter, Response

from smart_jax.serve.content import to_item
from smart_jax.serve.context import ERRORS, Context, refusing
from smart_jax.serve.evidence_answer import CompareAnswer, EvidenceAnswer
from smart_jax.serve.schemas import (
    CompareRequest,
    EvidenceRequest,
    HitAnswer,
    Scoring,
    SearchAnswer,
    SearchRequest,
    check_most,
)
from smart_jax.serve.searching import Search
from smart_jax.serve.service import Service

Answer = TypeVar("Answer")

router = APIRouter(tags=["search"], responses=ERRORS)


@router.post("/search")
async def search(request: SearchRequest, service: Context) -> SearchAnswer:
    """Returns the items that answer a query best."""
    began = time.monotonic()
    with refusing():
        check_most("k", request.k, service.limits.hits)
        options = {name: getattr(request, name) for name in ("k", "where", "candidates", "first_stage")}
        hits = await service.search(request.search(to_item(request.query, service.limits), **options))
    return SearchAnswer(hits=[HitAnswer.of(hit) for hit in hits], seconds=time.monotonic() - began)


@router.post("/evidence")
async def evidence(request: EvidenceRequest, service: Context) -> EvidenceAnswer:
    """Returns which part of an item speaks to which word of the query, and what that is worth."""

    def answer(query: Search) -> EvidenceAnswer:
        return EvidenceAnswer.of(request.id, service.explain(query, request.id))

    return await _asked(service, request, answer)


@router.post("/evidence.png", response_class=Response, responses={200: {"content": {"image/png": {}}}})
async def evidence_picture(request: EvidenceRequest, service: Context) -> Response:
    """Returns the evidence as a picture: the page with its boxes, or the text with its words."""

    def answer(query: Search) -> Response:
        drawn = service.explain(query, request.id)._repr_png_()
        return Response(drawn, media_type="image/png")

    return await _asked(service, request, answer)


@router.post("/compare")
async def compare(request: CompareRequest, service: Context) -> CompareAnswer:
    """Returns why one item stands above another for a query, token by token."""

    def answer(query: Search) -> CompareAnswer:
        return CompareAnswer.of(*(service.explain(query, each) for each in (request.above, request.below)))

    return await _asked(service, request, answer)


async def _asked(service: Service, request: Scoring, answer: Callable[[Search], Answer]) -> Answer:
    """Returns what is answered of a request's query, in a thread for that."""
    with refusing():
        return await service.read(answer, request.search(to_item(request.query, service.limits)))
