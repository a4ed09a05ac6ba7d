"""Training steps without arrays: shapes with their places on a mesh, to be lowered and compiled."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from smart_jax.models import (
    ARCHITECTURES,
    Batch,
    LoraConfig,
    ModelGraph,
    Params,
    QwenVLConfig,
    VisionBatch,
    abstract_model,
    add_lora,
    batch_axes,
)
from smart_jax.retrieval import Adapter, AdapterConfig
from smart_jax.runtime import batch_sharding, replicated, sharding_for
from train.config import LossConfig, OptimizerConfig
from train.objective import Objective, Part, Partition, TrainBatch, take_apart
from train.optimizer import make_optimizer, make_schedule
from train.step import TrainState, make_train_step

GIB = 2**30
STEPS = 100  # steps of the run that a step is taken from

_Tree = TypeVar("_Tree")


@dataclasses.dataclass(frozen=True)
class Work:
    """Trained part and size of a step.

    Attributes:
      trainable: "adapter", or "lora" of the text projections.
      rows: queries of each device, and as many pages.
      query_tokens: tokens of a padded query.
      page_tokens: tokens of a padded page.
      patches: patches of a page.
      chunk: rows of each device that pass through the backbone at a time; None = all.
      remat: see `train.objective.Objective`.
      r: rank of "lora".
    """

    trainable: str
    rows: int
    query_tokens: int = 64
    page_tokens: int = 512
    patches: int = 1024
    chunk: int | None = None
    remat: bool = False
    r: int = 128


def abstract_params(config: QwenVLConfig, mesh: Mesh, dtype: DTypeLike) -> tuple[ModelGraph, Params]:
    """Returns the backbone's graph, and its parameters as shapes split as its rules say."""
    graphdef, params = abstract_model(config)
    rules = ARCHITECTURES[config.model_type].sharding_rules

    def place(path: tuple[Any, ...], leaf: nnx.Variable[Any]) -> nnx.Variable[Any]:
        name = ".".join(str(part) for part in path)
        sharding = sharding_for(name, leaf.shape, rules, mesh)
        return leaf.replace(jax.ShapeDtypeStruct(leaf.shape, dtype, sharding=sharding))

    return graphdef, nnx.from_flat_state([(path, place(path, leaf)) for path, leaf in nnx.to_flat_state(params)])


def abstract_batch(config: QwenVLConfig, mesh: Mesh, rows: int, tokens: int, patches: int) -> Batch:
    """Returns the shapes of a batch of all devices' rows; without patches it is one of texts."""
    return _on_data_axes(jax.eval_shape(lambda: _blank_batch(config, rows, tokens, patches)), mesh)


def abstract_step(
    config: QwenVLConfig, mesh: Mesh, work: Work
) -> tuple[jax.stages.Wrapped, tuple[TrainState, dict[str, jax.Array], TrainBatch]]:
    """Returns the step of `train.step` on a bfloat16 backbone, and the shapes of its arguments."""
    everywhere = replicated(mesh)

    def on_mesh(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere)

    graphdef, weights = abstract_params(config, mesh, jnp.bfloat16)
    if work.trainable == "lora":
        graphdef, weights = add_lora(graphdef, weights, LoraConfig(r=work.r, alpha=2.0 * work.r))
    backbone, arrays = take_apart(Part.BACKBONE, graphdef, weights)
    adapter = None
    if work.trainable == "adapter":
        module = nnx.eval_shape(lambda: Adapter(AdapterConfig(config.text.hidden_size), rngs=nnx.Rngs(0)))
        adapter_graph, projection = nnx.split(module)
        adapter, projected = take_apart(Part.ADAPTER, adapter_graph, jax.tree.map(on_mesh, projection))
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
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    structure = jax.tree.structure(jax.eval_shape(TrainState, step, trained, moments))
    state = jax.tree.unflatten(structure, jax.tree.leaves((step, trained, moments)))
    batch = _abstract_train_batch(config, mesh, work, work.rows * shards)
    compiled = cast(jax.stages.Wrapped, make_train_step(objective, optimizer, schedule, state))
    return compiled, (state, frozen, batch)


def device_bytes(arrays: Any) -> int:
    """Returns the bytes of one device's shards."""
    return sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(arrays))


def _abstract_train_batch(config: QwenVLConfig, mesh: Mesh, work: Work, rows: int) -> TrainBatch:
    def blank() -> TrainBatch:
        return TrainBatch(
            queries=_blank_batch(config, rows, work.query_tokens, 0),
            documents=_blank_batch(config, rows, work.page_tokens, work.patches),
            document_ids=jnp.zeros((rows, 4), jnp.uint32),
        )

    return _on_data_axes(jax.eval_shape(blank), mesh)


def _blank_batch(config: QwenVLConfig, rows: int, tokens: int, patches: int) -> Batch:
    ids, mask = jnp.zeros((rows, tokens), jnp.int32), jnp.zeros((rows, tokens), bool)
    vision = VisionBatch(
        patches=jnp.zeros((rows, patches, config.vision.patch_values)),
        coords=jnp.zeros((rows, patches, 2), jnp.int32),
        interp_idx=jnp.zeros((rows, patches, 4), jnp.int32),
        interp_w=jnp.zeros((rows, patches, 4)),
        segment=jnp.zeros((rows, patches), jnp.int32),
    )
    positions = jnp.zeros((3, rows, tokens), jnp.int32)
    return Batch(ids, mask, positions, keep_mask=mask, index=ids, vision=vision if patches else None)


def _on_data_axes(batch: _Tree, mesh: Mesh) -> _Tree:
    """Returns the shapes with their batch axes split over the mesh."""

    def split(x: jax.ShapeDtypeStruct, axis: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh, axis))

    placed: _Tree = jax.tree.map(split, batch, batch_axes(batch))
    return placed
