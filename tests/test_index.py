"""`smart_jax.Index` with embeddings at hand and with an encoder without a model: store, search, conditions, files."""

from __future__ import annotations

import itertools
import os
import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import smart_jax
from smart_jax import Embeddings, Index, reductions, search
from smart_jax.index.store import Store
from smart_jax.index.where import parse_where
from tests.conditions import holds, random_facts, random_where
from tests.fake_encoder import FakeEncoder
from tests.indexes import check_nothing_left_over, contents, random_embeddings
from tests.small_pdf import write_pdf

COUNT = 60


@pytest.fixture
def index(tmp_path):
    with Index(tmp_path / "index", model=FakeEncoder()) as opened:
        yield opened


@pytest.fixture
def filled(index):
    facts = [{"number": i, "odd": bool(i % 2), "name": f"n{i:02d}"} for i in range(COUNT)]
    index.add_embeddings(random_embeddings(COUNT), [f"d{i}" for i in range(COUNT)], facts)
    return index


def write_pages(path: Path, texts: list[str]) -> Path:
    return write_pdf(path, [[(20, 300, 12, text)] for text in texts], [])


def stored(e: Embeddings) -> Embeddings:
    return Embeddings.from_checked(e.pooled, e.tokens.astype(np.float16), e.offsets)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.3, 2.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)])
@pytest.mark.parametrize("few", [0, 2**15])
def test_hits_are_those_of_search(filled, monkeypatch, weights, few):
    monkeypatch.setattr("smart_jax.index.ranking.FEW_TOKENS", few)
    queries, how = random_embeddings(3, seed=1), {"pooled_weight": weights[0], "late_weight": weights[1]}
    dead, alive = {7, 8, 30}, np.ones(COUNT, bool)
    filled.delete([f"d{i}" for i in dead])
    alive[list(dead)] = False
    scores, places = search(queries, stored(random_embeddings(COUNT)), 9, allow=alive, **how)
    for hits, values, of_query in zip(filled.search(queries, 9, **how), scores, places, strict=True):
        assert [hit.id for hit in hits] == [f"d{i}" for i in of_query]
        np.testing.assert_allclose([hit.score for hit in hits], values, atol=1e-5)
        parts = [weights[0] * hit.pooled + weights[1] * hit.late for hit in hits]
        np.testing.assert_allclose(parts, values, atol=1e-5)
        assert hits[0].metadata["name"] == f"n{of_query[0]:02d}"
    odd = filled.search(queries[0], 3, where={"odd": True, "number": {"lt": 20}}, **how)[0]
    _, (expected,) = search(
        queries[0],
        stored(random_embeddings(COUNT)),
        3,
        allow=alive & (np.arange(COUNT) % 2 == 1) & (np.arange(COUNT) < 20),
        **how,
    )
    assert [hit.id for hit in odd] == [f"d{i}" for i in expected]


def test_candidates_are_those_of_the_best_pooled_vectors(filled, monkeypatch):
    monkeypatch.setattr("smart_jax.index.ranking.FEW_TOKENS", 0)
    query, documents = random_embeddings(1, seed=1), stored(random_embeddings(COUNT))
    _, (first,) = search(query, documents, 12, late_weight=0)
    mask = np.isin(np.arange(COUNT), first)
    _, (expected,) = search(query, documents, 5, allow=mask)
    assert [hit.id for hit in filled.search(query, 5, candidates=12)[0]] == [f"d{i}" for i in expected]
    assert len(filled.search(query, 5, candidates=12, where={"number": {"lt": 3}})[0]) == 3


def test_allow_leaves_documents_out_of_search():
    queries, documents = random_embeddings(2, seed=1), random_embeddings(40)
    allow = np.arange(40) % 3 == 0
    scores, places = search(queries, documents, 99, allow=allow)
    assert places.shape == (2, 14) and allow[places].all() and np.isfinite(scores).all()
    all_scores = smart_jax.score(queries, documents)
    np.testing.assert_allclose(scores, np.take_along_axis(all_scores, places, 1), atol=1e-5)
    _, rescored = search(queries, documents.astype(np.int8), 14, allow=allow, rescore=documents)
    assert {*rescored[0]} == {*places[0]}
    assert search(queries, documents, allow=np.zeros(40, bool))[1].shape == (2, 0)
    with pytest.raises(ValueError, match="one for each of 40 documents"):
        search(queries, documents, allow=allow[:-1])


def test_an_item_whose_file_has_been_altered_is_named(tmp_path):
    e = random_embeddings(COUNT)
    with Index(tmp_path / "index", model="tiny") as index:
        index.add_embeddings(e, [f"d{i}" for i in range(COUNT)], metadata=[{"odd": i % 2} for i in range(COUNT)])
        (path,) = (tmp_path / "index" / "segments").glob("*.pooled")
        values = np.fromfile(path, np.float32)
        values[3 * e.pooled.shape[1]] = np.nan
        values.tofile(path)
        for where in (None, {"odd": 1}):
            with pytest.raises(ValueError, match="item 3 of segment 1: its vectors hold NaN"):
                index.search(e[:1], 2, where=where)
        assert index.search(e[:1], 2, where={"odd": 0})


def test_int8_and_several_segments(tmp_path):
    e, query = random_embeddings(COUNT), random_embeddings(1, seed=1)
    with Index(tmp_path / "index", model="tiny", dtype="int8") as index:
        index._engine.store._segment_bytes = 100
        for first in range(0, COUNT, 20):
            index.add_embeddings(e[first : first + 20], [f"d{i}" for i in range(first, first + 20)])
        assert index.info().segments == 3 and index.info().vectors["name"] == "int8"
        small = e.astype(np.int8)
        _, (expected,) = search(query, small, 7)
        assert [hit.id for hit in index.search(query, 7)[0]] == [f"d{i}" for i in expected]
        index.delete([f"d{i}" for i in range(0, COUNT, 2)])
        before = contents(index)
        index.compact()
        assert contents(index) == before and index.info().removed == 0
        check_nothing_left_over(index)


def test_tokens_are_pooled_on_their_way_in(tmp_path):
    texts = ["oil price pump bearing", "revenue by region"]
    with Index(tmp_path / "index", model=FakeEncoder(), pool=2) as index:
        index.add(texts, ids=["a", "b"])
        assert index.info().tokens == 4
        pooled = smart_jax.reductions.pool_tokens(FakeEncoder().encode_document(texts, dtype=np.float16), 2)
        (expected,) = smart_jax.score(FakeEncoder().encode_query(["oil region"]), pooled)
        scores = {hit.id: hit.score for hit in index.search("oil region")}
        np.testing.assert_allclose([scores["a"], scores["b"]], expected, atol=2e-3)
    with pytest.raises(ValueError, match="pool 2, not 3"):
        Index(tmp_path / "index", pool=3)
    with pytest.raises(ValueError, match="at least 1"):
        Index(tmp_path / "index", pool=0.5)


def test_update_delete_and_compact(filled):
    assert filled.update(["d1", "d2", "nowhere"], metadata={"odd": None, "new": [1, "a"]}) == 2
    assert [item.id for item in filled.items({"odd": {"exists": False}})] == ["d1", "d2"]
    assert next(item.metadata for item in filled.items({"new": {"contains": "a"}})) == {
        "number": 1,
        "name": "n01",
        "new": [1, "a"],
    }
    assert filled.update(where={"number": 3}, metadata={"only": 1}, replace=True) == 1
    filled.add_embeddings(random_embeddings(2, seed=5), ["d4", "new"])  # another d4
    assert len(filled) == COUNT + 1 and filled.info().removed == 1
    assert filled.delete(where={"or": [{"only": 1}, {"number": {"gte": 50}}]}) == 11
    before = contents(filled)
    filled.compact()
    assert contents(filled) == before and filled.info().removed == 0
    check_nothing_left_over(filled)
    assert filled.delete(where={}) == len(before) and filled.search(random_embeddings(1)) == [[]]
    filled.compact()
    check_nothing_left_over(filled)
    with pytest.raises(ValueError, match="by ids or by where"):
        filled.delete()


@pytest.mark.parametrize("indexed", [False, True])
def test_conditions_are_those_of_python(index, monkeypatch, indexed):
    if indexed:
        monkeypatch.setattr("smart_jax.index.local.INDEXED_FROM", 0)
    rng = np.random.default_rng(3)
    facts = random_facts(rng, 80)
    index.add_embeddings(random_embeddings(80), [str(i) for i in range(80)], facts)
    query = random_embeddings(1)
    sizes = set()
    for _ in range(150):
        where = random_where(rng)
        expected = {str(i) for i, each in enumerate(facts) if holds(each, where)}
        assert {hit.id for hit in index.search(query, 80, where=where)[0]} == expected, where
        sizes.add(len(expected))
    assert len(sizes) > 20 and len(index) == 80
    if indexed:
        with index._engine.store.catalog.reading() as db:
            sql = parse_where({"year": {"gte": 1}}).sql
            plan = db.execute(f"EXPLAIN QUERY PLAN SELECT row FROM item WHERE {sql}", (1,)).fetchall()
        assert "USING INDEX metadata year" in plan[0][-1]


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"a": {"like": 1}}, "asks for 'like': known are"),
        ({"a": {}}, "empty mapping"),
        ({"or": {"a": 1}}, "'or' takes a list"),
        ({'a"b': 1}, "double quote"),
        ({"a": {"in": 1}}, "give a list"),
        ({"a": None}, "compared with None"),
        ({"a": 2**63}, "integers have at most 64 bits"),
        ({"a": {"in": [-(2**63) - 1]}}, "integers have at most 64 bits"),
        ({"file": {"contains": "a"}}, "holds no list"),
        ([], "expected a mapping"),
    ],
)
def test_conditions_of_another_form_are_refused(unchecked, where, message):
    with pytest.raises((ValueError, TypeError), match=message):
        parse_where(where)


def test_a_second_writer_is_refused_by_name(filled):
    with filled._engine.store.writing(), Index(filled.folder) as other:
        with pytest.raises(ValueError, match=f"being written to by process {os.getpid()} .* since "):
            other.delete(["d1"])
        assert len(other.search(random_embeddings(1), 3)[0]) == 3
    assert filled.delete(["d1"]) == 1


def test_readers_see_whole_states_beside_a_writer(tmp_path):
    """Batches of ten come and go, and are compacted: a reader always sees whole batches."""
    with Index(tmp_path / "index", model=FakeEncoder()) as index:
        done, torn, searches = threading.Event(), [], []
        index.add_embeddings(random_embeddings(10), [f"0-{i}" for i in range(10)], {"batch": 0})

        def read() -> None:
            with Index(tmp_path / "index") as reader:
                while not done.is_set():
                    (hits,) = reader.search(random_embeddings(1), 100)
                    sizes = [
                        len(list(group)) for _, group in itertools.groupby(sorted(h.metadata["batch"] for h in hits))
                    ]
                    searches.append(len(hits))
                    torn.extend(size for size in sizes if size != 10)

        readers = [threading.Thread(target=read) for _ in range(2)]
        for thread in readers:
            thread.start()
        for batch in range(1, 25):
            index.add_embeddings(random_embeddings(10, batch), [f"{batch}-{i}" for i in range(10)], {"batch": batch})
            index.delete(where={"batch": {"lt": batch - 2}})
            if batch % 4 == 0:
                index.compact()
        done.set()
        for thread in readers:
            thread.join()
        assert not torn and len(searches) >= 4 and set(searches) <= {10, 20, 30, 40}
        check_nothing_left_over(index)


def test_other_folders_files_and_models_are_refused(index, tmp_path):
    with pytest.raises(FileNotFoundError, match="no index in"):
        Index(tmp_path / "nowhere")
    (tmp_path / "other").mkdir()
    sqlite3.connect(tmp_path / "other" / "index.db").execute("CREATE TABLE a (b)").connection.close()
    with pytest.raises(ValueError, match="not the catalog of an index"):
        Index(tmp_path / "other", model="tiny")
    (tmp_path / "other" / "index.db").write_bytes(b"no database " * 100)
    with pytest.raises(ValueError, match="cannot be read as a catalog"):
        Index(tmp_path / "other", model="tiny")
    index.add(["oil price"])
    with Index(index.folder, model=FakeEncoder(noise=0.5)) as other:
        with pytest.raises(ValueError, match="made with another model"):
            other.search("oil")
        with pytest.raises(ValueError, match="made with another model"):
            other.add(["pump"])
        with pytest.raises(ValueError, match="made with another model"):
            other.add(["oil price"])  # which is there, so that nothing is encoded
    other = Index(index.folder, model=FakeEncoder().with_adapter("a"))
    with other, pytest.raises(ValueError, match="adapter None, not"):
        other.search("oil")
    other = Index(index.folder, model=FakeEncoder().with_adapter("a"))
    with other, pytest.raises(ValueError, match="adapter None, not"):
        other.add(["oil price"])
    with Index(index.folder, model=FakeEncoder(noise=0.5), force=True) as other:
        assert other.add(["oil price"]).unchanged == 1
    with Index(index.folder, model=FakeEncoder(noise=0.5), force=True) as other:
        assert other.add(["pump"]).added == 1 and len(other.search("oil")) == 2
    other = Index(index.folder, model=FakeEncoder(width=8), force=True)
    with other, pytest.raises(ValueError, match="width"):  # whatever is forced
        other.search("oil")
    with pytest.raises(ValueError, match="instruction None, not 'Find it"):
        Index(index.folder, instruction="Find it.")


def test_a_model_of_another_name_is_checked_where_nothing_has_changed(tmp_path, monkeypatch):
    loaded = []

    def load(name, *, adapter=None, **options):
        loaded.append((str(name), adapter))
        model = FakeEncoder(noise=0.5 if name == "other" else 0.0)
        return model if adapter is None else model.with_adapter(adapter)

    monkeypatch.setattr("smart_jax.index.index_model.load", load)
    (tmp_path / "a.txt").write_text("oil price")
    folder, file = tmp_path / "index", tmp_path / "a.txt"
    with Index(folder, "own") as index:
        assert index.add(file).added == 1
    loaded.clear()
    for how in ({}, {"model": "own"}, {"model": Path("own")}, {"model": "other", "force": True}):
        with Index(folder, **how) as index:
            assert index.add(file).unchanged == 1
    assert not loaded  # nothing is encoded, and the names are the index's
    for how in ({"model": "other"}, {"model": "own", "adapter": "a"}, {"adapter": "a"}):
        with Index(folder, **how) as index, pytest.raises(ValueError, match="made with another model or adapter"):
            index.add(file)
    assert loaded == [("other", None), ("own", "a"), ("own", "a")]
    with Index(folder, "elsewhere/own") as index:  # the same one, from another place
        assert index.add(file).unchanged == 1


def test_a_segment_that_was_cut_short_is_named(filled):
    folder = filled.folder
    path = folder / "segments" / "000001.tokens"
    os.truncate(path, 10)
    with Index(folder) as other, pytest.raises(ValueError, match="000001.tokens' has 10 bytes"):
        other.search(random_embeddings(1))


def test_add_passes_over_what_is_there(index, tmp_path):
    texts = ["oil price", "pump bearing", "grease"]
    report = index.add(texts, ids=["a", "b", "c"], metadata=[{"n": 1}, None, {"n": 3}])
    assert (report.added, report.unchanged, report.failed) == (3, 0, {})
    model = index.model
    calls = len(model.calls)
    report = index.add(texts, ids=["a", "b", "c"], metadata=[{"n": 1}, {"n": 2}, {"n": 3}])
    assert (report.added, report.unchanged, report.described) == (0, 2, 1) and len(model.calls) == calls
    assert index.add([{"id": "a", "text": "oil and water", "metadata": {"n": 9}}]).added == 1
    hit = index.search("water")[0]
    assert (hit.id, hit.metadata, hit.text, hit.page, hit.file) == ("a", {"n": 9}, "oil and water", None, None)
    assert len(index) == 3
    assert model.calls[-1][0] == "query"
    np.testing.assert_allclose(hit.late, 1.0, atol=1e-3)
    (tmp_path / "x.txt").write_text("of the file")
    path = (tmp_path / "x.txt").as_posix()
    assert index.add([{"id": path, "text": "of the item"}, path]).added == 2  # the later one takes the other's place
    assert len(index) == 4 and index.search("of the file")[0].text == "of the file"
    with pytest.raises(ValueError, match="'x' is given twice"):
        index.add(["one", "two"], ids=["x", "x"])
    with pytest.raises(ValueError, match="one for each of 2"):
        index.add(["one", "two"], ids=["x"])
    with pytest.raises(ValueError, match="has another meaning"):
        index.add(["one"], metadata={"page": 3})


def test_files_come_whole_and_are_passed_over_until_they_change(index, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("papers").mkdir()
    write_pages(Path("papers/a.pdf"), ["oil price", "pump", "grease"])
    write_pages(Path("papers/b.pdf"), ["bearing", "region"])
    Path("papers/notes.txt").write_text("revenue by region")
    Path("papers/broken.pdf").write_bytes(b"%PDF-1.4 nothing")
    Image.new("RGB", (30, 30)).save("papers/photo.png")
    report = index.add("papers", metadata={"year": 2024}, commit_every=2)
    assert report.added == 6 and sorted(report.failed) == ["papers/broken.pdf", "papers/photo.png"]
    assert "reads texts only" in report.failed["papers/photo.png"] and "damaged" in report.failed["papers/broken.pdf"]
    hit = index.search("pump", k=1)[0]
    assert (hit.id, hit.file, hit.page, hit.text) == ("papers/a.pdf#2", "a.pdf", 2, "pump")
    assert [h.id for h in index.search("pump", where={"file": "b.pdf", "page": 2})] == ["papers/b.pdf#2"]
    calls = len(index.model.calls)
    again = index.add("papers/*.pdf", metadata={"year": 2024})
    assert (again.added, again.unchanged, len(again.failed)) == (0, 5, 1)
    assert index.add("papers/a.pdf", metadata={"year": 2025}).described == 3
    assert index.add("papers/a.pdf").unchanged == 3  # and keep what they had
    assert {item.metadata["year"] for item in index.items({"file": "a.pdf"})} == {2025}
    assert len(index.model.calls) == calls
    write_pages(Path("papers/a.pdf"), ["oil", "crude"])
    assert index.add(str(tmp_path / "papers" / "a.pdf")).added == 2
    assert {item.id: item.text for item in index.items({"file": "a.pdf"})} == {
        "papers/a.pdf#1": "oil",
        "papers/a.pdf#2": "crude",
    } or len(list(index.items({"file": "a.pdf"}))) == 2
    assert index.delete(where={"file": "a.pdf"}) == 2
    assert index.add("papers/a.pdf").added == 2  # it is gone, and comes back
    index.compact()
    check_nothing_left_over(index)
    with pytest.raises(FileNotFoundError, match="no file 'nowhere"):
        index.add("nowhere/*.pdf")


class DyingEncoder(FakeEncoder):
    """Ends with an error that is nobody's fault at the second call."""

    def encode_document(self, items, **options):
        if len(self.calls) == 1:
            raise RuntimeError("the device is gone")
        return super().encode_document(items, **options)


def test_an_add_that_was_cut_off_goes_on(tmp_path):
    path = write_pages(tmp_path / "a.pdf", ["oil", "pump", "grease", "bearing", "region"])
    with Index(tmp_path / "index", model=DyingEncoder()) as index:
        with pytest.raises(RuntimeError, match="the device is gone"):
            index.add(path, commit_every=2)
        assert len(index) == 0 and index.info().waiting == 2 and index.search("oil") == []
    with Index(tmp_path / "index", model=FakeEncoder()) as index:
        assert index.add(path, commit_every=2).added == 5
        assert [count for _, count, _ in index.model.calls] == [2, 1]  # two were there
        assert [item.page for item in sorted(index.items(), key=lambda item: item.page)] == [1, 2, 3, 4, 5]
        assert index.info().waiting == 0
        write_pages(tmp_path / "a.pdf", ["new"] * 3)
    with Index(tmp_path / "index", model=DyingEncoder()) as index:
        with pytest.raises(RuntimeError):
            index.add(path, commit_every=2)
        assert len(index) == 5 and index.search("oil")[0].text == "oil"  # the former state
        index.compact()
        assert index.info().waiting == 0 and len(index) == 5
        check_nothing_left_over(index)


class PickyEncoder(FakeEncoder):
    def encode_document(self, items, **options):
        if any("bad" in items[i].texts for i in range(len(items))):
            raise ValueError("this one is bad")
        return super().encode_document(items, **options)


def test_an_item_that_the_model_refuses_keeps_no_other(tmp_path):
    with Index(tmp_path / "index", model=PickyEncoder()) as index:
        report = index.add(["oil", "bad", "pump", "grease"], ids=["a", "b", "c", "d"])
        assert report.added == 3 and report.failed == {"b": "this one is bad"}
        assert [item.id for item in index.items()] == ["a", "c", "d"]


def test_a_full_disk_changes_nothing(filled, monkeypatch):
    before, calls, write = contents(filled), itertools.count(), os.pwrite

    def full(handle, data, place):
        if next(calls) >= 2:
            raise OSError(28, "No space left on device")
        return write(handle, data[: len(data) // 2], place)  # as a disk may that is nearly full

    with monkeypatch.context() as patched:
        patched.setattr("smart_jax.index.segment_files.os.pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            filled.add_embeddings(random_embeddings(9, seed=2), [f"d{i}" for i in range(9)])
    assert contents(filled) == before
    filled.delete(["nowhere"])
    check_nothing_left_over(filled)
    filled.add_embeddings(random_embeddings(9, seed=2), [f"d{i}" for i in range(9)])
    assert len(filled) == COUNT


def test_a_damaged_page_keeps_no_other(index, tmp_path):
    path = write_pages(tmp_path / "a.pdf", ["oil", "pump", "grease"])
    content = path.read_bytes()
    assert content.count(b"/Kids [3 0 R 5 0 R 7 0 R]") == 1
    path.write_bytes(content.replace(b"/Kids [3 0 R 5 0 R 7 0 R]", b"/Kids [3 0 R 1 0 R 7 0 R]"))  # no page
    report = index.add(path)
    assert report.added == 2 and list(report.failed) == [f"{path}#2"] and "page 2 of" in report.failed[f"{path}#2"]
    assert {item.page: item.text for item in index.items()} == {1: "oil", 3: "grease"}
    assert index.add(path).unchanged == 2


def test_store_is_made_once(tmp_path):
    stores = [Store(tmp_path / "s", create=True) for _ in range(2)]
    assert stores[0].catalog.get("format") == stores[1].catalog.get("format")
    for store in stores:
        store.close()


def test_principal_components_of_the_first_items(tmp_path):
    words = ["oil", "pump", "bearing", "grease", "price", "report", "table", "water", "region", "error"]
    rng = np.random.default_rng(5)
    texts = [" ".join(rng.choice(words, 5)) for _ in range(40)]
    model = FakeEncoder()
    with Index(tmp_path / "index", model=model, pca=6, dtype="float32") as index:
        with pytest.raises(ValueError, match="first items have 5 tokens, too few to find 6 .* at least 24"):
            index.add(texts[:1])
        index.add(texts[:20], ids=[str(i) for i in range(20)])
        index.add_embeddings(model.encode_document(texts[20:]), [str(i) for i in range(20, 40)])
        pca = reductions.PCA.fit(model.encode_document(texts[:20]), 6)
        scores, places = search(pca(model.encode_query(["grease pump"])), pca(model.encode_document(texts)), 9)
        for query in ("grease pump", model.encode_query(["grease pump"])):
            hits = index.search(query, 9) if isinstance(query, str) else index.search(query, 9)[0]
            np.testing.assert_allclose([hit.score for hit in hits], scores[0], atol=2e-3)  # components are float16
        assert {hits[0].id, hits[1].id} == {str(i) for i in places[0][:2]}
        assert index._engine.store.files.format.token_width == 6
    with pytest.raises(ValueError, match="made with pca 6, not 7"):
        Index(tmp_path / "index", pca=7)
    with Index(tmp_path / "index", model=model) as index:
        assert len(index.search("oil", 3)) == 3 and len(index) == 40
    with Index(tmp_path / "wide", model=model, pca=16) as index, pytest.raises(ValueError, match="16 components"):
        index.add(texts)
    for wrong in (0, True):
        with pytest.raises(ValueError, match="must be at least 1"):
            Index(tmp_path / "none", model=model, pca=wrong)
    with pytest.raises(ValueError, match=r"docs/qdrant.md"):
        Index("qdrant://:memory:/pages", model=model, pca=6)
