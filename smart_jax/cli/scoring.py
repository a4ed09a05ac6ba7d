"""The command that scores queries against documents, without an index."""

from __future__ import annotations

from typing import Annotated

import typer

import smart_jax
from smart_jax.cli.items import given_documents, given_queries, name_of
from smart_jax.cli.options import Json, LateWeight, PooledWeight, Queries
from smart_jax.cli.output import print_json, print_table


def score(
    documents: Annotated[
        list[str] | None, typer.Argument(metavar="DOCUMENT", help="Texts and images.", show_default=False)
    ] = None,
    *,
    model: Annotated[str, typer.Option(help="Folder, hub id, minilm or tiny.", show_default=False)],
    query: Annotated[list[str] | None, typer.Option("--query", "-q", help="A text.", show_default=False)] = None,
    queries: Queries = None,
    documents_file: Annotated[
        str | None,
        typer.Option("--documents", metavar="FILE", help="A text a line, or .jsonl; - for stdin.", show_default=False),
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="A trained projection.", show_default=False)] = None,
    instruction: Annotated[str | None, typer.Option(help="Of the queries.", show_default=False)] = None,
    pooled_weight: PooledWeight = 1.0,
    late_weight: LateWeight = 1.0,
    as_json: Json = False,
) -> None:
    """Score queries against documents: pooled cosine, late interaction and their sum; the best first."""
    asked, given = given_queries(query, queries), given_documents(documents or [], documents_file)
    encoder = smart_jax.load(model, adapter=adapter)
    q = encoder.encode_query(asked, instruction=instruction)
    d = encoder.encode_document(given)
    late = smart_jax.score(q, d, pooled_weight=0.0)
    pooled = smart_jax.score(q, d, late_weight=0.0) if encoder.pooled_width else 0.0 * late
    total = pooled_weight * pooled + late_weight * late
    results = []
    for i, each in enumerate(asked):
        order = sorted(range(len(given)), key=lambda j: -total[i, j])
        scores = [
            {
                "document": j,
                "name": name_of(given[j]),
                "score": float(total[i, j]),
                "pooled": float(pooled[i, j]),
                "late": float(late[i, j]),
            }
            for j in order
        ]
        results.append({"query": each, "scores": scores})
    if as_json:
        print_json({"results": results})
        return
    for result in results:
        if len(results) > 1:
            typer.echo(f"\n{name_of(result['query'])}")
        columns = ("score", "pooled", "late", "name")
        print_table((*columns[:3], "document"), [[each[name] for name in columns] for each in result["scores"]])
