"""Outcome of adding files and items."""

from __future__ import annotations

import dataclasses

from smart_jax.notebook import facts_table


@dataclasses.dataclass(repr=False)
class AddReport:
    """Outcome of `Index.add`.

    Attributes:
      added: items that are in the index now.
      unchanged: items that were there already, of the same content.
      described: items whose metadata alone were changed.
      failed: what could not be added, by file, page or id, and why.
      seconds: time it took.

    Example:
      >>> print(AddReport(added=3, unchanged=1, failed={"old.pdf": "it is damaged"}, seconds=1.5))
      3 items added, 1 unchanged, 0 described anew, 1 failed; 2.0 items/s
      old.pdf: it is damaged
    """

    added: int = 0
    unchanged: int = 0
    described: int = 0
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    def __str__(self) -> str:
        return "\n".join([self._counts, *(f"{name}: {error}" for name, error in self.failed.items())])

    def __repr__(self) -> str:
        return f"AddReport({self._counts})"

    def _repr_html_(self) -> str:
        facts: dict[str, object] = {"added": self.added, "unchanged": self.unchanged, "described anew": self.described}
        facts |= {"seconds": f"{self.seconds:.1f}"} | self.failed
        return facts_table("AddReport", facts)

    @property
    def _counts(self) -> str:
        return (
            f"{self.added} items added, {self.unchanged} unchanged, {self.described} described anew, "
            f"{len(self.failed)} failed; {self.added / max(self.seconds, 1e-9):.1f} items/s"
        )
