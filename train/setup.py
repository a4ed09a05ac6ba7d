"""Set-up of a run: a backbone loaded as the config asks, and its parameters with the loss that trains them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import AbstractMesh, Mesh
from jax.typing import DTypeLike

from smart_jax import Encoder, load
from smart_jax.files import Checkpoint
from smart_jax.models import ModelConfig, add_lora
from smart_jax.retrieval import Adapter, AdapterConfig, parse_layers
from smart_jax.runtime import place, replicated
from train.config import TrainConfig
from train.objective import (
    Objective,
    Params,
    Part,
    Partition,
    Place,
    Structure,
    start_temperatures,
    take_apart,
    temperature_name,
)


def load_encoder(config: TrainConfig, mesh: Mesh) -> Encoder:
    """Loads the backbone, with the preprocessing and the low-rank branches that the config asks for.

    Raises:
      ValueError: no model is named, or low-rank branches are asked for beside those of an adapter that it has.
    """
    if not config.model:
        raise ValueError("config.model is empty: name a checkpoint folder or hub id, --config.model=...")
    encoder = load_backbone(config.model, config, mesh, task=config.task)
    if "lora" not in config.parts:
        return encoder
    if (adapter := source(encoder).adapter) is not None:
        raise ValueError(
            f"{adapter} holds a PEFT adapter already, and a second LoRA would have no base to be saved for: merge it "
            "into the weights first (merge_and_unload of peft)"
        )
    graphdef, params = add_lora(encoder.graphdef, encoder.params, config.lora, seed=config.seed)
    return encoder.with_params(params, graphdef=graphdef)


def load_backbone(model: str | Path, config: TrainConfig, mesh: Mesh, task: str | None = None) -> Encoder:
    """Loads a checkpoint in the run's dtype, with its preprocessing."""
    overrides = preprocessing_overrides(config)
    return load(model, dtype=weight_dtype(config), mesh=mesh, task=task, pooling=config.pooling, settings=overrides)


def weight_dtype(config: TrainConfig) -> DTypeLike:
    """Returns the dtype of the backbone's weights; those that are trained are kept, and updated, in float32."""
    if config.dtype == "auto":
        on_accelerator = jax.default_backend() != "cpu"
        return jnp.bfloat16 if on_accelerator and "full" not in config.parts else jnp.float32
    return jnp.bfloat16 if config.dtype == "bfloat16" and "full" not in config.parts else jnp.float32


def source(encoder: Encoder) -> Checkpoint:
    """Returns where the encoder's files are; raises ValueError for one that was put together by hand."""
    if encoder.checkpoint is None:
        raise ValueError("the encoder was not loaded from a folder, and a run needs its files: use smart_jax.load")
    return encoder.checkpoint


def weight_folders(encoder: Encoder) -> list[Path]:
    """Returns the folders that the encoder's weights were read from: a checkpoint's, and its adapter's or base's."""
    checkpoint = source(encoder)
    return list(dict.fromkeys(place for place in (checkpoint.folder, checkpoint.adapter, checkpoint.base) if place))


def preprocessing_overrides(config: TrainConfig) -> dict[str, Any]:
    """Returns the settings of the checkpoint that the config changes."""
    asked = {name: getattr(config, name) for name in ("head", "pooling", "prompt")}
    sizes = ("min_pixels", "max_pixels", "soft_tokens", "max_length", "resize")
    asked |= {name: getattr(config.data, name) for name in sizes}
    return {name: value for name, value in asked.items() if value is not None}


def make_objective(config: TrainConfig, encoder: Encoder, mesh: Mesh, steps: int) -> tuple[Params, Params, Objective]:
    """Returns trainable parameters, frozen parameters, and the loss of both, which has their `Partition`.

    Raises:
      ValueError: no weight of the backbone matches `config.weights`, or vectors are no wider than a width of
        `loss.matryoshka`; and as `adapter_config`.
    """
    backbone, weights = take_apart(Part.BACKBONE, encoder.graphdef, encoder.params)
    adapter = None
    if "adapter" in config.parts:
        adapter, projection = take_apart(Part.ADAPTER, *nnx.split(make_adapter(config, encoder.config)))
        weights |= place(projection, replicated(mesh))
    logarithms = {
        temperature_name(score): jnp.log(jnp.float32(t)) for score, t in _learned_temperatures(config).items()
    }
    weights |= place(logarithms, replicated(mesh))
    objective = put_together(config, encoder.config, mesh, steps, backbone, adapter)
    params, frozen = objective.partition.split(weights)
    return params, objective.cast(frozen), objective


def make_adapter(config: TrainConfig, model: ModelConfig) -> Adapter:
    """Returns the projection before training."""
    return Adapter(adapter_config(config, model), rngs=nnx.Rngs(config.seed))


def _learned_temperatures(config: TrainConfig) -> dict[str, float]:
    return start_temperatures(config.loss) if config.loss.learn_temperature else {}


def put_together(
    config: TrainConfig,
    model: ModelConfig,
    mesh: Mesh | AbstractMesh,
    steps: int,
    backbone: Structure,
    adapter: Structure | None,
) -> Objective:
    """Returns the loss of a run, with the `Partition` of the parameters.

    Args:
      config: of the run.
      model: its backbone's.
      mesh: where the batch is; one of abstract devices does for counting.
      steps: batches of the whole run.
      backbone: structure of the backbone, with its branches.
      adapter: structure of the projection; None = there is none.

    Raises:
      ValueError: as `make_objective`.
    """
    partition = Partition.of([backbone, adapter], _chosen(config), temperatures=_learned_temperatures(config))
    _check_weights(config, partition)
    _check_widths(config, model)
    return Objective(
        config.loss,
        steps,
        mesh,
        partition,
        backbone,
        adapter,
        dtype=_dtype(config),
        remat=bool(config.remat),
        remat_policy=config.remat_policy,
        dropout_seed=config.seed if _drops(config) else None,
        adapter_dropout=config.adapter.dropout if adapter is not None else 0.0,
        chunk_size=config.chunk_size,
    )


def _drops(config: TrainConfig) -> bool:
    """Returns whether there is dropout, of low-rank branches or of an adapter."""
    return bool(
        ("lora" in config.parts and config.lora.dropout) or ("adapter" in config.parts and config.adapter.dropout)
    )


def _chosen(config: TrainConfig) -> Callable[[str, Place], bool]:
    """Returns whether a parameter is trained: of the backbone's own weights those that `config.weights` matches."""

    def is_trained(name: str, at: Place) -> bool:
        if at.part is not Part.BACKBONE:
            return True
        return "full" in config.parts and re.search(config.weights, _in_backbone(name)) is not None

    return is_trained


def _in_backbone(name: str) -> str:
    return name.removeprefix(f"{Part.BACKBONE.value}.")


def _check_weights(config: TrainConfig, partition: Partition) -> None:
    """Raises ValueError where `config.weights` leaves nothing of the backbone to train."""
    if "full" in config.parts and not partition.trains_backbone:
        names = ", ".join(_in_backbone(name) for name in sorted(partition.frozen)[:4])
        raise ValueError(f"config.weights {config.weights!r} matches no parameter of the backbone; it has {names}, ...")


def _dtype(config: TrainConfig) -> DTypeLike | None:
    """Returns what trained weights of the backbone are cast to for computing; None = they stay as they are."""
    on_accelerator = config.dtype == "auto" and jax.default_backend() != "cpu"
    return jnp.bfloat16 if "full" in config.parts and (on_accelerator or config.dtype == "bfloat16") else None


def adapter_config(config: TrainConfig, model: ModelConfig) -> AdapterConfig:
    """Returns the shape of the projection.

    Raises:
      ValueError: the backbone does not have these layers, a setting is of another kind, or a regulariser acts on
        nothing that is trained.
    """
    text = model.text
    layers = parse_layers(config.adapter.layers, text.num_hidden_layers)
    frozen = config.trainable == "adapter"
    if frozen and len(layers) == 1 and (config.loss.diversity_weight or config.loss.overlap_weight):
        raise ValueError(
            "diversity_weight and overlap_weight act on the fused states, which one layer of a frozen backbone leaves "
            "without a trainable part: set them to 0 or fuse more layers (config.adapter.layers)"
        )
    asked = config.adapter
    kind = {name: getattr(asked, name) for name in ("kind", "mlp_dim", "heads", "blocks")}
    return AdapterConfig(model.state_width, asked.dim, layers, asked.pooled_dim, **kind)


def _check_widths(config: TrainConfig, model: ModelConfig) -> None:
    """Raises ValueError where there is no pooled vector, or a width of `loss.matryoshka` would cut nothing."""
    if not getattr(model, "pooled", True):
        raise ValueError(
            "the model has no pooled vector, beside which tokens are trained here: set config.pooling to 'last' or "
            "another rule"
        )
    hidden = model.state_width
    vectors = {"pooled vectors": hidden, "tokens": getattr(model, "token_dim", None) or hidden}
    if "adapter" in config.parts:
        vectors = {"pooled vectors": config.adapter.pooled_dim or hidden, "tokens": config.adapter.dim or hidden}
    if config.loss.objective == "pooled":
        del vectors["tokens"]
    for name, width in vectors.items():
        if wide := [w for w in config.loss.widths if w is not None and w >= width]:
            raise ValueError(
                f"loss.matryoshka is '{config.loss.matryoshka}', but the {name} have {width} components: choose widths "
                f"below that, not {wide[0]}; the full width always takes part"
            )
