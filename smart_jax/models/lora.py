"""LoRA of a backbone's linear maps (arXiv:2106.09685), the kernels frozen and perhaps quantised (arXiv:2305.14314).

    y = x W + b + (alpha / r) dropout(x) A B          W: [in, out], A: [in, r], B: [r, out]

A starts uniform in +-1 / sqrt(in) and B at 0, as in PEFT, so that the model is unchanged at first. Our own rather than
qwix: that finds the maps by running the model on sample inputs with jax's functions replaced and draws dropout from a
counter, whereas here the maps are known by name and a mask has to follow from the training step alone.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from functools import partial, reduce
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Key, UInt
from safetensors.numpy import save_file

from smart_jax.files import CONFIG_FILE, WEIGHTS_FILE
from smart_jax.models.architectures import ModelConfig
from smart_jax.models.weights import Params, to_torch, torch_module
from smart_jax.runtime import is_main, place, sharding_for, to_host

QUANTIZATIONS = ("none", "int8", "nf4")
TEXT_PROJECTIONS = r"^language_model\..*_proj$"
NF4_BLOCK = 64
# Quantiles of the normal distribution, scaled to [-1, 1]: arXiv:2305.14314, appendix E.
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Which linear maps get a low-rank branch, and which one.

    Attributes:
      r: rank.
      alpha: the branch is scaled by alpha / r.
      dropout: probability with which an input of the branch is dropped in training.
      modules: regex, searched in the path of a linear map: "language_model.layers.0.self_attn.q_proj",
        "visual.blocks.0.attn.qkv", of a BERT "encoder.layer.0.attention.self.query".
      quantize: how the kernels of those maps are kept: "none" = as they are, "int8" = 8 bits and a scale for each
        output, "nf4" = 4-bit NormalFloat and a scale for each 64 inputs of an output.
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


class QuantizedKernel(nnx.Module):
    """A frozen kernel in 8 or 4 bits; two 4-bit codes of neighbouring inputs share a byte."""

    def __init__(self, kernel: Float[Array, "inputs outputs"], kind: str):
        self.kind, self.dtype = kind, kernel.dtype
        spec = _spec(kernel)
        codes, scales = jax.jit(quantize, static_argnames="kind")(kernel, kind=kind)
        if spec is not None:
            codes, scales = (_placed(x, spec, kernel) for x in (codes, scales))
        self.codes, self.scales = nnx.Variable(codes), nnx.Variable(scales)

    def product(self, x: Float[Array, "*B inputs"]) -> Float[Array, "*B outputs"]:
        """x W; the kernel is restored again in the backward pass rather than kept for it."""

        @jax.checkpoint
        def product(x: Array, codes: Array, scales: Array) -> Array:
            return x @ dequantize(codes, scales, self.kind).astype(self.dtype)

        return product(x, self.codes[...], self.scales[...])


class LoraLinear(nnx.Module):
    """A linear map with a low-rank branch; `dropout_key`, one for each row, is set for one call, see `drop_out`."""

    def __init__(self, linear: nnx.Linear, config: LoraConfig, key: Key[Array, ""]):
        kernel = linear.kernel.get_value()
        self.kernel: Any = linear.kernel if config.quantize == "none" else QuantizedKernel(kernel, config.quantize)
        self.bias = nnx.data(linear.bias)
        limit = linear.in_features**-0.5
        a = jax.random.uniform(key, (linear.in_features, config.r), jnp.float32, -limit, limit)
        b = jnp.zeros((config.r, linear.out_features), jnp.float32)
        if (spec := _spec(kernel)) is not None:  # split as the side of the kernel that each shares
            rows, columns = (*spec, None, None)[:2]
            a, b = _placed(a, PartitionSpec(rows, None), kernel), _placed(b, PartitionSpec(None, columns), kernel)
        self.lora_a, self.lora_b = nnx.Param(a), nnx.Param(b)
        self.scale, self.dropout = config.alpha / config.r, config.dropout
        self.dropout_key: Any = nnx.data(None)

    def __call__(self, x: Float[Array, "*B inputs"]) -> Float[Array, "*B outputs"]:
        a, b = self.scale * self.lora_a[...], self.lora_b[...]
        if self._merges():
            y = merged_product(x, self.kernel[...], a, b)
        else:
            y = self.kernel.product(x) if isinstance(self.kernel, QuantizedKernel) else x @ self.kernel[...]
            y = y + low_rank(self._dropped(x), a.astype(y.dtype), b.astype(y.dtype))
        return y if self.bias is None else y + self.bias[...]

    def _merges(self) -> bool:
        """Whether A B is added to the kernel first, which leaves out two products and two sums of x's size.

        Only where it is not rounded away: by kernels of 16 bits it would be, and by the products of accelerators.
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


@jax.custom_vjp
def low_rank(
    x: Float[Array, "*B inputs"], a: Float[Array, "inputs rank"], b: Float[Array, "rank outputs"]
) -> Float[Array, "*B outputs"]:
    """Returns x A B. Its gradient is written out, so that the products transpose arrays of r columns, not wide ones."""
    return x @ a @ b


def _low_rank_forward(x: Array, a: Array, b: Array) -> tuple[Array, tuple[Array, ...]]:
    inner = x @ a
    return inner @ b, (x, a, b, inner)


def _low_rank_backward(saved: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    x, a, b, inner = saved
    inner_gradient = gradient @ b.T
    # At once: XLA's scheduler would leave the factors' gradients for the end, and keep what they need of every layer.
    return jax.lax.optimization_barrier((inner_gradient @ a.T, *_factor_gradients(x, inner, gradient, inner_gradient)))


low_rank.defvjp(_low_rank_forward, _low_rank_backward)


@jax.custom_vjp
def merged_product(
    x: Float[Array, "*B inputs"],
    kernel: Float[Array, "inputs outputs"],
    a: Float[Array, "inputs rank"],
    b: Float[Array, "rank outputs"],
) -> Float[Array, "*B outputs"]:
    """x (W + A B), with the gradient of x W + x A B: that of a factor needs no product of the kernel's size."""
    return x @ (kernel + a @ b)


def _merged_forward(x: Array, kernel: Array, a: Array, b: Array) -> tuple[Array, tuple[Array, ...]]:
    merged = kernel + a @ b
    return x @ merged, (x, merged, a, b)


def _merged_backward(saved: tuple[Array, ...], gradient: Array) -> tuple[Array, ...]:
    x, merged, a, b = saved
    factors = _factor_gradients(x, x @ a, gradient, gradient @ b.T)
    return gradient @ merged.T, _over_rows(x, gradient), *factors


merged_product.defvjp(_merged_forward, _merged_backward)


def _factor_gradients(x: Array, inner: Array, gradient: Array, inner_gradient: Array) -> tuple[Array, Array]:
    """Of A and B, where inner = x A and inner_gradient is its gradient."""
    return _over_rows(x, inner_gradient), _over_rows(inner, gradient)


def _over_rows(a: Float[Array, "*B inputs"], b: Float[Array, "*B outputs"]) -> Float[Array, "inputs outputs"]:
    """Sum over all rows of their outer products."""
    return jax.lax.dot_general(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]), (((0,), (0,)), ((), ())))


def add_lora(
    graphdef: nnx.GraphDef, params: Params, config: LoraConfig, *, seed: int = 0
) -> tuple[nnx.GraphDef, Params]:
    """The backbone with a low-rank branch on each chosen linear map; it computes what it did before.

    Args:
      graphdef, params: from `load_weights`. Other parameters are shared, not copied; the branches' are float32 and
        placed as the kernels.
      config: which maps.
      seed: of A.

    Returns:
      `(graphdef, params)` whose leaves "lora_a" [in, r] and "lora_b" [r, out] stand beside each kernel.

    Raises:
      ValueError: no linear map matches, or "nf4" of an odd number of inputs.
    """
    model = nnx.merge(graphdef, params)
    linear: dict[str, Any] = {_dotted(path): path for path, x in nnx.iter_modules(model) if type(x) is nnx.Linear}
    chosen = [name for name in sorted(linear) if re.search(config.modules, name)]
    if not chosen:
        known = sorted({re.sub(r"\.\d+\.", ".0.", name) for name in linear})
        raise ValueError(f"lora.modules {config.modules!r} matches no linear map; there are {', '.join(known)}, ...")
    for i, name in enumerate(chosen):
        *above, last = linear[name]
        parent = reduce(_child, above, model)
        key = jax.random.fold_in(jax.random.key(seed), i)
        try:
            setattr(parent, last, LoraLinear(getattr(parent, last), config, key))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return nnx.split(model)


def drop_out(model: nnx.Module, key: Key[Array, ""], rows: Int[Array, " B"]) -> None:
    """Makes the branches of `model` drop inputs; a mask follows from the key, the branch and the row.

    Args:
      model: from `add_lora`, for one call.
      key: the same key gives the same masks.
      rows: the numbers of the batch's rows, so that some of them alone have the masks that they have in the whole. Each
        has a bin of patches of its own.
    """
    for i, (_, module) in enumerate(_branches(model)):
        if module.dropout:
            keys = jax.vmap(partial(jax.random.fold_in, jax.random.fold_in(key, i)))(rows)
            module.dropout_key = nnx.data(nnx.Variable(keys))


def save_lora(
    folder: str | Path, params: Params, model_config: ModelConfig, config: LoraConfig, *, base: str | Path
) -> Path:
    """Writes adapter_config.json and adapter_model.safetensors as PEFT does, for transformers' class of the model.

    `PeftModel.from_pretrained(model, folder)` opens it in torch and `smart_jax.load(folder)` here. The names are those
    of the class with a head where there is one (Qwen3VLForConditionalGeneration, ..., BertModel). Of several processes
    all call it, and the first writes.

    Args:
      folder: made if it is not there.
      params: of a model from `add_lora`.
      model_config: of the backbone.
      config: as given to `add_lora`.
      base: base_model_name_or_path: a hub id, or a folder, absolute or as seen from `folder`.

    Returns:
      The folder.
    """
    leaves = {path: leaf.get_value() for path, leaf in nnx.to_flat_state(params)}
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
    save_file(tensors, str(folder / WEIGHTS_FILE), metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    return folder


def quantize(kernel: Float[Array, "inputs outputs"], kind: str) -> tuple[Array, Float[Array, "blocks outputs"]]:
    """Codes and scales of a kernel.

    int8: codes int8 [inputs, outputs] and one scale for each output (a single block of inputs), its largest absolute
    weight / 127. nf4: codes uint8 [inputs / 2, outputs], input 2 i in the low half of byte i, and one scale for each
    block of inputs, its largest absolute weight. A block has 64 inputs or, where 64 does not divide their number, the
    largest smaller power of two that does.

    Raises:
      ValueError: nf4 of an odd number of inputs.
    """
    weight = kernel.astype(jnp.float32)
    if kind == "int8":
        scales = jnp.max(jnp.abs(weight), axis=0, keepdims=True) / 127
        return jnp.round(weight / _not_zero(scales)).astype(jnp.int8), scales
    inputs, outputs = weight.shape
    if inputs % 2:
        raise ValueError(f"lora.quantize 'nf4' needs an even number of inputs, not {inputs}: choose 'int8'")
    blocks = weight.reshape(-1, min(NF4_BLOCK, inputs & -inputs), outputs)
    scales = jnp.max(jnp.abs(blocks), axis=1)  # [blocks, outputs]
    relative = (blocks / _not_zero(scales)[:, None]).reshape(inputs, outputs)
    table = jnp.array(NF4)
    codes = jnp.searchsorted((table[1:] + table[:-1]) / 2, relative).astype(jnp.uint8)  # the nearest
    return codes[::2] | codes[1::2] << 4, scales


def dequantize(
    codes: Int[Array, "inputs outputs"] | UInt[Array, "half outputs"], scales: Float[Array, "blocks outputs"], kind: str
) -> Array:
    """The kernel [inputs, outputs] that `quantize` made them of, nearly; float32."""
    if kind == "int8":
        return codes.astype(jnp.float32) * scales
    pairs = jnp.stack([codes & 15, codes >> 4], axis=1)  # [inputs / 2, 2, outputs]
    blocks = jnp.array(NF4)[pairs].reshape(len(scales), -1, scales.shape[1])
    return (blocks * scales[:, None]).reshape(-1, scales.shape[1])


def _not_zero(scales: Array) -> Array:
    return jnp.where(scales == 0, 1, scales)


def _spec(x: Array) -> PartitionSpec | None:
    sharding = getattr(x, "sharding", None)
    return sharding.spec if isinstance(sharding, NamedSharding) else None


def _placed(x: Array, spec: PartitionSpec, like: Any) -> Any:
    """On the mesh of `like`, split where the axes divide; abstract where `like` is."""
    sharding = sharding_for("", x.shape, [("", spec)], like.sharding.mesh)
    if isinstance(like, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return place(x, sharding)


def _branches(model: nnx.Module) -> Iterator[tuple[str, LoraLinear]]:
    found = ((_dotted(path), module) for path, module in nnx.iter_modules(model) if isinstance(module, LoraLinear))
    return iter(sorted(found, key=lambda pair: pair[0]))


def _child(module: Any, part: str | int) -> Any:
    return module[part] if isinstance(part, int) else getattr(module, part)


def _dotted(path: tuple) -> str:
    return ".".join(map(str, path))
