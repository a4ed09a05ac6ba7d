"""`Index`: a folder of pages with their vectors, to which files and items are added, and in which queries find them."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, cast

from jax.sharding import Mesh

from smart_jax.evidence import Evidence, Traced, TracingModel, explain, trace
from smart_jax.index.adding import Adding
from smart_jax.index.certificate import Certificate
from smart_jax.index.certifying import Target
from smart_jax.index.choosing import Candidates, check_candidates, check_k
from smart_jax.index.copying import copy_items
from smart_jax.index.documents import dump_metadata, find_given
from smart_jax.index.engine import Engine, Staged, Wanted, Where
from smart_jax.index.explaining import trace_stored
from smart_jax.index.first_stage import Weights
from smart_jax.index.hits import StoredItem
from smart_jax.index.index_info import IndexInfo
from smart_jax.index.index_model import IndexModel
from smart_jax.index.local import LocalEngine
from smart_jax.index.made_by import check_new, check_queries, note_provenance
from smart_jax.index.narrowing_fit import note_narrowing
from smart_jax.index.on_devices import DeviceEngine
from smart_jax.index.opening import open_engine
from smart_jax.index.page_encoder import PageEncoder
from smart_jax.index.pages import PdfMode, Reading
from smart_jax.index.pdf import DPI
from smart_jax.index.qdrant import is_address
from smart_jax.index.records import Key, Record
from smart_jax.index.report import AddReport
from smart_jax.index.stages import MARKED, STAGES, Marked, StageName, check_stage
from smart_jax.index.vector_format import STORED
from smart_jax.index.where import parse_where
from smart_jax.notebook import facts_table
from smart_jax.option_names import known_options
from smart_jax.retrieval import Adapter, Embeddings, Retriever

COMMIT_EVERY = 128  # pages
SAMPLE = 48  # items that evidence is compared with


class Index:
    """An index of pages in a folder: ids, metadata and vectors of the model that it was made with.

    Many processes can search it while one writes; each search sees the index as of one moment. It can be killed at any
    time: what a call changes is there whole, file by file, or not at all.

    Example:
      >>> import tempfile
      >>> import smart_jax
      >>> index = smart_jax.Index(tempfile.mkdtemp(), model="tiny")
      >>> report = index.add(["Revenue by region", "A list of errors"], ids=["a", "b"], metadata={"year": 2024})
      >>> report.added
      2
      >>> hits = index.search("errors", k=1, where={"year": {"gte": 2023}})
      >>> hits[0].id, hits[0].metadata
      ('b', {'year': 2024})
      >>> index.delete(["b"])
      1
      >>> len(index)
      1
      >>> index.close()
    """

    def __init__(
        self,
        folder: str | Path,
        model: str | Path | Retriever | None = None,
        *,
        adapter: str | Path | Adapter | None = None,
        instruction: str | None = None,
        query_instruction: str | None = None,
        dtype: Literal["float16", "float32", "int8"] | None = None,
        pool: float | None = None,
        pca: int | None = None,
        force: bool = False,
        api_key: str | None = None,
    ):
        """Opens the index in a folder, or makes one there if a model is given.

        Args:
          folder: of the index, and of nothing else; or the address of a collection in Qdrant, which is made with the
            first items: "qdrant://host:6333/name", "qdrant+https://host/name", or, without a server,
            "qdrant://:memory:/name" and "qdrant:///folder/name".
          model: what `smart_jax.load` takes, or an encoder. It is loaded when it is needed. None = the model that the
            index was made with.
          adapter: as `smart_jax.load` takes it, where the model is named.
          instruction, query_instruction: of documents and of queries; None = as the index was made with, or
            the model's.
          dtype: of stored tokens, float16 (default), float32 or int8. Pooled vectors are float32.
          pool: about so many tokens of a document become one, their mean (`reductions.pool_tokens`); default 1, none.
          pca: components of stored tokens, fewer than the model's: the principal ones of the first items that are added
            (`reductions.PCA`), of later ones and of queries, too; default all.
          force: whether a model, or an instruction of documents, other than those of the index are taken all the same.
          api_key: of a Qdrant server; None = what QDRANT_API_KEY in the environment says.

        Raises:
          FileNotFoundError: there is no index, and no model to make one with.
          ValueError: the folder holds something else, or an index that was made otherwise.
        """
        if dtype not in (None, *STORED):
            raise ValueError(f"dtype is {dtype!r}: tokens are stored as {', '.join(STORED)}")
        if pool is not None and not 1 <= pool < math.inf:
            raise ValueError(f"pool is {pool}: it must be at least 1")
        if dtype == "int8" and is_address(folder):
            raise ValueError("Qdrant keeps tokens as float16 or float32: have it quantize them, see docs/qdrant.md")
        if pca is not None and (isinstance(pca, bool) or pca < 1 or is_address(folder)):
            raise ValueError(f"pca is {pca}: it must be at least 1, in a folder; Qdrant's tokens: see docs/qdrant.md")
        self._engine: Engine = open_engine(folder, create=model is not None, api_key=api_key)
        try:
            facts: dict[str, Any] = {"instruction": instruction, "dtype": dtype, "pool": pool, "pca": pca}
            known = self._engine.fact("made") or {}
            if other := [k for k, v in facts.items() if v is not None and known and known.get(k) != v]:
                said = ", ".join(f"{key} {known.get(key)!r}, not {facts[key]!r}" for key in other)
                if not force or other != ["instruction"]:
                    raise ValueError(f"'{folder}' was made with {said}: leave it out, or make another index")
            new: dict[str, Any] = {
                **facts,
                "dtype": dtype or "float16",
                "pool": pool or 1.0,
                "query_instruction": query_instruction,
            }
            self._made: dict[str, Any] = known or new
            self._model = IndexModel(model, adapter, self._engine.fact("model") or {}, force=force)
            if not known:
                self._engine.set_facts({"made": self._made, "model": self._model.names})
            self._instruction: str | None = self._made["instruction"] if instruction is None else instruction
            self._query_instruction: str | None = query_instruction or self._made["query_instruction"]
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Index:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the index."""
        self._engine.close()

    def __repr__(self) -> str:
        return f"Index('{self._engine.place}', {len(self)} items)"

    def _repr_html_(self) -> str:
        known = self._engine.fact("model") or {}
        facts = {"place": self._engine.place, "items": len(self), "model": known.get("name"), **self._made}
        return facts_table("Index", facts)

    @property
    def place(self) -> str:
        """Folder of the index, or its address."""
        return self._engine.place

    @property
    def folder(self) -> Path:
        """Folder of the index; one that is in Qdrant has none, and raises ValueError."""
        if is_address(self.place):
            raise ValueError(f"'{self.place}' is in Qdrant, and has no folder")
        return Path(self.place)

    @property
    def model(self) -> Retriever:
        """The model, loaded and checked to be that of the index."""
        return self._model.load()

    def __len__(self) -> int:
        return len(self._engine)

    def __contains__(self, item_id: object) -> bool:
        return item_id in self._engine

    def items(self, where: Where | None = None) -> Iterator[StoredItem]:
        """Yields the items, or those that fulfil a condition, in the order in which they were added."""
        return self._engine.items(where or {})

    def info(self) -> IndexInfo:
        """Returns what is in the index, in numbers."""
        return self._engine.info()

    @known_options
    def add(
        self,
        what: Any,
        *,
        ids: Sequence[str] | None = None,
        metadata: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        pdf: PdfMode | None = None,
        dpi: float = DPI,
        password: str | None = None,
        batch_size: int | None = None,
        commit_every: int = COMMIT_EVERY,
        progress: bool | None = None,
    ) -> AddReport:
        """Adds files and items.

        Encoded pages are committed some at a time; the same call after a kill goes on where that one ended. A file's
        items appear together, when all of them are there, and take the place of what the index had of the same path.
        Files and items of the same content as before are passed over. A file or page that cannot be read is reported,
        and keeps no other from being added.

        Args:
          what: the name of a file or a folder, or a pattern such as `"papers/*.pdf"`: PDFs, images, text files and, if
            the model hears, audio. Or a list of such names, of items as `Encoder.encode` takes them, and of dicts that
            have `id` and `metadata` beside what the model reads, or `file`, `metadata` and `password`. Texts are added
            as a list, too. An item of an id that is there takes the other's place.
          ids: of the items of a list; None = they are named by their content. Items of files are named after these:
            "papers/a.pdf#3" is the third page.
          metadata: of all, or of each of a list: a mapping of names to texts, numbers, True, False and lists. What is
            passed over gets these in place of its own, or keeps its own if there are none.
          pdf: what is read of a PDF's pages: "image", "text", or "both" in one item; None = images where the model
            reads them. A text longer than the model reads at once is encoded in windows that overlap, which become one
            item.
          dpi: pixels per inch of page images.
          password: of encrypted PDFs.
          batch_size: as in `Encoder.encode`.
          commit_every: pages that are encoded before they are committed, and are in memory at a time.
          progress: whether a bar is shown; None = only if it takes longer than two seconds.

        Raises:
          FileNotFoundError: a name or a pattern has no file.
          ValueError: another process writes to the index, the model is not that of the index, or items, ids and
            metadata do not fit together.
        """
        if commit_every < 1 or dpi <= 0:
            raise ValueError(f"commit_every is {commit_every} and dpi {dpi}: both must be positive")
        self._model.check_given()
        reading = self._reading(pdf, dpi)
        given = find_given(what, ids, metadata, password, audio=reading.audio)
        with self._engine.writing() as writer:
            how: dict[str, Any] = {"dtype": self._made["dtype"], "commit_every": commit_every, "progress": progress}

            def encode(pages: Any) -> Any:
                encoded = self._page_encoder(batch_size)(pages)
                if encoded.embeddings is not None:
                    self._note_first(encoded.embeddings)
                return encoded

            return Adding(writer, encode, reading, **how).run(given)

    def _page_encoder(self, batch_size: int | None) -> PageEncoder:
        model, dtype = self.model, "float32" if self._made["dtype"] == "float32" else "float16"
        self._note_model()
        return PageEncoder(model, self._instruction, dtype, batch_size, self._made["pool"])

    def _note_first(self, new: Embeddings) -> None:
        """Writes down what is learnt of the first items; by a writer."""
        note_narrowing(self._engine, new, self._made.get("pca"))
        note_provenance(self._engine, new)

    def _note_model(self) -> None:
        """Writes down what the index is made with, once; by a writer."""
        if (known := self._engine.fact("model")) and known.get("model"):
            self._model.check(known)  # another process may have been faster
        else:
            self._engine.set_facts({"model": self._model.facts})

    def _reading(self, pdf: PdfMode | None, dpi: float) -> Reading:
        modalities = (self._engine.fact("model") or {}).get("modalities")
        modalities = self._model.facts["modalities"] if modalities is None else modalities
        images = "image" in modalities
        if pdf in ("image", "both") and not images:
            raise ValueError(f"pdf is {pdf!r}, but the model of this index reads texts only: use pdf='text'")
        if pdf not in (None, "image", "text", "both"):
            raise ValueError(f"pdf is {pdf!r}: it must be 'image', 'text' or 'both'")
        return Reading(pdf or ("image" if images else "text"), dpi, images, "audio" in modalities)

    def add_embeddings(
        self,
        embeddings: Embeddings,
        ids: Sequence[str],
        metadata: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        *,
        force: bool = False,
    ) -> None:
        """Adds items whose embeddings the model of the index has made, in one transaction.

        Args:
          embeddings: of documents.
          ids: of the items; one that is there already is replaced.
          metadata: of all, or of each.
          force: whether embeddings of another model, adapter or instruction are taken, or those of queries.

        Raises:
          ValueError: the embeddings say that they were made otherwise, there is not one id and one mapping for each
            item, an id is given twice, the widths are others, or another process writes to the index.
        """
        if len(ids) != len(embeddings) or len(set(ids)) < len(ids):
            raise ValueError(f"there are {len(ids)} ids for {len(embeddings)} items: give each its own")
        if metadata is None or isinstance(metadata, Mapping):
            facts = [dump_metadata(metadata)] * len(ids)
        elif len(metadata) == len(ids):
            facts = [dump_metadata(each) for each in metadata]
        else:
            raise ValueError(f"there are {len(metadata)} metadata for {len(ids)} items: give each its own, or all one")
        records = [Record(name, "", metadata=text) for name, text in zip(ids, facts, strict=True)]
        with self._engine.writing() as writer:
            if not (force or self._model.force):
                check_new(self._engine, embeddings)
            if records:
                self._note_first(embeddings)
                writer.put(embeddings, records, dtype=self._made["dtype"])

    @known_options
    def search(
        self,
        query: Any,
        k: int = 10,
        *,
        where: Where | None = None,
        pooled_weight: float = 1.0,
        late_weight: float = 1.0,
        candidates: Candidates = None,
        first_stage: StageName | None = None,
        force: bool = False,
    ) -> Any:
        """Returns the items that answer a query best, the best first.

        Args:
          query: a text, an image or another item as `Encoder.encode_query` takes it; or a list of these, or their
            `Embeddings`, for which a list of hits each is returned.
          k: number of hits at most.
          where: a condition on metadata and on `id`, `file`, `path` and `page`, such as `{"year": {"gte": 2023}}`: by
            key a value, a list of values, or a mapping of eq, ne, in, gt, gte, lt, lte, contains and exists. All must
            hold; `and`, `or` (lists of conditions) and `not` combine them.
          pooled_weight, late_weight: as in `smart_jax.score`.
          candidates: number of items that a first stage chooses, of which the best k are found exactly. None = all
            items are scored. "auto" = all are while that takes about 0.1 s of a core (10,000 pages of 100 tokens x
            128), then as `certify` has found; a warning says where its verdict is missing or does not fit.
          first_stage: what chooses the candidates: "pooled" (the default) vectors, or beside them the "centroids" or
            the "binary" signs of the tokens, which `certify` or `keep_stages` has made. A multi-vector model, which has
            no pooled vectors, has these two alone.
          force: whether embeddings are searched with that another model or adapter has made, or of documents.

        Returns:
          A list of `Hit`, or a list of such lists.

        Raises:
          ValueError, TypeError: k, the query or the condition cannot be used, or the model is not that of the index.
        """
        check_k(k)
        check_candidates(candidates, first_stage)
        if pooled_weight == 0 and late_weight == 0:
            raise ValueError("pooled_weight and late_weight are both 0: nothing is left to score")
        parse_where(where or {})  # what is wrong with it shows before anything is encoded
        weights = Weights(pooled_weight, late_weight)
        several = isinstance(query, list | tuple | Embeddings)
        queries = query if isinstance(query, Embeddings) else self.encode_query(query if several else [query])
        if not (force or self._model.force):
            check_queries(self._engine, queries, late=late_weight != 0)
        if late_weight == 0 and not queries.pooled.shape[1]:
            raise ValueError("the model has no pooled vectors: late_weight must not be 0")
        asked = [None] * len(queries) if isinstance(query, Embeddings) else list(query) if several else [query]
        wanted = Wanted(int(k), where or {}, weights, candidates, first_stage)
        hits = self._engine.search(queries, wanted, [partial(self._explain, each, weights) for each in asked])
        return hits if several else hits[0]

    def encode_query(self, items: Sequence[Any]) -> Embeddings:
        """Returns the embeddings of queries, with the index's instruction; `search` takes them in the queries' place.

        Args:
          items: at least one, as `Encoder.encode_query` takes them.

        Raises:
          ValueError, TypeError, OSError: an item cannot be read, or the model is not that of the index.
        """
        return self.model.encode_query(list(items), instruction=self._query_instruction, progress=False)

    def trace(self, item_id: str, *, password: str | None = None) -> Traced:
        """Returns an item with what its tokens stand for, and its pictures if its file is there, unchanged.

        It is what `smart_jax.explain` takes in an item's place.

        Args:
          item_id: of the item.
          password: of an encrypted PDF.

        Raises:
          KeyError: there is no such item.
          ValueError: it was added as embeddings.
        """
        stored, _ = self._engine.traced(self._engine.key(item_id), 0)
        return trace_stored(stored, password=password)

    def _explain(self, query: Any, weights: Weights, key: Key, *, password: str | None = None) -> Evidence:
        """Returns the evidence of an item for a query."""
        if query is None:
            raise ValueError(
                "the query was handed over as embeddings: search with the item itself to have it explained"
            )
        stored, others = self._engine.traced(key, SAMPLE)
        how: dict[str, Any] = {"pooled_weight": weights.pooled, "late_weight": weights.late, "others": others}
        asked = trace(cast(TracingModel, self.model), query, instruction=self._query_instruction, query=True)
        asked = dataclasses.replace(asked, embeddings=self._engine.as_stored(asked.embeddings))
        return explain(asked, trace_stored(stored, password=password), **how)

    def certify(
        self,
        queries: Any = None,
        k: int = 10,
        recall: float = 0.95,
        *,
        pooled_weight: float = 1.0,
        late_weight: float = 1.0,
        first_stages: Sequence[StageName] = STAGES,
    ) -> Certificate:
        """Finds the cheapest first stage that keeps enough of the exact result on the user's own queries.

        Each stage's recall is that of the exact best k among its candidates, for all numbers of candidates at once,
        with a 95 % bootstrap interval over the queries. A stage holds with the fewest candidates at which the
        interval's lower end is at least `recall`, up to a quarter of the items. The fastest of those that hold is
        stored as the verdict of `search(candidates="auto")`, if it is faster than scoring all items. What the stages
        need is made beside the vectors, and that of the chosen one is kept.

        Args:
          queries: as users ask them, a list as `search` takes it, or `Embeddings`; at least 20, better hundreds. None =
            one or two words from each of up to 200 texts of the index, whose verdict is provisional: such spans follow
            the documents more than what users ask, and let through stages that fail on real queries.
          k: hits that are to be found, at most the number of items.
          recall: share of the exact best k that the candidates are to hold.
          pooled_weight, late_weight: as in `search`.
          first_stages: that are measured.

        Raises:
          ValueError: the index is empty, there are no queries, a number is out of range, another process writes, or the
            index is not one in a folder.

        Example:
          >>> import tempfile
          >>> import smart_jax
          >>> index = smart_jax.Index(tempfile.mkdtemp(), model="tiny")
          >>> report = index.add(["Revenue by region", "A list of errors"])
          >>> verdict = index.certify(["errors", "revenue"], first_stages=["pooled"])
          >>> verdict.stage, verdict.certified  # so few items are scored at once
          ('exact', False)
          >>> index.close()
        """
        check_k(k)
        if not 0 < recall < 1 or late_weight == 0:
            raise ValueError(f"recall is {recall}, late_weight {late_weight}: between 0 and 1, and another than 0")
        names, engine = [check_stage(name) for name in first_stages], self._staged()
        asked = [queries] if isinstance(queries, str | Mapping) else engine.spans() if queries is None else queries
        if len(asked) == 0:
            raise ValueError("there are no queries: give what users ask, or None for words of the index's texts")
        encoded = asked if isinstance(asked, Embeddings) else self.encode_query(asked)
        if not self._model.force:
            check_queries(self._engine, encoded, late=True)
        target = Target(int(k), recall, Weights(pooled_weight, late_weight))
        return engine.certify(encoded, target, names, "spans" if queries is None else "given")

    def keep_stages(self, names: Sequence[Marked]) -> None:
        """Keeps what these first stages need, beside the vectors, and removes what others need.

        It is made for all items, and from then on for those that are added. Once the index has four times the tokens,
        other centroids are learned when something is added.

        Args:
          names: "centroids" (2 bytes for each token; 2,048 to 8,192 centroids, which k-means finds) and "binary" (a bit
            for each component of each token), both, or neither.

        Raises:
          ValueError: there is no such stage, the index is empty, or another process writes to it.
        """
        for name in names:
            if name not in MARKED:
                raise ValueError(f"first stage {name!r}: those that are kept are {', '.join(MARKED)}")
        self._staged().keep_stages(names)

    def _staged(self) -> Staged:
        if not isinstance(self._engine, Staged):
            raise ValueError(f"'{self._engine.place}' has first stages of its own: they are chosen in local indexes")
        return self._engine

    def delete(self, ids: Sequence[str] | None = None, *, where: Where | None = None) -> int:
        """Removes items, in one transaction, and returns how many there were.

        Args:
          ids: of items; one that is not there is passed over.
          where: a condition as in `search`; with ids, both must hold.

        Raises:
          ValueError: neither is given, or another process writes to the index.
        """
        with self._engine.writing() as writer:
            keys = writer.keys(_listed(ids, where), where)
            if keys:
                writer.delete(keys)
        return len(keys)

    def update(
        self,
        ids: Sequence[str] | None = None,
        *,
        where: Where | None = None,
        metadata: Mapping[str, Any],
        replace: bool = False,
    ) -> int:
        """Changes metadata of items, in one transaction, and returns how many items there were.

        Content is changed by `add`: an item of the same id, or a file that has changed.

        Args:
          ids, where: as in `delete`.
          metadata: new values by key; None removes a key.
          replace: whether all other keys are removed.

        Raises:
          ValueError: neither ids nor where is given, or another process writes to the index.
          TypeError: metadata cannot be stored.
        """
        dump_metadata(metadata)
        with self._engine.writing() as writer:
            keys = writer.keys(_listed(ids, where), where)
            changes = []
            formers = [{}] * len(keys) if replace else writer.metadata(keys)
            for key, former in zip(keys, formers, strict=True):
                merged = {**former, **metadata}
                changes.append((dump_metadata({k: value for k, value in merged.items() if value is not None}), key))
            if changes:
                writer.describe(changes)
        return len(keys)

    def copy_to(self, place: str | Path, *, api_key: str | None = None, progress: bool | None = None) -> AddReport:
        """Makes another place hold what this index holds: a folder, or a collection in Qdrant.

        Items, files, metadata and what evidence needs are copied some at a time, as of when each is read. The same call
        goes on where a killed one ended, and brings an earlier copy up to date. Vectors are those of this index, but
        for tokens that must become fewer or narrower (docs/qdrant.md). At the end the counts of both are compared.

        Args:
          place: where there is no index, or an earlier copy of this one.
          api_key: of a Qdrant server; None = what QDRANT_API_KEY in the environment says.
          progress: whether a bar is shown; None = only if it takes longer than two seconds.

        Raises:
          ValueError: the place holds another index, or the counts differ, since one was changed meanwhile.

        Example:
          >>> import tempfile
          >>> with Index(tempfile.mkdtemp(), model="tiny") as index, tempfile.TemporaryDirectory() as other:
          ...     index.add(["one page", "another page"]).added
          ...     index.copy_to(other).added
          2
          2
        """
        with contextlib.closing(open_engine(place, create=True, api_key=api_key)) as target:
            return copy_items(self._engine, target, progress=progress)

    def to_device(self, mesh: Mesh | None = None) -> Index:
        """Returns the index with its items on devices, where each search scores all of them (`smart_jax.to_device`).

        It is the same index: what is added, removed or changed through either shows in both. New items are put on the
        devices by the next search; those that were removed leave them when the index is compacted. Conditions hold as
        they do without devices; there are no candidates.

        Args:
          mesh: the devices, from `make_mesh`; None = the default device. With several processes all open the same
            folder, or equal copies, and make the same calls.

        Raises:
          ValueError: the devices have too little memory, or the index is in Qdrant.
          RuntimeError: the processes see different indexes.

        Example:
          >>> import tempfile
          >>> import smart_jax
          >>> with Index(tempfile.mkdtemp(), model="tiny") as index:
          ...     index.add(["Revenue by region", "A list of errors"], ids=["a", "b"]).added
          ...     index.to_device(smart_jax.make_mesh()).search("errors", k=1)[0].id
          2
          'b'
        """
        if not isinstance(self._engine, LocalEngine):
            raise ValueError(f"'{self.place}' is not in a folder: copy_to(folder), and put that index on devices")
        other = copy.copy(self)
        other._engine = DeviceEngine(self._engine.store, mesh)
        return other

    def compact(self) -> None:
        """Rewrites what holds removed items without them, and with it what an `add` that was cut off has left."""
        with self._engine.writing() as writer:
            writer.compact()


def _listed(ids: Sequence[str] | None, where: Where | None) -> Sequence[str] | None:
    """Returns the ids, if they and the condition name items."""
    if ids is None and where is None:
        raise ValueError("name items by ids or by where: where={} means all of them")
    if isinstance(ids, str):
        raise TypeError(f"ids is the text {ids!r}: give a list")
    return ids
