"""PDF benchmarks on small PDFs written byte by byte."""

import logging

import numpy as np
import pytest

from eval.benchmarks.pdf import pdf_benchmark
from eval.benchmarks.pdf.benchmark import is_contents_page
from eval.benchmarks.pdf.page_text import clean_title, fold
from eval.reports import read_results
from tests.processes import run_main
from tests.small_pdf import HEIGHT, WIDTH, write_pdf

HEADING = 18
BODY = 9


def manual(path, **options):
    """A cover, contents, three chapters (one title twice), an empty page, and running headers."""
    pages = [
        [(60, 300, 24, "The Manual")],
        [(60, 350, 12, "Contents"), *((60, 330 - 12 * i, 8, f"{i} Chapter {'. ' * 12}{i}") for i in range(1, 6))],
        [
            (30, 385, 7, "1. Cooling pumps"),
            (60, 330, HEADING, "1. Cooling pumps"),
            (60, 300, BODY, "Water moves heat away. A cooling pump is needed."),
            (60, 200, HEADING, "1.1 Safety"),
            (60, 180, BODY, "Wear gloves."),
        ],
        [(60, 330, HEADING, "2. Bearings and"), (60, 308, HEADING, "lubrication"), (60, 270, BODY, "Grease them.")],
        [],
        [(60, 330, HEADING, "2.1 Safety"), (60, 300, BODY, "Stop the motor. Safety first.")],
    ]
    outline = [
        ("Contents", 1, 360),
        ("1. Cooling pumps", 2, 350),
        ("\t1.1 Safety", 2, 220),
        ("2. Bearings and lubrication", 3, 350),
        ("\t2.1 Safety", 5, 350),
    ]
    return write_pdf(path / "manual.pdf", pages, outline, **options)


def ink(image, left, bottom, right, top):
    """Darkest pixel of a box given in points, for images of 72 dpi."""
    pixels = np.asarray(image.convert("L"))
    return int(pixels[HEIGHT - top : HEIGHT - bottom, left:right].min())


def test_entries_become_queries_and_pages_the_corpus(tmp_path):
    benchmark = pdf_benchmark(manual(tmp_path), white_out=False)
    assert benchmark.name == "manual"
    assert list(benchmark.queries) == ["Cooling pumps", "Safety", "Bearings and lubrication"]
    assert benchmark.instruction == "Find a document image that matches the given query."
    # Page 2 is the contents, page 5 is empty.
    assert list(benchmark.corpus_ids) == ["page-0001", "page-0003", "page-0004", "page-0006"]
    relevant = [set(benchmark.qrels[q]) for q in benchmark.query_ids]
    assert relevant == [{"page-0003"}, {"page-0003", "page-0006"}, {"page-0004"}]


def test_a_bad_file_of_a_folder_leaves_the_others(tmp_path):
    """It is named in the report and in the exit code, and the others are evaluated."""
    manual(tmp_path)
    (tmp_path / "a_bad_one.pdf").write_bytes(b"%PDF-1.7 and nothing else")
    out = f"--config.output={tmp_path / 'out'}"
    done = run_main(
        "eval.run", "--config=configs/eval_pdf.py", f"--config.path={tmp_path}", "--config.rows=['bm25']", out
    )
    assert done.returncode and "1 of 2 benchmarks failed" in done.stderr
    report = read_results(tmp_path / "out" / "results.json")
    assert [benchmark.name for benchmark in report.benchmarks] == ["manual"]
    (failure,) = report.failed
    assert failure.name == "a_bad_one" and "cannot be read as a PDF" in failure.error


def test_pages_are_rendered_at_the_asked_size_each_time(tmp_path):
    corpus = pdf_benchmark(manual(tmp_path), dpi=144).corpus
    assert corpus[0].size == (2 * WIDTH, 2 * HEIGHT) and corpus[0].mode == "RGB"
    assert corpus[0] is not corpus[0]
    np.testing.assert_array_equal(np.asarray(corpus[1]), np.asarray(corpus[1]))


def test_white_out_hides_headings_and_running_headers_but_no_body(tmp_path):
    plain = pdf_benchmark(manual(tmp_path), white_out=False).corpus
    hidden = pdf_benchmark(manual(tmp_path), white_out=True)
    heading, header, second, body = (58, 325, 250, 350), (28, 380, 150, 395), (58, 195, 250, 215), (58, 295, 290, 312)
    for box in (heading, header, second, body):
        assert ink(plain[1], *box) < 100
    for box in (heading, header, second):
        assert ink(hidden.corpus[1], *box) == 255
    assert ink(hidden.corpus[1], *body) == ink(plain[1], *body)
    two_lines = (58, 303, 250, 350)
    assert ink(plain[2], *two_lines) < 100 and ink(hidden.corpus[2], *two_lines) == 255


def test_white_out_takes_the_heading_out_of_the_text(tmp_path):
    shown, hidden = (pdf_benchmark(manual(tmp_path), white_out=w).texts for w in (False, True))
    assert shown[1].count("Cooling pumps") == 2 and "1.1 Safety" in shown[1]
    assert "Cooling pumps" not in hidden[1] and "Safety" not in hidden[1]
    assert "A cooling pump is needed." in hidden[1] and "Wear gloves." in hidden[1]
    assert "lubrication" not in hidden[2] and "Grease them." in hidden[2]
    assert "2.1 Safety" not in hidden[3] and "Safety first." in hidden[3]  # the word in the body stays


def test_white_out_follows_the_page_rotation(tmp_path):
    benchmark = pdf_benchmark(manual(tmp_path, rotate=90))
    assert benchmark.corpus[1].size == (HEIGHT, WIDTH)
    upright = benchmark.corpus[1].rotate(90, expand=True)
    assert ink(upright, 58, 325, 250, 350) == 255 and ink(upright, 58, 295, 290, 312) < 100


def test_the_match_that_the_outline_points_to_is_hidden(tmp_path):
    lines = [(60, 300, 12, "Valves"), (60, 200, 12, "Valves"), (60, 100, 12, "Valves")]
    path = write_pdf(tmp_path / "a.pdf", [lines], [("Valves", 0, 215)])
    page = pdf_benchmark(path).corpus[0]
    assert [ink(page, 58, y - 4, 120, y + 14) == 255 for y in (300, 200, 100)] == [False, True, False]


def test_entry_whose_heading_is_not_on_its_page_is_left_out_with_a_warning(tmp_path, caplog):
    lines = [(60, 300, 12, "Valves")]
    path = write_pdf(tmp_path / "a.pdf", [lines], [("Valves", 0, 315), ("Taps", 0, 200)])
    with caplog.at_level(logging.WARNING):
        assert list(pdf_benchmark(path).queries) == ["Valves"]
    assert "1 of 2 headings" in caplog.text and "Taps" in caplog.text
    assert list(pdf_benchmark(path, white_out=False).queries) == ["Valves", "Taps"]


def test_level_limit(tmp_path):
    assert list(pdf_benchmark(manual(tmp_path), max_level=0).queries) == ["Cooling pumps", "Bearings and lubrication"]


def test_benchmark_of_a_pdf_can_be_saved_and_loaded(tmp_path):
    benchmark = pdf_benchmark(manual(tmp_path))
    benchmark.save(tmp_path / "saved")
    loaded = type(benchmark).load(tmp_path / "saved")
    assert loaded.qrels == benchmark.qrels and list(loaded.texts) == list(benchmark.texts)
    assert loaded.instruction == benchmark.instruction


@pytest.mark.parametrize(
    ("title", "cleaned"),
    [
        ("1. Introduction", "Introduction"),
        ("3.2.1  Using the tool", "Using the tool"),
        ("3.2.1. Using the tool", "Using the tool"),
        ("Chapter 4: Pumps", "Pumps"),
        ("CHAPTER IV. Pumps", "Pumps"),
        ("Appendix B — Licences", "Licences"),
        ("A.1 Format", "Format"),
        ("12 Monkeys", "Monkeys"),
        ("IX. The end", "The end"),
        ("3D printing", "3D printing"),
        ("A note", "A note"),
        ("I am", "I am"),
        ("Part numbers", "Part numbers"),
        ("Chapter 4", "Chapter 4"),
        ("2.0", "2.0"),
        ("  spread\n out ", "spread out"),
    ],
)
def test_numbering_is_taken_off_titles(title, cleaned):
    assert clean_title(title) == cleaned


def test_fold_ignores_spaces_case_quotes_and_hyphens():
    assert fold("The Maintainer’s\r\nRe-\nlease ﬁle") == fold("the maintainer's release file")
    assert fold("release") != fold("released")


def test_contents_pages_are_told_from_pages_with_numbers():
    titles = {fold(f"Topic {c}") for c in "abcdefgh"}
    assert is_contents_page("Contents\n" + "\n".join(f"{i} Topic {c} {i}" for i, c in enumerate("abcdefgh")), titles)
    assert is_contents_page("\n".join(f"Anything . . . . . . {i}" for i in range(4)), set())
    assert is_contents_page("\n".join(f"Anything......{n}" for n in ("i", "ii", "iv")), set())
    assert not is_contents_page("\n".join(f"Row {c} {i}" for i, c in enumerate("abcdefgh")), titles)
    assert not is_contents_page("Topic a\nWe shall see...\nand wait...\nand so on...", titles)


def test_bad_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no PDF"):
        pdf_benchmark(tmp_path / "missing.pdf")
    (tmp_path / "bad.pdf").write_bytes(b"not a PDF at all")
    with pytest.raises(ValueError, match=r"bad\.pdf cannot be read as a PDF"):
        pdf_benchmark(tmp_path / "bad.pdf")
    (tmp_path / "empty.pdf").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty\.pdf cannot be read as a PDF"):
        pdf_benchmark(tmp_path / "empty.pdf")
    with pytest.raises(ValueError, match="no outline"):
        pdf_benchmark(write_pdf(tmp_path / "flat.pdf", [[(60, 300, 12, "Text")]], []))
    with pytest.raises(ValueError, match="no outline entry is left"):
        pdf_benchmark(write_pdf(tmp_path / "lost.pdf", [[(60, 300, 12, "Text")]], [("Other", 0, 300)]))
    with pytest.raises(ValueError, match="dpi"):
        pdf_benchmark(manual(tmp_path), dpi=0)
