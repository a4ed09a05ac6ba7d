"""One encoder on one benchmark: the metrics of every query by every method, at bounded memory."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64
from numpy.typing import DTypeLike
from tqdm.auto import tqdm

import smart_jax
from eval.benchmarks import Benchmark
from eval.methods.embed import embed, embed_from_cache
from eval.methods.names import ADAPTER_METHODS, MODEL_METHODS, choose_methods
from eval.methods.result import Result
from eval.methods.scorers import ModelScorer, ScoreFunction, Scorer, bm25_scorer, chance_scorer
from eval.ranking import Block, Judge
from eval.states import Cache, Worker
from smart_jax.retrieval import Retriever, parse_metric

METRICS = ("ndcg@5", "ndcg@10", "hit@1", "recall@10", "mrr")
QUERY_BLOCK = 256  # queries scored at a time
SHARE_OF_SCORES = 4  # of the cache's memory


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings by which items are encoded and scored.

    Attributes:
      batch_size, dtype: as in `Encoder.encode`.
      pooled_weight, late_weight: of the hybrid methods.
      query_block: queries scored at a time: at most query_block x documents scores per method are in memory, and fewer
        where the cache's memory asks for it.
      score: `smart_jax.score`, or what is to stand in for it.
      progress: whether bars are shown: None = for what takes longer than two seconds.

    Example:
      >>> Options(batch_size=8, late_weight=2.0).encoding["batch_size"]
      8
    """

    batch_size: int | None = None
    dtype: DTypeLike = np.float32
    pooled_weight: float = 1.0
    late_weight: float = 1.0
    query_block: int = QUERY_BLOCK
    score: ScoreFunction = smart_jax.score
    progress: bool | None = None

    @property
    def encoding(self) -> dict[str, Any]:
        """Keyword arguments of `Encoder.encode_query` and its siblings."""
        return {"batch_size": self.batch_size, "dtype": self.dtype, "progress": self.progress}


def run_benchmark(
    encoder: Retriever | None,
    benchmark: Benchmark,
    *,
    methods: Sequence[str] | None = None,
    adapter_encoder: Retriever | None = None,
    metrics: Sequence[str] = METRICS,
    cache: Cache | None = None,
    options: Options = Options(),
) -> Result:
    """Encodes queries and corpus, scores them in blocks of queries, and computes metrics.

    With a cache, states are encoded once, for all methods and all later calls, and embeddings are read from there
    within the cache's memory. Without one the embeddings are in memory, and made once more with the adapter.

    Args:
      encoder: the model; None where no method needs it.
      benchmark: what to run.
      methods: see `eval.methods.names`; None = all that apply.
      adapter_encoder: the model with its adapter; needed by the adapter methods.
      metrics: names as in `smart_jax.retrieval.parse_metric`.
      cache: of states; its worker is this process.
      options: how items are encoded and scored.

    Raises:
      ValueError: an unknown method or metric, or a method that this benchmark or these encoders cannot give.

    Example:
      >>> texts = ["a red kite", "the blue sea"]
      >>> qrels = {"q0": {"d0": 1}, "q1": {"d1": 1}}
      >>> benchmark = Benchmark("two", ["kite", "sea"], ["q0", "q1"], texts, ["d0", "d1"], qrels, texts=texts)
      >>> run_benchmark(None, benchmark, methods=["bm25"]).mean("bm25", "hit@1")
      1.0
    """
    methods = choose_methods(methods, benchmark, encoder, adapter_encoder)
    for metric in metrics:
        parse_metric(metric)
    evaluation = _Evaluation(benchmark, metrics, cache, options)
    both = [model for model in (encoder, adapter_encoder) if model is not None]
    # One model at a time, so that without a cache only one set of embeddings is in memory.
    for stage, group, model in (
        ("encode", MODEL_METHODS, encoder),
        ("encode with adapter", ADAPTER_METHODS, adapter_encoder),
    ):
        chosen = [method for method in methods if method in group]
        if model is not None and chosen:
            evaluation.add_model(stage, model, both, chosen)
    if "bm25" in methods:
        evaluation.add(["bm25"], bm25_scorer(benchmark))
    if "chance" in methods:
        evaluation.add(["chance"], chance_scorer(benchmark))
    return evaluation.result(methods)


class _Evaluation:
    """A benchmark's figures as they are gathered, method by method."""

    def __init__(self, benchmark: Benchmark, metrics: Sequence[str], cache: Cache | None, options: Options):
        self._benchmark, self._metrics, self._cache, self._options = benchmark, metrics, cache, options
        self._judge = Judge(benchmark)
        self._values: dict[str, dict[str, np.ndarray]] = {}
        self._seconds: dict[str, float] = {}
        self._sizes: dict[str, float] = {}

    def add_model(self, stage: str, model: Retriever, models: Sequence[Retriever], methods: Sequence[str]) -> None:
        """Encodes with one of the models, and scores by its methods."""
        start = time.perf_counter()
        if self._cache is None:
            queries, corpus = embed(model, self._benchmark, self._options.encoding)
        else:
            queries, corpus = embed_from_cache(self._cache, model, models, self._benchmark, self._options.encoding)
        weights = self._options.pooled_weight, self._options.late_weight
        scorer = ModelScorer(queries, corpus, methods, *weights, self._options.score)
        encoded = time.perf_counter()
        self.add(methods, scorer)
        self._sizes |= scorer.mean_bytes()
        self._seconds[stage] = encoded - start
        self._seconds["score"] = self._seconds.get("score", 0.0) + time.perf_counter() - encoded

    def add(self, methods: Sequence[str], scorer: Scorer) -> None:
        """Scores this process's blocks of queries, and exchanges their metrics with the other processes."""
        blocks = list(self._judge.blocks(self._query_block()))
        worker = Worker() if self._cache is None else self._cache.worker
        assigned = [blocks[number] for number in worker.own(len(blocks))]
        values = np.concatenate([*self._score(methods, scorer, assigned)], axis=2)
        queries = np.concatenate([np.zeros(0, np.int64), *(block.queries for block in assigned)])
        merged = np.empty((*values.shape[:2], len(self._benchmark.queries)))
        for part in worker.exchange(self._benchmark.name, ",".join(methods), {"queries": queries, "values": values}):
            merged[:, :, part["queries"]] = part["values"]
        for method, of_method in zip(methods, merged, strict=True):
            self._values[method] = dict(zip(self._metrics, of_method, strict=True))

    def _score(
        self, methods: Sequence[str], scorer: Scorer, blocks: Sequence[Block]
    ) -> Iterator[Float64[np.ndarray, "methods metrics _"]]:
        """Yields the metrics of each block's queries, after those of none."""
        yield np.zeros((len(methods), len(self._metrics), 0))
        progress = self._options.progress
        with tqdm(
            total=sum(len(block.queries) for block in blocks),
            desc=f"score {', '.join(methods)}",
            unit="query",
            delay=2.0 if progress is None else 0,
            disable=progress is False,
        ) as bar:
            for block in blocks:
                scores = scorer(block)
                metrics = [self._judge.metrics(block, scores[method], self._metrics) for method in methods]
                yield np.stack([[of_method[name] for name in self._metrics] for of_method in metrics])
                bar.update(len(block.queries))

    def _query_block(self) -> int:
        """Returns how many queries to score at a time."""
        if self._cache is None:
            return self._options.query_block
        kinds, itemsize = 3, 4  # float32 scores: pooled, late, hybrid
        fitting = self._cache.memory // SHARE_OF_SCORES // (itemsize * kinds * len(self._benchmark.corpus))
        return min(self._options.query_block, max(fitting, 1))

    def result(self, methods: Sequence[str]) -> Result:
        """Returns the figures of these methods, in this order."""
        return Result(
            benchmark=self._benchmark.name,
            query_ids=list(self._benchmark.query_ids),
            documents=len(self._benchmark.corpus),
            local=self._benchmark.candidates is not None,
            values={method: self._values[method] for method in methods},
            seconds=self._seconds,
            bytes_per_document={method: self._sizes[method] for method in methods if method in self._sizes},
        )
