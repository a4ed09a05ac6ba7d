"""Records that the catalog keeps of an item, and of the file that it comes from."""

from __future__ import annotations

from typing import NamedTuple

Key = int | str  # of an item in its engine


class Record(NamedTuple):
    """Record of one item beside its vectors.

    Attributes:
      id: of the item, the only one of its name.
      hash: of its content.
      source: number of the file that it is of; None = it was handed over as it is.
      page: of the file, from 1.
      metadata: a JSON object; None = there is none.
      text: of the item, where it has one.
      tokens: what its tokens stand for, as `pack_sources` gives it.
    """

    id: str
    hash: str
    source: int | None = None
    page: int | None = None
    metadata: str | None = None
    text: str | None = None
    tokens: bytes | None = None


class Source(NamedTuple):
    """A file whose items appear together.

    Attributes:
      number: of the source.
      path: absolute.
      file: name of the file.
      hash: of its content.
      size: in bytes.
      how: settings that its items depend on, and their metadata, as text.
    """

    number: int
    path: str
    file: str
    hash: str
    size: int
    how: str


class KnownItem(NamedTuple):
    """An item that is in an index.

    Attributes:
      key: of the item, in its engine.
      hash: of its content.
      metadata: a JSON object; None = there is none.
    """

    key: Key
    hash: str
    metadata: str | None


class ListedItem(NamedTuple):
    """An item that is to be copied.

    Attributes:
      id: of the item.
      page: of its file, from 1.
      known: what a writer asks of it.
    """

    id: str
    page: int | None
    known: KnownItem
