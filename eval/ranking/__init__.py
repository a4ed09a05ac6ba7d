"""From scores to rankings, metrics and bootstrap intervals."""

from eval.ranking import reference
from eval.ranking.bootstrap import Drawn, Estimate, average, interval, resample, resampled_means, shared_keys
from eval.ranking.ranking import Block, Judge, query_key, query_metrics, rank
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
    "reference",
    "resample",
    "resampled_means",
    "shared_keys",
    "tie_hash",
]
