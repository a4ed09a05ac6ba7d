"""Marks of the first stages, written as items are added, moved with them, and made for an index that has none."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from smart_jax.index.centroids import TOKENS_OF_EACH, centroid_count, learn_centroids
from smart_jax.index.segment_files import Extent
from smart_jax.index.snapshot import Segment, Snapshot
from smart_jax.index.stage_files import StageFiles
from smart_jax.index.stages import MARKED, Marked, Marks, Stage
from smart_jax.index.token_runs import runs
from smart_jax.retrieval import Embeddings

if TYPE_CHECKING:
    from smart_jax.index.store import Store

MARKED_AT_ONCE = 2**16  # tokens


class StageWriter:
    """Writes the marks of a store's first stages, for its one writer."""

    def __init__(self, store: Store):
        self._store = store

    def add(self, extent: Extent, items: Embeddings) -> None:
        """Writes the marks of items that are added behind an extent, to the disk.

        Args:
          extent: of the segment, before.
          items: as they are stored.
        """
        files, stages = self._store.stage_files, self._store.stages()
        if files is None:  # of an index that holds nothing, and has no stages
            return
        for stage in stages:
            files.append(stage, extent, _all_marks(stage, items, _centroids(files, stage)))

    def copy(self, extent: Extent, segment: Segment, places: Int[np.ndarray, " n"]) -> None:
        """Writes the marks of some of a segment's items behind another's, to the disk."""
        files, offsets = self._store.stage_files, segment.embeddings.offsets
        for stage in self._store.stages():
            assert files is not None
            marks = segment.marks[stage.name]
            packed = Embeddings.from_checked(np.empty((len(offsets) - 1, 0)), marks.reshape(len(marks), -1), offsets)
            chosen = packed[places].tokens
            files.append(stage, extent, chosen.reshape(len(chosen), *marks.shape[1:]))

    def keep(self, names: Collection[Marked], snapshot: Snapshot) -> None:
        """Makes the marks of these stages for all of an index, where there are none, and removes those of others.

        Centroids that the index has outgrown are learned anew. One transaction changes over.

        Args:
          names: of the stages.
          snapshot: of the index as it is.
        """
        tokens, there = snapshot.tokens, snapshot.stages
        stays = {name: stage for name, stage in there.items() if name in names and not stage.outgrown(tokens)}
        wanted = [name for name in MARKED if name in names]
        kept = [stays.get(name) or self._made(name, snapshot, tokens) for name in wanted]
        if kept == [there[name] for name in MARKED if name in there]:
            return
        catalog = self._store.catalog
        with catalog.writing():
            catalog.set("stages", [stage.to_json() for stage in kept])
        self.trim()

    def trim(self) -> None:
        """Removes the files of what is not there any more."""
        with self._store.reading() as (_, snapshot):
            there = [Extent(s.number, len(s.embeddings), len(s.embeddings.tokens)) for s in snapshot.segments]
        if (files := self._store.stage_files) is not None:
            files.trim(self._store.stages(), there)

    def _made(self, name: Marked, snapshot: Snapshot, tokens: int) -> Stage:
        """Makes a stage's files for an index that holds something."""
        files, number = self._store.stage_files, self._new_number()
        assert files is not None
        if name == "centroids":
            stage = Stage(name, number, centroid_count(tokens), tokens)
            files.write_centroids(stage, learn_centroids(_sample(snapshot, stage.centroids), stage.centroids))
        else:
            stage = Stage(name, number)
        for segment in snapshot.segments:
            items, done = segment.embeddings, Extent(segment.number, 0, 0)
            for first, last in runs(items.offsets, MARKED_AT_ONCE):
                marks = stage.marks(items[first:last], _centroids(files, stage))
                files.append(stage, done, marks)
                done = Extent(segment.number, last, done.tokens + len(marks))
        return stage

    def _new_number(self) -> int:
        """Returns the number of a new stage: who still reads an old one never meets another of its number."""
        catalog = self._store.catalog
        number = int(catalog.get("stage_number") or 0) + 1
        with catalog.writing():
            catalog.set("stage_number", number)
        return number


def _centroids(files: StageFiles, stage: Stage) -> Float[np.ndarray, "centroids D"] | None:
    return files.centroids(stage) if stage.name == "centroids" else None


def _all_marks(stage: Stage, items: Embeddings, centroids: Float[np.ndarray, "centroids D"] | None) -> Marks:
    parts = runs(items.offsets, MARKED_AT_ONCE)
    return np.concatenate([stage.marks(items[first:last], centroids) for first, last in parts])


def _sample(snapshot: Snapshot, centroids: int) -> Float[np.ndarray, "T D"]:
    """Returns tokens that centroids are learned from, drawn from all that are in the index, in random order."""
    rng, drawn = np.random.default_rng(0), []
    share = min(1.0, TOKENS_OF_EACH * centroids / snapshot.tokens)
    for segment in snapshot.segments:
        items, alive = segment.embeddings, segment.alive
        count = len(items.tokens)
        rows = np.sort(rng.choice(count, math.ceil(share * count), replace=False, shuffle=False))
        if alive is not None:
            rows = rows[alive[np.searchsorted(items.offsets, rows, side="right") - 1]]
        tokens = items.tokens[rows].astype(np.float32)
        drawn.append(tokens if items.scales is None else tokens * items.scales[rows, None])
    return rng.permutation(np.concatenate(drawn))
