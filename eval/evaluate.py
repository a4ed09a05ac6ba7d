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

from eval.benchmark import Benchmark, item_text
from eval.bm25 import BM25
from eval.metrics import parse_metric
from eval.ranking import Judge
from smart_jax.score import score

MODEL_ROWS = ("pooled", "late", "hybrid")
ADAPTER_ROWS = ("adapter-pooled", "adapter-late", "adapter-hybrid")
ROWS = ("chance", "bm25", *MODEL_ROWS, *ADAPTER_ROWS)  # in the order of the table
METRICS = ("ndcg@5", "ndcg@10", "hit@1", "recall@10", "mrr")
QUERY_BLOCK = 256  # queries scored at a time
MAX_CHANCE_PAIRS = 10**7  # hashed in about 20 s: above it the chance row is given only where it is asked for

Scorer = Callable[[np.ndarray, np.ndarray | None], dict[str, np.ndarray]]  # a `Block`'s scores [q, n] by row


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
    """

    benchmark: str
    query_ids: Sequence[str]
    documents: int
    local: bool
    values: dict[str, dict[str, np.ndarray]]
    seconds: dict[str, float]

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
    progress: bool | None = None,
) -> Result:
    """Encodes queries and corpus once (once more with the adapter), scores in blocks of queries, and measures.

    Args:
      encoder: has `encode_query` and `encode_document`; may be None if no row needs it.
      benchmark: what to run.
      rows: see the module's docstring; None = all that apply.
      adapter_encoder: the encoder with its adapter; needed by the adapter rows.
      metrics: names as in `eval.metrics.parse_metric`.
      pooled_weight, late_weight: of the hybrid rows.
      batch_size, dtype: as in `Encoder.encode`.
      query_block: queries scored at a time: at most query_block x documents scores per row are in memory.
      progress: bars: True = always, False = never, None = for what takes longer than two seconds.

    Raises:
      ValueError: an unknown row or metric, or a row that this benchmark or these encoders can not give.
    """
    rows = _choose_rows(rows, benchmark, encoder, adapter_encoder)
    for metric in metrics:
        parse_metric(metric)
    seconds: dict[str, float] = {}
    values: dict[str, dict[str, np.ndarray]] = {}
    encode = dict(batch_size=batch_size, dtype=dtype, progress=progress)
    weights = (pooled_weight, late_weight)
    # One scorer at a time, so that only one set of embeddings is in memory.
    for group, build in (
        (MODEL_ROWS, lambda wanted: _model_scorer(encoder, benchmark, wanted, weights, encode)),
        (ADAPTER_ROWS, lambda wanted: _model_scorer(adapter_encoder, benchmark, wanted, weights, encode)),
        (("bm25",), lambda _: _bm25_scorer(benchmark)),
        (("chance",), lambda _: _chance_scorer(benchmark)),
    ):
        wanted = [row for row in rows if row in group]
        if not wanted:
            continue
        start = time.perf_counter()
        scorer = build(wanted)
        encoded = time.perf_counter()
        values |= _evaluate(scorer, benchmark, wanted, metrics, query_block, progress)
        if group in (MODEL_ROWS, ADAPTER_ROWS):
            seconds["encode" if group is MODEL_ROWS else "encode with adapter"] = encoded - start
            seconds["score"] = seconds.get("score", 0.0) + time.perf_counter() - encoded
    return Result(
        benchmark=benchmark.name,
        query_ids=list(benchmark.query_ids),
        documents=len(benchmark.corpus),
        local=benchmark.candidates is not None,
        values={row: values[row] for row in rows},
        seconds=seconds,
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


def _model_scorer(
    encoder: Any, benchmark: Benchmark, rows: Sequence[str], weights: tuple[float, float], encode: dict[str, Any]
) -> Scorer:
    queries = encoder.encode_query(benchmark.queries, instruction=benchmark.instruction, **encode)
    corpus = encoder.encode_document(benchmark.corpus, instruction=benchmark.document_instruction, **encode)
    kinds = {row.removeprefix("adapter-"): row for row in rows}

    def scorer(query_indices: np.ndarray, documents: np.ndarray | None) -> dict[str, np.ndarray]:
        q, d = queries[query_indices], corpus if documents is None else corpus[documents]
        scores: dict[str, np.ndarray] = {}
        if set(kinds) & {"pooled", "hybrid"}:
            scores["pooled"] = np.asarray(score(q, d, late_weight=0.0))
        if set(kinds) & {"late", "hybrid"}:
            scores["late"] = np.asarray(score(q, d, pooled_weight=0.0))
        if "hybrid" in kinds:
            scores["hybrid"] = weights[0] * scores["pooled"] + weights[1] * scores["late"]
        return {row: scores[kind] for kind, row in kinds.items()}

    return scorer


def _bm25_scorer(benchmark: Benchmark) -> Scorer:
    assert benchmark.texts is not None
    index = BM25(benchmark.texts)
    texts = [item_text(query) for query in benchmark.queries]

    def scorer(query_indices: np.ndarray, documents: np.ndarray | None) -> dict[str, np.ndarray]:
        scores = index.score([texts[i] for i in query_indices])
        return {"bm25": scores if documents is None else scores[:, documents]}

    return scorer


def _chance_scorer(benchmark: Benchmark) -> Scorer:
    def scorer(query_indices: np.ndarray, documents: np.ndarray | None) -> dict[str, np.ndarray]:
        count = len(benchmark.corpus) if documents is None else len(documents)
        return {"chance": np.zeros((len(query_indices), count), np.float32)}

    return scorer


def _evaluate(
    scorer: Scorer,
    benchmark: Benchmark,
    rows: Sequence[str],
    names: Sequence[str],
    query_block: int,
    progress: bool | None,
) -> dict[str, dict[str, np.ndarray]]:
    judge = Judge(benchmark)
    parts: dict[str, list[dict[str, np.ndarray]]] = {row: [] for row in rows}
    bar = tqdm(
        total=len(benchmark.queries),
        desc=f"score {', '.join(rows)}",
        unit="query",
        delay=2.0 if progress is None else 0,
        disable=progress is False,
    )
    with bar:
        for block in judge.blocks(query_block):
            scores = scorer(*block)
            for row in rows:
                parts[row].append(judge.measure(block, scores[row], names))
            bar.update(len(block[0]))
    return {row: {name: np.concatenate([p[name] for p in parts[row]]) for name in names} for row in rows}
