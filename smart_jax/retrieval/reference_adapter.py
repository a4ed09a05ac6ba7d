"""Adapters of the paper's implementation: `adapter.pt` in and out, without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from smart_jax.files import torch_file
from smart_jax.retrieval.adapter import REFERENCE, Adapter, build, tensors
from smart_jax.retrieval.adapter_config import AdapterConfig

_MOST = 1024  # layers, more than any backbone has, or blocks; a file can claim any number
# Ours by the reference's names, in regular expressions; those of the last linear map come from its kind.
_NAMES = (
    (r"proj\.0\.(weight|bias)", r"norm.\1"),
    (r"self_attn_layers\.(\d+)\.in_proj_(weight|bias)", r"blocks.\1.in_proj.\2"),
    (r"self_attn_layers\.(\d+)\.out_proj\.(weight|bias)", r"blocks.\1.out_proj.\2"),
    (r"self_attn_norms\.(\d+)\.(weight|bias)", r"blocks.\1.norm.\2"),
    (r"layer_weight_vectors", r"layer_vector"),
)
_OF_KIND = {
    "linear": ((r"proj\.1\.weight", "proj.weight"),),
    "mlp": ((r"proj\.1\.weight", "hidden.weight"), (r"proj\.4\.weight", "proj.weight")),
    "self_attention": ((r"proj\.1\.weight", "proj.weight"),),
}
# What the reference calls the kinds, its own spelling first.
_TYPES = {
    "linear": ("token_projection", "residual", "linear", "mlp"),
    "mlp": ("token_projection", "residual", "linear", "mlp"),
    "self_attention": ("token_self_attention", "self_attention", "self_attn"),
}


def import_reference(path: str | Path) -> Adapter:
    """Reads an adapter from an `adapter.pt` of the paper's implementation, of any of its three kinds.

    It takes no torch, and no objects are unpickled. The reference counts blocks from 0, where `AdapterConfig.layers`
    counts `hidden_states`: its block i is layer i + 1 here, and negative indices are equal. Its single
    `late_interaction_layer`, where the file has one, counts as ours do.

    Args:
      path: the file, or the folder it lies in.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is no such checkpoint, its kind is unknown, a tensor is missing or unknown, or a tensor's
        shape differs from the settings.

    Example:
      >>> import tempfile
      >>> from flax import nnx
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     export_reference(Adapter(AdapterConfig(hidden_size=8, dim=4), rngs=nnx.Rngs(0)), folder)
      ...     import_reference(folder).config.token_dim
      4
    """
    path = Path(path)
    path = path / REFERENCE if path.is_dir() else path
    checkpoint = torch_file.load(path)
    state = checkpoint.get("token_projection_module") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, np.ndarray) for value in state.values()):
        raise ValueError(f"'{path}' is no adapter of the reference: it has no state dict 'token_projection_module'")
    kind = _kind(checkpoint, state, path)
    given = {_ours(str(name), kind, path): value for name, value in state.items()}
    if "layer_vector" in given:
        if (shape := given["layer_vector"].shape)[:1] != (1,):
            raise ValueError(f"'{path}': layer_weight_vectors has shape {shape}, expected (1, H)")
        given["layer_vector"] = given["layer_vector"][0]
    return build(_config(checkpoint, kind, given, path), given, str(path))


def _kind(checkpoint: Mapping[Any, Any], state: Mapping[Any, Any], path: Path) -> str:
    """Returns the kind that the file's metadata name or, where they do not, its tensors."""
    usual = {"adapter_type": "token_projection", "projection_type": "mlp" if "proj.4.weight" in state else "linear"}
    adapter, projection = (
        str(checkpoint.get(name, default)).lower().strip().replace("-", "_") for name, default in usual.items()
    )
    if adapter in _TYPES["self_attention"]:
        kind = "self_attention" if projection == "linear" else None
    else:
        kind = projection if projection in _TYPES and adapter in _TYPES[projection] else None
    if kind is None:
        raise ValueError(
            f"'{path}': adapter_type={adapter!r} with projection_type={projection!r} is unknown: it is "
            "token_projection with linear or mlp, or token_self_attention with linear"
        )
    return kind


def _ours(name: str, kind: str, path: Path) -> str:
    for pattern, ours in (*_NAMES, *_OF_KIND[kind]):
        if match := re.fullmatch(pattern, name):
            return match.expand(ours)
    raise ValueError(f"'{path}' has an unknown tensor '{name}', which no adapter of kind '{kind}' has")


def _config(checkpoint: Mapping[Any, Any], kind: str, given: Mapping[str, np.ndarray], path: Path) -> AdapterConfig:
    if "proj.weight" not in given or given["proj.weight"].ndim != 2:
        raise ValueError(f"'{path}' lacks the matrix 'proj.{4 if kind == 'mlp' else 1}.weight' of the projection")
    dim, width = given["proj.weight"].shape
    options: dict[str, Any] = {"kind": kind}
    if kind == "mlp":
        if "hidden.weight" not in given or given["hidden.weight"].ndim != 2:
            raise ValueError(f"'{path}' lacks the matrix 'proj.1.weight' of the projection")
        width = given["hidden.weight"].shape[1]
        options["mlp_dim"] = checkpoint.get("projection_mlp_hidden_dim", len(given["hidden.weight"]))
    if kind == "self_attention":
        options |= {
            "heads": checkpoint.get("self_attn_num_heads", 8),
            "blocks": checkpoint.get("self_attn_num_layers", 1),
        }
    hidden_size: Any = checkpoint.get("hidden_size", width)
    anchor_dim = checkpoint.get("anchor_dim")
    pooled_dim = None if anchor_dim == hidden_size else anchor_dim
    try:
        return AdapterConfig(
            hidden_size, None if dim == hidden_size else dim, _layers(checkpoint, path), pooled_dim, **options
        )
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from error


def _layers(checkpoint: Mapping[Any, Any], path: Path) -> tuple[int, ...]:
    chosen = checkpoint.get("late_interaction_layer")
    if chosen is not None:
        if type(chosen) is not int:
            raise ValueError(f"'{path}': late_interaction_layer={chosen!r} is not an int")
        return (chosen,)
    selected, last = checkpoint.get("selected_layers"), checkpoint.get("use_last_n_layers", 1)
    if selected is None:
        if type(last) is not int or not 1 <= last <= _MOST:
            raise ValueError(f"'{path}': use_last_n_layers={last!r} is not an int from 1 to {_MOST}")
        return tuple(range(-last, 0))
    if isinstance(selected, (list, tuple)) and all(type(layer) is int for layer in selected):
        return tuple(layer + 1 if layer >= 0 else layer for layer in selected)
    raise ValueError(f"'{path}': selected_layers={selected!r} is not a list of ints")


def export_reference(adapter: Adapter, path: str | Path) -> None:
    """Writes an adapter as an `adapter.pt` for the paper's implementation.

    Args:
      adapter: as trained or loaded.
      path: the file, or a folder for it.

    Raises:
      ValueError: the adapter reads the embedding layer (index 0), which the reference cannot select.

    Example:
      >>> import os, tempfile
      >>> from flax import nnx
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     export_reference(Adapter(AdapterConfig(hidden_size=8), rngs=nnx.Rngs(0)), folder)
      ...     os.listdir(folder)
      ['adapter.pt']
    """
    path, config = Path(path), adapter.config
    if 0 in config.layers:
        raise ValueError("layer 0, the embeddings, cannot be written: the reference selects among blocks only")
    state = {_theirs(name, config.kind): value for name, value in tensors(adapter).items()}
    if "layer_weight_vectors" in state:
        state["layer_weight_vectors"] = state["layer_weight_vectors"][None]
    last = config.layers == tuple(range(-len(config.layers), 0))
    checkpoint = {
        "token_projection_module": state,
        "adapter_type": _TYPES[config.kind][0],
        "projection_type": "mlp" if config.kind == "mlp" else "linear",
        "use_last_n_layers": len(config.layers) if last else 1,
        "selected_layers": None if last else [layer - 1 if layer > 0 else layer for layer in config.layers],
        "anchor_dim": config.pooled_dim or config.hidden_size,
        "hidden_size": config.hidden_size,
        "residual_dim": config.token_dim,
    }
    if len(config.layers) == 1 and not last:
        checkpoint["late_interaction_layer"] = config.layers[0]
    if config.kind == "mlp":
        checkpoint["projection_mlp_hidden_dim"] = config.mlp_dim
    if config.kind == "self_attention":
        checkpoint |= {"self_attn_num_heads": config.heads, "self_attn_num_layers": config.blocks}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch_file.save(checkpoint, path / REFERENCE if path.is_dir() else path)


def _theirs(name: str, kind: str) -> str:
    """Returns the reference's name of a tensor."""
    linear = {"hidden.weight": "proj.1.weight", "proj.weight": "proj.4.weight" if kind == "mlp" else "proj.1.weight"}
    if name in linear:
        return linear[name]
    if name == "layer_vector":
        return "layer_weight_vectors"
    if match := re.fullmatch(r"blocks\.(\d+)\.(in_proj|out_proj|norm)\.(weight|bias)", name):
        block, layer, what = match.groups()
        joint = "_" if layer == "in_proj" else "."
        return (
            f"self_attn_norms.{block}.{what}" if layer == "norm" else f"self_attn_layers.{block}.{layer}{joint}{what}"
        )
    return name.replace("norm.", "proj.0.")
