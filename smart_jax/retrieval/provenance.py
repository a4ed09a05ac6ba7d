"""Provenance of embeddings: the model and the side that made them, and what they were reduced by."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, get_args

from smart_jax.typing import JsonObject

EmbeddedSide = Literal["query", "document"]
SEVERAL = "(several)"  # in the place of an instruction
_BOTH_SIDES = "truncate", "pca"  # reductions that queries and documents must have had alike
_NAMES = {"model": "a model", "adapter": "an adapter", "space": "components"}


@dataclasses.dataclass(frozen=True)
class Provenance:
    """Origin of embeddings: what made them; those that `Encoder` makes say it of themselves.

    Attributes:
      model: digits that are equal for equal weights, config and pooling, whatever dtype the weights are in.
      adapter: the same of the adapter; None = there was none.
      side: which side the items were encoded for; None = it was not said.
      instruction: of items that carry none of their own; None = the model's default, `SEVERAL` = of joined embeddings
        each its own.
      reductions: names of the reductions that the embeddings went through, in order.

    Example:
      >>> of_queries, of_pages = Provenance("1f", side="query"), Provenance("2e", side="document")
      >>> check_sides(of_queries, of_pages)
      Traceback (most recent call last):
      ValueError: q was made by a model 1f, d by a model 2e: encode both with the same one, or pass force=True
    """

    model: str
    adapter: str | None = None
    side: EmbeddedSide | None = None
    instruction: str | None = None
    reductions: tuple[str, ...] = ()

    @property
    def space(self) -> tuple[str, ...]:
        """Reductions that queries and documents must have had alike, as they give components another meaning."""
        return tuple(name for name in self.reductions if name.startswith(_BOTH_SIDES))

    def reduced(self, name: str) -> Provenance:
        """Returns the provenance of these embeddings after one more reduction."""
        return dataclasses.replace(self, reductions=(*self.reductions, name))

    def to_dict(self) -> JsonObject:
        """Returns it as JSON values."""
        return {**dataclasses.asdict(self), "reductions": list(self.reductions)}

    @classmethod
    def from_dict(cls, values: object) -> Provenance:
        """Returns what `to_dict` gave.

        Raises:
          ValueError: the values are of another form.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            raise ValueError(f"provenance is {values!r}: it must have {', '.join(sorted(names))}")
        reductions = values["reductions"]
        texts = isinstance(reductions, list) and all(isinstance(name, str) for name in reductions)
        optional = all(values[name] is None or isinstance(values[name], str) for name in ("adapter", "instruction"))
        if not texts or not optional or not isinstance(values["model"], str):
            raise ValueError(f"provenance is {values!r}: a value is of another type")
        if values["side"] not in (None, *get_args(EmbeddedSide)):
            raise ValueError(f"provenance has side {values['side']!r}: it must be 'query', 'document' or None")
        return cls(**values | {"reductions": tuple(reductions)})


def check_sides(q: Provenance | None, d: Provenance | None, *, late: bool = True, names: Sequence[str] = "qd") -> None:
    """Refuses to compare what has no meaning together; None on a side = its provenance is not known, and all is well.

    Args:
      q, d: of queries and documents.
      late: whether tokens are compared; adapters and reductions of tokens do not matter to pooled vectors.
      names: of both sides in messages.

    Raises:
      ValueError: the model, the adapter or the components differ, q are documents, or d are queries.

    Example:
      >>> check_sides(Provenance("1f", side="query"), None)
      >>> check_sides(Provenance("1f", side="document"), Provenance("1f", side="document"))
      Traceback (most recent call last):
      ValueError: q was encoded as a document where a query belongs: encode it with encode_query, or pass force=True
    """
    if q is None or d is None:
        return
    _check_equal(q, d, ("model", "adapter", "space") if late else ("model",), names)
    for name, provenance, wrong, method in ((names[0], q, "document", "query"), (names[1], d, "query", "document")):
        if provenance.side == wrong:
            raise ValueError(
                f"{name} was encoded as {_article(wrong)} where {_article(method)} belongs: encode it with "
                f"encode_{method}, or pass force=True"
            )


def check_documents(new: Provenance | None, there: Provenance | None, name: str) -> None:
    """Refuses documents that were not made as those that are there.

    Raises:
      ValueError: the model, the adapter, the components or the instruction differ, or the items are queries.

    Example:
      >>> check_documents(Provenance("1f", side="query"), None, "the index")
      Traceback (most recent call last):
      ValueError: the index takes documents, and these are queries: use encode_document, or pass force=True
    """
    if new is None:
        return
    if new.side == "query":
        raise ValueError(f"{name} takes documents, and these are queries: use encode_document, or pass force=True")
    if there is not None:
        _check_equal(new, there, ("model", "adapter", "space"), ("these", name))
        if new.instruction != there.instruction:
            raise ValueError(
                f"these were encoded with the instruction {new.instruction!r}, the documents of {name} with "
                f"{there.instruction!r}: encode them alike, or pass force=True"
            )


def join(parts: Sequence[Provenance | None]) -> Provenance | None:
    """Returns the provenance of embeddings that are joined; None where one part's is not known.

    A side that is not everyone's is left out, and so are reductions that need not be.

    Raises:
      ValueError: the model, the adapter or the components of two parts differ.
    """
    known = [part for part in parts if part is not None]
    for part in known[1:]:
        if part is not known[0]:
            numbers = [f"part {parts.index(each)}" for each in (known[0], part)]
            _check_equal(
                known[0], part, ("model", "adapter", "space"), numbers, remedy="or drop theirs by with_provenance(None)"
            )
    if len(known) < len(parts) or not known:
        return None
    first = known[0]
    if all(part == first for part in known):
        return first
    return Provenance(
        first.model,
        first.adapter,
        first.side if len({part.side for part in known}) == 1 else None,
        first.instruction if len({part.instruction for part in known}) == 1 else SEVERAL,
        first.reductions if len({part.reductions for part in known}) == 1 else first.space,
    )


def _check_equal(
    a: Provenance, b: Provenance, fields: Sequence[str], names: Sequence[str], remedy: str = "or pass force=True"
) -> None:
    for field in fields:
        ours, theirs = getattr(a, field), getattr(b, field)
        if ours != theirs:
            said = [f"no {_NAMES[field].removeprefix('an ')}" if not x else _shown(field, x) for x in (ours, theirs)]
            raise ValueError(
                f"{names[0]} was made by {said[0]}, {names[1]} by {said[1]}: encode both with the same one, {remedy}"
            )


def _shown(field: str, value: object) -> str:
    return f"{_NAMES[field]} {', '.join(value) if isinstance(value, tuple) else value}"


def _article(side: str) -> str:
    return f"a {side}"
