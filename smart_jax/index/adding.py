"""Files and items to an index: read, encoded and committed some pages at a time, so that a kill loses little.

The items of a file appear together, when all of them are there. What was committed of a file before a kill waits,
unseen, until the rest is there, too.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm.auto import tqdm

from smart_jax.index.documents import Given, GivenFile, GivenItem, file_hash
from smart_jax.index.engine import Writing
from smart_jax.index.page_encoder import BAD_ITEM, EncodedPages
from smart_jax.index.pages import OpenFile, Page, Reading
from smart_jax.index.records import KnownItem, Record, Source
from smart_jax.index.report import AddReport

SHOWN_AFTER_SECONDS = 2.0


class _Waiting(NamedTuple):
    """A page that is to be encoded."""

    page: Page
    record: Record
    name: str  # in messages


class Adding:
    """One call of `Index.add`."""

    def __init__(
        self,
        writer: Writing,
        encode: Callable[[Sequence[Page]], EncodedPages],
        reading: Reading,
        *,
        dtype: str,
        commit_every: int,
        progress: bool | None = None,
    ):
        self._writer, self._encode, self._reading = writer, encode, reading
        self._dtype, self._commit_every = dtype, commit_every
        self.report = AddReport()
        self._waiting: list[_Waiting] = []
        self._ids: set[str] = set()  # of those
        self._sources: dict[int, Source] = {}  # those that are being added
        self._begun: set[int] = set()  # those of which the catalog knows
        self._finished: list[int] = []
        self._paths: set[Path] = set()  # of the files of this call
        self._open: list[OpenFile] = []  # the last is being read, pages of the others are waiting
        disable = None if progress is None else not progress
        self._bar = tqdm(desc="index", unit="page", disable=disable, delay=0 if progress else SHOWN_AFTER_SECONDS)

    def run(self, given: Sequence[Given]) -> AddReport:
        """Adds all that is given, in order; what cannot be read is reported."""
        began = time.monotonic()
        self._bar.total = sum(map(self._count, given))
        with self._bar, contextlib.closing(self):
            for each in given:
                if isinstance(each, GivenFile):
                    self._add_file(each)
                else:
                    self._add_item(each)
            self._flush()
        self.report.seconds = time.monotonic() - began
        return self.report

    def close(self) -> None:
        """Closes the files that are open."""
        for file in self._open:
            file.close()

    def _count(self, given: Given) -> int:
        if isinstance(given, GivenItem):
            return 1
        with contextlib.suppress(*BAD_ITEM), contextlib.closing(OpenFile(given, self._reading)) as file:
            return len(file)
        return 1

    def _add_item(self, given: GivenItem) -> None:
        found = self._writer.known([given.id]).get(given.id)
        if found is not None and found.hash == given.hash:
            self._describe([found], given.metadata)
            return
        text = given.item.texts[0] if len(given.item.texts) == 1 else None
        alone = not (given.item.images or given.item.videos or given.item.audios or given.item.instruction)
        record = Record(given.id, given.hash, metadata=given.metadata, text=text)
        self._wait(_Waiting(Page(given.item, text=text if alone else None), record, given.id))

    def _add_file(self, given: GivenFile) -> None:
        name = given.path.as_posix()
        if given.path.resolve() in self._paths:
            return
        self._paths.add(given.path.resolve())
        try:
            source = self._source(given)
            if source is None:
                return
            file = OpenFile(given, self._reading)
            self._open.append(file)
            there = self._there(source)
            name = given.id or self._name(source, name)
            for page in file.pages():
                if page.number not in there:
                    label = name if page.number is None else f"{name}#{page.number}"
                    record = Record(label, source.hash, source.number, page.number, given.metadata, page.text)
                    self._wait(_Waiting(page, record, label))
                else:
                    self._bar.update()
        except BAD_ITEM as error:
            self._fail(name, str(error))
            return
        self._finished.append(source.number)
        if not self._waiting:
            self._flush()

    def _source(self, given: GivenFile) -> Source | None:
        """Returns the file as the catalog is to know it; None = it knows it already."""
        path, digest = str(given.path.resolve()), file_hash(given.path)
        how, size = self._reading.described(given), given.path.stat().st_size
        there, waiting = (self._writer.source(path, complete=complete) for complete in (True, False))
        if there is not None and (there.hash, there.how) == (digest, how):
            self._describe(self._writer.items_of(there.number), given.metadata)
            return None
        if waiting is not None and (waiting.hash, waiting.how) == (digest, how):
            source = waiting
            self._begun.add(source.number)
        else:
            if waiting is not None:
                self._writer.forget(waiting.number)
            source = Source(self._writer.new_source(), path, given.path.name, digest, size, how)
        self._sources[source.number] = source
        return source

    def _there(self, source: Source) -> Collection[int | None]:
        """Returns the pages of a file that an earlier call has left."""
        found = self._writer.waiting(source.number)
        self.report.added += len(found)
        return found

    def _name(self, source: Source, name: str) -> str:
        """Returns what the items of a file are called: as the file was given, if no other file is called so."""
        return name if self._writer.path_of(name) in (None, source.path) else source.path

    def _describe(self, items: Sequence[KnownItem], metadata: str | None) -> None:
        self._bar.update(len(items))
        if not items or metadata is None or items[0].metadata == metadata:
            self.report.unchanged += len(items)
        else:
            self._writer.describe((metadata, item.key) for item in items)
            self.report.described += len(items)

    def _wait(self, waiting: _Waiting) -> None:
        if waiting.record.id in self._ids:
            self._flush()  # the later one takes the other's place
        self._ids.add(waiting.record.id)
        self._waiting.append(waiting)
        if len(self._waiting) >= self._commit_every:
            self._flush()

    def _fail(self, name: str, error: str) -> None:
        self.report.failed[name] = error
        self._bar.update()

    def _flush(self) -> None:
        """Encodes and commits what is waiting."""
        waiting, finished = self._waiting, self._finished
        self._waiting, self._finished, self._ids = [], [], set()
        encoded = EncodedPages(None, [], {}, [])
        if waiting:
            encoded = self._encode([each.page for each in waiting])
        for i, error in encoded.errors.items():
            self._fail(waiting[i].name, error)
        good = zip(encoded.good, encoded.sources, strict=True)
        records = [waiting[i].record._replace(tokens=tokens) for i, tokens in good]
        numbers = {record.source for record in records if record.source is not None}
        begun = [self._sources[number] for number in sorted(numbers - self._begun)]
        self._begun |= numbers
        finished = [number for number in finished if number in self._begun]
        if records or finished:
            self._writer.put(encoded.embeddings, records, begun=begun, finished=finished, dtype=self._dtype)
        self.report.added += len(records)
        self._bar.update(len(records))
        for file in self._open[:-1]:
            file.close()
        self._open = self._open[-1:]
