"""First stages measured on queries, and the cheapest chosen that keeps enough of the exact result."""

from __future__ import annotations

import datetime
import statistics
import time
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from smart_jax.index.certificate import Certificate, StageResult
from smart_jax.index.choosing import has_pooled
from smart_jax.index.first_stage import SCORES_AT_ONCE, FirstStage, Masks, Weights, first_scores
from smart_jax.index.ranking import Ranked, rank
from smart_jax.index.recalls import fewest_candidates, recall_at
from smart_jax.index.snapshot import Snapshot
from smart_jax.index.stages import MARKED, StageName
from smart_jax.index.store import Store
from smart_jax.retrieval import Embeddings

FEWEST_QUERIES = 20  # that certify anything
TIMED = 7  # queries
SHOWN = (1, 2, 5, 20, 100)  # times k: candidates in the table
LARGEST_SHARE = 4  # of the items one in so many is a candidate, at most


class Target(NamedTuple):
    """Part of the exact result that is to be kept.

    Attributes:
      k: hits.
      recall: share of them.
      weights: of the score.
    """

    k: int
    recall: float
    weights: Weights


def certify(
    store: Store, queries: Embeddings, target: Target, stages: Collection[StageName], *, source: str
) -> Certificate:
    """Measures first stages, keeps the marks of the one that is chosen, stores the verdict, and returns it.

    Args:
      store: of the index.
      queries: at least one.
      target: what is to be kept.
      stages: that are measured; "pooled" only where items have pooled vectors.
      source: of the queries.

    Raises:
      ValueError: the index is empty, or another process writes.
    """
    with store.reading() as (_, snapshot):
        if not len(snapshot):
            raise ValueError(f"'{store.folder}' holds no items: add some before certifying")
        if not has_pooled(snapshot):
            stages = [name for name in stages if name != "pooled"]
    before = [stage.name for stage in store.stages()]
    with store.writing() as writer:
        writer.keep_stages({*before, *(name for name in MARKED if name in stages)})
    with store.reading() as (_, snapshot):
        verdict = _measured(store, snapshot, queries, target, tuple(stages), source)
    chosen = [name for name in MARKED if name == verdict.stage]
    with store.writing() as writer:
        writer.keep_stages({*(store.catalog.get("kept") or ()), *chosen})
        with store.catalog.writing():
            store.catalog.set("verdict", verdict.to_dict())
    return verdict


def _measured(
    store: Store, snapshot: Snapshot, queries: Embeddings, target: Target, stages: Sequence[StageName], source: str
) -> Certificate:
    items, allowed = len(snapshot), [segment.alive for segment in snapshot.segments]
    target = target._replace(k=min(target.k, items))

    def found(stage: FirstStage | None, some: Embeddings) -> list[Ranked]:
        return rank(some, snapshot, allowed, target.k, target.weights, stage)

    best = np.stack([each.rows for each in found(None, queries)])
    exact = milliseconds(queries, partial(found, None))
    results = []
    for name in stages:
        ranks = first_ranks(name, queries, snapshot, allowed, target.weights, best)
        enough = fewest_candidates(ranks, target.recall, items // LARGEST_SHARE)
        taken = None
        if enough is not None:
            taken = milliseconds(queries, partial(found, FirstStage(name, enough.candidates)))
        numbers = sorted({min(times * target.k, items) for times in SHOWN})
        recalls = tuple(recall_at(ranks, number) for number in numbers)
        size = store.stage_bytes(name)
        results.append(StageResult(name, None if enough is None else enough.candidates, recalls, taken, size))
    holding = [each for each in results if each.milliseconds is not None and each.milliseconds < exact]
    chosen = min(holding, key=lambda each: each.milliseconds or 0.0, default=None)
    return Certificate(
        certified=source == "given" and len(queries) >= FEWEST_QUERIES,
        stage="exact" if chosen is None else chosen.name,
        candidates=None if chosen is None else chosen.candidates,
        k=target.k,
        recall=target.recall,
        queries=len(queries),
        source=source,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        generation=snapshot.generation,
        items=items,
        tokens=snapshot.tokens,
        pooled_weight=target.weights.pooled,
        late_weight=target.weights.late,
        exact_milliseconds=exact,
        results=tuple(results),
    )


def first_ranks(
    name: StageName,
    queries: Embeddings,
    snapshot: Snapshot,
    allowed: Masks,
    weights: Weights,
    best: Int[np.ndarray, "Nq k"],
) -> Int[np.ndarray, "Nq k"]:
    """Returns the ranks that a first stage gives to some rows of each query, from 1; who ties with one is before it."""
    ranks = np.empty(best.shape, np.int64)
    items = sum(len(segment.embeddings) for segment in snapshot.segments)
    step = max(1, SCORES_AT_ONCE // items)
    for first in range(0, len(queries), step):
        some = slice(first, first + step)
        scores, rows = first_scores(name, queries[some], snapshot, allowed, weights)
        places = np.searchsorted(rows, best[some])
        for rank_of, values, at in zip(ranks[some], scores, places, strict=True):
            ordered = np.sort(values)
            rank_of[:] = len(values) - np.searchsorted(ordered, values[at], side="left")
    return ranks


def milliseconds(queries: Embeddings, run: Callable[[Embeddings], Any]) -> float:
    """Returns the median time of a query, one by one; the first ones, which may compile, do not count.

    It is the processor's, which does not depend on what else it does, unless an accelerator works.
    """
    clock, taken = time.process_time if jax.default_backend() == "cpu" else time.perf_counter, []
    chosen = np.linspace(0, len(queries) - 1, TIMED).astype(int)
    for i in (*chosen, *chosen):
        began = clock()
        run(queries[int(i)])
        taken.append(1000 * (clock() - began))
    return statistics.median(taken[TIMED:])
