"""Search of resident corpora against search of the same embeddings: `python -m benchmarks.resident [--repeats 9]`.

Both in turns, on the CPU or on all accelerators, top 10; the table has milliseconds, median [min, max], and the median
of the ratios within the rounds; above 1 = the resident corpus is searched faster. On a CPU one thread on one core, CPU
time and float32 queries; on accelerators wall-clock time, bfloat16 queries and larger corpora. "memory" is what the
documents take on the devices, with padding, by what their embeddings take; "put" is the time of `to_device`.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from jax.sharding import Mesh

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PJRT_NPROC": "1", "OMP_WAIT_POLICY": "PASSIVE"}


class Workload(NamedTuple):
    """Queries and documents; lengths are uniform between two."""

    queries: int
    query_tokens: int
    documents: int
    lengths: tuple[int, int]
    width: int
    dtype: str

    @property
    def name(self) -> str:
        """Name in the table."""
        least, most = self.lengths
        tokens = f"{most:,}" if least == most else f"{least:,} to {most:,}"
        return f"{self.queries} x {self.query_tokens} | {self.documents:,} x {tokens} x {self.width:,} | {self.dtype}"


WORKLOADS = [
    Workload(1, 32, 2_000, (100, 800), 128, "float32"),
    Workload(1, 32, 2_000, (100, 800), 128, "float16"),
    Workload(1, 32, 2_000, (100, 800), 128, "int8"),
    Workload(16, 20, 500, (1030, 1030), 128, "float32"),
    Workload(1, 32, 200, (1030, 1030), 2048, "float16"),
    Workload(1, 10, 5_000, (10, 40), 128, "float32"),
    Workload(1, 10, 50, (10, 40), 128, "float32"),
]
A_DEVICE = [  # of accelerators, for each of them
    *(Workload(n, 32, 1_250, (1030, 1030), 2048, dtype) for dtype in ("bfloat16", "int8") for n in (1, 32)),
    Workload(1, 32, 50_000, (180, 180), 128, "bfloat16"),
]


def measure(workload: Workload, repeats: int, clock: Callable[[], float], mesh: Mesh | None) -> str:
    """Returns a line of the table."""
    import jax
    import ml_dtypes
    import numpy as np

    from smart_jax import Embeddings, search, to_device

    rng = np.random.default_rng(0)
    dtype = np.dtype(getattr(ml_dtypes, workload.dtype, workload.dtype))

    # Rows of one table again and again: to draw all of them would take longer than the rest.
    table = rng.standard_normal((2**16, workload.width), np.float32)
    table /= np.linalg.norm(table, axis=1, keepdims=True)

    def embeddings(lengths: np.ndarray, dtype: np.dtype) -> Embeddings:
        offsets, stored = np.concatenate([[0], np.cumsum(lengths)]), table.astype(dtype)
        pooled, tokens = (stored[np.arange(count) % len(stored)] for count in (len(lengths), int(offsets[-1])))
        return Embeddings(pooled, tokens, offsets)

    least, most = workload.lengths
    lengths = rng.integers(least, most + 1, workload.documents)
    documents = embeddings(lengths, np.dtype(np.float16) if dtype == np.int8 else dtype).astype(dtype)
    queries = embeddings(np.full(workload.queries, workload.query_tokens), np.dtype(np.float32))
    if mesh is not None:
        queries = queries.astype(ml_dtypes.bfloat16)
    started = clock()
    resident = to_device(documents, mesh)
    jax.block_until_ready(resident.documents)
    put = clock() - started
    ways = [lambda: search(queries, resident, 10), lambda: search(queries, documents, 10, mesh=mesh)]
    first, second = (run() for run in ways)
    np.testing.assert_allclose(first[0], second[0], rtol=1e-4, atol=1e-4)
    rounds = [[timed(run, clock) for run in ways] for _ in range(repeats)]
    ours, streamed = zip(*rounds, strict=True)
    ratio = statistics.median(b / a for a, b in rounds)
    memory = resident.nbytes / documents.nbytes
    return f"| {workload.name} | {spread(ours)} | {spread(streamed)} | {ratio:.2f} | {memory:.2f} | {put:.2f} s |"


def timed(run: Callable[[], object], clock: Callable[[], float]) -> float:
    """Returns the time of a call."""
    started = clock()
    run()
    return clock() - started


def spread(times: tuple[float, ...]) -> str:
    """Returns median, least and most of the times as text, in milliseconds."""
    ms = [1e3 * t for t in times]
    return f"{statistics.median(ms):.2f} [{min(ms):.2f}, {max(ms):.2f}]"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9, help="rounds of a workload")
    parser.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)), help="the core, on a CPU")
    parser.add_argument("--workloads", default="", help="numbers of the table's lines, such as 0,2")
    options = parser.parse_args()
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        os.environ |= ONE_THREAD  # before jax starts
        os.sched_setaffinity(0, {options.core})
    import jax

    from smart_jax import make_mesh

    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    clock = time.process_time if on_cpu else time.perf_counter
    print(f"{device.device_kind}, {'one thread, CPU time' if on_cpu else 'wall-clock time'}")
    print("| queries | documents | store | resident, ms | streamed, ms | ratio | memory | put |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    mesh = None if on_cpu else make_mesh()
    share = [workload._replace(documents=workload.documents * jax.device_count()) for workload in A_DEVICE]
    for number, workload in enumerate(WORKLOADS if mesh is None else share):
        if not options.workloads or str(number) in options.workloads.split(","):
            print(measure(workload, options.repeats, clock, mesh), flush=True)


if __name__ == "__main__":
    main()
