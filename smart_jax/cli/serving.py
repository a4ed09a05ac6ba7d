"""The command that serves an index on the web."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from smart_jax.cli.options import ModelName, Name, open_index


def serve(
    name: Name,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 = for others, too.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 = one that is free.")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(envvar="SMART_JAX_TOKEN", help="That uploads and deletions ask for.", show_default="no changes"),
    ] = None,
    uploads: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Of uploaded files.", show_default="beside the index")
    ] = None,
    model: ModelName = None,
) -> None:
    """Serve an index on the web: a page to search it with, and an API; Ctrl-C ends it."""
    try:
        from smart_jax.serve import serve as serve_index
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the web server needs {error.name}, which its extra brings: pip install 'smart_jax[serve]'"
        ) from error
    how: dict[str, Any] = {"host": host, "port": port, "token": token, "uploads": uploads}
    with open_index(name, model=model) as index:
        serve_index(index, **how)
