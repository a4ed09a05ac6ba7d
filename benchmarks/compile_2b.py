"""Compile-only check of Qwen3-VL-Embedding-2B over 8 virtual CPU devices: `python -m benchmarks.compile_2b`.

Nothing is allocated: shapes are lowered and compiled, and XLA's memory analysis is printed. Parameters are bfloat16 and
split over 8 fsdp shards; a device holds one row of 512 tokens and 1,024 patches. There are two programs: encoding, and
a training step of the adapter on the frozen backbone. XLA's CPU backend is asked for its memory-minimising schedule,
which accelerators use; its default trades memory for concurrency and keeps every layer's gathered weights alive.
"""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 " + (
    "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import time

import jax

from benchmarks.abstract import GIB, Work, abstract_step
from benchmarks.shapes import QWEN3_VL_2B
from smart_jax.models import QwenVLConfig
from smart_jax.runtime import batch_sharding, make_mesh


def report(name: str, lowered: jax.stages.Lowered, started: float) -> None:
    """Compiles a program and prints the memory and the time that it takes; `started` is when its tracing began."""
    lowered_at = time.time()
    compiled = lowered.compile()
    m = compiled.memory_analysis()
    total = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes - m.alias_size_in_bytes
    print(
        f"{name}: per device {total / GIB:.2f} GiB (arguments {m.argument_size_in_bytes / GIB:.2f}, temporary "
        f"{m.temp_size_in_bytes / GIB:.2f}, output {m.output_size_in_bytes / GIB:.2f}); trace and lower "
        f"{lowered_at - started:.1f} s, compile {time.time() - lowered_at:.1f} s",
        flush=True,
    )


def main() -> None:
    """The command line."""
    mesh = make_mesh(data=1, fsdp=8)
    started = time.time()
    step, run = abstract_step(QwenVLConfig.from_hf(QWEN3_VL_2B), mesh, Work("adapter", rows=1))
    training = step.lower(*run.arguments)
    count = sum(x.size for x in run.frozen.values())
    print(f"Qwen3-VL-2B: {count / 1e9:.2f} billion parameters, {count * 2 / GIB:.2f} GiB in bfloat16")
    report("adapter training step", training, started)
    started = time.time()
    backbone = run.objective.backbone
    encode = jax.jit(lambda p, b: backbone.merge(p)(b), out_shardings=batch_sharding(mesh))
    report("encode", encode.lower(run.frozen, run.batch.documents), started)


if __name__ == "__main__":
    main()
