"""The gated delta rule against torch, and by a TPU's compiler: `python -m benchmarks.gated_delta [--topology v5e:2x4]`.

Without a topology, on a CPU: `smart_jax`'s operation beside transformers' references in torch, chunked and token by
token, on the same arrays. Runs are interleaved in one process that is pinned to as many cores as --threads says; a
figure is the process's CPU seconds divided by the cores, median of 7, with the spread.

With one, nothing runs: libtpu compiles for one chip of it, which need not be here, and the figures are its estimates
(`pip install --no-deps --target DIR "libtpu==0.0.42.*"`, and PYTHONPATH=DIR). Beside them stands the time of the
products that the operation makes at the chip's peak, where one of float32 is six of bfloat16, and of those alone that
do not invert the triangular systems.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import statistics
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from benchmarks.encode import spread
from benchmarks.maxsim_tpu import CHIPS, LIBTPU
from benchmarks.processes import ENVIRONMENT
from benchmarks.train import interleaved
from smart_jax.models.qwen3_5 import CHUNKS, gated_delta

PASSES = 6  # products of bfloat16 that one of float32 takes at full precision
MEASURED = (
    "| rows x tokens, heads of keys / values | ours | torch, chunked | ratio | torch, recurrent | ratio | max error |\n"
    "|---|---|---|---:|---|---:|---:|"
)
ESTIMATED = (
    "| chip | rows x tokens, heads of keys / values | ms | its products at the peak, ms | ratio | without inverses, ms "
    "| forward and backward, ms | temporaries of it, MiB |\n|---|---|---:|---:|---:|---:|---:|---:|"
)


class Workload(NamedTuple):
    """Rows of so many tokens, heads of keys and of values; a head is 128 wide, as in every published Qwen3.5."""

    rows: int
    tokens: int
    keys: int
    values: int
    width: int = 128

    def __str__(self) -> str:
        return f"{self.rows} x {self.tokens:,}, {self.keys} / {self.values}"

    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Returns the shapes of the operation's arguments."""
        whole = (self.rows, self.tokens)
        keys = (*whole, self.keys, self.width)
        return keys, keys, (*whole, self.values, self.width), (*whole, self.values), (*whole, self.values)

    def products(self, chunk: int) -> tuple[list[tuple[int, int, int, int]], list[tuple[int, int, int, int]]]:
        """Returns batch, rows, depth and columns of the products, and of those that invert the systems."""
        chunks = self.rows * self.tokens // chunk
        c, w, of_keys, of_values = chunk, self.width, chunks * self.keys, chunks * self.values
        rest = [(of_values, c, w, w)] * 2 + [(of_values, c, c, w)] * 2 + [(of_values, w, c, w)]
        levels = chunk.bit_length() - 1  # blocks of one and of two positions, of two and of four ...; the first is free
        return [(of_keys, c, w, c)] * 2 + rest, [(of_values, c, c, c)] * (2 * (levels - 1))


MEASURES = [Workload(1, 1024, 16, 16), Workload(1, 1024, 16, 32), Workload(8, 128, 16, 16), Workload(1, 2048, 16, 16)]
ESTIMATES = [Workload(1, 2048, 16, 16), Workload(1, 2048, 16, 32), Workload(4, 2048, 16, 32)]


def arrays(workload: Workload, seed: int = 0) -> list[np.ndarray]:
    """Returns random arguments as SiLU leaves them: keys that resemble each other, decays of many scales."""
    rng = np.random.default_rng(seed)
    q, k, v, g, beta = (rng.normal(size=shape).astype(np.float32) for shape in workload.shapes())
    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k + 0.7))
    return [q, k, v, -np.exp(g - 2), 1 / (1 + np.exp(-beta))]


def measure(workload: Workload, cores: int, repeats: int) -> str:
    """Returns a line of the table of measured times."""
    import torch
    from transformers.models.qwen3_5 import modeling_qwen3_5 as reference

    q, k, v, g, beta = arrays(workload)
    ours = jax.jit(gated_delta)
    placed = [jnp.asarray(x) for x in (q * workload.width**-0.5, k, v, g, beta)]  # torch scales queries itself
    tensors = [torch.from_numpy(x) for x in (q, k, v, g, beta)]

    def torch_run(rule: Callable[..., Any]) -> Callable[[], Any]:
        def run() -> Any:
            with torch.inference_mode():
                return rule(*tensors, initial_state=None, output_final_state=False)[0]

        return run

    runs = {
        "ours": lambda: ours(*placed).block_until_ready(),
        "chunked": torch_run(reference.torch_chunk_gated_delta_rule),
        "recurrent": torch_run(reference.torch_recurrent_gated_delta_rule),
    }
    error = np.abs(np.asarray(runs["ours"]()) - runs["recurrent"]().numpy()).max()
    taken = interleaved(runs, repeats)
    ratios = {name: statistics.median(b / a for a, b in zip(taken["ours"], taken[name], strict=True)) for name in runs}
    sides = " | ".join(f"{spread(taken[name], cores)} | {ratios[name]:.2f}" for name in ("chunked", "recurrent"))
    return f"| {workload} | {spread(taken['ours'], cores)} | {sides} | {error:.1e} |"


def estimated_cycles(program: str) -> int:
    """Returns the compiler's estimates of all operations, those of a loop's body as often as it is run.

    Raises:
      ValueError: a loop whose number of trips is not a constant.
    """
    bodies = dict(re.findall(r"^(?:ENTRY )?%([\w.\-]+) \([^\n]*\{\n(.*?)^\}", program, re.MULTILINE | re.DOTALL))

    def total(name: str) -> int:
        cycles = 0
        for line in bodies[name].splitlines():
            if loop := re.search(r" while\(.*condition=%([\w.\-]+), body=%([\w.\-]+)", line):
                trips = re.findall(r" constant\((\d+)\)", bodies[loop[1]])
                if len(trips) != 1:
                    raise ValueError(f"the trips of the loop {loop[2]} are not a constant of its condition")
                cycles += int(trips[0]) * total(loop[2])
            elif found := re.search(r'"estimated_cycles":"(\d+)"', line):
                cycles += int(found[1])
        return cycles

    entry = re.search(r"^ENTRY %([\w.\-]+)", program, re.MULTILINE)
    assert entry is not None
    return total(entry[1])


class Compiler:
    """Estimates for a chip of a topology."""

    def __init__(self, topology: str) -> None:
        self.kind = topology.split(":")[0]
        self.chip = CHIPS[self.kind]
        device = topologies.get_topology_desc(topology_name=topology, platform="tpu").devices[0]
        self.sharding = SingleDeviceSharding(device)

    def estimate(self, function: Callable[..., Any], *shapes: tuple[int, ...]) -> tuple[float, float]:
        """Returns milliseconds, and MiB of temporaries."""
        arguments = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=self.sharding) for shape in shapes]
        program = jax.jit(function).trace(*arguments).lower(lowering_platforms=("tpu",)).compile()
        memory = program.memory_analysis()
        assert memory is not None
        cycles = estimated_cycles(program.as_text() or "")
        return cycles / self.chip.clock * 1e3, memory.temp_size_in_bytes / 2**20

    def row(self, workload: Workload, chunk: int) -> str:
        """Returns a line of the table of estimates."""

        def rule(*arguments: Any) -> jax.Array:
            return gated_delta(*arguments, chunk=chunk)

        def both(weights: Any, *arguments: Any) -> Any:
            out, pullback = jax.vjp(rule, *arguments)
            return out, pullback(weights)

        shapes = workload.shapes()
        (forward, _), (training, temporary) = self.estimate(rule, *shapes), self.estimate(both, shapes[2], *shapes)
        rest, inverses = (
            sum(2 * PASSES * n * a * b * c for n, a, b, c in part) / self.chip.peak * 1e3
            for part in workload.products(chunk)
        )
        return (
            f"| {self.kind} | {workload} | {forward:.2f} | {rest + inverses:.2f} | {forward / (rest + inverses):.2f} "
            f"| {rest:.2f} | {training:.2f} | {temporary:,.0f} |"
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", help="a slice of TPUs, such as v5e:2x4: estimates for one of its chips")
    parser.add_argument("--chunk", type=int, default=CHUNKS["tpu"], help="positions of a chunk, with --topology")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--core", type=int, default=min(os.sched_getaffinity(0)), help="first of the cores")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a small workload, to see that it runs")
    options = parser.parse_args()
    small = [Workload(1, 256, 1, 2)]
    if options.topology is None:
        cores = [core for core in sorted(os.sched_getaffinity(0)) if core >= options.core][: options.threads]
        os.sched_setaffinity(0, cores)  # before either library starts its threads
        os.environ["OMP_WAIT_POLICY"] = ENVIRONMENT["OMP_WAIT_POLICY"]  # torch's threads would spin

        import torch

        torch.set_num_threads(len(cores))
        print(MEASURED)
        for workload in small if options.quick else MEASURES:
            print(measure(workload, len(cores), options.repeats), flush=True)
        return
    if importlib.util.find_spec("libtpu") is None:
        sys.exit(f"the compiler for TPUs is not installed; it needs no TPU: {LIBTPU}, and PYTHONPATH=DIR")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    compiler = Compiler(options.topology)
    print(ESTIMATED)
    for workload in small if options.quick else ESTIMATES:
        print(compiler.row(workload, options.chunk), flush=True)


if __name__ == "__main__":
    main()
