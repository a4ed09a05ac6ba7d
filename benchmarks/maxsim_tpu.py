"""MaxSim compiled for TPUs that need not be here: `python -m benchmarks.maxsim_tpu [--chips v5e] [--quick]`.

Nothing runs: libtpu compiles ahead of time, and the figures are its estimates, not measurements. It is no dependency:

    pip install --no-deps --target DIR "libtpu==0.0.42.*"
    PYTHONPATH=DIR python -m benchmarks.maxsim_tpu

Tokens are bfloat16. "time" is the cycles that the compiler expects, at the chip's clock; "of the least" is it by the
least that the chip allows: the longer of the product at its peak and of one reading of the documents, and for training
the time of its three products. "bytes" are those that the program reads and writes by those of the documents,
"temporaries" what it allocates beside arguments and results.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "JAX_PLATFORMS": "cpu"}

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from smart_jax import maxsim
from smart_jax.runtime import compiler_options

LIBTPU = 'pip install --no-deps --target DIR "libtpu==0.0.42.*"'


@dataclass(frozen=True)
class Chip:
    """Slice of one chip, clock in Hz, bfloat16 FLOP/s and bytes a second of memory, by the maker's data sheets."""

    slice: str
    clock: float
    peak: float
    memory: float


CHIPS = {
    "v5e": Chip("v5e:1x1", 1.5e9, 197e12, 819e9),
    "v5p": Chip("v5p:1x1x1", 1.75e9, 459e12, 2765e9),
    "v6e": Chip("v6e:1x1", 1.75e9, 918e12, 1640e9),
}


@dataclass(frozen=True)
class Workload:
    """Queries and documents: how many, of how many tokens, and how wide; `train` = value and gradients."""

    queries: int
    query_tokens: int
    documents: int
    tokens: int
    width: int
    train: bool = False

    @property
    def flops(self) -> int:
        """Floating-point operations of the products, of which there are one or three."""
        similarities = self.queries * self.query_tokens * self.documents * self.tokens
        return 2 * similarities * self.width * (3 if self.train else 1)

    @property
    def bytes(self) -> int:
        """Size of the documents."""
        return 2 * self.documents * self.tokens * self.width

    def __str__(self) -> str:
        size = f"{self.queries} x {self.query_tokens}, {self.documents} x {self.tokens:,} x {self.width:,}"
        return f"{size}, training" if self.train else size


WORKLOADS = [
    *(Workload(queries, 32, 500, 1030, width) for width in (1024, 2048, 4096) for queries in (1, 32)),
    Workload(32, 32, 128, 1030, 2048, train=True),
    Workload(32, 32, 128, 704, 2048, train=True),
]


@dataclass(frozen=True)
class Estimate:
    """Seconds and bytes of a compiled program."""

    seconds: float
    accessed: float
    temporary: int


def estimate(run: Callable[..., Any], arguments: Any, chip: str) -> Estimate:
    """Compiles a function for one chip and returns what the compiler says of it.

    Args:
      run: the function.
      arguments: shapes of its arguments.
      chip: one of `CHIPS`.

    Raises:
      ValueError: the program has loops, of whose trips the estimates know nothing.
    """
    found = topologies.get_topology_desc(
        topology_name=CHIPS[chip].slice, platform="tpu", chips_per_host_bounds=[1, 1, 1]
    )
    device = found.devices[0]
    place = jax.sharding.SingleDeviceSharding(device)
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments)
    jitted = jax.jit(run, compiler_options=compiler_options(device))
    program = jitted.trace(*placed).lower(lowering_platforms=("tpu",)).compile()
    text = program.as_text() or ""
    if " while(" in text:
        raise ValueError("the program has loops: choose fewer query tokens")
    cycles = sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', text)))
    memory, cost = program.memory_analysis(), program.cost_analysis()
    assert memory is not None and cost is not None
    return Estimate(cycles / CHIPS[chip].clock, cost["bytes accessed"], memory.temp_size_in_bytes)


def estimate_workload(workload: Workload, chip: str) -> Estimate:
    """Returns the estimate of `smart_jax.maxsim`, with masks, or of its value and gradients."""
    q = (workload.queries, workload.query_tokens, workload.width)
    d = (workload.documents, workload.tokens, workload.width)
    tokens = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in (q, d)]
    masks = [jax.ShapeDtypeStruct(shape[:2], jnp.bool) for shape in (q, d)]

    def train(q: jax.Array, d: jax.Array, q_mask: jax.Array, d_mask: jax.Array, g: jax.Array) -> Any:
        scores, pullback = jax.vjp(lambda q, d: maxsim(q, d, q_mask, d_mask), q, d)
        return scores, pullback(g)

    if workload.train:
        g = jax.ShapeDtypeStruct((workload.queries, workload.documents), jnp.float32)
        return estimate(train, (*tokens, *masks, g), chip)
    return estimate(maxsim, (*tokens, *masks), chip)


def row(workload: Workload, chip: str, found: Estimate) -> str:
    """Returns the line of the table."""
    limits = CHIPS[chip]
    least = workload.flops / limits.peak
    if not workload.train:
        least = max(least, workload.bytes / limits.memory)
    return (
        f"| {chip} | {workload} | {found.seconds * 1e3:.2f} | {found.seconds / least:.2f} | "
        f"{found.accessed / workload.bytes:.3f} | {found.temporary / 2**20:.1f} |"
    )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chips", default=",".join(CHIPS), help="by commas")
    parser.add_argument("--quick", action="store_true", help="two small workloads, to see that it runs")
    options = parser.parse_args()
    if importlib.util.find_spec("libtpu") is None:
        parser.exit(1, f"the compiler for TPUs is not installed; it needs no TPU: {LIBTPU}, and PYTHONPATH=DIR\n")
    workloads = WORKLOADS
    if options.quick:
        workloads = [Workload(1, 32, 16, 256, 1024), Workload(8, 32, 16, 256, 1024, train=True)]
    print("| chip | queries, documents | time, ms | of the least | bytes | temporaries, MiB |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for chip in options.chips.split(","):
        for workload in workloads:
            print(row(workload, chip, estimate_workload(workload, chip)), flush=True)


if __name__ == "__main__":
    main()
