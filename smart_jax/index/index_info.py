"""Contents of an index, in numbers."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from smart_jax.index.certificate import Certificate
from smart_jax.index.store import Store
from smart_jax.notebook import facts_table, memory_size


@dataclasses.dataclass(frozen=True)
class IndexInfo:
    """Contents of an index.

    Attributes:
      folder: of the index, or its address.
      items, tokens: numbers of these that can be found.
      files: number of the files that items are of.
      waiting: pages of files whose adding was cut off.
      removed: items whose vectors are still in the files, until `Index.compact`.
      segments: number of segments.
      vectors: dtype and widths of the vectors.
      model: what is known of the model.
      bytes: size of all files; of an index in Qdrant, of the vectors.
      stages: first stages whose marks are kept.
      verdict: what `Index.certify` has found last; None = nothing yet.

    Example:
      >>> IndexInfo(Path("papers"), items=2, tokens=10, files=1, waiting=0, removed=0, segments=1).items
      2
    """

    folder: Path | str
    items: int
    tokens: int
    files: int
    waiting: int
    removed: int
    segments: int
    vectors: dict[str, Any] = dataclasses.field(default_factory=dict)
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    bytes: int = 0
    stages: tuple[str, ...] = ()
    verdict: Certificate | None = None

    @property
    def first_stage(self) -> str:
        """Standing of the verdict: "not certified", "provisional", "certified" or "stale"."""
        if self.verdict is None:
            return "not certified"
        if self.verdict.is_stale(self.items):
            return "stale"
        return "certified" if self.verdict.certified else "provisional"

    def _repr_html_(self) -> str:
        counts = {name: getattr(self, name) for name in ("items", "tokens", "files", "waiting", "removed", "segments")}
        facts = {"folder": self.folder, **counts, "size": memory_size(self.bytes), **self.vectors, **self.model}
        facts["first stage"] = self.first_stage if self.verdict is None else f"{self.first_stage}: {self.verdict!r}"
        return facts_table("IndexInfo", facts)

    @classmethod
    def of(cls, store: Store) -> IndexInfo:
        """Returns the numbers of a store."""
        with store.reading() as (db, snapshot):
            counts: dict[str, Any] = {
                name: int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
                for name, table in (("items", "item"), ("files", "source WHERE complete"), ("waiting", "staged"))
            }
            dead = int(db.execute("SELECT count(*) FROM dead").fetchone()[0])
            verdict = store.catalog.get("verdict")
            facts: dict[str, Any] = {name: store.catalog.get(name) or {} for name in ("vectors", "model")}
        return cls(
            store.folder,
            **counts,
            tokens=snapshot.tokens,
            removed=dead - counts["waiting"],
            segments=len(snapshot.segments),
            **facts,
            bytes=store.stored_bytes(),
            stages=tuple(snapshot.stages),
            verdict=None if verdict is None else Certificate.from_dict(verdict),
        )
