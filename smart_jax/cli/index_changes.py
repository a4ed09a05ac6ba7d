"""Commands that change an index, or copy it: add, update, delete, compact, copy."""

from __future__ import annotations

import dataclasses
from enum import StrEnum
from typing import Annotated, Any

import typer

import smart_jax
from smart_jax.cli.conditions import parse_conditions, parse_metadata
from smart_jax.cli.items import read_lines
from smart_jax.cli.options import Ids, Json, Name, Password, Where, open_index
from smart_jax.cli.output import FAILED, INTERRUPTED, print_facts, print_json, print_table, say, shortened, size_of

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress.")]


class Pdf(StrEnum):
    """Content that is read of a PDF's pages."""

    image = "image"
    text = "text"
    both = "both"


class Stored(StrEnum):
    """Form in which tokens are stored."""

    float16 = "float16"
    float32 = "float32"
    int8 = "int8"


def add(
    name: Name,
    files: Annotated[
        list[str] | None, typer.Argument(help="PDFs, images, text files, folders, patterns.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Folder, hub id, minilm or tiny; needed once.", show_default=False)
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="Of the model.", show_default=False)] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text that is added as it is.", show_default=False)] = None,
    id: Annotated[list[str] | None, typer.Option(help="Of each --text, in order.", show_default=False)] = None,
    items: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Items, .jsonl: text, image, id, metadata; - for stdin.", show_default=False),
    ] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Of all that is added; or a JSON object.", show_default=False),
    ] = None,
    pdf: Annotated[
        Pdf | None, typer.Option(help="What is read of PDFs. Default: images if the model can.", show_default=False)
    ] = None,
    dpi: Annotated[float, typer.Option(help="Pixels per inch of page images.")] = 100,
    password: Password = None,
    dtype: Annotated[Stored | None, typer.Option(help="Of tokens, of a new index.", show_default="float16")] = None,
    pool: Annotated[
        float | None, typer.Option(help="Tokens that become one, of a new index.", show_default="1")
    ] = None,
    instruction: Annotated[str | None, typer.Option(help="Of documents, of a new index.", show_default=False)] = None,
    query_instruction: Annotated[
        str | None, typer.Option(help="Of queries, of a new index.", show_default=False)
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Items in a batch.", show_default=False)] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Add files and texts; what has not changed is passed over, and a killed add goes on where it ended."""
    what = _given(files, text, id, items)
    how: dict[str, Any] = {
        "metadata": parse_metadata(metadata),
        "pdf": pdf and pdf.value,
        "dpi": dpi,
        "password": password,
        "batch_size": batch_size,
        "progress": False if quiet else None,
    }
    made: dict[str, Any] = {
        "model": model,
        "adapter": adapter,
        "dtype": dtype and dtype.value,
        "pool": pool,
        "instruction": instruction,
        "query_instruction": query_instruction,
    }
    with open_index(name, create=True, **made) as index:
        try:
            report = index.add(what, **how)
        except KeyboardInterrupt:
            _say_what_is_kept(index)
            raise typer.Exit(INTERRUPTED) from None
        _print_report(report, len(index), as_json)
    if report.failed:
        raise typer.Exit(FAILED)


def _given(
    files: list[str] | None, texts: list[str] | None, ids: list[str] | None, file: str | None
) -> list[dict[str, Any]]:
    """Returns what is to be added, as `Index.add` takes it."""
    if ids and len(ids) != len(texts or ()):
        raise typer.BadParameter(f"there are {len(ids)} --id for {len(texts or ())} --text: give each text its own")
    given: list[Any] = [{"file": each} for each in files or ()]
    for i, each in enumerate(texts or ()):
        given.append({"text": each, "id": ids[i]} if ids else {"text": each})
    given += [{"text": each} if isinstance(each, str) else each for each in (read_lines(file) if file else ())]
    if not given:
        raise typer.BadParameter("there is nothing to add: give files, --text or --items")
    return given


def _say_what_is_kept(index: smart_jax.Index) -> None:
    info = index.info()
    waiting = f", and {info.waiting} pages of files that are not complete yet" if info.waiting else ""
    say(
        f"interrupted: the index keeps {info.items} items{waiting}; the same command goes on where this one ended, and "
        "`smart-jax index compact` drops pages of incomplete files"
    )


def _print_report(report: smart_jax.index.AddReport, count: int, as_json: bool) -> None:
    if as_json:
        print_json({**dataclasses.asdict(report), "items": count})
        return
    rate = f", {report.added / report.seconds:.1f} items/s" if report.added and report.seconds > 0 else ""
    typer.echo(
        f"{report.added} added, {report.unchanged} unchanged, {report.described} with new metadata, "
        f"{len(report.failed)} failed in {report.seconds:.1f} s{rate}; the index has {count} items"
    )
    if report.failed:
        print_table(("failed", "reason"), list(report.failed.items()))


def update(
    name: Name,
    ids: Ids = None,
    where: Where = None,
    set: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="New metadata; or JSON.", show_default=False)
    ] = None,
    unset: Annotated[list[str] | None, typer.Option(metavar="KEY", help="Removes a key.", show_default=False)] = None,
    replace: Annotated[bool, typer.Option(help="Remove all other keys.")] = False,
    as_json: Json = False,
) -> None:
    """Change metadata of items."""
    condition = _chosen(ids, where)
    facts: dict[str, Any] = {**(parse_metadata(set) or {}), **dict.fromkeys(unset or ())}
    if not facts and not replace:
        raise typer.BadParameter("there is nothing to change: give --set KEY=VALUE or --unset KEY")
    with open_index(name) as index:
        count = index.update(ids or None, where=condition, metadata=facts, replace=replace)
    _print_count(count, "updated", as_json)


def delete(
    name: Name,
    ids: Ids = None,
    where: Where = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would be removed.")] = False,
    as_json: Json = False,
) -> None:
    """Remove items, by id or condition; `--where '{}'` is all of them."""
    condition = _chosen(ids, where)
    with open_index(name) as index:
        if dry_run:
            wanted = None if not ids else frozenset(ids)
            found = [each for each in index.items(condition) if wanted is None or each.id in wanted]
            if as_json:
                print_json({"would_delete": [each.id for each in found]})
            else:
                print_table(("id", "text"), [(each.id, shortened(each.text)) for each in found])
            return
        count = index.delete(ids or None, where=condition)
    _print_count(count, "deleted", as_json)


def compact(name: Name, as_json: Json = False) -> None:
    """Free the disk of removed items."""
    with open_index(name) as index:
        before = index.info().bytes
        index.compact()
    with open_index(name) as index:  # what was written beside the catalog is in it now
        after = index.info().bytes
    if as_json:
        print_json({"bytes_before": before, "bytes": after})
    else:
        print_facts({"before": size_of(before), "after": size_of(after)})


def copy(
    name: Name,
    place: Annotated[str, typer.Argument(help="A folder, or qdrant://host:6333/name.", show_default=False)],
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Make another place hold what the index holds: a folder, or a collection in Qdrant; goes on after a kill."""
    with open_index(name) as index:
        report = index.copy_to(place, progress=False if quiet else None)
        count = len(index)
    if as_json:
        print_json({**dataclasses.asdict(report), "items": count})
    else:
        typer.echo(f"{report.added} items copied, {report.unchanged} were there; '{place}' has {count} items")


def _chosen(ids: list[str] | None, where: list[str] | None) -> dict[str, Any] | None:
    """Returns the condition; raises BadParameter where neither ids nor a condition choose items."""
    condition = parse_conditions(where)
    if not ids and condition is None:
        raise typer.BadParameter("name items by their ids or by --where; --where '{}' means all of them")
    return condition


def _print_count(count: int, done: str, as_json: bool) -> None:
    if as_json:
        print_json({done: count})
    else:
        typer.echo(f"{count} items {done}")
    if not count:
        raise typer.Exit(FAILED)
