"""Results as files of the MMEB leaderboard, for each method of a report.

The format is that of github.com/TIGER-AI-Lab/VLM2Vec, experiments/report_score_v2.py: per task a file
{image,video,visdoc}/TASK_score.json of metrics, and MODEL.json with all of them, {"metadata": {...}, "metrics":
{modality: {task: {metric: ...}}}}, which is what the leaderboard (the hub's TIGER-Lab/MMEB-Leaderboard) keeps in its
folder `scores`; an example is docs/mmebv2_reproduction/leaderboard there. A task that was not run is "FILE_N/A".
"""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from eval.benchmarks.mmeb_v2 import MODALITIES, TASKS
from eval.methods import ADAPTER_METHODS, MODEL_METHODS
from eval.reports.report import BenchmarkReport, Report

TaskScores = dict[str, float | int]  # by the leaderboard's names

CUTS = (1, 5, 10)
SAME = {  # metrics of one definition: the leaderboard's name and ours
    **{"hit": "hit", "ndcg_linear": "ndcg", "ndcg_exponential": "ndcg_exp", "precision": "precision"},
    **{"recall": "recall", "mrr": "mrr"},
}
MADE = {"f1": ("precision", "recall"), "map": ("precision", "recall", "map")}  # and those that are made of ours
ORDER = ("hit", "ndcg_linear", "ndcg_exponential", "precision", "recall", "f1", "map", "mrr")
METRICS = tuple(f"{name}@{cut}" for name in (*SAME.values(), "map") for cut in CUTS)  # that a complete file needs
MISSING = "FILE_N/A"
# Of the model; what a run does not know is left open for whoever hands the file in.
OPEN = ("model_backbone", "model_size", "embedding_dimension", "max_length_tokens", "model_release_date")


def write(report: Report, folder: str | Path) -> dict[str, Path]:
    """Writes FOLDER/leaderboard/METHOD with the files of each of the model's methods.

    Args:
      report: the model of its config is the one that is named. Of the leaderboard's metrics those are written that were
        measured (`METRICS` = all).
      folder: of the report.

    Returns:
      The path of MODEL.json by "leaderboard METHOD".

    Example:
      >>> write(Report(0.95, 2000, ["hit@1"], benchmarks=[]), "results")  # nothing was evaluated
      {}
    """
    benchmarks = {benchmark.name: benchmark for benchmark in report.benchmarks}
    evaluated = {method for benchmark in report.benchmarks for method in benchmark.estimates}
    paths = {}
    for method in (name for name in (*MODEL_METHODS, *ADAPTER_METHODS) if name in evaluated):
        here = Path(folder) / "leaderboard" / method
        metrics: dict[str, dict[str, TaskScores | str]] = {modality: {} for modality in MODALITIES}
        for task in TASKS:
            benchmark = benchmarks.get(task.name)
            if benchmark is None or method not in benchmark.estimates:
                metrics[task.modality][task.name] = MISSING
                continue
            scores = metrics[task.modality][task.name] = task_scores(benchmark, method)
            _write(here / task.modality / f"{task.name}_score.json", scores)
        metadata = _metadata(str(report.config.get("model") or "model"), method)
        paths[f"leaderboard {method}"] = here / f"{metadata['model_name']}.json"
        _write(paths[f"leaderboard {method}"], {"metadata": metadata, "metrics": metrics})
    return paths


def task_scores(benchmark: BenchmarkReport, method: str) -> TaskScores:
    """Returns one task's metrics, as far as they were measured, and its number of queries.

    Average precision is divided by the number of relevant documents that fit above the cut-off, as on the leaderboard,
    not by that of all, as in `smart_jax.retrieval.metrics`.

    Example:
      >>> from eval.ranking import Estimate
      >>> hit = {"late": {"hit@1": Estimate(1.0, 1.0, 1.0)}}
      >>> report = BenchmarkReport("CIRR", 1, 9, "global", {}, hit, {}, ["q0"], {"late": {"hit@1": [1.0]}})
      >>> task_scores(report, "late")
      {'hit@1': 1.0, 'num_pred': 1, 'num_data': 1}
    """
    estimates, values = benchmark.estimates[method], benchmark.values[method]
    scores: dict[str, float | int] = {}
    for name, cut in itertools.product(ORDER, CUTS):
        if (ours := f"{SAME.get(name)}@{cut}") in estimates:
            scores[f"{name}@{cut}"] = estimates[ours].mean
        parts = [f"{part}@{cut}" for part in MADE.get(name, ())]
        if parts and all(part in values for part in parts):
            arrays = (np.asarray(values[part], np.float64) for part in parts)
            scores[f"{name}@{cut}"] = _f1(*arrays) if name == "f1" else _map(*arrays, cut=cut)
    return scores | {"num_pred": benchmark.queries, "num_data": benchmark.queries}


def _f1(precision: np.ndarray, recall: np.ndarray) -> float:
    total = precision + recall
    return float(np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0).mean())


def _map(precision: np.ndarray, recall: np.ndarray, average: np.ndarray, *, cut: int) -> float:
    # A query with none above the cut has 0 either way.
    relevant = np.divide(cut * precision, recall, out=np.ones_like(recall), where=recall > 0).round()
    return float((average * relevant / np.minimum(relevant, cut)).mean())


def _metadata(model: str, method: str) -> dict[str, Any]:
    name = Path(model).name
    return {
        "model_name": name if method == "pooled" else f"{name}-{method}",
        **dict.fromkeys(OPEN),
        "data_source": "Self-Reported",
        "url": f"https://huggingface.co/{model}" if model.count("/") == 1 and not Path(model).exists() else None,
        "report_generated_date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=4) + "\n", encoding="utf-8")
