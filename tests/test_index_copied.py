"""`Index.copy_to`: between all engines and back, resumed after a kill, brought up to date, and made narrower."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import smart_jax
from smart_jax import Index
from smart_jax.index import copying
from smart_jax.index.qdrant import opening
from smart_jax.index.qdrant.store import QdrantStore
from tests.fake_encoder import FakeEncoder
from tests.indexes import random_embeddings
from tests.small_pdf import write_pdf
from tests.test_index_engines import address_of, facts_of, place  # noqa: F401

COUNT = 20
KINDS = ("id", "file", "path", "page", "metadata", "text")


def state(index: Index) -> dict[str, Any]:
    return {item.id: tuple(getattr(item, kind) for kind in KINDS) for item in index.items()}


@pytest.fixture
def source(tmp_path):
    with Index(tmp_path / "source", model=FakeEncoder(), dtype="float32") as index:
        texts = ["revenue by region", "list of errors", "oil price"]
        path = write_pdf(tmp_path / "a.pdf", [[(20, 300, 12, text)] for text in texts], [])
        (tmp_path / "note.txt").write_text("oil pump bearing")
        index.add([str(path), str(tmp_path / "note.txt"), {"id": "x", "text": "errors"}], pdf="text")
        e = random_embeddings(COUNT, pooled=16, width=16)
        index.add_embeddings(e, [f"d{i}" for i in range(COUNT)], facts_of(COUNT))
        yield index


@pytest.fixture
def small_runs(monkeypatch):
    monkeypatch.setattr(copying, "AT_ONCE", 2)


def test_there_and_back(source, place, tmp_path, small_runs, monkeypatch):  # noqa: F811
    expected, hits = state(source), source.search("list of errors", 9)
    report = source.copy_to(place)
    assert (report.added, report.unchanged) == (COUNT + 5, 0)
    with Index(place, model=FakeEncoder()) as there:
        assert state(there) == expected and there.info().files == 2
        for one, other in zip(there.search("list of errors", 9), hits, strict=True):
            assert (one.id, one.page) == (other.id, other.page) and abs(one.score - other.score) < 1e-5
        there.copy_to(tmp_path / "back")
    with Index(tmp_path / "back", model=FakeEncoder()) as back:
        assert state(back) == expected
        again = back.search("list of errors", 9)
        assert [(hit.id, hit.score) for hit in again] == [(hit.id, hit.score) for hit in hits]
    assert source.copy_to(place).unchanged == COUNT + 5
    source.update(["d1"], metadata={"new": "value"})
    source.delete(where={"file": "a.pdf"})
    source.add_embeddings(random_embeddings(1, seed=9, pooled=16, width=16), ["d2"])
    report = source.copy_to(place)
    assert (report.added, report.described, report.unchanged) == (1, 1, COUNT)
    with Index(place, model=FakeEncoder()) as there:
        assert state(there) == state(source) and there.info().files == 1


def test_a_killed_copy_goes_on(source, tmp_path, small_runs, monkeypatch):
    address, puts = address_of("client", tmp_path), 0
    original = copying._Copying._count

    def few(self: Any, *numbers: int) -> None:
        nonlocal puts
        puts += 1
        if puts == 12:
            raise KeyboardInterrupt
        original(self, *numbers)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(copying._Copying, "_count", few)
        source.copy_to(address)
    with Index(address, model=FakeEncoder()) as there:
        assert len(there) == COUNT + 1 and there.info().waiting == 2
    report = source.copy_to(address)
    assert (report.added, report.unchanged) == (2, COUNT + 3)
    with Index(address, model=FakeEncoder()) as there:
        assert state(there) == state(source) and there.info().waiting == 0


def test_another_index_is_not_written_over(source, tmp_path):
    with Index(tmp_path / "other", model=FakeEncoder()) as other:
        other.add(["a text"])
    with pytest.raises(ValueError, match="holds another index"):
        source.copy_to(tmp_path / "other")
    with pytest.raises(ValueError, match="holds another index"):
        source.copy_to(source.folder)


@pytest.mark.compiles
def test_narrower_tokens_come_back_with_what_made_them_so(tmp_path, monkeypatch):
    """Under a small cap, and from int8; the copies of the copy find the same, and take more."""
    encoder, texts = smart_jax.load("tiny"), ["revenue by region and by year", "errors", "a list of errors by code"]
    monkeypatch.setattr(opening, "QdrantStore", functools.partial(QdrantStore, cap=1200))
    places: list[str | Path] = [address_of("client", tmp_path), tmp_path / "back", address_of("client", tmp_path, "b")]
    with Index(tmp_path / "index", model=encoder, dtype="int8") as index:
        index.add(texts, ids=["a", "b", "c"])
        index.copy_to(places[0])
    hits = []
    for place, following in zip(places, [*places[1:], None], strict=True):  # noqa: F402
        with Index(place, model=encoder) as copied:
            assert copied.info().vectors["token_width"] < encoder.encode_query(["a"]).tokens.shape[1]
            hits.append(copied.search("list of errors"))
            evidence = hits[-1][0].explain()
            assert abs(evidence.pooled + sum(t.share for t in evidence.tokens) - hits[-1][0].score) < 1e-3
            if following is not None:
                copied.copy_to(following)
            copied.add(["one more text"], ids=["d"])
            assert {hit.id for hit in copied.search("one more text", 1)} == {"d"}
    scores = np.array([[hit.score for hit in each] for each in hits])
    assert [[hit.id for hit in each] for each in hits] == [[hit.id for hit in hits[0]]] * 3
    np.testing.assert_allclose(scores, scores[:1].repeat(3, 0), atol=1e-3)
