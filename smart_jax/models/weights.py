"""Hugging Face safetensors <-> backbone parameters: by leaf type, one tensor at a time, complete both ways."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, which safetensors needs
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from smart_jax.files import INDEX_FILE, SINGLE_FILE, find_adapter
from smart_jax.models.architectures import ARCHITECTURES, ModelConfig
from smart_jax.models.peft import Change, choose_task, read_adapter
from smart_jax.runtime import is_main, place, sharding_for, to_host

_LEAF_NAMES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}

Params = nnx.State


def abstract_model(config: ModelConfig) -> tuple[nnx.GraphDef, Params]:
    """Structure and shapes of a backbone, without allocating it."""
    model = nnx.eval_shape(lambda: ARCHITECTURES[config.model_type].model(config, rngs=nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    return graphdef, state


def init_weights(config: ModelConfig, seed: int, dtype: Any = jnp.float32) -> tuple[nnx.GraphDef, Params]:
    """A randomly initialised backbone (normal with the config's initializer_range)."""
    graphdef, state = nnx.split(ARCHITECTURES[config.model_type].model(config, rngs=nnx.Rngs(seed)))
    return graphdef, jax.tree.map(lambda x: x.astype(dtype), state)


def load_weights(
    folder: str | Path,
    config: ModelConfig,
    *,
    dtype: Any = jnp.float32,
    mesh: Mesh | None = None,
    base: str | Path | None = None,
    task: str | None = None,
) -> tuple[nnx.GraphDef, Params]:
    """Reads a checkpoint's weights onto the device(s), its PEFT adapter merged into them.

    Tensors are read, merged in float32, cast and placed one after another, so that host memory holds no more than one
    of them beyond what is on the device.

    Args:
      folder: holds model.safetensors, or model.safetensors.index.json and its shards, and perhaps a PEFT adapter, in
        itself or in adapters/.
      config: from `load_config` of the same folder.
      dtype: of the parameters.
      mesh: places parameters by the architecture's sharding rules; None = the default device.
      base: where the weights are if `folder` holds an adapter only, see `hub.resolve_base`.
      task: of a checkpoint with an adapter for each of several tasks; None = the first.

    Returns:
      `(graphdef, params)` for `nnx.merge`.

    Raises:
      FileNotFoundError: no weights, or a shard named in the index is missing.
      ValueError: a corrupt file or index, an unused tensor (of the adapter, too), an unfilled parameter, a tensor of
        another shape, an adapter that is not supported, or an unknown task; the message names them.
    """
    graphdef, abstract = abstract_model(config)
    architecture = ARCHITECTURES[config.model_type]
    rules = architecture.sharding_rules
    leaves = dict(nnx.to_flat_state(abstract))
    wanted = {_bare(hf_name(path, config)): path for path in leaves}
    changes = _changes(folder, config, task)
    filled: dict[tuple, jax.Array] = {}
    unused: list[str] = []
    for raw_name, read in _tensors(Path(base or folder)):
        if re.fullmatch(architecture.ignored, raw_name):
            continue
        path = wanted.get(bare := _bare(raw_name))
        if path is None or path in filled:
            unused.append(raw_name)
            continue
        change = changes.pop(bare, None)
        value = read() if change is None else change.apply(read)
        value = _to_leaf(value, path, leaves[path].shape, raw_name)
        # After the cast: a transposed view would be copied again by the transfer.
        value = np.ascontiguousarray(value.astype(dtype))
        rule = None if mesh is None else sharding_for(_dotted(path), value.shape, rules, mesh)
        filled[path] = jax.device_put(value) if rule is None else place(value, rule)
    unfilled = [hf_name(path, config) for path in leaves if path not in filled]
    unused += [name for change in changes.values() for name in change.names]
    if unused or unfilled:
        raise ValueError(_incomplete(folder, unused, unfilled))
    return graphdef, nnx.from_flat_state([(path, leaf.replace(filled[path])) for path, leaf in leaves.items()])


def save_weights(folder: str | Path, params: Params, config: ModelConfig, *, dtype: Any | None = None) -> Path:
    """Writes `folder`/model.safetensors with Hugging Face's names and layouts; returns its path.

    Of several processes all call it, and the first writes.
    """
    target, tensors = Path(folder) / SINGLE_FILE, {}
    for path, leaf in nnx.to_flat_state(params):
        value = to_host(leaf[...])
        if is_main():
            name, value = hf_name(path, config), to_torch(value, path, config)
            tensors[name] = np.ascontiguousarray(value.astype(dtype or value.dtype))
    if not is_main():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(target), metadata={"format": "pt"})  # transformers refuses files without this entry
    return target


def hf_name(path: tuple, config: ModelConfig) -> str:
    """('visual', 'blocks', 0, 'norm1', 'scale') -> 'model.visual.blocks.0.norm1.weight', as the architecture says."""
    architecture = ARCHITECTURES[config.model_type]
    name = architecture.prefix + _dotted((*path[:-1], _LEAF_NAMES[path[-1]]))
    for pattern, replacement in architecture.renames:
        name = re.sub(pattern, replacement, name)
    return name


def torch_module(path: tuple, config: ModelConfig) -> str:
    """Name of a linear map in transformers' module; its checkpoints of Qwen2-VL and Qwen2.5-VL have older prefixes.

    ('visual', 'merger', 'linear_fc1') of a Qwen2-VL -> 'model.visual.merger.mlp.0'
    """
    name = hf_name((*path, "kernel"), config).removesuffix(".weight")
    if path[0] not in ("visual", "language_model"):
        return name
    return f"model.{path[0]}.{_bare(name).removeprefix('visual.')}"


def _changes(folder: str | Path, config: ModelConfig, task: str | None) -> dict[str, Change]:
    """By bare name of the tensor, what the checkpoint's adapter, if it has one, does to it."""
    tasks = getattr(config, "task_names", ())
    choose_task(task, tasks)
    if (adapter := find_adapter(folder)) is None:
        if tasks:
            raise ValueError(
                f"{folder}: config.json has the tasks {', '.join(tasks)}, but their adapters are missing (adapters/): "
                "fetch the checkpoint again or, if one of them is merged into the weights, remove task_names"
            )
        return {}
    changes: dict[str, Change] = {}
    ignored = ARCHITECTURES[config.model_type].ignored
    for name, change in read_adapter(adapter, tasks=tasks, task=task).items():
        if re.fullmatch(ignored, name):
            continue
        if (bare := _bare(name)) in changes:
            raise ValueError(
                f"{adapter}: {', '.join(change.names + changes[bare].names)} are of one and the same tensor"
            )
        changes[bare] = change
    return changes


def _bare(name: str) -> str:
    """Without the prefixes, of which versions of transformers wrote different ones for the same tensor; the first BERTs
    call a norm's weight and bias gamma and beta."""
    name = re.sub(r"^(model\.|language_model\.|bert\.)+", "", name)
    return re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))


def _dotted(path: tuple) -> str:
    return ".".join(str(part) for part in path)


def _to_leaf(value: np.ndarray, path: tuple, shape: tuple[int, ...], name: str) -> np.ndarray:
    if path[-1] == "kernel":  # torch stores [out, in], a convolution [out, in, ...]
        value = value.reshape(value.shape[0], -1).T
    if value.shape != shape:
        raise ValueError(
            f"tensor '{name}' gives shape {value.shape} where config.json asks for {shape}: the weights and the config "
            "are of different models"
        )
    return value


def to_torch(value: np.ndarray, path: tuple, config: Any) -> np.ndarray:
    """A parameter in torch's layout: a kernel [out, in], of a convolution [out, in, ...]."""
    if path[-1] != "kernel":
        return value
    if path[-3:-1] == ("patch_embed", "proj"):
        v = config.vision
        return value.T.reshape(-1, v.in_channels, v.temporal_patch_size, v.patch_size, v.patch_size)
    return value.T


def _tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """(name, reader) of every tensor, file by file."""
    for file, expected in _files(folder).items():
        if not file.is_file():
            raise FileNotFoundError(f"{file} is named in {INDEX_FILE} but does not exist: fetch the checkpoint again")
        try:
            with safe_open(str(file), framework="numpy") as handle:
                names = set(handle.keys())
                if expected is not None and (absent := expected - names):
                    raise ValueError(f"{file} lacks tensors that {INDEX_FILE} places in it: {_some(sorted(absent))}")
                for name in sorted(names):
                    yield name, lambda name=name, handle=handle: handle.get_tensor(name)
        except SafetensorError as error:
            raise ValueError(f"{file} is corrupt or truncated ({error}): fetch the checkpoint again") from error


def _files(folder: Path) -> dict[Path, set[str] | None]:
    """Weight files, each with the tensors that the index places in it (None = no index)."""
    if (index := folder / INDEX_FILE).is_file():
        try:
            weight_map: Mapping[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            files: dict[Path, set[str] | None] = {}
            for name, file in weight_map.items():
                files.setdefault(folder / file, set()).add(name)  # type: ignore[union-attr]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{index} is not a safetensors index ({error!r}): fetch the checkpoint again") from error
        return files
    if (single := folder / SINGLE_FILE).is_file():
        return {single: None}
    raise FileNotFoundError(f"{folder} has neither {SINGLE_FILE} nor {INDEX_FILE}: are the weights in safetensors?")


def _incomplete(folder: str | Path, unused: list[str], unfilled: list[str]) -> str:
    parts = [f"{folder}: weights and model do not match."]
    if unused:
        parts.append(f"Tensors that the model does not use: {_some(unused)}.")
    if unfilled:
        parts.append(f"Parameters that no tensor fills: {_some(unfilled)}.")
    return " ".join(parts)


def _some(names: list[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def checksum(params: Params) -> str:
    """16 hexadecimal digits of all parameters' names, shapes, dtypes and values.

    The same on every number and kind of devices: values are summed as integers, which has no rounding.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    digest = hashlib.blake2b(digest_size=8)
    for (path, leaf), total in zip(leaves, array_sums([leaf for _, leaf in leaves]), strict=True):
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype} {int(total)}\n".encode())
    return digest.hexdigest()


@jax.jit
def array_sums(leaves: list[jax.Array]) -> list[jax.Array]:
    """Of each array's bits, weighted by place and modulo 2**32."""

    def total(x: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(x, f"uint{8 * x.dtype.itemsize}").astype(jnp.uint32)
        place = jax.lax.iota(jnp.uint32, x.size).reshape(x.shape)
        return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)  # odd: no bit is lost

    return [total(leaf) for leaf in leaves]
