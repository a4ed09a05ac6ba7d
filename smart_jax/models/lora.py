"""LoRA (arXiv:2106.09685): low-rank branches on a backbone's linear maps, whose kernels are frozen, perhaps quantised.

    y = x W + b + (alpha / r) dropout(x) A B          W: [inputs, outputs], A: [inputs, r], B: [r, outputs]

A starts uniform in +-1 / sqrt(inputs) and B at 0, as in PEFT, so that the model is unchanged at first. It is written
here rather than taken from qwix, which finds the maps by running the model on sample inputs with jax's functions
replaced, and draws dropout from a counter: here the maps are known by name, and a mask must follow from the training
step alone.
"""

from __future__ import annotations

import dataclasses
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int, Key

from smart_jax.files import CONFIG_FILE, WEIGHTS_FILE, write_tensors, write_whole_text
from smart_jax.models.architectures import ModelConfig
from smart_jax.models.low_rank import low_rank, merged_product
from smart_jax.models.placement import mesh_sharding, place_beside
from smart_jax.models.quantization import QUANTIZATIONS, QuantizedKernel
from smart_jax.models.torch_layout import ModelGraph, Params, dotted, leaves_by_path, to_torch, torch_module
from smart_jax.runtime import is_main, to_host

TEXT_PROJECTIONS = r"^language_model\..*_proj(_[a-z]+)?$"  # all linear maps of a Qwen-VL decoder's layers


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Choice of the linear maps that get a low-rank branch, and of its form.

    Attributes:
      r: rank.
      alpha: the branch is scaled by alpha / r.
      dropout: probability with which an input of the branch is dropped in training.
      modules: regular expression, searched in the path of a linear map: "language_model.layers.0.self_attn.q_proj",
        "visual.blocks.0.attn.qkv", of a BERT "encoder.layer.0.attention.self.query".
      quantize: form in which the kernels of these maps are kept: "none" = as they are, "int8" = 8 bits and a scale for
        each output, "nf4" = 4-bit NormalFloat and a scale for each 64 inputs of an output.

    Raises:
      ValueError: a value is out of its range, `quantize` is unknown, or `modules` is no regular expression.

    Example:
      >>> LoraConfig(r=8, alpha=16.0).modules == TEXT_PROJECTIONS
      True
    """

    r: int = 128
    alpha: float = 256.0
    dropout: float = 0.0
    modules: str = TEXT_PROJECTIONS
    quantize: str = "none"

    def __post_init__(self) -> None:
        if self.r < 1 or self.alpha <= 0:
            raise ValueError(f"lora.r is {self.r} and lora.alpha {self.alpha}: both must be positive")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout is {self.dropout}: it is a probability, at least 0 and below 1")
        if self.quantize not in QUANTIZATIONS:
            raise ValueError(f"lora.quantize is '{self.quantize}': choose one of {', '.join(QUANTIZATIONS)}")
        try:
            re.compile(self.modules)
        except re.error as error:
            raise ValueError(f"lora.modules {self.modules!r} is not a regular expression: {error}") from error


class LoraLinear(nnx.Module):
    """A linear map with a low-rank branch.

    `dropout_key` holds a key for each row of the batch during a call in which the branch drops inputs, see `drop_out`.
    """

    def __init__(self, linear: nnx.Linear, config: LoraConfig, key: Key[Array, ""]) -> None:
        kernel = linear.kernel.get_value()
        self.kernel: nnx.Param[Array] | QuantizedKernel = linear.kernel
        if config.quantize != "none":
            self.kernel = QuantizedKernel(kernel, config.quantize)
        self.bias = nnx.data(linear.bias)
        limit = linear.in_features**-0.5

        def draw() -> tuple[Array | jax.ShapeDtypeStruct, ...]:
            a = jax.random.uniform(key, (linear.in_features, config.r), jnp.float32, -limit, limit)
            return a, jnp.zeros((config.r, linear.out_features), jnp.float32)

        factors = jax.eval_shape(draw) if isinstance(kernel, jax.ShapeDtypeStruct) else draw()
        if (sharding := mesh_sharding(kernel)) is not None:  # each is split as the side of the kernel that it shares
            rows, columns = (*sharding.spec, None, None)[:2]
            specs = PartitionSpec(rows, None), PartitionSpec(None, columns)
            factors = tuple(place_beside(x, spec, kernel) for x, spec in zip(factors, specs, strict=True))
        self.lora_a, self.lora_b = map(nnx.Param, factors)
        self.scale, self.dropout = config.alpha / config.r, config.dropout
        self.dropout_key: nnx.Variable[Array] | None = nnx.data(None)

    def __call__(self, x: Float[Array, "*B inputs"]) -> Float[Array, "*B outputs"]:
        """Returns the map's result with that of the branch."""
        a, b = self.scale * self.lora_a[...], self.lora_b[...]
        if self._merges() and not isinstance(self.kernel, QuantizedKernel):
            y = merged_product(x, self.kernel[...], a, b)
        else:
            y = self.kernel.product(x) if isinstance(self.kernel, QuantizedKernel) else x @ self.kernel[...]
            y = y + low_rank(self._dropped(x), a.astype(y.dtype), b.astype(y.dtype))
        return y if self.bias is None else y + jnp.expand_dims(self.bias[...], tuple(range(y.ndim - 1)))

    def _merges(self) -> bool:
        """Whether A B is added to the kernel first, which saves two products and two sums of x's size.

        It is where it is not rounded away, as it would be by kernels of 16 bits and by the products of accelerators.
        """
        if isinstance(self.kernel, QuantizedKernel) or self.dropout_key is not None:
            return False
        return self.kernel.dtype == jnp.float32 and jax.default_backend() == "cpu"

    def _dropped(self, x: Float[Array, "B *L inputs"]) -> Float[Array, "B *L inputs"]:
        if self.dropout_key is None:
            return x
        kept = partial(jax.random.bernoulli, p=1 - self.dropout, shape=x.shape[1:])
        keep = jax.vmap(kept)(self.dropout_key[...])
        return jnp.where(keep, x / (1 - self.dropout), 0)


def add_lora(graphdef: ModelGraph, params: Params, config: LoraConfig, *, seed: int = 0) -> tuple[ModelGraph, Params]:
    """Returns the backbone with a low-rank branch on each chosen linear map; it still computes what it did.

    Args:
      graphdef: of a backbone, from `load_weights`.
      params: its parameters, which are shared, not copied; those of the branches are float32 and placed as the kernels.
      config: which maps, and the form of the branches.
      seed: the same seed draws the same A.

    Returns:
      `(graphdef, params)`, in which leaves "lora_a" [inputs, r] and "lora_b" [r, outputs] stand beside each kernel.

    Raises:
      ValueError: no linear map matches, or one has an odd number of inputs, which "nf4" cannot keep.

    Example:
      >>> from smart_jax.models import BertConfig, init_weights
      >>> backbone = BertConfig("bert", vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=2,
      ...                       intermediate_size=8, max_position_embeddings=16)
      >>> lora = LoraConfig(r=2, alpha=4.0, modules="self.query$")
      >>> graphdef, params = add_lora(*init_weights(backbone, seed=0), lora)
      >>> params["encoder"]["layer"][0]["attention"]["self"]["query"]["lora_a"].shape
      (4, 2)
    """
    model = nnx.merge(graphdef, params)
    linear = {dotted(path): path for path, x in nnx.iter_modules(model) if type(x) is nnx.Linear}
    chosen = [name for name in sorted(linear) if re.search(config.modules, name)]
    if not chosen:
        known = sorted({re.sub(r"\.\d+\.", ".0.", name) for name in linear})
        raise ValueError(f"lora.modules {config.modules!r} matches no linear map; there are {', '.join(known)}, ...")
    for i, name in enumerate(chosen):
        *above, last = linear[name]
        parent: Any = model  # or a module in it, or a list of modules
        for part in above:
            parent = parent[part] if isinstance(part, int) else getattr(parent, str(part))
        key = jax.random.fold_in(jax.random.key(seed), i)
        try:
            setattr(parent, str(last), LoraLinear(getattr(parent, str(last)), config, key))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return nnx.split(model)


def drop_out(model: nnx.Module, key: Key[Array, ""], rows: Int[Array, " B"]) -> None:
    """Makes the branches of `model` drop inputs; a mask follows from the key, the branch and the row's number.

    Args:
      model: from `add_lora`, merged for one call.
      key: the same key gives the same masks.
      rows: numbers of the batch's rows, each of which has a bin of patches of its own. By them, a part of a batch gets
        the masks that it has in the whole.

    Example:
      >>> from smart_jax.models import BertConfig, init_weights
      >>> backbone = BertConfig("bert", vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=2,
      ...                       intermediate_size=8, max_position_embeddings=16)
      >>> lora = LoraConfig(r=2, alpha=4.0, dropout=0.1, modules="self.query$")
      >>> model = nnx.merge(*add_lora(*init_weights(backbone, seed=0), lora))
      >>> drop_out(model, jax.random.key(0), jnp.arange(3))
      >>> model.encoder.layer[0].attention.self.query.dropout_key.shape
      (3,)
    """
    for i, module in enumerate(_branches(model)):
        if module.dropout:
            keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, i)))(rows)
            module.dropout_key = nnx.data(nnx.Variable(keys))


def save_lora(
    folder: str | Path, params: Params, model_config: ModelConfig, config: LoraConfig, *, base: str | Path
) -> Path:
    """Writes adapter_config.json and adapter_model.safetensors as PEFT does, for transformers' class of the model.

    `PeftModel.from_pretrained(model, folder)` opens the adapter in torch, and `smart_jax.load(folder)` here. The names
    are those of the class with a language head where there is one (Qwen3VLForConditionalGeneration, ..., BertModel).
    Where there are several processes, all must call it, and the first one writes.

    Args:
      folder: made if it does not exist.
      params: of a model from `add_lora`.
      model_config: of the backbone.
      config: as given to `add_lora`.
      base: what becomes base_model_name_or_path: a hub id, or a folder, absolute or as seen from `folder`.

    Returns:
      The folder.

    Example:
      >>> import tempfile
      >>> from smart_jax.models import BertConfig, init_weights
      >>> backbone = BertConfig("bert", vocab_size=9, hidden_size=4, num_hidden_layers=1, num_attention_heads=2,
      ...                       intermediate_size=8, max_position_embeddings=16)
      >>> lora = LoraConfig(r=2, alpha=4.0, modules="self.query$")
      >>> _, params = add_lora(*init_weights(backbone, seed=0), lora)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     sorted(path.name for path in save_lora(folder, params, backbone, lora, base="a/model").iterdir())
      ['adapter_config.json', 'adapter_model.safetensors']
    """
    tensors, modules = _peft_tensors(params, model_config)
    described = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": str(base),
        "target_modules": sorted(modules),
        "r": config.r,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "bias": "none",
        "use_rslora": False,
        "use_dora": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    folder = Path(folder)
    if not is_main():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    write_tensors(folder / WEIGHTS_FILE, tensors, {"format": "pt"})
    write_whole_text(folder / CONFIG_FILE, json.dumps(described, indent=2) + "\n")
    return folder


def _peft_tensors(params: Params, model_config: ModelConfig) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the factors by PEFT's names and in torch's layout, and the names of the linear maps they belong to."""
    leaves = {path: leaf.get_value() for path, leaf in leaves_by_path(params).items()}
    tensors, modules = {}, []
    for *module, leaf in leaves:
        if leaf != "lora_a":
            continue
        path = tuple(module)
        a, b = (to_host(leaves[*path, part]).astype(np.float32) for part in ("lora_a", "lora_b"))
        name = torch_module(path, model_config)
        a = to_torch(a, (*path, "kernel"), model_config)  # [r, in], of a convolution [r, in, ...]
        b = b.T.reshape(*b.T.shape, *[1] * (a.ndim - 2))  # [out, r], of a convolution [out, r, 1, ...]
        tensors[f"base_model.model.{name}.lora_A.weight"] = np.ascontiguousarray(a)
        tensors[f"base_model.model.{name}.lora_B.weight"] = np.ascontiguousarray(b)
        modules.append(name)
    return tensors, modules


def _branches(model: nnx.Module) -> list[LoraLinear]:
    """Returns the maps with a branch, in the order of their paths."""
    branches = {dotted(path): module for path, module in nnx.iter_modules(model) if isinstance(module, LoraLinear)}
    return [branches[name] for name in sorted(branches)]
