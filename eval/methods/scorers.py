"""Scores of a block of queries by each method, from embeddings, from texts, or from nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

import smart_jax
from eval.benchmarks import Benchmark, item_text
from eval.methods.names import score_kind
from eval.ranking import Block
from eval.states import EmbeddingSource

ScoreFunction = Callable[..., np.ndarray]  # as `smart_jax.score` of two Embeddings, with its weights as keywords
Scorer = Callable[[Block], dict[str, Float32[np.ndarray, "q n"]]]  # scores of a block by method
# What each score is made of, by `EmbeddingSource.mean_bytes`.
PARTS = {"pooled": ("pooled",), "late": ("tokens",), "hybrid": ("pooled", "tokens")}


@dataclasses.dataclass(frozen=True)
class ModelScorer:
    """Scores of a model's methods.

    Attributes:
      queries, corpus: the embeddings of both sides.
      methods: some of `MODEL_METHODS`, or some of `ADAPTER_METHODS`.
      pooled_weight, late_weight: of the two scores in the hybrid one.
      score: computes the pooled or the late score of two `Embeddings`.
    """

    queries: EmbeddingSource
    corpus: EmbeddingSource
    methods: Sequence[str]
    pooled_weight: float = 1.0
    late_weight: float = 1.0
    score: ScoreFunction = smart_jax.score

    def __call__(self, block: Block) -> dict[str, Float32[np.ndarray, "q n"]]:
        """Returns the scores of the block's queries and documents, by method."""
        kinds = {score_kind(method): method for method in self.methods}
        scores = self._parts(block, {part for kind in kinds for part in PARTS[kind]})
        by_kind = {"pooled": scores.get("pooled"), "late": scores.get("tokens")}
        if "hybrid" in kinds:
            by_kind["hybrid"] = self.pooled_weight * scores["pooled"] + self.late_weight * scores["tokens"]
        return {method: by_kind[kind] for kind, method in kinds.items()}

    def mean_bytes(self) -> dict[str, float]:
        """Returns the mean size of a document in the index that each method needs."""
        sizes = self.corpus.mean_bytes()
        return {method: sum(sizes[part] for part in PARTS[score_kind(method)]) for method in self.methods}

    def _parts(self, block: Block, needed: set[str]) -> dict[str, Float32[np.ndarray, "q n"]]:
        """Returns the pooled scores as "pooled" and the late ones as "tokens", run by run of both sides."""
        weights: dict[str, dict[str, Any]] = {
            "pooled": {"pooled_weight": 1.0, "late_weight": 0.0},
            "tokens": {"pooled_weight": 0.0, "late_weight": 1.0},
        }
        columns = len(self.corpus) if block.documents is None else len(block.documents)
        scores = {part: np.empty((len(block.queries), columns), np.float32) for part in needed}
        for of_queries, q in self.queries.parts(block.queries):
            for of_documents, d in self.corpus.parts(block.documents):
                for part, of_part in scores.items():
                    of_part[of_queries, of_documents] = self.score(q, d, **weights[part])
        return scores


def bm25_scorer(benchmark: Benchmark) -> Scorer:
    """Returns the scorer of "bm25", of a benchmark that has texts."""
    from eval.methods.bm25 import BM25  # bm25s takes seconds to import, and models do not need it

    assert benchmark.texts is not None
    index = BM25(benchmark.texts)
    texts = [item_text(query) for query in benchmark.queries]

    def scorer(block: Block) -> dict[str, Float32[np.ndarray, "q n"]]:
        scores = index.score([texts[i] for i in block.queries])
        return {"bm25": scores if block.documents is None else scores[:, block.documents]}

    return scorer


def chance_scorer(benchmark: Benchmark) -> Scorer:
    """Returns the scorer of "chance": 0 for every document, so that only the tie-breaking hash ranks them."""

    def scorer(block: Block) -> dict[str, Float32[np.ndarray, "q n"]]:
        count = len(benchmark.corpus) if block.documents is None else len(block.documents)
        return {"chance": np.zeros((len(block.queries), count), np.float32)}

    return scorer
