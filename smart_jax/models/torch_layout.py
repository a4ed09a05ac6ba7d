"""Names and layouts of parameters: ours, a path of attributes, and those of a checkpoint for torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TypeAlias, cast

import numpy as np
from flax import nnx

from smart_jax.models.architectures import ARCHITECTURES, Model, ModelConfig, projector_of
from smart_jax.models.qwen_vl_config import QwenVLConfig

ModelGraph: TypeAlias = nnx.GraphDef[Model]
"""A backbone without its parameters: what `nnx.merge` joins with `Params`."""

Params: TypeAlias = nnx.State[Any, Any]
"""A backbone's parameters: nested states, whose keys are names and numbers, and each leaf is an `nnx.Param`."""

LeafPath: TypeAlias = tuple[str | int, ...]
"""Place of a parameter, as attributes and numbers: `("visual", "blocks", 0, "norm1", "scale")`."""

PROJECTOR = "token_projector"  # attribute of a backbone that has a `TokenProjector`
_LEAF_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}  # others have the checkpoint's own


def leaves_by_path(params: Params) -> dict[LeafPath, nnx.Variable[Any]]:
    """Returns the parameters by path."""
    return {cast(LeafPath, path): leaf for path, leaf in nnx.to_flat_state(params)}


def dotted(path: Iterable[object]) -> str:
    """Returns a path with dots between its parts."""
    return ".".join(map(str, path))


def tensor_name(path: LeafPath, config: ModelConfig) -> str:
    """Returns the name of a parameter's tensor in a checkpoint, as the architecture says.

    ("visual", "blocks", 0, "norm1", "scale") -> "model.visual.blocks.0.norm1.weight"
    """
    projector = projector_of(config)
    if projector is not None and path[0] == PROJECTOR:  # outside the base model's modules
        return f"{projector.module}.{_LEAF_NAMES.get(str(path[-1]), path[-1])}"
    architecture = ARCHITECTURES[config.model_type]
    name = architecture.prefix + dotted((*path[:-1], _LEAF_NAMES.get(str(path[-1]), path[-1])))
    for pattern, replacement in architecture.renames:
        name = re.sub(pattern, replacement, name)
    return name


def torch_module(path: LeafPath, config: ModelConfig) -> str:
    """Returns the name of a linear map in transformers' module; checkpoints of Qwen2-VL have older prefixes.

    ("visual", "merger", "linear_fc1") of a Qwen2-VL -> "model.visual.merger.mlp.0"
    """
    name = tensor_name((*path, "kernel"), config).removesuffix(".weight")
    if not isinstance(config, QwenVLConfig) or path[0] not in ("visual", "language_model"):
        return name
    return f"model.{path[0]}.{bare_name(name).removeprefix('visual.')}"


def bare_name(name: str) -> str:
    """Returns a tensor's name without what versions of transformers spell differently for the same tensor.

    These are the prefixes, "vlm." of multi-vector models among them, and, in the first BERTs, gamma and beta as names
    of a norm's weight and bias.
    """
    name = re.sub(r"^(vlm\.|model\.|language_model\.|bert\.)+", "", name)
    return re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))


def from_torch(value: np.ndarray, path: LeafPath, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Returns a checkpoint's tensor in our layout, in which a kernel is [inputs, outputs].

    Raises:
      ValueError: its shape is not the parameter's; the message has the tensor's name.
    """
    if path[-1] == "kernel":  # torch stores [outputs, inputs], of a convolution [outputs, inputs, ...]
        value = value.reshape(value.shape[0], -1).T
    if value.shape != shape:
        raise ValueError(
            f"tensor '{name}' gives shape {value.shape} where config.json asks for {shape}: the weights and the config "
            "are of different models"
        )
    return value


def to_torch(value: np.ndarray, path: LeafPath, config: ModelConfig) -> np.ndarray:
    """Returns a parameter in torch's layout: a kernel [outputs, inputs], of a convolution [outputs, inputs, ...].

    A convolution within each channel has kernels [channels, 1, width].
    """
    if path[-1] != "kernel":
        return value
    if path[-3:-1] == ("patch_embed", "proj") and isinstance(config, QwenVLConfig):
        v = config.vision
        return value.T.reshape(-1, v.in_channels, v.temporal_patch_size, v.patch_size, v.patch_size)
    return value.T[:, None] if path[-2] == "conv1d" else value.T
