"""Requests and answers of searches and of items, as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from smart_jax.index import Hit, StoredItem
from smart_jax.serve.content import Anything
from smart_jax.serve.searching import Search, StageName

DEEPEST = 16  # conditions within conditions
SNIPPET = 600  # characters of a text that a hit has
WHERE = 'As in `Index.search`, such as `{"year": {"gte": 2023}}`.'


class Weights(BaseModel):
    """Weights of the score's two parts."""

    model_config = ConfigDict(extra="forbid")

    pooled: float = Field(default=1.0, allow_inf_nan=False)
    late: float = Field(default=1.0, allow_inf_nan=False)


class Scoring(BaseModel):
    """Way in which items are scored."""

    model_config = ConfigDict(extra="forbid")

    query: Anything = Field(examples=["revenue by region"])
    mode: Literal["hybrid", "pooled", "late"] = Field("hybrid", description="Which parts of the score count.")
    weights: Weights = Field(default=Weights(), description="Of the hybrid score.")

    def weighted(self) -> dict[str, float]:
        """Returns the weights of `Index.search`."""
        pooled, late = self.weights.pooled, self.weights.late
        return {
            "pooled_weight": {"hybrid": pooled, "pooled": 1.0, "late": 0.0}[self.mode],
            "late_weight": {"hybrid": late, "pooled": 0.0, "late": 1.0}[self.mode],
        }

    def search(self, item: Mapping[str, Any], **options: Any) -> Search:
        """Returns the search for a query that is an item already."""
        weights: dict[str, Any] = self.weighted()
        return Search(item, **options, **weights)


class Filter(BaseModel):
    """A condition on items."""

    where: dict[str, Any] | None = Field(None, description=WHERE, examples=[{"year": {"gte": 2023}}])

    @field_validator("where")
    @classmethod
    def not_too_deep(cls, where: dict[str, Any] | None) -> dict[str, Any] | None:
        """Refuses conditions that are nested too deeply to be looked up."""
        if _depth(where) > 2 * DEEPEST:
            raise ValueError(f"conditions are nested more than {DEEPEST} deep")
        return where


class SearchRequest(Scoring, Filter):
    """A search."""

    k: int = Field(10, ge=1, description="Number of hits at most.")
    candidates: int | Literal["auto"] | None = Field(
        None, description='That a first stage chooses; null = all are scored, "auto" = as `Index.certify` has found.'
    )
    first_stage: StageName | None = Field(None, description="What chooses the candidates; null = pooled vectors.")


class ItemAnswer(BaseModel):
    """An item of the index."""

    id: str
    file: str | None = Field(None, description="Name of its file; null = it has none.")
    page: int | None = Field(None, description="Of the file, from 1.")
    metadata: dict[str, Any] = {}
    text: str | None = Field(None, description=f"The first {SNIPPET} characters; `/item` has all.")

    @classmethod
    def fields_of(cls, item: StoredItem, longest: int | None = SNIPPET) -> dict[str, Any]:
        """Returns the fields of an item, without the path of its file, which is no client's business."""
        text = item.text if item.text is None or longest is None else item.text[:longest]
        return {"id": item.id, "file": item.file, "page": item.page, "metadata": dict(item.metadata), "text": text}


class HitAnswer(ItemAnswer):
    """An item that was found."""

    score: float = Field(description="The weighted sum of the two.")
    pooled: float = Field(description="Cosine of the pooled vectors.")
    late: float = Field(description="Mean over the query's tokens of the largest cosine with the item's.")

    @classmethod
    def of(cls, hit: Hit) -> HitAnswer:
        """Returns a hit."""
        return cls(**cls.fields_of(hit), score=hit.score, pooled=hit.pooled, late=hit.late)


class SearchAnswer(BaseModel):
    """Hits, the best first."""

    hits: list[HitAnswer]
    seconds: float = Field(description="That the server took, waiting included.")


class ItemsAnswer(BaseModel):
    """Some items, in the order in which they were added."""

    items: list[ItemAnswer]
    more: bool = Field(description="Whether there are others after these.")


class EvidenceRequest(Scoring):
    """An item that was found, and the query that found it."""

    id: str


class CompareRequest(Scoring):
    """Two items that one query has found."""

    above: str = Field(description="Id of the one whose score is asked about.")
    below: str


class DeleteRequest(Filter):
    """Items that are to be removed: those of uploaded files, those of ids, those that fulfil a condition.

    Where both ids and a condition are given, both must hold.
    """

    model_config = ConfigDict(extra="forbid")

    ids: list[str] | None = None
    files: list[str] = Field([], description="Names of uploaded files.")


class DeleteAnswer(BaseModel):
    """Items and files that were removed."""

    deleted: int
    files: list[str] = Field(description="Uploaded files that no item is of any more, which were removed, too.")


class UploadAnswer(BaseModel):
    """Outcome of an upload."""

    added: int
    unchanged: int
    failed: dict[str, str] = Field(description="Files and pages that could not be read, and why.")
    files: list[str] = Field(description="Names under which they are kept.")


def check_most(name: str, value: int, most: int) -> None:
    """Raises ValueError where a number is above its limit."""
    if value > most:
        raise ValueError(f"{name} is {value}: this server takes at most {most}")


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level := [
        inner
        for each in level
        for inner in (each.values() if isinstance(each, dict) else each if isinstance(each, list) else ())
    ]:
        depth += 1
    return depth
