"""A soak: calls of random shapes, counts and dtypes, beside the memory and the open files of the process.

    python -m tests.soak --calls 2000

Every third is a search of documents on the device, which is a compilation. Each line is after a tenth of the calls.
It is an error where open files rise after the first 200 calls, or memory by more than jax's own tables take while they
fill: 15 % of that after 200 calls, and 5 % of that after 1,000.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import ml_dtypes
import numpy as np

import smart_jax
from smart_jax import Embeddings

LIMITS = {200: 1.15, 1000: 1.05}  # of the memory after so many calls
OTHERS = ("score", "search", "maxsim", "pairs", "int8", "candidates")
DTYPES = tuple(np.dtype(t) for t in (np.float32, np.float16, ml_dtypes.bfloat16))


def vectors(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Returns unit vectors of one of the dtypes."""
    values = rng.normal(size=shape)
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(DTYPES[rng.integers(3)])


def embeddings(rng: np.random.Generator, items: int, width: int) -> Embeddings:
    """Returns embeddings of 1 to 30 tokens each."""
    offsets = np.concatenate([[0], np.cumsum(rng.integers(1, 31, items))])
    dtype = DTYPES[rng.integers(3)]
    return Embeddings(vectors(rng, items, width).astype(dtype), vectors(rng, offsets[-1], width).astype(dtype), offsets)


def call(kind: str, rng: np.random.Generator) -> None:
    """Calls one public function with arrays of a shape of its own."""
    queries, documents, width, k = (int(rng.integers(*bounds)) for bounds in ((1, 9), (1, 60), (4, 40), (1, 30)))
    if kind in ("maxsim", "pairs"):
        q_length, d_length = rng.integers(1, 20, 2).tolist()
        each = (queries, documents) if kind == "pairs" else (documents,)
        function = smart_jax.maxsim_pairs if kind == "pairs" else smart_jax.maxsim
        np.asarray(function(vectors(rng, queries, q_length, width), vectors(rng, *each, d_length, width)))
        return
    q, d = embeddings(rng, queries, width), embeddings(rng, documents, width)
    if kind == "score":
        smart_jax.score(q, d)
    elif kind == "candidates":
        smart_jax.score(q, d, candidates=rng.integers(0, documents, (queries, k)))
    else:
        d = smart_jax.to_device(d) if kind == "resident" else d.astype(np.int8) if kind == "int8" else d
        smart_jax.search(q, d, k=k)


def memory() -> float:
    """Returns MiB of this process that are no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


def failures(rows: Sequence[tuple[int, float, int]]) -> list[str]:
    """Returns what rose more than it may, of calls with the memory and open files after them."""
    found = []
    for start, limit in LIMITS.items():
        after = [row for row in rows if row[0] >= start]
        for calls, mebibytes, _ in after[1:]:
            if mebibytes > limit * after[0][1]:
                found.append(f"memory: {mebibytes:.0f} MiB after {calls} calls, {after[0][1]:.0f} after {after[0][0]}")
    files = [row[2] for row in rows if row[0] >= min(LIMITS)]
    return found + ([f"open files: {files[0]} to {max(files)}"] if files and max(files) > files[0] else [])


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng, rows = np.random.default_rng(asked.seed), []
    for tenth in range(1, 11):
        for number in range((tenth - 1) * asked.calls // 10, tenth * asked.calls // 10):
            call("resident" if number % 3 == 0 else OTHERS[rng.integers(len(OTHERS))], rng)
        gc.collect()
        rows.append((tenth * asked.calls // 10, memory(), len(os.listdir("/proc/self/fd"))))
        print("{} {:.0f} {}".format(*rows[-1]), flush=True)
    if found := failures(rows):
        sys.exit("\n".join(found))


if __name__ == "__main__":
    main()
