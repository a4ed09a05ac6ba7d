"""`load` and `Encoder`: items in, `Embeddings` or `States` out, by one compiled function per padded shape."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, Int
from numpy.typing import DTypeLike
from tqdm import tqdm

from smart_jax.files import Checkpoint, open_checkpoint
from smart_jax.forward import Computation, Split, Vectors, compute, put_batch
from smart_jax.inputs import Preprocessor, TokenizedItem, batches_by_length, open_preprocessor, parse_items
from smart_jax.models import Batch, Grid, ModelConfig, ModelGraph, Params, checksum, load_config, load_weights
from smart_jax.retrieval import LAST, Adapter, Embeddings, States, import_reference
from smart_jax.runtime import to_host

BATCH_SIZE = 8  # items per device
PROGRESS_AFTER_SECONDS = 2.0


def load(
    name_or_path: str | Path,
    *,
    adapter: str | Path | Adapter | None = None,
    dtype: Any | None = None,
    mesh: Mesh | None = None,
    revision: str | None = None,
    head: str | None = None,
    pooling: str | None = None,
    prompt: str | Sequence[Sequence[str]] | None = None,
    settings: Mapping[str, Any] | None = None,
    task: str | None = None,
) -> Encoder:
    """Opens a single-vector retriever for SMART scoring.

    Published models are known by their config.json or name (`smart_jax.inputs.PRESETS`); others say how they are
    prompted and pooled here or in their smart_jax.json, see docs/bring_your_own_model.md.

    A PEFT adapter in the folder (LoRA, DoRA) is merged into the weights: into the folder's own or, if it has none, into
    those of the adapter's base model, whose files stand in for those that the folder lacks.

    Args:
      name_or_path: a local folder in Hugging Face layout, a hub id, or "tiny" (the embedded default).
      adapter: a post-trained token projection: folder of `Adapter.save`, the reference's `adapter.pt`, or an `Adapter`.
      dtype: dtype of the backbone's parameters and computation; default bfloat16 on TPU and GPU, float32 on CPU.
      mesh: devices to work on (`smart_jax.make_mesh()` = all of them, by data); None = the default device.
      revision: branch, tag or commit of a hub repository.
      head: preset to start from: the published model that the checkpoint is or comes from, such as "gme".
      pooling: "last", "mean" or "before:TOKEN"; for a BERT, "mean" or "cls" (None = as the checkpoint's smart_jax.json
        or 1_Pooling/config.json says).
      prompt: a Jinja template or turns, see `smart_jax.inputs.prompt.Prompt`.
      settings: any other fields of `smart_jax.inputs.Settings`, for a BERT of `TextSettings`.
      task: which adapter is used, where a checkpoint has one for each of several tasks, such as jina-embeddings-v4
        ("retrieval", "text-matching", "code"); None = the first of its task_names.

    Raises:
      FileNotFoundError, ConnectionError: the checkpoint or one of its files cannot be had.
      ValueError: a file is corrupt, the model_type, the preset, the pooling or the task is unknown, a PEFT adapter is
        of a kind that cannot be merged, or weights, config and adapter do not match.

    Example:
      >>> import smart_jax
      >>> smart_jax.load("tiny")
      Encoder(qwen3_vl, 2.11 M parameters in float32, 4 blocks of width 192, no adapter, 1 device)
    """
    checkpoint = open_checkpoint(name_or_path, revision=revision)
    config = load_config(checkpoint, pooling=pooling)
    given = {"head": head, "pooling": pooling, "prompt": prompt}
    overrides = {name: value for name, value in given.items() if value is not None} | dict(settings or {})
    preprocessor = open_preprocessor(checkpoint, config, **overrides)
    config = preprocessor.config  # the settings may switch DeepStack off, or name another pooling rule
    adapter = _open_adapter(adapter, config)
    if dtype is None:
        dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    graphdef, params = load_weights(checkpoint, config, dtype=dtype, mesh=mesh, task=task)
    return Encoder(config, preprocessor, graphdef, params, adapter=adapter, mesh=mesh, checkpoint=checkpoint)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Encoder:
    """A backbone with its preprocessing and, optionally, an adapter; a `Retriever`.

    It is not changed in place: `with_adapter`, `with_params` and `dataclasses.replace` return another one, which shares
    what stays.

    Attributes:
      config: the backbone's config, as the settings ask for it.
      preprocessor: turns items into batches.
      graphdef, params: the backbone for `nnx.merge(graphdef, params)`.
      adapter: trained projection of the token vectors; None = there is none.
      mesh: devices that it works on; None = the default device.
      checkpoint: where it was loaded from; None = it was put together by hand.

    Example:
      >>> import smart_jax
      >>> model = smart_jax.load("tiny")
      >>> pages = model.encode_document(["Revenue by region", "A list of errors"], progress=False)
      >>> smart_jax.score(model.encode_query(["errors"], progress=False), pages).shape
      (1, 2)
    """

    config: ModelConfig
    preprocessor: Preprocessor
    graphdef: ModelGraph
    params: Params
    _: dataclasses.KW_ONLY
    adapter: Adapter | None = None
    mesh: Mesh | None = None
    checkpoint: Checkpoint | None = None

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(self.params)
        adapter = "no adapter" if self.adapter is None else f"adapter to {self.adapter.config.token_dim} components"
        devices = 1 if self.mesh is None else self.mesh.size
        return (
            f"Encoder({self.config.model_type}, {_abbreviated(sum(x.size for x in leaves))} parameters in "
            f"{leaves[0].dtype}, {self.depth} blocks of width {self.width}, {adapter}, {devices} "
            f"device{'s' if devices > 1 else ''})"
        )

    def with_adapter(self, adapter: str | Path | Adapter | None) -> Encoder:
        """Returns the same backbone (shared, not copied) with another adapter, or without one."""
        return dataclasses.replace(self, adapter=_open_adapter(adapter, self.config))

    def with_params(self, params: Params, *, graphdef: ModelGraph | None = None) -> Encoder:
        """Returns the same model with other parameters, and with their structure if that has changed, too."""
        return dataclasses.replace(self, params=params, graphdef=self.graphdef if graphdef is None else graphdef)

    def encode_query(
        self,
        items: Sequence[Any],
        *,
        instruction: str | None = None,
        batch_size: int | None = None,
        dtype: DTypeLike = np.float32,
        progress: bool | None = None,
    ) -> Embeddings:
        """Embeds queries; `instruction` defaults to the checkpoint's query instruction. See `encode`."""
        how: dict[str, Any] = {"batch_size": batch_size, "dtype": dtype, "progress": progress}
        return self.encode(items, instruction=instruction, query=True, **how)

    def encode_document(
        self,
        items: Sequence[Any],
        *,
        instruction: str | None = None,
        batch_size: int | None = None,
        dtype: DTypeLike = np.float32,
        progress: bool | None = None,
    ) -> Embeddings:
        """Embeds documents; `instruction` defaults to the checkpoint's default instruction. See `encode`."""
        how: dict[str, Any] = {"batch_size": batch_size, "dtype": dtype, "progress": progress}
        return self.encode(items, instruction=instruction, **how)

    def encode(
        self,
        items: Sequence[Any],
        *,
        instruction: str | None = None,
        query: bool = False,
        batch_size: int | None = None,
        dtype: DTypeLike = np.float32,
        progress: bool | None = None,
    ) -> Embeddings:
        """Embeds items.

        The result does not depend on batch size, order or number of devices beyond rounding (2e-5 in float32).

        Args:
          items: a list of texts, paths, PIL images, uint8 arrays [height, width, 3], or dicts of text, image, images,
            video, videos, fps, max_frames and instruction, see `smart_jax.inputs.parse_item`; the order is kept.
          instruction: used for items that carry none of their own.
          query: whether they are queries: their default instruction, prompt and kept tokens may differ.
          batch_size: number of items in a batch over all devices; None = 8 for each device.
          dtype: dtype of the stored vectors, float32 or float16; they are computed in float32 either way.
          progress: whether a bar is shown; None = only if encoding takes longer than two seconds.

        Returns:
          `Embeddings` with `pooled` [N, H] and packed `tokens` [T, D], L2-normalised.

        Raises:
          ValueError, TypeError, OSError: an item cannot be read; the message names the item and the remedy.
        """
        how = self._embedding(dtype)
        computed = self._run(items, how, instruction, query, batch_size=batch_size, progress=progress)
        return Embeddings(
            pooled=np.stack([item.pooled for item in computed]),
            tokens=np.concatenate([item.states[:, 0] for item in computed]),
            offsets=_offsets(computed),
        )

    def states(
        self,
        items: Sequence[Any],
        *,
        instruction: str | None = None,
        query: bool = False,
        layers: Sequence[int] | None = None,
        batch_size: int | None = None,
        dtype: DTypeLike = np.float16,
        progress: bool | None = None,
    ) -> States:
        """Returns the backbone's states of items, from which embeddings of any kind follow; an adapter is left out.

        Args:
          items, instruction, query, batch_size, dtype, progress: as in `encode`.
          layers: indices of layers into transformers' `hidden_states`; None = what `encode` scores with: the last
            layer, through the model's own head where it has one.

        Returns:
          `States` whose `embeddings()` are those of `encode` if the last layer is among them.

        Raises:
          ValueError: a layer does not exist or is named twice; and as `encode`.
          TypeError, OSError: as `encode`.
        """
        chosen = self._layers((LAST,) if layers is None else layers)
        how = Computation(chosen, own_head=layers is None, dtype=np.dtype(dtype))
        computed = self._run(items, how, instruction, query, batch_size=batch_size, progress=progress)
        grids = [[i, *grid] for i, item in enumerate(computed) for grid in item.grids]
        states = States(
            pooled=np.stack([item.pooled for item in computed]),
            states=np.concatenate([item.states for item in computed]),
            norms=np.concatenate([item.norms for item in computed]),
            ids=np.concatenate([item.ids for item in computed]),
            offsets=_offsets(computed),
            grids=np.array(grids, np.int32).reshape(-1, 4),
            visual_ids=self.preprocessor.visual_ids,
            layers=chosen,
            depth=self.depth,
        )
        states.check_finite()
        return states

    def fingerprint(self) -> str:
        """Returns 32 hexadecimal digits of the weights, their dtype, the config, and all that preprocessing depends on.

        Equal for encoders that give equal states, up to rounding on other devices. The adapter is left out.
        """
        about = repr((self.config, self.preprocessor.description()))
        return checksum(self.params) + hashlib.blake2b(about.encode(), digest_size=8).hexdigest()

    @property
    def folder(self) -> Path | None:
        """Folder that it was loaded from."""
        return None if self.checkpoint is None else self.checkpoint.folder

    @property
    def width(self) -> int:
        """Width H of the backbone's states, and of pooled vectors without an adapter."""
        return self.config.text.hidden_size

    @property
    def depth(self) -> int:
        """Number of the backbone's blocks; there are depth + 1 layers of states."""
        return self.config.text.num_hidden_layers

    @property
    def token_dim(self) -> int | None:
        """Width of the token vectors that the model's own head makes; None = it has no head, and they are states."""
        return self.config.token_dim

    @property
    def max_tokens(self) -> int:
        """Largest number of tokens of one item."""
        return self.preprocessor.length_buckets[-1]

    @property
    def _devices(self) -> int:
        """Number of devices that share a batch."""
        return 1 if self.mesh is None else self.mesh.shape["data"] * self.mesh.shape["fsdp"]

    def _batch_size(self, asked: int | None, items: int) -> int:
        if asked is not None and asked < 1:
            raise ValueError(f"batch_size is {asked}: it must be at least 1")
        # A short list takes the next power of two, so that one query does not pay for eight.
        rows = min(asked or BATCH_SIZE * self._devices, 1 << (items - 1).bit_length())
        return -(-rows // self._devices) * self._devices

    def _layers(self, layers: Sequence[int]) -> tuple[int, ...]:
        """Returns the layers as negative indices; raises ValueError where the backbone has no such layer."""
        count = self.depth + 1
        if outside := [layer for layer in layers if not -count <= layer < count]:
            raise ValueError(
                f"layers {outside} are not of this backbone of {count - 1} blocks: it has 0 to {count - 1}"
            )
        chosen = tuple(layer % count - count for layer in layers)
        if not chosen or len(set(chosen)) < len(chosen):
            raise ValueError(f"layers {tuple(layers)}: name at least one, and none twice")
        return chosen

    def _grids(self, item: TokenizedItem) -> list[Grid]:
        """Returns the sizes of the item's kept visual tokens, which are all of them or none."""
        if not np.isin(item.input_ids[item.keep], self.preprocessor.visual_ids).any():
            return []
        merge = self.preprocessor.merge_size
        return [(t, h // merge, w // merge) for t, h, w in item.grids]

    def _run(
        self,
        items: Sequence[Any],
        how: Computation,
        instruction: str | None,
        query: bool,
        *,
        batch_size: int | None,
        progress: bool | None,
    ) -> list[_Computed]:
        """Returns the vectors of each item, in the order of the items."""
        parsed = parse_items(items)
        rows = self._batch_size(batch_size, len(parsed))
        bar = tqdm(
            total=len(parsed),
            desc="encode",
            unit="item",
            delay=PROGRESS_AFTER_SECONDS if progress is None else 0,
            disable=progress is False,
        )
        computed: dict[int, _Computed] = {}
        batches = batches_by_length(
            self.preprocessor, parsed, rows, instruction=instruction, query=query, shards=self._devices
        )
        with bar:
            for tokenized, vectors in self._pipelined(batches, how):
                pooled, states, norms = map(to_host, vectors)
                for b, (i, item) in enumerate(tokenized.items()):
                    kept = np.flatnonzero(item.keep)
                    ids, grids = item.input_ids[kept], self._grids(item)
                    computed[i] = _Computed(pooled[b], states[b, kept], norms[b, kept], ids, grids)
                bar.update(len(tokenized))
        return [computed[i] for i in range(len(parsed))]

    def _pipelined(
        self, batches: Iterable[tuple[dict[int, TokenizedItem], Batch]], how: Computation
    ) -> Iterator[tuple[dict[int, TokenizedItem], Vectors]]:
        """Yields results one batch late: the host prepares a batch while the device computes the one before."""
        waiting = None
        for tokenized, batch in batches:
            result = tokenized, self._vectors(batch, how)
            if waiting is not None:
                yield waiting
            waiting = result
        if waiting is not None:
            yield waiting

    def embed(self, batch: Batch, *, dtype: DTypeLike = np.float32) -> tuple[jax.Array, jax.Array]:
        """Returns L2-normalised pooled vectors [B, H] and token vectors [B, L, D] of one batch, on the device."""
        vectors = self._vectors(batch, self._embedding(dtype))
        return vectors.pooled, vectors.states[:, :, 0]

    def _embedding(self, dtype: DTypeLike) -> Computation:
        """Returns what makes the model's embeddings: its adapter's layers and projection, or the last states."""
        if self.adapter is None:
            return Computation((LAST,), own_head=True, dtype=np.dtype(dtype))
        layers = self.adapter.config.layers
        return Computation(layers, own_head=False, dtype=np.dtype(dtype), projection=self._projection)

    @functools.cached_property
    def _projection(self) -> Split | None:
        return None if self.adapter is None else nnx.split(self.adapter)

    def _vectors(self, batch: Batch, how: Computation) -> Vectors:
        if self.mesh is not None:
            batch = put_batch(batch, self.mesh)
        backbone = (self.graphdef, self.params)
        vectors: Vectors = compute(backbone, how.projection, batch, how.layers, how.own_head, how.dtype)
        return vectors


class _Computed(NamedTuple):
    """What is left of one item, on the host: its vectors, of kept tokens only, without its pixels."""

    pooled: Float[np.ndarray, " H"]
    states: Float[np.ndarray, "kept layers D"]
    norms: Float[np.ndarray, "kept layers"]
    ids: Int[np.ndarray, " kept"]
    grids: list[Grid]  # of its kept visual tokens, in visual tokens


def _offsets(computed: Sequence[_Computed]) -> Int[np.ndarray, " offsets"]:
    """Returns where each item's kept tokens start in the packed ones, and where the last ends."""
    return np.cumsum([0, *(len(item.states) for item in computed)], dtype=np.int64)


def _abbreviated(count: int) -> str:
    """Returns a count in three digits: 3.31 M, 2.13 B."""
    for unit, name in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if count >= unit:
            return f"{count / unit:.3g}{name}"
    return str(count)


def _open_adapter(adapter: str | Path | Adapter | None, config: ModelConfig) -> Adapter | None:
    if adapter is None:
        return None
    if not isinstance(adapter, Adapter):
        path = Path(adapter)
        adapter = import_reference(path) if path.suffix == ".pt" else Adapter.load(path)
    adapter.check_matches(config.text.hidden_size, config.text.num_hidden_layers)
    return adapter
