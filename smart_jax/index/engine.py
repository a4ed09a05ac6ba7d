"""Engines: where the items of an index are, and what `Index` asks of that place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol, runtime_checkable

from smart_jax.evidence import Evidence
from smart_jax.index.certificate import Certificate
from smart_jax.index.certifying import Target
from smart_jax.index.choosing import Candidates
from smart_jax.index.explaining import StoredTrace
from smart_jax.index.first_stage import Weights
from smart_jax.index.hits import Hit, StoredItem
from smart_jax.index.index_info import IndexInfo
from smart_jax.index.records import Key, KnownItem, ListedItem, Record, Source
from smart_jax.index.stages import Marked, StageName
from smart_jax.retrieval import Embeddings

Where = Mapping[str, Any]
ExplainKey = Callable[..., Evidence]  # of a key


class Wanted(NamedTuple):
    """Request of a search.

    Attributes:
      k: number of hits at most.
      where: a condition, as `Index.search` takes it.
      weights: of the score.
      candidates, first_stage: as `Index.search` takes them.
    """

    k: int
    where: Where
    weights: Weights
    candidates: Candidates = None
    first_stage: StageName | None = None


@runtime_checkable
class Writing(Protocol):
    """The one writer of an engine."""

    def keys(self, ids: Sequence[str] | None, where: Where | None) -> list[Key]:
        """Returns the items that have one of the ids, if any are given, and fulfil the condition, if one is."""

    def metadata(self, keys: Sequence[Key]) -> list[Mapping[str, Any]]:
        """Returns the metadata of each item."""

    def known(self, ids: Sequence[str]) -> dict[str, KnownItem]:
        """Returns the items of these ids; those that there are not are left out."""

    def items_of(self, source: int) -> list[KnownItem]:
        """Returns the items of a file that can be found."""

    def source(self, path: str, *, complete: bool) -> Source | None:
        """Returns the file of a path, all of whose items are there, or not yet; None = there is no such file."""

    def waiting(self, source: int) -> Collection[int | None]:
        """Returns the pages of a file that wait, unseen, for its others."""

    def path_of(self, name: str) -> str | None:
        """Returns the path of the file whose items are named after this; None = there is none."""

    def new_source(self) -> int:
        """Returns a number that no file has had."""

    def put(
        self,
        embeddings: Embeddings | None,
        records: Sequence[Record],
        *,
        begun: Iterable[Source] = (),
        finished: Collection[int] = (),
        dtype: str = "float16",
    ) -> None:
        """Adds items, as `Writer.put` says."""

    def describe(self, changes: Iterable[tuple[str | None, Key]]) -> None:
        """Gives items other metadata: a JSON object or None, and the item."""

    def delete(self, keys: Iterable[Key]) -> None:
        """Removes items."""

    def forget(self, source: int) -> None:
        """Removes what waits of a file."""

    def compact(self) -> None:
        """Gives room back that removed items have left."""


@runtime_checkable
class Engine(Protocol):
    """The place of an index."""

    @property
    def place(self) -> str:
        """Its folder or address, for messages."""

    def fact(self, name: str) -> Any:
        """Returns what is known of the index by this name; None = nothing."""

    def set_facts(self, facts: Mapping[str, Any]) -> None:
        """States facts of the index, all or none."""

    def __len__(self) -> int:
        """Number of items."""

    def __contains__(self, item_id: object) -> bool:
        """Returns whether there is an item of this id."""

    def key(self, item_id: str) -> Key:
        """Returns the key of an item; raises KeyError where there is none of this id."""

    def items(self, where: Where) -> Iterator[StoredItem]:
        """Yields the items that fulfil a condition, in the order in which they were added."""

    def info(self) -> IndexInfo:
        """Returns what is there, in numbers."""

    def writing(self) -> AbstractContextManager[Writing]:
        """Yields the one writer.

        Raises:
          ValueError: another writer is at it.
        """

    def search(self, queries: Embeddings, wanted: Wanted, explain: Sequence[ExplainKey]) -> list[list[Hit]]:
        """Returns the hits of each query, whose explanations take an item's key."""

    def as_stored(self, queries: Embeddings) -> Embeddings:
        """Returns queries in the form in which they are compared with the stored items."""

    def traced(self, key: Key, sample: int) -> tuple[StoredTrace, Embeddings | None]:
        """Returns what is stored of an item, and so many others that its evidence is compared with.

        Raises:
          ValueError: the item was removed or replaced since.
        """

    @property
    def dtypes(self) -> Collection[str]:
        """Dtypes that it stores tokens as."""

    def prepare(self, documents: Embeddings, longest: int) -> None:
        """Makes ready for documents such as these, of so many tokens at most, before the first are put there."""

    def sample(self, most: int) -> Embeddings | None:
        """Returns some of the items, spread over all; None = there are none."""

    def longest(self) -> int:
        """Returns the number of tokens of the longest item."""

    def sources(self) -> list[Source]:
        """Returns the files all of whose items are there."""

    def list_items(self, source: int | None) -> list[ListedItem]:
        """Returns the items of a file, or those of none, in the order in which they were added."""

    def read(self, keys: Sequence[Key]) -> tuple[Embeddings, list[Record]]:
        """Returns vectors and records of items; raises ValueError where one was removed since it was listed."""

    def close(self) -> None:
        """Lets go of files and connections."""


@runtime_checkable
class Staged(Protocol):
    """An engine whose first stages are chosen here."""

    def spans(self) -> list[dict[str, str]]:
        """Returns words of the items' texts, in place of queries."""

    def certify(self, queries: Embeddings, target: Target, stages: Sequence[StageName], source: str) -> Certificate:
        """Measures first stages, as `Index.certify` says."""

    def keep_stages(self, names: Sequence[Marked]) -> None:
        """Keeps what these first stages need, and removes what others need."""
