"""Compares two runs of `python -m eval.run` query by query:

    python -m eval.compare results/a results/b
    python -m eval.compare a/results.json b/results.json --metrics ndcg@5,hit@1 --out difference.json

For every benchmark and method that both have, for the average over the benchmarks, and for every group of benchmarks in
its primary metrics: the difference b − a with a paired bootstrap interval over queries, * = it excludes 0. What one of
them lacks is listed below the tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from eval.reports import compare, comparison_markdown, read_results


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command, by default with the arguments of the command line."""
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
    bootstrap = {"samples": options.samples, "seed": options.seed, "level": options.level}
    try:
        comparison = compare(read_results(options.a), read_results(options.b), metrics=metrics, **bootstrap)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    print(f"a: {options.a}\nb: {options.b}\n\n{comparison_markdown(comparison)}", end="")
    if options.out:
        path = Path(options.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        stored = comparison.to_json() | {"a": options.a, "b": options.b}
        path.write_text(json.dumps(stored, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
