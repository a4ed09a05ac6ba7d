"""The adapter's training step, our MaxSim against autodiff through a dense max: `python -m benchmarks.maxsim_step`.

Two workloads at the paper's width: the late-interaction part alone (loss and gradients of given tokens) and the whole
step (LayerNorm and Linear 2048 -> 2048 of query and document states, L2 norm, MaxSim, InfoNCE, gradients of the
adapter's parameters; the dense way has flax's LayerNorm and Linear one after the other; "again" projects documents
once more in the backward pass, as `remat` does in a training run). Both ways run interleaved,
A B A B, in one process that is pinned to so many cores; the figure is the process's CPU seconds divided by the cores,
median with [min, max]. Memory is XLA's count of temporary buffers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable


def cpu_seconds(run: Callable[[], object]) -> float:
    """Returns the CPU time of one call, until its result is there."""
    import jax

    started = time.process_time()
    jax.block_until_ready(run())
    return time.process_time() - started


def compare(name: str, ours, dense, inputs: tuple, cores: int, repeats: int) -> None:
    """Prints time, memory and difference of two ways to compute the same."""
    import jax
    import numpy as np

    compiled = [jax.jit(f).lower(*inputs).compile() for f in (ours, dense)]
    results = [jax.tree.leaves(run(*inputs)) for run in compiled]
    error = max(
        float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(*map(jax.device_get, results), strict=True)
    )
    del results
    pairs = [tuple(cpu_seconds(lambda run=run: run(*inputs)) for run in compiled) for _ in range(repeats)]
    memory = [run.memory_analysis().temp_size_in_bytes / 2**20 for run in compiled]
    for label, times, mib in zip(("ours", "dense"), zip(*pairs, strict=True), memory, strict=True):
        ms = [t / cores * 1e3 for t in times]
        print(
            f"{name:12s} {label}  {statistics.median(ms):7.1f} ms [{min(ms):.1f}, {max(ms):.1f}]  {mib:6.1f} MiB",
            flush=True,
        )
    ratios = [b / a for a, b in pairs]
    print(
        f"{name:12s} ours is {statistics.median(ratios):.2f}x [{min(ratios):.2f}, {max(ratios):.2f}] as fast, with "
        f"1/{memory[1] / memory[0]:.1f} of the temporary memory; largest relative difference {error:.1e}",
        flush=True,
    )


def run(options: argparse.Namespace, cores: int) -> None:
    """Compares the steps of a frozen backbone and of a projection."""
    import jax
    import jax.numpy as jnp
    from flax import nnx

    from smart_jax.maxsim import maxsim, projected_maxsim
    from smart_jax.retrieval import Adapter, AdapterConfig
    from train.objective import losses

    B, P, L, D = options.batch, options.query_tokens, options.document_tokens, options.width
    graphdef, params = nnx.split(Adapter(AdapterConfig(hidden_size=D), rngs=nnx.Rngs(0)))
    keys = jax.random.split(jax.random.key(0), 2)
    states = tuple(jax.random.normal(key, (B, length, D)) for key, length in zip(keys, (P, L), strict=True))
    tokens = tuple(losses.unit(x) for x in states)

    def dense_maxsim(q, d):
        return jnp.einsum("bpd,nld->bpnl", q, d, precision="highest").max(axis=-1).mean(axis=1)

    def part(score):
        return jax.value_and_grad(lambda q, d: losses.info_nce(score(q, d) / 0.03, jnp.arange(B)), (0, 1))

    def plain_project(adapter, x):
        return losses.unit(adapter.proj(adapter.norm(x)))

    def step(score, project):
        def loss(params, q, d):
            adapter = nnx.merge(graphdef, params)
            return losses.info_nce(score(project(adapter, q), project(adapter, d)) / 0.03, jnp.arange(B))

        return jax.value_and_grad(loss)

    print(f"{jax.devices()[0].device_kind}, {cores} core(s); B={B}, {P} query and {L} document tokens, width {D}")
    compare("late part", part(maxsim), part(dense_maxsim), tokens, cores, options.repeats)
    ours, plain = step(maxsim, Adapter.project), step(dense_maxsim, plain_project)
    compare("whole step", ours, plain, (params, *states), cores, options.repeats)

    def project(params, x):
        return nnx.merge(graphdef, params).project(x)

    def loss(params, q, d):
        return losses.info_nce(projected_maxsim(project, params, project(params, q), d) / 0.03, jnp.arange(B))

    compare("again", jax.value_and_grad(loss), plain, (params, *states), cores, options.repeats)


def main() -> None:
    """Runs the comparison on the cores that the command line allows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--query-tokens", type=int, default=32)
    parser.add_argument("--document-tokens", type=int, default=256)
    parser.add_argument("--width", type=int, default=2048)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[: options.threads]
    os.sched_setaffinity(0, cores)  # before jax starts its threads
    run(options, len(cores))


if __name__ == "__main__":
    main()
