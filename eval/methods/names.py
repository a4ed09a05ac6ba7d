"""Names of the scoring methods, and which of them a benchmark and an encoder allow.

Methods (SMART, arXiv:2605.24938; weights 1 and 1 by default):
  pooled, late, hybrid             the frozen backbone: pooled cosine, mean MaxSim, and their weighted sum; of a
                                   multi-vector model, which has no pooled vector, late alone
  adapter-late, adapter-hybrid     the same with a post-trained token projection; adapter-pooled where it truncates
  bm25                             word matching on the pages' texts
  chance                           a constant score: ranked by the tie-breaking hash alone

They are the rows of the tables and, under the key `rows`, of configs and results.json.
"""

from __future__ import annotations

from collections.abc import Sequence

from eval.benchmarks import Benchmark, item_text
from smart_jax.retrieval import Retriever

MODEL_METHODS = ("pooled", "late", "hybrid")
LATE_ONLY = ("late",)  # of them, what multi-vector models have
ADAPTER_METHODS = ("adapter-pooled", "adapter-late", "adapter-hybrid")
METHODS = ("chance", "bm25", *MODEL_METHODS, *ADAPTER_METHODS)  # in the order of the table
MAX_CHANCE_PAIRS = 10**7  # hashed in about 20 s: above it chance is given only where it is asked for


def choose_methods(
    asked: Sequence[str] | None, benchmark: Benchmark, encoder: Retriever | None, adapter_encoder: Retriever | None
) -> list[str]:
    """Returns the methods to evaluate, in the order of `METHODS`.

    Args:
      asked: names; None = all that apply.
      benchmark: BM25 needs its texts, and queries that have texts.
      encoder: needed by `MODEL_METHODS`.
      adapter_encoder: needed by `ADAPTER_METHODS`.

    Raises:
      ValueError: an unknown name, none at all, or one that the benchmark or the encoders cannot give.
    """
    available = _available(benchmark, encoder, adapter_encoder)
    if asked is None:
        return available
    if unknown := [name for name in asked if name not in METHODS]:
        raise ValueError(f"unknown rows {', '.join(map(repr, unknown))}: use some of {', '.join(METHODS)}")
    if not asked:
        raise ValueError(f"no rows to evaluate: use some of {', '.join(available)}")
    for name in asked:
        if name == "bm25" and name not in available:
            raise ValueError(f"benchmark {benchmark.name} has no texts for the row bm25: leave the row out")
        if name in MODEL_METHODS and encoder is None:
            raise ValueError(f"row {name} needs an encoder: pass one")
        if name in MODEL_METHODS and name not in model_methods(encoder):
            raise ValueError(f"row {name} needs pooled vectors, and this model has none: use the row late")
        if name in ADAPTER_METHODS and adapter_encoder is None:
            raise ValueError(f"row {name} needs an adapter: set adapter, or leave the row out")
    return [name for name in METHODS if name in asked]


def _available(benchmark: Benchmark, encoder: Retriever | None, adapter_encoder: Retriever | None) -> list[str]:
    available = ["chance"] if len(benchmark.queries) * len(benchmark.corpus) <= MAX_CHANCE_PAIRS else []
    if benchmark.texts is not None and all(item_text(query) for query in benchmark.queries):
        available.append("bm25")
    if encoder is not None:
        available += model_methods(encoder)
    if adapter_encoder is not None:
        available += adapter_methods(adapter_encoder)
    return available


def model_methods(encoder: Retriever | None) -> tuple[str, ...]:
    """Returns the methods of an encoder without its adapter: the late one alone where it has no pooled vectors."""
    return MODEL_METHODS if getattr(encoder, "pooled_width", 1) else LATE_ONLY


def adapter_methods(encoder: Retriever) -> tuple[str, ...]:
    """Returns the methods of an encoder's adapter: adapter-pooled only where it truncates the pooled vectors."""
    truncates = encoder.adapter is not None and encoder.adapter.config.pooled_dim
    return ADAPTER_METHODS if truncates else ADAPTER_METHODS[1:]


def score_kind(method: str) -> str:
    """Returns which score a model's method ranks by: "pooled", "late" or "hybrid".

    Example:
      >>> score_kind("adapter-late")
      'late'
    """
    return method.removeprefix("adapter-")
