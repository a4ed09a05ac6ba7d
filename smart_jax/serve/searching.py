"""Several searches in one call of the encoder, and one of the index for each condition."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from smart_jax.index import Hit, Index
from smart_jax.retrieval import Embeddings

StageName = Literal["pooled", "centroids", "binary"]


class Search(NamedTuple):
    """One search, as `Index.search` takes it.

    Attributes:
      query: an item.
      k: number of hits at most.
      where: condition on metadata.
      pooled_weight, late_weight: of the score.
      candidates, first_stage: which items are scored exactly.
    """

    query: Mapping[str, Any]
    k: int = 10
    where: Mapping[str, Any] | None = None
    pooled_weight: float = 1.0
    late_weight: float = 1.0
    candidates: int | Literal["auto"] | None = None
    first_stage: StageName | None = None

    @property
    def group(self) -> str:
        """Facts that searches must have in common to be one call of the index."""
        k = self.k if self.candidates is not None else None  # it may say how many candidates there are
        return json.dumps([self.options(), k], sort_keys=True)

    def options(self) -> dict[str, Any]:
        """Returns the keywords of `Index.search` but for k."""
        weights = {"pooled_weight": self.pooled_weight, "late_weight": self.late_weight}
        stage = {"candidates": self.candidates, "first_stage": self.first_stage}
        return {"where": self.where, **stage, **weights}


def search_together(
    index: Index, searches: Sequence[Search], encode: Callable[[Sequence[Any]], Embeddings]
) -> list[list[Hit] | Exception]:
    """Returns the hits of each search, those that it would have alone, or what is wrong with it.

    Args:
      index: that is searched.
      searches: at least one.
      encode: embeds queries.
    """
    try:
        queries = encode([search.query for search in searches])
    except (ValueError, TypeError, OSError) as error:
        if len(searches) == 1:
            return [error]
        return [answer for each in searches for answer in search_together(index, [each], encode)]
    groups: dict[str, list[int]] = {}
    for i, search in enumerate(searches):
        groups.setdefault(search.group, []).append(i)
    answers: list[list[Hit] | Exception] = [[] for _ in searches]
    for members in groups.values():
        k = max(searches[i].k for i in members)
        try:
            found = index.search(queries[members], k, **searches[members[0]].options())
        except Exception as error:
            found = [error] * len(members)
        for i, hits in zip(members, found, strict=True):
            answers[i] = hits if isinstance(hits, Exception) else hits[: searches[i].k]
    return answers
