"""Compares two runs of `python -m eval.run` query by query:

    python -m eval.compare results/a results/b
    python -m eval.compare a/results.json b/results.json --metrics ndcg@5,hit@1 --out difference.json

For every benchmark and row that both have, for the average over the benchmarks, and for every group of benchmarks in
its primary metrics: the difference b − a with a paired bootstrap interval over queries, * = it excludes 0. What one of
them lacks is listed below the tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.benchmarks.benchmark import some
from eval.ranking.bootstrap import interval, resampled_means
from eval.reports.report import AVERAGE, cell

Part = dict[tuple[str, str], tuple[float, float, np.ndarray]]  # by row and metric: mean of a, of b, draws of b - a [S]


def read(path: str | Path) -> dict[str, Any]:
    """The results.json of a run, given as its path or its folder's.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is not one, or is of a time when it had no values per query.
    """
    file = Path(path) / "results.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no file '{file}': give a folder that python -m eval.run wrote, or its results.json")
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"'{file}' is not valid JSON ({error})") from error
    if not isinstance(summary, dict) or not isinstance(summary.get("benchmarks"), list):
        raise ValueError(f"'{file}' has no benchmarks: it is not a results.json of python -m eval.run")
    for name, entry in _entries(summary).items():
        if "values" not in entry or "query_ids" not in entry:
            raise ValueError(
                f"'{file}': benchmark {name} has no values per query, which python -m eval.run did not write at "
                "first: run it again"
            )
        count = len(entry["query_ids"])
        for row, by_metric in entry["values"].items():
            for metric, values in by_metric.items():
                if len(values) != count:
                    raise ValueError(
                        f"'{file}': benchmark {name}, row {row}, {metric} has {len(values)} values for {count} "
                        "queries: run it again"
                    )
    return summary


def compare(
    a: Mapping[str, Any],
    b: Mapping[str, Any],
    *,
    metrics: Sequence[str] | None = None,
    samples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, Any]:
    """Differences b − a, ready for JSON.

    Args:
      a, b: as from `read`; a query is known by its id, the order does not matter.
      metrics: names; None = those that both have. Groups keep their own.
      samples, seed, level: of the bootstrap. The queries of each benchmark are resampled, the same for every row.

    Returns:
      {"level", "samples", "metrics", "benchmarks": [{"name", "queries", "rows": {row: {metric: {"a", "b", "mean",
      "low", "high"}}}, "rows_without_counterpart": {"a", "b"}}, ...], "without_counterpart": {"a", "b"},
      "metrics_without_counterpart": {"a", "b"}}; mean, low and high are of the difference. Several benchmarks are
      followed by their unweighted average, over the rows that all of them have on both sides.
      Where both have groups there is "groups": [{"name", "benchmarks": {name: primary metric}, "rows": {row: {"a", "b",
      "mean", "low", "high"}}, "without_counterpart": {"a", "b"}}, ...]: of the groups of the same name, unweighted
      averages over the benchmarks that both have run, in their primary metrics; and "groups_without_counterpart".

    Raises:
      ValueError: nothing to compare, a metric that one of them lacks, a benchmark with other queries, another number
        of documents or another way of ranking, or one with another primary metric in a's group than in b's.
    """
    ours, theirs = _entries(a), _entries(b)
    shared = [name for name in ours if name in theirs]
    if not shared:
        raise ValueError(f"no benchmark is in both: a has {some(ours)}, b has {some(theirs)}")
    chosen = _metrics(a["metrics"], b["metrics"], metrics)
    groups = _shared_groups(a, b)
    primary = [metric for group in groups for metric in group["benchmarks"].values()]
    needed = list(dict.fromkeys([*chosen, *primary]))
    drawn = {name: _part(ours[name], theirs[name], needed, samples, seed + i) for i, name in enumerate(shared)}
    parts = [{key: x for key, x in part.items() if key[1] in chosen} for part in drawn.values()]
    entries: list[dict[str, Any]] = [
        {
            "name": name,
            "queries": len(ours[name]["query_ids"]),
            "rows": _figures(part, level),
            "rows_without_counterpart": _lacking(ours[name]["values"], theirs[name]["values"]),
        }
        for name, part in zip(shared, parts, strict=True)
    ]
    if len(parts) > 1:
        average = {"name": AVERAGE, "queries": sum(entry["queries"] for entry in entries)}
        none: dict[str, list[str]] = {"a": [], "b": []}
        entries.append(average | {"rows": _figures(_averaged(parts), level), "rows_without_counterpart": none})
    found = {
        "level": level,
        "samples": samples,
        "metrics": chosen,
        "benchmarks": entries,
        "without_counterpart": _lacking(ours, theirs),
        "metrics_without_counterpart": _lacking(a["metrics"], b["metrics"]),
    }
    if groups:
        found["groups"] = [group | {"rows": _group_rows(group["benchmarks"], drawn, level)} for group in groups]
        found["groups_without_counterpart"] = _lacking(_groups(a), _groups(b))
    return found


def _entries(summary: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """By name, without the average."""
    return {entry["name"]: entry for entry in summary["benchmarks"] if entry["ranking"] is not None}


def _lacking(a: Iterable[str], b: Iterable[str]) -> dict[str, list[str]]:
    """What only one of them has."""
    first, second = dict.fromkeys(a), dict.fromkeys(b)  # sets in order
    return {"a": [name for name in first if name not in second], "b": [name for name in second if name not in first]}


def _groups(summary: Mapping[str, Any]) -> dict[str, Mapping[str, str]]:
    """By name: the primary metric of each of their benchmarks that were run."""
    return {group["name"]: group["benchmarks"] for group in summary.get("groups", ())}


def _shared_groups(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of the same name, with the benchmarks that both have run; without rows."""
    ours, theirs = _groups(a), _groups(b)
    found = []
    for group in (name for name in ours if name in theirs):
        metrics = {name: metric for name, metric in ours[group].items() if name in theirs[group]}
        for name, metric in metrics.items():
            if theirs[group][name] != metric:
                raise ValueError(
                    f"group {group}: the primary metric of {name} is {metric} in a and {theirs[group][name]} in b: "
                    "run both with the same groups"
                )
        found.append(
            {"name": group, "benchmarks": metrics, "without_counterpart": _lacking(ours[group], theirs[group])}
        )
    return found


def _group_rows(metrics: Mapping[str, str], parts: Mapping[str, Part], level: float) -> dict[str, dict[str, float]]:
    """Averages over a group's benchmarks, each in its primary metric, of the rows that all of them have."""
    own = [
        {(row, ""): x for (row, metric), x in parts[name].items() if metric == primary}
        for name, primary in metrics.items()
    ]
    averaged = _figures(_averaged(own), level) if own else {}
    return {row: by_metric[""] for row, by_metric in averaged.items()}


def _metrics(a: Sequence[str], b: Sequence[str], wanted: Sequence[str] | None) -> list[str]:
    shared = [metric for metric in a if metric in b]
    if wanted is None and not shared:
        raise ValueError(f"no metric is in both: a has {', '.join(a)}, b has {', '.join(b)}")
    if unknown := [metric for metric in wanted or () if metric not in shared]:
        raise ValueError(f"{', '.join(unknown)} is not in both: a has {', '.join(a)}, b has {', '.join(b)}")
    return list(wanted or shared)


def _part(a: Mapping[str, Any], b: Mapping[str, Any], metrics: Sequence[str], samples: int, seed: int) -> Part:
    """Of one benchmark."""
    _check_same(a, b)
    rows = [row for row in a["values"] if row in b["values"]]
    if not rows:
        return {}
    place = {query: i for i, query in enumerate(b["query_ids"])}
    order = [place[query] for query in a["query_ids"]]
    pairs = {
        (row, metric): (np.array(a["values"][row][metric]), np.array(b["values"][row][metric])[order])
        for row in rows
        for metric in metrics
    }
    draws = resampled_means(np.stack([y - x for x, y in pairs.values()]), samples=samples, seed=seed)
    return {key: (float(x.mean()), float(y.mean()), d) for (key, (x, y)), d in zip(pairs.items(), draws, strict=True)}


def _check_same(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    for what in ("documents", "ranking"):
        if a[what] != b[what]:
            raise ValueError(
                f"benchmark {a['name']}: {what} is {a[what]} in a and {b[what]} in b: they can not be compared"
            )
    lacking = _lacking(a["query_ids"], b["query_ids"])
    if lacking["a"] or lacking["b"]:
        parts = [f"only {side} has {some(ids)}" for side, ids in lacking.items() if ids]
        raise ValueError(
            f"benchmark {a['name']} has other queries in a than in b: {'; '.join(parts)}. Run both with the same "
            "max_queries and seed"
        )


def _averaged(parts: Sequence[Part]) -> Part:
    """Unweighted, over the rows that all of them have."""
    keys = [key for key in parts[0] if all(key in part for part in parts)]
    columns = {key: list(zip(*(part[key] for part in parts), strict=True)) for key in keys}
    return {key: (float(np.mean(x)), float(np.mean(y)), np.mean(d, axis=0)) for key, (x, y, d) in columns.items()}


def _figures(part: Part, level: float) -> dict[str, dict[str, dict[str, float]]]:
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for (row, metric), (x, y, draws) in part.items():
        low, high = interval(draws, level)
        rows.setdefault(row, {})[metric] = {"a": x, "b": y, "mean": y - x, "low": low, "high": high}
    return rows


def markdown(comparison: Mapping[str, Any]) -> str:
    """Tables of "a → b, difference [low, high]": one per group, one per benchmark; then what has no counterpart."""
    metrics = comparison["metrics"]
    parts = [_group_table(group) for group in comparison.get("groups", ())]
    for entry in comparison["benchmarks"]:
        lines = [f"### {entry['name']} ({entry['queries']} queries)", "", f"| b − a | {' | '.join(metrics)} |"]
        lines.append("|---|" + "---|" * len(metrics))
        for row, figures in entry["rows"].items():
            cells = [_cell(x) for x in map(figures.get, metrics) if x]
            lines.append(f"| {row} | {' | '.join(cells)} |")
        only = _only("row", entry["rows_without_counterpart"])
        parts.append("\n".join([*lines, *([""] if only else []), *only]))
    parts.append(
        f"Brackets: {100 * comparison['level']:g} % paired bootstrap interval over queries; * = it excludes 0."
    )
    only = _only("group", comparison.get("groups_without_counterpart", {}))
    only += _only("benchmark", comparison["without_counterpart"])
    only += _only("metric", comparison["metrics_without_counterpart"])
    return "\n\n".join([*parts, "\n".join(only)] if only else parts) + "\n"


def _group_table(group: Mapping[str, Any]) -> str:
    metrics = list(dict.fromkeys(group["benchmarks"].values()))
    head = [f"### {group['name']}: average of {len(group['benchmarks'])}", ""]
    rows = [f"| {row} | {_cell(figure)} |" for row, figure in group["rows"].items()]
    table = [f"| b − a | {' or '.join(metrics)} |", "|---|---|", *rows] if rows else ["nothing that both have run"]
    only = _only("benchmark", group["without_counterpart"])
    return "\n".join([*head, *table, *([""] if only else []), *only])


def _cell(figure: Mapping[str, float]) -> str:
    return f"{figure['a']:.3f} → {figure['b']:.3f}, {cell(dict(figure), signed=True)}"


def _only(what: str, lacking: Mapping[str, Sequence[str]]) -> list[str]:
    return [f"- {what}s that only {side} has: {', '.join(names)}" for side, names in lacking.items() if names]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m eval.compare", description="Paired differences b - a of two runs.")
    parser.add_argument("a", help="folder of results, or its results.json")
    parser.add_argument("b", help="likewise")
    parser.add_argument("--metrics", help="names, separated by commas; default: all that both have")
    parser.add_argument("--samples", type=int, default=2000, help="of the bootstrap")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    parser.add_argument("--level", type=float, default=0.95, help="of the intervals")
    parser.add_argument("--out", help="a JSON file to write")
    options = parser.parse_args(arguments)
    metrics = options.metrics.split(",") if options.metrics else None
    try:
        found = compare(
            read(options.a),
            read(options.b),
            metrics=metrics,
            samples=options.samples,
            seed=options.seed,
            level=options.level,
        )
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    found |= {"a": options.a, "b": options.b}
    print(f"a: {options.a}\nb: {options.b}\n\n{markdown(found)}", end="")
    if options.out:
        path = Path(options.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
