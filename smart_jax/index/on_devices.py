"""A local index whose items are on devices, too, where every search scores them all."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Int

from smart_jax.index.engine import ExplainKey, Wanted
from smart_jax.index.hits import Hit, read_hits
from smart_jax.index.local import LocalEngine, Mask
from smart_jax.index.ranking import best_of_rows
from smart_jax.index.snapshot import PLACES, Segment, Snapshot
from smart_jax.index.store import Store
from smart_jax.index.where import parse_where
from smart_jax.retrieval import Embeddings, Resident, search, to_device

PIECES = 8  # of a segment that grew, before it is put on the devices as a whole again
TRIES, PAUSE_SECONDS = 100, 0.05  # for all processes to see the index in the same state


class DeviceEngine(LocalEngine):
    """A local engine that searches on devices. What is written shows in the next search, as without devices.

    Segments only grow, and what is removed is left out by a mask: only new items travel, until segments are compacted.
    """

    def __init__(self, store: Store, mesh: Mesh | None = None):
        """Puts all items on the devices of a mesh; with several processes, all do."""
        super().__init__(store)
        self._mesh = mesh
        self._pieces: dict[int, list[Resident]] = {}
        with self._agreed() as (_, snapshot):
            self._refresh(snapshot)

    @contextlib.contextmanager
    def _agreed(self) -> Iterator[tuple[sqlite3.Connection, Snapshot]]:
        """Yields the index as of one moment, the same for all processes.

        Raises:
          RuntimeError: they see different indexes.
        """
        for _ in range(TRIES):
            with self.store.reading() as (db, snapshot):
                if _same_everywhere(snapshot.generation):
                    yield db, snapshot
                    return
            time.sleep(PAUSE_SECONDS)
        raise RuntimeError(
            f"the processes see '{self.place}' in different states: let all open the same folder, or equal copies, and "
            "let nothing be written without pause"
        )

    def _refresh(self, snapshot: Snapshot) -> None:
        """Puts on the devices what is new."""
        former, self._pieces = self._pieces, {}
        for segment in snapshot.segments:
            pieces = former.get(segment.number, [])
            there = sum(map(len, pieces))
            if there < len(segment.embeddings):
                if len(pieces) == PIECES:
                    pieces, there = [], 0
                pieces = [*pieces, to_device(segment.embeddings[there:], self._mesh)]
            self._pieces[segment.number] = pieces

    def search(self, queries: Embeddings, wanted: Wanted, explain: Sequence[ExplainKey]) -> list[list[Hit]]:
        """Returns the hits of each query, of all items; with several processes, all ask the same.

        Raises:
          ValueError: candidates are given.
        """
        if isinstance(wanted.candidates, int):
            raise ValueError("candidates is given, but on devices every item is scored: leave it out")
        condition, queries = parse_where(wanted.where), self.as_stored(queries)
        with self._agreed() as (db, snapshot):
            self._check_widths(queries)
            self._refresh(snapshot)
            allowed = self._allowed(db, snapshot, condition)
            found: list[list[Int[np.ndarray, " rows"]]] = [[np.zeros(0, np.int64)] for _ in explain]
            for segment, mask in zip(snapshot.segments, allowed, strict=True):
                for rows, some in zip(found, self._search(queries, wanted, segment, mask), strict=True):
                    rows += some
            k, weights = wanted.k, wanted.weights
            each = [
                best_of_rows(queries[i], snapshot, np.concatenate(rows), k, weights) for i, rows in enumerate(found)
            ]
            return [read_hits(db, ranked, why, place=self.place) for ranked, why in zip(each, explain, strict=True)]

    def _search(
        self, queries: Embeddings, wanted: Wanted, segment: Segment, mask: Mask
    ) -> list[list[Int[np.ndarray, " rows"]]]:
        """Returns, for each query, the rows of the best items of a segment, by pieces."""
        weights: dict[str, Any] = {"pooled_weight": wanted.weights.pooled, "late_weight": wanted.weights.late}
        found: list[list[Int[np.ndarray, " rows"]]] = [[] for _ in queries.pooled]
        first = segment.number << PLACES
        for piece in self._pieces[segment.number]:
            allow = None if mask is None else mask[first & (2**PLACES - 1) :][: len(piece)]
            _, places = search(queries, piece, wanted.k, allow=allow, **weights)
            for rows, of_query in zip(found, places, strict=True):
                rows.append(first + of_query)
            first += len(piece)
        return found


def _same_everywhere(number: int) -> bool:
    """Returns whether the number is the same on all processes, each of which calls this."""
    if jax.process_count() == 1:
        return True
    halves = np.array([number >> 31, number & (1 << 31) - 1], np.int32)
    return bool((np.asarray(multihost_utils.process_allgather(halves)) == halves).all())
