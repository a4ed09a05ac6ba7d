"""MaxSim on the default device: `python -m benchmarks.maxsim_device [--repeats 7] [--quick]`.

Random unit vectors in bfloat16 that lie on the device already; where torch has a CUDA device, late-interaction-kernels
(`MaxSimScorer.score`) and flash-maxsim (`flash_maxsim`, `flash_maxsim_batched`) score the same, in turns, if they are
installed:

    pip install --no-deps late-interaction-kernels==0.4.5 flash-maxsim==0.3.0

Figures are wall-clock times of a call, median of the rounds; "of the peak" counts the products alone. The error is
against float64 NumPy on the first documents.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.encode_device import peak_flops, seconds
from smart_jax import maxsim
from smart_jax.runtime import compiler_options

QUERY_TOKENS, DOCUMENT_TOKENS = 32, 1030
CHECKED = 4  # documents whose scores are compared
Call = Callable[[], Any]


@dataclass(frozen=True)
class Workload:
    """Queries and documents, of `QUERY_TOKENS` and `DOCUMENT_TOKENS` tokens, as wide as `width`."""

    queries: int
    documents: int
    width: int

    @property
    def flops(self) -> int:
        """Floating-point operations of the products."""
        return 2 * self.queries * QUERY_TOKENS * self.documents * DOCUMENT_TOKENS * self.width


def workloads(gigabytes: float) -> list[Workload]:
    """Returns those of the table: corpora of so many gigabytes, one query and 32 of them."""
    sizes = {
        width: max(2, int(gigabytes * 1e9 / (2 * DOCUMENT_TOKENS * width))) for width in (128, 512, 1024, 2048, 4096)
    }
    return [Workload(queries, documents, width) for width, documents in sizes.items() for queries in (1, 32)]


def ours(q: jax.Array, d: jax.Array) -> Call:
    """Returns `smart_jax.maxsim`, compiled, and a call of it."""
    score = jax.jit(maxsim, compiler_options=compiler_options())
    return lambda: score(q, d).block_until_ready()


def peers(q: jax.Array, d: jax.Array) -> dict[str, Call]:
    """Returns calls of the other libraries that are installed, on torch's CUDA device; none without one."""
    if importlib.util.find_spec("torch") is None:
        return {}
    import torch

    if not torch.cuda.is_available():
        return {}
    queries, documents = (torch.from_dlpack(x) for x in (q, d))
    calls: dict[str, Call] = {}

    def timed(score: Callable[[], Any]) -> Call:
        @torch.inference_mode()
        def run() -> Any:
            scores = score().reshape(len(queries), -1)
            torch.cuda.synchronize()
            return scores.float().cpu().numpy() / QUERY_TOKENS

        return run

    if importlib.util.find_spec("late_interaction_kernels"):
        from late_interaction_kernels import MaxSimScorer

        scorer = MaxSimScorer(normalize=False)
        calls["late-interaction-kernels"] = timed(lambda: scorer.score(queries, documents))
    if importlib.util.find_spec("flash_maxsim"):
        from flash_maxsim import flash_maxsim, flash_maxsim_batched

        one = len(queries) == 1
        calls["flash-maxsim"] = timed(
            lambda: flash_maxsim(queries[0], documents) if one else flash_maxsim_batched(queries, documents)
        )
    return calls


def measure(workload: Workload, repeats: int) -> list[str]:
    """Returns the workload's lines of the table."""
    keys, w = jax.random.split(jax.random.key(0)), workload
    shapes = (w.queries, QUERY_TOKENS, w.width), (w.documents, DOCUMENT_TOKENS, w.width)
    # One step, so that no float32 copy of a corpus that fills the device is made.
    draw = jax.jit(
        lambda key, shape: (lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True))(
            jax.random.normal(key, shape, jnp.bfloat16)
        ),
        static_argnums=1,
    )
    q, d = (draw(key, shape) for key, shape in zip(keys, shapes, strict=True))
    expected = np.einsum("bpd,nld->bpnl", *(np.asarray(x).astype(np.float64) for x in (q, d[:CHECKED])))
    expected = expected.max(axis=3).mean(axis=1)
    peak, lines, calls = peak_flops(jax.devices()[0].device_kind), [], {"ours": ours(q, d), **peers(q, d)}
    what, notes = f"{w.queries} x {QUERY_TOKENS}, {w.documents:,} x {DOCUMENT_TOKENS:,} x {w.width:,}", {}
    for name, call in list(calls.items()):
        try:
            notes[name] = f"{np.abs(np.asarray(call(), np.float64)[:, :CHECKED] - expected).max():.0e}"
        except Exception as error:  # a peer's, of whatever kind: it is what the table says
            lines.append(f"| {what} | {name} | {type(error).__name__} | | | |")
            del calls[name]
    rounds = [{name: seconds(call) for name, call in calls.items()} for _ in range(repeats)]
    for name in calls:
        taken = [r[name] for r in rounds]
        median = statistics.median(taken)
        share = "" if peak is None else f"{w.flops / median / peak:.0%}"
        ratio = statistics.median(r[name] / r["ours"] for r in rounds) if "ours" in calls else float("nan")
        times = f"{median * 1e3:.2f} [{min(taken) * 1e3:.2f}, {max(taken) * 1e3:.2f}]"
        lines.append(f"| {what} | {name} | {times} | {ratio:.2f} | {share} | {notes[name]} |")
    return lines


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of the documents")
    parser.add_argument("--quick", action="store_true", help="two documents, to see that it runs anywhere")
    options = parser.parse_args()
    print(f"MaxSim, bfloat16, {jax.devices()[0].device_kind}\n")
    print("| queries, documents | | ms [min, max] | times ours | of the peak | max error |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for workload in workloads(0.0 if options.quick else options.gigabytes):
        print("\n".join(measure(workload, 1 if options.quick else options.repeats)), flush=True)


if __name__ == "__main__":
    main()
