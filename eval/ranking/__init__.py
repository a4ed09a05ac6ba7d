"""Rankings of scores, their metrics and bootstrap intervals."""

from eval.ranking.bootstrap import Drawn, Estimate, average, interval, resample, resampled_means, shared_keys
from eval.ranking.ranking import Block, Judge, query_key, query_metrics, rank
from eval.ranking.reference import reference_scores
from eval.ranking.ties import tie_hash

__all__ = [
    "Block",
    "Drawn",
    "Estimate",
    "Judge",
    "average",
    "interval",
    "query_key",
    "query_metrics",
    "rank",
    "reference_scores",
    "resample",
    "resampled_means",
    "shared_keys",
    "tie_hash",
]
