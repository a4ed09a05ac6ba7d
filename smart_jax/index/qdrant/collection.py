"""Collections of points with vectors and payload, as the Qdrant engine uses them: requests, answers and the protocol.

Filters are mappings in the form of Qdrant's REST interface.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

POOLED, LATE = "pooled", "late"  # names of the vectors

Filter = Mapping[str, Any]
Payload = Mapping[str, Any]
FieldKind = Literal["keyword", "integer", "float"]


class Point(NamedTuple):
    """A point that is written or read.

    Attributes:
      key: of the point, a UUID.
      payload: of the point.
      pooled: its pooled vector; None = it has none, or was not asked for.
      late: its tokens.
    """

    key: str
    payload: Payload
    pooled: Float[np.ndarray, " H"] | None = None
    late: Float[np.ndarray, "L D"] | None = None


class Nearest(NamedTuple):
    """The points whose vectors have the largest inner products with one.

    Attributes:
      vector: [H], or tokens [P, D]: then the sum over these of their largest inner product with the point's.
      filter: which points may be found.
      limit: number of points.
      exact: whether no graph is used that may miss some.
    """

    vector: Float[np.ndarray, " H"] | Float[np.ndarray, "P D"]
    filter: Filter
    limit: int
    exact: bool = True

    @property
    def using(self) -> str:
        """Name of the vectors."""
        return POOLED if self.vector.ndim == 1 else LATE


class Hybrid(NamedTuple):
    """The best points of the nearest, by the weighted sum of two scores.

    Attributes:
      pooled: the points that are scored.
      late: tokens [P, D].
      weights: of the pooled inner product, and of the tokens' sum.
      limit: number of points.
    """

    pooled: Nearest
    late: Float[np.ndarray, "P D"]
    weights: tuple[float, float]
    limit: int


class Scored(NamedTuple):
    """A point that was found."""

    key: str
    score: float


class Layout(NamedTuple):
    """Vectors of a collection.

    Attributes:
      pooled_width, token_width: number of components.
      dtype: of the tokens, float16 or float32; pooled vectors are float32.
    """

    pooled_width: int
    token_width: int
    dtype: str


@runtime_checkable
class Collection(Protocol):
    """A collection of an engine; all calls have taken effect when they return."""

    @property
    def place(self) -> str:
        """Its address."""

    def exists(self) -> bool:
        """Returns whether it has been made."""

    def create(self, layout: Layout) -> None:
        """Makes it."""

    def index(self, field: str, kind: FieldKind) -> None:
        """Makes an index on a field of the payload, if there is none."""

    def upsert(self, points: Sequence[Point]) -> None:
        """Writes points, each in the place of one of the same key."""

    def set_payload(self, payload: Payload, where: Filter) -> None:
        """Gives points other values of some fields."""

    def delete(self, where: Filter) -> None:
        """Removes points."""

    def count(self, where: Filter) -> int:
        """Returns the number of points, exactly."""

    def scroll(
        self, where: Filter, limit: int, fields: Sequence[str] = (), *, after: int | None = None, vectors: bool = False
    ) -> list[Point]:
        """Returns points in the order of their field `added`: those whose value is above `after`."""

    def some(self, where: Filter, limit: int, fields: Sequence[str] = ()) -> list[Point]:
        """Returns points in the order of their keys, without vectors."""

    def retrieve(self, keys: Sequence[str], fields: Sequence[str] = (), *, vectors: bool = False) -> list[Point]:
        """Returns the points of these keys, in any order; those that there are not are left out."""

    def query(self, requests: Sequence[Nearest | Hybrid]) -> list[list[Scored]]:
        """Returns the points of each request, the best first."""

    def values(self, field: str, where: Filter, limit: int) -> dict[Any, int]:
        """Returns the values that an indexed field has, and how many points have each."""

    def close(self) -> None:
        """Ends the connection."""
