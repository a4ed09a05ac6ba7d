"""Results as JSON and as Markdown tables, with bootstrap intervals over queries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.benchmarks.benchmark_groups import Group, check_groups
from eval.evaluate import Result
from eval.ranking.bootstrap import interval, resampled_means
from eval.reports import plots

# What SMART (arXiv:2605.24938) claims: late interaction adds to the pooled score, and the adapter to late interaction.
DIFFERENCES = (
    ("hybrid", "pooled"),
    ("adapter-late", "late"),
    ("adapter-hybrid", "hybrid"),
    ("adapter-hybrid", "pooled"),
)
AVERAGE = "average"
DECIMALS = 7  # of the values per query
Estimate = dict[str, float]  # mean, low, high


def summarise(
    results: Sequence[Result],
    *,
    groups: Sequence[Group] = (),
    differences: Sequence[tuple[str, str]] = DIFFERENCES,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Means with intervals, ready for JSON.

    Args:
      results: one per benchmark, all of the same metrics.
      groups: of benchmarks; each is averaged by itself, and there is no average of all.
      differences: pairs (row, minus row), bootstrapped in pairs of the same queries; those whose rows are missing are
        left out.
      samples, seed, level: of the bootstrap.

    Returns:
      {"level", "samples", "metrics", "benchmarks": [{"name", "queries", "documents", "ranking", "bytes_per_document":
      {row: mean}, "rows": {row: {metric: {"mean", "low", "high"}}}, "differences": [{"row", "minus", "metrics":
      {metric: ...}}], "query_ids", "values": {row: {metric: one per query}}}, ...]}. Several benchmarks are followed by
      their unweighted average, over the rows that all of them have and without values; its intervals resample the
      queries within each benchmark.
      With groups there is "groups": [{"name", "benchmarks": {name: primary metric}, "missing": [those not run], "rows":
      {row: {"mean", "low", "high"}}, "differences": [{"row", "minus", "mean", "low", "high"}], "published": [{"model",
      "source", "date", "figures": {name: figure}, "average"}]}, ...]: averages over the benchmarks that were run, by
      their primary metrics. A published average is over the same benchmarks, or None where that can not be told.

    Raises:
      ValueError: no results, results of different metrics, or a group whose primary metric is not among them.
    """
    if not results:
        raise ValueError("no results to report: run at least one benchmark")
    metrics = _metrics(results[0])
    for result in results:
        if _metrics(result) != metrics:
            raise ValueError(f"benchmark {result.benchmark} has metrics {_metrics(result)}, the first has {metrics}")
    check_groups(groups, [result.benchmark for result in results], metrics)
    draws = [_draws(result, samples, seed + i) for i, result in enumerate(results)]
    entries = []
    for result, drawn in zip(results, draws, strict=True):
        means = {row: {m: float(v.mean()) for m, v in values.items()} for row, values in result.values.items()}
        facts = {
            "name": result.benchmark,
            "queries": len(result.query_ids),
            "documents": result.documents,
            "ranking": "local" if result.local else "global",
            "bytes_per_document": {row: round(size, 1) for row, size in result.bytes_per_document.items()},
        }
        entries.append(facts | _figures(means, drawn, differences, level) | _per_query(result))
    summary = {"level": level, "samples": samples, "metrics": metrics, "benchmarks": entries}
    if groups:
        return summary | {"groups": [_group(group, entries, draws, differences, level) for group in groups]}
    if len(results) > 1:
        entries.append(_average(entries, draws, differences, level))
    return summary


def _metrics(result: Result) -> list[str]:
    return list(next(iter(result.values.values())))


def _per_query(result: Result) -> dict[str, Any]:
    rounded = {
        row: {metric: np.round(x, DECIMALS).tolist() for metric, x in values.items()}
        for row, values in result.values.items()
    }
    return {"query_ids": list(result.query_ids), "values": rounded}


def _draws(result: Result, samples: int, seed: int) -> dict[str, dict[str, np.ndarray]]:
    """Resampled means [S] by row and metric; one set of draws for all of them, so that they pair."""
    keys = [(row, metric) for row, values in result.values.items() for metric in values]
    means = resampled_means(np.stack([result.values[r][m] for r, m in keys]), samples=samples, seed=seed)
    drawn: dict[str, dict[str, np.ndarray]] = {}
    for (row, metric), values in zip(keys, means, strict=True):
        drawn.setdefault(row, {})[metric] = values
    return drawn


def _figures(
    means: Mapping[str, Mapping[str, float]],
    draws: Mapping[str, Mapping[str, np.ndarray]],
    differences: Sequence[tuple[str, str]],
    level: float,
) -> dict[str, Any]:
    rows = {row: {m: _estimate(means[row][m], draws[row][m], level) for m in means[row]} for row in means}
    pairs = []
    for row, minus in differences:
        if row in means and minus in means:
            found = {
                m: _estimate(means[row][m] - means[minus][m], draws[row][m] - draws[minus][m], level) for m in rows[row]
            }
            pairs.append({"row": row, "minus": minus, "metrics": found})
    return {"rows": rows, "differences": pairs}


def _estimate(mean: float, draws: np.ndarray, level: float) -> Estimate:
    low, high = interval(draws, level)
    return {"mean": mean, "low": low, "high": high}


def _average(
    entries: Sequence[Mapping[str, Any]],
    draws: Sequence[Mapping[str, Mapping[str, np.ndarray]]],
    differences: Sequence[tuple[str, str]],
    level: float,
) -> dict[str, Any]:
    shared = [row for row in entries[0]["rows"] if all(row in entry["rows"] for entry in entries)]
    metrics = list(entries[0]["rows"][shared[0]]) if shared else []
    means = {r: {m: float(np.mean([e["rows"][r][m]["mean"] for e in entries])) for m in metrics} for r in shared}
    drawn = {r: {m: np.mean([d[r][m] for d in draws], axis=0) for m in metrics} for r in shared}
    facts = {
        "name": AVERAGE,
        "queries": sum(entry["queries"] for entry in entries),
        "documents": sum(entry["documents"] for entry in entries),
        "ranking": None,
        "bytes_per_document": {},
    }
    return facts | _figures(means, drawn, differences, level)


def _group(
    group: Group,
    entries: Sequence[Mapping[str, Any]],
    draws: Sequence[Mapping[str, Mapping[str, np.ndarray]]],
    differences: Sequence[tuple[str, str]],
    level: float,
) -> dict[str, Any]:
    found = {entry["name"]: (entry["rows"], drawn) for entry, drawn in zip(entries, draws, strict=True)}
    run = {name: metric for name, metric in group.metrics.items() if name in found}
    rows = [dict.fromkeys(found[name][0]) for name in run]
    shared = [row for row in rows[0] if all(row in others for others in rows)] if rows else []
    parts = [(*found[name], metric) for name, metric in run.items()]
    means = {r: {"": float(np.mean([figures[r][m]["mean"] for figures, _, m in parts]))} for r in shared}
    drawn = {r: {"": np.mean([d[r][m] for _, d, m in parts], axis=0)} for r in shared}
    averaged = _figures(means, drawn, differences, level)
    return {
        "name": group.name,
        "benchmarks": run,
        "missing": [name for name in group.metrics if name not in run],
        "rows": {row: figures[""] for row, figures in averaged["rows"].items()},
        "differences": [
            {"row": pair["row"], "minus": pair["minus"], **pair["metrics"][""]} for pair in averaged["differences"]
        ],
        "published": _published(group, run),
    }


def _published(group: Group, run: Mapping[str, str]) -> list[dict[str, Any]]:
    """Of the benchmarks that were run; entries without any figure of them are left out."""
    found = []
    for entry in group.published:
        figures = {name: x for name, m in run.items() if (x := entry.figures.get(m, {}).get(name)) is not None}
        average = float(np.mean(list(figures.values()))) if run and len(figures) == len(run) else None
        if average is None and len(run) == len(group.metrics):
            metrics = ", ".join(sorted(set(group.metrics.values())))
            average = entry.averages.get(metrics, {}).get(group.name)
        if figures or average is not None:
            about = {"model": entry.model, "source": entry.source, "date": str(entry.date)}
            found.append({**about, "figures": figures, "average": average})
    return found


def markdown(summary: Mapping[str, Any]) -> str:
    """Tables as text, figures as "mean [low, high]", differences with a star where 0 is outside.

    One of each group: benchmarks by rows, in the primary metric, and what is published; then one of each benchmark:
    rows by metrics. Benchmarks that failed, under "failed" in the summary, are named last.
    """
    level = f"{100 * summary['level']:g} %"
    benchmarks = {entry["name"]: entry for entry in summary["benchmarks"]}
    parts = [_group_table(group, benchmarks) for group in summary.get("groups", [])]
    for entry in summary["benchmarks"]:
        metrics = summary["metrics"]
        head = f"{entry['queries']} queries, {entry['documents']} documents"
        head += f", {entry['ranking']} ranking" if entry["ranking"] else ""
        lines = [f"### {entry['name']} ({head})", "", "| row | " + " | ".join(metrics) + " |"]
        lines.append("|---|" + "---|" * len(metrics))
        for row, figures in entry["rows"].items():
            lines.append(f"| {row} | " + " | ".join(cell(figures[m]) for m in metrics) + " |")
        for pair in entry["differences"]:
            cells = " | ".join(cell(pair["metrics"][m], signed=True) for m in metrics)
            lines.append(f"| {pair['row']} − {pair['minus']} | {cells} |")
        parts.append("\n".join(lines))
    if failed := summary.get("failed"):
        lines = [f"- {entry['name']}: {entry['error']}" for entry in failed]
        parts.append("\n".join([f"### {len(failed)} benchmarks failed", "", *lines]))
    parts.append(f"Brackets: {level} bootstrap interval over queries (paired for differences); * = it excludes 0.")
    return "\n\n".join(parts) + "\n"


def _group_table(group: Mapping[str, Any], benchmarks: Mapping[str, Mapping[str, Any]]) -> str:
    run, missing, published = group["benchmarks"], group["missing"], group["published"]
    rows = list(dict.fromkeys(row for name in run for row in benchmarks[name]["rows"]))
    lines = [f"### {group['name']}: {len(run)} of {len(run) + len(missing)} benchmarks", ""]
    if run:
        head = ["benchmark", "metric", *rows, *(f"{entry['model']}, published" for entry in published)]
        lines += [_line(head), "|---" * len(head) + "|"]
        for name, metric in run.items():
            own = benchmarks[name]["rows"]
            cells = [cell(own[row][metric]) if row in own else "" for row in rows]
            lines.append(_line([name, metric, *cells, *(_share(entry["figures"].get(name)) for entry in published)]))
        cells = [cell(group["rows"][row]) if row in group["rows"] else "" for row in rows]
        title = f"average of {len(run)}"
        lines.append(_line([title, "", *cells, *(_share(entry["average"]) for entry in published)]))
        lines.append("")
    for pair in group["differences"]:
        lines.append(f"- {pair['row']} − {pair['minus']}, average: {cell(pair, signed=True)}")
    if missing:
        lines.append(f"- missing: {', '.join(missing)}")
    for entry in published:
        lines.append(f"- {entry['model']}: {entry['source']} ({entry['date']})")
    return "\n".join(lines).rstrip()


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _share(figure: float | None) -> str:
    return "" if figure is None else f"{figure:.3f}"


def cell(figure: Estimate, *, signed: bool = False) -> str:
    """The mean and in brackets its interval; signed, with a star where the interval excludes 0."""
    sign = "+" if signed else ""
    text = f"{figure['mean']:{sign}.3f} [{figure['low']:{sign}.3f}, {figure['high']:{sign}.3f}]"
    return text + " *" if signed and excludes_zero(figure) else text


def excludes_zero(figure: Estimate) -> bool:
    """Whether the interval lies on one side of 0."""
    return figure["low"] > 0 or figure["high"] < 0


def write(summary: Mapping[str, Any], folder: str | Path) -> dict[str, Path]:
    """results.json, results.md and the plots of `eval.reports.plots` in the folder (made if missing, overwritten if
    there).

    Returns:
      Their paths, by what they are.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    paths = {kind: folder / f"results.{kind}" for kind in ("json", "md")}
    paths["json"].write_text(_json(summary) + "\n", encoding="utf-8")
    paths["md"].write_text(markdown(summary), encoding="utf-8")
    return paths | plots.write(summary, folder)


def _json(value: Any, indent: str = "") -> str:
    """As `json.dumps` with an indent of 2, except that a list of numbers or texts stays on one line."""
    deeper = indent + "  "
    if isinstance(value, Mapping) and value:
        parts = [f"{json.dumps(key)}: {_json(item, deeper)}" for key, item in value.items()]
        return "{\n" + ",\n".join(deeper + part for part in parts) + f"\n{indent}}}"
    if isinstance(value, list | tuple) and any(isinstance(item, Mapping | list | tuple) for item in value):
        return "[\n" + ",\n".join(deeper + _json(item, deeper) for item in value) + f"\n{indent}]"
    return json.dumps(value)
