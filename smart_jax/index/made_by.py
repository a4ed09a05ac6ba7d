"""Provenance of what is in an index: written down with its first items, and what others are compared with."""

from __future__ import annotations

import dataclasses

from smart_jax.index.engine import Engine
from smart_jax.retrieval import Embeddings, Provenance, check_documents, check_sides

FACT = "provenance"  # {} = of items that nobody knows


def note_provenance(engine: Engine, new: Embeddings) -> None:
    """Writes down what made the first items of an index; by a writer, before they are put there."""
    if engine.fact(FACT) is None:
        made = None if len(engine) else new.provenance
        engine.set_facts({FACT: {} if made is None else dataclasses.replace(made, side="document").to_dict()})


def check_new(engine: Engine, embeddings: Embeddings) -> None:
    """Raises ValueError where embeddings were not made as the items of the index, or are queries."""
    check_documents(embeddings.provenance, _read(engine), "the index")


def check_queries(engine: Engine, queries: Embeddings, *, late: bool) -> None:
    """Raises ValueError where queries do not belong to the items of the index."""
    if queries.provenance is not None:
        check_sides(queries.provenance, _read(engine), late=late, names=("the query", "the index"))


def _read(engine: Engine) -> Provenance | None:
    made = engine.fact(FACT)
    return Provenance.from_dict(made) if made else None
