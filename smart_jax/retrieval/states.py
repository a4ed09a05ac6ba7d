"""`States`: the hidden states of encoded items, before any choice of scoring."""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float, Int

from smart_jax.files import checked_int, map_tensors, parse_json, shown, write_tensors
from smart_jax.notebook import facts_table, memory_size
from smart_jax.retrieval.adapter import Adapter
from smart_jax.retrieval.embeddings import Embeddings, check_finite, check_offsets, token_name
from smart_jax.retrieval.provenance import Provenance, join
from smart_jax.typing import HostOrDevice

FORMAT, VERSION = "smart_jax.states", "1"
CHECKSUM = "checksum"  # in the metadata of a file
ARRAYS = ("pooled", "states", "norms", "ids", "offsets", "grids")
TOKENS_AT_ONCE = 4096  # projected by an adapter
SHORTEST = 16  # length to which the tokens of a short item are padded where an adapter takes items
MOST_LAYERS, LARGEST_ID = 1024, 2**31 - 1
LAST = -1  # the layer after the final norm


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class States:
    """Hidden states of N items in some layers of a backbone: NumPy arrays on the host, packed as in `Embeddings`.

    They hold kept tokens only. Embeddings of every kind follow from them without the backbone: of any of the layers,
    with any adapter on those layers, with fewer tokens or components.

    Attributes:
      pooled: pooled vectors [N, H], float32 or float16, L2-normalised.
      states: states [T, layers, D] of the tokens, of the same dtype, L2-normalised; D = H, except where a model's own
        head projects the last ones.
      norms: float32 [T, layers], lengths of the states before they were normalised.
      ids: int32 [T], token ids.
      offsets: int64 [N + 1]; item i owns the tokens offsets[i]:offsets[i + 1], at least one.
      grids: int32 [grids, 4], each (item, t, h, w): the tokens of an item whose id is in `visual_ids` are, in order,
        the cells of its grids, line by line.
      visual_ids: token ids of the visual placeholders.
      layers: the distinct layers, as negative indices into transformers' `hidden_states`; -1 = after the final norm.
      depth: number of the backbone's blocks; there are depth + 1 layers.
      provenance: what made them; None = it is not known.

    Raises:
      TypeError, ValueError: shapes or dtypes do not fit together.

    Example:
      One item of two tokens, in the last two layers of a backbone of four blocks:

      >>> import numpy as np
      >>> from smart_jax import States
      >>> states = States(
      ...     pooled=np.float32([[1, 0]]),
      ...     states=np.float32([[[1, 0], [0, 1]], [[0, 1], [0.6, 0.8]]]),
      ...     norms=np.float32([[2, 3], [4, 5]]),
      ...     ids=np.int32([17, 4]),
      ...     offsets=np.array([0, 2]),
      ...     grids=np.zeros((0, 4), np.int32),
      ...     visual_ids=(),
      ...     layers=(-2, -1),
      ...     depth=4,
      ... )
      >>> states
      States(1 items, 2 tokens, layers (-2, -1) of 4 blocks, width 2, float32)
      >>> states.embeddings(layer=-1).tokens
      array([[0. , 1. ],
             [0.6, 0.8]], dtype=float32)
    """

    pooled: Float[np.ndarray, "N H"]
    states: Float[np.ndarray, "T layers D"]
    norms: Float[np.ndarray, "T layers"]
    ids: Int[np.ndarray, " T"]
    offsets: Int[np.ndarray, " N+1"]
    grids: Int[np.ndarray, "grids 4"]
    visual_ids: tuple[int, ...]
    layers: tuple[int, ...]
    depth: int
    provenance: Provenance | None = None

    def __post_init__(self) -> None:
        for name in ("visual_ids", "layers"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        shape = len(self.ids), len(self.layers)
        check_offsets(self.offsets, items=len(self.pooled), tokens=len(self.ids))
        if self.states.ndim != 3 or self.states.shape[:2] != shape or self.norms.shape != shape:
            raise ValueError(
                f"states have shape {self.states.shape} and norms {self.norms.shape} for {shape[0]} tokens and "
                f"{shape[1]} layers: they must be [T, layers, D] and [T, layers]"
            )
        if self.states.dtype != self.pooled.dtype or self.states.dtype not in (np.float32, np.float16):
            raise TypeError(
                f"pooled is {self.pooled.dtype} and states are {self.states.dtype}: both must be float32 or float16"
            )
        if self.grids.ndim != 2 or self.grids.shape[1] != 4:
            raise ValueError(f"grids have shape {self.grids.shape}: they must be rows (item, t, h, w)")
        cells, visual = int(self.grids[:, 1:].prod(axis=1).sum()), int(np.sum(self.visual))
        if cells != visual:
            raise ValueError(f"the grids have {cells} cells for {visual} visual of {len(self.ids)} tokens")

    def check_finite(self) -> None:
        """Raises ValueError where a pooled vector or a state holds NaN or infinity, and names the item."""
        check_finite("pooled", self.pooled, lambda item: f"item {item}")
        flat = self.states.reshape(len(self.ids), -1)
        check_finite("a state", flat, lambda token: token_name(self.offsets, token))

    def __len__(self) -> int:
        return len(self.pooled)

    def __repr__(self) -> str:
        return (
            f"States({len(self)} items, {len(self.ids)} tokens, layers {self.layers} of {self.depth} blocks, width "
            f"{self.states.shape[2]}, {self.states.dtype})"
        )

    def _repr_html_(self) -> str:
        facts = {
            "items": len(self),
            "tokens": len(self.ids),
            "layers": f"{', '.join(map(str, self.layers))} of {self.depth} blocks",
            "width": self.states.shape[2],
            "dtype": self.states.dtype,
            "size": memory_size(self.states.nbytes),
        }
        return facts_table("States", facts)

    @property
    def lengths(self) -> Int[np.ndarray, " N"]:
        """Number of tokens of each item, int64."""
        return np.diff(self.offsets)

    @property
    def visual(self) -> Bool[np.ndarray, " T"]:
        """Whether each token is a cell of an image or a video."""
        return np.isin(self.ids, self.visual_ids)

    def __getitem__(self, index: int | slice | Sequence[int] | np.ndarray) -> States:
        """Returns some of the items, copied; the index is an int, a slice, a list of ints or a mask, as of an array."""
        items = np.atleast_1d(np.arange(len(self))[index])
        lengths = self.lengths[items]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        tokens = np.arange(offsets[-1]) + np.repeat(self.offsets[items] - offsets[:-1], lengths)
        grids_of_items = [np.flatnonzero(self.grids[:, 0] == item) for item in items]
        grids = self.grids[np.concatenate([np.zeros(0, np.int64), *grids_of_items])]
        grids[:, 0] = np.repeat(np.arange(len(items)), [len(indices) for indices in grids_of_items])
        arrays: dict[str, Any] = {name: getattr(self, name)[tokens] for name in ("states", "norms", "ids")}
        return dataclasses.replace(self, pooled=self.pooled[items], offsets=offsets, grids=grids, **arrays)

    @staticmethod
    def concatenate(parts: Sequence[States]) -> States:
        """Returns the items of all parts, in order.

        Raises:
          ValueError: there are no parts, or their models, layers or dtypes differ.
        """
        parts = list(parts)
        if not parts:
            raise ValueError("no states to concatenate: the list is empty")
        for i, part in enumerate(parts):
            ours, first = (
                (p.layers, p.depth, p.visual_ids, p.pooled.shape[1], p.states.shape[2], p.states.dtype)
                for p in (part, parts[0])
            )
            if ours != first:
                raise ValueError(f"part {i} is {part!r}, part 0 is {parts[0]!r}: they must be of one model and alike")
        starts = np.cumsum([0, *(len(part) for part in parts)])
        grids = [part.grids + np.array([start, 0, 0, 0], np.int32) for part, start in zip(parts, starts, strict=False)]
        lengths = np.concatenate([part.lengths for part in parts])
        return dataclasses.replace(
            parts[0],
            pooled=np.concatenate([part.pooled for part in parts]),
            states=np.concatenate([part.states for part in parts]),
            norms=np.concatenate([part.norms for part in parts]),
            ids=np.concatenate([part.ids for part in parts]),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            grids=np.concatenate(grids),
            provenance=join([part.provenance for part in parts]),
        )

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, whole or not at all."""
        facts = {name: getattr(self, name) for name in ("visual_ids", "layers", "depth")}
        metadata = {"format": FORMAT, "version": VERSION} | {name: json.dumps(value) for name, value in facts.items()}
        metadata[CHECKSUM] = _checksum(self)
        if self.provenance is not None:
            metadata["provenance"] = json.dumps(self.provenance.to_dict())
        write_tensors(Path(path), {name: getattr(self, name) for name in ARRAYS}, metadata)

    @staticmethod
    def load(path: str | Path, *, check: bool = False) -> States:
        """Returns states that `save` wrote, left in the file: what is used is read when it is used.

        Args:
          path: of the file.
          check: whether all of it is read at once, to find out if a value has changed since it was written.

        Raises:
          FileNotFoundError: there is no such file.
          ValueError: the file is corrupt, truncated, or of another format; or, with `check`, altered.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no '{path}': encode the items again")
        try:
            arrays, metadata = map_tensors(path)
            if (metadata.get("format"), metadata.get("version")) != (FORMAT, VERSION):
                raise ValueError(f"its format is {metadata.get('format')} {metadata.get('version')}")
            loaded = States(**_facts(metadata) | {name: arrays[name] for name in ARRAYS})
            if check and CHECKSUM in metadata and metadata[CHECKSUM] != _checksum(loaded):
                raise ValueError("its values are not those that were written")
            return loaded
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"'{path}' is corrupt or truncated ({error}): remove it and encode again") from error

    def embeddings(self, layer: int = LAST) -> Embeddings:
        """Returns pooled vectors, and tokens that are the states of one of the layers.

        Raises:
          ValueError: the layer is not among the stored ones.
        """
        tokens = np.ascontiguousarray(self.states[:, self._place(layer)])
        return Embeddings.from_checked(self.pooled, tokens, self.offsets, provenance=self.provenance)

    def adapted(self, adapter: Adapter) -> Embeddings:
        """Returns what the backbone with this adapter embeds, of the same dtype, but for rounding of the stored states.

        Raises:
          ValueError: a layer of the adapter is not among the stored ones, or the adapter is for another width.
        """
        adapter.check_matches(self.pooled.shape[1], self.depth)
        places = [self._place(layer) for layer in adapter.config.layers]
        graphdef, params = nnx.split(adapter)
        tokens = np.empty((len(self.ids), adapter.config.token_dim), self.states.dtype)
        for index in self._padded(by_item=adapter.config.kind == "self_attention"):
            kept = index >= 0
            states = self.states[index[kept]][:, places].astype(np.float32)
            padded = np.zeros((*index.shape, *states.shape[1:]), np.float32)
            padded[kept] = states * self.norms[index[kept]][:, places, None]
            tokens[index[kept]] = np.asarray(_project(graphdef, params, padded, kept))[kept]
        pooled = np.asarray(adapter.pooled(jnp.asarray(self.pooled)))
        made = self.provenance
        if made is not None:
            made = dataclasses.replace(made, adapter=adapter.digest())
        return Embeddings(pooled.astype(self.pooled.dtype), tokens, self.offsets, provenance=made)

    def _padded(self, *, by_item: bool) -> Iterator[Int[np.ndarray, "rows L"]]:
        """Yields the numbers of all tokens, -1 = padding, in few shapes, each of which is compiled once.

        Args:
          by_item: whether each row has the tokens of one item, or as many as there are.
        """
        if not by_item:
            for start in range(0, len(self.ids), TOKENS_AT_ONCE):
                index = np.arange(start, start + TOKENS_AT_ONCE)
                yield np.where(index < len(self.ids), index, -1)[None]
            return
        lengths = self.lengths
        sizes = 2 ** np.ceil(np.log2(np.maximum(lengths, SHORTEST))).astype(int)
        for size in np.unique(sizes).tolist():
            items, rows = np.flatnonzero(sizes == size), max(1, TOKENS_AT_ONCE // size)
            for start in range(0, len(items), rows):
                chosen = items[start : start + rows]
                index = np.full((rows, size), -1)
                places = np.arange(size)
                index[: len(chosen)] = np.where(
                    places[None] < lengths[chosen, None], self.offsets[chosen, None] + places[None], -1
                )
                yield index

    def _place(self, layer: int) -> int:
        count = self.depth + 1
        if not -count <= layer < count or layer % count - count not in self.layers:
            raise ValueError(f"layer {layer} is not among the stored ones {self.layers}: encode with it in `layers`")
        return self.layers.index(layer % count - count)


def _facts(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Returns what a file's texts say beside its arrays; raises KeyError or ValueError."""
    parsed = {name: parse_json(text, name) for name, text in metadata.items() if name not in ("format", "version")}
    facts: dict[str, Any] = {"depth": checked_int(parsed["depth"], "depth", least=0, most=MOST_LAYERS)}
    for name, least, most in (("visual_ids", 0, LARGEST_ID), ("layers", -MOST_LAYERS - 1, -1)):
        if not isinstance(values := parsed[name], list) or len(values) > MOST_LAYERS:
            raise ValueError(f"{name} is {shown(values)}, expected a list of integers")
        facts[name] = tuple(checked_int(value, name, least=least, most=most) for value in values)
    if "provenance" in parsed:
        facts["provenance"] = Provenance.from_dict(parsed["provenance"])
    return facts


def _checksum(states: States) -> str:
    """Returns the CRC-32 of all values, as a text in JSON."""
    total = 0
    for name in ARRAYS:
        total = zlib.crc32(np.ascontiguousarray(getattr(states, name)).reshape(-1).view(np.uint8).data, total)
    return f'"{total:08x}"'


@partial(jax.jit, static_argnames=("graphdef",))
def _project(
    graphdef: nnx.GraphDef[Adapter],
    params: nnx.State[Any, Any],
    states: Float[HostOrDevice, "B L layers H"],
    mask: Bool[HostOrDevice, "B L"],
) -> Float[jax.Array, "B L D"]:
    tokens: jax.Array = nnx.merge(graphdef, params)(states, mask)
    return tokens
