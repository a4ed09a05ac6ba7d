"""Encoding against torch (sdpa) on the same weights and batches: `python -m benchmarks.encode`.

    python -m benchmarks.encode --model qwen2_5_vl --model bert --workload "text 8 x 128" --repeats 7
    python -m benchmarks.encode --device               # pages a second on an accelerator, see encode_device.py

It needs the test extra (torch). Both sides run interleaved, A B A B, in one process that is pinned to as many cores as
--threads says; a figure is the process's CPU seconds divided by the cores, median of 9, with the spread. The ratio is
the median of the rounds' ratios; above 1 = ours is faster. For single images the memory is measured, too: by how much
the peak of resident memory in a second call exceeds what was resident before it, each side in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.processes import ENVIRONMENT, answer_request, in_process, keep_freed_memory, peak_growth

# The rows of a batch, and the bins that `collate` gives them where settings have `patch_buckets`; see `encode_models`.
Workload = tuple[list[list[int | tuple[int, int, int]]], int]
WORKLOADS: dict[str, Workload] = {
    "text 8 x 128": ([[128]] * 8, 8),
    "4 images of 256 patches": ([[12, (1, 16, 16), 12]] * 4, 4),
    "4 images of 1,024 patches": ([[12, (1, 32, 32), 12]] * 4, 4),
    "mixed sizes": ([[12, (1, 8, 8), 12], [12, (1, 16, 8), 20], [12, (1, 16, 16), 4], [60]], 1),
}
# Of a model whose visual tokens are 3 x 3 patches, and whose texts may be longer than its layers' windows.
GEMMA: dict[str, Workload] = {
    "text 8 x 128": WORKLOADS["text 8 x 128"],
    "text 1 x 2,048": ([[2048]], 1),
    "4 images of 270 patches": ([[12, (1, 15, 18), 12]] * 4, 4),
    "4 images of 990 patches": ([[12, (1, 33, 30), 12]] * 4, 4),
}
IMAGES: dict[str, Workload] = {
    "1 image of 256 patches": ([[12, (1, 16, 16), 12]], 1),
    "1 image of 1,024 patches": ([[12, (1, 32, 32), 12]], 1),
    "1 image of 4,096 patches": ([[12, (1, 64, 64), 12]], 1),
}
MODELS = ("qwen3_vl", "qwen3_5", "qwen2_vl", "qwen2_5_vl", "embedding_gemma2", "bert", "tiny")
HEADER = (
    "| model | batch | ours | torch sdpa | ratio | max error | memory, ours / torch |\n|---|---|---|---|---|---|---|"
)


def workloads_of(model: str) -> dict[str, Workload]:
    """Returns the workloads of a model unless the command line names some."""
    if model == "bert":
        return {name: rows for name, rows in WORKLOADS.items() if name.startswith("text")}
    if model == "embedding_gemma2":
        return GEMMA
    return WORKLOADS | IMAGES if model == "qwen3_vl" else WORKLOADS


def cpu_seconds(run: Callable[[], object]) -> float:
    """Returns the process's CPU seconds during a call."""
    started = time.process_time()
    run()
    return time.process_time() - started


def compare(ours: Callable[[], object], theirs: Callable[[], object], repeats: int) -> tuple[list[float], list[float]]:
    """Returns the CPU seconds of either side's calls, made in turns after a first call of each."""
    for run in (ours, theirs):
        run()
    pairs = [(cpu_seconds(ours), cpu_seconds(theirs)) for _ in range(repeats)]
    return [a for a, _ in pairs], [b for _, b in pairs]


def spread(times: list[float], cores: int) -> str:
    """Returns median, least and most of the times as text, in milliseconds of a core."""
    ms = [t / cores * 1e3 for t in times]
    return f"{statistics.median(ms):,.1f} ms [{min(ms):,.1f}, {max(ms):,.1f}]"


def measure(model: str, folder: Path, workload: str, cores: list[int], repeats: int) -> str:
    """Returns a line of the table."""
    import numpy as np

    from benchmarks import encode_models

    spec, bins = (WORKLOADS | IMAGES | GEMMA)[workload]
    ours, theirs = (side(folder, spec, bins) for side in (encode_models.ours, encode_models.theirs))
    rows = encode_models.inputs(encode_models.config_of(folder), spec).rows
    error = max(
        float(np.abs(a[: len(row[0])] - b[: len(row[0])]).max())
        for a, b, row in zip(ours(), theirs(), rows, strict=True)
    )
    taken, taken_by_torch = compare(ours, theirs, repeats)
    ratio = statistics.median(b / a for a, b in zip(taken, taken_by_torch, strict=True))
    memory = ""
    if workload in IMAGES:
        request: dict[str, Any] = {"folder": str(folder), "workload": workload, "module": "benchmarks.encode"}
        sizes = [in_process("memory", cores[0], side=side, **request) for side in ("ours", "theirs")]
        memory = " / ".join(f"{size / 2**20:,.0f}" for size in sizes) + " MiB"
    times = " | ".join(spread(t, len(cores)) for t in (taken, taken_by_torch))
    return f"| {model} | {workload} | {times} | {ratio:.2f} | {error:.1e} | {memory} |"


def memory(request: dict[str, Any]) -> int:
    """Returns the bytes that one side takes for a call after the first, which compiles."""
    from benchmarks import encode_models

    side = {"ours": encode_models.ours, "theirs": encode_models.theirs}[request["side"]]
    run = side(Path(request["folder"]), *(WORKLOADS | IMAGES)[request["workload"]])
    run()
    keep_freed_memory(False)
    return peak_growth(run)[1]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=MODELS, help="may be repeated; all by default")
    parser.add_argument("--workload", action="append", choices=list(WORKLOADS | IMAGES | GEMMA), help="may be repeated")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)), help="first of the cores")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--device", action="store_true", help="pages a second on the default device")
    parser.add_argument("--shape", choices=("2b", "small"), default="2b", help="shape of the model of --device")
    parser.add_argument("--pages", type=int, default=8, help="pages in a batch of --device")
    parser.add_argument("--task", choices=["memory"], help=argparse.SUPPRESS)
    parser.add_argument("files", nargs="*", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        return answer_request(memory, options.core, *options.files)
    if options.device:
        from benchmarks.encode_device import measure as measure_device

        return print(measure_device(options.shape, options.pages, options.repeats))
    cores = [core for core in sorted(os.sched_getaffinity(0)) if core >= options.core][: options.threads]
    os.sched_setaffinity(0, cores)  # before either library starts its threads
    os.environ["OMP_WAIT_POLICY"] = ENVIRONMENT["OMP_WAIT_POLICY"]  # the time of spinning torch threads would count

    import torch

    from benchmarks.encode_models import checkpoint

    torch.set_num_threads(len(cores))
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for model in options.model or MODELS:
            for workload in options.workload or workloads_of(model):
                folder = checkpoint(model, Path(scratch))
                print(measure(model, folder, workload, cores, options.repeats), flush=True)


if __name__ == "__main__":
    main()
