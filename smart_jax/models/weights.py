"""Parameters of a backbone: made, read from a checkpoint in safetensors (complete both ways), and written to one."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes  # noqa: F401  registers bfloat16 with NumPy, which safetensors needs
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jax.typing import DTypeLike

from smart_jax.files import SINGLE_FILE, Checkpoint, first_names, read_tensors, weight_sizes, write_tensors
from smart_jax.models.architectures import ARCHITECTURES, ModelConfig, projector_of
from smart_jax.models.peft import Change, choose_task, read_adapter
from smart_jax.models.torch_layout import (
    LeafPath,
    ModelGraph,
    Params,
    bare_name,
    dotted,
    from_torch,
    leaves_by_path,
    tensor_name,
    to_torch,
)
from smart_jax.runtime import is_main, place, sharding_for, to_host


def abstract_model(config: ModelConfig) -> tuple[ModelGraph, Params]:
    """Returns a backbone's graph, and its parameters as shapes and dtypes, without allocating them.

    Example:
      >>> from smart_jax.models import BertConfig
      >>> config = BertConfig("bert", vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=2,
      ...                     intermediate_size=8, max_position_embeddings=16)
      >>> graphdef, params = abstract_model(config)
      >>> params["embeddings"]["word_embeddings"]["embedding"].shape
      (9, 4)
    """
    model = nnx.eval_shape(lambda: ARCHITECTURES[config.model_type].model(config, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(model)
    return graphdef, params


def init_weights(config: ModelConfig, seed: int, dtype: DTypeLike = jnp.float32) -> tuple[ModelGraph, Params]:
    """Returns a backbone with random parameters: kernels and embeddings normal with the config's initializer_range.

    Args:
      config: of the backbone.
      seed: the same seed draws the same parameters.
      dtype: of the parameters.

    Example:
      >>> from smart_jax.models import BertConfig
      >>> config = BertConfig("bert", vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=2,
      ...                     intermediate_size=8, max_position_embeddings=16)
      >>> model = nnx.merge(*init_weights(config, seed=0))
      >>> model.embeddings.word_embeddings.embedding.shape
      (9, 4)
    """
    graphdef, params = nnx.split(ARCHITECTURES[config.model_type].model(config, rngs=nnx.Rngs(seed)))
    return graphdef, jax.tree.map(lambda x: x.astype(dtype), params)


def load_weights(
    checkpoint: Checkpoint | str | Path,
    config: ModelConfig,
    *,
    dtype: DTypeLike = jnp.float32,
    mesh: Mesh | None = None,
    task: str | None = None,
) -> tuple[ModelGraph, Params]:
    """Reads a checkpoint's weights onto the devices, with its PEFT adapter merged into them.

    Tensors are read, merged in float32, cast and placed one after another, so that host memory holds at most one of
    them beside what is on the devices.

    Args:
      checkpoint: from `smart_jax.files.open_checkpoint`, or a folder. It holds model.safetensors, or
        model.safetensors.index.json and its shards, and perhaps a PEFT adapter, in itself or in adapters/.
      config: from `load_config` of the same checkpoint.
      dtype: of the parameters.
      mesh: parameters are placed on it by the architecture's sharding rules; None = the default device.
      task: which adapter is merged, where a checkpoint has one for each of several tasks; None = the first.

    Returns:
      `(graphdef, params)` for `nnx.merge`.

    Raises:
      FileNotFoundError: there are no weights, or a shard named in the index is missing.
      ValueError: the dtype is too narrow for the architecture, a file or the index is corrupt, the model or the adapter
        leaves a tensor unused, no tensor fills a parameter, a tensor has another shape, the adapter is not supported,
        or the task is unknown; the message names them.

    Example:
      >>> import tempfile
      >>> from smart_jax.models import BertConfig
      >>> config = BertConfig("bert", vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=2,
      ...                     intermediate_size=8, max_position_embeddings=16)
      >>> _, params = init_weights(config, seed=0)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = save_weights(folder, params, config)
      ...     model = nnx.merge(*load_weights(folder, config, dtype=jnp.bfloat16))
      >>> model.embeddings.word_embeddings.embedding.dtype
      dtype(bfloat16)
    """
    checkpoint = Checkpoint.of(checkpoint)
    _check_sizes(checkpoint, config)
    graphdef, abstract = abstract_model(config)
    architecture = ARCHITECTURES[config.model_type]
    if not architecture.float16 and jnp.dtype(dtype) == jnp.float16:
        raise ValueError(f"{checkpoint}: the states of a {config.model_type} overflow float16: use bfloat16 or float32")
    leaves = leaves_by_path(abstract)
    wanted = {bare_name(tensor_name(path, config)): path for path in leaves}
    changes = _changes(checkpoint, config, task)
    filled: dict[LeafPath, jax.Array] = {}
    unused: list[str] = []
    for name, read in _tensors(checkpoint, config, wanted, changes):
        path = wanted.get(bare := bare_name(name))
        if path is None and re.fullmatch(architecture.ignored, name):
            continue
        if path is None or path in filled:
            unused.append(name)
            continue
        change = changes.pop(bare, None)
        value = read() if change is None else change.apply(read)
        value = from_torch(value, path, leaves[path].shape, name)
        # After the cast: a transposed view would be copied again by the transfer.
        value = _contiguous(value.astype(dtype))
        sharding = None if mesh is None else sharding_for(dotted(path), value.shape, architecture.sharding_rules, mesh)
        filled[path] = jax.device_put(value) if sharding is None else place(value, sharding)
    unfilled = [tensor_name(path, config) for path in leaves if path not in filled]
    unused += [name for change in changes.values() for name in change.names]
    if unused or unfilled:
        raise ValueError(_incomplete(checkpoint, unused, unfilled))
    return graphdef, nnx.from_flat_state([(path, leaf.replace(filled[path])) for path, leaf in leaves.items()])


def save_weights(folder: str | Path, params: Params, config: ModelConfig, *, dtype: DTypeLike | None = None) -> Path:
    """Writes `folder`/model.safetensors with Hugging Face's names and layouts, and returns its path.

    A projector that sentence-transformers has as a module of its own is written to that module's folder.

    Where there are several processes, all must call it, and the first one writes.

    Args:
      folder: made if it does not exist.
      params: of a backbone, without low-rank branches.
      config: of the backbone.
      dtype: of the file's tensors; None = as the parameters.

    Example:
      >>> import tempfile
      >>> from smart_jax.models import BertConfig
      >>> config = BertConfig("bert", vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=2,
      ...                     intermediate_size=8, max_position_embeddings=16)
      >>> _, params = init_weights(config, seed=0)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     save_weights(folder, params, config, dtype=jnp.bfloat16).name
      'model.safetensors'
    """
    target, tensors = Path(folder) / SINGLE_FILE, {}
    for path, leaf in leaves_by_path(params).items():
        value = to_host(leaf[...])
        if is_main():
            name, value = tensor_name(path, config), to_torch(value, path, config)
            tensors[name] = _contiguous(value.astype(dtype or value.dtype))
    if not is_main():
        return target
    for file, group in _by_file(target, tensors, config).items():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(file, group, {"format": "pt"})  # transformers refuses files without this entry
    return target


def _by_file(target: Path, tensors: dict[str, np.ndarray], config: ModelConfig) -> dict[Path, dict[str, np.ndarray]]:
    """Returns the tensors of each file: a module of sentence-transformers has one of its own."""
    projector = projector_of(config)
    if projector is None or projector.folder is None:
        return {target: tensors}
    prefix = f"{projector.folder}."
    own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    rest = {name: value for name, value in tensors.items() if not name.startswith(prefix)}
    return {target: rest, target.parent / projector.folder / SINGLE_FILE: own}


def _tensors(
    checkpoint: Checkpoint, config: ModelConfig, wanted: Collection[str], changes: Mapping[str, Change]
) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """Yields name and reader of every tensor: the checkpoint's, and the wanted ones that its adapter alone holds."""
    found: set[str] = set()
    projector = projector_of(config)
    for name, read in read_tensors(checkpoint.weights):
        found.add(bare_name(name))
        yield name, read
    if projector is not None and projector.folder is not None:
        for name, read in read_tensors(checkpoint.path(projector.folder)):
            yield f"{projector.folder}.{name}", read
    for bare, change in list(changes.items()):
        if change.whole is not None and bare in wanted and bare not in found:
            yield bare, partial(change.read, change.whole)


def _contiguous(value: np.ndarray) -> np.ndarray:
    """Returns the array in one piece; NumPy's function makes a vector of a scalar."""
    return np.ascontiguousarray(value).reshape(value.shape)


def _check_sizes(checkpoint: Checkpoint, config: ModelConfig) -> None:
    """Refuses weights that are too small for their config, before a model of its size is built, which takes long."""
    tensors, size = weight_sizes(checkpoint.weights)
    text = config.text
    layers = text.num_hidden_layers + getattr(getattr(config, "vision", None), "depth", 0)
    least = text.hidden_size * (
        getattr(text, "vocab_size", 0) + text.num_hidden_layers
    )  # bytes, of eight bits for each parameter
    if layers > tensors or least > size:
        raise ValueError(
            f"{checkpoint}: config.json asks for {layers} layers and at least {least} parameters, but the weights are "
            f"{tensors} tensors of {size} bytes: the weights and the config are of different models"
        )


def _changes(checkpoint: Checkpoint, config: ModelConfig, task: str | None) -> dict[str, Change]:
    """Returns what the checkpoint's adapter, if it has one, does to each tensor, by the tensor's bare name."""
    tasks = getattr(config, "task_names", ())
    choose_task(task, tasks)
    if (adapter := checkpoint.adapter) is None:
        if tasks:
            raise ValueError(
                f"{checkpoint}: config.json has the tasks {', '.join(tasks)}, but their adapters are missing "
                "(adapters/): fetch the checkpoint again or, if one of them is merged into the weights, remove "
                "task_names"
            )
        return {}
    changes: dict[str, Change] = {}
    ignored = ARCHITECTURES[config.model_type].ignored
    for name, change in read_adapter(adapter, tasks=tasks, task=task).items():
        if re.fullmatch(ignored, name):
            continue
        if (bare := bare_name(name)) in changes:
            raise ValueError(
                f"{adapter}: {', '.join(change.names + changes[bare].names)} are of one and the same tensor"
            )
        changes[bare] = change
    return changes


def _incomplete(checkpoint: Checkpoint, unused: list[str], unfilled: list[str]) -> str:
    """Returns the message of an error about tensors and parameters that do not match."""
    parts = [f"{checkpoint}: weights and model do not match."]
    if unused:
        parts.append(f"Tensors that the model does not use: {first_names(unused)}.")
    if unfilled:
        parts.append(f"Parameters that no tensor fills: {first_names(unfilled)}.")
    return " ".join(parts)
