"""Options that several commands have, and the index that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import smart_jax
from smart_jax.cli.conditions import WHERE_FORMS

Name = Annotated[str, typer.Argument(metavar="INDEX", help="Folder of the index.", show_default=False)]
Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids of items.", show_default=False)]
Where = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="CONDITION", help=f"{WHERE_FORMS}; several must all hold.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
ModelName = Annotated[
    str | None,
    typer.Option(help="Folder, hub id, minilm or tiny. Default: as the index was made with.", show_default=False),
]
Queries = Annotated[
    str | None, typer.Option(metavar="FILE", help="A query a line, or .jsonl; - for stdin.", show_default=False)
]
PooledWeight = Annotated[float, typer.Option(help="Weight of the pooled cosine.")]
LateWeight = Annotated[float, typer.Option(help="Weight of late interaction; 0 = the model's own cosine.")]
Password = Annotated[
    str | None, typer.Option(envvar="SMART_JAX_PDF_PASSWORD", help="Of encrypted PDFs.", show_default=False)
]


def open_index(name: str, *, create: bool = False, **how: Any) -> smart_jax.Index:
    """Opens an index, whose model keeps what it compiles.

    Args:
      name: of the folder.
      create: whether one is made where there is none.
      **how: other arguments of `smart_jax.Index`.

    Raises:
      FileNotFoundError: there is none, and none is to be made; the message says how.
      ValueError: as `smart_jax.Index`.
    """
    from smart_jax.runtime import compilation_cache

    there = "://" in name or (Path(name) / "index.db").is_file()
    if not there and how.get("model") is None and create:
        raise FileNotFoundError(
            f"there is no index '{name}' yet: name its model, for example --model Qwen/Qwen3-VL-Embedding-2B for page "
            "images, or --model minilm for the texts of PDFs on a laptop"
        )
    if not there and not create:
        raise FileNotFoundError(f"there is no index '{name}': make one with smart-jax index add '{name}' FILES --model")
    compilation_cache.enable()
    return smart_jax.Index(name, **how)
