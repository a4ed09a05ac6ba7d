"""Ranking metrics of one query each, from the grades of its ranked candidates.

Arrays, of Nq queries, padded with 0:
  ranked [Nq, ranks]   grade of the candidate at each rank, best rank first; 0 = not relevant or not judged
  judged [Nq, judged]  grades of all the query's judged documents, ranked or not, in any order

A document is relevant if its grade is above 0. Every metric returns float64 [Nq] in [0, 1]; a query without a relevant
document scores 0. Definitions are those of trec_eval (ndcg_cut, success, recall, P, map_cut, recip_rank).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

Values = Float[np.ndarray, " Nq"]
Metric = Callable[[ArrayLike, ArrayLike, int | None], Values]


def ndcg(ranked: ArrayLike, judged: ArrayLike, k: int | None = None, *, gain: str = "linear") -> Values:
    """Returns the normalised discounted cumulative gain of each query.

        nDCG@k = sum over ranks r <= k of gain(grade_r) / log2(r + 1), over that of the ideal ranking

    (Jarvelin and Kekalainen 2002, doi:10.1145/582415.582418)

    Args:
      ranked: grades by rank [Nq, ranks].
      judged: grades of the judged documents [Nq, judged].
      k: cut-off; None = the whole ranking.
      gain: "linear" takes the grade itself (trec_eval, MMEB-V2, ViDoRe); "exponential" takes 2**grade - 1.

    Returns:
      Values [Nq], float64.

    Raises:
      ValueError: an unknown gain, a cut-off below 1, or arrays of other shapes.

    Example:
      >>> ndcg([[0, 1, 0]], [[1]])  # one relevant document at rank 2: 1 / log2(3)
      array([0.63092975])
    """
    if gain not in ("linear", "exponential"):
        raise ValueError(f'gain is {gain!r}: it must be "linear" or "exponential"')
    grades, judgements = _checked(ranked, judged, k)
    ideal = -np.sort(-judgements, axis=1)[:, :k]
    if gain == "exponential":
        grades, ideal = np.exp2(grades) - 1, np.exp2(ideal) - 1
    return _ratio(_discounted(grades[:, :k]), _discounted(ideal))


def hit(ranked: ArrayLike, judged: ArrayLike, k: int | None = None) -> Values:
    """Returns 1 if a relevant document is among the first k, else 0; at k = 1 also called precision@1 or accuracy.

    Example:
      >>> hit([[0, 1, 0], [0, 0, 1]], [[1], [1]], 2)
      array([1., 0.])
    """
    ranked, _ = _checked(ranked, judged, k)
    return np.asarray((ranked[:, :k] > 0).any(axis=1), np.float64)


def recall(ranked: ArrayLike, judged: ArrayLike, k: int | None = None) -> Values:
    """Returns the share of the relevant documents that are among the first k.

    Example:
      >>> recall([[1, 0, 1]], [[1, 1]], 2)
      array([0.5])
    """
    ranked, judged = _checked(ranked, judged, k)
    return _ratio((ranked[:, :k] > 0).sum(axis=1), (judged > 0).sum(axis=1))


def precision(ranked: ArrayLike, judged: ArrayLike, k: int | None = None) -> Values:
    """Returns the share of the first k ranks that hold a relevant document; ranks that a short list leaves empty count.

    Example:
      >>> precision([[1, 0, 1]], [[1, 1]], 4)
      array([0.5])
    """
    ranked, _ = _checked(ranked, judged, k)
    return np.asarray((ranked[:, :k] > 0).sum(axis=1) / (k or max(ranked.shape[1], 1)))


def average_precision(ranked: ArrayLike, judged: ArrayLike, k: int | None = None) -> Values:
    """Returns the mean over the relevant documents of the precision at their rank, 0 beyond k. Its mean is MAP.

    Example:
      >>> average_precision([[1, 0, 1, 0]], [[1, 1]])  # (1 / 1 + 2 / 3) / 2
      array([0.83333333])
    """
    ranked, judged = _checked(ranked, judged, k)
    relevant = ranked[:, :k] > 0
    at_rank = np.cumsum(relevant, axis=1) / np.arange(1, relevant.shape[1] + 1)
    return _ratio((at_rank * relevant).sum(axis=1), (judged > 0).sum(axis=1))


def reciprocal_rank(ranked: ArrayLike, judged: ArrayLike, k: int | None = None) -> Values:
    """Returns 1 / rank of the first relevant document, 0 if there is none among the first k. Its mean is MRR.

    Example:
      >>> reciprocal_rank([[0, 0, 1, 1]], [[1, 1]])
      array([0.33333333])
    """
    ranked, _ = _checked(ranked, judged, k)
    relevant = ranked[:, :k] > 0
    if relevant.shape[1] == 0:
        return np.zeros(len(relevant))
    return np.where(relevant.any(axis=1), 1 / (1 + relevant.argmax(axis=1)), 0.0)


METRICS: dict[str, Metric] = {
    "ndcg": ndcg,
    "ndcg_exp": partial(ndcg, gain="exponential"),
    "hit": hit,
    "recall": recall,
    "precision": precision,
    "map": average_precision,
    "mrr": reciprocal_rank,
}


def parse_metric(name: str) -> tuple[Metric, int | None]:
    """Returns the function and the cut-off behind a name such as "ndcg@5" or "mrr" (no cut-off: the whole ranking).

    Raises:
      ValueError: the name is unknown; the message lists the known ones.

    Example:
      >>> function, k = parse_metric("recall@10")
      >>> function is recall, k
      (True, 10)
    """
    match = re.fullmatch(r"([a-z_]+)(?:@([1-9][0-9]*))?", name)
    if not match or match[1] not in METRICS:
        raise ValueError(f'unknown metric {name!r}: use one of {", ".join(METRICS)}, with a cut-off as in "ndcg@5"')
    return METRICS[match[1]], int(match[2]) if match[2] else None


def compute_metrics(names: Sequence[str], ranked: ArrayLike, judged: ArrayLike) -> dict[str, Values]:
    """Returns several metrics by name, float64 [Nq] each.

    Example:
      >>> compute_metrics(["ndcg@5", "mrr"], [[0, 1, 0]], [[1]])
      {'ndcg@5': array([0.63092975]), 'mrr': array([0.5])}
    """
    functions = {name: parse_metric(name) for name in names}
    return {name: metric(ranked, judged, k) for name, (metric, k) in functions.items()}


def _checked(
    ranked: ArrayLike, judged: ArrayLike, k: int | None
) -> tuple[Float[np.ndarray, "Nq ranks"], Float[np.ndarray, "Nq judged"]]:
    ranked, judged = np.asarray(ranked, np.float64), np.asarray(judged, np.float64)
    if ranked.ndim != 2 or judged.ndim != 2 or len(ranked) != len(judged):
        raise ValueError(f"ranked must be [Nq, ranks] and judged [Nq, judged], not {ranked.shape} and {judged.shape}")
    if k is not None and k < 1:
        raise ValueError(f"the cut-off k is {k}: it must be at least 1")
    return np.maximum(ranked, 0), np.maximum(judged, 0)  # trec_eval: a negative grade is not relevant


def _discounted(gains: Float[np.ndarray, "Nq ranks"]) -> Values:
    return np.asarray(gains @ (1 / np.log2(np.arange(2, gains.shape[1] + 2))))


def _ratio(numerator: ArrayLike, denominator: np.ndarray) -> Values:
    return np.asarray(np.divide(numerator, denominator, out=np.zeros(len(denominator)), where=denominator > 0))
