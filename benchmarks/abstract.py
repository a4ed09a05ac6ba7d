"""Training steps without arrays: shapes with their places on a mesh, to be lowered and compiled."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from smart_jax.models import ARCHITECTURES, Batch, LoraConfig, VisionBatch, abstract_model, add_lora
from smart_jax.retrieval import Adapter, AdapterConfig
from smart_jax.runtime import batch_sharding, replicated, sharding_for
from train.config import LossConfig, OptimizerConfig
from train.objective import Objective, Part, Partition, TrainBatch, take_apart
from train.optimizer import make_optimizer, make_schedule
from train.step import TrainState, make_train_step

GIB = 2**30
STEPS = 100  # of the run


@dataclasses.dataclass(frozen=True)
class Work:
    """What a step trains, and on how much.

    Attributes:
      trainable: "adapter" or "lora", of the text projections.
      rows: queries of each device, and as many pages.
      query_tokens, page_tokens, patches: of a row.
      chunk: rows of each device that pass through the backbone at a time; None = all.
      remat: see `train.objective.Objective`.
      r: rank.
    """

    trainable: str
    rows: int
    query_tokens: int = 64
    page_tokens: int = 512
    patches: int = 1024
    chunk: int | None = None
    remat: bool = False
    r: int = 128


def abstract_params(config: Any, mesh: Mesh, dtype: Any) -> tuple[nnx.GraphDef, nnx.State]:
    """The backbone's, split as its rules say."""
    graphdef, state = abstract_model(config)
    rules = ARCHITECTURES[config.model_type].sharding_rules

    def place(path: tuple, leaf: Any) -> Any:
        name = ".".join(str(part) for part in path)
        return leaf.replace(
            jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding_for(name, leaf.shape, rules, mesh))
        )

    return graphdef, nnx.from_flat_state([(path, place(path, leaf)) for path, leaf in nnx.to_flat_state(state)])


def abstract_batch(config: Any, mesh: Mesh, rows: int, tokens: int, patches: int) -> Batch:
    """Rows of all devices; 0 patches = text."""

    def array(shape: tuple[int, ...], dtype: Any, leading: int = 0) -> Any:
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


def abstract_step(config: Any, mesh: Mesh, work: Work) -> tuple[Callable, tuple[TrainState, dict, TrainBatch]]:
    """`train.step`'s step on a bfloat16 backbone, and its arguments."""
    everywhere = replicated(mesh)

    def on_mesh(x: Any) -> Any:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere)

    graphdef, weights = abstract_params(config, mesh, jnp.bfloat16)
    if work.trainable == "lora":
        graphdef, weights = add_lora(graphdef, weights, LoraConfig(r=work.r, alpha=2.0 * work.r))
    backbone, arrays = take_apart(Part.BACKBONE, graphdef, weights)
    adapter = None
    if work.trainable == "adapter":
        module = nnx.eval_shape(lambda: Adapter(AdapterConfig(config.text.hidden_size), rngs=nnx.Rngs(0)))
        graphdef, projection = nnx.split(module)
        adapter, projected = take_apart(Part.ADAPTER, graphdef, jax.tree.map(on_mesh, projection))
        arrays |= projected
    partition = Partition.of([backbone, adapter])
    trained, frozen = partition.split(arrays)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    chunk = None if work.chunk is None else work.chunk * shards
    loss = LossConfig() if work.trainable == "adapter" else LossConfig(objective="hybrid")
    objective = Objective(loss, STEPS, mesh, partition, backbone, adapter, remat=work.remat, chunk_size=chunk)
    schedule, optimizer = make_schedule(OptimizerConfig(), STEPS), make_optimizer(OptimizerConfig(), STEPS)
    moments = optax.tree_map_params(
        optimizer,
        lambda m, p: jax.ShapeDtypeStruct(m.shape, m.dtype, sharding=p.sharding),
        jax.eval_shape(optimizer.init, trained),
        trained,
        transform_non_params=on_mesh,
    )
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere), trained, moments)
    rows = work.rows * shards
    batch = TrainBatch(
        queries=abstract_batch(config, mesh, rows, work.query_tokens, 0),
        documents=abstract_batch(config, mesh, rows, work.page_tokens, work.patches),
        document_ids=jax.ShapeDtypeStruct((rows, 4), jnp.uint32, sharding=batch_sharding(mesh)),
    )
    return make_train_step(objective, optimizer, schedule, state), (state, frozen, batch)


def device_bytes(arrays: Any) -> int:
    """Of one device's shards."""
    return sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(arrays))
