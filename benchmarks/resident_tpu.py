"""Search of resident corpora on TPUs that need not be there: `python -m benchmarks.resident_tpu [--topology v5e:2x4]`.

The search itself (`smart_jax.to_device`, both parts of the score, top 100) is compiled for the chips by libtpu, and
what its compiler says is printed as a table; nothing runs. libtpu needs no TPU:
`pip install --no-deps --target DIR "libtpu==0.0.42.*"`, and then the command with PYTHONPATH=DIR.

- estimate: `estimated_cycles` of all operations, by the clock; sorting has none. An estimate of a compiler, not a
  measurement.
- calls: of the program, one after another, where its maxima for all queries at once would not fit; the estimate is of
  all of them.
- roofline: the larger of the products' time at the chip's peak and of one read of the chip's documents.
- bytes: that the program reads and writes, by the size of the chip's documents as they are stored, without padding.
- temporary: memory of a chip beside documents, queries and results; a copy of the documents would be in it.
"""

from __future__ import annotations

import os

os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}  # before jax starts
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")

import argparse
import importlib.util
import re
import sys
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from jax.sharding import Mesh

from smart_jax import Embeddings
from smart_jax.retrieval import lower_search

K = 100


class Chip(NamedTuple):
    """Peak of a chip's bfloat16 products, rate of its memory, and the clock that cycles are taken by."""

    flops: float
    bytes: float
    clock: float


# Makers' figures; the clocks are taken to be these.
CHIPS = {"v5e": Chip(197e12, 819e9, 1.5e9), "v5p": Chip(459e12, 2765e9, 1.75e9), "v6e": Chip(918e12, 1640e9, 1.75e9)}


class Case(NamedTuple):
    """A corpus and its queries."""

    documents: int
    length: int
    width: int
    dtype: str
    queries: int
    query_dtype: str = "bfloat16"
    query_tokens: int = 32

    @property
    def name(self) -> str:
        """Name in the table."""
        return f"{self.documents:,} x {self.length:,} x {self.width:,} | {self.dtype}"


CASES = [
    *(Case(10_000, 1030, 2048, dtype, n) for dtype in ("bfloat16", "int8") for n in (1, 32)),
    Case(10_000, 1030, 2048, "bfloat16", 1, "float32"),
    Case(10_000, 1030, 2048, "float16", 1, "float32"),
    Case(400_000, 180, 128, "bfloat16", 1),
    Case(400_000, 180, 128, "bfloat16", 32),
]


class Figures(NamedTuple):
    """Estimates of the compiler for a search; milliseconds are None where it gives no cycles."""

    calls: int
    milliseconds: float | None
    roofline: float
    bytes: float
    temporary: int


def embeddings(count: int, tokens: int, width: int, dtype: str) -> Embeddings:
    """Returns embeddings of these shapes, of zeros, with pooled vectors of width 2,048 or the tokens' own."""
    store, scales = np.dtype(getattr(ml_dtypes, dtype, dtype)), None
    if store == np.int8:
        scales = np.ones(count * tokens, np.float32)
    pooled = np.zeros((count, max(width, 2048)), ml_dtypes.bfloat16 if store == np.int8 else store)
    return Embeddings(pooled, np.zeros((count * tokens, width), store), np.arange(count + 1) * tokens, scales)


def mesh_of(topology: str) -> Mesh:
    """Returns descriptions of a slice's chips, such as those of v5e:2x4."""
    from jax.experimental import topologies

    devices = topologies.get_topology_desc(topology_name=topology, platform="tpu").devices
    return Mesh(np.asarray(devices), ("data",))


def figures(case: Case, mesh: Mesh, chip: Chip) -> Figures:
    """Compiles the first call of a search, and asks the compiler."""
    queries = embeddings(case.queries, case.query_tokens, case.width, case.query_dtype)
    document = embeddings(1, case.length, case.width, case.dtype)
    lowered, calls = lower_search(queries, document, np.full(case.documents, case.length), mesh, K)
    compiled = lowered.compile()
    memory: Any = compiled.memory_analysis()
    cost: Any = compiled.cost_analysis()
    cycles = [int(n) for n in re.findall(r'"estimated_cycles":"(\d+)"', compiled.as_text() or "")]
    corpus = case.documents * (document.nbytes - document.offsets.nbytes) / mesh.size
    products = 2 * case.queries * case.query_tokens * case.documents * case.length * case.width / mesh.size
    return Figures(
        calls,
        1e3 * calls * sum(cycles) / chip.clock if cycles else None,
        1e3 * max(products / chip.flops, corpus / chip.bytes),
        cost["bytes accessed"] / corpus,
        memory.temp_size_in_bytes,
    )


def row(topology: str, case: Case, found: Figures) -> str:
    """Returns a line of the table."""
    milliseconds = "" if found.milliseconds is None else f"{found.milliseconds:.1f}"
    return (
        f"| {topology} | {case.name} | {case.queries} x {case.query_tokens}, {case.query_dtype} | {found.calls} "
        f"| {milliseconds} | {found.roofline:.1f} | {found.bytes:.3f} | {found.temporary / 2**20:.1f} |"
    )


def case_of(documents: str) -> Case:
    """Returns the case of a text such as 1000000x100x128."""
    count, length, width = map(int, documents.split("x"))
    return Case(count, length, width, "bfloat16", 1)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", action="append", help="such as v5e:2x4, v6e:2x4 (these two by default)")
    parser.add_argument("--cases", default="", help="numbers of the table's lines for each topology, such as 0,2")
    parser.add_argument("--documents", help="one query through so many instead, NUMBERxTOKENSxWIDTH in bfloat16")
    options = parser.parse_args()
    if importlib.util.find_spec("libtpu") is None:
        sys.exit('libtpu is missing: `pip install --no-deps --target DIR "libtpu==0.0.42.*"`, then with PYTHONPATH=DIR')
    print("| chips | documents | store | queries | calls | estimate, ms | roofline, ms | bytes | temporary, MiB |")
    print("| --- | --- | --- | --- | ---: | ---: | ---: | ---: | ---: |", flush=True)
    for topology in options.topology or ["v5e:2x4", "v6e:2x4"]:
        mesh = mesh_of(topology)
        cases = [case_of(options.documents)] if options.documents else CASES
        for number, case in enumerate(cases):
            if not options.cases or str(number) in options.cases.split(","):
                print(row(topology, case, figures(case, mesh, CHIPS[topology.partition(":")[0]])), flush=True)


if __name__ == "__main__":
    main()
