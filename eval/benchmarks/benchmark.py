"""A retrieval benchmark: queries, a corpus of pages, judgements, and optionally each query's own candidates."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.benchmarks import beir
from eval.benchmarks.lazy_items import LazyItems
from eval.benchmarks.messages import abridged
from smart_jax.inputs import parse_item

Qrels = Mapping[str, Mapping[str, int]]


@dataclasses.dataclass(frozen=True)
class Side:
    """The queries or the corpus of a benchmark, as an encoder takes them.

    Attributes:
      benchmark: name of the benchmark.
      query: whether the items are the queries.
      items, ids: items and their ids, in the same order.
      instruction: of all items; None = the model's own.

    Example:
      >>> Side("pages", query=True, items=["Which?"], ids=["q0"], instruction=None).name
      'queries'
    """

    benchmark: str
    query: bool
    items: Sequence[Any]
    ids: Sequence[str]
    instruction: str | None

    @property
    def name(self) -> str:
        """ "queries" or "corpus"."""
        return "queries" if self.query else "corpus"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Queries, corpus and judgements; checked when made.

    Items are what `Encoder.encode_query` and `encode_document` take: str, path, PIL image, array, or a dict of text /
    image / images / instruction.

    Attributes:
      name: heads the tables, and is part of every query's key in the tie-breaking hash.
      queries, query_ids: items and their distinct ids, in the same order.
      corpus, corpus_ids: items and their distinct ids; the corpus may be lazy (`LazyItems`).
      qrels: grade (an integer; above 0 = relevant) of documents, by query id then document id.
      candidates: ids of the documents that each query ranks (local ranking); None = every query ranks the whole corpus.
      texts: one text per document, for BM25 only; None = BM25 is not evaluated.
      instruction: of the queries; None = the model's own.
      document_instruction: of the corpus; None = the model's own.

    Raises:
      ValueError: something is empty, of the wrong length, duplicated, or names an unknown id.

    Example:
      >>> benchmark = Benchmark(
      ...     name="two pages",
      ...     queries=["Which animal barks?"],
      ...     query_ids=["q0"],
      ...     corpus=["The dog barks.", "The cat does not."],
      ...     corpus_ids=["d0", "d1"],
      ...     qrels={"q0": {"d0": 1}},
      ... )
      >>> benchmark.sample(corpus=1).corpus_ids
      ['d0']
    """

    name: str
    queries: Sequence[Any]
    query_ids: Sequence[str]
    corpus: Sequence[Any]
    corpus_ids: Sequence[str]
    qrels: Qrels
    candidates: Mapping[str, Sequence[str]] | None = None
    texts: Sequence[str] | None = None
    instruction: str | None = None
    document_instruction: str | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("the benchmark has no name: it is part of every query's tie-breaking key")
        self._check_ids("query", self.query_ids, self.queries)
        self._check_ids("document", self.corpus_ids, self.corpus)
        if self.texts is not None and len(self.texts) != len(self.corpus):
            raise ValueError(f"benchmark {self.name}: {len(self.texts)} texts for {len(self.corpus)} documents")
        self._check_qrels()
        if self.candidates is not None:
            self._check_candidates(self.candidates)

    def save(self, folder: str | Path) -> None:
        """Writes a folder that `Benchmark.load` opens; see `eval.benchmarks.beir` for the format.

        Raises:
          FileExistsError: the folder is not empty.
          ValueError, TypeError, OSError: an item cannot be stored, or an id has a tab or a line break in it.
        """
        beir.save({field.name: getattr(self, field.name) for field in dataclasses.fields(self)}, folder)

    @classmethod
    def load(cls, folder: str | Path, *, name: str | None = None, split: str = beir.SPLIT) -> Benchmark:
        """Opens a folder written by `save`, or a BEIR folder; see `eval.benchmarks.beir`.

        Args:
          folder: where the benchmark is.
          name: replaces the stored one, or the folder's name where none is stored.
          split: of a BEIR folder's judgements.

        Raises:
          FileNotFoundError: the folder, one of its files, or the split is missing.
          ValueError: a file is corrupt, of another version, or contradicts another.
        """
        return cls(**beir.load(folder, name=name, split=split))

    def sides(self) -> tuple[Side, Side]:
        """Returns queries and corpus."""
        return (
            Side(self.name, True, self.queries, self.query_ids, self.instruction),
            Side(self.name, False, self.corpus, self.corpus_ids, self.document_instruction),
        )

    def sample(self, *, queries: int | None = None, corpus: int | None = None, seed: int = 0) -> Benchmark:
        """Returns a smaller benchmark.

        Args:
          queries: number of queries that are drawn at random; None = all.
          corpus: number of documents, about: the relevant documents (and candidates) of the drawn queries always stay,
            even if they are more, and the rest is drawn; None = all.
          seed: of the draws. Order is kept.
        """
        rng = np.random.default_rng(seed)
        chosen = _draw(rng, range(len(self.queries)), queries)
        ids = [self.query_ids[i] for i in chosen]
        needed = {doc for q in ids for doc in self.qrels[q]}
        if self.candidates is not None:
            needed |= {doc for q in ids for doc in self.candidates[q]}
        keep = [i for i, doc in enumerate(self.corpus_ids) if doc in needed]
        rest = [i for i, doc in enumerate(self.corpus_ids) if doc not in needed]
        keep = sorted(keep + _draw(rng, rest, None if corpus is None else max(corpus - len(keep), 0)))
        return dataclasses.replace(
            self,
            queries=_take(self.queries, chosen),
            query_ids=ids,
            corpus=_take(self.corpus, keep),
            corpus_ids=[self.corpus_ids[i] for i in keep],
            qrels={q: self.qrels[q] for q in ids},
            candidates=None if self.candidates is None else {q: self.candidates[q] for q in ids},
            texts=None if self.texts is None else [self.texts[i] for i in keep],
        )

    def _check_ids(self, kind: str, ids: Sequence[Any], items: Sequence[Any]) -> None:
        if len(items) == 0:
            raise ValueError(f"benchmark {self.name} has no {kind}")
        if len(ids) != len(items):
            raise ValueError(f"benchmark {self.name}: {len(ids)} {kind} ids for {len(items)} items")
        if wrong := [i for i in ids if not isinstance(i, str) or not i]:
            raise ValueError(f"benchmark {self.name}: {kind} ids must be non-empty texts: {abridged(wrong)}")
        twice = [i for i, n in Counter(ids).items() if n > 1]
        if twice:
            raise ValueError(f"benchmark {self.name}: {kind} ids appear more than once: {abridged(twice)}")

    def _check_qrels(self) -> None:
        documents = set(self.corpus_ids)
        self._refuse(set(self.qrels) - set(self.query_ids), "judgements of unknown queries")
        self._refuse({d for g in self.qrels.values() for d in g} - documents, "judgements of unknown documents")
        for query, grades in self.qrels.items():
            for document, grade in grades.items():
                if isinstance(grade, bool) or not isinstance(grade, int | np.integer):
                    raise ValueError(
                        f"benchmark {self.name}: the grade of query {query}, document {document} is {grade!r}: it must "
                        "be an integer, above 0 = relevant"
                    )
        bare = [q for q in self.query_ids if not any(grade > 0 for grade in self.qrels.get(q, {}).values())]
        self._refuse(bare, "queries without a relevant document (leave them out)")

    def _check_candidates(self, candidates: Mapping[str, Sequence[str]]) -> None:
        queries, documents = set(self.query_ids), set(self.corpus_ids)
        self._refuse(set(candidates) - queries, "candidates of unknown queries")
        self._refuse([q for q in self.query_ids if not len(candidates.get(q, ()))], "queries without candidates")
        for query, names in candidates.items():
            self._refuse(set(names) - documents, f"unknown documents among the candidates of query {query}")
            twice = [d for d, n in Counter(names).items() if n > 1]
            self._refuse(twice, f"documents twice among the candidates of query {query}")

    def _refuse(self, offenders: Any, what: str) -> None:
        if offenders:
            raise ValueError(f"benchmark {self.name}: {what}: {abridged(offenders)}")


@dataclasses.dataclass(frozen=True)
class Deferred:
    """A benchmark that is opened when its turn comes, so that many of them need neither time nor memory before.

    Attributes:
      name: of the benchmark.
      load: opens the benchmark.

    Example:
      >>> Deferred("scifact", lambda: Benchmark.load("scifact")).name
      'scifact'
    """

    name: str
    load: Callable[[], Benchmark]


def item_text(item: Any) -> str:
    """Returns the text of an item, empty if it has none.

    Example:
      >>> item_text({"text": "a caption", "instruction": "Find it."})
      'a caption'
    """
    return " ".join(parse_item(item).texts)


def _take(items: Sequence[Any], indices: Sequence[int]) -> Sequence[Any]:
    return items.take(indices) if isinstance(items, LazyItems) else [items[i] for i in indices]


def _draw(rng: np.random.Generator, indices: Sequence[int], count: int | None) -> list[int]:
    if count is None or count >= len(indices):
        return list(indices)
    return sorted(rng.choice(np.asarray(indices), size=count, replace=False).tolist())
