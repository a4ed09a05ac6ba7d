"""The sizes of an adapter, its kind and the layers that it reads, as a folder and as the paper have them."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

from smart_jax.files import read_json, shown

FORMAT, VERSION = "smart_jax.adapter", 1
KINDS = ("linear", "mlp", "self_attention")


@dataclasses.dataclass(frozen=True)
class AdapterConfig:
    """Sizes of an adapter, its kind, and the layers that it reads.

    Attributes:
      hidden_size: H, width of the backbone's states.
      dim: D, width of the token vectors; None = H.
      layers: indices into the backbone's `hidden_states` (0 = embeddings, i = after block i - 1, -1 = after the final
        norm), as `model(batch, layers)` takes them; `parse_layers` reads the paper's notation.
      pooled_dim: number of components that the pooled vector is cut to; None = all.
      kind: "linear" = one linear map of each token; "mlp" = two with a GELU between them; "self_attention" = the linear
        map, then blocks in which the tokens of an item attend to each other.
      mlp_dim: width between the two maps of "mlp".
      heads: attention heads of a block of "self_attention"; they divide D.
      blocks: number of blocks of "self_attention".

    Raises:
      ValueError: a size is not a positive int, a layer is named twice, the kind is unknown, the heads do not divide D,
        or a setting of another kind is changed.

    Example:
      >>> from smart_jax import AdapterConfig
      >>> AdapterConfig(hidden_size=8, layers=(-2, -1)).token_dim
      8
    """

    hidden_size: int
    dim: int | None = None
    layers: tuple[int, ...] = (-1,)
    pooled_dim: int | None = None
    kind: str = "linear"
    mlp_dim: int = 4096
    heads: int = 8
    blocks: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", tuple(self.layers))
        for name in ("hidden_size", "dim", "pooled_dim", "mlp_dim", "heads", "blocks"):
            value = getattr(self, name)
            if (value is None and name in ("dim", "pooled_dim")) or (type(value) is int and value > 0):
                continue
            raise ValueError(f"adapter {name}={shown(value)}: expected a positive int")
        if self.pooled_dim is not None and self.pooled_dim > self.hidden_size:
            raise ValueError(f"adapter pooled_dim={self.pooled_dim} exceeds hidden_size={self.hidden_size}")
        if not self.layers or any(type(layer) is not int for layer in self.layers):
            raise ValueError(f"adapter layers={shown(self.layers)}: expected at least one int, such as (-1,)")
        if len(set(self.layers)) != len(self.layers):
            raise ValueError(f"adapter layers={shown(self.layers)} name a layer twice")
        self._check_kind()

    def _check_kind(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"adapter kind={shown(self.kind)}: choose one of {', '.join(KINDS)}")
        for name, kind in _KIND_OF.items():
            if (value := getattr(self, name)) != _DEFAULTS[name] and self.kind != kind:
                raise ValueError(f"adapter {name}={value} is of kind {kind!r}, but kind={self.kind!r}: leave it out")
        if self.kind == "self_attention" and self.token_dim % self.heads:
            raise ValueError(f"adapter heads={self.heads} do not divide the {self.token_dim} components of a token")

    @property
    def token_dim(self) -> int:
        """Width of the token vectors."""
        return self.hidden_size if self.dim is None else self.dim

    def settings(self) -> dict[str, Any]:
        """Returns the settings by name; those of kinds are left out where they have their defaults."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if name in _ALWAYS or value != _DEFAULTS[name]}


_DEFAULTS = {field.name: field.default for field in dataclasses.fields(AdapterConfig)}
_ALWAYS = ("hidden_size", "dim", "layers", "pooled_dim")
_KIND_OF = {"mlp_dim": "mlp", "heads": "self_attention", "blocks": "self_attention"}


def describe(config: AdapterConfig) -> str:
    """Returns the text of an adapter's JSON file."""
    return json.dumps({"format": FORMAT, "version": VERSION, **config.settings()}, indent=2) + "\n"


def read_config(path: Path) -> AdapterConfig:
    """Reads an adapter's JSON file.

    Raises:
      ValueError: it is corrupt or of another format or version, or a setting is unknown, missing or out of its range.
    """
    try:
        settings = read_json(path, remedy="copy or save the adapter again")
    except OSError as error:
        raise ValueError(f"'{path}' is not valid JSON ({error}): copy or save the adapter again") from error
    if settings.pop("format", None) != FORMAT:
        raise ValueError(f"'{path}' does not describe an adapter: 'format' must be '{FORMAT}'")
    if (version := settings.pop("version", None)) != VERSION:
        raise ValueError(f"'{path}' has version {shown(version)}, this release reads {VERSION}: update smart_jax")
    if unknown := sorted(settings.keys() - _DEFAULTS.keys()):
        raise ValueError(f"'{path}' has unknown settings {unknown}; known are {sorted(_DEFAULTS)}")
    if missing := sorted(set(_ALWAYS) - settings.keys()):
        raise ValueError(f"'{path}' lacks the settings {missing}")
    if not isinstance(settings["layers"], list):
        raise ValueError(f"'{path}': layers={shown(settings['layers'])} is not a list of ints")
    try:
        return AdapterConfig(**settings)
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from error


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
