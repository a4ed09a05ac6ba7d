"""Benchmarks: what is refused, samples, and folders on disk."""

import dataclasses
import gzip
import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eval.benchmarks import Benchmark, LazyItems, beir, item_text
from eval.benchmarks.judgements import QRELS_HEADER
from smart_jax.inputs.image import open_rgb
from smart_jax.inputs.item import parse_item


def small(**changes):
    values = dict(
        name="small",
        queries=["first query", "second query"],
        query_ids=["q0", "q1"],
        corpus=["one", "two", "three"],
        corpus_ids=["a", "b", "c"],
        qrels={"q0": {"a": 1}, "q1": {"b": 2, "c": 0}},
        candidates={"q0": ["a", "b"], "q1": ["c", "b"]},
        texts=["eins", "zwei", "drei"],
        instruction="Find it.",
    )
    return Benchmark(**(values | changes))


def picture(seed, mode="RGB", size=(9, 7)):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(name=""), "no name"),
        (dict(queries=[], query_ids=[], qrels={}), "no query"),
        (dict(corpus=[], corpus_ids=[], texts=None), "no document"),
        (dict(query_ids=["q0"]), "1 query ids for 2 items"),
        (dict(corpus_ids=["a", "b"]), "2 document ids for 3 items"),
        (dict(query_ids=["q0", "q0"]), "more than once: 'q0'"),
        (dict(corpus_ids=["a", "b", "a"]), "more than once: 'a'"),
        (dict(corpus_ids=["a", "b", ""]), "non-empty"),
        (dict(corpus_ids=["a", "b", 3]), "non-empty texts"),
        (dict(texts=["eins"]), "1 texts for 3 documents"),
        (dict(qrels={"q0": {"a": 1}, "q1": {"b": 1}, "q9": {"a": 1}}), "unknown queries: 'q9'"),
        (dict(qrels={"q0": {"z": 1}, "q1": {"b": 1}}), "unknown documents: 'z'"),
        (dict(qrels={"q0": {"a": 1}}), "without a relevant document .*: 'q1'"),
        (dict(qrels={"q0": {"a": 1}, "q1": {"b": 0}}), "without a relevant document .*: 'q1'"),
        (dict(qrels={"q0": {"a": 0.5}, "q1": {"b": 1}}), "grade of query q0, document a is 0.5"),
        (dict(qrels={"q0": {"a": True}, "q1": {"b": 1}}), "grade of query q0, document a is True"),
        (dict(candidates={"q0": ["a"]}), "queries without candidates: 'q1'"),
        (dict(candidates={"q0": ["a"], "q1": []}), "queries without candidates: 'q1'"),
        (dict(candidates={"q0": ["a"], "q1": ["b"], "q2": ["b"]}), "candidates of unknown queries: 'q2'"),
        (dict(candidates={"q0": ["a"], "q1": ["y"]}), "unknown documents among the candidates of query q1: 'y'"),
        (dict(candidates={"q0": ["a", "a"], "q1": ["b"]}), "twice among the candidates of query q0: 'a'"),
    ],
)
def test_bad_benchmarks_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_long_lists_of_offenders_are_cut():
    ids = [f"d{i}" for i in range(9)]
    with pytest.raises(ValueError, match="'d0', 'd1', 'd2', 'd3', 'd4' and 4 more"):
        small(qrels={"q0": {"a": 1, **dict.fromkeys(ids, 1)}, "q1": {"b": 1}})


def test_lazy_items_are_made_when_asked_for():
    made = []
    items = LazyItems(5, lambda i: made.append(i) or i * 10)
    assert len(items) == 5 and made == []
    assert items[3] == 30 and items[-1] == 40 and made == [3, 4]
    assert list(items[1:4].take([2, 0])) == [30, 10]
    assert list(items) == [0, 10, 20, 30, 40]
    with pytest.raises(IndexError):
        items[5]


def test_sample_keeps_relevant_documents_and_order():
    count = 40
    ids = [f"d{i}" for i in range(count)]
    whole = Benchmark(
        name="n",
        queries=[f"query {i}" for i in range(count)],
        query_ids=[f"q{i}" for i in range(count)],
        corpus=LazyItems(count, lambda i: f"page {i}"),
        corpus_ids=ids,
        qrels={f"q{i}": {ids[i]: 1} for i in range(count)},
        texts=[f"text {i}" for i in range(count)],
    )
    part = whole.sample(queries=5, corpus=12, seed=3)
    assert len(part.queries) == 5 and len(part.corpus) == 12
    numbers = [int(d[1:]) for d in part.corpus_ids]
    assert numbers == sorted(numbers)
    assert list(part.corpus) == [f"page {n}" for n in numbers] and part.texts == [f"text {n}" for n in numbers]
    assert list(part.queries) == [f"query {q[1:]}" for q in part.query_ids]
    assert part.query_ids == whole.sample(queries=5, seed=3).query_ids
    assert part.query_ids != whole.sample(queries=5, seed=4).query_ids
    assert len(whole.sample(queries=5, corpus=2).corpus) == 5  # the relevant ones stay
    assert len(whole.sample().corpus) == count


def test_item_text():
    assert item_text("words") == "words"
    assert item_text({"text": "words", "image": picture(0)}) == "words"
    assert item_text(picture(0)) == ""


def test_round_trip_of_every_kind_of_item(tmp_path):
    path = tmp_path / "page.jpg"
    picture(5).save(path)
    corpus = [
        "plain text",
        {"text": "report.png"},
        picture(0),
        picture(1, "L"),
        picture(2, "RGBA"),
        np.asarray(picture(3)),
        path,
        str(path),
        {"text": "caption", "image": picture(4), "instruction": "Look."},
        {"images": [picture(6), picture(7)], "text": ["one", "two"]},
    ]
    ids = [f"item {i}" for i in range(len(corpus))]
    before = Benchmark(
        name="kinds",
        queries=["a question", {"text": "and?", "image": picture(8)}],
        query_ids=["q ü", "r"],
        corpus=corpus,
        corpus_ids=ids,
        qrels={"q ü": {ids[0]: 3, ids[1]: 0}, "r": {ids[2]: 1}},
        document_instruction="Read.",
    )
    before.save(tmp_path / "saved")
    after = Benchmark.load(tmp_path / "saved")
    for field in {f.name for f in dataclasses.fields(Benchmark)} - {"queries", "corpus"}:
        assert getattr(after, field) == getattr(before, field), field
    pairs = zip([*before.queries, *before.corpus], [*after.queries, *after.corpus], strict=True)
    for ours, theirs in pairs:
        ours, theirs = parse_item(ours), parse_item(theirs)
        assert (ours.texts, ours.instruction) == (theirs.texts, theirs.instruction)
        assert len(ours.images) == len(theirs.images)
        for mine, read in zip(ours.images, theirs.images, strict=True):
            np.testing.assert_array_equal(np.asarray(open_rgb(mine)), np.asarray(open_rgb(read)))
    assert after.corpus[0] == "plain text"
    assert parse_item(after.corpus[6]).images[0] == path.read_bytes()  # a file is stored as it is


def test_candidates_texts_and_instruction_survive(tmp_path):
    small().save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "benchmark.json").read_text())["version"] == beir.VERSION
    after = Benchmark.load(tmp_path / "saved", name="other")
    expected = dataclasses.replace(small(), name="other")
    for field in dataclasses.fields(Benchmark):
        value = getattr(after, field.name)
        assert (list(value) if isinstance(value, LazyItems) else value) == getattr(expected, field.name), field.name


@pytest.mark.parametrize("name", ["a\tb", "a\nb", "a\n", "a\u2028b"])
def test_ids_that_a_line_can_not_hold_are_not_stored(name, tmp_path):
    benchmark = small(corpus_ids=[name, "b", "c"], qrels={"q0": {name: 1}, "q1": {"b": 1}}, candidates=None)
    with pytest.raises(ValueError, match="ids with a tab or a line break cannot be stored, such as 'a"):
        benchmark.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_videos_are_not_stored(tmp_path):
    benchmark = small(queries=["eins", {"text": "zwei", "video": [picture(0)]}])
    with pytest.raises(ValueError, match="item q1 has a video: only texts and images can be stored"):
        benchmark.save(tmp_path / "saved")


def test_only_the_asked_part_of_a_corpus_is_read(tmp_path, monkeypatch):
    count = 3 * beir.RECORDS_AT_ONCE + 1
    ids = [f"d{i}" for i in range(count)]
    qrels = {"q0": {"d0": 1}, "q1": {"d1": 1}}
    small(corpus=[f"page {i}" for i in range(count)], corpus_ids=ids, qrels=qrels, candidates=None, texts=None).save(
        tmp_path / "b"
    )
    read = []
    original = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda f, g, **k: read.append(g) or original(f, g, **k))
    corpus = Benchmark.load(tmp_path / "b").corpus
    assert read == []
    assert corpus[count - 1] == f"page {count - 1}" and len(read) == 1
    assert [corpus[i] for i in range(count)] == [f"page {i}" for i in range(count)]
    assert len(read) <= 1 + -(-count // beir.RECORDS_AT_ONCE)


def beir_folder(folder, *, qrels="q1\td1\t1\nq1\td2\t0\nq3\td2\t2\n", header=True):
    (folder / "qrels").mkdir(parents=True)
    picture(1).save(folder / "page.png")
    corpus = [
        {"_id": "d1", "title": "Pumps", "text": "move water"},
        {"_id": "d2", "image": "page.png", "page_text": "valves stop water"},
    ]
    queries = [{"_id": "q1", "text": "what moves?"}, {"_id": "q2", "text": "unjudged"}, {"_id": "q3", "text": "stops?"}]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
    (folder / "queries.jsonl").write_text("\n".join(json.dumps(row) for row in queries) + "\n\n")
    (folder / "qrels" / "test.tsv").write_text(("query-id\tcorpus-id\tscore\n" if header else "") + qrels)
    return folder


@pytest.mark.parametrize("header", [True, False])
def test_beir_folder(tmp_path, header):
    benchmark = Benchmark.load(beir_folder(tmp_path / "nice", header=header))
    assert benchmark.name == "nice"
    assert benchmark.query_ids == ["q1", "q3"] and list(benchmark.queries) == ["what moves?", "stops?"]
    assert benchmark.qrels == {"q1": {"d1": 1, "d2": 0}, "q3": {"d2": 2}}
    assert benchmark.texts == ["Pumps move water", "valves stop water"]
    assert benchmark.corpus[0] == "Pumps move water"
    np.testing.assert_array_equal(np.asarray(open_rgb(benchmark.corpus[1]["image"])), np.asarray(picture(1)))


CORPUS = [{"_id": "d1", "title": "Pumps", "text": "move water"}, {"_id": "d2", "title": "", "text": "valves stop it"}]
QUERIES = [{"_id": "1", "text": "what moves?"}, {"_id": "2", "text": "unjudged"}, {"_id": "3", "text": "stops?"}]
QRELS = [("1", "d1", 3), ("1", "d2", 1), ("3", "d2", 2), ("3", "d1", 0)]
GRADES = {"1": {"d1": 3, "d2": 1}, "3": {"d2": 2, "d1": 0}}


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def named(rows, score=int):
    return [dict(zip(QRELS_HEADER, (q, d, score(g)), strict=True)) for q, d, g in rows]


def write_zip(folder):
    """As BEIR's zips are, with the judgements of two splits."""
    (folder / "corpus.jsonl").write_text(lines(CORPUS))
    (folder / "queries.jsonl").write_text(lines(row | {"metadata": {}} for row in QUERIES))
    (folder / "qrels").mkdir()
    for split, rows in (("test", QRELS), ("dev", [("2", "d1", 1)])):
        table = "".join(f"{q}\t{d}\t{g}\n" for q, d, g in rows)
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + table)


def write_gz(folder):
    """As the hub's BeIR/NAME, whose judgements are in a repository of their own, here beside it."""
    for name, rows in (("corpus", CORPUS), ("queries", QUERIES)):
        with gzip.open(folder / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write(lines(rows))
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(f"{q}\t{d}\t{g}\n" for q, d, g in QRELS))


def write_jsonl(folder):
    """As the hub's mteb/NAME used to be, grades as floats."""
    (folder / "corpus.jsonl").write_text(lines(CORPUS))
    (folder / "queries.jsonl").write_text(lines(QUERIES))
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.jsonl").write_text(lines(named(QRELS, float)))


def write_limit(folder):
    """As LIMIT, with one file of judgements."""
    (folder / "corpus.jsonl").write_text(lines(CORPUS))
    (folder / "queries.jsonl").write_text(lines(QUERIES))
    (folder / "qrels.jsonl").write_text(lines(named(QRELS)))


def write_parquet(folder, *, qrels="data", splits=("test",)):
    """As the hub's mteb/NAME are, converted; the corpus in two files."""
    for part in ("corpus", "queries", qrels):
        (folder / part).mkdir(exist_ok=True)
    for i in range(2):
        table = pa.Table.from_pylist([{"id": CORPUS[i]["_id"], **CORPUS[i]}]).drop(["_id"])
        pq.write_table(table, folder / "corpus" / f"corpus-{i:05}-of-00002.parquet")
    pq.write_table(pa.Table.from_pylist(QUERIES), folder / "queries" / "queries-00000-of-00001.parquet")
    for split in splits:
        pq.write_table(pa.Table.from_pylist(named(QRELS)), folder / qrels / f"{split}-00000-of-00001.parquet")


def write_parquet_qrels(folder):
    write_parquet(folder, qrels="qrels", splits=("dev", "test"))


@pytest.mark.parametrize(
    "layout",
    [write_zip, write_gz, write_jsonl, write_limit, write_parquet, write_parquet_qrels],
    ids=lambda f: f.__name__,
)
def test_layouts_of_beir(tmp_path, layout):
    layout(tmp_path)
    benchmark = Benchmark.load(tmp_path, name="set")
    assert benchmark.query_ids == ["1", "3"] and list(benchmark.queries) == ["what moves?", "stops?"]
    assert benchmark.corpus_ids == ["d1", "d2"]
    assert list(benchmark.corpus) == benchmark.texts == ["Pumps move water", "valves stop it"]
    assert benchmark.qrels == GRADES  # as they are graded


def test_split_of_a_beir_folder(tmp_path):
    write_zip(tmp_path)
    benchmark = Benchmark.load(tmp_path, split="dev")
    assert (benchmark.query_ids, benchmark.qrels) == (["2"], {"2": {"d1": 1}})
    with pytest.raises(FileNotFoundError, match="no judgements of the split 'train'; it has 'dev', 'test'"):
        Benchmark.load(tmp_path, split="train")
    (tmp_path / "single").mkdir()
    write_limit(tmp_path / "single")
    with pytest.raises(FileNotFoundError, match="no judgements of the split 'dev': no file qrels/dev.tsv"):
        Benchmark.load(tmp_path / "single", split="dev")
    (tmp_path / "parquet").mkdir()
    write_parquet(tmp_path / "parquet", splits=("dev", "train"))
    with pytest.raises(FileNotFoundError, match="no judgements of the split 'test'; it has 'dev', 'train'"):
        Benchmark.load(tmp_path / "parquet")


def test_missing_and_wrong_parts_of_a_beir_folder(tmp_path):
    write_zip(tmp_path)
    rows = (tmp_path / "queries.jsonl").read_text()
    (tmp_path / "queries.jsonl").write_text(lines([*QUERIES, {"_id": "4", "text": " "}]))
    with pytest.raises(ValueError, match="1 queries have no text, the first is 4"):
        Benchmark.load(tmp_path)
    (tmp_path / "queries.jsonl").write_text(rows)
    judgements = tmp_path / "qrels" / "test.tsv"
    judgements.write_text("1\td1\t1.0\n")
    assert Benchmark.load(tmp_path).qrels == {"1": {"d1": 1}}
    judgements.write_text("1\td1\t0.5\n")
    with pytest.raises(ValueError, match=r"test\.tsv, line 1: expected query, document, integer score"):
        Benchmark.load(tmp_path)
    judgements.unlink()
    (tmp_path / "qrels" / "test.jsonl").write_text(lines([*named(QRELS), {"query-id": "1", "score": 1}]))
    with pytest.raises(ValueError, match=r"test\.jsonl, judgement 5: expected query-id, corpus-id, score"):
        Benchmark.load(tmp_path)
    (tmp_path / "corpus.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither corpus\.parquet nor corpus\.jsonl nor a folder corpus"):
        Benchmark.load(tmp_path)


def test_documents_of_a_beir_folder_that_could_be_taken_for_something_else(tmp_path, caplog):
    write_limit(tmp_path)
    (tmp_path / "corpus.jsonl").write_text(
        lines([CORPUS[0], {"_id": "d2", "title": None, "text": "photo.png"}, {"_id": "e"}])
    )
    benchmark = Benchmark.load(tmp_path)
    assert list(benchmark.corpus) == ["Pumps move water", {"text": "photo.png"}, {"text": "NULL"}]
    assert benchmark.texts == ["Pumps move water", "photo.png", ""]
    assert "1 documents without content" in caplog.text


def test_saving_over_something_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        small().save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_item_that_can_not_be_stored_is_named(tmp_path):
    buffer = io.BytesIO()
    picture(0).save(buffer, format="PNG")
    with pytest.raises(ValueError, match="item b"):
        small(corpus=["one", {"image": buffer.getvalue()[:40]}, "three"]).save(tmp_path / "x")


def test_damaged_folders_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no benchmark folder"):
        Benchmark.load(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"neither queries\.parquet nor queries\.jsonl"):
        Benchmark.load(tmp_path / "empty")

    def damaged(name, file, content):
        folder = tmp_path / name
        small().save(folder)
        (folder / file).write_bytes(content) if content is not None else (folder / file).unlink()
        return folder

    with pytest.raises(ValueError, match=r"corpus\.parquet is corrupt"):
        Benchmark.load(damaged("a", "corpus.parquet", b"PAR1 nothing"))
    with pytest.raises(ValueError, match=r"benchmark\.json is not valid JSON"):
        Benchmark.load(damaged("b", "benchmark.json", b"{"))
    with pytest.raises(ValueError, match="version 99"):
        Benchmark.load(damaged("c", "benchmark.json", b'{"version": 99}'))
    with pytest.raises(FileNotFoundError, match=r"neither qrels\.tsv"):
        Benchmark.load(damaged("d", "qrels.tsv", None))
    with pytest.raises(ValueError, match=r"qrels\.tsv, line 2: expected"):
        Benchmark.load(damaged("e", "qrels.tsv", b"query-id\tcorpus-id\tscore\nq0 a 1\n"))
    with pytest.raises(ValueError, match=r"line 2: query q0, document a is judged twice"):
        Benchmark.load(damaged("f", "qrels.tsv", b"q0\ta\t1\nq0\ta\t1\nq1\tb\t1\n"))
    with pytest.raises(ValueError, match="unknown documents: 'z'"):
        Benchmark.load(damaged("g", "qrels.tsv", b"q0\tz\t1\nq1\tb\t1\n"))
    with pytest.raises(ValueError, match=r"candidates\.jsonl, line 1 is not valid JSON"):
        Benchmark.load(damaged("h", "candidates.jsonl", b"{]\n"))
    with pytest.raises(ValueError, match=r"candidates\.jsonl, line 1: expected"):
        Benchmark.load(damaged("i", "candidates.jsonl", b'{"id": "q0"}\n'))
