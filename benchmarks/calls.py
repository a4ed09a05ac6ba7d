"""MaxSim, scores and search as people call them, on one core: `python -m benchmarks.calls [--part eager ...]`.

    eager    maxsim and maxsim_pairs without jit, beside jit, NumPy and torch; changing shapes: compilations, memory
    small    `score` of 10 documents of 50 tokens, beside NumPy
    shapes   200 calls of random shapes in a fresh process, without and with a warm compilation cache; another k
    short    `score` of many short documents, beside the matrix product alone

Every part runs in a fresh process with one thread on one core. Times are the process's CPU time, what is compared takes
turns, A B C A B C; median of --repeats with [min, max], ratios as medians of the turns' ratios. NumPy is written as
people write it: document by document, or one product of padded tokens.
"""

from __future__ import annotations

import argparse
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.maxsim import machine, spread
from benchmarks.maxsim_workloads import unit
from benchmarks.processes import answer_request, in_process, resident

COMPILATION = "/jax/core/compile/backend_compile_duration"


def compilations() -> Callable[[], int]:
    """Begins to count what jax compiles, or loads compiled; returns a function that says how many these are."""
    import jax

    events: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, _, **__: events.append(event))
    return lambda: events.count(COMPILATION)


def turns(runs: dict[str, Callable[[], Any]], repeats: int, calls: int = 1) -> dict[str, list[float]]:
    """CPU seconds of a call of each, in turns, after two calls that do not count."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
        run()
    for _ in range(repeats):
        for name, run in runs.items():
            started = time.process_time()
            for _ in range(calls):
                run()
            taken[name].append((time.process_time() - started) / calls)
    return taken


# What people write in NumPy and in torch


def numpy_padded(q: Any, d: Any) -> Any:
    """MaxSim [B, N] of padded tokens without masks, by one product."""
    (B, P, D), (N, L, _) = q.shape, d.shape
    return (q.reshape(-1, D) @ d.reshape(-1, D).T).reshape(B, P, N, L).max(axis=3).mean(axis=1)


def numpy_pairs(q: Any, d: Any) -> Any:
    """MaxSim [B, K] of each query with its own documents."""
    import numpy as np

    return np.stack([numpy_padded(a[None], b)[0] for a, b in zip(q, d, strict=True)])


def numpy_ragged(queries: Sequence[Any], documents: Sequence[Any]) -> Any:
    """MaxSim [Nq, N] of ragged tokens, document by document, with all queries in one product."""
    import numpy as np

    lengths = [len(query) for query in queries]
    stacked = np.concatenate(queries).T
    best = np.stack([(document @ stacked).max(axis=0) for document in documents], axis=1)
    starts = np.cumsum([0, *lengths[:-1]])
    return np.add.reduceat(best, starts, axis=0) / np.float32(lengths)[:, None]


def torch_padded(q: Any, d: Any) -> Any:
    """MaxSim [B, N] in torch, as late-interaction papers write it."""
    import torch

    return torch.einsum("bpd,nld->bpnl", q, d).amax(dim=3).mean(dim=1)


def torch_pairs(q: Any, d: Any) -> Any:
    """MaxSim [B, K] in torch."""
    import torch

    return torch.einsum("bpd,bkld->bpkl", q, d).amax(dim=3).mean(dim=1)


# The parts, each in its process


def eager(request: dict[str, Any]) -> dict[str, Any]:
    """Times of maxsim and maxsim_pairs of a known shape; compilations and memory where shapes change."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    import smart_jax

    rng = np.random.default_rng(0)
    count, found = compilations(), {}
    for name, q_shape, d_shape in request["shapes"]:
        q, d = unit(rng, *q_shape), unit(rng, *d_shape)
        pairs = len(d_shape) == 4
        ours = smart_jax.maxsim_pairs if pairs else smart_jax.maxsim
        jitted, on_device = jax.jit(ours), (jnp.asarray(q), jnp.asarray(d))
        runs = {
            "eager": lambda f=ours, x=on_device: jax.block_until_ready(f(*x)),
            "eager, NumPy arrays": lambda f=ours, x=(q, d): jax.block_until_ready(f(*x)),
            "jitted": lambda f=jitted, x=on_device: jax.block_until_ready(f(*x)),
            "jitted, NumPy arrays": lambda f=jitted, x=(q, d): jax.block_until_ready(f(*x)),
            "NumPy": lambda f=(numpy_pairs if pairs else numpy_padded), x=(q, d): f(*x),
        }
        try:
            import torch

            tensors = torch.from_numpy(q), torch.from_numpy(d)
            by_torch = torch_pairs if pairs else torch_padded
            runs["torch"] = lambda f=by_torch, x=tensors: f(*x)
        except ModuleNotFoundError:
            pass
        found[name] = turns(runs, request["repeats"], calls=5)
        gradient = jax.grad(lambda q, d, f=ours: jnp.sum(f(q, d)), (0, 1))
        compiled = jax.jit(gradient)
        both = {"gradient, eager": gradient, "gradient, jitted": compiled}
        calls = {key: lambda f=f, x=on_device: jax.block_until_ready(f(*x)) for key, f in both.items()}
        found[name] |= turns(calls, request["repeats"])
    before, shapes = count(), rng.integers([1, 4, 2, 8], [9, 40, 60, 200], (request["changing"], 4))
    for B, P, N, L in shapes.tolist():
        smart_jax.maxsim(unit(rng, B, P, 128), unit(rng, N, L, 128))
    found["compilations"] = count() - before
    memory = []
    for at in range(request["calls"]):
        B, P, N, L = (shapes[at % len(shapes)] + rng.integers(0, 3, 4)).tolist()
        smart_jax.maxsim(np.ones((B, P, 128), np.float32), np.ones((N, L, 128), np.float32))
        if at in (request["calls"] // 10, request["calls"] - 1):
            memory.append(resident("VmRSS"))
    return found | {"memory": memory, "all": count() - before}


def small(request: dict[str, Any]) -> dict[str, Any]:
    """Times of `score` of few short documents, as arrays and as embeddings."""
    import numpy as np

    import smart_jax

    rng = np.random.default_rng(0)
    found = {}
    for width in request["widths"]:
        q, d = unit(rng, 1, 32, width), unit(rng, 10, 50, width)
        pooled = unit(rng, 11, width)
        of_q = smart_jax.Embeddings(pooled[:1], q[0], np.array([0, 32]))
        of_d = smart_jax.Embeddings(pooled[1:], d.reshape(-1, width), np.arange(11) * 50)
        runs = {
            "score, Embeddings": lambda x=(of_q, of_d): smart_jax.score(*x),
            "score, arrays": lambda x=(q, d): smart_jax.score(*x),
            "score, lists": lambda x=(list(q), list(d)): smart_jax.score(*x),
            "search, Embeddings": lambda x=(of_q, of_d): smart_jax.search(*x, k=5),
            "NumPy": lambda x=(list(q), list(d)): numpy_ragged(*x),
        }
        found[f"width {width:,}"] = turns(runs, request["repeats"], calls=20)
    return found


def shapes(request: dict[str, Any]) -> dict[str, Any]:
    """CPU seconds of calls of random shapes, in turns with NumPy's, compilations included."""
    import numpy as np

    if request["cache"]:
        import jax

        jax.config.update("jax_compilation_cache_dir", request["cache"])
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    import smart_jax

    rng, count = np.random.default_rng(0), compilations()
    taken = {"ours": 0.0, "NumPy": 0.0}
    largest = request["documents"]
    for _ in range(request["calls"]):
        q = [unit(rng, n, 128) for n in rng.integers(4, 40, rng.integers(1, 9)).tolist()]
        d = [unit(rng, n, 128) for n in rng.integers(20, 300, rng.integers(10, largest)).tolist()]
        k = int(rng.integers(1, 100))

        def by_numpy(q: Any = q, d: Any = d, k: int = k) -> Any:
            scores = numpy_ragged(q, d)
            return np.argsort(-scores, axis=1)[:, :k] if request["what"] == "search" else scores

        def by_ours(q: Any = q, d: Any = d, k: int = k) -> Any:
            return smart_jax.search(q, d, k) if request["what"] == "search" else smart_jax.score(q, d)

        for name, run in (("ours", by_ours), ("NumPy", by_numpy)):
            started = time.process_time()
            run()
            taken[name] += time.process_time() - started
    return taken | {"compilations": count()}


def another_k(request: dict[str, Any]) -> dict[str, int]:
    """Compilations of a search that a device does, with its first k and with others."""
    import numpy as np

    import smart_jax

    rng, count = np.random.default_rng(0), compilations()
    q, d = unit(rng, 1, 32, 128), list(unit(rng, request["documents"], 200, 128))
    found = {}
    for k in request["ks"]:
        before = count()
        smart_jax.search(q, d, k, device_bytes=2**28)  # which the host does not do, however small it is
        found[str(k)] = count() - before
    return found


def short(request: dict[str, Any]) -> dict[str, Any]:
    """Times of `score` of many short documents, and of the product of all their tokens, in blocks that fit a cache."""
    import jax
    import numpy as np

    import smart_jax

    rng = np.random.default_rng(0)
    lengths = rng.integers(10, 41, request["documents"])
    q, d = unit(rng, 100, 32, 128), unit(rng, int(lengths.sum()), 128)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    of_q = smart_jax.Embeddings(q[:, 0], q.reshape(-1, 128), np.arange(101) * 32)
    of_d = smart_jax.Embeddings(d[offsets[:-1]], d, offsets)
    rows = q.reshape(-1, 128)
    count = compilations()

    def product(tile: int) -> None:
        room = np.empty((tile, len(rows)), np.float32)
        for at in range(0, len(d), tile):
            tokens = d[at : at + tile]
            np.matmul(tokens, rows.T, out=room[: len(tokens)])

    runs: dict[str, Callable[[], Any]] = {
        "score": lambda: smart_jax.score(of_q, of_d, pooled_weight=0),
        "product, NumPy, blocks of 128 tokens": lambda: product(128),
        "product, NumPy, blocks of 1,024 tokens": lambda: product(1024),
    }
    on_device = jax.device_put(rows)
    multiply, fold = jax.jit(lambda q, d: d @ q.T), jax.jit(lambda q, d: jax.numpy.max(d @ q.T))

    def by_xla(call: Callable[[Any, Any], Any], blocks: list[Any]) -> None:
        for block in blocks:
            call(on_device, block).block_until_ready()

    for tile in (256, 1024):
        blocks = [jax.device_put(d[at : at + tile]) for at in range(0, len(d) // tile * tile, tile)]
        runs[f"product, XLA, blocks of {tile:,} tokens"] = functools.partial(by_xla, multiply, blocks)
        runs[f"product and one maximum, XLA, blocks of {tile:,} tokens"] = functools.partial(by_xla, fold, blocks)
    return turns(runs, request["repeats"]) | {"compilations": count()}


TASKS = {f.__name__: f for f in (eager, small, shapes, another_k, short)}
in_fresh = functools.partial(in_process, module="benchmarks.calls")


# The tables


def ratios(taken: dict[str, list[float]], to: str) -> list[str]:
    """A table's rows: each time, and how many times another's it is."""
    rows = []
    for name, seconds in taken.items():
        ratio = [a / b for a, b in zip(seconds, taken[to], strict=True)]
        rows.append(f"| {name} | {spread(seconds, 3)} | {statistics.median(ratio):.2f} |")
    return rows


def print_eager(repeats: int, core: int, quick: bool) -> None:
    """Prints the tables of calls without jit."""
    known = [
        ("maxsim, 4 x 32 and 20 x 200 tokens, width 128", (4, 32, 128), (20, 200, 128)),
        ("maxsim, 1 x 32 and 10 x 50 tokens, width 128", (1, 32, 128), (10, 50, 128)),
        ("maxsim, 8 x 24 and 20 x 700 tokens, width 2,048", (8, 24, 2048), (20, 700, 2048)),
        ("maxsim_pairs, 16 x 32 and 16 x 5 x 100 tokens, width 128", (16, 32, 128), (16, 5, 100, 128)),
        ("maxsim_pairs, 4 x 24 and 4 x 8 x 700 tokens, width 2,048", (4, 24, 2048), (4, 8, 700, 2048)),
    ]
    changing, calls = (6, 20) if quick else (60, 1000)
    options = {"shapes": known[:2] if quick else known, "repeats": repeats, "changing": changing, "calls": calls}
    found = in_fresh("eager", core, **options)
    first, last = found.pop("memory")
    compiled, more = found.pop("compilations"), found.pop("all")
    for name, taken in found.items():
        gradients = {key: taken.pop(key) for key in list(taken) if key.startswith("gradient")}
        print(f"#### {name}\n\n| | CPU ms [min, max] | times jitted |\n| --- | ---: | ---: |")
        print("\n".join([*ratios(taken, "jitted"), *ratios(gradients, "gradient, jitted")]) + "\n", flush=True)
    print(f"{changing} random shapes: {compiled} compilations; {calls:,} more calls: {more - compiled}, and resident")
    print(f"memory {first / 2**20:,.0f} MiB after a tenth of them, {last / 2**20:,.0f} MiB after all.\n", flush=True)


def print_small(repeats: int, core: int, quick: bool) -> None:
    """Prints the table of few short documents."""
    found = in_fresh("small", core, widths=[128] if quick else [128, 2048], repeats=repeats)
    for name, taken in found.items():
        print(f"#### 1 query of 32 tokens, 10 documents of 50, {name}\n")
        print("| | CPU ms [min, max] | times NumPy |\n| --- | ---: | ---: |")
        print("\n".join(ratios(taken, "NumPy")) + "\n", flush=True)


def print_shapes(repeats: int, core: int, quick: bool) -> None:
    """Prints the table of calls of random shapes."""
    calls, documents = (4, 40) if quick else (200, 300)
    print(f"#### {calls} calls of random shapes, width 128, in a fresh process\n")
    print("| | ours, CPU s | NumPy, CPU s | times NumPy | compilations |\n| --- | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as folder:
        for what in ("score", "search"):
            for cache, name in (("", what), (folder, ""), (folder, f"{what}, warm compilation cache")):
                found = in_fresh("shapes", core, what=what, cache=cache, calls=calls, documents=documents)
                ours, by_numpy, compiled = (found[key] for key in ("ours", "NumPy", "compilations"))
                if name:
                    row = f"| {name} | {ours:.2f} | {by_numpy:.2f} | {ours / by_numpy:.2f} | {compiled} |"
                    print(row, flush=True)
    found = in_fresh("another_k", core, documents=1000, ks=[10, 20, 50, 1, 200, 1000])
    print("\nCompilations of a device's search with k = " + ", ".join(f"{k}: {n}" for k, n in found.items()) + "\n")


def print_short(repeats: int, core: int, quick: bool) -> None:
    """Prints the table of many short documents."""
    documents = 200 if quick else 5000
    found = in_fresh("short", core, documents=documents, repeats=repeats)
    compiled = found.pop("compilations")
    product = min((name for name in found if "product" in name), key=lambda name: statistics.median(found[name]))
    print(f"#### 100 queries of 32 tokens, {documents:,} documents of 10 to 40 tokens, width 128\n")
    print("| | CPU ms [min, max] | times the fastest product |\n| --- | ---: | ---: |")
    print("\n".join(ratios(found, product)) + f"\n\n{compiled} compilations\n", flush=True)


PARTS = {"eager": print_eager, "small": print_small, "shapes": print_shapes, "short": print_short}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="may be given several times; default all")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("files", nargs="*", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        return answer_request(TASKS[options.task], options.core, *options.files)
    print(machine() + "\n", flush=True)
    for name in options.part or PARTS:
        PARTS[name](options.repeats, options.core, options.quick)


if __name__ == "__main__":
    main()
