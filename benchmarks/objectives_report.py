"""The report of `benchmarks.objectives`: tables, the time to the multi-vector model's quality, and a plot."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from eval.environment import environment
from eval.methods import Result
from eval.ranking import Estimate
from eval.reports import save_figure
from eval.reports import summarise as summarise_results

SCORES = ("pooled", "late", "hybrid")
METRICS = ("ndcg@5", "hit@1")
RUNS = ("lora pooled", "lora late", "lora hybrid", "adapter late")
START = "untrained"
MULTI_VECTOR = ("lora late", "late")  # the run and the score whose last figure is to be reached
CLAIM = ("lora hybrid", "hybrid")  # the run and the score that the paper says to reach it in at least CLAIMED less time
CLAIMED = 0.2
OTHERS = (
    ("lora hybrid", "late"),
    ("lora late", "hybrid"),
    ("lora pooled", "hybrid"),
    ("adapter late", "late"),
    ("adapter late", "hybrid"),
)
DIFFERENCES = (
    (CLAIM, MULTI_VECTOR),
    (CLAIM, ("lora late", "hybrid")),
    (CLAIM, ("lora pooled", "hybrid")),
    (CLAIM, ("adapter late", "hybrid")),
    (("lora late", "hybrid"), MULTI_VECTOR),
)
Curve = Sequence[Mapping[str, float]]  # evaluations of one run: step, cpu_seconds, wall_seconds and "SCORE/METRIC"
Run = Mapping[str, Any]  # "curve", and "results" of each benchmark


def summarise(
    settings: Mapping[str, Any], start: Run, updates: Mapping[str, Any], runs: Mapping[str, Sequence[Run]]
) -> dict[str, Any]:
    """Returns all figures, ready for JSON.

    Args:
      settings: `benchmarks.objectives.Settings`, and "seeds".
      start: the untrained model.
      updates: times of single updates in milliseconds, by run: [{"cpu_seconds", "wall_seconds"}].
      runs: all or some of RUNS, one for each seed in the settings' order.
    """
    groups = {START: [start], **runs}
    differences = [pair for pair in DIFFERENCES if all(run in runs for run, _ in pair)]
    differences += [((run, score), (START, score)) for run in runs for score in SCORES]
    keys = [(_key(*row), _key(*minus)) for row, minus in differences]
    report = summarise_results(_averaged(groups), differences=keys)
    everything = report.average or report.benchmarks[0]
    table = {
        name: {
            score: {
                metric: asdict(everything.estimates[_key(name, score)][metric])
                | {"seeds": [_last(run, score, metric) for run in made]}
                for metric in METRICS
            }
            for score in SCORES
        }
        for name, made in groups.items()
    }
    return {
        "settings": dict(settings),
        "benchmarks": [{"name": x["benchmark"], "queries": len(x["query_ids"])} for x in start["results"]],
        "documents": start["results"][0]["documents"],
        "level": report.level,
        "table": table,
        "differences": [
            {"row": row, "minus": minus, "metrics": {metric: asdict(gain) for metric, gain in gains.items()}}
            for (row, minus), gains in zip(differences, everything.differences.values(), strict=True)
        ],
        "times": {name: _times(made, updates[name]) for name, made in runs.items()},
        "reaching": [reaching(start, runs, run, score) for run, score in (CLAIM, MULTI_VECTOR, *OTHERS) if run in runs],
        "curves": {name: [run["curve"] for run in made] for name, made in groups.items()},
        "environment": environment() | {"cores": os.cpu_count()},
    }


def _key(run: str, score: str) -> str:
    """Returns what stands for a run's score as the name of a method."""
    return f"{score} of {run}"


def _last(run: Run, score: str, metric: str) -> float:
    """Returns the mean over the benchmarks of a run's last figures."""
    return mean(float(np.mean(result["values"][score][metric])) for result in run["results"])


def _averaged(groups: Mapping[str, Sequence[Run]]) -> list[Result]:
    """Returns a result for each benchmark, whose methods are the runs' scores, averaged over seeds query by query."""
    first = next(iter(groups.values()))[0]["results"]
    made = []
    for i, benchmark in enumerate(first):
        values = {
            _key(name, score): {
                m: np.mean([run["results"][i]["values"][score][m] for run in runs], axis=0) for m in METRICS
            }
            for name, runs in groups.items()
            for score in SCORES
        }
        made.append(Result(benchmark["benchmark"], benchmark["query_ids"], benchmark["documents"], False, values, {}))
    return made


def _times(runs: Sequence[Run], updates: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Returns seconds of whole runs without evaluations, and milliseconds of an update: median, least and most."""
    units = ("cpu_seconds", "wall_seconds")
    whole = {unit: [run["curve"][-1][unit] for run in runs] for unit in units}
    found = {unit: [update[unit] for update in updates] for unit in units}
    return whole | {
        f"update_{unit.removesuffix('_seconds')}_ms": {"median": median(x), "min": min(x), "max": max(x)}
        for unit, x in found.items()
    }


def first_reaching(curve: Curve, name: str, target: float) -> Mapping[str, float] | None:
    """Returns the first evaluation whose figure is at least the target; None = there is none."""
    return next((point for point in curve if point[name] >= target), None)


def reaching(start: Run, runs: Mapping[str, Sequence[Run]], run: str, score: str) -> dict[str, Any]:
    """Returns when a run's score first reaches the last figure of the multi-vector run of the same seed.

    The untrained model counts as the evaluation at step 0, except for an adapter, which starts from other tokens.

    Returns:
      {"run", "score", "seeds": [{"target", "step", "cpu_seconds", "saved": {"steps", "cpu"}, "saved_on_first": {...}},
      or {"target"} where it is never reached]}. saved: share of the whole multi-vector run that is not needed;
      saved_on_first: of that run until it first reaches its own last figure.
    """
    name, seeds = f"{{}}/{METRICS[0]}", []
    for own, multi_vector in zip(runs[run], runs[MULTI_VECTOR[0]], strict=True):
        whole = multi_vector["curve"][-1]
        target = whole[name.format(MULTI_VECTOR[1])]
        itself = first_reaching(multi_vector["curve"], name.format(MULTI_VECTOR[1]), target)
        curve = own["curve"] if run.startswith("adapter") else [*start["curve"], *own["curve"]]
        found = first_reaching(curve, name.format(score), target)
        entry: dict[str, Any] = {"target": target}
        if found is not None:
            entry |= {"step": found["step"], "cpu_seconds": found["cpu_seconds"]}
            entry |= {"saved": _saved(found, whole), "saved_on_first": _saved(found, itself)}
        seeds.append(entry)
    return {"run": run, "score": score, "seeds": seeds}


def _saved(point: Mapping[str, float], other: Mapping[str, float] | None) -> dict[str, float]:
    assert other is not None  # a run reaches its last figure at its last step at the latest
    return {"steps": 1 - point["step"] / other["step"], "cpu": 1 - point["cpu_seconds"] / other["cpu_seconds"]}


def verdict(summary: Mapping[str, Any]) -> str:
    """Returns what the figures say of the claim, in one to three sentences."""
    found = summary["reaching"][0]["seeds"]
    reached = [seed for seed in found if "step" in seed]
    steps, total = summary["settings"]["steps"], len(found)
    text = (
        f"The hybrid score of {CLAIM[0]} reaches the last late score of {MULTI_VECTOR[0]}, the multi-vector model, in "
        f"{len(reached)} of {total} runs"
    )
    if not reached:
        return f"{text}: nothing is saved."
    at, saved = [seed["step"] for seed in reached], [seed["saved"]["cpu"] for seed in reached]
    text += f", after {_spread(at, '{:.0f}')} of {steps} steps: {_share(saved)} of its CPU time is saved."
    claim = f" The {100 * CLAIMED:.0f} % of the paper are"
    if len(reached) == total and min(saved) >= CLAIMED:
        text += f"{claim} found in every run."
    elif len(reached) == total and mean(saved) >= CLAIMED:
        text += f"{claim} found on average, not in every run."
    else:
        text += f"{claim} not found."
    if at_once := at.count(0):
        text += f" In {at_once} of them the untrained model's hybrid score is there already: a gain of the score alone."
    return text


def _spread(values: Sequence[float], form: str) -> str:
    return f"{form} [{form}, {form}]".format(mean(values), min(values), max(values))


def _share(values: Sequence[float]) -> str:
    return _spread([100 * x for x in values], "{:.0f}") + " %"


def markdown(summary: Mapping[str, Any]) -> str:
    """Returns tables of scores, differences, times, and of the time to the multi-vector model's quality."""
    settings = summary["settings"]
    parts = [verdict(summary)]
    for metric in METRICS:
        lines = [_line([metric, *SCORES]), "|---" * (1 + len(SCORES)) + "|"]
        for name, scores in summary["table"].items():
            lines.append(_line([name, *(_cell(scores[score][metric]) for score in SCORES)]))
        parts.append("\n".join(lines))
    lines = [_line(["difference", *METRICS]), "|---" * (1 + len(METRICS)) + "|"]
    for pair in summary["differences"]:
        (row, score), (minus, other) = pair["row"], pair["minus"]
        cells = [Estimate(**pair["metrics"][metric]).signed() for metric in METRICS]
        lines.append(_line([f"{score} of {row} − {other} of {minus}", *cells]))
    parts.append("\n".join(lines))
    lines = [_line(["", "CPU s a run", "wall s a run", "CPU ms an update", "wall ms an update"]), "|---" * 5 + "|"]
    for name, times in summary["times"].items():
        cells = [_spread(times[unit], "{:,.0f}") for unit in ("cpu_seconds", "wall_seconds")]
        updates = [times[f"update_{unit}_ms"] for unit in ("cpu", "wall")]
        lines.append(
            _line([name, *cells, *(f"{x['median']:,.0f} [{x['min']:,.0f}, {x['max']:,.0f}]" for x in updates)])
        )
    parts.append("\n".join(lines))
    parts.append(_reaching_table(summary["reaching"]))
    queries = " + ".join(str(benchmark["queries"]) for benchmark in summary["benchmarks"])
    parts.append(
        f"{settings['steps']} steps of {settings['batch_size']} queries; evaluated every {settings['every']} steps on "
        f"{summary['documents']} held-out pages with {queries} queries. Figures: mean over {len(settings['seeds'])} "
        f"seeds, [{100 * summary['level']:g} % bootstrap interval over queries], least–most of the seeds; differences "
        "are paired, * = the interval excludes 0. Times: mean [least, most] of the seeds, or median of single updates; "
        "evaluations and compilation left out. Reached: mean [least, most] of the seeds, at the first "
        "evaluation that is there; saved: of the whole multi-vector run, and of that run until it first gets there."
    )
    return "\n\n".join(parts) + "\n"


def _reaching_table(rows: Sequence[Mapping[str, Any]]) -> str:
    heads = ("steps", "CPU s", "steps saved", "CPU time saved", "steps saved, on first", "CPU time saved, on first")
    lines = [_line(["last late of lora late, reached by", *heads]), "|---" * (1 + len(heads)) + "|"]
    for row in rows:
        seeds = [seed for seed in row["seeds"] if "step" in seed]
        name = f"{row['score']} of {row['run']}"
        if len(seeds) < len(row["seeds"]):
            lines.append(_line([name, f"in {len(seeds)} of {len(row['seeds'])} runs", *[""] * (len(heads) - 1)]))
            continue
        cells = [_spread([seed[x] for seed in seeds], "{:,.0f}") for x in ("step", "cpu_seconds")]
        cells += [
            _share([seed[on][unit] for seed in seeds])
            for on in ("saved", "saved_on_first")
            for unit in ("steps", "cpu")
        ]
        lines.append(_line([name, *cells]))
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(figure: Mapping[str, Any]) -> str:
    seeds = figure["seeds"]
    spread = f", {min(seeds):.3f}–{max(seeds):.3f}" if len(seeds) > 1 else ""
    return f"{figure['mean']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]{spread}"


def write(summary: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Writes objectives.json, objectives.md and objectives.png to the folder, and returns their paths."""
    paths = {name: folder / name for name in ("objectives.json", "objectives.md", "objectives.png")}
    paths["objectives.json"].write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    paths["objectives.md"].write_text(markdown(summary), encoding="utf-8")
    plot(summary, paths["objectives.png"])
    return {name: str(path) for name, path in paths.items()}


def plot(summary: Mapping[str, Any], path: Path) -> None:
    """Plots each score over the CPU time of training: means of the seeds as lines, their range as bands."""
    figure = Figure(figsize=(10.4, 3.6), layout="constrained")
    start, metric = summary["curves"][START][0][0], METRICS[0]
    last = mean(summary["table"][MULTI_VECTOR[0]][MULTI_VECTOR[1]][metric]["seeds"])
    for axis, score in zip(figure.subplots(1, len(SCORES), sharey=True), SCORES, strict=True):
        for name, curves in summary["curves"].items():
            if name == START:
                continue
            whole = [curve if name.startswith("adapter") else [start, *curve] for curve in curves]
            seconds = np.mean([[point["cpu_seconds"] for point in curve] for curve in whole], axis=0)
            values = np.array([[point[f"{score}/{metric}"] for point in curve] for curve in whole])
            (line,) = axis.plot(seconds, values.mean(axis=0), marker=".", ms=4, lw=1.2, label=name)
            axis.fill_between(seconds, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.2, lw=0)
        axis.axhline(last, color="black", lw=0.8, ls=":", label=f"last {MULTI_VECTOR[1]} of {MULTI_VECTOR[0]}")
        axis.set_title(f"{score} score", fontsize=10)
        axis.set_xlabel("CPU seconds of training")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        if score == SCORES[0]:
            axis.set_ylabel(metric)
            axis.legend(fontsize=7, frameon=False)
    save_figure(figure, path)
