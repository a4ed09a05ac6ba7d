"""Frozen states of a run's data, where they are to be kept: their disk, and the time of a step that reads them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from smart_jax.models import ModelConfig
from smart_jax.retrieval import parse_layers
from train.config import TrainConfig
from train.monitor import training_cost
from train.plan.abstract import AbstractRun
from train.plan.machines import GIB
from train.plan.shapes import BatchShape
from train.states import Need, stored_dtype


class KeptStates(NamedTuple):
    """Forecast of the states of a frozen backbone that are kept on disk; None = not known.

    Attributes:
      item: bytes of a document's states, at most: of the largest page that the config allows.
      size: bytes of all of them, with the queries', at most.
      flops: of a step that reads them.
      refusal: why they are not kept; "" = they are, where encoding proves slower than the disk.

    Example:
      >>> KeptStates(item=2**20, size=2**30, flops=1e12, refusal="").size // 2**20
      1024
    """

    item: int
    size: int | None
    flops: float
    refusal: str | None


def kept_states(
    config: TrainConfig,
    model: ModelConfig,
    shape: BatchShape,
    run: AbstractRun,
    *,
    examples: int | None,
    steps: int | None,
    free: int | None,
) -> KeptStates | None:
    """Returns what keeping the states takes; None = the config does not ask for it.

    Args:
      config: of the run, with the dtype chosen.
      model: its backbone's.
      shape: padded sizes of a batch.
      run: its shapes.
      examples: of the data set's split.
      steps: of the run.
      free: bytes of the disk where they would be.
    """
    if config.data.cache_states == "off" or config.trainable != "adapter":
        return None
    cost = training_cost(run.objective.partition, run.state.params, model)
    queries, documents = shape.queries * shape.query_tokens, shape.documents * shape.document_tokens
    pairs = queries * shape.query_tokens + documents * shape.document_tokens
    flops = cost.token * (queries + documents) + cost.token_pair * pairs
    item, query = (_bytes(config, model, tokens) for tokens in (shape.document_tokens, shape.query_tokens))
    if examples is None or steps is None:
        return KeptStates(item, None, flops, None)
    pages = examples * (shape.documents // shape.queries)
    size = pages * item + examples * query
    refusal = None
    if free is not None and config.data.cache_states == "auto":
        refusal = Need(steps * shape.documents, pages, size).refusal(free)
    elif free is not None:
        refusal = "" if size <= free else f"{size / GIB:.1f} GiB are more than the {free / GIB:.1f} GiB that are free"
    return KeptStates(item, size, flops, refusal)


def _bytes(config: TrainConfig, model: ModelConfig, tokens: int) -> int:
    """Returns the bytes of an item: its pooled vector in float32, and its tokens with the scales of int8."""
    width, dtype = model.state_width, stored_dtype(config)
    layers = len(parse_layers(config.adapter.layers, model.text.num_hidden_layers))
    itemsize = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
    return 4 * width + tokens * layers * (itemsize * width + (4 if dtype == "int8" else 0))
