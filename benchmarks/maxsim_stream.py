"""A search through a store on disk that is not read into memory: workload W7 of `benchmarks.maxsim`."""

from __future__ import annotations

import gc
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.maxsim_peers import K, best
from benchmarks.maxsim_workloads import Workload, judge, unit
from benchmarks.processes import keep_freed_memory, peak_growth, resident
from smart_jax import Embeddings, search

PAGES_AT_ONCE = 500
POOLED_WIDTH = 8  # not used


def write_store(folder: Path, workload: Workload) -> None:
    """Random float16 pages as `Embeddings.save` would write them, a block at a time."""
    length, count, width = workload.lengths[0], workload.documents, workload.width
    offsets = np.arange(count + 1, dtype=np.int64) * length
    arrays = {
        "offsets": ("I64", [count + 1], offsets.nbytes),
        "pooled": ("F16", [count, POOLED_WIDTH], 2 * count * POOLED_WIDTH),
        "tokens": ("F16", [count * length, width], 2 * count * length * width),
    }
    header, start = {}, 0
    for name, (dtype, shape, size) in arrays.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(0)
    with (folder / "embeddings.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text + offsets.tobytes())
        file.write(np.zeros((count, POOLED_WIDTH), np.float16).tobytes())
        for first in range(0, count, PAGES_AT_ONCE):
            pages = min(PAGES_AT_ONCE, count - first)
            file.write(unit(rng, pages * length, width).astype(np.float16).tobytes())
        file.flush()
        os.fsync(file.fileno())  # the system only drops what is on the disk
    numbers = {"items": count, "tokens": count * length, "pooled_width": POOLED_WIDTH, "token_width": width}
    write_index(folder, file="embeddings.safetensors", **numbers)


def write_index(folder: Path, **fields: Any) -> None:
    """Writes the index of a float16 store with these fields: that of a single token, changed."""
    token = np.zeros((1, 1), np.float16)
    Embeddings(token, token, np.array([0, 1])).save(folder)
    (path,) = folder.glob("*.json")
    index = json.loads(path.read_text())
    (folder / index["file"]).unlink()
    path.write_text(json.dumps(index | fields))


def drop_cache(folder: Path) -> None:
    """Drops a file from the system's cache of files; a mapped page would stay."""
    gc.collect()
    with (folder / "embeddings.safetensors").open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def own_growth(run: Callable[[], Any]) -> tuple[Any, int]:
    """The result, and the peak growth of the memory that is the process's own, without pages of files; sampled."""
    before, growth, done = resident("RssAnon"), [0], threading.Event()

    def sample() -> None:
        while not done.wait(0.002):
            growth.append(resident("RssAnon") - before)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    result = run()
    done.set()
    thread.join()
    return result, max(growth)


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Wall and CPU seconds, cold and warm, memory and error of ours and of a loop over pages."""
    workload = Workload(**request["workload"])
    query = unit(np.random.default_rng(1), workload.query_tokens, workload.width)
    q = Embeddings(query[:1], query, np.array([0, len(query)]))

    def ours(documents: Embeddings):
        scores, indices = search(q, documents, K, pooled_weight=0)
        return scores[0], indices[0]

    def loop(documents: Embeddings, dtype: type = np.float32):
        bounds = zip(documents.offsets[:-1], documents.offsets[1:], strict=True)
        pages = (documents.tokens[a:b].astype(dtype) for a, b in bounds)
        return np.asarray([(query.astype(dtype) @ page.T).max(axis=1).mean() for page in pages])

    runs = {"smart_jax": ours, "numpy, page by page": lambda documents: best(loop(documents))}
    with tempfile.TemporaryDirectory(dir=request["folder"]) as scratch:
        folder = Path(scratch)
        write_store(folder, workload)
        expected = loop(Embeddings.load(folder, mmap=True), np.float64)[None]
        rows: dict[str, dict[str, Any]] = {name: {"cold": [], "warm": [], "cpu": []} for name in runs}
        for name, run in runs.items():
            keep_freed_memory(False)
            run(Embeddings.load(folder, mmap=True))  # compiles
            documents = Embeddings.load(folder, mmap=True)  # of which no page is mapped yet
            # peak_growth outside: it gives freed memory back before the call.
            (result, own), total = peak_growth(partial(own_growth, partial(run, documents)))
            error, missing = judge("search", result, (expected,))
            rows[name] |= {"error": error, "missing": missing, "own": own, "total": total}
            del documents, result
        keep_freed_memory(True)
        for _ in range(request["repeats"]):
            for name, run in runs.items():
                for cache in ("cold", "warm"):
                    if cache == "cold":
                        drop_cache(folder)
                    documents = Embeddings.load(folder, mmap=True)
                    wall, cpu = time.perf_counter(), time.process_time()
                    run(documents)
                    rows[name][cache].append(time.perf_counter() - wall)
                    if cache == "warm":
                        rows[name]["cpu"].append(time.process_time() - cpu)
                    del documents
        return {"bytes": (folder / "embeddings.safetensors").stat().st_size, "rows": rows}
