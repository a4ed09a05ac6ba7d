"""`smart_jax.serve`: an index on the web, asked over HTTP as clients do."""

from __future__ import annotations

import asyncio
import base64
import io
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image

import smart_jax
from smart_jax.serve import Limits, create_app, serve, serving
from smart_jax.serve.app import STATIC
from smart_jax.serve.batching import Batcher
from smart_jax.serve.guard import _host
from smart_jax.serve.searching import Search
from smart_jax.serve.service import Service
from smart_jax.serve.uploads import harmless_name
from tests.fake_encoder import FakeEncoder
from tests.small_pdf import write_pdf

TOKEN = "a long secret"
ALLOWED = {"Authorization": f"Bearer {TOKEN}"}
WORDS = ("oil", "pump", "region")

pytestmark = pytest.mark.compiles


def make_index(folder: Path) -> smart_jax.Index:
    """Three pages of a PDF and two texts, by the embedded model."""
    pages = write_pdf(folder / "a.pdf", [[(10, 300, 30, word)] for word in WORDS], [])
    index = smart_jax.Index(folder / "index", model="tiny")
    index.add([pages], dpi=36, metadata={"kind": "scan"})
    texts = ["errors by code", "<b>pump</b> & <script>alert(1)</script>"]
    index.add([{"text": text} for text in texts], ids=["note", "hostile"], metadata={"year": 2024})
    return index


def text_index(folder: Path, texts=("oil and gas", "a pump", "region by region"), **options) -> smart_jax.Index:
    """An index of texts by an encoder that needs no model."""
    index = smart_jax.Index(folder / "index", model=FakeEncoder(**options))
    index.add([{"text": text} for text in texts], ids=[f"t{i}" for i in range(len(texts))])
    return index


@contextmanager
def asking(index: smart_jax.Index, **options):
    """A client of a server of the index."""
    with serving(index, **{"warm_up": False, **options}) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server that nothing is changed on, its client, and the index."""
    with make_index(tmp_path_factory.mktemp("served")) as index, asking(index) as client:
        yield client, index


@pytest.fixture
def changed(tmp_path):
    """A client of a server that has a token, and the index."""
    with text_index(tmp_path) as index, asking(index, token=TOKEN) as client:
        yield client, index


def message(answer: httpx.Response, status: int) -> str:
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["status"] == status
    return answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        ({}, {}),
        ({"mode": "pooled", "weights": {"pooled": 2}}, {"late_weight": 0}),  # the weights are the hybrid score's
        ({"mode": "late", "weights": {"late": 2}, "k": 2}, {"pooled_weight": 0}),
        (
            {"weights": {"pooled": 0.5, "late": 2}, "candidates": 2, "k": 2},
            {"pooled_weight": 0.5, "late_weight": 2, "candidates": 2},
        ),
        ({"where": {"kind": "scan"}}, {}),
    ],
)
def test_a_search_is_that_of_the_index(served, asked, options):
    client, index = served
    answer = client.post("/search", json={"query": "pump", **asked})
    hits = index.search("pump", asked.get("k", 10), where=asked.get("where"), **options)
    found = answer.json()["hits"]
    assert [hit["id"] for hit in found] == [hit.id for hit in hits]
    for name in ("score", "pooled", "late"):
        np.testing.assert_allclose([hit[name] for hit in found], [getattr(hit, name) for hit in hits], atol=1e-5)
    assert [(hit["file"], hit["page"], hit["metadata"]) for hit in found] == [
        (h.file, h.page, h.metadata) for h in hits
    ]


def test_evidence_is_made_again_where_its_file_has_changed(unchecked, tmp_path):
    made, file = [], tmp_path / "page.txt"
    file.write_text("one")
    hit = SimpleNamespace(id="a", score=1.0, path=str(file), explain=lambda: made.append(0) or len(made))
    service = Service(SimpleNamespace(search=lambda *_, **__: [hit]), tmp_path, None, Limits())
    assert [service.explain(Search({"text": "oil"}), "a") for _ in range(2)] == [1, 1]
    file.write_text("another")
    assert service.explain(Search({"text": "oil"}), "a") == 2


def test_searches_with_candidates_are_answered_together_where_k_is_equal():
    """A first stage chooses at least k candidates: another k may find others."""
    few, many = (Search({"text": "oil"}, k, candidates=2) for k in (2, 9))
    assert few.group != many.group and few.group == few._replace(query={"text": "gas"}).group
    assert few._replace(candidates=None).group == many._replace(candidates=None).group


def test_searches_that_come_together_are_those_alone(tmp_path):
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(40)]
    texts = [" ".join(rng.choice(words, 5).tolist()) for _ in range(60)]
    queries = [
        {
            "query": " ".join(rng.choice(words, 3).tolist()),
            "k": int(rng.integers(1, 9)),
            "where": {"page": {"exists": False}} if i % 3 else {"id": [f"t{i}", f"t{i + 1}"]},
            "mode": ("hybrid", "pooled", "late")[i % 3],
        }
        for i in range(48)
    ]
    queries[7]["where"] = {"id": {"like": "t"}}  # which is refused, alone
    with text_index(tmp_path, texts) as index, asking(index, limits=Limits(window=0.2)) as client:
        index.model.calls.clear()
        with ThreadPoolExecutor(len(queries)) as threads:
            answers = list(threads.map(lambda query: client.post("/search", json=query), queries))
        together = [count for side, count, _ in index.model.calls if side == "query"]
        assert sum(together) == len(queries) and max(together) >= 8
        assert "known are" in message(answers.pop(7), 422)
        for query, answer in zip(queries[:7] + queries[8:], answers, strict=True):
            weights = {"pooled": {"late_weight": 0}, "late": {"pooled_weight": 0}, "hybrid": {}}[query["mode"]]
            alone = index.search(query["query"], query["k"], where=query["where"], **weights)
            assert [(hit["id"], hit["score"]) for hit in answer.json()["hits"]] == [(h.id, h.score) for h in alone]
        batches = re.search(r"smart_jax_serve_batch_count (\d+)", client.get("/metrics").text)
        assert int(batches[1]) == len(together)


def test_hits_are_explained(served):
    client, index = served
    hits = client.post("/search", json={"query": "pump", "k": 2}).json()["hits"]
    page = next(hit for hit in client.post("/search", json={"query": "pump"}).json()["hits"] if hit["page"] == 2)
    evidence = client.post("/evidence", json={"query": "pump", "id": page["id"]}).json()
    expected = next(hit for hit in index.search("pump") if hit.id == page["id"]).explain()
    np.testing.assert_allclose(
        evidence["pooled"] + sum(t["share"] for t in evidence["tokens"]), page["score"], atol=1e-5
    )
    np.testing.assert_allclose([t["lift"] for t in evidence["tokens"]], [t.lift for t in expected.tokens], atol=1e-6)
    assert "".join(token["text"] for token in evidence["tokens"] if token["word"]) == "pump"
    assert [token["joined"] for token in evidence["tokens"] if token["word"]] == [False, True, True]
    assert evidence["pictures"] == ["page"] and evidence["tokens"][2]["boxes"] and not evidence["texts"]
    hostile = client.post("/evidence", json={"query": "pump", "id": "hostile"}).json()
    assert hostile["texts"] == ["<b>pump</b> & <script>alert(1)</script>"] and not hostile["pictures"]

    ids = [hit["id"] for hit in hits]
    compared = client.post("/compare", json={"query": "pump", "above": ids[0], "below": ids[1]}).json()
    np.testing.assert_allclose(compared["score"], hits[0]["score"] - hits[1]["score"], atol=1e-5)
    shares = sum(token["share"] for token in compared["tokens"])
    np.testing.assert_allclose(compared["pooled"] + shares, compared["score"], atol=1e-9)

    drawn = client.post("/evidence.png", json={"query": "pump", "id": page["id"]})
    assert drawn.headers["content-type"] == "image/png"
    assert Image.open(io.BytesIO(drawn.content)).width == 960
    assert "no item 'nothing'" in message(client.post("/evidence", json={"query": "pump", "id": "nothing"}), 404)


def test_items_and_their_pictures(served):
    client, index = served
    page = next(index.items({"page": 2}))
    picture = client.get("/picture", params={"id": page.id, "width": 100})
    assert picture.headers["content-type"] == "image/jpeg"
    assert Image.open(io.BytesIO(picture.content)).width == 100
    again = {"If-None-Match": picture.headers["etag"]}
    assert client.get("/picture", params={"id": page.id, "width": 100}, headers=again).status_code == 304
    message(client.get("/picture", params={"id": page.id, "number": 1}), 404)
    message(client.get("/picture", params={"id": "note"}), 404)
    message(client.get("/picture", params={"id": "../../etc/passwd"}), 404)
    first, second = (client.get("/items", params={"limit": 3, "offset": offset}).json() for offset in (0, 3))
    assert (len(first["items"]), first["more"], len(second["items"]), second["more"]) == (3, True, 2, False)
    assert [item["id"] for item in first["items"] + second["items"]] == [item.id for item in index.items()]
    found = client.get("/items", params={"where": '{"year": 2024}'}).json()["items"]
    assert [item["id"] for item in found] == ["note", "hostile"]
    message(client.get("/items", params={"where": "{"}), 422)
    assert client.get("/item", params={"id": "note"}).json()["text"] == "errors by code"
    info = client.get("/info").json()
    assert (info["items"], info["files"], info["changes"], info["model"]) == (5, 1, False, "tiny")
    assert str(index.folder) not in client.get("/info").text


def test_embeddings_in_the_shape_of_other_services(served):
    client, index = served
    texts = ["errors by code", "pump"]
    expected = index.model.encode_document(texts)
    answer = client.post("/v1/embeddings", json={"model": "any", "input": texts}).json()
    assert answer["object"] == "list" and [each["index"] for each in answer["data"]] == [0, 1]
    np.testing.assert_allclose([each["embedding"] for each in answer["data"]], expected.pooled, atol=1e-5)
    assert answer["usage"]["total_tokens"] == len(expected.tokens)
    coded = client.post("/v1/embeddings", json={"input": "pump", "encoding_format": "base64"}).json()["data"][0]
    np.testing.assert_allclose(
        np.frombuffer(base64.b64decode(coded["embedding"]), "<f4"), expected.pooled[1], atol=1e-5
    )
    wanted = {"input": {"text": "pump"}, "return_multivector": True, "task": "retrieval.query"}
    tokens = client.post("/v1/embeddings", json=wanted).json()["data"][0]["embeddings"]
    np.testing.assert_allclose(tokens, index.encode_query(["pump"]).tokens, atol=1e-5)
    assert "vectors of this model" in message(client.post("/v1/embeddings", json={"input": "a", "dimensions": 7}), 422)
    message(client.post("/v1/embeddings", json={"input": []}), 422)
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"

    picture = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(picture, "PNG")
    sent = "data:image/png;base64," + base64.b64encode(picture.getvalue()).decode()
    red = client.post("/v1/embeddings", json={"input": [{"image": sent}]}).json()["data"][0]["embedding"]
    own = index.model.encode_document([Image.new("RGB", (64, 64), "red")]).pooled[0]
    np.testing.assert_allclose(red, own, atol=1e-5)
    for wrong in ("https://example.org/a.png", "/etc/hostname", "aGVsbG8="):
        message(client.post("/search", json={"query": {"image": wrong}}), 422)


def test_what_nobody_waits_for_is_left_out_of_a_batch():
    asked = []

    async def answer(batch):
        asked.append(list(batch))
        return batch

    async def ask_two():
        batcher = Batcher(answer, most=8, window=0.01)
        batcher.start()
        gone = asyncio.create_task(batcher.ask("gone"))
        await asyncio.sleep(0)  # it waits now
        gone.cancel()
        assert await batcher.ask("here") == "here"
        await batcher.stop()

    asyncio.run(ask_two())
    assert asked == [["here"]]


def test_a_text_is_never_a_path(served, tmp_path, monkeypatch):
    client, index = served
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    monkeypatch.chdir(tmp_path)  # the server is of this process
    as_text = index.model.encode_document([{"text": "red.png"}]).pooled[0]
    for task in ("document", "query"):
        answer = client.post("/v1/embeddings", json={"input": "red.png", "task": task}).json()
        if task == "document":
            np.testing.assert_allclose(answer["data"][0]["embedding"], as_text, atol=1e-5)
    hits = client.post("/search", json={"query": "red.png", "k": 5}).json()["hits"]
    np.testing.assert_allclose(hits[0]["score"], index.search({"text": "red.png"}, 1)[0].score, atol=1e-5)
    ranked = client.post("/rerank", json={"query": "missing.png", "documents": ["red.png", "other.png"]}).json()
    assert len(ranked["results"]) == 2


def test_documents_are_reranked_as_scored(served):
    client, index = served
    documents = ["a list of values", "errors by code", "the end"]
    asked = {"query": "errors", "documents": documents, "return_documents": True}
    answer = client.post("/rerank", json=asked).json()
    scores = smart_jax.score(index.encode_query(["errors"]), index.model.encode_document(documents))[0]
    assert [each["index"] for each in answer["results"]] == np.argsort(-scores).tolist()
    np.testing.assert_allclose(
        [each["relevance_score"] for each in answer["results"]], np.sort(scores)[::-1], atol=1e-5
    )
    assert answer["results"][0]["document"] == {"text": documents[answer["results"][0]["index"]]}
    two = client.post("/v1/rerank", json={**asked, "top_n": 2, "return_documents": False, "model": "any"}).json()
    assert [each["index"] for each in two["results"]] == [each["index"] for each in answer["results"]][:2]
    assert "document" not in two["results"][0]


def test_what_is_wrong_is_said(served):
    client, _ = served
    assert "query" in message(client.post("/search", json={"k": 1}), 422)
    assert "Extra inputs" in message(client.post("/search", json={"query": "a", "wher": {}}), 422)
    assert "at most 100" in message(client.post("/search", json={"query": "a", "k": 101}), 422)
    assert "blank" in message(client.post("/search", json={"query": "  "}), 422)
    assert "both 0" in message(client.post("/search", json={"query": "a", "weights": {"pooled": 0, "late": 0}}), 422)
    deep: dict = {"year": 1}
    for _ in range(40):
        deep = {"not": deep}
    assert "nested" in message(client.post("/search", json={"query": "a", "where": deep}), 422)
    message(client.post("/search", content=b"{", headers={"Content-Type": "application/json"}), 422)
    harmful = {"[" * 3000: "64 levels", '{"a": ' + "1" * 400 + "}": "64 bits", "[1]": "dictionary", "7": "dictionary"}
    for where, reason in harmful.items():
        assert reason in message(client.get("/items", params={"where": where}), 422)
    for body in ('{"query": ' + "[" * 100_000, '{"query": "a", "k": ' + "1" * 5000 + "}"):  # which FastAPI parses
        message(client.post("/search", content=body, headers={"Content-Type": "application/json"}), 400)
    message(client.get("/search"), 405)
    message(client.get("/nothing"), 404)
    message(client.get("/static/../app.py"), 404)
    message(client.get("/static/%2e%2e/app.py"), 404)


def test_changes_ask_for_the_token(served, changed):
    for path in ("/upload", "/delete"):
        assert "with a token" in message(served[0].post(path, json={}, headers=ALLOWED), 403)
        for given in (None, "Bearer wrong", TOKEN, "Bearer", f"Basic {TOKEN}"):
            headers = {} if given is None else {"Authorization": given}
            answer = changed[0].post(path, json={"ids": ["t0"]}, headers=headers)
            assert "token" in message(answer, 401) and answer.headers["www-authenticate"] == "Bearer"
    assert len(changed[1]) == 3


def test_files_are_uploaded_and_removed(changed, tmp_path):
    client, index = changed

    def upload(name, content, **data):
        return client.post("/upload", files={"files": (name, content)}, data=data, headers=ALLOWED)

    uploads = tmp_path / "index-uploads"
    answer = upload("../../new one.txt", b"a valve", metadata='{"year": 2025}').json()
    assert (answer["added"], answer["files"], answer["failed"]) == (1, ["new one.txt"], {})
    assert [path.name for path in uploads.iterdir()] == ["new one.txt"]
    (hit,) = client.post("/search", json={"query": "valve", "where": {"year": 2025}}).json()["hits"]
    assert (hit["file"], hit["text"]) == ("new one.txt", "a valve") and str(tmp_path) not in hit["file"]
    assert upload("new one.txt", b"a valve", metadata='{"year": 2025}').json()["unchanged"] == 1
    assert upload("new one.txt", b"another").json()["added"] == 1
    assert [item.text for item in index.items({"file": "new one.txt"})] == ["another"]

    assert "new one.txt" in message(upload("new one.txt", b" \n "), 422)  # the former one stays
    assert (uploads / "new one.txt").read_bytes() == b"another"
    assert [item.text for item in index.items({"file": "new one.txt"})] == ["another"]
    message(upload("bad.pdf", b"no pdf"), 422)
    message(upload("page.html", b"<script>"), 422)
    for facts in ("[1]", "7", "[" * 3000, '{"a": NaN}', '{"a": 1e999}', '{"a": ' + "1" * 400 + "}"):
        assert "metadata" in (said := message(upload("b.txt", b"b", metadata=facts), 422)) and "JSON object" in said
    message(upload("b.txt", b"b", metadata='{"id": 1}'), 422)
    assert [path.name for path in uploads.iterdir()] == ["new one.txt"]

    def delete(**what):
        return client.post("/delete", json=what, headers=ALLOWED)

    assert client.get("/info").json()["uploads"] == ["new one.txt"]
    assert delete(files=["new one.txt"]).json() == {"deleted": 1, "files": ["new one.txt"]}
    assert not list(uploads.iterdir()) and len(index) == 3
    assert delete(ids=["t0", "nothing"]).json() == {"deleted": 1, "files": []}
    assert delete(where={"id": "t1"}).json()["deleted"] == 1
    message(delete(), 422)
    message(delete(where={}), 422)
    message(delete(where={"year": {"like": 1}}), 422)
    message(delete(files=["../index/index.db"]), 422)
    with index._engine.writing():
        assert "being written to" in message(delete(ids=["t2"]), 409)
    assert [item.id for item in index.items()] == ["t2"]


def test_an_index_in_qdrant_is_served(tmp_path):
    index = smart_jax.Index("qdrant://:memory:/served", model=FakeEncoder())
    index.add([{"text": "a pump"}, {"text": "oil"}], ids=["t0", "t1"])
    assert create_app(index, token=TOKEN).state.service.uploads.folder == Path.cwd() / "served-uploads"
    with index, asking(index, token=TOKEN, uploads=tmp_path) as client:
        files = {"files": ("new.txt", b"a valve")}
        assert client.post("/upload", files=files, headers=ALLOWED).json()["added"] == 1
        hits = client.post("/search", json={"query": "a valve", "k": 2}).json()["hits"]
        assert (hits[0]["file"], hits[0]["score"]) == ("new.txt", pytest.approx(2, abs=1e-3))
        assert client.post("/delete", json={"files": ["new.txt"]}, headers=ALLOWED).json()["files"] == ["new.txt"]
        assert client.get("/info").json()["items"] == 2


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("report.pdf", "report.pdf"),
        ("../../etc/cron.d/x.txt", "x.txt"),
        ("C:\\temp\\scan.PNG", "scan.PNG"),
        ("a\0b\n<img src=x>.md", "a_b__img src_x_.md"),
        (".hidden.txt", "hidden.txt"),
        ("~root.txt", "_root.txt"),
        ("日本語 (1).pdf", "日本語 (1).pdf"),
        ("é" * 300 + ".pdf", "é" * 90 + ".pdf"),
    ],
)
def test_names_of_uploads_are_made_harmless(given, kept):
    assert harmless_name(given) == kept
    assert len(kept.encode()) < 255


@pytest.mark.parametrize("given", ["", "..", "a", "a.exe", ".pdf", "....pdf", "/.pdf", "a.pdf/", "___.pdf"])
def test_names_of_uploads_are_refused(given):
    with pytest.raises(ValueError, match="ends|name before|end in"):
        harmless_name(given)


class SlowEncoder(FakeEncoder):
    """Queries wait until the test lets them go on."""

    gate = threading.Event()

    def encode_query(self, items, **options):
        assert self.gate.wait(30)
        return super().encode_query(items, **options)


def test_limits(tmp_path):
    index = smart_jax.Index(tmp_path / "index", model=SlowEncoder())
    index.add([{"text": "a pump"}], ids=["t0"])
    limits = Limits(body_bytes=2000, upload_bytes=3000, seconds=0.6, concurrent=2)
    SlowEncoder.gate.clear()
    with index, asking(index, token=TOKEN, limits=limits) as client, ThreadPoolExecutor(3) as threads:
        long = {"query": "a" * 3000}
        assert "2000 bytes" in message(client.post("/search", json=long), 413)
        chunks = (b" " * 500 for _ in range(10))  # of a length that is not told
        assert "2000 bytes" in message(client.post("/search", content=chunks), 413)
        files = {"files": ("a.txt", b"a" * 4000)}
        assert "3000 bytes" in message(client.post("/upload", files=files, headers=ALLOWED), 413)

        def search():
            return client.post("/search", json={"query": "pump"})

        waiting = [threads.submit(search) for _ in range(2)]
        while "in_flight 2.0" not in client.get("/metrics").text:
            time.sleep(0.01)
        refused = search()
        assert "more than 2" in message(refused, 429) and refused.headers["retry-after"] == "1"
        assert client.get("/health").status_code == 200
        for answer in waiting:
            assert "0.6 seconds" in message(answer.result(), 504)
        SlowEncoder.gate.set()
        assert search().json()["hits"]


def test_the_end_waits_for_what_was_asked(tmp_path):
    index = smart_jax.Index(tmp_path / "index", model=SlowEncoder())
    index.add([{"text": "a pump"}], ids=["t0"])
    SlowEncoder.gate.clear()
    with index, ThreadPoolExecutor(2) as threads, httpx.Client(timeout=60) as client:
        with serving(index, token=TOKEN, warm_up=False) as url:
            answer = threads.submit(client.post, f"{url}/search", json={"query": "pump"})
            files = {"files": ("a.txt", b"a valve")}
            upload = threads.submit(client.post, f"{url}/upload", files=files, headers=ALLOWED)
            assert upload.result().json()["added"] == 1  # beside the search that waits
            threading.Timer(0.2, SlowEncoder.gate.set).start()
        assert answer.result().json()["hits"][0]["id"] == "t0"
        index.delete(["t0"])  # nobody else holds the lock
        with pytest.raises(httpx.ConnectError):
            client.get(f"{url}/health")


def test_health_and_readiness(tmp_path):
    SlowEncoder.gate.clear()
    index = smart_jax.Index(tmp_path / "index", model=SlowEncoder())
    with index, asking(index, warm_up=True) as client:
        assert client.get("/health").json() == {"status": "ok", "items": 0}
        assert "loading" in message(client.get("/ready"), 503)
        SlowEncoder.gate.set()
        while client.get("/ready").status_code != 200:
            time.sleep(0.01)
        figures = client.get("/metrics").text
        assert 'smart_jax_serve_requests_total{method="GET",route="/health",status="200"} 1.0' in figures
        assert "smart_jax_serve_items 0.0" in figures
        assert client.post("/search", json={"query": "pump"}).json()["hits"] == []


def test_other_names_of_the_server_are_refused(served):
    client, _ = served
    assert "called by this name" in message(client.get("/", headers={"Host": "evil.example:8000"}), 421)
    assert client.get("/", headers={"Host": "localhost"}).status_code == 200
    assert [_host(name) for name in ("[::1]:80", "[::1]", "a.b:80", "A.b")] == ["::1", "::1", "a.b", "a.b"]


class Links(HTMLParser):
    """Collects what a page refers to, and the code that it carries itself."""

    def __init__(self):
        super().__init__()
        self.links, self.inline = [], []

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        self.links += [named[key] for key in ("src", "href") if key in named]
        self.inline += [key for key in named if key == "style" or key.startswith("on")]
        if tag in ("script", "style") and "src" not in named:
            self.inline.append(tag)


@pytest.mark.parametrize("path", ["/", "/docs"])
def test_the_page_needs_nothing_of_others(served, path):
    client, _ = served
    page = client.get(path)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    links = Links()
    links.feed(page.text)
    assert not links.inline
    for link in links.links:
        assert "//" not in link
        if not link.startswith("#"):
            assert client.get(f"/{link}".replace("/.", "/")).status_code == 200, link
    assert client.get("/favicon.ico").headers["content-type"].startswith("image/svg")
    assert client.get("/openapi.json").json()["paths"]["/search"]


def test_scripts_write_text_alone():
    scripts = sorted(STATIC.glob("*.js"))
    assert len(scripts) >= 5
    for script in scripts:
        text = script.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|https?://", text), script


def test_a_server_elsewhere_without_a_token_warns(tmp_path, monkeypatch, capsys):
    began = []
    monkeypatch.setattr("uvicorn.Server.run", lambda server, sockets: began.append(sockets[0].getsockname()))
    with text_index(tmp_path) as index:
        with pytest.warns(UserWarning, match=r"listens at 0\.0\.0\.0.* no token"):
            serve(index, host="0.0.0.0", port=0)
        serve(index, host="0.0.0.0", port=0, token=TOKEN)
        serve(index, port=0)
        assert [host for host, _ in began] == ["0.0.0.0", "0.0.0.0", "127.0.0.1"]
        assert "http://127.0.0.1:" in capsys.readouterr().out
        with serving(index, warm_up=False) as url, pytest.raises(OSError, match="cannot listen"):
            serve(index, port=int(url.rpartition(":")[2]))
        for wrong in ("short", "with a space ", "naïve token"):
            with pytest.raises(ValueError, match="at least 8"):
                create_app(index, token=wrong)
    with pytest.raises(ValueError, match="seconds is 0"):
        Limits(seconds=0)
