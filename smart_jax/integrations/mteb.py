"""A model for mteb's retrieval tasks: `mteb.evaluate(smart_jax.mteb_model("Qwen/Qwen3-VL-Embedding-2B"), tasks)`.

mteb (extra `mteb`) brings torch, and is imported by the functions of this module when they are called, nowhere else.
The corpus is encoded item by item from its data set, kept packed, and searched exactly: no padded copy of it exists.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from smart_jax.checkpoint_encoder import load
from smart_jax.encoder import Encoder
from smart_jax.encoding import Pipeline
from smart_jax.files import snapshot_of
from smart_jax.inputs import ItemLike
from smart_jax.models import checksum
from smart_jax.retrieval import Adapter, Embeddings, score, search

INSTALL = "pip install 'smart_jax[mteb]'"
EMPTY = "NULL"  # the text of an item without content, as in the reference of arXiv:2605.24938
MODALITIES = ("text", "image")  # of the tasks that are taken here
STORAGE_DTYPES = ("float32", "float16")
_ENCODE_KWARGS = ("batch_size", "show_progress_bar")

# Classes of mteb and datasets, which are imported only where they are used.
Records: TypeAlias = Any  # a datasets.Dataset, or what mteb makes of one
TaskMetadata: TypeAlias = Any


def mteb_model(
    model: str | Path | Encoder,
    *,
    pooled_weight: float = 1.0,
    late_weight: float = 1.0,
    instruction: str | None = None,
    document_instruction: str | None = None,
    task_prompts: bool | None = None,
    batch_size: int | None = None,
    storage_dtype: str = "float32",
    device_bytes: int | None = None,
    adapter: str | Path | Adapter | None = None,
    dtype: Any | None = None,
    mesh: Mesh | None = None,
    revision: str | None = None,
    head: str | None = None,
    pooling: str | None = None,
    prompt: str | Sequence[Sequence[str]] | None = None,
    settings: Mapping[str, Any] | None = None,
    task: str | None = None,
    pipeline: Pipeline | None = None,
) -> MtebModel:
    """Makes a model for mteb's retrieval and reranking tasks of texts and images (ViDoRe, BEIR, LIMIT, ...).

    Queries get the first of these instructions that exists, and so do documents with `document_instruction`:

      1. `instruction`, in every task;
      2. with task_prompts the task's, `metadata.prompt`: its "query" or "document" entry; a plain text is for queries;
      3. the model's default.

    mteb's generic prompt for tasks that have none is never used. What a task asks for query by query
    (InstructionRetrieval) is part of the query's text, as mteb writes it.

    mteb ranks documents of equal score by their ids, not by `eval.ranking`'s hash. Its cache of results knows a run by
    the checkpoint's files, the adapter's values and every option here that changes scores.

    Args:
      model: what `smart_jax.load` takes, or an `Encoder`.
      pooled_weight, late_weight: weights of the pooled and the late score; 1 and 0 is single-vector retrieval, 0 and 1
        late interaction alone.
      instruction, document_instruction: see above.
      task_prompts: whether the tasks' prompts are used; None = where the model's prompt has a place for an instruction:
        not for BERT encoders, where it would be a prefix of the text, nor for jina-embeddings-v4.
      batch_size: number of items in a batch; None = mteb's, `encode_kwargs={"batch_size": 32}`.
      storage_dtype: dtype of the embeddings in memory, "float32" or "float16".
      device_bytes: as in `smart_jax.search`.
      adapter, dtype, mesh, revision, head, pooling, prompt, settings, task, pipeline: as of `smart_jax.load`; the mesh
        also shares the search.

    Raises:
      ModuleNotFoundError: mteb is not installed; the message says how to.
      ValueError: the storage_dtype is another, both weights are 0, there are options beside an `Encoder`, or as
        `smart_jax.load`.

    Example:
      >>> import smart_jax
      >>> model = smart_jax.mteb_model("tiny", late_weight=0.5)
      >>> model.modalities
      ['text', 'image']
    """
    _import_mteb()
    if storage_dtype not in STORAGE_DTYPES:
        raise ValueError(f"storage_dtype is {storage_dtype!r}: use one of {', '.join(STORAGE_DTYPES)}")
    if not pooled_weight and not late_weight:
        raise ValueError("pooled_weight and late_weight are both 0: nothing is left to score")
    given = {"adapter": adapter, "dtype": dtype, "mesh": mesh, "revision": revision, "head": head, "pooling": pooling}
    given |= {"prompt": prompt, "settings": settings, "task": task, "pipeline": pipeline}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if isinstance(model, Encoder) and options:
        raise ValueError(f"an Encoder is loaded already: pass {', '.join(options)} to smart_jax.load")
    encoder = model if isinstance(model, Encoder) else load(model, **options)
    return MtebModel(
        encoder,
        name=_name(model),
        weights={"pooled_weight": pooled_weight, "late_weight": late_weight},
        instructions={"query": instruction, "document": document_instruction},
        task_prompts=task_prompts,
        batch_size=batch_size,
        storage_dtype=storage_dtype,
        device_bytes=device_bytes,
    )


class MtebModel:
    """mteb's `SearchProtocol`; made by `mteb_model`, which documents the arguments.

    Attributes:
      encoder: the model, with its adapter if it has one.
      mteb_model_meta: name and facts under which mteb reports the results.
    """

    def __init__(
        self,
        encoder: Encoder,
        *,
        name: str,
        weights: Mapping[str, float],
        instructions: Mapping[str, str | None],
        task_prompts: bool | None,
        batch_size: int | None,
        storage_dtype: str,
        device_bytes: int | None,
    ):
        self.encoder = encoder
        self._weights: dict[str, Any] = dict(weights)
        self._instructions = dict(instructions)
        self._prompted = encoder.preprocessor.prompted if task_prompts is None else ("query", "document") * task_prompts
        self._batch_size, self._dtype = batch_size, np.dtype(storage_dtype)
        self._device_bytes = device_bytes
        self._documents: Embeddings | None = None
        self._ids: list[str] = []
        self.modalities = [name for name in encoder.preprocessor.modalities if name in MODALITIES]
        self.mteb_model_meta = _meta(self, name)

    def index(
        self,
        corpus: Records,
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        encode_kwargs: Mapping[str, Any],
        num_proc: int | None = None,
        **_: object,
    ) -> None:
        """Encodes a corpus, which takes the place of the one before.

        Args:
          corpus: a `datasets.Dataset` with the columns id and text (title), image, or both.
          task_metadata: prompt and modalities of the task.
          hf_split, hf_subset: names of the task's split and subset, for messages.
          encode_kwargs: batch_size and show_progress_bar.
          num_proc: number of processes that prepare the data set.

        Raises:
          ValueError: the model does not read documents of this kind, ids repeat, or encode_kwargs are unknown.
        """
        self._documents = None  # before the next is made
        ids = [str(i) for i in corpus["id"]]
        if twice := [i for i, n in Counter(ids).items() if n > 1]:
            raise ValueError(f"task {task_metadata.name}, {hf_subset}, {hf_split}: document {twice[0]} is there twice")
        self._ids = ids
        self._documents = self._encode(corpus, "document", task_metadata, encode_kwargs, num_proc)

    def search(
        self,
        queries: Records,
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        top_k: int,
        encode_kwargs: Mapping[str, Any],
        top_ranked: Mapping[str, Sequence[str]] | None = None,
        num_proc: int | None = None,
        **_: object,
    ) -> dict[str, dict[str, float]]:
        """Returns the best documents of every query and their scores.

        Args:
          queries: a `datasets.Dataset` with the columns id and text, image, or both.
          top_k: number of documents for each query; all if there are fewer.
          top_ranked: ids of the documents that each query ranks (reranking tasks); None = all.
          task_metadata, hf_split, hf_subset, encode_kwargs, num_proc: as in `index`.

        Returns:
          {query id: {document id: score}}.

        Raises:
          ValueError: no corpus is indexed, top_ranked names an unknown document, or as `index`.
        """
        if self._documents is None:
            raise ValueError("no corpus is indexed: call index first")
        ids = [str(i) for i in queries["id"]]
        q = self._encode(queries, "query", task_metadata, encode_kwargs, num_proc)
        if top_ranked is None:
            scores, best = search(
                q, self._documents, top_k, **self._weights, mesh=self.encoder.mesh, device_bytes=self._device_bytes
            )
            return {
                query: {self._ids[i]: value for i, value in zip(places, values, strict=True)}
                for query, places, values in zip(ids, best.tolist(), scores.tolist(), strict=True)
            }
        numbers = {document: i for i, document in enumerate(self._ids)}
        return {query: self._reranked(q[i], top_ranked.get(query, ()), numbers, top_k) for i, query in enumerate(ids)}

    def _reranked(
        self, q: Embeddings, candidates: Sequence[str], places: Mapping[str, int], top_k: int
    ) -> dict[str, float]:
        """Returns the best of one query's candidates and their scores."""
        assert self._documents is not None
        if unknown := [document for document in candidates if document not in places]:
            raise ValueError(f"the document {unknown[0]} to rerank is not in the corpus")
        if not len(candidates):
            return {}
        values = score(q, self._documents[[places[document] for document in candidates]], **self._weights)[0]
        best = np.argsort(-values, kind="stable")[:top_k]
        return {candidates[i]: float(values[i]) for i in best.tolist()}

    def _encode(
        self,
        records: Records,
        kind: str,
        task_metadata: TaskMetadata,
        encode_kwargs: Mapping[str, Any],
        num_proc: int | None,
    ) -> Embeddings:
        if unknown := [key for key in encode_kwargs if key not in _ENCODE_KWARGS]:
            raise ValueError(
                f"unknown encode_kwargs {', '.join(unknown)}: use some of {', '.join(_ENCODE_KWARGS)}; the precision "
                "of the embeddings is mteb_model's storage_dtype"
            )
        encode = self.encoder.encode_query if kind == "query" else self.encoder.encode_document
        return encode(
            _Items(_prepared(records, kind, task_metadata, num_proc, self.modalities)),
            instruction=self._instruction(task_metadata, kind),
            batch_size=self._batch_size or encode_kwargs.get("batch_size"),
            dtype=self._dtype,
            progress=None if encode_kwargs.get("show_progress_bar", True) else False,
        )

    def _instruction(self, task_metadata: TaskMetadata, kind: str) -> str | None:
        given = self._instructions[kind]
        if given is not None or kind not in self._prompted:
            return given
        prompt = task_metadata.prompt
        if isinstance(prompt, Mapping):
            return prompt.get(kind) or None
        return prompt or None if kind == "query" else None


class _Items(Sequence[ItemLike]):
    """Records of a data set as items, read one by one."""

    def __init__(self, records: Records):
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: Any) -> Any:
        record = self._records[index]
        text, image = record.get("text"), record.get("image")
        item: dict[str, Any] = {"text": text} if text and text.strip() else {}
        if image is not None:
            item["images" if isinstance(image, list) else "image"] = image
        return item or {"text": EMPTY}


def _prepared(
    records: Records, kind: str, task_metadata: TaskMetadata, num_proc: int | None, modalities: Sequence[str]
) -> Records:
    """Returns the data set with the texts that mteb gives to every model, with titles, conversations, instructions."""
    _import_mteb()
    from mteb._create_dataloaders import create_dataloader
    from mteb.types import PromptType

    prompt_type = PromptType.query if kind == "query" else PromptType.document
    if unread := [name for name in task_metadata.get_modalities(prompt_type) if name not in modalities]:
        plural = "queries" if kind == "query" else "documents"
        raise ValueError(
            f"task {task_metadata.name} has {plural} with {' and '.join(unread)}, and this model reads "
            f"{' and '.join(modalities)}: leave the task out"
        )
    return create_dataloader(records, task_metadata=task_metadata, prompt_type=prompt_type, num_proc=num_proc).dataset


def _meta(model: MtebModel, name: str) -> Any:
    """Returns mteb's `ModelMeta` of the model."""
    from mteb.models.model_meta import ModelMeta, ScoringFunction

    encoder = model.encoder
    about = {
        **model._weights,
        "adapter": None if encoder.adapter is None else checksum(nnx.state(encoder.adapter)),
        "dtype": str(jax.tree.leaves(encoder.params)[0].dtype),
        "instruction": model._instructions["query"],
        "document_instruction": model._instructions["document"],
        "task_prompts": ",".join(model._prompted) or None,
        "fingerprint": encoder.fingerprint(),
        "storage_dtype": str(model._dtype),
    }
    return ModelMeta.create_empty(
        {
            "name": name,
            "revision": snapshot_of(encoder.folder)[1] or encoder.fingerprint(),
            "modalities": model.modalities,
            "framework": ["JAX"],
            "model_type": ["late-interaction"] if model._weights["late_weight"] else ["dense"],
            "similarity_fn_name": ScoringFunction.CUSTOM,
            "use_instructions": bool(encoder.preprocessor.prompted),
            "experiment_kwargs": {key: value for key, value in about.items() if value is not None},
        }
    )


def _name(model: str | Path | Encoder) -> str:
    """Returns a name with one slash, as mteb wants it: a hub id as it is."""
    if isinstance(model, Encoder):
        return snapshot_of(model.folder)[0] or f"smart_jax/{model.folder.name if model.folder else 'encoder'}"
    if Path(model).is_dir() or "/" not in str(model):
        return f"smart_jax/{Path(model).name}"
    return str(model)


def _import_mteb() -> None:
    try:
        import mteb  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"mteb_model needs mteb, and there is no module {error.name}: {INSTALL}", name=error.name
        ) from error
