"""Routes that say how the server is: health, readiness, figures, and what it serves."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, Field

from smart_jax.serve.context import Context
from smart_jax.serve.errors import Refusal
from smart_jax.serve.service import Service

STATUS = ("/health", "/ready", "/metrics")  # which are answered however many requests there are

router = APIRouter(tags=["status"])


class StatusAnswer(BaseModel):
    """State of the server."""

    status: str
    items: int


class InfoAnswer(BaseModel):
    """Facts of what is served."""

    items: int
    files: int
    tokens: int
    model: str | None = Field(description="Its name, without the folder that it is in.")
    changes: bool = Field(description="Whether items can be added and removed, with a token.")
    uploads: list[str] = Field(description="Names of uploaded files.")
    limits: dict[str, float]


@router.get("/health")
async def health(service: Context) -> StatusAnswer:
    """Says that the server runs."""
    return StatusAnswer(status="ok", items=len(service.index))


@router.get("/ready")
async def ready(service: Context) -> StatusAnswer:
    """Says whether the model is loaded, and searches are answered at once: 503 until then, and at the end."""
    if not service.ready:
        raise Refusal(503, "the server is loading its model, or ending", {"Retry-After": "1"})
    return StatusAnswer(status="ready", items=len(service.index))


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def metrics(service: Context) -> Response:
    """Returns figures as Prometheus reads them."""
    service.metrics.items.set(len(service.index))
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/info")
async def info(service: Context) -> InfoAnswer:
    """Says what is served, and with which limits."""
    return InfoAnswer(**await service.read(_info, service))


def _info(service: Service) -> dict[str, Any]:
    found = service.index.info()
    return {
        **{name: getattr(found, name) for name in ("items", "files", "tokens")},
        "model": service.model_name(),
        "changes": service.token is not None,
        "uploads": [path.name for path in service.uploads.files()],
        "limits": vars(service.limits),
    }
