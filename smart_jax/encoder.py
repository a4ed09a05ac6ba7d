"""`Encoder`: items in, `Embeddings` or `States` out, by one compiled function per padded shape."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float
from numpy.typing import DTypeLike

from smart_jax.dtypes import float_dtype
from smart_jax.encoder_folder import write_encoder
from smart_jax.encoding import AHEAD, Encoding, Pipeline, ShapeCompiler, Side, pack_embeddings, pack_states
from smart_jax.files import Checkpoint, hub_id
from smart_jax.forward import Computation, Split, Vectors, abstract_batch, compute, put_batch
from smart_jax.inputs import ItemLike, Items, Preprocessor, items_fingerprint, parse_items
from smart_jax.models import Batch, ModelConfig, ModelGraph, Params, checksum, sample_checksum
from smart_jax.notebook import abbreviated, facts_table
from smart_jax.option_names import known_options
from smart_jax.publishing import push_folder, write_card
from smart_jax.retrieval import LAST, Adapter, Embeddings, EmbeddingsFolder, Provenance, States, open_adapter, score
from smart_jax.runtime import is_main, refuse_after_fork, to_host

BATCH_SIZE = 8  # items per device


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
      pipeline: threads that prepare items, and how much of them is in memory.

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
    pipeline: Pipeline = AHEAD

    def __repr__(self) -> str:
        leaves = jax.tree.leaves(self.params)
        adapter = "no adapter" if self.adapter is None else f"adapter to {self.adapter.config.token_dim} components"
        devices = 1 if self.mesh is None else self.mesh.size
        return (
            f"Encoder({self.config.model_type}, {abbreviated(sum(x.size for x in leaves))} parameters in "
            f"{leaves[0].dtype}, {self.depth} blocks of width {self.width}, {adapter}, {devices} "
            f"device{'s' if devices > 1 else ''})"
        )

    def _repr_html_(self) -> str:
        leaves = jax.tree.leaves(self.params)
        facts = {
            "model": self.config.model_type
            if self.folder is None
            else f"{self.folder.name} ({self.config.model_type})",
            "parameters": f"{abbreviated(sum(x.size for x in leaves))}, {leaves[0].dtype}",
            "backbone": f"{self.depth} blocks of width {self.width}",
            "pooled vector": f"{self.pooled_width} wide" if self.pooled_width else "none",
            "token vectors": f"{self.width if self.token_dim is None else self.token_dim} wide, without an adapter",
            "adapter": self.adapter,
            "reads": ", ".join(self.preprocessor.modalities),
            "tokens of an item, at most": self.max_tokens,
            "devices": 1 if self.mesh is None else self.mesh.size,
        }
        return facts_table("Encoder", facts)

    def with_adapter(self, adapter: str | Path | Adapter | None) -> Encoder:
        """Returns the same backbone (shared, not copied) with another adapter, as `load` takes it, or without one."""
        other = dataclasses.replace(self, adapter=matching_adapter(adapter, self.config))
        if "weights_digest" in self.__dict__:  # of the same weights
            other.__dict__["weights_digest"] = self.weights_digest
        return other

    def with_params(self, params: Params, *, graphdef: ModelGraph | None = None) -> Encoder:
        """Returns the same model with other parameters, and with their structure if that has changed, too."""
        return dataclasses.replace(self, params=params, graphdef=self.graphdef if graphdef is None else graphdef)

    def save(self, folder: str | Path) -> None:
        """Writes a folder in Hugging Face layout that `smart_jax.load` and transformers open.

        It has the weights, as they are now, the other files of the model's checkpoint, the settings that it was loaded
        with (smart_jax.json) and, if there is one, the adapter, which `load(folder, adapter=folder)` opens. Where there
        are several processes, all must call it, and the first one writes.

        Args:
          folder: made if it does not exist.

        Raises:
          ValueError: the encoder was put together by hand: it has no files of a tokenizer.
        """
        write_encoder(Path(folder), self.source, self.preprocessor, self.params)
        if self.adapter is not None and is_main():
            self.adapter.save(folder)

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
        """Uploads what `save` writes, whole, with a model card; `smart_jax.load(repo_id)` opens it.

        `encoder.adapter.push_to_hub` uploads the adapter alone.

        Args:
          repo_id: "owner/name" of the repository on the hub, which is made if it is not there.
          base_model: hub id of the model that it was made from; None = where it was loaded from, if that was the hub.
          results, license, datasets: what else the card says, as in `smart_jax.publishing.write_card`.
          private, revision, token, commit_message: as in `smart_jax.publishing.push_folder`.

        Returns:
          Address of the commit.

        Raises:
          PermissionError: the hub does not let this token write there.
          ConnectionError: the hub is offline (HF_HUB_OFFLINE).
          FileNotFoundError, ValueError: as `save`, the results cannot be read, repo_id is no name of a repository, or
            there are several processes.
        """
        if self.mesh is not None and self.mesh.is_multi_process:
            raise ValueError("one process uploads: save the model in all, and call publishing.push_folder in one")
        where: dict[str, Any] = {"private": private, "revision": revision, "token": token}
        facts: dict[str, Any] = {"results": results, "license": license, "datasets": datasets}
        facts["base_model"] = base_model or hub_id(self.source.folder)
        with tempfile.TemporaryDirectory() as folder:
            self.save(folder)
            write_card(folder, repo_id=repo_id, **facts)
            return push_folder(folder, repo_id, commit_message=commit_message, **where)

    @known_options
    def encode_query(
        self,
        items: ItemLike | Sequence[Any],
        *,
        instruction: str | None = None,
        batch_size: int | None = None,
        dtype: DTypeLike = np.float32,
        progress: bool | None = None,
        out: str | Path | None = None,
    ) -> Embeddings:
        """Embeds queries; `instruction` defaults to the checkpoint's query instruction. See `encode`."""
        how: dict[str, Any] = {"batch_size": batch_size, "dtype": dtype, "progress": progress, "out": out}
        return self.encode(items, instruction=instruction, query=True, **how)

    @known_options
    def encode_document(
        self,
        items: ItemLike | Sequence[Any],
        *,
        instruction: str | None = None,
        batch_size: int | None = None,
        dtype: DTypeLike = np.float32,
        progress: bool | None = None,
        out: str | Path | None = None,
    ) -> Embeddings:
        """Embeds documents; `instruction` defaults to the checkpoint's default instruction. See `encode`."""
        how: dict[str, Any] = {"batch_size": batch_size, "dtype": dtype, "progress": progress, "out": out}
        return self.encode(items, instruction=instruction, query=False, **how)

    @known_options
    def encode(
        self,
        items: ItemLike | Sequence[Any],
        *,
        instruction: str | None = None,
        query: bool | None = None,
        batch_size: int | None = None,
        dtype: DTypeLike = np.float32,
        progress: bool | None = None,
        out: str | Path | None = None,
    ) -> Embeddings:
        """Embeds items.

        Items are measured from their headers, sorted, and decoded in threads ahead of the device, see `Pipeline`. The
        result is the same to the bit for the same call; it does not depend on the number of threads, nor on batch size,
        order or number of devices beyond rounding (2e-5 in float32).

        Args:
          items: a list of texts, paths, PIL images, uint8 arrays [height, width, 3], or dicts of text, image, images,
            video, videos, fps, max_frames and instruction, see `smart_jax.inputs.parse_item`; the order is kept. A
            single one is taken as a list of one: what is returned has one item then.
          instruction: used for items that carry none of their own.
          query: whether they are queries: their default instruction, prompt and kept tokens may differ. None = they are
            encoded as documents, and scored on either side.
          batch_size: number of items in a batch over all devices; None = 8 for each device.
          dtype: dtype of the stored vectors, float32 or float16; they are computed in float32 either way.
          progress: whether a bar is shown; None = only if encoding takes longer than two seconds.
          out: a folder that the embeddings are written to as they are made. The same call after a kill goes on where
            that one ended, and one that is finished only opens them. `Embeddings.load` opens the folder, too.

        Returns:
          `Embeddings` with `pooled` [N, H] and packed `tokens` [T, D], L2-normalised; with `out`, left in its files.

        Raises:
          ValueError, TypeError, OSError: an item cannot be read, or `out` holds embeddings of other items or another
            model, instruction or dtype; the message names the item and the remedy.
        """
        parsed, side = parse_items(items), Side(instruction, bool(query))
        encoding = self._encoding(parsed, self._embedding(dtype), side, batch_size, progress)
        made = self.provenance(instruction, _side(query))
        if out is None:
            return pack_embeddings(encoding.in_order(), made)
        if self.mesh is not None and self.mesh.is_multi_process:
            raise ValueError("out is written by one process: encode without it, and `save` the embeddings in one")
        about = self._about(parsed, side)
        with EmbeddingsFolder(out, items=len(parsed), about=about, dtype=dtype, provenance=made) as folder:
            return encoding.write_to(folder)

    def similarity(
        self,
        q: Embeddings | ItemLike | Sequence[Any],
        d: Embeddings | ItemLike | Sequence[Any],
        *,
        pooled_weight: float = 1.0,
        late_weight: float = 1.0,
    ) -> Float[np.ndarray, "Nq Nd"]:
        """Returns the hybrid score of every query with every document, as `smart_jax.score` does.

        Args:
          q, d: `Embeddings`; or items, which are encoded as queries and as documents.
          pooled_weight, late_weight: a weight of 0 leaves the part out.

        Raises:
          ValueError, TypeError, OSError: as `encode` and `smart_jax.score`.

        Example:
          >>> import smart_jax
          >>> smart_jax.load("tiny").similarity("errors", ["Revenue by region", "A list of errors"]).argmax()
          np.int64(1)
        """
        queries = q if isinstance(q, Embeddings) else self.encode_query(q)
        documents = d if isinstance(d, Embeddings) else self.encode_document(d)
        return score(queries, documents, pooled_weight=pooled_weight, late_weight=late_weight)

    def states(
        self,
        items: ItemLike | Sequence[Any],
        *,
        instruction: str | None = None,
        query: bool | None = None,
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
        options: dict[str, Any] = {"instruction": instruction, "query": query, "layers": layers}
        options |= {"batch_size": batch_size, "dtype": dtype, "progress": progress}
        (states,) = self.states_by_part(items, [slice(None)], **options)
        return states()

    def states_by_part(
        self,
        items: ItemLike | Sequence[Any],
        parts: Sequence[slice],
        *,
        instruction: str | None = None,
        query: bool | None = None,
        layers: Sequence[int] | None = None,
        batch_size: int | None = None,
        dtype: DTypeLike = np.float16,
        progress: bool | None = None,
    ) -> Iterator[Callable[[], States]]:
        """Yields what makes the states of one part of the items after another, without a pause of the device.

        The states of a part are put together when they are called for, which another thread can do, once.

        Args:
          items, instruction, query, layers, batch_size, dtype, progress: as in `states`.
          parts: slices of the items, one after another, none of them empty.

        Raises:
          ValueError, TypeError, OSError: as `states`.
        """
        chosen = self._layers((LAST,) if layers is None else layers)
        how = Computation(chosen, own_head=layers is None, dtype=float_dtype(dtype))
        parsed = parse_items(items)
        encoding = self._encoding(parsed, how, Side(instruction, bool(query)), batch_size, progress)
        facts: dict[str, Any] = {"visual_ids": self.preprocessor.visual_ids, "layers": chosen, "depth": self.depth}
        facts["provenance"] = dataclasses.replace(self.provenance(instruction, _side(query)), adapter=None)
        for encoded in encoding.by_part([range(len(parsed))[part] for part in parts]):
            yield functools.partial(pack_states, encoded, **facts)

    def fingerprint(self) -> str:
        """Returns 32 hexadecimal digits of the weights, their dtype, the config, and all that preprocessing depends on.

        Equal for encoders that give equal states, up to rounding on other devices. The adapter is left out.
        """
        about = repr((self.config, self.preprocessor.description()))
        return checksum(self.params) + hashlib.blake2b(about.encode(), digest_size=8).hexdigest()

    def quick_fingerprint(self) -> str:
        """Returns what `fingerprint` does, of a sample of the weights and whatever their dtype is: it takes no time."""
        about = repr((self.config, self.preprocessor.description()))
        return self.weights_digest + hashlib.blake2b(about.encode(), digest_size=8).hexdigest()

    def provenance(
        self, instruction: str | None = None, side: Literal["query", "document"] | None = None
    ) -> Provenance:
        """Returns what the model's embeddings say of themselves, see `smart_jax.retrieval.Provenance`."""
        adapter = None if self.adapter is None else self._adapter_digest
        return Provenance(self.weights_digest, adapter, side, instruction)

    @functools.cached_property
    def weights_digest(self) -> str:
        """Sixteen hexadecimal digits of a sample of the weights, the config and the pooling, whatever the dtype is."""
        about = repr((self.config, self.preprocessor.settings.pooling))
        return hashlib.blake2b((sample_checksum(self.params) + about).encode(), digest_size=8).hexdigest()

    @functools.cached_property
    def _adapter_digest(self) -> str | None:
        return None if self.adapter is None else self.adapter.digest()

    @property
    def source(self) -> Checkpoint:
        """Checkpoint that it was loaded from; raises ValueError for an encoder that was put together by hand."""
        if self.checkpoint is None:
            raise ValueError("the encoder was not loaded from a folder, whose files are needed: use smart_jax.load")
        return self.checkpoint

    @property
    def folder(self) -> Path | None:
        """Folder that it was loaded from."""
        return None if self.checkpoint is None else self.checkpoint.folder

    @property
    def width(self) -> int:
        """Width H of the backbone's states, and of pooled vectors without an adapter."""
        return self.config.state_width

    @property
    def pooled_width(self) -> int:
        """Width of the pooled vectors; 0 = the model has none, and its score is the late part alone."""
        if not getattr(self.config, "pooled", True):
            return 0
        return (None if self.adapter is None else self.adapter.config.pooled_dim) or self.width

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

    def _encoding(
        self, items: Items, how: Computation, side: Side, batch_size: int | None, progress: bool | None
    ) -> Encoding:
        return Encoding(
            self.preprocessor,
            items,
            lambda batch: self._vectors(batch, how),
            rows=self._batch_size(batch_size, len(items)),
            side=side,
            pipeline=self.pipeline,
            devices=self._devices,
            progress=progress,
            compiler=self._compiler(how),
        )

    @functools.cached_property
    def _compilers(self) -> dict[tuple[Any, ...], ShapeCompiler]:
        return {}

    def _compiler(self, how: Computation) -> ShapeCompiler:
        """Returns what compiles the computation for the shapes of batches, the same for every call."""

        def compile_for(batch: Batch) -> None:
            backbone, abstract = (self.graphdef, self.params), abstract_batch(batch, self.mesh)
            compute.lower(backbone, how.projection, abstract, how.layers, how.own_head, how.dtype).compile()

        key = how.layers, how.own_head, how.dtype, how.projection is not None
        return self._compilers.setdefault(key, ShapeCompiler(compile_for))

    def _about(self, items: Items, side: Side) -> dict[str, Any]:
        """Returns what embeddings on disk are made of."""
        adapter = None if self.adapter is None else self.adapter.fingerprint()
        about = {"model": self.fingerprint(), "adapter": adapter, "content": items_fingerprint(items)}
        return about | side._asdict()

    def embed(self, batch: Batch, *, dtype: DTypeLike = np.float32) -> tuple[jax.Array, jax.Array]:
        """Returns L2-normalised pooled vectors [B, H] and token vectors [B, L, D] of one batch, on the device."""
        vectors = self._vectors(batch, self._embedding(dtype))
        return vectors.pooled, vectors.states[:, :, 0]

    def token_states(
        self, item: ItemLike, *, instruction: str | None = None, query: bool = False
    ) -> Float[np.ndarray, "L H"]:
        """Returns the last states of one item, as they are, of all L tokens: those that are not kept, too.

        Args:
          item, instruction, query: as an item of `encode`.

        Returns:
          float32, on the host.

        Raises:
          ValueError, TypeError, OSError: the item cannot be read.

        Example:
          >>> import smart_jax
          >>> smart_jax.load("tiny").token_states("revenue by region").shape
          (15, 192)
        """
        row = self.preprocessor.tokenize(item, instruction=instruction, query=query)
        batch = self.preprocessor.collate([row], batch_size=self._devices, shards=self._devices)
        vectors = self._vectors(batch, Computation((LAST,), own_head=False, dtype=np.dtype(np.float32)))
        states, norms = to_host(vectors.states), to_host(vectors.norms)
        return np.asarray(states[0, : len(row), 0] * norms[0, : len(row)])

    def _embedding(self, dtype: DTypeLike) -> Computation:
        """Returns what makes the model's embeddings: its adapter's layers and projection, or the last states."""
        if self.adapter is None:
            return Computation((LAST,), own_head=True, dtype=float_dtype(dtype))
        layers = self.adapter.config.layers
        return Computation(layers, own_head=False, dtype=float_dtype(dtype), projection=self._projection)

    @functools.cached_property
    def _projection(self) -> Split | None:
        return None if self.adapter is None else nnx.split(self.adapter)

    def _vectors(self, batch: Batch, how: Computation) -> Vectors:
        refuse_after_fork()
        batch = jax.device_put(batch) if self.mesh is None else put_batch(batch, self.mesh)
        backbone = (self.graphdef, self.params)
        vectors: Vectors = compute(backbone, how.projection, batch, how.layers, how.own_head, how.dtype)
        return vectors


def _side(query: bool | None) -> Literal["query", "document"] | None:
    return None if query is None else "query" if query else "document"


def matching_adapter(adapter: str | Path | Adapter | None, config: ModelConfig) -> Adapter | None:
    """Returns an adapter, read if need be; raises ValueError where the backbone is not one that it works with."""
    if adapter is None:
        return None
    if not isinstance(adapter, Adapter):
        adapter = open_adapter(adapter)
    if not getattr(config, "pooled", True):
        raise ValueError(
            "an adapter works beside a pooled vector, which this model does not have: load it with a pooling rule, "
            "smart_jax.load(path, pooling='last')"
        )
    adapter.check_matches(config.state_width, config.text.num_hidden_layers)
    return adapter
