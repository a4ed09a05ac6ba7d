"""Token geometry of models: how alike their tokens are, and how far relevant pages stand out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from ml_collections import ConfigDict
from tqdm.auto import tqdm

import smart_jax
from eval.benchmarks import Benchmark
from eval.environment import environment
from eval.ranking import query_metrics
from eval.states import encode_sides
from eval.studies.geometry_report import METHODS, STATISTICS, Figures, GeometryReport, write
from eval.studies.prompt_words import prompt_words
from eval.studies.scores import late_scores, pooled_scores
from smart_jax.retrieval import Retriever
from smart_jax.retrieval.reductions import keep_tokens


def mean_cosine(vectors: Float[np.ndarray, "T D"], offsets: Int[np.ndarray, " bounds"]) -> float:
    """Returns the mean inner product of every two vectors of different items, exactly.

    Args:
      vectors: L2-normalised.
      offsets: of N items, N + 1 bounds; item i owns vectors[offsets[i]:offsets[i + 1]], at least one.

    Raises:
      ValueError: there are no two items.

    Example:
      >>> vectors = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
      >>> mean_cosine(vectors, np.array([0, 2, 3]))
      0.5
    """
    if len(offsets) < 3:
        raise ValueError(f"there must be at least two items to compare, not {len(offsets) - 1}")
    lengths = np.diff(offsets).astype(np.float64)
    sums = np.add.reduceat(vectors.astype(np.float64), offsets[:-1], axis=0)
    total = sums.sum(axis=0)
    pairs = lengths.sum() ** 2 - (lengths**2).sum()
    return float((total @ total - (sums * sums).sum()) / pairs)


def gaps(benchmark: Benchmark, scores: Float[np.ndarray, "Nq Nd"]) -> tuple[float, float]:
    """Returns the mean score of queries with their relevant pages minus that with the others, plain and scaled.

    The second figure is in standard deviations of a query's scores with the other pages.

    Args:
      benchmark: whose judgements count; every query has pages that are not relevant.
      scores: of all its queries and pages.
    """
    position = {document: i for i, document in enumerate(benchmark.corpus_ids)}
    plain, scaled = [], []
    for of_query, query in zip(scores.astype(np.float64), benchmark.query_ids, strict=True):
        relevant = np.zeros(len(of_query), bool)
        relevant[[position[d] for d, grade in benchmark.qrels[query].items() if grade > 0]] = True
        gap = of_query[relevant].mean() - of_query[~relevant].mean()
        plain.append(gap)
        scaled.append(gap / max(of_query[~relevant].std(), np.finfo(np.float32).tiny))
    return float(np.mean(plain)), float(np.mean(scaled))


def model_figures(encoder: Retriever, benchmark: Benchmark, metric: str, batch_size: int | None = None) -> Figures:
    """Returns the metric by each of `METHODS`, and the `STATISTICS` of the tokens."""
    queries, corpus = encode_sides(encoder, benchmark, batch_size=batch_size, dtype=np.float32)
    q, d = queries.embeddings(), corpus.embeddings()
    own_q, own_d = keep_tokens(q, ~prompt_words(queries)), keep_tokens(d, ~prompt_words(corpus))
    pooled, late, own = pooled_scores(q, d), late_scores(q, d), late_scores(own_q, own_d)
    figures = {
        method: float(query_metrics(benchmark, scores, [metric])[metric].mean())
        for method, scores in zip(METHODS, (pooled, late, own, pooled + late), strict=True)
    }
    cosines = mean_cosine(own_d.tokens, own_d.offsets), mean_cosine(d.pooled, np.arange(len(d) + 1))
    return figures | dict(zip(STATISTICS, (*cosines, *gaps(benchmark, own)), strict=True))


def run_geometry(config: ConfigDict, benchmarks: Sequence[Benchmark]) -> tuple[GeometryReport, dict[str, Path]]:
    """Computes the figures of every model of every run, and writes the report to config.output.

    Returns:
      The report, and the paths that were written, by file name.

    Raises:
      ValueError: no runs, no models or no benchmarks.
      FileNotFoundError: a run lacks one of the models.

    Example:
      >>> run_geometry(ConfigDict({"runs": "", "models": ("new",)}), benchmarks=[])
      Traceback (most recent call last):
      ValueError: there must be at least one run (--config.runs=FOLDER,FOLDER), one model and one benchmark
    """
    runs = [Path(run) for run in config.runs.split(",") if run]
    models = list(config.models)
    if not (runs and models and benchmarks):
        raise ValueError("there must be at least one run (--config.runs=FOLDER,FOLDER), one model and one benchmark")
    if missing := [str(run / model) for run in runs for model in models if not (run / model / "config.json").is_file()]:
        raise FileNotFoundError(f"no model in {', '.join(missing)}: train it, or leave it out of config.models")
    start = time.perf_counter()
    figures: dict[str, list[Figures]] = {model: [] for model in models}
    for run, model in tqdm([(run, model) for run in runs for model in models], desc="models", unit="model"):
        encoder = smart_jax.load(run / model)
        parts = [model_figures(encoder, benchmark, config.metric, config.batch_size) for benchmark in benchmarks]
        figures[model].append({name: float(np.mean([part[name] for part in parts])) for name in parts[0]})
    report = GeometryReport(
        metric=config.metric,
        benchmarks=[benchmark.name for benchmark in benchmarks],
        models=figures,
        config=config.to_dict(),
        environment=environment(),
        seconds=time.perf_counter() - start,
    )
    return report, write(report, Path(config.output))
