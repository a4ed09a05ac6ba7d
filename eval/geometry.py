"""Token geometry along training: python -m eval.geometry --config configs/geometry.py --config.runs=a,b,c

Every run is a folder of model folders, of the same names in every run: the states of training, in order. Of each are
measured pooled, late and hybrid on the benchmarks, and "late, own words": without the words of the prompt on either
side, one of which has the pooled state where a model pools its last token. Then, of the tokens that are left (means
over the benchmarks):
  token cosine    mean cosine of two tokens of different pages: near 1 where all tokens point the same way
  pooled cosine   the same of the pages' pooled vectors
  gap             mean late score of queries with relevant pages minus that with other pages
  gap in sd       the same in standard deviations of a query's scores with other pages, mean over queries

A config file has `get_config(arg="") -> ConfigDict` and `get_benchmarks(config) -> list[Benchmark]`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from tqdm import tqdm

import smart_jax
from eval.benchmarks.benchmark import Benchmark
from eval.environment import environment
from eval.studies.named_reductions import prompt_words
from eval.study import measure
from smart_jax.cli import run_config_file
from smart_jax.retrieval import score
from smart_jax.retrieval.reductions import keep_tokens

ROWS = ("pooled", "late", "late, own words", "hybrid")
STATISTICS = ("token cosine", "pooled cosine", "gap", "gap in sd")
Figures = dict[str, float]


def mean_cosine(vectors: np.ndarray, offsets: np.ndarray) -> float:
    """Mean inner product of every two vectors of different items, exactly.

    Args:
      vectors: [T, D], L2-normalised.
      offsets: [N + 1]; item i owns vectors[offsets[i]:offsets[i + 1]], at least one.

    Raises:
      ValueError: there are no two items.
    """
    if len(offsets) < 3:
        raise ValueError(f"there must be at least two items to compare, not {len(offsets) - 1}")
    lengths = np.diff(offsets).astype(np.float64)
    sums = np.add.reduceat(vectors.astype(np.float64), offsets[:-1], axis=0)
    total = sums.sum(axis=0)
    pairs = lengths.sum() ** 2 - (lengths**2).sum()
    return float((total @ total - (sums * sums).sum()) / pairs)


def gaps(benchmark: Benchmark, scores: np.ndarray) -> tuple[float, float]:
    """Mean score of queries with their relevant pages minus that with the others; and in standard deviations of these.

    Args:
      benchmark: whose judgements count; every query has pages that are not relevant.
      scores: [Q, N].
    """
    position = {document: i for i, document in enumerate(benchmark.corpus_ids)}
    plain, scaled = [], []
    for row, query in zip(scores.astype(np.float64), benchmark.query_ids, strict=True):
        relevant = np.zeros(len(row), bool)
        relevant[[position[d] for d, grade in benchmark.qrels[query].items() if grade > 0]] = True
        gap = row[relevant].mean() - row[~relevant].mean()
        plain.append(gap)
        scaled.append(gap / max(row[~relevant].std(), np.finfo(np.float32).tiny))
    return float(np.mean(plain)), float(np.mean(scaled))


def measure_model(encoder: Any, benchmark: Benchmark, metric: str, batch_size: int | None = None) -> Figures:
    """The metric of every row, and the statistics."""
    how: dict[str, Any] = {"batch_size": batch_size, "dtype": np.float32}
    queries = encoder.states(benchmark.queries, instruction=benchmark.instruction, query=True, **how)
    corpus = encoder.states(benchmark.corpus, instruction=benchmark.document_instruction, **how)
    q, d = queries.embeddings(), corpus.embeddings()
    own_q, own_d = keep_tokens(q, ~prompt_words(queries)), keep_tokens(d, ~prompt_words(corpus))
    pooled, late, own = (
        score(q, d, late_weight=0.0),
        score(q, d, pooled_weight=0.0),
        score(own_q, own_d, pooled_weight=0.0),
    )
    scores = dict(zip(ROWS, (pooled, late, own, pooled + late), strict=True))
    figures = {row: float(measure(benchmark, scores[row], [metric])[metric].mean()) for row in ROWS}
    cosines = mean_cosine(own_d.tokens, own_d.offsets), mean_cosine(d.pooled, np.arange(len(d) + 1))
    return figures | dict(zip(STATISTICS, (*cosines, *gaps(benchmark, own)), strict=True))


def run_geometry(config: ConfigDict, benchmarks: Sequence[Benchmark]) -> dict[str, Any]:
    """Measures every model of every run, writes the report to config.output and returns it with "files" added.

    Raises:
      ValueError: no runs, no models or no benchmarks.
      FileNotFoundError: a run lacks one of the models.
    """
    runs = [Path(run) for run in config.runs.split(",") if run]
    models = list(config.models)
    if not (runs and models and benchmarks):
        raise ValueError("there must be at least one run (--config.runs=FOLDER,FOLDER), one model and one benchmark")
    if missing := [str(run / model) for run in runs for model in models if not (run / model / "config.json").is_file()]:
        raise FileNotFoundError(f"no model in {', '.join(missing)}: train it, or leave it out of config.models")
    start = time.perf_counter()
    measured: dict[str, list[Figures]] = {model: [] for model in models}
    for run, model in tqdm([(run, model) for run in runs for model in models], desc="models", unit="model"):
        encoder = smart_jax.load(run / model)
        found = [measure_model(encoder, b, config.metric, config.batch_size) for b in benchmarks]
        measured[model].append({name: float(np.mean([figures[name] for figures in found])) for name in found[0]})
    summary: dict[str, Any] = {
        "metric": config.metric,
        "runs": len(runs),
        "benchmarks": [benchmark.name for benchmark in benchmarks],
        "models": [{"name": model, "runs": measured[model]} for model in models],
        "config": config.to_dict(),
        "environment": environment(),
        "seconds": time.perf_counter() - start,
    }
    return summary | {"files": {name: str(path) for name, path in write(summary, Path(config.output)).items()}}


def markdown(summary: Mapping[str, Any]) -> str:
    """A table: models by figures, "mean [least, largest of the runs]"."""
    names = (*ROWS, *STATISTICS)
    lines = ["| | " + " | ".join(names) + " |", "|---" * (1 + len(names)) + "|"]
    for model in summary["models"]:
        cells = []
        for name in names:
            values = [figures[name] for figures in model["runs"]]
            cells.append(f"{np.mean(values):.3f} [{min(values):.3f}, {max(values):.3f}]")
        lines.append(f"| {model['name']} | " + " | ".join(cells) + " |")
    note = f"{', '.join(ROWS)}: {summary['metric']}, mean over {len(summary['benchmarks'])} benchmarks and "
    return "\n".join(lines) + f"\n\n{note}{summary['runs']} runs; brackets: the least and the largest of the runs.\n"


def write(summary: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """geometry.json, geometry.md and geometry.png in the folder (made if missing): their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / name for name in ("geometry.json", "geometry.md", "geometry.png")}
    paths["geometry.json"].write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    paths["geometry.md"].write_text(markdown(summary), encoding="utf-8")
    plot(summary, paths["geometry.png"])
    return paths


def plot(summary: Mapping[str, Any], path: Path) -> None:
    """The rows' metric and the statistics along training: means of the runs as lines, their range as bands."""
    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    groups = (ROWS, STATISTICS[:2], STATISTICS[3:])
    for axis, names, label in zip(axes, groups, (summary["metric"], "mean cosine", "standard deviations"), strict=True):
        for name in names:
            values = np.array([[figures[name] for figures in model["runs"]] for model in summary["models"]])
            at = np.arange(len(values))
            (line,) = axis.plot(at, values.mean(axis=1), marker=".", label=name)
            axis.fill_between(at, values.min(axis=1), values.max(axis=1), color=line.get_color(), alpha=0.2, lw=0)
        ticks = [model["name"].removesuffix("/model") for model in summary["models"]]
        axis.set_xticks(np.arange(len(ticks)), ticks, rotation=30, ha="right", fontsize=8)
        axis.set_ylabel(label)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """The command."""

    def run(config: ConfigDict, module: Any) -> None:
        summary = run_geometry(config, module.get_benchmarks(config))
        print(f"\n{markdown(summary)}")
        for path in summary["files"].values():
            print(path)

    run_config_file(run, needs="get_benchmarks", example="python -m eval.geometry --config configs/geometry.py")


if __name__ == "__main__":
    main()
