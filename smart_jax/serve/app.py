"""The application: an index behind routes, and one page."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles

from smart_jax.index import Index
from smart_jax.serve import change_routes, client_routes, errors, item_routes, search_routes, status_routes
from smart_jax.serve.guard import Guard
from smart_jax.serve.limits import Limits
from smart_jax.serve.service import Service

STATIC = Path(__file__).parent / "static"
ROUTES = (search_routes, item_routes, change_routes, client_routes, status_routes)
SHORTEST_TOKEN = 8  # characters


def create_app(
    index: Index,
    *,
    token: str | None = None,
    uploads: str | Path | None = None,
    limits: Limits | None = None,
    hosts: Collection[str] | None = None,
    warm_up: bool = True,
) -> FastAPI:
    """Returns the ASGI application of an index, for a server of one's own; `serve` runs it on uvicorn.

    One process is one application: it encodes and searches in batches. The index stays open when it ends.

    Args:
      index: that is served.
      token: that `/upload` and `/delete` ask for, as `Authorization: Bearer TOKEN`; None = nothing can be changed.
      uploads: folder of uploaded files; None = beside the index, "my_index-uploads", or of one in Qdrant, here.
      limits: of requests; None = those of `Limits()`.
      hosts: names by which the server may be called; None = any.
      warm_up: whether the encoder is compiled for queries before `/ready` says so.

    Raises:
      ValueError: the token is shorter than 8 characters or not of ASCII.

    Example:
      >>> import tempfile
      >>> import smart_jax
      >>> from smart_jax.serve import create_app
      >>> app = create_app(smart_jax.Index(tempfile.mkdtemp(), model="tiny"), token="a long secret")
      >>> sorted(path for path in app.openapi()["paths"] if path.startswith("/s"))
      ['/search']
    """
    if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii() or token != token.strip()):
        raise ValueError(f"the token must have at least {SHORTEST_TOKEN} characters, all of ASCII, and no space around")
    place = index.place.rsplit("/", 1)[-1] if "://" in index.place else index.place  # of a cluster, its name
    folder = Path(f"{Path(place).absolute()}-uploads") if uploads is None else Path(uploads)
    service = Service(index, folder, token, limits or Limits(), warm_up=warm_up)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    app = FastAPI(
        title="smart_jax",
        summary="An index of documents: search with evidence, embeddings, reranking.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    for module in ROUTES:
        app.include_router(module.router)
    for path, name in (("/", "index.html"), ("/docs", "docs.html"), ("/favicon.ico", "favicon.svg")):
        app.add_api_route(path, _page(name), include_in_schema=False)
    app.mount("/static", StaticFiles(directory=STATIC))
    errors.install(app)
    app.add_middleware(Guard, service=service, hosts=hosts)
    return app


def _page(name: str) -> Callable[[], Awaitable[FileResponse]]:
    async def page() -> FileResponse:
        return FileResponse(STATIC / name, headers={"Cache-Control": "no-cache"})

    return page
