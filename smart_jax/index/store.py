"""The store of an index: catalog and segments, which readers see together, in one state.

It knows nothing of models, files of documents, or scores.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from smart_jax.index.catalog import Catalog
from smart_jax.index.segment_files import SEGMENTS, SegmentFiles
from smart_jax.index.snapshot import Snapshot, extents
from smart_jax.index.stage_files import STAGE_FOLDER, StageFiles
from smart_jax.index.stages import Stage, parse_stages
from smart_jax.index.vector_format import VectorFormat
from smart_jax.index.write_lock import write_lock
from smart_jax.index.writer import SEGMENT_BYTES, Writer

CATALOG, LOCK = "index.db", "write.lock"
TRIES = 50  # to open segments that a writer compacts away again and again


class Store:
    """Vectors, ids and metadata in a folder: many readers beside one writer.

    Attributes:
      folder: that holds all of it.
      catalog: its database.
    """

    def __init__(self, folder: Path, *, create: bool = False, segment_bytes: int = SEGMENT_BYTES):
        """Opens the folder, or makes a store there; raises what `Catalog` raises."""
        self.folder, self._segment_bytes = folder, segment_bytes
        self.catalog = Catalog(folder / CATALOG, create=create)
        self._snapshot = Snapshot(-1)
        self._files: SegmentFiles | None = None
        self._stage_files: StageFiles | None = None

    @property
    def files(self) -> SegmentFiles | None:
        """Files of the segments; None = nothing has ever been written."""
        if self._files is None and (fields := self.catalog.get("vectors")) is not None:
            self._files = SegmentFiles(self.folder / SEGMENTS, VectorFormat.from_json(fields))
        return self._files

    @property
    def stage_files(self) -> StageFiles | None:
        """Files of the first stages; None = nothing has ever been written."""
        if self._stage_files is None and (files := self.files) is not None:
            self._stage_files = StageFiles(self.folder / STAGE_FOLDER, files.format)
        return self._stage_files

    def stages(self) -> list[Stage]:
        """Returns the first stages that are kept."""
        return parse_stages(self.catalog.get("stages"))

    @contextlib.contextmanager
    def reading(self) -> Iterator[tuple[sqlite3.Connection, Snapshot]]:
        """Yields the catalog and the vectors as of one moment; what is written meanwhile does not show."""
        with contextlib.ExitStack() as stack:
            for tries_left in reversed(range(TRIES)):
                db = stack.enter_context(self.catalog.reading())
                try:
                    snapshot = self._current(db)
                    break
                except FileNotFoundError:  # the catalog as of now names others
                    stack.pop_all().close()
                    if not tries_left:
                        raise
            yield db, snapshot

    def _current(self, db: sqlite3.Connection) -> Snapshot:
        generation, former = self.catalog.generation(db), self._snapshot
        if former.generation == generation:
            return former
        files, marks = self.files, self.stage_files
        if files is None or marks is None:
            current = Snapshot(generation)
        else:
            current = Snapshot.read(generation, db, files, marks, self.stages(), former)
        self._snapshot = current
        return current

    @contextlib.contextmanager
    def writing(self) -> Iterator[Writer]:
        """Yields the one writer, after what an earlier one was killed over is cleared away.

        Raises:
          ValueError: another writer is at it.
        """
        with write_lock(self.folder / LOCK):
            with self.catalog.reading() as db:
                there = extents(db)
            if self.files is not None and self.stage_files is not None:
                self.files.trim(there)
                self.stage_files.trim(self.stages(), there)
            else:
                shutil.rmtree(self.folder / SEGMENTS, ignore_errors=True)
            writer = Writer(self, self._segment_bytes)
            yield writer
            writer.refresh_stages()

    def stage_bytes(self, name: str) -> int:
        """Returns the size of the files of a first stage."""
        return sum(path.stat().st_size for path in (self.folder / STAGE_FOLDER).glob(f"{name}-*"))

    def stored_bytes(self) -> int:
        """Returns the size of all files of the folder."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def close(self) -> None:
        """Closes the catalog."""
        self.catalog.close()
