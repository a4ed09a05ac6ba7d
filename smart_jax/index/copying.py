"""An index copied from one engine to another: only what the other does not have yet, some items at a time.

Items that are there with the same content stay, so that the same call goes on where a killed one ended. An item that
was added as embeddings has no hash of its content: a copy has one of its vectors in its place.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from typing import Any

from tqdm import tqdm

from smart_jax.index.engine import Engine, Writing
from smart_jax.index.records import ListedItem, Record, Source
from smart_jax.index.report import AddReport
from smart_jax.retrieval import Embeddings

AT_ONCE = 128  # items
FACTS = ("made", "model", "provenance", "narrowing")
COPIED_FROM = "copied_from"
SAMPLE = 256  # items that narrower tokens are learnt of, where they must be narrower
SHOWN_AFTER_SECONDS = 2.0


def copy_items(source: Engine, target: Engine, *, progress: bool | None = None) -> AddReport:
    """Makes a place hold what another one holds; see `Index.copy_to`.

    Raises:
      ValueError: the target holds another index, or the source was changed meanwhile.
    """
    began = time.monotonic()
    _agree(source, target)
    files, alone = source.sources(), source.list_items(None)
    listed = {file.number: source.list_items(file.number) for file in files}
    names = {item.id for items in (alone, *listed.values()) for item in items}
    bar = tqdm(
        desc="copy",
        unit="item",
        total=len(names),
        disable=None if progress is None else not progress,
        delay=0 if progress else SHOWN_AFTER_SECONDS,
    )
    with bar, target.writing() as writer:
        if names and not len(target):
            _prepare(source, target)
        copying = _Copying(source, writer, target.fact("made")["dtype"], bar)
        copying.copy_alone(alone)
        for file in files:
            copying.copy_file(file, listed[file.number])
        extra = [item.id for item in target.items({}) if item.id not in names]
        writer.delete(writer.keys(extra, None) if extra else [])
    counts = [(info.items, info.files) for info in (source.info(), target.info())]
    if counts[0] != counts[1]:
        raise ValueError(
            f"'{source.place}' has {counts[0][0]} items of {counts[0][1]} files, '{target.place}' {counts[1][0]} of "
            f"{counts[1][1]}: one was changed meanwhile; call it again"
        )
    copying.report.seconds = time.monotonic() - began
    return copying.report


def _agree(source: Engine, target: Engine) -> None:
    """States what the index is made with in a new place; of another, checks that it is a copy of this one."""
    facts = {name: source.fact(name) for name in FACTS if source.fact(name) is not None}
    if target.fact("made") is None:
        target.set_facts({**facts, "made": _storable(facts["made"], target), COPIED_FROM: source.place})
    elif target.fact(COPIED_FROM) != source.place:
        raise ValueError(f"'{target.place}' holds another index: give a place where there is none")
    elif (target.fact("model") or {}).get("model") != (source.fact("model") or {}).get("model"):
        raise ValueError(f"'{target.place}' is a copy of an index of another model: give a place where there is none")


def _storable(made: dict[str, Any], target: Engine) -> dict[str, Any]:
    return made if made["dtype"] in target.dtypes else {**made, "dtype": "float16"}


def _prepare(source: Engine, target: Engine) -> None:
    some = source.sample(SAMPLE)
    if some is not None:
        target.prepare(some, source.longest())


class _Copying:
    """One call of `copy_items`."""

    def __init__(self, source: Engine, writer: Writing, dtype: str, bar: Any):
        self._source, self._writer, self._dtype, self._bar = source, writer, dtype, bar
        self.report = AddReport()

    def copy_alone(self, items: Sequence[ListedItem]) -> None:
        """Copies items that are of no file."""
        for some in _runs(items):
            known = self._writer.known([item.id for item in some])
            missing = [i for i in some if i.id not in known or not i.known.hash or known[i.id].hash != i.known.hash]
            if missing:
                embeddings, records = self._source.read([item.known.key for item in missing])
                records = [_hashed(record, embeddings[i]) for i, record in enumerate(records)]
                new = [i for i, r in enumerate(records) if r.id not in known or known[r.id].hash != r.hash]
                if new:
                    self._writer.put(embeddings[new], [records[i] for i in new], dtype=self._dtype)
                missing = [missing[i] for i in new]
            names = {item.id for item in missing}
            self._describe([(item, known[item.id]) for item in some if item.id not in names])
            self._count(len(some), len(missing))

    def copy_file(self, file: Source, items: Sequence[ListedItem]) -> None:
        """Copies the items of a file, which appear together."""
        there, begun = (self._writer.source(file.path, complete=complete) for complete in (True, False))
        if there is not None and (there.hash, there.how) == (file.hash, file.how):
            known = self._writer.known([item.id for item in items])
            if len(known) == len(items):
                self._describe([(item, known[item.id]) for item in items])
                self._count(len(items), 0)
                return
        if begun is not None and (begun.hash, begun.how) != (file.hash, file.how):
            self._writer.forget(begun.number)
            begun = None
        number = self._writer.new_source() if begun is None else begun.number
        waiting = set() if begun is None else set(self._writer.waiting(number))
        left = [item for item in items if item.page not in waiting]
        new = [file._replace(number=number)] if begun is None else []
        for some in _runs(left):
            embeddings, records = self._source.read([item.known.key for item in some])
            records = [record._replace(source=number) for record in records]
            self._writer.put(embeddings, records, begun=new, dtype=self._dtype)
            new = []
            self._count(len(some), len(some))
        self._count(len(items) - len(left), 0)
        if items:
            self._writer.put(None, [], finished=[number])

    def _describe(self, pairs: Sequence[tuple[ListedItem, Any]]) -> None:
        changes = [(item.known.metadata, known.key) for item, known in pairs if item.known.metadata != known.metadata]
        if changes:
            self._writer.describe(changes)
            self.report.described += len(changes)
            self.report.unchanged -= len(changes)

    def _count(self, items: int, added: int) -> None:
        self.report.added += added
        self.report.unchanged += items - added
        self._bar.update(items)


def _hashed(record: Record, item: Embeddings) -> Record:
    if record.hash:
        return record
    digest = hashlib.blake2b(digest_size=16)
    for array in (item.pooled, item.tokens, item.scales):
        if array is not None:
            digest.update(array.tobytes())
    return record._replace(hash=f"vectors {digest.hexdigest()}")


def _runs(items: Sequence[ListedItem]) -> Iterator[Sequence[ListedItem]]:
    return (items[first : first + AT_ONCE] for first in range(0, len(items), AT_ONCE))
