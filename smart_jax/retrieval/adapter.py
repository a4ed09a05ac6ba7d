"""The adapter of SMART's post-training: it projects a frozen backbone's token states for late interaction.

Source: "Your Embedding Model is SMARTer Than You Think" (arXiv:2605.24938). For a token with a state h_l in each of the
chosen layers l:

    fused = sum_l softmax_l( <rms(h_l), rms(w)> / sqrt(H) ) h_l        (one layer: fused = h, and no w)
    token = L2norm( f(fused) )

    linear          f(x) = W LayerNorm(x)                              (W: H -> D, no bias)
    mlp             f(x) = W GELU(V LayerNorm(x))                      (V: H -> M, W: M -> D, no biases, exact GELU)
    self_attention  f(x) = b_n(... b_1(W LayerNorm(x)))                (b(y) = LayerNorm(y + attention(y)), with biases)

In self_attention the kept tokens of an item attend to each other. The pooled vector stays the backbone's own,
optionally cut to its first `pooled_dim` components.
"""

from __future__ import annotations

import dataclasses
import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, UInt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from smart_jax.files import write_tensors, write_whole_text
from smart_jax.models import checksum, segment_attention
from smart_jax.notebook import abbreviated, facts_table
from smart_jax.publishing import push_folder, write_card
from smart_jax.retrieval.adapter_config import AdapterConfig, describe, read_config
from smart_jax.typing import HostOrDevice
from smart_jax.vectors import l2_normalise

WEIGHTS, CONFIG = "adapter.safetensors", "adapter.json"
REFERENCE = "adapter.pt"  # the paper's
LAYER_NORM_EPS = 1e-5
RMS_EPS = 1e-6


class AdapterDropout(NamedTuple):
    """Dropout, in training, of the values between the two maps of kind "mlp".

    Attributes:
      rate: probability of a value.
      keys: data of a random key for each item, from which its mask follows.

    Example:
      >>> adapter = Adapter(AdapterConfig(hidden_size=8, kind="mlp", mlp_dim=16), rngs=nnx.Rngs(0))
      >>> keys = jax.random.key_data(jax.random.split(jax.random.key(0), 3))  # of three items
      >>> adapter.project(jnp.ones((3, 5, 8)), dropout=AdapterDropout(0.1, keys)).shape
      (3, 5, 8)
    """

    rate: float
    keys: UInt[Array, "B 2"]


def _rms_normalize(x: Float[Array, "... H"]) -> Float[Array, "... H"]:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + RMS_EPS)


def _standard(x: Float[Array, "*batch H"]) -> Float[Array, "*batch H"]:
    """Returns vectors of mean 0 and variance 1: a LayerNorm without its scale and bias."""
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + LAYER_NORM_EPS)


def _value(parameter: Any) -> Array:  # flax declares that of a layer as optional
    value: Array = parameter[...]
    return value


def _along_last(vector: Float[Array, " D"], ndim: int) -> Float[Array, "... D"]:
    return jnp.expand_dims(vector, tuple(range(ndim - 1)))


class SelfAttention(nnx.Module):
    """A block LayerNorm(y + attention(y)) over the tokens of an item, as torch's MultiheadAttention computes it.

    Args:
      width: of the tokens.
      heads: number of heads, which divides the width.
      rngs: random keys of the initial values.
    """

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs) -> None:
        xavier, self.heads = nnx.initializers.xavier_uniform(), heads
        self.in_proj = nnx.Linear(width, 3 * width, kernel_init=xavier, rngs=rngs)
        self.out_proj = nnx.Linear(width, width, kernel_init=xavier, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=LAYER_NORM_EPS, rngs=rngs)

    def __call__(self, y: Float[Array, "B L D"], mask: Bool[Array, "B L"]) -> Float[Array, "B L D"]:
        """Returns the block's tokens; those that are not kept are attended to by none that is."""
        projected = _affine(y, self.in_proj).reshape(*y.shape[:2], 3, self.heads, -1)
        q, k, v = (projected[:, :, i] for i in range(3))
        attended = segment_attention(q, k, v, jnp.where(mask, 0, 1), causal=False).reshape(y.shape)
        z = _standard(y + _affine(attended, self.out_proj))
        return z * _along_last(_value(self.norm.scale), 3) + _along_last(_value(self.norm.bias), 3)


def _affine(x: Float[Array, "B L _"], linear: nnx.Linear) -> Float[Array, "B L _"]:
    return x @ _value(linear.kernel) + _along_last(_value(linear.bias), 3)


class Adapter(nnx.Module):
    """Layer fusion, LayerNorm and a projection of one of three kinds; parameters and arithmetic in float32.

    Args:
      config: sizes, kind and layers.
      rngs: random keys of the initial values.

    Example:
      >>> import jax.numpy as jnp
      >>> from flax import nnx
      >>> from smart_jax import Adapter, AdapterConfig
      >>> adapter = Adapter(AdapterConfig(hidden_size=8, dim=4, layers=(-2, -1)), rngs=nnx.Rngs(0))
      >>> states = jnp.ones((3, 2, 8))  # three tokens in two layers
      >>> adapter(states).shape
      (3, 4)
    """

    def __init__(self, config: AdapterConfig, *, rngs: nnx.Rngs) -> None:
        self.config = config
        width, dim = config.hidden_size, config.token_dim
        self.norm = nnx.LayerNorm(width, epsilon=LAYER_NORM_EPS, rngs=rngs)
        xavier = nnx.initializers.xavier_uniform()
        if config.kind == "mlp":
            self.hidden = nnx.Linear(width, config.mlp_dim, use_bias=False, kernel_init=xavier, rngs=rngs)
            width = config.mlp_dim
        self.proj = nnx.Linear(width, dim, use_bias=False, kernel_init=xavier, rngs=rngs)
        if config.kind == "self_attention":
            self.blocks = nnx.List([SelfAttention(dim, config.heads, rngs=rngs) for _ in range(config.blocks)])
        if len(config.layers) > 1:
            vector = nnx.initializers.normal(0.02)(rngs.params(), (config.hidden_size,), jnp.float32)
            self.layer_vector = nnx.Param(vector)

    def __repr__(self) -> str:
        return f"Adapter({self.config.kind}, {self._widths}, of {self._layers})"

    def __str__(self) -> str:  # that of flax shows all parameters
        return repr(self)

    def _repr_html_(self) -> str:
        parameters = sum(x.size for x in jax.tree.leaves(nnx.state(self, nnx.Param)))
        facts = {
            "kind": self.config.kind,
            "tokens": self._widths,
            "pooled vectors": None if self.config.pooled_dim is None else f"cut to {self.config.pooled_dim}",
            "of": self._layers,
            "parameters": abbreviated(parameters),
        }
        return facts_table("Adapter", facts)

    @property
    def _widths(self) -> str:
        return f"width {self.config.hidden_size} to {self.config.token_dim}"

    @property
    def _layers(self) -> str:
        layers = self.config.layers
        return f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"

    def fuse(self, states: Float[HostOrDevice, "*batch layers H"]) -> Float[Array, "*batch H"]:
        """Returns one float32 state per token from the chosen layers' states, in the order of `config.layers`.

        Raises:
          ValueError: the number of layers or H differs from the configuration.
        """
        expected = (len(self.config.layers), self.config.hidden_size)
        if states.ndim < 2 or states.shape[-2:] != expected:
            raise ValueError(
                f"states have shape {tuple(states.shape)}; this adapter takes [..., layers, H] = {expected}"
            )
        x = jnp.asarray(states, jnp.float32)
        if len(self.config.layers) == 1:
            return x[..., 0, :]
        vector = _rms_normalize(self.layer_vector[...])  # [H]
        logits = jnp.einsum("...lh,h->...l", _rms_normalize(x), vector) * self.config.hidden_size**-0.5
        return jnp.einsum("...l,...lh->...h", jax.nn.softmax(logits, axis=-1), x)

    def project(
        self,
        fused: Float[HostOrDevice, "*batch H"],
        mask: Bool[HostOrDevice, " *batch"] | None = None,
        *,
        dropout: AdapterDropout | None = None,
    ) -> Float[Array, "*batch D"]:
        """Returns L2-normalised float32 token vectors of fused states.

        Args:
          fused: states along the last axis; for kind "self_attention" the axis before it has the tokens of an item.
          mask: True for kept tokens, the only ones that the kept ones attend to; None = all. It matters to no other
            kind.
          dropout: of kind "mlp", for states [B, L, H]; None = nothing is dropped.

        Raises:
          ValueError: states without an axis of tokens, where these attend to each other.
        """
        y = self._projected(jnp.asarray(fused, jnp.float32), dropout)
        if self.config.kind != "self_attention":
            return l2_normalise(y)
        if y.ndim < 2:
            raise ValueError(
                f"fused states have shape {tuple(fused.shape)}: tokens attend to each other, give [..., L, H]"
            )
        shape = y.shape
        keep = jnp.ones(shape[:-1], bool) if mask is None else jnp.asarray(mask)
        y, keep = y.reshape(-1, *shape[-2:]), keep.reshape(-1, shape[-2])
        for block in self.blocks:
            y = block(y, keep)
        return l2_normalise(y).reshape(shape)

    def _projected(self, x: Float[Array, "*batch H"], dropout: AdapterDropout | None) -> Float[Array, "*batch D"]:
        """Returns the result of LayerNorm and linear maps.

        The norm's scale and bias act on the kernel, not on each token: W(s * x + b) = (W s) x + W b. The gradients of
        all three then follow from one product with the tokens; that with the kernel's transpose, as large as the
        forward pass's, is needed only where the states themselves are trained.
        """
        is_mlp = self.config.kind == "mlp"
        kernel = _value(self.hidden.kernel if is_mlp else self.proj.kernel)
        scale, bias = _value(self.norm.scale), _value(self.norm.bias)
        y = _standard(x) @ (scale[:, None] * kernel) + _along_last(bias @ kernel, x.ndim)
        if not is_mlp:
            return y
        y = jax.nn.gelu(y, approximate=False)
        if dropout is not None:
            y = jnp.where(_kept(dropout, y.shape[1:]), y / (1 - dropout.rate), 0)
        return y @ _value(self.proj.kernel)

    def __call__(
        self,
        states: Float[HostOrDevice, "*batch layers H"],
        mask: Bool[HostOrDevice, " *batch"] | None = None,
        *,
        dropout: AdapterDropout | None = None,
    ) -> Float[Array, "*batch D"]:
        """Returns L2-normalised float32 token vectors of the chosen layers' states, of any floating-point dtype.

        Args:
          states: of each token in each layer, in the order of `config.layers`.
          mask, dropout: as in `project`.
        """
        return self.project(self.fuse(states), mask, dropout=dropout)

    def pooled(self, pooled: Float[HostOrDevice, "*batch H"]) -> Float[Array, "*batch pooled_dim"]:
        """Returns L2-normalised float32 pooled vectors, cut to `pooled_dim` components first.

        Raises:
          ValueError: the width is not `hidden_size`.
        """
        if pooled.shape[-1] != self.config.hidden_size:
            raise ValueError(f"pooled has shape {tuple(pooled.shape)}; this adapter's H is {self.config.hidden_size}")
        return l2_normalise(pooled[..., : self.config.pooled_dim])

    def at_layer(self, layer: int) -> Adapter:
        """Returns the adapter with the same parameters, applied to another layer than it was trained on.

        Args:
          layer: index into the backbone's `hidden_states`, the `late_interaction_layer` of the paper's code.

        Raises:
          ValueError: the adapter fuses several layers.

        Example:
          >>> from flax import nnx
          >>> adapter = Adapter(AdapterConfig(hidden_size=8), rngs=nnx.Rngs(0))
          >>> adapter.at_layer(24).config.layers
          (24,)
        """
        if len(self.config.layers) > 1:
            raise ValueError(f"the adapter fuses the layers {self.config.layers}: one cannot be put in their place")
        moved = dataclasses.replace(self.config, layers=(layer,))
        return build(moved, tensors(self), "the adapter")

    def check_matches(self, hidden_size: int, depth: int) -> None:
        """Refuses an adapter of another backbone.

        Raises:
          ValueError: the backbone's width differs, it has no such layer, or two indices name one layer.
        """
        if hidden_size != self.config.hidden_size:
            raise ValueError(
                f"the adapter was trained on a backbone of width {self.config.hidden_size}, this one is {hidden_size} "
                "wide: load the adapter of this model, or the model of this adapter"
            )
        layers, count = self.config.layers, depth + 1
        if outside := [layer for layer in layers if not -count <= layer < count]:
            raise ValueError(f"the adapter reads layers {outside}; this backbone of {depth} blocks has 0 to {depth}")
        if len({layer % count for layer in layers}) != len(layers):
            raise ValueError(f"the adapter's layers {layers} name a layer of a backbone of {depth} blocks twice")

    def fingerprint(self) -> str:
        """Returns a text that is equal for adapters of the same config and the same values."""
        return f"{self.config} {checksum(nnx.state(self))}"

    def digest(self) -> str:
        """Returns 16 hexadecimal digits of the fingerprint."""
        return hashlib.blake2b(self.fingerprint().encode(), digest_size=8).hexdigest()

    def save(self, folder: str | Path) -> None:
        """Writes `adapter.safetensors` (float32, torch's [out, in] layout) and `adapter.json` into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_tensors(folder / WEIGHTS, tensors(self))
        write_whole_text(folder / CONFIG, describe(self.config))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        base_model: str | None = None,
        results: str | Path | None = None,
        license: str | None = None,
        datasets: Sequence[str] = (),
        private: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
    ) -> str:
        """Uploads the adapter with a model card; `smart_jax.load(..., adapter=repo_id)` opens it.

        Args:
          repo_id: "owner/name" of the repository on the hub, which is made if it is not there.
          base_model, results, license, datasets: what the card says, as in `smart_jax.publishing.write_card`.
          private, revision, token, commit_message: as in `smart_jax.publishing.push_folder`.

        Returns:
          Address of the commit.

        Raises:
          PermissionError: the hub does not let this token write there.
          ConnectionError: the hub is offline (HF_HUB_OFFLINE).
          FileNotFoundError, ValueError: the results cannot be read, or repo_id is no name of a repository.
        """
        where: dict[str, Any] = {"private": private, "revision": revision, "token": token}
        facts: dict[str, Any] = {"results": results, "base_model": base_model, "license": license, "datasets": datasets}
        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            write_card(folder, repo_id=repo_id, **facts)
            return push_folder(folder, repo_id, commit_message=commit_message, **where)

    @classmethod
    def load(cls, folder: str | Path) -> Adapter:
        """Returns an adapter that `save` wrote; `open_adapter` reads the paper's and those of the hub, too.

        Raises:
          FileNotFoundError: the folder or one of its two files is missing.
          ValueError: a file is truncated or corrupt, a setting or tensor is unknown or missing, or a shape differs.
        """
        folder = Path(folder)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                reference = folder if folder.suffix == ".pt" else folder / REFERENCE
                hint = f"; read '{reference}' with import_reference" if reference.is_file() else ""
                raise FileNotFoundError(f"no '{name}' in '{folder}': give the folder that Adapter.save wrote{hint}")
        config = read_config(folder / CONFIG)
        try:
            read = load_file(folder / WEIGHTS)
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"'{folder / WEIGHTS}' is truncated or corrupt ({error}): save it again") from error
        return build(config, read, str(folder / WEIGHTS))


def _kept(dropout: AdapterDropout, shape: tuple[int, ...]) -> Bool[Array, "B ..."]:
    """Returns True for values that stay, of each item; `shape` is that of one item's."""

    kept = partial(jax.random.bernoulli, p=1 - dropout.rate, shape=shape)
    return jax.vmap(lambda key: kept(jax.random.wrap_key_data(key)))(dropout.keys)


def _parameters(adapter: Adapter) -> dict[str, Any]:
    """Returns the parameters by their tensors' names."""
    parameters = {"norm.weight": adapter.norm.scale, "norm.bias": adapter.norm.bias, "proj.weight": adapter.proj.kernel}
    config = adapter.config
    if config.kind == "mlp":
        parameters["hidden.weight"] = adapter.hidden.kernel
    if config.kind == "self_attention":
        for i, block in enumerate(adapter.blocks):
            for name in ("in_proj", "out_proj", "norm"):
                layer = getattr(block, name)
                parameters[f"blocks.{i}.{name}.weight"] = layer.scale if name == "norm" else layer.kernel
                parameters[f"blocks.{i}.{name}.bias"] = layer.bias
    return parameters | ({"layer_vector": adapter.layer_vector} if len(config.layers) > 1 else {})


def tensors(adapter: Adapter) -> dict[str, np.ndarray]:
    """Returns float32 values in torch's layout: a matrix is [out, in], the transpose of the kernel."""
    values = {name: np.asarray(parameter[...], np.float32) for name, parameter in _parameters(adapter).items()}
    return {name: np.ascontiguousarray(value.T) for name, value in values.items()}


def _shapes(config: AdapterConfig, most: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the tensors by name, of `most` blocks at most: a file can claim any number."""
    width, dim = config.hidden_size, config.token_dim
    inner = config.mlp_dim if config.kind == "mlp" else width
    shapes: dict[str, tuple[int, ...]] = {"norm.weight": (width,), "norm.bias": (width,), "proj.weight": (dim, inner)}
    if config.kind == "mlp":
        shapes["hidden.weight"] = (inner, width)
    for i in range(min(config.blocks, most) if config.kind == "self_attention" else 0):
        for name, out in (("in_proj", 3 * dim), ("out_proj", dim), ("norm", dim)):
            shapes[f"blocks.{i}.{name}.weight"] = (out,) if name == "norm" else (out, dim)
            shapes[f"blocks.{i}.{name}.bias"] = (out,)
    return shapes | ({"layer_vector": (width,)} if len(config.layers) > 1 else {})


def build(config: AdapterConfig, given: Mapping[str, np.ndarray], origin: str) -> Adapter:
    """Returns an adapter with the tensors, complete both ways.

    Args:
      config: of the adapter.
      given: tensors by name, in torch's layout.
      origin: names their file in errors.

    Raises:
      ValueError: a tensor is missing or unknown, or has another shape or dtype.
    """
    wanted = _shapes(config, most=len(given) + 1)
    if unknown := sorted(given.keys() - wanted.keys()):
        raise ValueError(f"'{origin}' has unknown tensors {unknown}; an adapter of {config} has {sorted(wanted)}")
    if missing := sorted(wanted.keys() - given.keys()):
        raise ValueError(f"'{origin}' lacks the tensors {missing} of an adapter of {config}")
    for name, shape in wanted.items():
        if given[name].shape != shape:
            raise ValueError(f"'{origin}': tensor '{name}' has shape {given[name].shape}, expected {shape}")
        if not jnp.issubdtype(given[name].dtype, jnp.floating):
            raise ValueError(f"'{origin}': tensor '{name}' has dtype {given[name].dtype}, expected floating point")
    adapter = Adapter(config, rngs=nnx.Rngs(0))
    for name, parameter in _parameters(adapter).items():
        parameter.set_value(jnp.asarray(np.asarray(given[name], np.float32).T))
    return adapter
