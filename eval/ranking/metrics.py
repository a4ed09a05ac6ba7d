"""Ranking metrics of one query each, from the grades of its ranked candidates.

Arrays (Q queries, N ranks, J judgements of a query; pad with 0):
  ranked [Q, N]  grade of the candidate at each rank, best rank first; 0 = not relevant or not judged
  judged [Q, J]  grades of all the query's judged documents, ranked or not, in any order

A document is relevant if its grade is above 0. Every metric returns float64 [Q] in [0, 1]; a query without a relevant
document scores 0. Definitions are those of trec_eval (ndcg_cut, success, recall, P, map_cut, recip_rank).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

Metric = Callable[[np.ndarray, np.ndarray, int | None], np.ndarray]


def ndcg(ranked: np.ndarray, judged: np.ndarray, k: int | None = None, *, gain: str = "linear") -> np.ndarray:
    """Normalised discounted cumulative gain: sum_r gain(grade_r) / log2(r + 1) over that of the ideal ranking.

    gain "linear" takes the grade itself (trec_eval, MMEB-V2, ViDoRe); "exponential" takes 2**grade - 1.

    >>> ndcg(np.array([[0, 1, 0]]), np.array([[1]]))  # one relevant document at rank 2: 1 / log2(3)
    array([0.63092975])
    """
    if gain not in ("linear", "exponential"):
        raise ValueError(f'gain is {gain!r}: it must be "linear" or "exponential"')
    ranked, judged = _checked(ranked, judged, k)
    ideal = -np.sort(-judged, axis=1)[:, :k]
    if gain == "exponential":
        ranked, ideal = np.exp2(ranked) - 1, np.exp2(ideal) - 1
    return _ratio(_discounted(ranked[:, :k]), _discounted(ideal))


def hit(ranked: np.ndarray, judged: np.ndarray, k: int | None = None) -> np.ndarray:
    """1 if a relevant document is among the first k, else 0; at k = 1 also called precision@1 or accuracy."""
    ranked, _ = _checked(ranked, judged, k)
    return np.asarray((ranked[:, :k] > 0).any(axis=1), np.float64)


def recall(ranked: np.ndarray, judged: np.ndarray, k: int | None = None) -> np.ndarray:
    """Share of the relevant documents that are among the first k."""
    ranked, judged = _checked(ranked, judged, k)
    return _ratio((ranked[:, :k] > 0).sum(axis=1), (judged > 0).sum(axis=1))


def precision(ranked: np.ndarray, judged: np.ndarray, k: int | None = None) -> np.ndarray:
    """Share of the first k ranks that hold a relevant document; ranks a short list leaves empty are misses."""
    ranked, _ = _checked(ranked, judged, k)
    return (ranked[:, :k] > 0).sum(axis=1) / (k or max(ranked.shape[1], 1))


def average_precision(ranked: np.ndarray, judged: np.ndarray, k: int | None = None) -> np.ndarray:
    """Mean over the relevant documents of the precision at their rank (0 for those beyond k). Its mean is MAP."""
    ranked, judged = _checked(ranked, judged, k)
    relevant = ranked[:, :k] > 0
    at_rank = np.cumsum(relevant, axis=1) / np.arange(1, relevant.shape[1] + 1)
    return _ratio((at_rank * relevant).sum(axis=1), (judged > 0).sum(axis=1))


def reciprocal_rank(ranked: np.ndarray, judged: np.ndarray, k: int | None = None) -> np.ndarray:
    """1 / rank of the first relevant document, 0 if there is none among the first k. Its mean is MRR."""
    ranked, _ = _checked(ranked, judged, k)
    relevant = ranked[:, :k] > 0
    if relevant.shape[1] == 0:
        return np.zeros(len(relevant))
    return np.where(relevant.any(axis=1), 1 / (1 + relevant.argmax(axis=1)), 0.0)


METRICS: dict[str, Metric] = {
    "ndcg": ndcg,
    "ndcg_exp": lambda ranked, judged, k=None: ndcg(ranked, judged, k, gain="exponential"),
    "hit": hit,
    "recall": recall,
    "precision": precision,
    "map": average_precision,
    "mrr": reciprocal_rank,
}


def parse_metric(name: str) -> tuple[Metric, int | None]:
    """The function and the cut-off behind a name such as "ndcg@5" or "mrr" (no cut-off: the whole ranking).

    Raises:
      ValueError: the name is unknown; the message lists the known ones.
    """
    match = re.fullmatch(r"([a-z_]+)(?:@([1-9][0-9]*))?", name)
    if not match or match[1] not in METRICS:
        raise ValueError(f'unknown metric {name!r}: use one of {", ".join(METRICS)}, with a cut-off as in "ndcg@5"')
    return METRICS[match[1]], int(match[2]) if match[2] else None


def compute(names: Sequence[str], ranked: np.ndarray, judged: np.ndarray) -> dict[str, np.ndarray]:
    """Several metrics by name: {name: float64 [Q]}."""
    functions = {name: parse_metric(name) for name in names}
    return {name: metric(ranked, judged, k) for name, (metric, k) in functions.items()}


def _checked(ranked: np.ndarray, judged: np.ndarray, k: int | None) -> tuple[np.ndarray, np.ndarray]:
    ranked, judged = np.asarray(ranked, np.float64), np.asarray(judged, np.float64)
    if ranked.ndim != 2 or judged.ndim != 2 or len(ranked) != len(judged):
        raise ValueError(f"ranked must be [Q, N] and judged [Q, J], not {ranked.shape} and {judged.shape}")
    if k is not None and k < 1:
        raise ValueError(f"the cut-off k is {k}: it must be at least 1")
    return np.maximum(ranked, 0), np.maximum(judged, 0)  # trec_eval: a negative grade is not relevant


def _discounted(gains: np.ndarray) -> np.ndarray:
    return np.asarray(gains @ (1 / np.log2(np.arange(2, gains.shape[1] + 2))))


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0)
