"""Tests of what every engine of an index must do alike: a folder, Qdrant's client alone, its embedded engine, a server.

`QDRANT_URL=qdrant://host:6333` has the last one tested, too, in collections that are deleted afterwards.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import smart_jax
from smart_jax import Embeddings, Index
from smart_jax.index.qdrant import opening
from smart_jax.index.qdrant.address import parse_address
from smart_jax.index.qdrant.client_collection import QdrantCollection
from smart_jax.index.value_cap import Narrowing, choose_factor, choose_width, pool_long
from tests.conditions import holds, random_facts, random_where
from tests.edge_collection import EdgeCollection
from tests.fake_encoder import FakeEncoder
from tests.indexes import random_embeddings
from tests.small_pdf import write_pdf

COUNT = 40
SERVER = os.environ.get("QDRANT_URL")
ENGINES = ["folder", "client", "edge", *(["server"] if SERVER else [])]

Open = Callable[..., Index]


def address_of(engine: str, tmp_path: Any, name: str = "papers") -> str:
    if engine == "folder":
        return str(tmp_path / name)
    return f"{SERVER}/{name}-{uuid.uuid4()}" if engine == "server" else f"qdrant://{tmp_path}/{engine}/{name}"


@pytest.fixture(params=ENGINES)
def place(request, tmp_path, monkeypatch) -> Iterator[str]:
    if request.param == "edge":
        monkeypatch.setattr(opening, "open_collection", lambda place, _: EdgeCollection(place, folder_of(place)))
    where = address_of(request.param, tmp_path)
    yield where
    if request.param == "server":
        collection = QdrantCollection(parse_address(where))
        collection._client.delete_collection(parse_address(where).name)
        collection.close()


def folder_of(place: str) -> Any:
    address = parse_address(place)
    return address.folder / address.name


@pytest.fixture
def open_index(place) -> Iterator[Open]:
    opened: list[Index] = []

    def again(**how: Any) -> Index:
        while opened:
            opened.pop().close()
        opened.append(Index(place, **{"model": FakeEncoder()} | how))
        return opened[-1]

    yield again
    for index in opened:
        index.close()


def facts_of(count: int) -> list[dict[str, Any]]:
    return [{"number": i, "odd": bool(i % 2), "name": f"n{i:02d}"} for i in range(count)]


def fill(index: Index, count: int = COUNT) -> Embeddings:
    """Adds items, and returns them as they are stored."""
    e = random_embeddings(count)
    index.add_embeddings(e, [f"d{i}" for i in range(count)], facts_of(count))
    return e


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.3, -2.0), (-1.0, 0.0), (0.0, 1.0)])
def test_hits_are_those_of_search(open_index, weights):
    index = open_index(dtype="float32")
    documents, queries = fill(index), random_embeddings(3, seed=1)
    how = {"pooled_weight": weights[0], "late_weight": weights[1]}
    scores = smart_jax.score(queries, documents, **how)
    for hits, values in zip(index.search(queries, 7, **how), scores, strict=True):
        best = np.argsort(-values)[:7]
        assert [hit.id for hit in hits] == [f"d{i}" for i in best]
        np.testing.assert_allclose([hit.score for hit in hits], values[best], atol=1e-5)
        parts = [weights[0] * hit.pooled + weights[1] * hit.late for hit in hits]
        np.testing.assert_allclose(parts, values[best], atol=1e-5)
        assert hits[0].metadata == facts_of(COUNT)[best[0]]
    assert index.search(queries[:1], 99, where={"number": {"gte": 99}}) == [[]]


def test_half_precision_is_that_of_rounded_queries(open_index):
    index = open_index()
    documents, query = fill(index), random_embeddings(1, seed=1)
    hits = index.search(query, 5)[0]
    (scores,) = smart_jax.score(query, documents)
    assert max(abs(hit.score - scores[int(hit.id[1:])]) for hit in hits) < 1e-3
    queries = Embeddings(query.pooled, query.tokens.astype(np.float16).astype(np.float32), query.offsets)
    (rounded,) = smart_jax.score(queries, documents)
    hits = index.search(queries, 5)[0]
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(rounded)[::-1][:5], atol=1e-5)


def test_candidates_are_those_of_the_best_pooled_vectors(open_index):
    index = open_index(dtype="float32")
    documents, query = fill(index), random_embeddings(1, seed=1)
    first = np.argsort(-smart_jax.score(query, documents, late_weight=0)[0])[:12]
    (scores,) = smart_jax.score(query, documents)
    expected = [f"d{i}" for i in sorted(first, key=lambda i: -scores[i])[:5]]
    assert [hit.id for hit in index.search(query, 5, candidates=12)[0]] == expected
    assert len(index.search(query, 5, candidates=12, where={"number": {"lt": 3}})[0]) == 3


def test_conditions_are_those_of_python(open_index, monkeypatch):
    monkeypatch.setattr(EdgeCollection, "all_indexes", True)
    index, rng = open_index(), np.random.default_rng(3)
    facts = random_facts(rng, COUNT)
    index.add_embeddings(random_embeddings(COUNT), [f"d{i}" for i in range(COUNT)], facts)
    for _ in range(60):
        where = random_where(rng)
        expected = [f"d{i}" for i, each in enumerate(facts) if holds(each, where)]
        assert [item.id for item in index.items(where)] == expected, where
    assert [item.id for item in index.items({"id": {"gt": "d8"}})] == ["d9"]
    assert [item.id for item in index.items({"id": ["d3", "d2"], "file": {"exists": False}})] == ["d2", "d3"]
    assert len(index.search(random_embeddings(1), 99, where={"file": {"ne": "a.pdf"}})[0]) == COUNT
    with pytest.raises(ValueError, match="asks for 'like'"):
        index.search(random_embeddings(1), where={"a": {"like": 1}})


def test_update_delete_and_reopen(open_index):
    index = open_index()
    fill(index)
    assert index.update(["d1", "d2", "nowhere"], metadata={"odd": None, "new": [1, "a"]}) == 2
    assert [item.id for item in index.items({"odd": {"exists": False}})] == ["d1", "d2"]
    assert next(item.metadata for item in index.items({"new": {"contains": "a"}}))["number"] == 1
    assert index.update(where={"number": 3}, metadata={"only": 1}, replace=True) == 1
    index.add_embeddings(random_embeddings(2, seed=5), ["d4", "new"])  # another d4
    assert len(index) == COUNT + 1 and "new" in index and "d99" not in index
    assert index.delete(where={"or": [{"only": 1}, {"number": {"gte": 30}}]}) == 11
    before = [(item.id, item.metadata) for item in index.items()]
    index = open_index(model=None)
    assert [(item.id, item.metadata) for item in index.items()] == before
    info = index.info()
    assert (info.items, info.files, info.waiting) == (30, 0, 0) and info.model["name"] is None
    assert info.vectors["name"] == "float16" and info.tokens > 30
    assert index.delete(["d0"], where={"number": 1}) == 0 and index.delete(where={}) == 30
    assert index.search(random_embeddings(1)) == [[]]
    with pytest.raises(ValueError, match="pooled width 3"):
        index.add_embeddings(random_embeddings(1, pooled=3), ["x"])


def test_files_come_whole_and_are_passed_over(open_index, tmp_path):
    def pages(*texts: str) -> Any:
        return write_pdf(tmp_path / "a.pdf", [[(20, 300, 12, text)] for text in texts], [])

    index, path = open_index(), pages("revenue by region", "list of errors", "oil price")
    (tmp_path / "note.txt").write_text("oil pump bearing")
    (tmp_path / "bad.pdf").write_text("no pdf")
    what = [str(path), str(tmp_path / "note.txt"), str(tmp_path / "bad.pdf"), {"id": "x", "text": "alone"}]
    report = index.add(what, metadata={"year": 2024}, pdf="text")
    assert report.added == 5 and len(report.failed) == 1
    assert index.add(what, metadata={"year": 2024}, pdf="text").unchanged == 5
    assert index.add(what, metadata={"year": 2025}, pdf="text").described == 5
    hits = index.search("errors", 1, where={"year": 2025, "file": "a.pdf", "page": {"gte": 2}})
    assert (hits[0].id, hits[0].page, hits[0].file) == (f"{path}#2", 2, "a.pdf")
    assert hits[0].text.strip() == "list of errors" and index.info().files == 2
    pages("only page")
    assert index.add(str(path), pdf="text").added == 1
    assert [item.page for item in index.items({"file": "a.pdf"})] == [1]
    assert index.delete(where={"path": str(path.resolve())}) == 1 and index.info().files == 1


def test_a_killed_file_goes_on(open_index, tmp_path):
    texts = ["revenue by region", "list of errors", "oil price", "pump bearing"]
    path = write_pdf(tmp_path / "a.pdf", [[(20, 300, 12, text)] for text in texts], [])
    encoder, index = FakeEncoder(), open_index()
    with pytest.MonkeyPatch.context() as patch:
        original = FakeEncoder.encode_document

        def once(self: Any, items: Any, **how: Any) -> Any:
            if len(self.calls) >= 2:
                raise KeyboardInterrupt
            return original(self, items, **how)

        patch.setattr(FakeEncoder, "encode_document", once)
        with pytest.raises(KeyboardInterrupt):
            index.add(str(path), pdf="text", commit_every=1)
    assert len(index) == 0 and index.info().waiting == 2
    index = open_index(model=encoder)
    assert index.add(str(path), pdf="text", commit_every=1).added == 4 and len(encoder.calls) == 2
    assert [item.page for item in index.items()] == [1, 2, 3, 4] and index.info().waiting == 0


@pytest.mark.compiles
def test_evidence_sums_to_the_score(open_index):
    index = open_index(model="tiny", pool=2)
    index.add(["revenue by region and year", "a list of errors by code", "nothing"], ids=["a", "b", "c"])
    for hit in index.search("errors by code", k=2):
        evidence = hit.explain()
        total = evidence.pooled + sum(token.share for token in evidence.tokens)
        assert abs(total - hit.score) < 1e-5 and evidence.tokens[0].lift is not None
    index.delete([hit.id])
    with pytest.raises(ValueError, match="removed or replaced"):
        hit.explain()


def test_another_index_or_dtype_is_refused(open_index, place):
    fill(open_index(), 3)
    with pytest.raises(ValueError, match="float16"):
        open_index(dtype="float32")
    if place.startswith("qdrant"):
        with pytest.raises(ValueError, match="float16 or float32"):
            Index(place, dtype="int8")
        with pytest.raises(ValueError, match="has no folder"):
            _ = open_index().folder


def test_what_is_no_index_is_left_alone(tmp_path):
    place = f"qdrant://{tmp_path}/c/other"
    with pytest.raises(FileNotFoundError, match="name a model"):
        Index(place)
    collection = QdrantCollection(parse_address(place))
    collection._client.create_collection("other", vectors_config={})
    collection.close()
    with pytest.raises(ValueError, match="is no index"):
        Index(place, model=FakeEncoder())


@pytest.mark.parametrize(
    ("text", "url", "folder"),
    [
        ("qdrant://h/n", "http://h:6333", None),
        ("qdrant+https://h:1/p/n", "https://h:1/p", None),
        ("qdrant://:memory:/n", None, None),
        ("qdrant:///a/b/n", None, "/a/b"),
        ("qdrant://./b/n", None, "b"),
    ],
)
def test_addresses(text, url, folder, monkeypatch):
    monkeypatch.setenv("QDRANT_API_KEY", "secret")
    address = parse_address(text)
    assert (address.name, address.url, address.folder and str(address.folder)) == ("n", url, folder)
    assert address.client_options().get("api_key") == ("secret" if url else None)


@pytest.mark.parametrize("text", ["qdrant://h", "qdrant://h:x/n", "qdrant://h/a b", "qdrant://key@h/n"])
def test_addresses_of_another_form_are_refused(text):
    with pytest.raises(ValueError, match="host|key"):
        parse_address(text)


def test_tokens_are_brought_under_the_cap():
    assert (choose_width(1280, 128), choose_width(1280, 2048), choose_width(10**6, 2048)) == (128, 1024, 64)
    assert [choose_factor(n, 128) for n in (8191, 8192, 16384)] == [1, 2, 4]
    item = random_embeddings(1, longest=1, width=6)
    tokens = random_embeddings(9000, longest=1, width=6).tokens
    pooled, groups = pool_long(Embeddings(item.pooled, tokens, np.array([0, 9000])), 4)
    assert len(pooled.tokens) == groups.max() + 1 <= 2252
    for token in (0, 4500, 8999):
        mean = tokens[groups == groups[token]].mean(0)
        np.testing.assert_allclose(pooled.tokens[groups[token]], mean / np.linalg.norm(mean), atol=1e-6)


@pytest.mark.compiles
def test_long_documents_are_narrowed_and_pooled():
    """Takes the model's own vectors, under a cap of a few tokens; what is found is what the smaller vectors say."""
    encoder = smart_jax.load("tiny")
    texts = ["revenue by region and by year", "errors", "a list of errors by code and by the year that they were of"]
    with Index("qdrant://:memory:/papers", model=encoder, dtype="float32") as index:
        documents = encoder.encode_document(texts, dtype=np.float32)
        width, longest = documents.tokens.shape[1], int(documents.lengths.max())
        index._engine.store.cap = (longest // 4 + 2) * width
        index.add(texts, ids=["a", "b", "c"])
        vectors = index.info().vectors
        assert (vectors["model_width"], vectors["token_width"], vectors["pooled_items"]) == (width, width // 2, 2)
        assert index._engine.longest() * width // 2 < (longest // 4 + 2) * width
        narrowing = Narrowing.from_json(Narrowing.fit(documents, width // 2).to_json())
        queries, small = narrowing(encoder.encode_query(["list of errors"])), narrowing(documents)
        parts = [small[1]] + [pool_long(small[i], 2)[0] for i in (0, 2)]
        expected = dict(zip("bac", smart_jax.score(queries, Embeddings.concatenate(parts))[0], strict=True))
        for hit in index.search("list of errors"):
            assert abs(hit.score - expected[hit.id]) < 1e-5
            evidence = hit.explain()
            assert abs(evidence.pooled + sum(token.share for token in evidence.tokens) - hit.score) < 1e-5
