"""Training steps against torch's on the same weights and batches: `python -m benchmarks.train`.

    python -m benchmarks.train --model qwen3_vl --step lora --repeats 9
    python -m benchmarks.train --memory           # memory of 2B and 8B steps, compiled only: train_memory.py
    python -m benchmarks.train --device           # time, share of the peak and memory: train_device.py

It needs the test extra (torch, peft). A step is the whole update: both sides of the batch through the backbone, the
loss over the batch, its gradient, clipping and AdamW; see train_models.py. All steps run interleaved, A B A B, in one
process that is pinned to one core. A figure is the process's CPU seconds, median with the spread, and the ratio is the
median of the rounds' ratios; above 1 = ours is faster. GradCache has no counterpart in torch: its ratio is to the plain
step. The last column is the time of torch's matrix products of the step alone: no step with these products takes less.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.processes import ENVIRONMENT, cpu_seconds

STEPS = ("adapter", "lora", "gradcache")
MODELS = ("qwen3_vl", "tiny")
HEADER = "| model | step | ours | torch | ratio | products alone |\n|---|---|---|---|---|---|"


def spread(times: list[float]) -> str:
    """Returns median, least and most of the times as text."""
    return f"{statistics.median(times):,.2f} s [{min(times):,.2f}, {max(times):,.2f}]"


def interleaved(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Returns the CPU seconds of each run in each round, after a first call of each, which may compile."""
    for run in runs.values():
        run()
    rounds = [{name: cpu_seconds(run) for name, run in runs.items()} for _ in range(repeats)]
    return {name: [r[name] for r in rounds] for name in runs}


def measure(model: str, folder: Path, steps: list[str], repeats: int) -> list[str]:
    """Returns the lines of the table."""
    from benchmarks import train_models as models

    pairs = models.PAIRS[model]
    wanted = {"adapter": models.ADAPTER, "lora": dataclasses.replace(models.LORA, r=models.RANK[model])}
    wanted["gradcache"] = dataclasses.replace(wanted["lora"], chunk_size=pairs.count // 4)
    runs: dict[str, Callable[[], object]] = {}
    for name in steps:
        ours = models.Ours(folder, pairs, wanted[name])
        runs[name] = ours.stepper()
        if name != "gradcache":
            theirs = models.Theirs(folder, pairs, wanted[name], ours.params)
            runs[f"{name} torch"], runs[f"{name} products"] = theirs.stepper(), theirs.products()
    taken = interleaved(runs, repeats)

    def ratio(a: str, b: str) -> float:
        return statistics.median(y / x for x, y in zip(taken[a], taken[b], strict=True))

    rows = []
    for name in steps:
        if name != "gradcache":
            cells = (
                spread(taken[f"{name} torch"]),
                f"{ratio(name, f'{name} torch'):.2f}",
                spread(taken[f"{name} products"]),
            )
        else:
            cells = "", f"{ratio('lora', name):.2f} of lora's time" if "lora" in steps else "", ""
        rows.append(f"| {model} | {name} | {spread(taken[name])} | {' | '.join(cells)} |")
    return rows


def main() -> None:
    """The command line."""
    arguments = sys.argv[1:]
    if "--memory" in arguments:
        from benchmarks.train_memory import main as memory

        return memory([a for a in arguments if a != "--memory"])
    if "--device" in arguments:
        from benchmarks.train_device import main as device

        return device([a for a in arguments if a != "--device"])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=MODELS, help="may be repeated; all by default")
    parser.add_argument("--step", action="append", choices=STEPS, help="may be repeated; all by default")
    parser.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    os.sched_setaffinity(0, [options.core])  # before either library starts its threads
    os.environ["OMP_WAIT_POLICY"] = ENVIRONMENT["OMP_WAIT_POLICY"]  # the time of spinning torch threads would count

    import torch

    from benchmarks.encode_models import checkpoint

    torch.set_num_threads(1)
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for model in options.model or MODELS:
            folder = checkpoint(model, Path(scratch))
            print("\n".join(measure(model, folder, options.step or list(STEPS), options.repeats)), flush=True)


if __name__ == "__main__":
    main()
