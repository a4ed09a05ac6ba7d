"""Contents of an index at one moment: the segments, mapped, and which of their items are alive."""

from __future__ import annotations

import dataclasses
import math
import sqlite3
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from smart_jax.files import checked_int
from smart_jax.index.segment_files import Extent, SegmentFiles
from smart_jax.index.stage_files import StageFiles
from smart_jax.index.stages import Marks, Stage
from smart_jax.retrieval import Embeddings

PLACES = 32  # bits of a row: its place in the segment


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """Items that were written one after another.

    Attributes:
      number: of the segment.
      embeddings: of all its items, left in their files.
      alive: bool [N], which items are in the index; None = all of them.
      marks: of the tokens, by the first stage that they are for.
    """

    number: int
    embeddings: Embeddings
    alive: Bool[np.ndarray, " N"] | None
    marks: Mapping[str, Marks] = dataclasses.field(default_factory=dict)

    @property
    def live(self) -> int:
        """Number of items that are in the index."""
        return len(self.embeddings) if self.alive is None else int(np.count_nonzero(self.alive))


@dataclasses.dataclass(frozen=True, eq=False)
class Snapshot:
    """An index at one moment.

    Attributes:
      generation: of the catalog.
      segments: in the order of their numbers.
      stages: first stages that are kept, by their names.
      centroids: of tokens, if these are kept.
    """

    generation: int
    segments: Sequence[Segment] = ()
    stages: Mapping[str, Stage] = dataclasses.field(default_factory=dict)
    centroids: Float[np.ndarray, "centroids D"] | None = None

    @classmethod
    def read(
        cls,
        generation: int,
        db: sqlite3.Connection,
        files: SegmentFiles,
        stage_files: StageFiles,
        stages: Sequence[Stage],
        former: Snapshot,
    ) -> Snapshot:
        """Returns the state that a connection sees; what the former one has mapped and is the same stays mapped.

        Raises:
          FileNotFoundError: a segment was compacted since, or a first stage made anew.
        """
        dead = np.asarray([row for (row,) in db.execute("SELECT row FROM dead ORDER BY row")], np.int64)
        before = {segment.number: segment for segment in former.segments}
        segments = []
        for extent in extents(db):
            known = before.get(extent.number)
            if known is None or len(known.embeddings) != extent.items:
                mapped, marks = files.open(extent), dict[str, Marks]()
            else:
                mapped = known.embeddings
                marks = {s.name: known.marks[s.name] for s in stages if former.stages.get(s.name) == s}
            marks |= {s.name: stage_files.marks(s, extent) for s in stages if s.name not in marks}
            segments.append(Segment(extent.number, mapped, _alive(extent, dead), marks))
        by_name: dict[str, Stage] = {stage.name: stage for stage in stages}
        learned = by_name.get("centroids")
        return cls(generation, segments, by_name, None if learned is None else stage_files.centroids(learned))

    @property
    def tokens(self) -> int:
        """Number of tokens of the items that are in the index."""
        lengths = ((segment.embeddings.lengths, segment.alive) for segment in self.segments)
        return sum(int(each.sum() if alive is None else each[alive].sum()) for each, alive in lengths)

    def __len__(self) -> int:
        return sum(segment.live for segment in self.segments)

    def item(self, row: int) -> Embeddings | None:
        """Returns the item of a row; None = it is not in the index."""
        number, place = row >> PLACES, row & (2**PLACES - 1)
        for segment in self.segments:
            if segment.number == number and (segment.alive is None or segment.alive[place]):
                return segment.embeddings[place]
        return None

    def sample(self, most: int, *, without: int) -> Embeddings | None:
        """Returns some items, spread over all, but not that of one row; None = there is no other."""
        parts, live = [], len(self)
        for segment in self.segments:
            alive = np.arange(len(segment.embeddings)) if segment.alive is None else np.flatnonzero(segment.alive)
            alive = alive[(segment.number << PLACES) + alive != without]
            count = min(len(alive), math.ceil(most * len(alive) / live))
            if count:
                parts.append(segment.embeddings[alive[np.linspace(0, len(alive) - 1, count).astype(int)]])
        return Embeddings.concatenate(parts) if parts else None

    def allowed(self, rows: Int[np.ndarray, " rows"]) -> list[Bool[np.ndarray, " _"]]:
        """Returns, for each segment, which of its items have one of the rows, which are sorted and alive."""
        masks = []
        for segment in self.segments:
            first, last = np.searchsorted(rows, [segment.number << PLACES, (segment.number + 1) << PLACES])
            mask = np.zeros(len(segment.embeddings), bool)
            mask[rows[first:last] - (segment.number << PLACES)] = True
            masks.append(mask)
        return masks


def extents(db: sqlite3.Connection) -> list[Extent]:
    """Returns how much of each segment there is."""
    rows = db.execute("SELECT number, items, tokens FROM segment ORDER BY number")
    return [Extent(*(checked_int(x, "a segment's extent", least=0, most=2**62) for x in row)) for row in rows]


def _alive(extent: Extent, dead: Int[np.ndarray, " rows"]) -> Bool[np.ndarray, " N"] | None:
    first, last = np.searchsorted(dead, [extent.number << PLACES, (extent.number + 1) << PLACES])
    if first == last:
        return None
    if dead[last - 1] - (extent.number << PLACES) >= extent.items:
        raise ValueError(f"segment {extent.number} has not as many items as the catalog says: restore the index")
    alive = np.ones(extent.items, bool)
    alive[dead[first:last] - (extent.number << PLACES)] = False
    return alive
