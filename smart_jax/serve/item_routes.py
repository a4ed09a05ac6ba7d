"""Routes of items: lists, texts, pictures."""

from __future__ import annotations

import hashlib
import itertools
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from smart_jax.files import parse_json
from smart_jax.index import StoredItem
from smart_jax.serve.context import ERRORS, Context, refusing
from smart_jax.serve.schemas import WHERE, Filter, ItemAnswer, ItemsAnswer
from smart_jax.serve.service import Service

router = APIRouter(tags=["items"], responses=ERRORS)


@router.get("/items")
async def items(
    service: Context,
    where: Annotated[str | None, Query(description=f"JSON. {WHERE}")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0)] = 0,
) -> ItemsAnswer:
    """Returns items, or those that fulfil a condition, in the order in which they were added."""
    with refusing():
        asked = None if where is None else parse_json(where, "where", remedy='write JSON, such as {"year": 2024}')
        condition = Filter(where=asked).where
        found = await service.read(_some, service, condition, offset, limit + 1)
    answers = [ItemAnswer(**ItemAnswer.fields_of(each)) for each in found[:limit]]
    return ItemsAnswer(items=answers, more=len(found) > limit)


def _some(service: Service, where: dict[str, Any] | None, offset: int, most: int) -> list[StoredItem]:
    return list(itertools.islice(service.index.items(where), offset, offset + most))


@router.get("/item")
async def item(id: str, service: Context) -> ItemAnswer:
    """Returns one item, with all of its text."""
    found = await service.read(_some, service, {"id": id}, 0, 1)
    with refusing():
        if not found:
            raise KeyError(id)
    return ItemAnswer(**ItemAnswer.fields_of(found[0], longest=None))


@router.get("/picture", response_class=Response, responses={200: {"content": {"image/jpeg": {}}}})
async def picture(
    id: str,
    request: Request,
    service: Context,
    number: Annotated[int, Query(ge=0, description="Of the item's pictures.")] = 0,
    width: Annotated[int, Query(ge=16, le=2400, description="At most, in pixels.")] = 640,
) -> Response:
    """Returns one of an item's pictures: the page, the image, a frame of the video."""
    with refusing():
        content = await service.read(service.picture, id, number, width)
    tag = f'"{hashlib.blake2b(content, digest_size=16).hexdigest()}"'
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type="image/jpeg", headers=headers)
