"""Rankings and figures of SMART's reference evaluation loop, in its own order of operations: oracles for ours.

Followed: eval/src/evaluation/mmeb_v2/ of github.com/HanSolo9682/SMART, files eval_embedding_late_interaction.py
(rankings) and utils/eval_utils/metrics.py (figures). The scores are those of `eval.ranking.reference_scores`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from eval.benchmarks import abridged
from eval.ranking import query_key, reference_scores, tie_hash
from smart_jax.retrieval import Embeddings

CUTOFFS = (1, 5, 10)


def rank(key: str, names: Sequence[str], values: np.ndarray) -> np.ndarray:
    """Candidates from best to worst, as `_argsort_desc_with_hash_tiebreak`: all of them by their hash, then stably.

    Args:
      key: of the query, see `query_key`.
      names: of the candidates; one that appears twice keeps its order.
      values: [N], their scores.

    Returns:
      int64 [N], indices into names.
    """
    hashes = np.array([tie_hash(key, name) for name in names], np.uint64)
    by_hash = np.argsort(hashes, kind="stable")
    return by_hash[np.argsort(-np.asarray(values)[by_hash], kind="stable")]


def rank_global(
    dataset: str,
    q: Embeddings,
    d: Embeddings,
    names: Sequence[str],
    *,
    pooled_weight: float = 1.0,
    late_weight: float = 1.0,
) -> list[list[str]]:
    """Every query's ranking of all documents, by name: `_rank_global`.

    Args:
      dataset: its name, part of every query's key.
      q, d: of the queries and the documents.
      names: of the documents, distinct.
      pooled_weight, late_weight: as in `reference_scores`.

    Raises:
      ValueError: not one distinct name per document, or as `reference_scores`.
    """
    _places(d, names)
    rows = reference_scores(q, d, pooled_weight=pooled_weight, late_weight=late_weight)
    return [[names[i] for i in rank(query_key(dataset, at), names, row)] for at, row in enumerate(rows)]


def rank_local(
    dataset: str,
    q: Embeddings,
    d: Embeddings,
    names: Sequence[str],
    candidates: Sequence[Sequence[str]],
    *,
    pooled_weight: float = 1.0,
    late_weight: float = 1.0,
) -> list[list[str]]:
    """Every query's ranking of its own candidates, scored query by query: `_rank_local`.

    Args:
      dataset, q, d, names, pooled_weight, late_weight: as in `rank_global`.
      candidates: for each query, names of documents.

    Raises:
      ValueError: not one list per query, an unknown candidate, or as `rank_global`.
    """
    places = _places(d, names)
    if len(candidates) != len(q):
        raise ValueError(f"{len(candidates)} lists of candidates for {len(q)} queries")
    ranked = []
    for at, own in enumerate(candidates):
        if unknown := [name for name in own if name not in places]:
            raise ValueError(f"query {at} has unknown candidates: {abridged(unknown)}")
        documents = d[[places[name] for name in own]]
        values = reference_scores(q[at : at + 1], documents, pooled_weight=pooled_weight, late_weight=late_weight)[0]
        ranked.append([own[i] for i in rank(query_key(dataset, at), own, values)])
    return ranked


def _places(d: Embeddings, names: Sequence[str]) -> Mapping[str, int]:
    places = {name: i for i, name in enumerate(names)}
    if len(names) != len(d) or len(places) < len(names):
        raise ValueError(f"{len(names)} names, {len(places)} of them distinct, for {len(d)} documents")
    return places


def figures(ranked: Sequence[str], labels: Sequence[str], grades: Sequence[int] | None = None) -> dict[str, float]:
    """Figures of one query at ranks 1, 5 and 10: `RankingMetrics`.

    hit, recall, precision, mrr and both nDCG equal those of `smart_jax.retrieval.metrics` where a query has a relevant
    document. Two conventions are the reference's own: map@k divides by min(relevant, k), trec_eval by all that are
    relevant; and recall without any relevant document is 1. One thing is not followed: there `evaluate` makes a set of
    the labels before it pairs them with their grades, so that a query with several grades gets them in an order that
    changes from process to process. Here each label keeps its grade.

    Args:
      ranked: names of the candidates, best first.
      labels: names of the relevant documents, distinct where they have grades.
      grades: one per label; None = all 1.

    Returns:
      {"hit@1": ..., "ndcg_linear@1", "ndcg_exponential@1", "precision@1", "recall@1", "f1@1", "map@1", "mrr@1", ...}.

    Raises:
      ValueError: not one grade per label, or graded labels that repeat.
    """
    relevant = set(labels)
    if grades is not None and not len(grades) == len(labels) == len(relevant):
        raise ValueError(f"{len(grades)} grades for {len(labels)} labels, {len(relevant)} of them distinct")
    gains = dict.fromkeys(relevant, 1) if grades is None else dict(zip(labels, grades, strict=True))
    found: dict[str, float] = {}
    for k in CUTOFFS:
        top = ranked[:k]
        hits = [name in relevant for name in top]
        distinct = len(relevant & set(top))
        precision = distinct / k
        recall = distinct / len(relevant) if relevant else 1.0
        exponential = {name: 2**gain - 1 for name, gain in gains.items()}
        found |= {
            f"hit@{k}": float(distinct > 0),
            f"ndcg_linear@{k}": _ndcg(top, gains, k),
            f"ndcg_exponential@{k}": _ndcg(top, exponential, k),
            f"precision@{k}": precision,
            f"recall@{k}": recall,
            f"f1@{k}": 2 * precision * recall / (precision + recall) if precision + recall else 0.0,
            f"map@{k}": sum(sum(hits[: i + 1]) / (i + 1) for i, hit in enumerate(hits) if hit)
            / max(min(len(relevant), k), 1),
            f"mrr@{k}": 1 / (1 + hits.index(True)) if any(hits) else 0.0,
        }
    return found


def _ndcg(top: Sequence[str], gains: Mapping[str, int], k: int) -> float:
    ideal = _dcg(sorted(gains.values(), reverse=True)[:k])
    return _dcg([gains.get(name, 0) for name in top]) / ideal if ideal > 0 else 0.0


def _dcg(gains: Sequence[int]) -> float:
    return float(sum(gain / np.log2(i + 2) for i, gain in enumerate(gains)))
