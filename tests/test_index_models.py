"""`smart_jax.Index` with models: pages as images and as texts, long texts in windows, encrypted PDFs."""

from __future__ import annotations

import sqlite3
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

import smart_jax
from smart_jax import Index
from smart_jax.index.text_windows import join, prefix_tokens, windows
from tests.small_bert import WORDS, write_sentence_transformer
from tests.small_pdf import encrypt_pdf, write_pdf

pytestmark = pytest.mark.compiles


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return write_sentence_transformer(tmp_path_factory.mktemp("bert"))


def long_text(words: int) -> str:
    return " ".join(np.random.default_rng(words).choice(WORDS, words).tolist())


def test_pages_as_images_of_the_embedded_model(tmp_path):
    pages = [[(10, 300, 30, word)] for word in ("oil", "pump", "region")]
    path = write_pdf(tmp_path / "a.pdf", pages, [])
    Image.new("RGB", (128, 128), "white").save(tmp_path / "white.png")
    with Index(tmp_path / "index", model="tiny") as index:
        assert index.add(tmp_path, metadata={"kind": "scan"}, dpi=36, commit_every=2).added == 4
        assert index.add(["a text", Image.new("RGB", (64, 64), "red")], ids=["text", "red"]).added == 2
        assert index.add(path, dpi=36, metadata={"kind": "scan"}).unchanged == 3
        assert index.add(path, dpi=36, metadata={"kind": "scan"}, pdf="both").added == 3  # in their place
        assert {item.page: item.text for item in index.items({"file": "a.pdf"})} == {1: "oil", 2: "pump", 3: "region"}
        assert index.add(path, dpi=36, metadata={"kind": "scan"}).added == 3
        assert len(index) == 6
    with Index(tmp_path / "index") as index:  # which knows its model
        hits = index.search("pump", k=9, where={"kind": "scan"})
        assert {hit.id for hit in hits} == {*(f"{path}#{i}" for i in (1, 2, 3)), f"{tmp_path}/white.png"}
        model = smart_jax.load("tiny")
        query, page = model.encode_query(["pump"]), model.encode_document([tmp_path / "white.png"])
        white = next(hit for hit in hits if hit.page is None)
        np.testing.assert_allclose(white.score, smart_jax.score(query, page)[0, 0], atol=2e-3)  # float16
        assert [hit.id for hit in index.search(Image.new("RGB", (64, 64), "red"), k=1)] == ["red"]
        assert [len(hits) for hits in index.search(["oil", "pump"], k=2)] == [2, 2]
    other = smart_jax.load("tiny")
    changed = other.with_params(type(other.params)(other.params), graphdef=other.graphdef)
    with Index(tmp_path / "index", model=changed) as index:
        assert index.search("pump", k=1)  # the same values


def check_shares(evidence, hit):
    np.testing.assert_allclose(evidence.score, hit.score, atol=1e-5)
    np.testing.assert_allclose(evidence.pooled + evidence.shares.sum(), evidence.score, atol=1e-9)


def test_hits_are_explained(tmp_path):
    path = write_pdf(tmp_path / "a.pdf", [[(10, 300, 30, word)] for word in ("oil", "pump", "region")], [])
    with Index(tmp_path / "index", model="tiny", pool=2) as index:
        Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
        index.add([path, {"id": "red", "image": str(tmp_path / "red.png")}], dpi=36)
        assert index.search("red", k=1, where={"id": "red"})[0].explain().document.pictures
        index.add(["errors by code"], ids=["note"])
        hit = index.search("pump", k=1, where={"file": "a.pdf", "page": 2})[0]
        evidence = hit.explain()
        check_shares(evidence, hit)
        assert evidence.boxes() and evidence.picture().width == 960 and evidence.lifts is not None
        traced = index.trace(hit.id)
        assert np.array_equal(traced.open_picture(0), evidence.document.open_picture(0))
        again = smart_jax.explain("pump", traced, model=index.model)
        np.testing.assert_allclose(again.score, evidence.score, atol=1e-6)
        np.testing.assert_array_equal(
            index.search(index.encode_query(["pump"]), k=9)[0][0].score, index.search("pump", k=9)[0].score
        )
        with pytest.raises(KeyError, match="nothing"):
            index.trace("nothing")
        note = index.search("errors", k=1, where={"id": "note"})[0]
        assert any(token.best.startswith("code") for token in note.explain().tokens)
        with pytest.raises(ValueError, match="as embeddings"):
            index.search(index.model.encode_query(["pump"]))[0][0].explain()
        path.rename(tmp_path / "elsewhere.pdf")
        assert not hit.explain().document.pictures  # numbers are left
        with sqlite3.connect(tmp_path / "index" / "index.db") as db:
            db.execute("UPDATE source SET path = ? WHERE file = 'a.pdf'", ("../elsewhere.pdf",))
        db.close()
        with pytest.raises(
            ValueError, match=r"the index names the file '\.\./elsewhere\.pdf', expected an absolute path"
        ):
            hit.explain()
        index.delete(["note"])
        with pytest.raises(ValueError, match="removed or replaced"):
            note.explain()


def test_words_of_long_texts_are_explained(bert, tmp_path):
    text = long_text(100)
    page = write_pdf(tmp_path / "a.pdf", [[(20, 380 - 12 * i, 9, text[70 * i : 70 * i + 70]) for i in range(12)]], [])
    with Index(tmp_path / "index", model=bert, pca=8) as index:
        (tmp_path / "long.txt").write_text(text)
        assert index.add([tmp_path / "long.txt", page]).added == 2
        hit = index.search("bearing report", k=1, where={"file": "long.txt"})[0]
        evidence = hit.explain()
        check_shares(evidence, hit)
        sources = evidence.document.sources
        ids = index.model.preprocessor.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        assert sources.spans[:, 1:].tolist() == [list(span) for span in ids["offset_mapping"]]
        assert [text[span.start : span.stop] for _, span in evidence.highlights()]
        on_page = index.search("bearing report", k=1, where={"file": "a.pdf"})[0].explain()
        assert on_page.boxes() and on_page.picture()


def test_long_texts_are_joined_from_windows(bert, tmp_path):
    model = smart_jax.load(bert)
    text = long_text(100)
    ids = model.preprocessor.tokenizer(text, add_special_tokens=False)["input_ids"]
    cut = windows(model.preprocessor, text)
    assert cut[0].first == 0 and cut[-1].last == len(ids) and all(w.last - w.first <= 22 for w in cut)
    assert all(after.first < before.last for before, after in pairwise(cut))
    broken = windows(model.preprocessor, "unknown " * 50 + text)
    assert broken[0].first == 0 and broken[-1].last == len(ids) and all(w.first < w.last for w in broken)
    for window in cut:
        own = model.preprocessor.tokenizer(window.text, add_special_tokens=False)["input_ids"]
        assert own == ids[window.first : window.last]
    parts = model.encode_document([{"text": window.text} for window in cut])
    joined = join(parts, cut, 0)
    assert len(joined.tokens) == len(ids)
    for t in range(len(ids)):
        depths = {i: min(t - w.first, w.last - 1 - t) for i, w in enumerate(cut) if w.first <= t < w.last}
        central = [i for i, depth in depths.items() if depth >= max(depths.values()) - 1]
        candidates = [parts[i].tokens[t - cut[i].first] for i in central]
        assert any(np.array_equal(joined.tokens[t], vector) for vector in candidates), t
    weights = np.array([w.last - w.first for w in cut], np.float32)
    mean = weights @ parts.pooled
    np.testing.assert_allclose(joined.pooled[0], mean / np.linalg.norm(mean), atol=1e-6)
    with Index(tmp_path / "index", model=bert) as index:
        (tmp_path / "long.txt").write_text(text)
        assert index.add([tmp_path / "long.txt", "oil pump"]).added == 2
        assert index.info().tokens == len(ids) + 2
        hit = index.search("oil pump", k=1)[0]
        assert hit.text == "oil pump"
        assert index.search(text, k=1)[0].text == text


def test_windows_leave_room_for_an_instruction(bert):
    preprocessor = smart_jax.load(bert).preprocessor
    text, given = long_text(60), "find the document : "
    cut = windows(preprocessor, text, instruction=given)
    prefix = prefix_tokens(preprocessor, given)
    assert prefix == 4 and max(w.last - w.first for w in cut) == 22 - prefix
    model = smart_jax.load(bert)
    parts = model.encode_document([{"text": w.text} for w in cut], instruction=given)
    assert len(join(parts, cut, prefix).tokens) == prefix + 60
    assert len(windows(preprocessor, long_text(18), instruction=given)) == 1


def test_texts_of_pdf_pages_and_a_password(bert, tmp_path):
    pages = [[(20, 300, 12, text)] for text in ("oil price", "pump bearing", "")]
    path = write_pdf(tmp_path / "a.pdf", pages, [])
    locked = encrypt_pdf(write_pdf(tmp_path / "b.pdf", pages, []), "secret")
    with Index(tmp_path / "index", model=bert, dtype="int8") as index:
        report = index.add([path, locked])
        assert report.added == 2  # the third page has no text
        assert "give its password" in report.failed[str(locked)]
        assert index.add(locked, password="wrong").failed
        assert index.add([{"file": locked, "password": "secret", "metadata": {"locked": True}}]).added == 2
        hit = index.search("pump", k=1, where={"locked": True})[0]
        assert (hit.file, hit.page, hit.text) == ("b.pdf", 2, "pump bearing")
        with pytest.raises(ValueError, match="reads texts only"):
            index.add(path, pdf="image")
        report = index.add(write_pdf(tmp_path / "c.pdf", [[]], []))
        assert "has no text" in report.failed[str(tmp_path / "c.pdf")]
