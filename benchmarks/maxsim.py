"""MaxSim against other libraries, on one core: `python -m benchmarks.maxsim [--workloads W1,W4] [--only ours,blas]`.

Each workload prints a Markdown table. First every implementation, with each batch size or API that it offers, runs in
a process of its own: that finds what crashes or is wrong, its best way, and the memory that a call takes. Then the
best ways, and those that a call with default arguments takes, run interleaved, A B C A B C, in one process with one
thread on one core; the figure is the process's CPU time, median of --repeats with [min, max]. Peers that are not
installed are left out with a note; see README.md.

Memory: growth of the peak resident memory during a call, beyond imports, stored documents and a first tiny call:
"call" = the second call on these shapes, "first" = the first one, with what it compiles and keeps.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import os
import platform
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.maxsim_workloads import WORKLOADS, Workload, judge, oracle, oracle_train
from benchmarks.processes import RunError, answer_request, cpu_seconds, in_process, keep_freed_memory, peak_growth

DEFAULT = "W1,W2,W3,W4,W5,W6,W8,W9"


def probe(request: dict[str, Any]) -> dict[str, Any]:
    """Error, memory and a first time of one way of one implementation."""
    import numpy as np

    from benchmarks.maxsim_peers import IMPLEMENTATIONS

    keep_freed_memory(False)
    workload = Workload(**request["workload"])
    way = getattr(IMPLEMENTATIONS[request["name"]], workload.kind)[request["way"]]
    tiny = 2 if workload.kind == "train" else 1
    way(Workload(workload.kind, tiny, 2, 2, (3, 3), workload.width).make())()  # what it imports only when called
    data = workload.make()
    run = way(data)
    result, first = peak_growth(run)
    saved = Path(request["oracle"])
    if not saved.exists():
        expected = oracle_train(data) if workload.kind == "train" else (oracle(data),)
        np.savez(saved, *expected)
    with np.load(saved) as arrays:
        error, missing = judge(workload.kind, result, tuple(arrays.values()))
    del result
    _, call = peak_growth(run)
    keep_freed_memory(True)
    run()
    return {"error": error, "missing": missing, "first": first, "call": call, "seconds": cpu_seconds(run)}


def times(request: dict[str, Any]) -> dict[str, list[float]]:
    """CPU seconds of each implementation's chosen way, interleaved."""
    from benchmarks.maxsim_peers import IMPLEMENTATIONS, ROOFLINE, ROWS

    workload = Workload(**request["workload"])
    data = workload.make()
    ways = request["ways"].items()
    runs = {label: getattr(IMPLEMENTATIONS[name], workload.kind)[way](data) for label, (name, way) in ways}
    for run in runs.values():
        run()
    for name, way in ROOFLINE.items():
        calls = [way(data, rows) for rows in ROWS]
        for call in calls:
            call()
        runs[name] = min(calls, key=cpu_seconds)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(request["repeats"]):
        for name, run in runs.items():
            taken[name].append(cpu_seconds(run))
    return taken


def compiled_memory(request: dict[str, Any]) -> dict[str, int]:
    """Bytes of temporary buffers, by the compiler's own count."""
    import jax
    import jax.numpy as jnp

    from benchmarks.maxsim_peers import dense_maxsim, info_nce_gradient
    from smart_jax import maxsim

    w = Workload(**request["workload"])
    q = jax.ShapeDtypeStruct((w.queries, w.query_tokens, w.width), jnp.float32)
    d = jax.ShapeDtypeStruct((w.documents, w.lengths[0], w.width), jnp.float32)
    return {
        name: info_nce_gradient(score).lower(q, d).compile().memory_analysis().temp_size_in_bytes
        for name, score in (("smart_jax", maxsim), ("jax, autodiff of a dense max", dense_maxsim))
    }


# The tables


def wanted(name: str, only: list[str]) -> bool:
    """Tells whether `--only` names an implementation, or a group of them; nothing named means all."""
    return not only or any(name == o or name.startswith(o + "-") for o in only)


def choose(workload: Workload, name: str, core: int, saved: Path) -> dict[str, dict[str, Any]]:
    """Probes' results of an implementation's fastest right way, and of the way that is its default."""
    from benchmarks.maxsim_peers import IMPLEMENTATIONS

    found, failed = {}, RunError("no way")
    for way in getattr(IMPLEMENTATIONS[name], workload.kind):
        try:
            found[way] = in_process("probe", core, workload=vars(workload), name=name, way=way, oracle=str(saved))
        except RunError as error:
            failed = error
    if not found:
        raise failed
    right = {way: f for way, f in found.items() if f["error"] <= IMPLEMENTATIONS[name].tolerance} or found
    fastest = min(right, key=lambda way: right[way]["seconds"])
    return {way: found[way] for way in dict.fromkeys((fastest, IMPLEMENTATIONS[name].default)) if way in found}


def compare(workload: Workload, only: list[str], repeats: int, core: int) -> None:
    """Prints the table of a workload: time, memory and error of each implementation."""
    from benchmarks.maxsim_peers import IMPLEMENTATIONS, K

    names = [n for n, i in IMPLEMENTATIONS.items() if getattr(i, workload.kind) and wanted(n, only)]
    ways: dict[str, tuple[str, str]] = {}
    probes, notes = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            implementation = IMPLEMENTATIONS[name]
            try:
                chosen = choose(workload, name, core, Path(folder) / "oracle.npz")
            except RunError as error:
                notes[implementation.title] = str(error)
                continue
            for way, found in chosen.items():
                described = ", ".join([way] * bool(way) + ["default"] * (way == implementation.default))
                label = f"{implementation.title} ({described})" if described else implementation.title
                if not found["error"] <= implementation.tolerance:  # NaN too
                    notes[label] = f"wrong (max error {found['error']:.1e})"
                    continue
                ways[label], probes[label] = (name, way), found
    taken = in_process("times", core, workload=vars(workload), ways=ways, repeats=repeats)
    products = {name: t for name, t in taken.items() if name not in ways}
    roofline = min(statistics.median(t) for t in products.values())
    ours = taken.get(IMPLEMENTATIONS["ours"].title)
    print("| | ms [min, max] | times ours | times GEMM | memory, MiB: call (first) | max error |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for label, found in probes.items():
        ratio = f"{statistics.median(a / b for a, b in zip(taken[label], ours, strict=True)):.2f}" if ours else ""
        multiple = statistics.median(taken[label]) / roofline
        memory = f"{found['call'] / 2**20:.1f} ({found['first'] / 2**20:.0f})"
        error = f"{found['error']:.1e}"
        if workload.kind == "search":
            error += f", {K - found['missing']} of {K} found"
        print(f"| {label} | {spread(taken[label])} | {ratio} | {multiple:.2f} | {memory} | {error} |")
    for label, note in notes.items():
        print(f"| {label} | {note} | | | | |")
    for name, t in products.items():
        print(f"| {name}, products only | {spread(t)} | | {statistics.median(t) / roofline:.2f} | | |")
    print(flush=True)


def spread(seconds: list[float], digits: int = 1) -> str:
    """Writes median, minimum and maximum in milliseconds."""
    ms = [t * 1e3 for t in seconds]
    return f"{statistics.median(ms):.{digits}f} [{min(ms):.{digits}f}, {max(ms):.{digits}f}]"


def print_compiled_memory(workload: Workload, core: int) -> None:
    """Prints the temporary memory that each compiled program asks for."""
    print("| | temporary memory, MiB |")
    print("| --- | ---: |")
    for name, size in in_process("compiled_memory", core, workload=vars(workload)).items():
        print(f"| {name} | {size / 2**20:,.0f} |")
    print(flush=True)


def print_stream(workload: Workload, folder: Path, repeats: int, core: int) -> None:
    """Prints the table of scores of a store that is mapped from disk."""
    found = in_process("stream", core, workload=vars(workload), folder=str(folder), repeats=repeats)
    size = found["bytes"]
    print(f"float16 store of {size / 1e9:.2f} GB, mapped from disk; cold = dropped from the system's cache before.\n")
    print("| | cold, s | GB/s | warm, s | GB/s | warm, CPU s | own memory, MiB (with mapped pages) | max error |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, row in found["rows"].items():
        cells = [name]
        for cache in ("cold", "warm"):
            seconds = statistics.median(row[cache])
            cells += [f"{seconds:.2f} [{min(row[cache]):.2f}, {max(row[cache]):.2f}]", f"{size / seconds / 1e9:.2f}"]
        cells += [f"{statistics.median(row['cpu']):.2f}", f"{row['own'] / 2**20:.0f} ({row['total'] / 2**20:.0f})"]
        cells += [f"{row['error']:.1e}, {10 - row['missing']} of 10 found"]
        print("| " + " | ".join(cells) + " |")
    print(flush=True)


def machine() -> str:
    """Names the processor and the packages' versions."""
    cpu = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    versions = []
    names = ("jax", "numpy", "torch", "maxsim-cpu", "pylate", "late-interaction-kernels", "colpali-engine")
    for name in (*names, "lancedb", "qdrant-edge-py"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"{cpu}, 1 core, 1 thread; Python {platform.python_version()}, {', '.join(versions)}"


def elsewhere(module: str, name: str) -> Callable[[dict[str, Any]], Any]:
    """Returns a task that imports its module when it is run."""
    return lambda request: getattr(importlib.import_module(f"benchmarks.{module}"), name)(request)


TASKS = {
    "probe": probe,
    "times": times,
    "compiled_memory": compiled_memory,
    "stream": elsewhere("maxsim_stream", "measure"),
    "verdict": elsewhere("maxsim_correctness", "verdict"),
    "precision": elsewhere("maxsim_correctness", "precision"),
}


def main() -> None:
    """Runs the workloads that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default=DEFAULT, help="of W1 to W9, by commas; W7 is left out by default")
    parser.add_argument("--only", default="", help="implementations, by commas: ours, blas, maxsim-cpu, pylate, ...")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of documents, to try it out")
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="for the 5.3 GB store of W7")
    parser.add_argument("--correctness", action="store_true", help="only the table of right and wrong answers")
    parser.add_argument("--precision", action="store_true", help="only the table of the stores' precision")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("files", nargs="*", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        return answer_request(TASKS[options.task], options.core, *options.files)
    from benchmarks.maxsim_peers import IMPLEMENTATIONS

    only, workloads = ([x for x in value.split(",") if x] for value in (options.only, options.workloads))
    for name, known in [*((n, IMPLEMENTATIONS) for n in only), *((n, WORKLOADS) for n in workloads)]:
        if name not in known:
            parser.error(f"{name!r}: choose of {', '.join(known)}")
    print(machine() + "\n", flush=True)
    if options.correctness or options.precision:
        from benchmarks.maxsim_correctness import print_correctness, print_precision

        if options.correctness:
            print_correctness(options.core)
        if options.precision:
            print_precision(options.core)
        return
    for name in workloads:
        workload = WORKLOADS[name].scaled(options.scale)
        print(f"### {name}: {workload}\n", flush=True)
        if name == "W6":
            print_compiled_memory(workload, options.core)
        elif name == "W7":
            print_stream(workload, options.folder, options.repeats, options.core)
        else:
            compare(workload, only, options.repeats, options.core)


if __name__ == "__main__":
    main()
