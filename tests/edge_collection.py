"""Qdrant's embedded engine as the collection of an index: the engine of its servers, without one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import qdrant_edge as edge

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

VARIABLES = ("$score[0]", "$score[1]")
OP = edge.UpdateOperation


class EdgeCollection:
    all_indexes = False

    def __init__(self, place: str, folder: Path):
        self.place, self._folder = place, folder
        self._shard = edge.EdgeShard.load(str(folder)) if folder.is_dir() else None

    def exists(self) -> bool:
        return self._shard is not None

    def create(self, layout: Layout) -> None:
        dtypes = {"float16": edge.VectorStorageDatatype.Float16, "float32": edge.VectorStorageDatatype.Float32}
        dot, graph = edge.Distance.Dot, edge.HnswIndexConfig(m=0, ef_construct=1, full_scan_threshold=1)
        late = edge.EdgeVectorParams(
            size=layout.token_width,
            distance=dot,
            datatype=dtypes[layout.dtype],
            hnsw_config=graph,
            multivector_config=edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim),
        )
        vectors = {POOLED: edge.EdgeVectorParams(size=layout.pooled_width, distance=dot), LATE: late}
        self._folder.mkdir(parents=True)
        self._shard = edge.EdgeShard.create(str(self._folder), edge.EdgeConfig(vectors=vectors))

    def index(self, field: str, kind: FieldKind) -> None:
        """Each takes a tenth of a second of waiting for the disk: unless all are asked for, those without which a call
        is refused."""
        if (self.all_indexes or field == "added") and field not in self._shard.info().payload_schema:
            self._shard.update(OP.create_field_index(field, getattr(edge.PayloadSchemaType, kind.capitalize())))

    def upsert(self, points: Sequence[Point]) -> None:
        made = []
        for point in points:
            vectors = {POOLED: point.pooled, LATE: point.late}
            made.append(
                edge.Point(point.key, {k: v.tolist() for k, v in vectors.items() if v is not None}, dict(point.payload))
            )
        self._shard.update(OP.upsert_points(made))

    def set_payload(self, payload: Payload, where: Filter) -> None:
        self._shard.update(OP.set_payload_by_filter(_filter(where), dict(payload)))

    def delete(self, where: Filter) -> None:
        self._shard.update(OP.delete_points_by_filter(_filter(where)))

    def count(self, where: Filter) -> int:
        return self._shard.count(edge.CountRequest(exact=True, filter=_filter(where)))

    def scroll(
        self, where: Filter, limit: int, fields: Sequence[str] = (), *, after: int | None = None, vectors: bool = False
    ) -> list[Point]:
        order = edge.OrderBy("added", start_from=None if after is None else after + 1)
        return self._scrolled(where, limit, fields, vectors, order_by=order)

    def some(self, where: Filter, limit: int, fields: Sequence[str] = ()) -> list[Point]:
        return self._scrolled(where, limit, fields, False)

    def _scrolled(self, where: Filter, limit: int, fields: Sequence[str], vectors: bool, **how: Any) -> list[Point]:
        how |= {"limit": limit, "filter": _filter(where), "with_payload": list(fields), "with_vector": vectors}
        return [_point(record) for record in self._shard.scroll(edge.ScrollRequest(**how))[0]]

    def retrieve(self, keys: Sequence[str], fields: Sequence[str] = (), *, vectors: bool = False) -> list[Point]:
        return [_point(record) for record in self._shard.retrieve(list(keys), list(fields), vectors)]

    def query(self, requests: Sequence[Nearest | Hybrid]) -> list[list[Scored]]:
        found = self._shard.query_batch(edge.QueryBatchRequest([_request(each) for each in requests]))
        return [[Scored(str(point.id), point.score) for point in answer] for answer in found]

    def values(self, field: str, where: Filter, limit: int) -> dict[Any, int]:
        if field not in self._shard.info().payload_schema:
            kind = edge.PayloadSchemaType.Integer if field == "length" else edge.PayloadSchemaType.Keyword
            self._shard.update(OP.create_field_index(field, kind))
        request = edge.FacetRequest(field, limit=limit, exact=True, filter=_filter(where))
        return {hit.value: hit.count for hit in self._shard.facet(request).hits}

    def close(self) -> None:
        if self._shard is not None:
            self._shard.close()
            self._shard = None


def _request(wanted: Nearest | Hybrid) -> Any:
    if isinstance(wanted, Nearest):
        return edge.QueryRequest(**_nearest(wanted))
    first = edge.Prefetch(**_nearest(wanted.pooled))
    query = edge.Query.Nearest(wanted.late.tolist(), LATE)
    late = edge.Prefetch(query=query, prefetches=[first], limit=wanted.pooled.limit)
    parts = [
        edge.Expression.Mult([edge.Expression.Constant(float(weight)), edge.Expression.Variable(variable)])
        for weight, variable in zip(wanted.weights, VARIABLES, strict=True)
    ]
    formula = edge.Formula(edge.Expression.Sum(parts), dict.fromkeys(VARIABLES, 0.0))
    return edge.QueryRequest(prefetches=[first, late], query=formula, limit=wanted.limit)


def _nearest(wanted: Nearest) -> dict[str, Any]:
    return {
        "query": edge.Query.Nearest(wanted.vector.tolist(), wanted.using),
        "filter": _filter(wanted.filter),
        "limit": wanted.limit,
        "params": edge.SearchParams(exact=wanted.exact),
    }


def _filter(where: Filter) -> Any:
    return edge.Filter(**{name: [_condition(each) for each in conditions] for name, conditions in where.items()})


def _condition(where: Filter) -> Any:
    if "has_id" in where:
        return edge.HasIdCondition(set(where["has_id"]))
    if "key" not in where:
        return _filter(where)
    if "range" in where:
        return edge.FieldCondition(where["key"], range=edge.RangeFloat(**where["range"]))
    match = where["match"]
    return edge.FieldCondition(
        where["key"], match=edge.MatchValue(match["value"]) if "value" in match else edge.MatchAny(match["any"])
    )


def _point(record: Any) -> Point:
    vectors = record.vector or {}
    parts = [np.asarray(vectors[name], np.float32) if name in vectors else None for name in (POOLED, LATE)]
    return Point(str(record.id), record.payload or {}, *parts)
