"""Rankings of scores, and per-query metrics of rankings.

Ties are broken by a hash, so that a constant scorer ranks at chance level. As in the reference of SMART
(arXiv:2605.24938): the query's key is "<dataset>:<query index>"; candidates are ordered by hash(query key, candidate
name) first, then stably by descending score.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int, Real, Shaped

from eval.benchmarks import Benchmark, batches
from eval.ranking.ties import tie_hash
from smart_jax.retrieval import compute_metrics

UNION_WASTE = 2  # local ranking: scores computed per score used, at most


class Block(NamedTuple):
    """Queries that are scored together.

    Attributes:
      queries: their indices, ascending.
      documents: indices of the documents to score, ascending; None = the whole corpus.

    Example:
      >>> Block(queries=np.arange(2), documents=None).queries.tolist()
      [0, 1]
    """

    queries: Int[np.ndarray, " q"]
    documents: Int[np.ndarray, " n"] | None


def query_key(dataset: str, index: int) -> str:
    """Returns the key of a query in the tie-breaking hash.

    Example:
      >>> query_key("news", 3)
      'news:3'
    """
    return f"{dataset}:{index}"


def rank(
    key: str,
    names: Sequence[str],
    scores: Shaped[np.ndarray, " scores"],
    *,
    relevant: Bool[np.ndarray, " N"] | None = None,
) -> Int[np.ndarray, " N"]:
    """Returns the candidates from best to worst, as indices into names.

    Only candidates that share their score with another are hashed: the others' places do not depend on the hash.

    Args:
      key: of the query, see `query_key`.
      names: ids of the N candidates, distinct.
      scores: one per candidate.
      relevant: where given, ties among candidates that are not relevant, which no metric sees, are left as they are.

    Raises:
      ValueError: a score is NaN, or there is not exactly one score per candidate.

    Example:
      >>> rank(query_key("news", 0), ["a", "b", "c"], np.array([0.1, 0.9, 0.5])).tolist()
      [1, 2, 0]
    """
    scores = np.asarray(scores)
    if scores.shape != (len(names),):
        raise ValueError(f"query {key}: scores have shape {scores.shape} for {len(names)} candidates")
    if np.isnan(scores).any():
        raise ValueError(f"query {key}: the score of candidate {names[int(np.isnan(scores).argmax())]} is NaN")
    order = np.argsort(-scores, kind="stable")
    for start, stop in _ties(scores[order]):
        if relevant is not None and not relevant[order[start:stop]].any():
            continue
        order[start:stop] = sorted(order[start:stop], key=lambda i: tie_hash(key, names[i]))
    return order


def _ties(ordered: Shaped[np.ndarray, " N"]) -> Iterator[tuple[int, int]]:
    """Yields the bounds of the runs of equal values, longer than one, in a sorted array."""
    bounds = [0, *(np.flatnonzero(ordered[1:] != ordered[:-1]) + 1).tolist(), len(ordered)]
    return ((a, b) for a, b in itertools.pairwise(bounds) if b - a > 1)


class Judge:
    """A benchmark's judgements by index: which scores are needed, and what metrics they give.

    Example:
      >>> qrels = {"q0": {"d1": 1}}
      >>> benchmark = Benchmark("one", ["a query"], ["q0"], ["a text", "another"], ["d0", "d1"], qrels)
      >>> judge = Judge(benchmark)
      >>> (block,) = judge.blocks(8)
      >>> judge.metrics(block, np.array([[0.3, 0.7]]), ["hit@1"])
      {'hit@1': array([1.])}
    """

    def __init__(self, benchmark: Benchmark):
        self._benchmark = benchmark
        position = {document: i for i, document in enumerate(benchmark.corpus_ids)}
        self._relevant: list[tuple[np.ndarray, np.ndarray]] = []
        self._candidates: list[np.ndarray] | None = None if benchmark.candidates is None else []
        for query in benchmark.query_ids:
            grades = benchmark.qrels[query]
            self._relevant.append((np.array([position[d] for d in grades]), np.array(list(grades.values()))))
            if self._candidates is not None and benchmark.candidates is not None:
                self._candidates.append(np.array([position[d] for d in benchmark.candidates[query]]))

    def blocks(self, size: int) -> Iterator[Block]:
        """Returns blocks of at most `size` consecutive queries and, in local ranking, the union of their candidates.

        A local block stops growing where its union would make more than UNION_WASTE scores for each that is used.

        Raises:
          ValueError: the size is below 1.
        """
        if size < 1:
            raise ValueError(f"query_block is {size}: it must be at least 1")
        if self._candidates is None:
            parts = batches(len(self._relevant), size)
            return (Block(np.arange(part.start, part.stop), None) for part in parts)
        return self._local_blocks(size, self._candidates)

    def _local_blocks(self, size: int, candidates: Sequence[np.ndarray]) -> Iterator[Block]:
        block: list[int] = []
        union, used = np.zeros(0, np.int64), 0
        for query, own in enumerate(candidates):
            larger = np.union1d(union, own)
            wasteful = len(larger) * (len(block) + 1) > UNION_WASTE * (used + len(own))
            if block and (len(block) == size or wasteful):
                yield Block(np.array(block), union)
                block, larger, used = [], np.unique(own), 0
            block, union, used = [*block, query], larger, used + len(own)
        yield Block(np.array(block), union)

    def metrics(
        self, block: Block, scores: Shaped[np.ndarray, "q n"], names: Sequence[str]
    ) -> dict[str, Float64[np.ndarray, " q"]]:
        """Returns metrics by name, from the scores of a block's queries and documents."""
        queries, documents = block
        ids = self._benchmark.corpus_ids
        ranked: list[np.ndarray] = []
        for of_query, query in zip(scores, queries.tolist(), strict=True):
            grades = np.zeros(len(ids))
            relevant, values = self._relevant[query]
            grades[relevant] = values
            candidates: Sequence[str] = ids
            if self._candidates is not None and documents is not None:
                own = self._candidates[query]
                of_query, grades = of_query[np.searchsorted(documents, own)], grades[own]
                candidates = [ids[i] for i in own.tolist()]
            key = query_key(self._benchmark.name, query)
            ranked.append(grades[rank(key, candidates, of_query, relevant=grades > 0)])
        judged = [self._relevant[query][1] for query in queries.tolist()]
        return compute_metrics(names, _pad(ranked), _pad(judged))


def query_metrics(
    benchmark: Benchmark, scores: Shaped[np.ndarray, "Nq Nd"], names: Sequence[str]
) -> dict[str, Float64[np.ndarray, " Nq"]]:
    """Returns metrics by name, of the scores of all queries and documents.

    Example:
      >>> qrels = {"q0": {"d1": 1}}
      >>> benchmark = Benchmark("one", ["a query"], ["q0"], ["a text", "another"], ["d0", "d1"], qrels)
      >>> query_metrics(benchmark, np.array([[0.7, 0.3]]), ["mrr"])
      {'mrr': array([0.5])}
    """
    judge = Judge(benchmark)
    parts = []
    for block in judge.blocks(len(scores)):
        chosen = scores[block.queries]
        parts.append(judge.metrics(block, chosen if block.documents is None else chosen[:, block.documents], names))
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _pad(grades: Sequence[Real[np.ndarray, " _"]]) -> Float64[np.ndarray, "q longest"]:
    padded = np.zeros((len(grades), max(map(len, grades))))
    for target, of_query in zip(padded, grades, strict=True):
        target[: len(of_query)] = of_query
    return padded
