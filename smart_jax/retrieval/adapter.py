"""The adapter of SMART's post-training: it projects a frozen backbone's token states for late interaction.

Source: "Your Embedding Model is SMARTer Than You Think" (arXiv:2605.24938). For a token with a state h_l in each of the
chosen layers l:

    fused = sum_l softmax_l( <rms(h_l), rms(w)> / sqrt(H) ) h_l        (one layer: fused = h, and no w)
    token = L2norm( W LayerNorm(fused) )                               (W: H -> D, no bias)

The pooled vector stays the backbone's own, optionally cut to its first `pooled_dim` components.
"""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from smart_jax.files import torch_file
from smart_jax.typing import HostOrDevice
from smart_jax.vectors import l2_normalise

WEIGHTS, CONFIG = "adapter.safetensors", "adapter.json"
FORMAT, VERSION = "smart_jax.adapter", 1
LAYER_NORM_EPS = 1e-5
RMS_EPS = 1e-6


def _rms_normalize(x: Float[Array, "... H"]) -> Float[Array, "... H"]:
    return x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + RMS_EPS)


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Sizes of an adapter and the layers it reads.

    Attributes:
      hidden_size: H, width of the backbone's states.
      dim: D, width of the token vectors; None = H.
      layers: indices into the backbone's `hidden_states` (0 = embeddings, i = after block i - 1, -1 = after the final
        norm), as `model(batch, layers)` takes them; `parse_layers` reads the paper's notation.
      pooled_dim: number of components that the pooled vector is cut to; None = all.

    Raises:
      ValueError: a size is not a positive int, or a layer is named twice.

    Example:
      >>> from smart_jax import AdapterConfig
      >>> AdapterConfig(hidden_size=8, layers=(-2, -1)).token_dim
      8
    """

    hidden_size: int
    dim: int | None = None
    layers: tuple[int, ...] = (-1,)
    pooled_dim: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        for name in ("hidden_size", "dim", "pooled_dim"):
            value = getattr(self, name)
            if (value is None and name != "hidden_size") or (type(value) is int and value > 0):
                continue
            raise ValueError(f"adapter {name}={value!r}: expected a positive int")
        if self.pooled_dim is not None and self.pooled_dim > self.hidden_size:
            raise ValueError(f"adapter pooled_dim={self.pooled_dim} exceeds hidden_size={self.hidden_size}")
        if not self.layers or any(type(layer) is not int for layer in self.layers):
            raise ValueError(f"adapter layers={self.layers!r}: expected at least one int, such as (-1,)")
        if len(set(self.layers)) != len(self.layers):
            raise ValueError(f"adapter layers={self.layers!r} name a layer twice")

    @property
    def token_dim(self) -> int:
        """Width of the token vectors."""
        return self.hidden_size if self.dim is None else self.dim


class Adapter(nnx.Module):
    """Layer fusion, LayerNorm and a linear projection; parameters and arithmetic in float32.

    Args:
      config: sizes and layers.
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
        hidden_size = config.hidden_size
        self.norm = nnx.LayerNorm(hidden_size, epsilon=LAYER_NORM_EPS, rngs=rngs)
        xavier = nnx.initializers.xavier_uniform()
        self.proj = nnx.Linear(hidden_size, config.token_dim, use_bias=False, kernel_init=xavier, rngs=rngs)
        if len(config.layers) > 1:
            self.layer_vector = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (hidden_size,), jnp.float32))

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

    def project(self, fused: Float[HostOrDevice, "*batch H"]) -> Float[Array, "*batch D"]:
        """Returns L2-normalised float32 token vectors of fused states.

        The norm's scale and bias act on the kernel, not on each token: W(s * x + b) = (W s) x + W b. The gradients of
        all three then follow from one product with the tokens; that with the kernel's transpose, as large as the
        forward pass's, is needed only where the states themselves are trained.
        """
        x = fused.astype(jnp.float32)
        centred = x - jnp.mean(x, axis=-1, keepdims=True)
        standard = centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + LAYER_NORM_EPS)
        kernel, scale = self.proj.kernel[...], self.norm.scale[...]  # type: ignore[index]
        bias = self.norm.bias[...]  # type: ignore[index]
        shift = jnp.expand_dims(bias @ kernel, tuple(range(x.ndim - 1)))
        return l2_normalise(standard @ (scale[:, None] * kernel) + shift)

    def __call__(self, states: Float[HostOrDevice, "*batch layers H"]) -> Float[Array, "*batch D"]:
        """Returns L2-normalised float32 token vectors of the chosen layers' states, of any floating-point dtype."""
        return self.project(self.fuse(states))

    def pooled(self, pooled: Float[HostOrDevice, "*batch H"]) -> Float[Array, "*batch pooled_dim"]:
        """Returns L2-normalised float32 pooled vectors, cut to `pooled_dim` components first.

        Raises:
          ValueError: the width is not `hidden_size`.
        """
        if pooled.shape[-1] != self.config.hidden_size:
            raise ValueError(f"pooled has shape {tuple(pooled.shape)}; this adapter's H is {self.config.hidden_size}")
        return l2_normalise(pooled[..., : self.config.pooled_dim])

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

    def save(self, folder: str | Path) -> None:
        """Writes `adapter.safetensors` (float32, torch's [out, in] layout) and `adapter.json` into a folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        description = {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self.config)}
        weights, text = folder / f"{WEIGHTS}.tmp", folder / f"{CONFIG}.tmp"
        save_file(_tensors(self), weights)
        text.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
        weights.replace(folder / WEIGHTS)
        text.replace(folder / CONFIG)

    @classmethod
    def load(cls, folder: str | Path) -> Adapter:
        """Returns an adapter that `save` wrote.

        Raises:
          FileNotFoundError: the folder or one of its two files is missing.
          ValueError: a file is truncated or corrupt, a setting or tensor is unknown or missing, or a shape differs.
        """
        folder = Path(folder)
        for name in (CONFIG, WEIGHTS):
            if not (folder / name).is_file():
                reference = folder if folder.suffix == ".pt" else folder / "adapter.pt"
                hint = f"; read '{reference}' with import_reference" if reference.is_file() else ""
                raise FileNotFoundError(f"no '{name}' in '{folder}': give the folder that Adapter.save wrote{hint}")
        config = _read_config(folder / CONFIG)
        try:
            tensors = load_file(folder / WEIGHTS)
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(f"'{folder / WEIGHTS}' is truncated or corrupt ({error}): save it again") from error
        return _build(config, tensors, str(folder / WEIGHTS))


def _read_config(path: Path) -> AdapterConfig:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"'{path}' is not valid JSON ({error}): copy or save the adapter again") from error
    if not isinstance(settings, dict) or settings.pop("format", None) != FORMAT:
        raise ValueError(f"'{path}' does not describe an adapter: 'format' must be '{FORMAT}'")
    if (version := settings.pop("version", None)) != VERSION:
        raise ValueError(f"'{path}' has version {version!r}, this release reads {VERSION}: update smart_jax")
    fields = {field.name for field in dataclasses.fields(AdapterConfig)}
    if unknown := sorted(settings.keys() - fields):
        raise ValueError(f"'{path}' has unknown settings {unknown}; known are {sorted(fields)}")
    if missing := sorted(fields - settings.keys()):
        raise ValueError(f"'{path}' lacks the settings {missing}")
    if not isinstance(settings["layers"], list):
        raise ValueError(f"'{path}': layers={settings['layers']!r} is not a list of ints")
    try:
        return AdapterConfig(**settings)
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from error


def _parameters(adapter: Adapter) -> dict[str, Any]:
    """Returns the parameters by their tensors' names."""
    parameters = {"norm.weight": adapter.norm.scale, "norm.bias": adapter.norm.bias, "proj.weight": adapter.proj.kernel}
    return parameters | ({"layer_vector": adapter.layer_vector} if len(adapter.config.layers) > 1 else {})


def _tensors(adapter: Adapter) -> dict[str, np.ndarray]:
    """Returns float32 values in torch's layout: a matrix is [out, in], the transpose of the kernel."""
    values = {name: np.asarray(parameter[...], np.float32) for name, parameter in _parameters(adapter).items()}
    return {name: np.ascontiguousarray(value.T) for name, value in values.items()}


def _build(config: AdapterConfig, tensors: dict[str, np.ndarray], origin: str) -> Adapter:
    """Returns an adapter with the tensors, complete both ways; `origin` names their file in errors."""
    width = config.hidden_size
    wanted = {"norm.weight": (width,), "norm.bias": (width,), "proj.weight": (config.token_dim, width)}
    if len(config.layers) > 1:
        wanted["layer_vector"] = (width,)
    if unknown := sorted(tensors.keys() - wanted.keys()):
        raise ValueError(f"'{origin}' has unknown tensors {unknown}; an adapter of {config} has {sorted(wanted)}")
    if missing := sorted(wanted.keys() - tensors.keys()):
        raise ValueError(f"'{origin}' lacks the tensors {missing} of an adapter of {config}")
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise ValueError(f"'{origin}': tensor '{name}' has shape {tensors[name].shape}, expected {shape}")
        if not jnp.issubdtype(tensors[name].dtype, jnp.floating):
            raise ValueError(f"'{origin}': tensor '{name}' has dtype {tensors[name].dtype}, expected floating point")
    adapter = Adapter(config, rngs=nnx.Rngs(0))
    for name, parameter in _parameters(adapter).items():
        parameter.set_value(jnp.asarray(np.asarray(tensors[name], np.float32).T))
    return adapter


def parse_layers(text: str, depth: int) -> tuple[int, ...]:
    """Returns layers in the paper's notation as indices for `AdapterConfig.layers`.

    Args:
      text: "last 4", or indices and inclusive ranges separated by commas: "-1,-3", "20-24,-1". It counts transformer
        blocks 0 .. depth - 1, and -1 is the last one.
      depth: number of the backbone's blocks.

    Returns:
      Negative indices into `hidden_states`, which mean the same in both countings: block 20 of 28 is -8.

    Raises:
      ValueError: the text is not in this notation, a block is out of range or named twice, or a range descends.

    Example:
      >>> parse_layers("last 3", depth=28)
      (-3, -2, -1)
      >>> parse_layers("20-22,-1", depth=28)
      (-8, -7, -6, -1)
    """
    if last := re.fullmatch(r"\s*last\s*(\d+)\s*", text):
        count = int(last[1])
        if not 1 <= count <= depth:
            raise ValueError(f"layers '{text}': the backbone has {depth} blocks, choose 1 to {depth} of them")
        return tuple(range(-count, 0))
    blocks: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(-?\d+)\s*(?:-\s*(-?\d+)\s*)?", part)
        if match is None:
            raise ValueError(f"layers '{text}': '{part}' is neither a block, a range a-b, nor 'last N'")
        bounds = [int(bound) for bound in match.groups() if bound is not None]
        for bound in bounds:
            if not -depth <= bound < depth:
                raise ValueError(f"layers '{text}': no block {bound}; there are -{depth} to {depth - 1}")
        first, final = bounds[0] % depth, bounds[-1] % depth
        if final < first:
            raise ValueError(f"layers '{text}': range '{part.strip()}' runs backwards")
        blocks.extend(range(first, final + 1))
    if len(set(blocks)) != len(blocks):
        raise ValueError(f"layers '{text}' name a block of the {depth} twice: {blocks}")
    return tuple(block - depth for block in blocks)


_MAX_LAYERS = 1024  # more than any backbone has; a file can claim any number
_REFERENCE_NAMES = {
    "proj.0.weight": "norm.weight",
    "proj.0.bias": "norm.bias",
    "proj.1.weight": "proj.weight",
    "layer_weight_vectors": "layer_vector",
}


def import_reference(path: str | Path) -> Adapter:
    """Reads an adapter from an `adapter.pt` of the paper's implementation.

    It takes no torch, and no objects are unpickled. The reference counts blocks from 0, where `AdapterConfig.layers`
    counts `hidden_states`: its block i is layer i + 1 here, and negative indices are equal.

    Args:
      path: the file, or the folder it lies in.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is no such checkpoint or holds a variant other than the linear projection (the reference also
        has MLP and self-attention ones), or a tensor's shape differs from the settings.

    Example:
      >>> import tempfile
      >>> from flax import nnx
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     export_reference(Adapter(AdapterConfig(hidden_size=8, dim=4), rngs=nnx.Rngs(0)), folder)
      ...     import_reference(folder).config
      AdapterConfig(hidden_size=8, dim=4, layers=(-1,), pooled_dim=None)
    """
    path = Path(path)
    path = path / "adapter.pt" if path.is_dir() else path
    checkpoint = torch_file.load(path)
    state = checkpoint.get("token_projection_module") if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, np.ndarray) for value in state.values()):
        raise ValueError(f"'{path}' is no adapter of the reference: it has no state dict 'token_projection_module'")
    if unknown := sorted(map(str, state.keys() - _REFERENCE_NAMES.keys())):
        raise ValueError(f"'{path}' has tensors {unknown}: only adapters with a linear projection are supported")
    tensors = {_REFERENCE_NAMES[name]: value for name, value in state.items()}
    if "layer_vector" in tensors:
        if (shape := tensors["layer_vector"].shape)[:1] != (1,):
            raise ValueError(f"'{path}': layer_weight_vectors has shape {shape}, expected (1, H)")
        tensors["layer_vector"] = tensors["layer_vector"][0]
    return _build(_reference_config(checkpoint, tensors, path), tensors, str(path))


def _reference_config(checkpoint: dict[str, Any], tensors: dict[str, np.ndarray], path: Path) -> AdapterConfig:
    if "proj.weight" not in tensors or tensors["proj.weight"].ndim != 2:
        raise ValueError(f"'{path}' lacks the matrix 'proj.1.weight' of the projection")
    dim, width = tensors["proj.weight"].shape
    hidden_size: Any = checkpoint.get("hidden_size", width)
    anchor_dim = checkpoint.get("anchor_dim")
    selected, last = checkpoint.get("selected_layers"), checkpoint.get("use_last_n_layers", 1)
    if selected is None:
        if type(last) is not int or not 1 <= last <= _MAX_LAYERS:
            raise ValueError(f"'{path}': use_last_n_layers={last!r} is not an int from 1 to {_MAX_LAYERS}")
        layers = tuple(range(-last, 0))
    elif isinstance(selected, (list, tuple)) and all(type(layer) is int for layer in selected):
        layers = tuple(layer + 1 if layer >= 0 else layer for layer in selected)
    else:
        raise ValueError(f"'{path}': selected_layers={selected!r} is not a list of ints")
    pooled_dim = None if anchor_dim == hidden_size else anchor_dim
    try:
        return AdapterConfig(hidden_size, None if dim == hidden_size else dim, layers, pooled_dim)
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from error


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
    ours = _tensors(adapter)
    state = {theirs: ours[name] for theirs, name in _REFERENCE_NAMES.items() if name in ours}
    if "layer_weight_vectors" in state:
        state["layer_weight_vectors"] = state["layer_weight_vectors"][None]
    last = config.layers == tuple(range(-len(config.layers), 0))
    checkpoint = {
        "token_projection_module": state,
        "adapter_type": "token_projection",
        "use_last_n_layers": len(config.layers) if last else 1,
        "selected_layers": None if last else [layer - 1 if layer > 0 else layer for layer in config.layers],
        "anchor_dim": config.pooled_dim or config.hidden_size,
        "hidden_size": config.hidden_size,
        "residual_dim": config.token_dim,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch_file.save(checkpoint, path / "adapter.pt" if path.is_dir() else path)
