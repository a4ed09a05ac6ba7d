"""A collection of a Qdrant server, or of the client's local mode, through `qdrant-client`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from smart_jax.index.qdrant.address import Address
from smart_jax.index.qdrant.collection import (
    LATE,
    POOLED,
    FieldKind,
    Filter,
    Hybrid,
    Layout,
    Nearest,
    Payload,
    Point,
    Scored,
)

WRITTEN_AT_ONCE = 2**20  # values of vectors in a request: about 20 MB of JSON, of 32 that a server takes
ASKED_AT_ONCE = 64  # requests
VARIABLES = ("$score[0]", "$score[1]")


class QdrantCollection:
    """A collection, by its address."""

    def __init__(self, address: Address, api_key: str | None = None):
        """Connects to it.

        Raises:
          ImportError: `qdrant-client` is not installed.
        """
        try:
            import qdrant_client
        except ImportError as error:
            raise ImportError("Qdrant needs its client: pip install smart_jax[qdrant]") from error
        self._models, self._address = qdrant_client.models, address
        self._client = qdrant_client.QdrantClient(**address.client_options(api_key))
        self._indexed: set[str] | None = None

    @property
    def place(self) -> str:
        """Its address, without a key."""
        return self._address.place

    def exists(self) -> bool:
        """Returns whether it has been made."""
        return bool(self._client.collection_exists(self._address.name))

    def create(self, layout: Layout) -> None:
        """Makes it: the tokens are compared one by one, without a graph."""
        models, dot = self._models, self._models.Distance.DOT
        late = models.VectorParams(
            size=layout.token_width,
            distance=dot,
            datatype=models.Datatype(layout.dtype),
            on_disk=True,
            hnsw_config=models.HnswConfigDiff(m=0),
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM),
        )
        vectors = {POOLED: models.VectorParams(size=layout.pooled_width, distance=dot), LATE: late}
        self._client.create_collection(self._address.name, vectors_config=vectors)

    def index(self, field: str, kind: FieldKind) -> None:
        """Makes an index on a field of the payload, if there is none; the local mode has none."""
        if self._address.local:
            return
        if self._indexed is None:
            self._indexed = set(self._client.get_collection(self._address.name).payload_schema)
        if field not in self._indexed:
            self._client.create_payload_index(self._address.name, field, self._models.PayloadSchemaType(kind))
            self._indexed.add(field)

    def upsert(self, points: Sequence[Point]) -> None:
        """Writes points, in requests of limited size, each in the place of one of the same key."""
        for some in _requests(points):
            structs = [self._models.PointStruct(id=p.key, vector=_vectors(p), payload=dict(p.payload)) for p in some]
            self._client.upsert(self._address.name, structs, wait=True)

    def set_payload(self, payload: Payload, where: Filter) -> None:
        """Gives points other values of some fields."""
        self._client.set_payload(self._address.name, dict(payload), points=self._filter(where), wait=True)

    def delete(self, where: Filter) -> None:
        """Removes points."""
        self._client.delete(self._address.name, points_selector=self._filter(where), wait=True)

    def count(self, where: Filter) -> int:
        """Returns the number of points, exactly."""
        return int(self._client.count(self._address.name, count_filter=self._filter(where), exact=True).count)

    def scroll(
        self, where: Filter, limit: int, fields: Sequence[str] = (), *, after: int | None = None, vectors: bool = False
    ) -> list[Point]:
        """Returns points in the order of their field `added`: those whose value is above `after`."""
        order = self._models.OrderBy(key="added", start_from=None if after is None else after + 1)
        what: dict[str, Any] = {"order_by": order, "limit": limit, **self._wanted(fields, vectors)}
        records, _ = self._client.scroll(self._address.name, scroll_filter=self._filter(where), **what)
        return [_point(record) for record in records]

    def some(self, where: Filter, limit: int, fields: Sequence[str] = ()) -> list[Point]:
        """Returns points in the order of their keys, without vectors."""
        what: dict[str, Any] = {"limit": limit, **self._wanted(fields, vectors=False)}
        return [
            _point(r) for r in self._client.scroll(self._address.name, scroll_filter=self._filter(where), **what)[0]
        ]

    def retrieve(self, keys: Sequence[str], fields: Sequence[str] = (), *, vectors: bool = False) -> list[Point]:
        """Returns the points of these keys, in any order; those that there are not are left out."""
        records = self._client.retrieve(self._address.name, list(keys), **self._wanted(fields, vectors))
        return [_point(record) for record in records]

    def query(self, requests: Sequence[Nearest | Hybrid]) -> list[list[Scored]]:
        """Returns the points of each request, the best first."""
        answers: list[list[Scored]] = []
        for first in range(0, len(requests), ASKED_AT_ONCE):
            some = [self._request(each) for each in requests[first : first + ASKED_AT_ONCE]]
            found = self._client.query_batch_points(self._address.name, some)
            answers += [[Scored(str(p.id), float(p.score)) for p in answer.points] for answer in found]
        return answers

    def _request(self, wanted: Nearest | Hybrid) -> Any:
        models = self._models
        if isinstance(wanted, Nearest):
            return models.QueryRequest(**self._nearest(wanted))
        first = models.Prefetch(**self._nearest(wanted.pooled))
        late = models.Prefetch(query=wanted.late.tolist(), using=LATE, prefetch=[first], limit=wanted.pooled.limit)
        parts = zip(wanted.weights, VARIABLES, strict=True)
        total = models.SumExpression(sum=[models.MultExpression(mult=[w, variable]) for w, variable in parts])
        formula = models.FormulaQuery(formula=total, defaults=dict.fromkeys(VARIABLES, 0.0))
        return models.QueryRequest(prefetch=[first, late], query=formula, limit=wanted.limit)

    def _nearest(self, wanted: Nearest) -> dict[str, Any]:
        exact = {} if self._address.local else {"params": self._models.SearchParams(exact=wanted.exact)}
        return exact | {
            "query": wanted.vector.tolist(),
            "using": wanted.using,
            "filter": self._filter(wanted.filter),
            "limit": wanted.limit,
        }

    def values(self, field: str, where: Filter, limit: int) -> dict[Any, int]:
        """Returns the values that an indexed field has, and how many points have each."""
        what = {"facet_filter": self._filter(where), "limit": limit, "exact": True}
        return {hit.value: hit.count for hit in self._client.facet(self._address.name, field, **what).hits}

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()

    def _filter(self, where: Filter) -> Any:
        return self._models.Filter.model_validate(where)

    def _wanted(self, fields: Sequence[str], vectors: bool) -> dict[str, Any]:
        return {"with_payload": list(fields), "with_vectors": [POOLED, LATE] if vectors else False}


def _vectors(point: Point) -> dict[str, Any]:
    parts = ((POOLED, point.pooled), (LATE, point.late))
    return {name: part.tolist() for name, part in parts if part is not None}


def _point(record: Any) -> Point:
    vectors = record.vector or {}
    parts = [np.asarray(vectors[name], np.float32) if name in vectors else None for name in (POOLED, LATE)]
    return Point(str(record.id), record.payload or {}, *parts)


def _requests(points: Sequence[Point]) -> Iterator[Sequence[Point]]:
    """Yields the points in runs of limited size."""
    sizes = [0 if point.late is None else point.late.size + 256 for point in points]
    before = list(itertools.accumulate(sizes, initial=0))
    first = 0
    while first < len(points):
        last = first + 1
        while last < len(points) and before[last + 1] - before[first] <= WRITTEN_AT_ONCE:
            last += 1
        yield points[first:last]
        first = last
