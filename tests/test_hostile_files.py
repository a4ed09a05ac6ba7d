"""Files made to do harm: one reader of JSON, one check of numbers, one check of paths."""

from __future__ import annotations

import gzip
import json
import os
import sqlite3
import zlib

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save

from eval.benchmarks import Benchmark
from smart_jax import Embeddings, Index
from smart_jax.evidence import TokenSources
from smart_jax.files import (
    checked_float,
    checked_int,
    map_tensors,
    parse_json,
    parse_json_object,
    path_inside,
    read_json,
    read_tensors,
    shown,
    write_tensors,
)
from smart_jax.index.documents import dump_metadata, file_hash, load_metadata
from smart_jax.index.explaining import StoredTrace, pack_sources, trace_stored
from smart_jax.index.pdf import Pdf
from smart_jax.index.qdrant.collection import Collection, Point
from smart_jax.index.qdrant.engine import shown as shown_point
from smart_jax.index.qdrant.filter import typed_fields
from smart_jax.index.qdrant.payload import fact_key
from smart_jax.index.qdrant.store import QdrantStore
from smart_jax.index.segment_files import Extent, SegmentFiles
from smart_jax.index.vector_format import VectorFormat
from smart_jax.inputs import Frame
from smart_jax.retrieval import States
from smart_jax.retrieval.embeddings_folder import JOURNAL, EmbeddingsFolder
from smart_jax.retrieval.saved_files import remove_leftovers
from tests.fake_encoder import FakeEncoder
from tests.indexes import random_embeddings
from tests.small_pdf import write_pdf

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (DEEP, "nested deeper than 64 levels"),
        ('{"a":' * 800 + "1" + "}" * 800, "nested deeper than 64 levels"),
        ("[" * 65 + "]" * 65, "nested deeper than 64 levels"),
        ("1" * 400, "an integer of 400 digits"),
        ("1" * 5000, "an integer of 5000 digits"),
        (str(2**64), "an integer of 20 digits"),
        ("{", "Expecting property name"),
        (b"\xff", "decode"),
        ("", "Expecting value"),
    ],
)
def test_one_reader_of_json_names_the_file(text, reason):
    with pytest.raises(ValueError, match=f"config.json is not valid JSON .*{reason}"):
        parse_json(text, "config.json")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "-1e999"])
def test_numbers_that_json_has_not(number):
    assert not np.isfinite(parse_json(f"[{number}]", "x")[0])  # where the number is checked by what it is for
    with pytest.raises(ValueError, match=rf"x is not valid JSON \({number} is no finite number\): write it"):
        parse_json_object(f'{{"a": [{number}]}}', "x", remedy="write it", finite=True)


def test_what_the_reader_of_json_takes(tmp_path):
    nested = "[" * 64 + "]" * 64
    assert json.dumps(parse_json(nested, "x")) == nested
    assert parse_json(str(2**64 - 1), "x") == 2**64 - 1 and parse_json(b"-1.5e3", "x") == -1500
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"x\.json holds a JSON list, expected an object"):
        read_json(tmp_path / "x.json", most=3)  # all of its bytes
    (tmp_path / "y.json").write_text(f'{{"n": {10**30}}}')
    assert read_json(tmp_path / "y.json", bits=128) == {"n": 10**30}
    with pytest.raises(ValueError, match=r"y\.json is not valid JSON .*an integer of 31 digits"):
        read_json(tmp_path / "y.json")
    with pytest.raises(ValueError, match=r"x\.json has more than the 2 bytes"):
        read_json(tmp_path / "x.json", most=2)


@pytest.mark.parametrize("value", [True, None, "1", 1.0, 0, -1, 2**31, float("nan"), [1], {"a": 1}])
def test_integers_out_of_bounds(value):
    with pytest.raises(ValueError, match="x.json: n is .*, expected a positive integer"):
        checked_int(value, "x.json: n")


@pytest.mark.parametrize("value", [True, None, "1", 0, -0.5, float("inf"), float("nan"), 10**400, [1.0]])
def test_numbers_that_are_not_finite_and_positive(value):
    with pytest.raises(ValueError, match="x.json: n is .*, expected a positive number"):
        checked_float(value, "x.json: n")


def test_values_in_messages_are_short():
    shared: list = []
    for _ in range(40):  # 2**40 parts, were it written out
        shared = [shared, shared]
    for value in (shared, {"a": shared}, "x" * 10**6, 10**5000, list(range(10**5)), ["x" * 10**6] * 3):
        assert len(shown(value)) <= 80
    assert shown("text") == "'text'" and shown([1, None]) == "[1, None]"


@pytest.fixture
def folder(tmp_path):
    """A folder with a file, links to what is in it and to what is not, beside a secret."""
    (tmp_path / "secret").write_text("s")
    inside = tmp_path / "inside"
    (inside / "images").mkdir(parents=True)
    (inside / "images" / "1.png").write_text("p")
    (inside / "good.png").symlink_to("images/1.png")
    (inside / "bad.png").symlink_to("../secret")
    (inside / "all").symlink_to(tmp_path)
    (inside / "loop").symlink_to("loop")
    return inside


@pytest.mark.parametrize("name", ["images/1.png", "good.png", "images/../good.png", "not_there.png", "a..b"])
def test_paths_inside(folder, name):
    assert path_inside(folder, name, "list") == folder / name


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "images/../../secret",
        "/etc/passwd",
        "bad.png",
        "all/secret",
        "loop",
        "",
        "a\0b",
        "x" * 5000,
        7,
        None,
    ],
)
def test_paths_that_leave_their_folder(folder, name):
    with pytest.raises(ValueError, match="list names"):
        path_inside(folder, name, "list")


def test_links_of_the_hubs_cache_lead_to_its_blobs(tmp_path):
    snapshot = tmp_path / "models--me--pages" / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--me--pages" / "blobs").mkdir()
    (tmp_path / "models--me--pages" / "blobs" / "f00").write_text("x")
    (snapshot / "model.safetensors").symlink_to("../../blobs/f00")
    assert path_inside(snapshot, "model.safetensors", "index").read_text() == "x"
    (snapshot / "adapters").mkdir()
    (snapshot / "adapters" / "adapter_model.safetensors").symlink_to("../../../blobs/f00")
    assert path_inside(snapshot / "adapters", "adapter_model.safetensors", "adapters").read_text() == "x"
    (snapshot / "other.safetensors").symlink_to("../../../secret")
    with pytest.raises(ValueError, match="is not inside"):
        path_inside(snapshot, "other.safetensors", "index")


@pytest.mark.parametrize("name", ["../secret.safetensors", "/tmp/secret.safetensors", "link.safetensors"])
def test_shards_stay_in_their_folder(tmp_path, name):
    write_tensors(tmp_path / "secret.safetensors", {"a": np.zeros(2, np.float32)})
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "link.safetensors").symlink_to("../secret.safetensors")
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with pytest.raises(ValueError, match="is not inside"):
        list(read_tensors(checkpoint))
    (checkpoint / "model.safetensors.index.json").unlink()
    (checkpoint / "model.safetensors").symlink_to("../secret.safetensors")
    with pytest.raises(ValueError, match="is not inside"):
        list(read_tensors(checkpoint))


def test_the_journal_of_an_embeddings_folder_names_no_other_file(tmp_path):
    (tmp_path / "secret").write_text("s")
    head = {"format": "smart_jax.embeddings.partial", "version": 1, "file": "../secret", "widths": [2, 2]}
    head["about"] = {"items": 1, "dtype": "float32"}
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / JOURNAL).write_text(json.dumps(head) + "\n")
    with pytest.raises(ValueError, match="is not inside"):
        EmbeddingsFolder(tmp_path / "out", items=1, about={})


def written(path, header: object, data: bytes = bytes(16)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype="F32", shape=(2, 2), offsets=(0, 16)):
    return {"x": {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}}


@pytest.mark.parametrize(
    "header",
    [
        *(7, "x", None, [], [1], {"x": 7}, {"x": None}, {"x": []}, {"x": {}}, {"__metadata__": 7}),
        *({"__metadata__": {"a": 7}}, b"{", b"\xff", DEEP.encode(), b"1" * 400),
        *(entry(offsets=(-16, 0)), entry(offsets=(16, 0)), entry(offsets=(0, 32)), entry(offsets=(0, 10**400))),
        *(entry(offsets=(0,)), entry(offsets=("0", "16")), entry(offsets=(0.0, 16.0)), entry(offsets=(0, None))),
        *(entry(shape=(-2, -2)), entry(shape=(2, 3)), entry(shape=(2**40, 2**40)), entry(shape=("a",))),
        *(entry(shape=[1] * 99), entry(dtype="F64"), entry(dtype=7), entry(dtype=None), entry(dtype=["F32"])),
    ],
)
def test_headers_of_mapped_files(tmp_path, header):
    with pytest.raises(ValueError, match=r"x\.safetensors"):
        map_tensors(written(tmp_path / "x.safetensors", header))


def test_a_mapped_file_that_is_cut_off(tmp_path):
    path = written(tmp_path / "x.safetensors", entry())
    assert map_tensors(path)[0]["x"].shape == (2, 2)
    for size in range(path.stat().st_size):
        os.truncate(written(path, entry()), size)
        with pytest.raises(ValueError, match=r"x\.safetensors"):
            map_tensors(path)


def embeddings(items=3, dtype=np.float32):
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(2 * items, 4)).astype(np.float32)
    return Embeddings(tokens[:items], tokens, np.arange(0, 2 * items + 1, 2)).astype(dtype)


def rewritten(folder, **changes):
    """Changes arrays of saved embeddings in their file."""
    file = next(folder.glob("*.safetensors"))
    arrays = {name: np.array(value) for name, value in map_tensors(file)[0].items()}
    write_tensors(file, arrays | changes)


INT8 = embeddings(dtype=np.int8)
SCALES = np.asarray(INT8.scales)


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {"scales": -SCALES},
        {"scales": np.where(np.arange(6) == 3, np.float32("nan"), SCALES)},
        {"scales": np.where(np.arange(6) == 3, np.float32("inf"), SCALES)},
        {"scales": SCALES[:3]},
        {"pooled": np.asarray(INT8.pooled).astype(np.int32)},
        {"tokens": np.asarray(INT8.tokens)[:, :, None]},
        {"offsets": np.array([0, -2, 4, 6])},
        {"offsets": np.array([0, 2, 4, 60])},
        {"offsets": np.array([0, 2**62, 4, 6])},
        {"offsets": np.array([0, 2, 4, 6], np.float32)},
        {"offsets": np.array([[0, 2, 4, 6]])},
    ],
)
def test_saved_embeddings_that_are_damaged(tmp_path, changes, mmap):
    INT8.save(tmp_path)
    assert len(Embeddings.load(tmp_path, mmap=mmap)) == 3
    rewritten(tmp_path, **changes)
    with pytest.raises(ValueError, match=r"is corrupt or truncated \((token|item|scales|pooled|offsets)"):
        Embeddings.load(tmp_path, mmap=mmap)


def test_mapped_embeddings_have_a_token_of_every_item(tmp_path):
    embeddings().save(tmp_path)
    rewritten(tmp_path, offsets=np.array([0, 2, 2, 6]))
    with pytest.raises(ValueError, match="item 1 has no token"):
        Embeddings.load(tmp_path, mmap=True)


@pytest.mark.parametrize(
    ("suffix", "values"),
    [
        (".bounds", np.array([2, -1, 6])),
        (".bounds", np.array([2, 9, 6])),
        (".scales", -SCALES),
        (".scales", SCALES * np.nan),
    ],
)
def test_segments_that_are_damaged(tmp_path, suffix, values):
    files = SegmentFiles(tmp_path, VectorFormat.of(INT8, "int8"))
    extent = files.append(Extent(0, 0, 0), INT8)
    assert len(files.open(extent)) == 3
    files.path(0, suffix).write_bytes(values.tobytes())
    with pytest.raises(ValueError, match="segment 0 of .* is damaged .*item"):
        files.open(extent)
    os.truncate(files.path(0, suffix), 4)
    with pytest.raises(ValueError, match="has 4 bytes of"):
        files.open(extent)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("layers", "[-9999999]"),
        ("layers", "7"),
        ("layers", DEEP),
        ("depth", "1e9"),
        ("depth", "-1"),
        ("visual_ids", '["a"]'),
    ],
)
def test_states_that_are_damaged(tmp_path, name, text):
    arrays = {"pooled": np.zeros((1, 2), np.float32), "states": np.zeros((1, 1, 2), np.float32)}
    arrays |= {"norms": np.ones((1, 1), np.float32), "ids": np.zeros(1, np.int32), "grids": np.zeros((0, 4), np.int32)}
    States(**arrays, offsets=np.array([0, 1]), visual_ids=(), layers=(-1,), depth=2).save(tmp_path / "x.safetensors")
    arrays, texts = map_tensors(tmp_path / "x.safetensors")
    write_tensors(tmp_path / "y.safetensors", arrays, texts)
    assert len(States.load(tmp_path / "y.safetensors")) == 1
    write_tensors(tmp_path / "y.safetensors", arrays, texts | {name: text})
    with pytest.raises(ValueError, match=r"y\.safetensors. is corrupt or truncated .*" + name):
        States.load(tmp_path / "y.safetensors")


def beir(folder, documents=None, grade="1"):
    """A folder of two documents and one query; `documents` replaces the corpus."""
    (folder / "qrels").mkdir(parents=True)
    records = documents or [{"_id": "d0", "text": "one"}, {"_id": "d1", "text": "two"}]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "queries.jsonl").write_text(json.dumps({"_id": "q0", "text": "which"}) + "\n")
    (folder / "qrels" / "test.jsonl").write_text(f'{{"query-id": "q0", "corpus-id": "d0", "score": {grade}}}\n')
    return folder


@pytest.mark.parametrize(
    "grade", ["1e999", "Infinity", "-Infinity", "NaN", "1" * 400, "1e300", "[1]", '"x"', "null", "{}"]
)
@pytest.mark.parametrize("suffix", ["jsonl", "tsv"])
def test_grades_that_are_no_integers(tmp_path, grade, suffix):
    folder = beir(tmp_path / "set", grade=grade)
    if suffix == "tsv":
        (folder / "qrels" / "test.jsonl").unlink()
        (folder / "qrels" / "test.tsv").write_text(f"q0\td0\t{grade}\n")
    with pytest.raises(ValueError, match=r"test\.(jsonl|tsv)"):
        Benchmark.load(folder)


@pytest.mark.parametrize("image", ["../secret.png", "link.png", "/tmp/secret.png", 7, ["a"]])
def test_images_of_a_benchmark_stay_in_its_folder(tmp_path, image):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    folder = beir(tmp_path / "set", [{"_id": "d0", "image": image}])
    Image.new("RGB", (8, 8)).save(folder / "page.png")
    (folder / "link.png").symlink_to("../secret.png")
    benchmark = Benchmark.load(folder)
    with pytest.raises(ValueError, match="d.*names"):
        benchmark.corpus[0]
    (folder / "corpus.jsonl").write_text('{"_id": "d0", "image": "page.png"}')
    assert Benchmark.load(folder).corpus[0]["image"] == folder / "page.png"


def stored_trace(path, digest, *, tokens=None, how="{}", page=None):
    """An item of one cell, whose file the index says to be at this path."""
    sources = TokenSources(np.array([1], np.uint8), np.zeros((0, 3), np.int32), (Frame("image", 0, 1, 1),))
    vectors = embeddings(1)[0]
    one = Embeddings(vectors.pooled, vectors.tokens[:1], np.array([0, 1]))
    return StoredTrace(one, tokens or pack_sources(sources), None, path, digest, how, page)


@pytest.mark.parametrize("name", ["page.png", "page.pdf", "page.wav"])
def test_an_index_opens_its_own_files_alone(tmp_path, name):
    """They may be anywhere; but an index that came from elsewhere names no other, and learns nothing of them."""
    folder = tmp_path / "docs"
    folder.mkdir()
    path = folder / name
    path.write_bytes(b"what was added")
    digest = file_hash(path)
    assert trace_stored(stored_trace(str(tmp_path / "docs" / "gone.png"), digest)).pictures == ()
    assert trace_stored(stored_trace(str(path), "0" * 32)).pictures == ()
    assert trace_stored(stored_trace("C:\\docs\\page.png", digest)).pictures == ()  # it was made on Windows
    assert trace_stored(stored_trace(str(tmp_path), digest)).pictures == ()
    if name == "page.png":
        assert trace_stored(stored_trace(str(path), digest)).pictures == (path,)
    for wrong in (f"docs/{name}", f"../{name}", f"{folder}/../docs/{name}", "", "a\0b", b"/etc/passwd", 7):
        with pytest.raises(ValueError, match="the index names the file .*add the file again"):
            trace_stored(stored_trace(wrong, digest))
    path.rename(tmp_path / name)
    path.symlink_to(tmp_path / name)
    with pytest.raises(
        ValueError, match=f"the index names '{name}', which is not inside '{folder}': add the file again"
    ):
        trace_stored(stored_trace(str(path), digest))
    folder.rename(tmp_path / "moved")
    folder.symlink_to("moved")  # the whole of it, by its user
    (tmp_path / "moved" / name).unlink()
    (tmp_path / name).rename(tmp_path / "moved" / name)
    if name == "page.png":
        assert trace_stored(stored_trace(str(path), digest)).pictures == (path,)


def test_files_without_pictures_are_not_opened(monkeypatch):
    monkeypatch.setattr("smart_jax.index.explaining.file_hash", pytest.fail)
    for path in ("/etc/passwd", "/etc/hostname.txt", "/dev/zero", "/proc/self/environ"):
        assert trace_stored(stored_trace(path, "0" * 32)).pictures == ()


@pytest.mark.parametrize(
    ("how", "page", "message"),
    [
        (DEEP, 1, "how .* was read is not valid JSON .*nested deeper"),
        ("[1]", 1, "how .* was read holds a JSON list, expected an object"),
        ('{"dpi": "x"}', 1, "was read: dpi is 'x', expected a positive number"),
        ('{"dpi": NaN}', 1, "was read is not valid JSON .NaN is no finite number"),
        ('{"dpi": 1e999}', 1, "was read is not valid JSON .1e999 is no finite number"),
        (f'{{"dpi": {"1" * 400}}}', 1, "an integer of 400 digits"),
        ('{"dpi": -1}', 1, "was read: dpi is -1.0, expected a positive number"),
        ("{}", 0, "page of .* is 0, expected a positive integer"),
        ("{}", "x", "page of .* is 'x', expected a positive integer"),
    ],
)
def test_how_a_file_was_read(tmp_path, how, page, message):
    path = write_pdf(tmp_path / "x.pdf", [[(72, 72, 12, "text")]], [])
    assert len(trace_stored(stored_trace(str(path), file_hash(path), how='{"dpi": 36}', page=1)).pictures) == 1
    with pytest.raises(ValueError, match=message):
        trace_stored(stored_trace(str(path), file_hash(path), how=how, page=page))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"frames": np.zeros((1, 5))}, "TypeError"),
        ({"frames": np.array([[99, 0, 1, 1, np.nan, np.nan]])}, "IndexError"),
        ({"frames": np.array([[0, np.inf, 1, 1, np.nan, np.nan]])}, "OverflowError"),
        ({"frames": np.zeros(3)}, "TypeError"),
        ({"kinds": np.array([1, 1], np.uint8)}, "ValueError: kinds are"),
        ({"kinds": np.array([-1])}, "ValueError"),
        ({"groups": np.array([0, 0], np.int32)}, "groups must be a number"),
        ({"groups": np.array([-1], np.int32)}, "groups must be a number"),
        (b"xx", "error: Error -3"),
        (zlib.compress(b"x"), "SafetensorError"),
        (zlib.compress(bytes(2**22), 9), "cut off, or has more than 65536 bytes"),
        (zlib.compress(bytes(99))[:-3], "cut off"),
    ],
)
def test_what_tokens_stand_for_is_checked(monkeypatch, arrays, message):
    monkeypatch.setattr("smart_jax.index.explaining.LARGEST_SOURCES", 2**16)
    packed = arrays
    if isinstance(arrays, dict):
        whole = TokenSources(np.array([1], np.uint8), np.zeros((0, 3), np.int32), (Frame("image", 0, 1, 1),))
        packed = zlib.compress(save(whole.to_arrays() | arrays))
    with pytest.raises(ValueError, match=f"what the item's tokens stand for cannot be read .*({message})"):
        trace_stored(stored_trace(None, None, tokens=packed))


@pytest.mark.parametrize(
    "record", [{"text": 7}, {"text": {"a": []}}, {"title": ["x"]}, {"page_text": 1.5, "text": "x"}]
)
def test_documents_that_are_no_texts(tmp_path, record):
    with pytest.raises(ValueError, match="corpus .d0.: (text|title|page_text) is"):
        Benchmark.load(beir(tmp_path / "set", [{"_id": "d0"} | record]))


def test_links_to_what_has_no_end(tmp_path):
    (tmp_path / "x.json").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="has more than the 0 bytes"):
        read_json(tmp_path / "x.json", most=1000)
    folder = beir(tmp_path / "set")
    (folder / "qrels" / "test.jsonl").unlink()
    (folder / "qrels" / "test.tsv").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="has a line of more than"):
        Benchmark.load(folder)


def test_a_line_that_gzip_blows_up(tmp_path, monkeypatch):
    """A gigabyte of blanks is a megabyte of gzip: it is read up to a bound."""
    monkeypatch.setattr("eval.benchmarks.raw_records.MAX_BYTES", 2**16)
    folder = beir(tmp_path / "set")
    (folder / "corpus.jsonl").unlink()
    with gzip.open(folder / "corpus.jsonl.gz", "wb") as file:
        file.write(b" " * 2**20)
    with pytest.raises(ValueError, match="has a line of more than 65536 bytes"):
        Benchmark.load(folder)
    (folder / "corpus.jsonl.gz").write_bytes(gzip.compress(b'{"_id": "d0"}')[:20])
    with pytest.raises(ValueError, match="truncated or corrupt"):
        Benchmark.load(folder)


def test_pages_of_absurd_size(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.small_pdf.WIDTH", 30_000)
    monkeypatch.setattr("tests.small_pdf.HEIGHT", 30_000)
    write_pdf(tmp_path / "x.pdf", [[(72, 72, 12, "text")]], [])
    with (
        Pdf(tmp_path / "x.pdf") as pdf,
        pytest.raises(ValueError, match="page 1 of .* at 100 dpi.*lower the dpi"),
    ):
        pdf.image(0)
    with Pdf(tmp_path / "x.pdf") as pdf:
        assert pdf.image(0, dpi=2).size == (834, 834)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE about SET value = '7' WHERE key = 'vectors'",
        'UPDATE about SET value = \'{"name": "int8", "pooled_width": 1e9, "token_width": 4}\' WHERE key = \'vectors\'',
        f"UPDATE about SET value = '{DEEP}' WHERE key = 'vectors'",
        'UPDATE about SET value = \'[{"name": "../../x", "number": 1}]\' WHERE key = \'stages\'',
        'UPDATE about SET value = \'[{"name": "centroids", "number": 1}]\' WHERE key = \'stages\'',
        "UPDATE about SET value = 'x' WHERE key = 'generation'",
        "UPDATE segment SET items = -1",
        "UPDATE segment SET tokens = 'x'",
        "UPDATE segment SET items = 4611686018427387904",
        "INSERT INTO dead SELECT (number << 32) + 99 FROM segment",
        "DROP TABLE segment",
    ],
)
def test_catalogs_that_are_damaged(tmp_path, statement):
    with Index(tmp_path, FakeEncoder(), dtype="int8") as index:
        index.add_embeddings(random_embeddings(4, pooled=16, width=16), ids=list("abcd"))
        index.keep_stages(["binary"])
    with sqlite3.connect(tmp_path / "index.db") as db:
        db.execute(statement)
    db.close()
    with pytest.raises(ValueError, match=r"index|segment"), Index(tmp_path, FakeEncoder()) as index:
        index.info()


BEYOND = f'{{"a": {"1" * 400}}}'
HARMFUL = [DEEP, '{"a": ' * 65 + "1" + "}" * 65, BEYOND, '{"a": NaN}', '{"a": -1e999}', "[1]", "7", "{"]


@pytest.mark.parametrize("metadata", HARMFUL)
def test_metadata_that_is_damaged(tmp_path, metadata):
    """Whatever asks for it says of which item and index it is."""
    query = random_embeddings(1, pooled=16, width=16)
    with Index(tmp_path, FakeEncoder()) as index:
        index.add_embeddings(random_embeddings(2, pooled=16, width=16), ids=["a", "b"], metadata=[{"n": 1}, {"n": 2}])
        assert [item.metadata for item in index.items()] == [{"n": 1}, {"n": 2}]
        with sqlite3.connect(tmp_path / "index.db") as db:
            db.execute("UPDATE item SET metadata = ? WHERE id = 'b'", (metadata,))
        db.close()
        named = f"item 'b' of '{tmp_path}': metadata"
        for ask in (
            lambda: list(index.items()),
            lambda: index.search(query),
            lambda: index.update(["b"], metadata={"m": 3}),
        ):
            with pytest.raises(ValueError, match=named):
                ask()
        index.update(["b"], metadata={"n": 3}, replace=True)
        assert [item.metadata for item in index.items()] == [{"n": 1}, {"n": 3}]
    with pytest.raises(ValueError, match="item 'b' of 'qdrant://x/y': metadata"):
        shown_point({"id": "b", "metadata": metadata}, "qdrant://x/y")
    with pytest.raises(ValueError, match="metadata"):
        typed_fields(metadata)


@pytest.mark.parametrize("value", [10**30, -(2**64), [[1]] * 3 + [10**400], float("nan"), float("inf"), object()])
def test_metadata_that_could_not_be_read_again(value):
    with pytest.raises((ValueError, TypeError), match="metadata"):
        dump_metadata({"a": value})
    nested: list = []
    for _ in range(100):
        nested = [nested]
    with pytest.raises(ValueError, match="metadata is not valid JSON .*nested deeper than 64 levels"):
        dump_metadata({"a": nested})
    assert load_metadata(dump_metadata({"a": 2**64 - 1, "b": [1.5, "x", True]}), "x")["a"] == 2**64 - 1


@pytest.mark.parametrize(("value", "count"), [(DEEP, 1), ("1" * 400, 1), ("{", 1), ("[]", 0), ("[]", "x"), (7.5, None)])
def test_facts_of_a_collection(value, count):
    """Facts of an index in Qdrant may be anybody's, too."""

    class Points(Collection):
        place = "qdrant://x/y"

        def exists(self):
            return True

        def retrieve(self, keys, fields):
            made = fact_key("made", 0) in keys
            fields = {"value": "{}", "count": 1} if made else {"value": value, "count": count}
            return [Point(key, fields) for key in keys]

    with pytest.raises(ValueError, match="'qdrant://x/y': (vectors|pieces of vectors)"):
        QdrantStore(Points(), create=False).fact("vectors")


@pytest.mark.parametrize("text", [DEEP, "[1]", '{"file": []}', '{"file": ' + "1" * 400 + "}", "{"])
def test_saving_beside_what_cannot_be_read_removes_nothing(tmp_path, text):
    (tmp_path / "embeddings-0123abcd.safetensors").write_text("of somebody")
    for name in ("embeddings.json", JOURNAL):
        (tmp_path / name).write_text(text + "\n")
        remove_leftovers(tmp_path)
        (tmp_path / name).unlink()
        assert (tmp_path / "embeddings-0123abcd.safetensors").exists()
    remove_leftovers(tmp_path)
    assert not any(tmp_path.iterdir())
