"""Compile-only check of Qwen3-VL-Embedding-2B over 8 virtual CPU devices: `python -m benchmarks.compile_2b`.

Nothing is allocated: shapes are lowered and compiled, and XLA's own memory analysis is printed. Parameters are bfloat16
and split over 8 fsdp shards; a device holds one row of 512 tokens and 1,024 patches. Two programs: encoding, and one
adapter training step on the frozen backbone. XLA's CPU backend is asked for its memory-minimising schedule, which is
what accelerators use; its default trades memory for concurrency and keeps every layer's gathered weights alive.
"""

from __future__ import annotations

import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8 " + (
    "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
)
os.environ["JAX_PLATFORMS"] = "cpu"

import time

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import NamedSharding

from benchmarks.shapes import QWEN3_VL_2B
from smart_jax.adapter import Adapter, AdapterConfig
from smart_jax.models import ARCHITECTURES
from smart_jax.models.qwen_vl_config import QwenVLConfig
from smart_jax.models.weights import abstract_model
from smart_jax.sharding import batch_sharding, make_mesh, replicated, sharding_for
from smart_jax.typing import Batch, VisionBatch
from train.config import LossConfig, OptimizerConfig
from train.optimizer import make_optimizer, make_schedule
from train.step import Objective, TrainBatch, TrainState, make_train_step, take_apart

GIB = 2**30


def abstract_params(config, mesh, dtype):
    graphdef, state = abstract_model(config)
    rules = ARCHITECTURES[config.model_type].sharding_rules

    def place(path, leaf):
        name = ".".join(str(part) for part in path)
        return leaf.replace(
            jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding_for(name, leaf.shape, rules, mesh))
        )

    return graphdef, nnx.from_flat_state([(path, place(path, leaf)) for path, leaf in nnx.to_flat_state(state)])


def abstract_batch(config, mesh, rows: int, tokens: int, patches: int) -> Batch:
    def array(shape, dtype, leading=0):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=batch_sharding(mesh, leading))

    i32, f32 = jnp.int32, jnp.float32
    return Batch(
        input_ids=array((rows, tokens), i32),
        attention_mask=array((rows, tokens), bool),
        position_ids=array((3, rows, tokens), i32, leading=1),
        keep_mask=array((rows, tokens), bool),
        index=array((rows, tokens), i32),
        vision=VisionBatch(
            patches=array((rows, patches, config.vision.patch_values), f32),
            coords=array((rows, patches, 2), i32),
            interp_idx=array((rows, patches, 4), i32),
            interp_w=array((rows, patches, 4), f32),
            segment=array((rows, patches), i32),
        )
        if patches
        else None,
    )


def report(name: str, lowered, started: float) -> None:
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


def training_step(graphdef, params, config, mesh):
    """The compiled-to-be adapter step of `train.step` and its abstract arguments: B = 8 queries and 8 pages."""
    adapter_graphdef, adapter_state = nnx.split(
        nnx.eval_shape(lambda: Adapter(AdapterConfig(config.text.hidden_size), rngs=nnx.Rngs(0)))
    )
    everywhere = replicated(mesh)

    def on_mesh(x):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere)

    backbone, frozen = take_apart("model", graphdef, params)
    adapter, trained = take_apart("adapter", adapter_graphdef, jax.tree.map(on_mesh, adapter_state))
    objective = Objective(LossConfig(), steps=100, mesh=mesh, backbone=backbone, adapter=adapter)
    schedule = make_schedule(OptimizerConfig(), 100)
    optimizer = make_optimizer(OptimizerConfig(), 100)
    moments = jax.tree.map(on_mesh, jax.eval_shape(optimizer.init, trained))
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere), trained, moments)
    batch = TrainBatch(
        queries=abstract_batch(config, mesh, rows=8, tokens=64, patches=0),
        documents=abstract_batch(config, mesh, rows=8, tokens=512, patches=1024),
        document_ids=jax.ShapeDtypeStruct((8, 4), jnp.uint32, sharding=batch_sharding(mesh)),
    )
    return make_train_step(objective, optimizer, schedule, state), (state, frozen, batch)


def main() -> None:
    mesh = make_mesh(data=1, fsdp=8)
    config = QwenVLConfig.from_hf(QWEN3_VL_2B)
    graphdef, params = abstract_params(config, mesh, jnp.bfloat16)
    count = sum(x.size for x in jax.tree.leaves(params))
    print(f"Qwen3-VL-2B: {count / 1e9:.2f} billion parameters, {count * 2 / GIB:.2f} GiB in bfloat16")
    batch = abstract_batch(config, mesh, rows=8, tokens=512, patches=1024)
    started = time.time()
    encode = jax.jit(
        lambda p, b: nnx.merge(graphdef, p)(b), out_shardings=NamedSharding(mesh, batch_sharding(mesh).spec)
    )
    report("encode", encode.lower(params, batch), started)
    started = time.time()
    step, arguments = training_step(graphdef, params, config, mesh)
    report("adapter training step", step.lower(*arguments), started)


if __name__ == "__main__":
    main()
