"""Commands that ask an index: search, explain, items, info, certify."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

import smart_jax
from smart_jax.cli.conditions import parse_conditions
from smart_jax.cli.items import given_queries, name_of, read_lines
from smart_jax.cli.options import (
    Json,
    LateWeight,
    ModelName,
    Name,
    Password,
    PooledWeight,
    Queries,
    Where,
    open_index,
)
from smart_jax.cli.output import FAILED, print_facts, print_json, print_table, shortened, size_of

Text = Annotated[str | None, typer.Argument(metavar="QUERY", help="A text.", show_default=False)]
ENDINGS = (".png", ".html", ".svg", ".json")  # of files of evidence


class Stage(StrEnum):
    """First stage, which chooses candidates."""

    pooled = "pooled"
    centroids = "centroids"
    binary = "binary"


def search(
    name: Name,
    query: Text = None,
    queries: Queries = None,
    image: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="A picture as a query.", show_default=False)
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Hits at most.")] = 10,
    where: Where = None,
    pooled_weight: PooledWeight = 1.0,
    late_weight: LateWeight = 1.0,
    candidates: Annotated[
        str | None,
        typer.Option(metavar="K|auto", help="Of a first stage, or as certified.", show_default="all items"),
    ] = None,
    first_stage: Annotated[
        Stage | None, typer.Option(help="What chooses so many candidates.", show_default="pooled")
    ] = None,
    model: ModelName = None,
    as_json: Json = False,
) -> None:
    """Find the items that answer a query best."""
    asked = given_queries([query] if query else [], queries, image)
    how: dict[str, Any] = {"where": parse_conditions(where), "candidates": _candidates(candidates)}
    how |= {"first_stage": first_stage and first_stage.value}
    with open_index(name, model=model) as index:
        found = index.search(asked, k, pooled_weight=pooled_weight, late_weight=late_weight, **how)
        if as_json:
            print_json({"results": [_result(each, hits) for each, hits in zip(asked, found, strict=True)]})
        else:
            for each, hits in zip(asked, found, strict=True):
                _print_hits(each if len(asked) > 1 else None, hits)
    if not any(found):
        raise typer.Exit(FAILED)


def _candidates(given: str | None) -> int | str | None:
    if given is None or given == "auto":
        return given
    if not given.isdecimal() or int(given) < 1:
        raise typer.BadParameter(f"candidates is '{given}': give a number of at least 1, or auto")
    return int(given)


def _result(query: Any, hits: Sequence[smart_jax.index.Hit]) -> dict[str, Any]:
    return {"query": query, "hits": [_facts(hit) for hit in hits]}


def _facts(item: smart_jax.index.StoredItem) -> dict[str, Any]:
    """Returns an item as JSON has it."""
    names = [field.name for field in dataclasses.fields(item) if field.name not in ("explain", "text")]
    facts = {name: getattr(item, name) for name in names}
    return facts | {"metadata": dict(item.metadata)}


def _print_hits(query: Any, hits: Sequence[smart_jax.index.Hit]) -> None:
    if query is not None:
        typer.echo(f"\n{name_of(query)}")
    rows = [
        (str(i), hit.score, hit.pooled, hit.late, hit.id, hit.metadata, shortened(hit.text))
        for i, hit in enumerate(hits, 1)
    ]
    _print_filled(("#", "score", "pooled", "late", "id", "metadata", "text"), rows)


def _print_filled(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a table without the columns that are empty."""
    if not rows:
        typer.echo("nothing was found")
        return
    kept = [i for i in range(len(columns)) if any(row[i] not in ("", None, {}) for row in rows)]
    print_table([columns[i] for i in kept], [[row[i] for i in kept] for row in rows])


def explain(
    name: Name,
    query: Annotated[str, typer.Argument(help="A text.", show_default=False)],
    id: Annotated[str | None, typer.Option(help="Of the item. Default: the best hit.", show_default=False)] = None,
    rank: Annotated[int, typer.Option(min=1, help="Of the hit that is explained.")] = 1,
    out: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="hit.png, hit.html, hit.svg or hit.json.", show_default=False),
    ] = None,
    where: Where = None,
    pooled_weight: PooledWeight = 1.0,
    late_weight: LateWeight = 1.0,
    password: Password = None,
    model: ModelName = None,
    as_json: Json = False,
) -> None:
    """Show why an item has its score: each word of the query, its best match and its share."""
    if wrong := [each for each in out or () if Path(each).suffix.lower() not in ENDINGS]:
        raise typer.BadParameter(f"'{wrong[0]}' ends in none of {', '.join(ENDINGS)}")
    condition = parse_conditions(where)
    if id is not None:
        condition = {"and": [{"id": id}, condition or {}]} if condition else {"id": id}
    with open_index(name, model=model) as index:
        hits = index.search(query, rank, where=condition, pooled_weight=pooled_weight, late_weight=late_weight)
        if len(hits) < rank:
            missing = f"no item '{id}'" if id is not None else f"{len(hits)} hits"
            raise ValueError(f"'{name}' has {missing} for this query and condition")
        hit = hits[rank - 1]
        evidence = hit.explain(password=password)
        for each in out or ():
            evidence.save(each)
    if as_json:
        print_json({"query": query, "hit": _facts(hit), "evidence": evidence.to_dict(), "files": list(out or ())})
        return
    typer.echo(f"{hit.id}: {evidence.score:.4f} = pooled {evidence.pooled:.4f} + late {evidence.late:.4f}")
    rows = [(each.text, each.share, each.cosine, each.lift, each.best) for each in evidence.tokens]
    _print_filled(("token", "share", "cosine", "lift", "best match"), rows)
    for each in out or ():
        typer.echo(f"written: {each}")


def items(
    name: Name,
    where: Where = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items at most.", show_default="all")] = None,
    as_json: Json = False,
) -> None:
    """List the items of an index."""
    condition, found = parse_conditions(where), []
    with open_index(name) as index:
        for each in index.items(condition):
            found.append(each)
            if len(found) == limit:
                break
    if as_json:
        print_json({"items": [_facts(each) for each in found]})
    else:
        _print_filled(("id", "metadata", "text"), [(each.id, each.metadata, shortened(each.text)) for each in found])
    if not found:
        raise typer.Exit(FAILED)


def info(name: Name, as_json: Json = False) -> None:
    """Show what is in an index, in numbers."""
    with open_index(name) as index:
        found = index.info()
    facts = dataclasses.asdict(found) | {"first_stage": found.first_stage}
    if as_json:
        print_json(facts | {"verdict": None if found.verdict is None else found.verdict.to_dict()})
    else:
        shown = None if found.verdict is None else repr(found.verdict)
        print_facts(facts | {"bytes": size_of(found.bytes), "verdict": shown})


def certify(
    name: Name,
    queries: Queries = None,
    k: Annotated[int, typer.Option("-k", min=1, help="Hits that are to be found.")] = 10,
    recall: Annotated[float, typer.Option(min=0, max=1, help="Share of them that the candidates hold.")] = 0.95,
    first_stage: Annotated[
        list[Stage] | None, typer.Option(help="That is measured; may be given again.", show_default="all")
    ] = None,
    pooled_weight: PooledWeight = 1.0,
    late_weight: LateWeight = 1.0,
    model: ModelName = None,
    as_json: Json = False,
) -> None:
    """Measure first stages on your own queries, and keep the cheapest that holds for `search --candidates auto`."""
    asked = None if queries is None else read_lines(queries)
    how: dict[str, Any] = {"pooled_weight": pooled_weight, "late_weight": late_weight}
    if first_stage:
        how["first_stages"] = [each.value for each in first_stage]
    with open_index(name, model=model) as index:
        verdict = index.certify(asked, k, recall, **how)
    if as_json:
        print_json(verdict.to_dict())
    else:
        typer.echo(str(verdict))
