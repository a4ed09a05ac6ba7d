"""Docstrings are read, split and de-duplicated as promised; benchmarks and training pairs are sound."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from eval.benchmarks import Benchmark
from recipes import tiny
from recipes.tiny import Canvas, Docstring, docstrings, make_benchmark, pages, training_pairs, write_pairs
from recipes.tiny.near_duplicates import without_near_duplicates
from recipes.tiny.queries import without_name, wording_query
from recipes.tiny.typeset import typeset_grid

SOURCE = '''"""The module's summary.

Its body.
"""

class Reader:
    """Reads
    things.

    Slowly, and   with care.
    """

    def get(self):
        """Return it."""

    def silent(self): pass

async def fetch():
    """Fetch caf\u00e9."""
'''


@pytest.fixture(scope="module")
def held_out():
    return tiny.held_out()


def test_reads_modules_classes_and_functions(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "__init__.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "demo" / "tests").mkdir()
    (tmp_path / "demo" / "tests" / "test_it.py").write_text('"""Not read."""')
    (tmp_path / "demo" / "broken.py").write_text("def (:")
    assert list(docstrings.read_module(tmp_path, "demo")) == [
        Docstring("demo", "demo", "The module's summary.", "Its body."),
        Docstring("demo", "demo.Reader", "Reads things.", "Slowly, and with care."),
        Docstring("demo", "demo.Reader.get", "Return it.", ""),
        Docstring("demo", "demo.fetch", "Fetch caf .", ""),
    ]
    assert list(docstrings.read_module(tmp_path, "absent")) == []


def text(words: str) -> Docstring:
    return Docstring("m", "m.f", words, "")


def test_near_duplicates_go_across_lists_and_within_one():
    first = text("Return the number of rows that the table holds at this moment.")
    copy = text("return the number of rows that the table holds at this moment")
    shorter = text("Return the number of rows that the table holds")
    other = text("Close the file and flush whatever is left in its buffers to disk.")
    assert without_near_duplicates([first, copy, shorter, other]) == [first, other]
    assert without_near_duplicates([copy, other], known=[first]) == [other]


def test_shared_phrases_of_several_pages_make_no_duplicate():
    page = text("one two three four five six and then a tail that nobody else has at all")
    known = [text("one two three four five six"), text("unrelated words stand here in a row")]
    assert without_near_duplicates([page], known=known) == [page]


def test_own_name_is_masked_as_a_word_only():
    assert without_name("Get it, widget; get() or __get__", "m.C.get") == "___ it, widget; ___() or ___"


@pytest.mark.compiles
def test_held_out_and_training_modules_do_not_meet(held_out):
    training = tiny.for_training()
    assert not {d.module for d in training} & {d.module for d in held_out}
    assert not set(tiny.TRAIN_MODULES) & set(tiny.HELD_OUT_MODULES)
    assert {d.module for d in held_out} == set(tiny.HELD_OUT_MODULES)
    seen = {d.text for d in held_out}
    assert len(seen) == len(held_out) and not any(d.text in seen for d in training)


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_benchmark_has_500_full_pages_of_distinct_docstrings(kind, held_out):
    made = make_benchmark(held_out, kind, Canvas(128, 256), seed=1)
    assert len(made.queries) == len(made.corpus) == 500
    assert all(made.corpus[i].size == (256, 128) for i in range(0, 500, 50))
    assert len(set(made.texts)) == 500
    again = make_benchmark(held_out, kind, Canvas(128, 256), seed=1)
    assert again.queries == made.queries and again.corpus_ids == made.corpus_ids


def test_wording_queries_are_words_of_their_page_in_order(held_out):
    made = make_benchmark(held_out, "wording", Canvas(128, 256), count=60)
    for query, shown in zip(made.queries, made.texts, strict=True):
        words = iter(shown.split())
        assert all(any(word.startswith(w) for word in words) for w in query.split())
        assert 1 <= len(query.split()) <= 8


def test_a_quarter_of_the_words_is_dropped():
    rng = np.random.default_rng(0)
    shown = " ".join(f"w{i}" for i in range(40))
    lengths = [len(wording_query(shown, rng).split()) for _ in range(4000)]
    assert np.mean(lengths) == pytest.approx(6.5 * 0.75, abs=0.1)  # 5..8 words, standard error 0.02


def test_meaning_pages_show_neither_summary_nor_name(held_out):
    made = make_benchmark(held_out, "meaning", Canvas(256, 512), count=50)
    for query, name, shown in zip(made.queries, made.corpus_ids, made.texts, strict=True):
        own = name.rpartition(".")[2].strip("_").lower()
        assert own not in query.lower().replace(",", " ").split()
        assert own not in shown.lower().replace(",", " ").split()


def test_benchmark_survives_saving(tmp_path, held_out):
    made = make_benchmark(held_out, "wording", Canvas(64, 128), count=5)
    made.save(tmp_path / "b")
    loaded = Benchmark.load(tmp_path / "b")
    assert list(loaded.query_ids) == list(made.query_ids) and loaded.qrels == made.qrels
    expected, _ = typeset_grid(made.texts[2], 64, 128)
    assert np.array_equal(np.asarray(made.corpus[2]), expected)


def test_print_pages_have_their_own_layouts(held_out):
    made = make_benchmark(held_out, "wording", Canvas(384, 384, "print"), count=6)
    assert len({np.asarray(page).tobytes() for page in made.corpus}) == 6
    assert all(page.size == (384, 384) for page in made.corpus)


def test_training_pairs_have_the_layout_of_the_colpali_set(tmp_path):
    source = [
        Docstring("m", f"m.f{i}", f"Summary of function {i}.", " ".join(f"word{j}of{i}" for j in range(60)))
        for i in range(5)
    ]
    rows = training_pairs(source, Canvas(64, 128), count=30, meaning=0.3, shuffled=0.3)
    assert write_pairs(tmp_path, rows) == 30
    table = pq.read_table(tmp_path / "data" / "train-00000-of-00001.parquet")
    assert {"image", "image_filename", "query", "answer", "source"} <= set(table.column_names)
    record = table.to_pylist()[7]
    image = Image.open(io.BytesIO(record["image"]["bytes"]))
    assert np.array_equal(np.asarray(image.convert("RGB")), typeset_grid(record["answer"], 64, 128)[0])
    with pytest.raises(FileExistsError, match="choose another"):
        write_pairs(tmp_path, [])


def test_accept_filters_queries():
    source = [Docstring("m", "m.f", "Summary.", " ".join(f"word{j}" for j in range(60)))]
    rows = training_pairs(source, Canvas(64, 128), count=20, accept=lambda query: len(query) < 30)
    assert max(len(row["query"]) for row in rows) < 30


def test_bad_requests_are_named(held_out):
    with pytest.raises(ValueError, match="kind is 'sound'"):
        make_benchmark(held_out, "sound", Canvas())
    with pytest.raises(ValueError, match="take a smaller page"):
        make_benchmark([text("short")], "wording", Canvas())
    with pytest.raises(ValueError, match="style is 'comic'"):
        Canvas(style="comic")
    with pytest.raises(ValueError, match="no docstrings"):
        list(training_pairs([], Canvas(), count=1))


@pytest.mark.compiles
def test_command_line_writes_both(tmp_path, capsys):
    pages.main(["benchmark", "--out", str(tmp_path / "b"), "--count", "4", "--height", "64", "--width", "128"])
    pages.main(["pairs", "--out", str(tmp_path / "p"), "--count", "5", "--height", "32", "--width", "64"])
    assert len(Benchmark.load(tmp_path / "b").corpus) == 4
    assert "5 pairs" in capsys.readouterr().out
