"""Benchmarks: queries, a corpus and judgements, from folders, from published sets, or made here.

`fingerprint`, `limit` and `vidore` are modules of public functions; `eval.benchmarks.mmeb_v2` and `eval.benchmarks.pdf`
are packages of their own.
"""

from eval.benchmarks import fingerprint, limit, vidore
from eval.benchmarks.benchmark import Benchmark, Deferred, Side, item_text
from eval.benchmarks.lazy_items import LazyItems, batches
from eval.benchmarks.messages import abridged

__all__ = [
    "Benchmark",
    "Deferred",
    "LazyItems",
    "Side",
    "abridged",
    "batches",
    "fingerprint",
    "item_text",
    "limit",
    "vidore",
]
