"""Verdict on the first stages of an index: which one keeps enough of the exact result, of how many candidates."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from smart_jax.index.first_stage import FirstStage, Weights
from smart_jax.index.recalls import Recall
from smart_jax.index.stages import check_stage

GROWN = 1.5  # times the items that a verdict is of, above which it is stale


@dataclasses.dataclass(frozen=True)
class StageResult:
    """A first stage on the queries that it was measured with.

    Attributes:
      name: of the stage.
      candidates: fewest that hold; None = no number up to a quarter of the items does.
      recalls: of several numbers of candidates.
      milliseconds: of a query, with so many candidates; None = they do not hold.
      bytes: that it keeps on the disk.

    Example:
      >>> StageResult("pooled", None, (Recall(200, 0.75, 0.73, 0.78),)).recalls[0].mean
      0.75
    """

    name: str
    candidates: int | None
    recalls: tuple[Recall, ...]
    milliseconds: float | None = None
    bytes: int = 0


@dataclasses.dataclass(frozen=True, repr=False)
class Certificate:
    """Verdict on the first stages of an index.

    Attributes:
      certified: whether enough queries of users were asked; otherwise the verdict is provisional.
      stage: the cheapest first stage that holds; "exact" = none does, or none is cheaper than scoring all items.
      candidates: that it chooses; None = all items are scored.
      k, recall: share of the exact best k that is to be kept.
      queries: number of them.
      source: "given", or "spans" of the index's own texts.
      date: when it was made, ISO 8601.
      generation, items, tokens: of the index then.
      pooled_weight, late_weight: of the score.
      exact_milliseconds: of a query, if all items are scored.
      results: of each stage.

    Example:
      >>> how = dict(k=10, recall=0.95, queries=200, source="given", date="2026-11-30T12:00:00+00:00", generation=7)
      >>> verdict = Certificate(certified=True, stage="pooled", candidates=55, items=1000, tokens=50_000, **how)
      >>> verdict
      Certificate(certified: pooled, 55 candidates, recall@10 >= 0.95 on 200 queries, 1,000 items, 2026-11-30)
      >>> verdict.is_stale(1600)
      True
    """

    certified: bool
    stage: str
    candidates: int | None
    k: int
    recall: float
    queries: int
    source: str
    date: str
    generation: int
    items: int
    tokens: int
    pooled_weight: float = 1.0
    late_weight: float = 1.0
    exact_milliseconds: float = 0.0
    results: tuple[StageResult, ...] = ()

    def __repr__(self) -> str:
        chosen = self.stage if self.candidates is None else f"{self.stage}, {self.candidates:,} candidates"
        asked = f"{self.queries:,} {'queries' if self.source == 'given' else 'spans of its texts'}"
        return (
            f"Certificate({'certified' if self.certified else 'provisional'}: {chosen}, recall@{self.k} >= "
            f"{self.recall:g} on {asked}, {self.items:,} items, {self.date[:10]})"
        )

    def __str__(self) -> str:
        lines = [repr(self), ""]
        lines += _table(self)
        if not self.certified:
            lines += ["", "Provisional: certify with at least 20 queries of users."]
        return "\n".join(lines)

    def is_stale(self, items: int) -> bool:
        """Tells whether an index of so many items has grown too much since."""
        return items > GROWN * self.items

    def first_stage(self, k: int, items: int) -> FirstStage | None:
        """Returns the first stage for k hits of an index of so many items; None = all are scored.

        There are more candidates where k is larger than in the verdict, and where the index has grown.
        """
        if self.candidates is None:
            return None
        more = max(1.0, k / self.k) * max(1.0, items / max(1, self.items))
        return FirstStage(check_stage(self.stage), round(self.candidates * more))

    def applies(self, k: int, items: int, weights: Weights) -> bool:
        """Tells whether the verdict is of such a search."""
        same = (self.pooled_weight, self.late_weight) == tuple(weights)
        return self.certified and same and k <= self.k and not self.is_stale(items)

    def to_dict(self) -> dict[str, Any]:
        """Returns all of it, as JSON has it."""
        fields = dataclasses.asdict(self)
        for result, each in zip(fields["results"], self.results, strict=True):
            result["recalls"] = [recall._asdict() for recall in each.recalls]
        return fields | {"results": list(fields["results"])}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Certificate:
        """Returns what `to_dict` gave."""
        results = tuple(
            StageResult(**{**each, "recalls": tuple(Recall(**recall) for recall in each["recalls"])})
            for each in fields["results"]
        )
        return cls(**{**fields, "results": results})


def _table(verdict: Certificate) -> list[str]:
    """Returns the lines of a table of all stages, in Markdown."""
    columns = [recall.candidates for recall in verdict.results[0].recalls] if verdict.results else []
    heads = ["first stage", *(f"recall@{K:,}" for K in columns), "candidates", "ms a query", "bytes"]
    rows = [heads, ["---"] * len(heads)]
    for each in verdict.results:
        recalls = [f"{r.mean:.3f} [{r.low:.3f}, {r.high:.3f}]" for r in each.recalls]
        holds = "refused" if each.candidates is None else f"{each.candidates:,}"
        taken = "" if each.milliseconds is None else f"{each.milliseconds:.3g}"
        rows.append([each.name, *recalls, holds, taken, f"{each.bytes:,}"])
    rows.append(["exact", *["1"] * len(columns), "all", f"{verdict.exact_milliseconds:.3g}", "0"])
    return [_line(row) for row in rows]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
