"""Results as files of the MMEB leaderboard, for each row of a report.

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

from eval.benchmarks.mmeb_v2.table import MODALITIES, TASKS
from eval.evaluate import ADAPTER_ROWS, MODEL_ROWS

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


def write(summary: Mapping[str, Any], folder: str | Path) -> dict[str, Path]:
    """Writes FOLDER/leaderboard/ROW with the files of each of the model's rows.

    Args:
      summary: of `eval.reports.report.summarise`; with "config" added, its model is the one that is named. Of the
        leaderboard's metrics those are written that were measured (`METRICS` = all).
      folder: of the report.

    Returns:
      the path of MODEL.json by "leaderboard ROW".
    """
    entries = {entry["name"]: entry for entry in summary["benchmarks"]}
    rows = [row for row in (*MODEL_ROWS, *ADAPTER_ROWS) if any(row in entry["rows"] for entry in entries.values())]
    paths = {}
    for row in rows:
        here = Path(folder) / "leaderboard" / row
        metrics: dict[str, dict[str, Any]] = {modality: {} for modality in MODALITIES}
        for task in TASKS:
            entry = entries.get(task.name)
            if entry is None or row not in entry["rows"]:
                metrics[task.modality][task.name] = MISSING
                continue
            scores = metrics[task.modality][task.name] = task_scores(entry, row)
            _write(here / task.modality / f"{task.name}_score.json", scores)
        metadata = _metadata(str(summary.get("config", {}).get("model") or "model"), row)
        paths[f"leaderboard {row}"] = here / f"{metadata['model_name']}.json"
        _write(paths[f"leaderboard {row}"], {"metadata": metadata, "metrics": metrics})
    return paths


def task_scores(entry: Mapping[str, Any], row: str) -> dict[str, float | int]:
    """One task's metrics, as far as they were measured, and its number of queries.

    Average precision is divided by the number of relevant documents that fit above the cut, as on the leaderboard, not
    by that of all, as in `smart_jax.retrieval.metrics`.

    Args:
      entry: of a summary's "benchmarks".
      row: of the model.
    """
    figures, values = entry["rows"][row], entry["values"][row]
    scores: dict[str, float | int] = {}
    for name, cut in itertools.product(ORDER, CUTS):
        if (own := f"{SAME.get(name)}@{cut}") in figures:
            scores[f"{name}@{cut}"] = figures[own]["mean"]
        parts = [f"{part}@{cut}" for part in MADE.get(name, ())]
        if parts and all(part in values for part in parts):
            arrays = (np.asarray(values[part], np.float64) for part in parts)
            scores[f"{name}@{cut}"] = _f1(*arrays) if name == "f1" else _map(*arrays, cut=cut)
    return scores | {"num_pred": entry["queries"], "num_data": entry["queries"]}


def _f1(precision: np.ndarray, recall: np.ndarray) -> float:
    total = precision + recall
    return float(np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0).mean())


def _map(precision: np.ndarray, recall: np.ndarray, average: np.ndarray, *, cut: int) -> float:
    # A query with none above the cut has 0 either way.
    relevant = np.divide(cut * precision, recall, out=np.ones_like(recall), where=recall > 0).round()
    return float((average * relevant / np.minimum(relevant, cut)).mean())


def _metadata(model: str, row: str) -> dict[str, Any]:
    name = Path(model).name
    return {
        "model_name": name if row == "pooled" else f"{name}-{row}",
        **dict.fromkeys(OPEN),
        "data_source": "Self-Reported",
        "url": f"https://huggingface.co/{model}" if model.count("/") == 1 and not Path(model).exists() else None,
        "report_generated_date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _write(path: Path, value: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=4) + "\n", encoding="utf-8")
