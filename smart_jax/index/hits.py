"""Hits: items of an index, and how well they answer a query."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from smart_jax.evidence import Evidence
from smart_jax.files import shown
from smart_jax.index.documents import load_metadata
from smart_jax.index.ranking import Ranked
from smart_jax.notebook import facts_table

Explain = Callable[..., Evidence]

FACTS = (
    "SELECT item.row, item.id, source.file, source.path, item.page, item.metadata, content.text FROM item "
    "LEFT JOIN source ON source.number = item.source LEFT JOIN content ON content.row = item.row WHERE "
)


@dataclasses.dataclass(frozen=True)
class StoredItem:
    """An item of an index.

    Attributes:
      id: of the item.
      file: name of the file that it is of; None = it was added as it is.
      path: of that file, absolute.
      page: of the file, from 1; None = the file has none.
      metadata: as they were given.
      text: of the item, where it has one.

    Example:
      >>> StoredItem("report.pdf#3", file="report.pdf", page=3).page
      3
    """

    id: str
    _: dataclasses.KW_ONLY
    file: str | None = None
    path: str | None = None
    page: int | None = None
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    text: str | None = dataclasses.field(default=None, repr=False)


def _not_explained(*, password: str | None = None) -> Evidence:
    raise ValueError("this hit is of no search: only what Index.search returns can be explained")


@dataclasses.dataclass(frozen=True)
class Hit(StoredItem):
    """An item that was found.

    Attributes:
      score: pooled_weight * pooled + late_weight * late.
      pooled: cosine of the pooled vectors.
      late: mean over the query's tokens of the largest cosine with the item's.
      explain: a function that returns the hit's `smart_jax.Evidence`: which part of it speaks to which word of the
        query; a notebook shows it, `.save("hit.png")` writes it. `password=` opens an encrypted PDF. Its file must be
        there, unchanged, for a picture; numbers need none.

    Example:
      >>> Hit("report.pdf#3", file="report.pdf", page=3, score=1.2, pooled=0.5, late=0.7).score
      1.2
    """

    score: float = 0.0
    pooled: float = 0.0
    late: float = 0.0
    explain: Explain = dataclasses.field(default=_not_explained, repr=False, compare=False)

    def _repr_html_(self) -> str:
        numbers = {name: f"{getattr(self, name):.4f}" for name in ("score", "pooled", "late")}
        facts = {"id": self.id, **numbers, "file": self.file, "page": self.page, "text": self.text}
        return facts_table("Hit", facts | dict(self.metadata))


def read_items(
    db: sqlite3.Connection, condition: str, values: Iterable[Any] = (), *, place: str, most: int = -1
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields rows and fields of `StoredItem` of the items that fulfil an SQL condition, in order of their rows.

    Raises:
      ValueError: metadata of an item is not as it was written; the message names the item and `place`, the index's.
    """
    found = db.execute(f"{FACTS} {condition} ORDER BY item.row LIMIT ?", (*values, most))
    for row, name, file, path, page, metadata, text in found:
        facts = load_metadata(metadata, f"item {shown(name)} of '{place}'")
        yield row, {"id": name, "file": file, "path": path, "page": page, "metadata": facts, "text": text}


def read_hits(db: sqlite3.Connection, ranked: Ranked, explain: Callable[..., Evidence], *, place: str) -> list[Hit]:
    """Returns the hits of one query.

    Args:
      db: the catalog.
      ranked: what was found.
      explain: explains the item of a row.
      place: of the index, for messages.
    """
    hits = []
    for row, *numbers in zip(*(values.tolist() for values in ranked), strict=True):
        ((_, fields),) = read_items(db, "item.row = ?", (row,), place=place)
        why = partial(explain, row)
        hits.append(Hit(**fields, explain=why, **dict(zip(("score", "pooled", "late"), numbers, strict=True))))
    return hits
