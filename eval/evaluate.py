"""One encoder on one benchmark: per-query metrics of every row, at bounded memory.

Rows (SMART, arXiv:2605.24938; weights 1 and 1 by default):
  pooled, late, hybrid             the frozen backbone: pooled cosine, mean MaxSim, and their weighted sum
  adapter-late, adapter-hybrid     the same with a post-trained token projection; adapter-pooled where it truncates
  bm25                             word matching on the pages' texts
  chance                           a constant score: ranked by the tie-breaking hash alone
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from eval.benchmarks.benchmark import Benchmark, item_text
from eval.ranking.bm25 import BM25
from eval.ranking.ranking import Block, Judge
from eval.states.cache import Cache
from eval.states.embedding_sources import InMemory, OnDisk, ScoreFunction, Vectors, hybrid_scores
from eval.states.workers import Worker
from smart_jax.retrieval import LAST, Embeddings, States, parse_metric, score

MODEL_ROWS = ("pooled", "late", "hybrid")
ADAPTER_ROWS = ("adapter-pooled", "adapter-late", "adapter-hybrid")
ROWS = ("chance", "bm25", *MODEL_ROWS, *ADAPTER_ROWS)  # in the order of the table
METRICS = ("ndcg@5", "ndcg@10", "hit@1", "recall@10", "mrr")
QUERY_BLOCK = 256  # queries scored at a time
SHARE_OF_SCORES = 4  # of the cache's memory
MAX_CHANCE_PAIRS = 10**7  # hashed in about 20 s: above it the chance row is given only where it is asked for

Scorer = Callable[[Block], dict[str, np.ndarray]]  # scores [q, n] by row


@dataclasses.dataclass(frozen=True)
class Result:
    """Figures of one benchmark.

    Attributes:
      benchmark: its name.
      query_ids: of the Q queries.
      documents: size of the corpus.
      local: whether each query ranked only its own candidates.
      values: float64 [Q] by row, then metric.
      seconds: wall time by stage: "encode", "encode with adapter", "score".
      bytes_per_document: what a row's index takes, on average, by row; not of the rows without vectors.
    """

    benchmark: str
    query_ids: Sequence[str]
    documents: int
    local: bool
    values: dict[str, dict[str, np.ndarray]]
    seconds: dict[str, float]
    bytes_per_document: dict[str, float] = dataclasses.field(default_factory=dict)

    def mean(self, row: str, metric: str) -> float:
        return float(self.values[row][metric].mean())


def run_benchmark(
    encoder: Any,
    benchmark: Benchmark,
    *,
    rows: Sequence[str] | None = None,
    adapter_encoder: Any | None = None,
    metrics: Sequence[str] = METRICS,
    pooled_weight: float = 1.0,
    late_weight: float = 1.0,
    batch_size: int | None = None,
    dtype: Any = np.float32,
    query_block: int = QUERY_BLOCK,
    cache: Cache | None = None,
    layers: Sequence[int] = (),
    score: ScoreFunction = score,
    progress: bool | None = None,
) -> Result:
    """Encodes queries and corpus, scores in blocks of queries, and measures.

    With a cache states are encoded once, for all rows and all later calls, and embeddings are read from there within
    the cache's memory. Without one the embeddings are in memory, and made once more with the adapter.

    Args:
      encoder: has `encode_query` and `encode_document`; may be None if no row needs it.
      benchmark: what to run.
      rows: see the module's docstring; None = all that apply.
      adapter_encoder: the encoder with its adapter; needed by the adapter rows.
      metrics: names as in `smart_jax.retrieval.parse_metric`.
      pooled_weight, late_weight: of the hybrid rows.
      batch_size, dtype: as in `Encoder.encode`.
      query_block: queries scored at a time: at most query_block x documents scores per row are in memory, and fewer
        where the cache's memory asks for it.
      cache: of states; its worker is this process.
      layers: of the states in the cache, beside those that the rows need: for adapters to come.
      score: `smart_jax.score`, or what is to stand in for it.
      progress: bars: True = always, False = never, None = for what takes longer than two seconds.

    Raises:
      ValueError: an unknown row or metric, or a row that this benchmark or these encoders can not give.
    """
    rows = _choose_rows(rows, benchmark, encoder, adapter_encoder)
    for metric in metrics:
        parse_metric(metric)
    seconds: dict[str, float] = {}
    values: dict[str, dict[str, np.ndarray]] = {}
    sizes: dict[str, float] = {}
    encode = dict(batch_size=batch_size, dtype=dtype, progress=progress)
    weights = (pooled_weight, late_weight)
    if cache is not None:
        fitting = cache.memory // SHARE_OF_SCORES // (4 * 3 * len(benchmark.corpus))  # float32, three kinds
        query_block = min(query_block, max(fitting, 1))

    def vectors(model: Any) -> tuple[Vectors, Vectors]:
        if cache is None:
            return _in_memory(model, benchmark, encode)
        both = [e for e in (encoder, adapter_encoder) if e is not None]
        return _cached(cache, model, benchmark, _cached_layers(model, both, layers), encode)

    # One scorer at a time, so that without a cache only one set of embeddings is in memory.
    for stage, group, model in (
        ("encode", MODEL_ROWS, encoder),
        ("encode with adapter", ADAPTER_ROWS, adapter_encoder),
        ("", ("bm25",), None),
        ("", ("chance",), None),
    ):
        wanted = [row for row in rows if row in group]
        if not wanted:
            continue
        start = time.perf_counter()
        if stage:
            queries, corpus = vectors(model)
            scorer = _model_scorer(queries, corpus, wanted, weights, score)
            sizes |= _sizes(corpus, wanted)
        else:
            scorer = _bm25_scorer(benchmark) if "bm25" in wanted else _chance_scorer(benchmark)
        encoded = time.perf_counter()
        worker = Worker() if cache is None else cache.worker
        values |= _evaluate(scorer, benchmark, wanted, metrics, query_block, worker, progress)
        if stage:
            seconds[stage] = encoded - start
            seconds["score"] = seconds.get("score", 0.0) + time.perf_counter() - encoded
    return Result(
        benchmark=benchmark.name,
        query_ids=list(benchmark.query_ids),
        documents=len(benchmark.corpus),
        local=benchmark.candidates is not None,
        values={row: values[row] for row in rows},
        seconds=seconds,
        bytes_per_document={row: sizes[row] for row in rows if row in sizes},
    )


def make_eval_fn(
    benchmarks: Sequence[Benchmark], *, metrics: Sequence[str] = ("ndcg@5", "hit@1"), **options: Any
) -> Callable[[Any], dict[str, float]]:
    """What a trainer calls with its encoder: {"<benchmark>/<row>/<metric>": mean}, chance and BM25 left out.

    An encoder with an adapter gives the adapter's rows, one without gives pooled, late and hybrid.
    """

    def evaluate(encoder: Any) -> dict[str, float]:
        adapted = getattr(encoder, "adapter", None) is not None
        found: dict[str, float] = {}
        for benchmark in benchmarks:
            rows = _adapter_rows(encoder) if adapted else MODEL_ROWS
            result = run_benchmark(
                None if adapted else encoder,
                benchmark,
                rows=rows,
                adapter_encoder=encoder if adapted else None,
                metrics=metrics,
                **options,
            )
            found |= {f"{benchmark.name}/{row}/{m}": result.mean(row, m) for row in rows for m in metrics}
        return found

    return evaluate


def _choose_rows(
    rows: Sequence[str] | None, benchmark: Benchmark, encoder: Any | None, adapter_encoder: Any | None
) -> list[str]:
    available = ["chance"] if len(benchmark.queries) * len(benchmark.corpus) <= MAX_CHANCE_PAIRS else []
    if benchmark.texts is not None and all(item_text(query) for query in benchmark.queries):
        available.append("bm25")
    if encoder is not None:
        available += MODEL_ROWS
    if adapter_encoder is not None:
        available += _adapter_rows(adapter_encoder)
    if rows is None:
        return available
    if unknown := [row for row in rows if row not in ROWS]:
        raise ValueError(f"unknown rows {', '.join(map(repr, unknown))}: use some of {', '.join(ROWS)}")
    if not rows:
        raise ValueError(f"no rows to evaluate: use some of {', '.join(available)}")
    for row in rows:
        if row == "bm25" and row not in available:
            raise ValueError(f"benchmark {benchmark.name} has no texts for the row bm25: leave the row out")
        if row in MODEL_ROWS and encoder is None:
            raise ValueError(f"row {row} needs an encoder: pass one")
        if row in ADAPTER_ROWS and adapter_encoder is None:
            raise ValueError(f"row {row} needs an adapter: set adapter, or leave the row out")
    return [row for row in ROWS if row in rows]


def _adapter_rows(encoder: Any) -> tuple[str, ...]:
    config = getattr(getattr(encoder, "adapter", None), "config", None)
    return ADAPTER_ROWS if getattr(config, "pooled_dim", None) else ADAPTER_ROWS[1:]


def _in_memory(model: Any, benchmark: Benchmark, encode: dict[str, Any]) -> tuple[Vectors, Vectors]:
    queries = model.encode_query(benchmark.queries, instruction=benchmark.instruction, **encode)
    corpus = model.encode_document(benchmark.corpus, instruction=benchmark.document_instruction, **encode)
    return InMemory(queries), InMemory(corpus)


def _cached(
    cache: Cache, model: Any, benchmark: Benchmark, layers: Sequence[int] | None, encode: dict[str, Any]
) -> tuple[Vectors, Vectors]:
    def make(states: States) -> Embeddings:
        return states.embeddings() if model.adapter is None else states.adapted(model.adapter)

    b = benchmark
    sides = ((b.queries, b.query_ids, b.instruction), (b.corpus, b.corpus_ids, b.document_instruction))
    queries, corpus = (
        cache.encode(model, b.name, items, ids, query=side == 0, instruction=said, layers=layers, **encode)
        for side, (items, ids, said) in enumerate(sides)
    )
    return OnDisk(queries, make), OnDisk(corpus, make)


def _cached_layers(model: Any, encoders: Sequence[Any], more: Sequence[int]) -> tuple[int, ...] | None:
    """Layers to encode for one of the encoders, such that all of them can share the states; None = the last.

    A model with a head of its own scores with that head's tokens; an adapter on it needs the states instead.
    """
    own_head = getattr(model.config, "token_dim", None) is not None
    if own_head and model.adapter is None:
        return None
    count = model.config.text.num_hidden_layers + 1
    asked = {*more, *(layer for e in encoders if e.adapter is not None for layer in e.adapter.config.layers)}
    found = {layer % count - count for layer in asked} | (set() if own_head else {LAST})
    return None if found == {LAST} and not own_head else tuple(sorted(found))


def _model_scorer(
    queries: Vectors, corpus: Vectors, rows: Sequence[str], weights: tuple[float, float], score: ScoreFunction
) -> Scorer:
    kinds = {_kind(row): row for row in rows}

    def scorer(block: Block) -> dict[str, np.ndarray]:
        scores = hybrid_scores(queries, corpus, block, list(kinds), weights, score)
        return {row: scores[kind] for kind, row in kinds.items()}

    return scorer


def _kind(row: str) -> str:
    return row.removeprefix("adapter-")


def _sizes(corpus: Vectors, rows: Sequence[str]) -> dict[str, float]:
    """Bytes of a document in the index that each row needs."""
    bytes_of = corpus.mean_bytes()
    needs = {"pooled": ("pooled",), "late": ("tokens",), "hybrid": ("pooled", "tokens")}
    return {row: sum(bytes_of[part] for part in needs[_kind(row)]) for row in rows}


def _bm25_scorer(benchmark: Benchmark) -> Scorer:
    assert benchmark.texts is not None
    index = BM25(benchmark.texts)
    texts = [item_text(query) for query in benchmark.queries]

    def scorer(block: Block) -> dict[str, np.ndarray]:
        query_indices, documents = block
        scores = index.score([texts[i] for i in query_indices])
        return {"bm25": scores if documents is None else scores[:, documents]}

    return scorer


def _chance_scorer(benchmark: Benchmark) -> Scorer:
    def scorer(block: Block) -> dict[str, np.ndarray]:
        query_indices, documents = block
        count = len(benchmark.corpus) if documents is None else len(documents)
        return {"chance": np.zeros((len(query_indices), count), np.float32)}

    return scorer


def _evaluate(
    scorer: Scorer,
    benchmark: Benchmark,
    rows: Sequence[str],
    names: Sequence[str],
    query_block: int,
    worker: Worker,
    progress: bool | None,
) -> dict[str, dict[str, np.ndarray]]:
    judge = Judge(benchmark)
    blocks = list(judge.blocks(query_block))
    mine = worker.own(len(blocks))
    found: dict[str, np.ndarray] = {}  # by "BLOCK/ROW/METRIC"
    bar = tqdm(
        total=sum(len(blocks[number][0]) for number in mine),
        desc=f"score {', '.join(rows)}",
        unit="query",
        delay=2.0 if progress is None else 0,
        disable=progress is False,
    )
    with bar:
        for number in mine:
            scores = scorer(blocks[number])
            for row in rows:
                measured = judge.measure(blocks[number], scores[row], names)
                found |= {f"{number}/{row}/{name}": values for name, values in measured.items()}
            bar.update(len(blocks[number][0]))
    everything: dict[str, np.ndarray] = {}
    for part in worker.exchange(benchmark.name, ",".join(rows), found):
        everything |= part
    numbers = range(len(blocks))
    return {
        row: {name: np.concatenate([everything[f"{number}/{row}/{name}"] for number in numbers]) for name in names}
        for row in rows
    }
