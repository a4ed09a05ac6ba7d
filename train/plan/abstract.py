"""A run without arrays: its parameters, state and batch as shapes with their places on a mesh, to count or compile."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import AbstractMesh, Mesh

from smart_jax.models import (
    ARCHITECTURES,
    Batch,
    BertConfig,
    LoraConfig,
    ModelConfig,
    ModelGraph,
    Normalisation,
    VisionBatch,
    abstract_model,
    add_lora,
    batch_axes,
)
from smart_jax.models import Params as ModelParams
from smart_jax.runtime import batch_sharding, replicated, sharding_for
from train.config import TrainConfig
from train.objective import Objective, Part, TrainBatch, take_apart
from train.optimizer import make_optimizer
from train.plan.shapes import BatchShape
from train.setup import make_adapter, put_together, weight_dtype
from train.step import TrainState

STEPS = 1000  # steps of the run that a step is taken from: their number changes no shape

_Tree = TypeVar("_Tree")


class AbstractRun(NamedTuple):
    """Shapes of all that an update takes, and the loss.

    Attributes:
      objective: the loss.
      state, frozen, batch: what an update takes.

    Example:
      >>> from smart_jax.runtime import make_mesh
      >>> from train.plan.shapes import batch_shape, model_config
      >>> config = TrainConfig(model="tiny")
      >>> model = model_config("tiny")
      >>> run = abstract_run(config, model, batch_shape(config, model), make_mesh(devices=jax.devices()[:1]))
      >>> run.state.params["adapter.proj.kernel"].shape
      (192, 192)
    """

    objective: Objective
    state: TrainState
    frozen: dict[str, jax.ShapeDtypeStruct]
    batch: TrainBatch

    @property
    def arguments(self) -> tuple[TrainState, dict[str, jax.ShapeDtypeStruct], TrainBatch]:
        """Arguments of an update."""
        return self.state, self.frozen, self.batch


def abstract_run(config: TrainConfig, model: ModelConfig, shape: BatchShape, mesh: Mesh | AbstractMesh) -> AbstractRun:
    """Returns the shapes of a run and its loss; nothing is allocated.

    Args:
      config: of the run, with mesh, remat and chunk chosen.
      model: its backbone's.
      shape: padded sizes of a batch.
      mesh: of devices, which need not be there.

    Raises:
      ValueError: as `train.setup.make_objective`.

    Example:
      >>> from jax.sharding import AbstractMesh
      >>> from smart_jax.runtime import AXES
      >>> from train.plan.shapes import batch_shape, model_config
      >>> config, model = TrainConfig(model="tiny"), model_config("tiny")
      >>> run = abstract_run(config, model, batch_shape(config, model), AbstractMesh((8, 1, 1), AXES))
      >>> run.batch.document_ids.sharding.shard_shape(run.batch.document_ids.shape)  # 64 documents on 8 devices
      (8, 4)
    """
    lora = config.lora if "lora" in config.parts else None
    graphdef, weights = _abstract_backbone(model, lora, jnp.dtype(weight_dtype(config)).name, mesh)
    backbone, arrays = take_apart(Part.BACKBONE, graphdef, weights)
    adapter = None
    if "adapter" in config.parts:
        graph, projection = nnx.split(nnx.eval_shape(lambda: make_adapter(config, model)))
        adapter, projected = take_apart(Part.ADAPTER, graph, projection)
        arrays |= {name: _on(x, replicated(mesh)) for name, x in projected.items()}
    objective = put_together(config, model, mesh, STEPS, backbone, adapter)
    temperature = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
    learned = {
        name: temperature for name, place in objective.partition.trained.items() if place.part is Part.TEMPERATURE
    }
    trained, frozen = objective.partition.split(arrays | learned)
    cast = jax.eval_shape(objective.cast, frozen)
    frozen = {name: jax.ShapeDtypeStruct(x.shape, cast[name].dtype, sharding=x.sharding) for name, x in frozen.items()}
    return AbstractRun(objective, _abstract_state(config, trained, mesh), frozen, _abstract_batch(model, shape, mesh))


def device_bytes(arrays: Any) -> int:
    """Returns the bytes of one device's shards.

    Example:
      >>> from smart_jax.runtime import make_mesh
      >>> whole = replicated(make_mesh(devices=jax.devices()[:1]))
      >>> device_bytes({"a": jax.ShapeDtypeStruct((2, 3), jnp.float32, sharding=whole)})
      24
    """
    return sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(arrays))


def _on(x: Any, sharding: jax.sharding.NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


@functools.lru_cache(maxsize=2)
def _abstract_model(model: ModelConfig) -> tuple[ModelGraph, ModelParams]:
    return abstract_model(model)


@functools.lru_cache(maxsize=8)
def _abstract_backbone(
    model: ModelConfig, lora: LoraConfig | None, dtype: str, mesh: Mesh | AbstractMesh
) -> tuple[ModelGraph, ModelParams]:
    """Returns the backbone's graph, with its branches, and its parameters split as its rules say."""
    graphdef, params = _abstract_model(model)
    rules = ARCHITECTURES[model.model_type].sharding_rules

    def place(path: tuple[Any, ...], leaf: nnx.Variable[Any]) -> nnx.Variable[Any]:
        name = ".".join(str(part) for part in path)
        sharding = sharding_for(name, leaf.shape, rules, mesh)
        return leaf.replace(jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=sharding))

    weights = nnx.from_flat_state([(path, place(path, leaf)) for path, leaf in nnx.to_flat_state(params)])
    return (graphdef, weights) if lora is None else add_lora(graphdef, weights, lora)


def _abstract_state(
    config: TrainConfig, trained: dict[str, jax.ShapeDtypeStruct], mesh: Mesh | AbstractMesh
) -> TrainState:
    optimizer, everywhere = make_optimizer(config.optimizer, STEPS, config.accumulate), replicated(mesh)
    moments = optax.tree_map_params(
        optimizer,
        lambda m, p: _on(m, p.sharding),
        jax.eval_shape(optimizer.init, trained),
        trained,
        transform_non_params=lambda x: _on(x, everywhere),
    )
    step = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    structure = jax.tree.structure(jax.eval_shape(TrainState, step, trained, moments))
    state: TrainState = jax.tree.unflatten(structure, jax.tree.leaves((step, trained, moments)))
    return state


def _abstract_batch(model: ModelConfig, shape: BatchShape, mesh: Mesh | AbstractMesh) -> TrainBatch:
    def blank() -> TrainBatch:
        return TrainBatch(
            queries=_blank_batch(model, shape.queries, shape.query_tokens, 0),
            documents=_blank_batch(model, shape.documents, shape.document_tokens, shape.patches),
            document_ids=jnp.zeros((shape.documents, 4), jnp.uint32),
        )

    return on_data_axes(jax.eval_shape(blank), mesh)


def _blank_batch(model: ModelConfig, rows: int, tokens: int, patches: int) -> Batch:
    ids, mask = jnp.zeros((rows, tokens), jnp.int32), jnp.zeros((rows, tokens), bool)
    vision = None
    if patches and not isinstance(model, BertConfig) and model.vision is not None:
        windows = jnp.zeros((rows, patches), jnp.int32)
        learned = model.vision.grid_side is not None
        vision = VisionBatch(
            patches=jnp.zeros((rows, patches, 3 * model.vision.patch_size**2), jnp.uint8),  # of still images
            coords=jnp.zeros((rows, patches, 2), jnp.int32),
            interp_idx=jnp.zeros((rows, patches, 4), jnp.int32) if learned else None,
            interp_w=jnp.zeros((rows, patches, 4)) if learned else None,
            segment=jnp.zeros((rows, patches), jnp.int32),
            normalisation=Normalisation(),
            window=windows if model.vision.window_size is not None else None,
        )
    positions = jnp.zeros((3, rows, tokens), jnp.int32)
    return Batch(ids, mask, positions, keep_mask=mask, index=ids, vision=vision)


def on_data_axes(batch: _Tree, mesh: Mesh | AbstractMesh) -> _Tree:
    """Returns the shapes of a batch with their batch axes split over the mesh."""

    def split(x: jax.ShapeDtypeStruct, axis: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=batch_sharding(mesh, axis))

    placed: _Tree = jax.tree.map(split, batch, batch_axes(batch))
    return placed
