"""Memory of 2B and 8B training steps on a device: `python -m benchmarks.train --memory [--model 2b] [--devices 8] ...`.

Nothing is allocated: the steps of `train.step` are compiled for 1, 8 or 64 devices, and the compiler's memory analysis
is printed. Where the package libtpu is installed, its compiler is used, for v5p chips that need not be there; otherwise
XLA's CPU compiler for virtual devices, with its memory-minimising schedule. The CPU compiler turns bfloat16 products
into float32 ones, so that its temporary memory is an upper bound of an accelerator's.

The steps are those of configs/lora_visdoc.py: a frozen bfloat16 backbone split over all devices (fsdp), `remat`,
queries of 64 tokens and pages of 1,024 tokens with 3,840 patches. All text layers are compiled, and four layers of the
frozen vision tower. Parameters, optimizer state and batch are counted at full depth.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import os
import time
from typing import Any, NamedTuple

MODELS = ("2b", "8b")
DEVICES = (1, 8, 64)
VISION_LAYERS = 4  # layers of the tower that are compiled: being frozen, they keep nothing, however many they are
# The program never runs, so that little effort suffices.
COMPILER_OPTIONS: dict[str, dict[str, float]] = {"tpu": {"exec_time_optimization_effort": -1.0}, "cpu": {}}
STEPS = ("adapter", "lora", "gradcache")
# Memory of one device in GiB (makers' data sheets), of which a tenth is left to the runtime.
MACHINES = {"TPU v5e": 16, "H100": 80, "TPU v5p": 95}
USABLE = 0.9
TOPOLOGIES = {1: "v5p:1x1x1", 8: "v5p:2x2x2", 64: "v5p:4x4x4"}
HEADER = (
    "| model | step | devices | parameters | optimizer | batch | temporary | total, GiB | fits on |\n"
    "|---|---|---:|---:|---:|---:|---:|---:|---|"
)


class Memory(NamedTuple):
    """Bytes of one device, by what they hold."""

    parameters: int
    optimizer: int
    batch: int
    temporary: int

    @property
    def total(self) -> int:
        """Bytes of all together."""
        return sum(self)


def devices_of(count: int, compiler: str) -> list[Any]:
    """Returns descriptions of chips that need not be there, or virtual devices."""
    import jax

    if compiler == "cpu":
        return jax.devices()[:count]
    from jax.experimental import topologies

    sizes = {"chips_per_host_bounds": [1, 1, 1]} if count == 1 else {}
    return topologies.get_topology_desc(topology_name=TOPOLOGIES[count], platform="tpu", **sizes).devices


def with_vision_layers(shape: dict[str, Any], vision: int) -> dict[str, Any]:
    """Returns the shape with fewer layers of vision, the first of which DeepStack taps."""
    shape = copy.deepcopy(shape)
    taps = len(shape["vision_config"]["deepstack_visual_indexes"])
    shape["vision_config"] |= {"depth": vision, "deepstack_visual_indexes": list(range(taps))}
    return shape


def temporary(shape: dict[str, Any], mesh: Any, work: Any, compiler: str) -> int:
    """Returns the bytes of a device beyond arguments and results."""
    from benchmarks.abstract import abstract_step
    from smart_jax.models import QwenVLConfig

    step, run = abstract_step(QwenVLConfig.from_hf(shape), mesh, work)
    lowered = step.trace(*run.arguments).lower(lowering_platforms=(compiler,))
    return lowered.compile(COMPILER_OPTIONS[compiler]).memory_analysis().temp_size_in_bytes


def measure(shape: dict[str, Any], work: Any, count: int, compiler: str) -> Memory:
    """Returns the memory of one of `count` devices."""
    from smart_jax.models import QwenVLConfig
    from smart_jax.runtime import make_mesh
    from train.plan import device_bytes

    mesh = make_mesh(data=1, fsdp=count, devices=devices_of(count, compiler))
    state, frozen, batch = work.run(QwenVLConfig.from_hf(shape), mesh).arguments
    arrays = (device_bytes(part) for part in ((state.params, frozen), state.opt_state, batch))
    return Memory(*arrays, temporary(with_vision_layers(shape, VISION_LAYERS), mesh, work, compiler))


def row(model: str, step: str, count: int, memory: Memory) -> str:
    """Returns a line of the table."""
    gib = [part / 2**30 for part in (*memory, memory.total)]
    fits = [name for name, size in MACHINES.items() if gib[-1] <= USABLE * size]
    figures = " | ".join(f"{x:,.2f}" for x in gib)
    return f"| {model} | {step} | {count} | {figures} | {', '.join(fits) or 'none of them'} |"


def works(rows: int, chunk: int) -> dict[str, Any]:
    """Returns the work of each step, with `rows` queries and pages on a device."""
    from benchmarks.abstract import Work

    sizes: dict[str, Any] = {"rows": rows, "page_tokens": 1024, "patches": 3840, "remat": True}
    return {
        "adapter": Work("adapter", **sizes, chunk=chunk),  # nothing of the backbone is kept: no cost in time
        "lora": Work("lora", **sizes),
        "gradcache": Work("lora", **sizes, chunk=chunk),
    }


def main(arguments: list[str]) -> None:
    """The command line after --memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", choices=MODELS, help="may be repeated; all by default")
    parser.add_argument("--step", action="append", choices=STEPS, help="may be repeated; all by default")
    parser.add_argument("--devices", action="append", type=int, choices=DEVICES, help="may be repeated")
    parser.add_argument("--rows", type=int, default=64, help="queries of a device, and as many pages")
    parser.add_argument(
        "--chunk", type=int, default=8, help="rows of a device that pass at a time in gradcache and adapter"
    )
    tpu = importlib.util.find_spec("libtpu") is not None
    parser.add_argument("--compiler", choices=("tpu", "cpu"), default="tpu" if tpu else "cpu")
    options = parser.parse_args(arguments)
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}  # before jax starts
    os.environ["XLA_FLAGS"] = (
        f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={max(DEVICES)} "
        "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
    )
    import jax

    from benchmarks.shapes import QWEN3_VL_2B, QWEN3_VL_8B

    if options.compiler == "tpu":
        jax.default_backend = lambda: "tpu"  # which kernels are taken follows from it
    print(f"{options.rows} rows a device, compiled for {options.compiler}, chunks of {options.chunk}\n\n{HEADER}")
    for model in options.model or MODELS:
        for step in options.step or STEPS:
            for count in options.devices or DEVICES:
                started = time.time()
                shape = {"2b": QWEN3_VL_2B, "8b": QWEN3_VL_8B}[model]
                memory = measure(shape, works(options.rows, options.chunk)[step], count, options.compiler)
                print(row(model, step, count, memory), f"<!-- {time.time() - started:.0f} s -->", flush=True)
