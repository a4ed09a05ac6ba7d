"""Memory of a device by arithmetic: what an update holds, from the shapes alone, in a second and without a compiler.

Weights, optimizer and batches are counted. Temporaries are estimated from the arrays that are alive at once, by factors
that were fitted to libtpu's compiler (benchmarks/README.md has both beside each other).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from jax.sharding import AbstractMesh

from smart_jax.models import BertConfig, ModelConfig
from smart_jax.retrieval import parse_layers
from smart_jax.runtime import AXES
from train.config import TrainConfig
from train.objective import Objective
from train.plan.abstract import AbstractRun, abstract_run, device_bytes
from train.plan.shapes import BatchShape
from train.setup import weight_dtype

BATCHES_ALIVE = 2  # on a device: that of the step, and the next one
# Vectors of a layer's width that are alive at once for each position, by libtpu's compiler: in a layer of the vision
# tower and of the text model forward, in a layer of the text model backward, and kept by it where nothing is computed
# again.
PATCH, TOKEN, BACKWARD, KEPT = 26, 12, 20, 37
AHEAD = 6 * 2**30  # bytes of weights that come from other devices before they are needed, where nothing stops them
# Arrays that are alive at once while documents travel: of the tokens of one of them, and of a device's queries.
PASSED, QUERIES = 8, 16
LANES = 128  # a TPU's memory rounds the last axis of an array up to it


class Memory(NamedTuple):
    """Bytes of a device, by what they hold.

    Attributes:
      weights: parameters, trained and frozen.
      optimizer: its state.
      batches: those that are on the device at once.
      temporary: activations, gradients and whatever else an update needs besides.

    Example:
      >>> Memory(weights=4, optimizer=2, batches=1, temporary=8).total
      15
    """

    weights: int
    optimizer: int
    batches: int
    temporary: int

    @property
    def total(self) -> int:
        """Bytes of all together."""
        return sum(self)


def device_mesh(config: TrainConfig, devices: int) -> AbstractMesh:
    """Returns the mesh of a run with its sizes chosen, without devices.

    Raises:
      ValueError: the sizes do not multiply to the number of devices.

    Example:
      >>> import dataclasses
      >>> from train.config import MeshConfig
      >>> device_mesh(TrainConfig(mesh=MeshConfig(fsdp=2)), 8).shape["data"]
      4
    """
    sizes = [config.mesh.data, config.mesh.fsdp or 1, config.mesh.tensor]
    known = math.prod(size for size in sizes if size != -1)
    sizes = [devices // known if size == -1 else size for size in sizes]
    if math.prod(sizes) != devices:
        raise ValueError(f"mesh {dict(zip(AXES, sizes, strict=True))} is not one of {devices} devices")
    return AbstractMesh(tuple(sizes), AXES)


def forecast(config: TrainConfig, model: ModelConfig, shape: BatchShape, devices: int, platform: str) -> Memory:
    """Returns the memory of one device, by arithmetic.

    Args:
      config: of the run, with mesh, remat and chunk chosen.
      model: its backbone's.
      shape: padded sizes of a batch.
      devices: how many there are.
      platform: "tpu", "gpu" or "cpu".

    Raises:
      ValueError: the settings do not fit the devices or the model.

    Example:
      >>> from train.plan.shapes import batch_shape, model_config
      >>> config = TrainConfig(model="Qwen/Qwen3-VL-Embedding-2B", batch_size=64, dtype="bfloat16", remat=True)
      >>> model = model_config(config.model)
      >>> f"{forecast(config, model, batch_shape(config, model), 8, 'tpu').weights / 2**30:.2f} GiB"
      '3.98 GiB'
    """
    run = abstract_run(config, model, shape, device_mesh(config, devices))
    gradient = 2 * device_bytes(run.state.params)  # and what the optimizer makes of it
    sizes = _Sizes(config, run, model, shape, platform)
    temporary: int = gradient + sizes.backbone() + sizes.bank() + sizes.gathered_weights()
    return counted_bytes(run)._replace(temporary=temporary)


def counted_bytes(run: AbstractRun) -> Memory:
    """Returns the bytes of a device's arguments; `temporary` is 0.

    Example:
      >>> from train.plan.shapes import batch_shape, model_config
      >>> config, model = TrainConfig(model="tiny"), model_config("tiny")
      >>> run = abstract_run(config, model, batch_shape(config, model), device_mesh(config, 1))
      >>> counted_bytes(run).temporary
      0
    """
    weights = device_bytes((run.state.params, run.frozen))
    return Memory(weights, device_bytes(run.state.opt_state), BATCHES_ALIVE * device_bytes(run.batch), 0)


class _Sizes:
    """The arrays of an update on a device, in bytes."""

    def __init__(
        self, config: TrainConfig, run: AbstractRun, model: ModelConfig, shape: BatchShape, platform: str
    ) -> None:
        self._run, self._model, self._shape = run, model, shape
        self._shards = run.objective.mesh.shape["data"] * run.objective.mesh.shape["fsdp"]
        self._item = np.dtype(weight_dtype(config) if run.objective.dtype is None else run.objective.dtype).itemsize
        self._lanes = LANES if platform == "tpu" else 1
        self._rows = shape.documents // self._shards, shape.queries // self._shards
        depth = model.text.num_hidden_layers
        self._layers = len(parse_layers(config.adapter.layers, depth)) if "adapter" in config.parts else 1

    @property
    def _objective(self) -> Objective:
        return self._run.objective

    def _chunk(self, rows: int) -> int:
        """Rows of a device that pass through the backbone at a time."""
        size = self._objective.chunk_size
        if size is None or size >= rows * self._shards:
            return rows
        return max([n for n in range(1, size // self._shards + 1) if rows % n == 0], default=1)

    def _wide(self, width: int) -> int:
        """Bytes of a vector of activations, with what a TPU adds to its last axis."""
        return self._item * -(-width // self._lanes) * self._lanes

    def backbone(self) -> int:
        """States of the whole batch, and what computing them and their gradient takes."""
        objective, shape, width = self._objective, self._shape, self._wide(self._model.text.hidden_size)
        chunk = self._chunk(self._rows[0])
        positions = self._rows[0] * shape.document_tokens + self._rows[1] * shape.query_tokens
        states = self._layers * self._wide(self._model.state_width) * positions
        tokens = chunk * shape.document_tokens * width
        vision = 0
        tower = None if isinstance(self._model, BertConfig) else self._model.vision
        if tower is not None:
            patches, layers = chunk * shape.patches * self._wide(tower.hidden_size), tower.depth
            vision = PATCH * patches
            if objective.partition.trains_vision:
                vision += (layers if objective.remat else layers * KEPT) * patches
        text = TOKEN * tokens
        if objective.partition.trains_backbone:
            layers = self._model.text.num_hidden_layers
            text = (layers if objective.remat else layers * KEPT) * tokens + BACKWARD * tokens
        features = 4 * tokens if vision else 0  # of the tower, and DeepStack's
        states *= 1 if objective.partition.trains_backbone else 2  # once more, in another layout
        both = vision + text if objective.partition.trains_vision else max(vision, text)
        return states + features + both

    def bank(self) -> int:
        """Projected tokens: of all of a device's documents, where they are kept, and of those under way."""
        objective = self._objective
        if objective.config.objective == "pooled":
            return 0
        row = self._shape.document_tokens * self._model.state_width * 4
        queries = QUERIES * self._rows[1] * self._shape.query_tokens * self._model.state_width * 4
        kept = 6 if objective.partition.trains_backbone else 0 if objective.remat else 4
        return kept * self._rows[0] * row + PASSED * row + queries

    def gathered_weights(self) -> int:
        """Weights that have come from the devices that share them."""
        if self._objective.mesh.shape["fsdp"] == 1:
            return 0
        sizes = {name: x.size * x.dtype.itemsize for name, x in self._run.frozen.items()}
        ahead = AHEAD
        if self._chunk(self._rows[0]) < self._rows[0]:
            # For each chunk anew, see `train.objective.gradcache`: the largest, and a layer or two.
            ahead = max(sizes.values()) + 2 * sum(sizes.values()) // self._model.text.num_hidden_layers
        return min(ahead, sum(sizes.values()))
