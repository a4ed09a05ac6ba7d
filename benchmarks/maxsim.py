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
import ctypes
import gc
import importlib
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENVIRONMENT = {  # LanceDB hangs with a single I/O thread: it keeps its own number, on the one core
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "LANCE_CPU_THREADS": "1",
    "PJRT_NPROC": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
LONGEST = 1800  # seconds of a process, after which it is taken to hang


@dataclass(frozen=True)
class Workload:
    kind: str  # score, search or train
    queries: int
    query_tokens: int
    documents: int
    lengths: tuple[int, int]
    width: int

    def scaled(self, scale: float) -> Workload:
        documents = max(2, round(self.documents * scale))
        queries = documents if self.kind == "train" else self.queries
        return Workload(self.kind, queries, self.query_tokens, documents, self.lengths, self.width)

    def make(self, seed: int = 0) -> Any:
        """Random unit vectors."""
        import numpy as np

        from benchmarks.maxsim_peers import Data

        rng = np.random.default_rng(seed)
        lengths = rng.integers(self.lengths[0], self.lengths[1] + 1, self.documents)
        queries = unit(rng, self.queries, self.query_tokens, self.width)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        return Data(queries, unit(rng, int(offsets[-1]), self.width), offsets)

    def __str__(self) -> str:
        low, high = self.lengths
        queries = f"{self.queries} quer{'y' if self.queries == 1 else 'ies'} of {self.query_tokens} tokens"
        tokens = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        what = {"score": "", "search": ", top 10", "train": ", value and gradient of InfoNCE"}[self.kind]
        return f"{queries}, {self.documents:,} documents of {tokens} tokens, width {self.width:,}{what}"


WORKLOADS = {
    "W1": Workload("score", 32, 32, 1000, (50, 300), 128),
    "W2": Workload("score", 16, 20, 500, (1030, 1030), 128),
    "W3": Workload("score", 8, 24, 100, (300, 1300), 2048),
    "W4": Workload("search", 1, 32, 2000, (100, 800), 128),
    "W5": Workload("train", 32, 32, 32, (256, 256), 2048),
    "W6": Workload("train", 128, 32, 128, (256, 256), 2048),
    "W7": Workload("search", 1, 32, 20000, (1030, 1030), 128),
}
DEFAULT = "W1,W2,W3,W4,W5,W6"


def unit(rng: Any, *shape: int) -> Any:
    import numpy as np

    x = rng.standard_normal(shape, dtype=np.float32)
    for rows in np.array_split(x.reshape(-1, shape[-1]), max(1, x.size >> 22)):  # without a copy of all
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return x


# The right answer


def oracle(data: Any) -> Any:
    """Scores [Nq, N] in float64."""
    import numpy as np

    queries = data.queries.astype(np.float64)
    count, length, width = queries.shape
    stacked = queries.reshape(-1, width).T
    scores = np.empty((count, len(data.documents)))
    for n, document in enumerate(data.documents):
        scores[:, n] = (document.astype(np.float64) @ stacked).max(axis=0).reshape(count, length).mean(axis=1)
    return scores


def oracle_train(data: Any) -> tuple[Any, ...]:
    """Loss and gradients of InfoNCE in float64."""
    import numpy as np

    from benchmarks.maxsim_peers import TEMPERATURE

    q, d = data.queries.astype(np.float64), data.batch.astype(np.float64)
    batch, length, width = q.shape
    stacked = q.reshape(-1, width)
    products = [stacked @ document.T for document in d]  # [B * P, L] each
    logits = np.stack([x.max(axis=1).reshape(batch, length).mean(axis=1) for x in products], axis=1) / TEMPERATURE
    top = logits.max(axis=1, keepdims=True)
    lse = top[:, 0] + np.log(np.exp(logits - top).sum(axis=1))
    weights = (np.exp(logits - lse[:, None]) - np.eye(batch)) / (batch * TEMPERATURE * length)
    dq, dd = np.zeros_like(stacked), np.zeros_like(d)
    for n, x in enumerate(products):
        winners, weight = x.argmax(axis=1), np.repeat(weights[:, n], length)[:, None]
        dq += weight * d[n][winners]
        np.add.at(dd[n], winners, weight * stacked)
    return np.mean(lse - np.diagonal(logits)), dq.reshape(q.shape), dd


def judge(kind: str, result: Any, expected: tuple[Any, ...]) -> tuple[float, int]:
    """The largest error, relative for gradients, and how many of the documents found are not among the best."""
    import numpy as np

    if kind == "train":
        pairs = [(np.asarray(a, np.float64), b) for a, b in zip(result, expected, strict=True)]
        return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs), 0
    if kind == "score":
        return float(np.abs(np.asarray(result, np.float64) - expected[0]).max()), 0
    scores, indices = (np.asarray(x) for x in result)
    order = np.argsort(-expected[0][0])[: len(indices)]
    error = float(np.abs(scores - expected[0][0][indices]).max())
    return error, len(set(order.tolist()) - set(indices.tolist()))


# In a process of its own


def resident(field: str) -> int:
    """Bytes, a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def peak_growth(run: Callable[[], Any]) -> tuple[Any, int]:
    """The result, and by how many bytes the peak of resident memory in the call exceeds what was resident before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    before = resident("VmRSS")
    result = run()
    return result, max(0, resident("VmHWM") - before)


def keep_freed_memory(keep: bool) -> None:
    """Whether the C library keeps freed blocks, as it does once large ones were freed, or gives them back at once.

    What it keeps would hide what a call takes.
    """
    mmap_threshold, trim_threshold = -3, -1
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_threshold, 2**25 if keep else 2**16)
    libc.mallopt(trim_threshold, 2**26 if keep else 2**16)


def cpu_seconds(run: Callable[[], Any]) -> float:
    gc.collect()
    started = time.process_time()
    run()
    return time.process_time() - started


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


class RunError(Exception):
    """A process that ended without a result; the message says how."""


def in_process(task: str, core: int, **request: Any) -> Any:
    """The result of one of `TASKS` in a fresh process on one core."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answer, said = (Path(folder) / name for name in ("request.json", "answer.json", "output.txt"))
        asked.write_text(json.dumps(request))
        files = [str(asked), str(answer)]
        command = [sys.executable, "-m", "benchmarks.maxsim", "--task", task, "--core", str(core), *files]
        environment = os.environ | ENVIRONMENT
        with said.open("w") as output:
            try:
                done = subprocess.run(command, env=environment, stdout=output, stderr=output, timeout=LONGEST)
            except subprocess.TimeoutExpired:
                raise RunError(f"hangs: no result within {LONGEST} s") from None
        if done.returncode < 0:
            raise RunError(f"crashes: {signal.Signals(-done.returncode).name}")
        if not answer.exists():
            raise RunError(f"exits with {done.returncode}: {said.read_text()[-500:]}")
        result = json.loads(answer.read_text())
    if "raised" in result:
        raise RunError(result["raised"])
    return result["result"]


def run_task(task: str, core: int, request: Path, answer: Path) -> None:
    """In the fresh process."""
    os.sched_setaffinity(0, [core])
    try:
        import torch

        torch.set_num_threads(1)
    except ModuleNotFoundError:
        pass  # it is a peer
    try:
        result = {"result": TASKS[task](json.loads(request.read_text()))}
    except ModuleNotFoundError as error:
        result = {"raised": f"not installed ({error.name})"}
    except BaseException as error:  # the panics of some extensions are no Exception
        first_line = next(iter(str(error).splitlines()), "").rstrip(" :")
        result = {"raised": f"raises {type(error).__name__}: {first_line}"}
    answer.write_text(json.dumps(result))


def in_process_or_note(task: str, core: int, **request: Any) -> Any:
    """The result, or how it failed."""
    try:
        return in_process(task, core, **request)
    except RunError as error:
        return str(error)


def wanted(name: str, only: list[str]) -> bool:
    return not only or any(name == o or name.startswith(o + "-") for o in only)


def choose(workload: Workload, name: str, core: int, saved: Path) -> dict[str, dict[str, Any]]:
    """What probes found of an implementation's fastest right way, and of the way that is its default."""
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


def spread(seconds: list[float]) -> str:
    ms = [t * 1e3 for t in seconds]
    return f"{statistics.median(ms):.1f} [{min(ms):.1f}, {max(ms):.1f}]"


def print_compiled_memory(workload: Workload, core: int) -> None:
    print("| | temporary memory, MiB |")
    print("| --- | ---: |")
    for name, size in in_process("compiled_memory", core, workload=vars(workload)).items():
        print(f"| {name} | {size / 2**20:,.0f} |")
    print(flush=True)


def print_stream(workload: Workload, folder: Path, repeats: int, core: int) -> None:
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
    cpu = platform.processor()
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            cpu = line.split(":", 1)[1].strip()
            break
    versions = []
    names = ("jax", "numpy", "torch", "maxsim-cpu", "pylate", "late-interaction-kernels", "colpali-engine")
    for name in (*names, "lancedb", "qdrant-client"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"{cpu}, 1 core, 1 thread; Python {platform.python_version()}, {', '.join(versions)}"


def elsewhere(module: str, name: str) -> Callable[[dict[str, Any]], Any]:
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default=DEFAULT, help="of W1 to W7, by commas; W7 is left out by default")
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
        return run_task(options.task, options.core, *options.files)
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
