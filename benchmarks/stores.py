"""Time that stored embeddings take to check, to quantise, to rerank and to read: `python -m benchmarks.stores`.

    python -m benchmarks.stores --part candidates --repeats 15
    python -m benchmarks.stores --part mapped --folder /some/disk        # writes and deletes 1.5 times --gigabytes
    python -m benchmarks.stores --gigabytes 0.05                         # to see that it runs

One process with one thread on one core; what is compared runs interleaved, A B A B. Figures are the process's CPU time,
or wall time where a disk is read, median [min, max]; a ratio is the median of the rounds' ratios.

- check: `Embeddings(...)` looks at every value for NaN and infinity.
- int8: `astype("int8")`. Both beside `numpy.copy` of the same tokens.
- candidates: `score` of one query of 32 tokens with 100 documents of 700 tokens, width 2,048, float16: side by side,
  and anywhere in a corpus of --gigabytes, by `candidates=`, by `d[ids]`, from a mapped file that is in the system's
  cache, and as a list of arrays.
- mapped: the same query through the whole corpus, mapped from a file that was dropped from the system's cache before.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.processes import answer_request, cpu_seconds, in_process, keep_freed_memory

LENGTH, WIDTH, CANDIDATES, QUERY = 700, 2048, 100, 32
CHECKED_WIDTHS = 128, 2048
Times = dict[str, list[float]]


def interleaved(runs: dict[str, Callable[[], object]], repeats: int) -> Times:
    """Returns CPU seconds of each, in turns, after a first call of each."""
    for run in runs.values():
        run()
    taken: Times = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            taken[name].append(cpu_seconds(run))
    return taken


def tokens_of(size: int, width: int, dtype: Any) -> Any:
    """Returns random tokens of about so many bytes."""
    import numpy as np

    count = max(1, size // (np.dtype(dtype).itemsize * width))
    rng, tokens = np.random.default_rng(0), np.empty((count, width), dtype)
    for start in range(0, count, 4096):
        part = rng.standard_normal((min(4096, count - start), width), dtype=np.float32)
        tokens[start : start + 4096] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return tokens


def check_and_int8(request: dict[str, Any]) -> list[tuple[str, int, int, Times]]:
    """Returns dtype, width, bytes and CPU seconds of checks, conversions and copies."""
    import ml_dtypes
    import numpy as np

    from smart_jax import Embeddings

    rows = []
    for width in CHECKED_WIDTHS:
        for dtype in (np.float32, np.float16, ml_dtypes.bfloat16):
            tokens = tokens_of(min(request["bytes"], 2**27), width, dtype)
            offsets = np.array([0, len(tokens)])
            e = Embeddings(tokens[:1], tokens, offsets)
            runs = {
                "check": lambda t=tokens, o=offsets: Embeddings(t[:1], t, o),
                "int8": lambda e=e: e.astype(np.int8),
                "copy": lambda t=tokens: t.copy(),
            }
            rows.append((np.dtype(dtype).name, width, tokens.nbytes, interleaved(runs, request["repeats"])))
    return rows


def corpus(size: int) -> tuple[Any, Any]:
    """Returns a query, and documents of about so many bytes, at least as many as there are candidates."""
    import numpy as np

    from smart_jax import Embeddings

    count = max(CANDIDATES, size // (2 * WIDTH * LENGTH))
    tokens, query = (
        tokens_of(2 * WIDTH * LENGTH * count, WIDTH, np.float16),
        tokens_of(4 * WIDTH * QUERY, WIDTH, np.float32),
    )
    documents = Embeddings(tokens[::LENGTH], tokens, np.arange(count + 1) * LENGTH)
    return Embeddings(query[:1], query, np.array([0, QUERY])), documents


def candidates(request: dict[str, Any]) -> Times:
    """Returns CPU seconds of scores with candidates and with as many documents side by side."""
    import numpy as np

    from smart_jax import Embeddings, score

    q, d = corpus(request["bytes"])
    ids = np.random.default_rng(1).permutation(len(d))[:CANDIDATES]
    side_by_side = Embeddings.concatenate([d[:CANDIDATES]])
    arrays, query = [d.tokens[a:b] for a, b in zip(d.offsets[ids], d.offsets[ids + 1], strict=True)], q.tokens[None]
    with tempfile.TemporaryDirectory(dir=request["folder"]) as scratch:
        d.save(scratch)
        mapped = Embeddings.load(scratch, mmap=True)
        runs = {
            "side by side": lambda: score(q, side_by_side, pooled_weight=0),
            "candidates=ids": lambda: score(q, d, pooled_weight=0, candidates=ids),
            "candidates=ids, mapped": lambda: score(q, mapped, pooled_weight=0, candidates=ids),
            "d[ids]": lambda: score(q, d[ids], pooled_weight=0),
            "a list of arrays": lambda: score(query, arrays),
        }
        return interleaved(runs, request["repeats"])


def mapped(request: dict[str, Any]) -> dict[str, Any]:
    """Returns bytes, and wall seconds of a search through files that no cache holds."""
    import numpy as np

    from smart_jax import Embeddings, search

    keep_freed_memory(True)
    q, d = corpus(request["bytes"])
    sizes, taken = {}, {}
    with tempfile.TemporaryDirectory(dir=request["folder"]) as scratch:
        for name in ("float16", "int8"):
            e = d.astype(np.dtype(name))
            e.save(Path(scratch) / name)
            sizes[name], taken[name] = e.nbytes, {"cold": [], "warm": []}
        del d, e
        for number in range(request["repeats"] + 1):
            for name, times in taken.items():
                for cache in ("cold", "warm"):
                    if cache == "cold":
                        drop(Path(scratch) / name)
                    documents = Embeddings.load(Path(scratch) / name, mmap=True)
                    started = time.perf_counter()
                    search(q, documents, 10, pooled_weight=0)
                    if number:  # the first compiles
                        times[cache].append(time.perf_counter() - started)
                    del documents
    return {"bytes": sizes, "taken": taken}


def drop(folder: Path) -> None:
    """Drops a folder's files from the system's cache; pages that a process has mapped would stay."""
    gc.collect()
    for path in folder.glob("*.safetensors"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def spread(seconds: list[float]) -> str:
    """Writes median, minimum and maximum in milliseconds."""
    ms = [t * 1e3 for t in seconds]
    return f"{statistics.median(ms):.1f} [{min(ms):.1f}, {max(ms):.1f}]"


def ratio(a: list[float], b: list[float]) -> str:
    """Writes the median of the ratios of a round, with the least and the largest."""
    ratios = [x / y for x, y in zip(a, b, strict=True)]
    return f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"


def print_check_and_int8(rows: list[tuple[str, int, int, Times]]) -> None:
    """Prints rates, in GB/s of the tokens that are read."""
    print("| tokens | width | check, GB/s | astype(int8), GB/s | copy, GB/s | check / copy | int8 / copy |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for dtype, width, size, taken in rows:
        rates = " | ".join(f"{size / statistics.median(taken[name]) / 1e9:.1f}" for name in ("check", "int8", "copy"))
        ratios = " | ".join(ratio(taken[name], taken["copy"]) for name in ("check", "int8"))
        print(f"| {dtype} | {width:,} | {rates} | {ratios} |")


def print_candidates(taken: Times) -> None:
    """Prints the time of each way, and how often it takes that of documents side by side."""
    print("| score of 100 documents | CPU ms | times side by side |")
    print("| --- | ---: | ---: |")
    for name, seconds in taken.items():
        print(f"| {name} | {spread(seconds)} | {ratio(seconds, taken['side by side'])} |")


def print_mapped(found: dict[str, Any]) -> None:
    """Prints wall times, and how much faster int8 is."""
    taken = found["taken"]
    print("| store | GB | from disk, ms | from the system's cache, ms | times faster from disk | from the cache |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, times in taken.items():
        cells = [f"{found['bytes'][name] / 1e9:.2f}", *(spread(times[cache]) for cache in ("cold", "warm"))]
        cells += [ratio(taken["float16"][cache], times[cache]) for cache in ("cold", "warm")]
        print(f"| {name} | " + " | ".join(cells) + " |")


PARTS: dict[str, tuple[Callable[[dict[str, Any]], Any], Callable[[Any], None]]] = {
    "check": (check_and_int8, print_check_and_int8),
    "candidates": (candidates, print_candidates),
    "mapped": (mapped, print_mapped),
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", action="append", choices=PARTS, help="may be repeated; all by default")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--gigabytes", type=float, default=1.2, help="of the float16 corpus")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--task", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("files", nargs="*", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        return answer_request(PARTS[options.task][0], options.core, *options.files)
    request = {"repeats": options.repeats, "bytes": int(options.gigabytes * 1e9), "folder": str(options.folder)}
    for part in options.part or PARTS:
        PARTS[part][1](in_process(part, options.core, module="benchmarks.stores", **request))
        print(flush=True)


if __name__ == "__main__":
    main()
