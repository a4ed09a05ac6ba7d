"""`candidates` of `score` and `search`, checked: the documents that each query is scored with."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float, Int

from smart_jax.typing import HostOrDevice

Candidates = HostOrDevice | Sequence[int] | Sequence[Sequence[int] | HostOrDevice]
NONE = -1  # an id that pads a row of an array
TOGETHER = 2  # times the pairs that are asked for, at which all queries are scored with all candidates at once


@dataclasses.dataclass(frozen=True, eq=False)
class CandidateLists:
    """The ids of each query's candidates.

    Attributes:
      ids: of all lists, one after another; of the one list if it is everybody's.
      places: where each list's ids stand in its row of the result.
      bounds: [queries + 1], where each query's list begins in `ids`, and where the last ends; None = one list for all.
      width: length of a row of the result.
    """

    ids: Int[np.ndarray, " ids"]
    places: Int[np.ndarray, " ids"]
    bounds: Int[np.ndarray, " bounds"] | None
    width: int

    @classmethod
    def of(cls, candidates: Candidates, queries: int, documents: int) -> CandidateLists:
        """Returns the lists that `candidates` holds.

        Raises:
          TypeError, ValueError, IndexError: as `smart_jax.score` says.
        """
        if isinstance(candidates, list | tuple) and any(np.ndim(row) for row in candidates):
            rows = [_ids(row, f"candidates[{i}]", ndim=1) for i, row in enumerate(candidates)]
            lengths = np.asarray([len(row) for row in rows], np.int64)
            ids, width = np.concatenate(rows), int(lengths.max())
        else:
            array = _ids(candidates, "candidates", ndim=2)
            if array.ndim == 1:
                _check_range(array, documents, None)
                return cls(array, np.arange(len(array)), None, len(array))
            lengths, ids, width = np.full(len(array), array.shape[1]), array.reshape(-1), array.shape[1]
        if len(lengths) != queries:
            raise ValueError(
                f"candidates are {len(lengths)} lists for {queries} queries: pass a list for each, or one list of ids"
            )
        bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        places = np.arange(len(ids)) - np.repeat(bounds[:-1], lengths)
        kept = ids != NONE
        bounds = np.concatenate([[0], np.cumsum(kept)]).astype(np.int64)[bounds]
        _check_range(ids[kept], documents, bounds)
        return cls(ids[kept], places[kept], bounds, width)

    def to_search(self, allow: Bool[np.ndarray, " Nd"] | None = None) -> CandidateLists:
        """Returns the lists with each id once, in rising order, without those that are not allowed."""

        def chosen(ids: Int[np.ndarray, " _"]) -> Int[np.ndarray, " _"]:
            return np.unique(ids if allow is None else ids[allow[ids]])

        if self.bounds is None:
            ids = chosen(self.ids)
            return CandidateLists(ids, np.arange(len(ids)), None, len(ids))
        rows = [chosen(self.ids[a:b]) for a, b in pairwise(self.bounds.tolist())]
        bounds = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        places = np.concatenate([np.arange(len(row)) for row in rows]) if rows else self.places
        width = int(np.diff(bounds).max(initial=0))
        return CandidateLists(np.concatenate([self.ids[:0], *rows]), places, bounds, width)

    def together(self) -> Int[np.ndarray, " ids"] | None:
        """Returns the ids that all queries are scored with at once, where lists have much in common, else None."""
        if self.bounds is None:
            return self.ids
        all_ids = np.unique(self.ids)
        return all_ids if (len(self.bounds) - 1) * len(all_ids) <= TOGETHER * len(self.ids) else None

    def rows(self) -> Int[np.ndarray, " ids"]:
        """Returns the query of each id, where each has a list."""
        assert self.bounds is not None
        return np.repeat(np.arange(len(self.bounds) - 1), np.diff(self.bounds))

    def numbers(self, queries: int) -> Int[np.ndarray, "Nq width"]:
        """Returns the ids as a row for each query, with -1 where there is none."""
        if self.bounds is None:
            return np.broadcast_to(self.ids, (queries, self.width))
        table = np.full((queries, self.width), NONE, np.int64)
        table[self.rows(), self.places] = self.ids
        return table

    def table(self, scores: Float[np.ndarray, " ids"]) -> Float[np.ndarray, "Nq width"]:
        """Returns a row for each query, with -inf behind its candidates' scores."""
        assert self.bounds is not None
        table = np.full((len(self.bounds) - 1, self.width), -np.inf, np.float32)
        table[self.rows(), self.places] = scores
        return table


def _ids(candidates: object, name: str, ndim: int) -> np.ndarray:
    """Returns an array of at most so many dimensions, int64."""
    try:
        array: np.ndarray = np.asarray(candidates)
    except ValueError:
        raise ValueError(f"{name} are lists of lists: pass ids, or a list of ids for each query") from None
    if array.size == 0:
        array = array.astype(np.int64)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} are {array.dtype}: they must be integers (of a mask: np.flatnonzero)")
    if array.ndim == 0 or array.ndim > ndim:
        raise ValueError(f"{name} have shape {array.shape}: pass ids, [queries, n], or a list of ids for each query")
    return array.astype(np.int64)


def _check_range(ids: Int[np.ndarray, " ids"], documents: int, bounds: Int[np.ndarray, " bounds"] | None) -> None:
    outside = np.flatnonzero((ids < 0) | (ids >= documents))
    if outside.size:
        at = int(outside[0])
        query = "" if bounds is None else f" of query {int(np.searchsorted(bounds, at, side='right')) - 1}"
        raise IndexError(f"candidate {int(ids[at])}{query}: d has {documents} documents, from 0 to {documents - 1}")
