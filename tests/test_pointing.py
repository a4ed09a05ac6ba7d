"""The pointing test: the box is where the answer is drawn, the figures are those of maps known by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from benchmarks import pointing, pointing_text
from recipes.tiny import Canvas


def test_the_answer_s_mask_is_where_its_ink_is():
    for case in pointing.cases(20, Canvas(), seed=0):
        mask = pointing.answer_mask(case, 4, 8)
        assert 0 < mask.mean() < 0.7
        words = case.query.split()
        assert len(case.places) >= sum(map(len, words))
        ink = np.asarray(case.page.convert("L")) < 128
        for row, column in case.places:
            cell = ink[16 * row : 16 * row + 16, 8 * column : 8 * column + 8]
            if cell.any():
                assert mask[16 * row // 32, 8 * column // 32]


def test_the_mask_of_characters_known_by_hand():
    case = pointing.Case(Image.new("RGB", (64, 64)), "ab", np.array([[1, 3], [1, 4]]))
    assert pointing.answer_mask(case, 2, 2).tolist() == [[True, True], [False, False]]
    assert pointing.answer_mask(case, 4, 1).tolist() == [[False], [True], [False], [False]]


def test_figures_of_maps_known_by_hand():
    mask = np.array([[True, False], [False, False]])
    assert pointing.inside_and_peak(np.ones((1, 2, 2)), mask) == (0.25, 0.25)
    two = np.array([[[3.0, 1], [0, 0]], [[1, 3], [0, 0]]])
    assert pointing.inside_and_peak(two, mask) == (0.5, 0.5)
    assert pointing.inside_and_peak(np.zeros((1, 2, 2)), mask) == (0.0, 0.0)
    assert pointing.scaled(np.array([[1.0, 2], [3, 5]])).tolist() == [[0, 0.25], [0.5, 1]]


@pytest.mark.slow
def test_the_command(capsys, tmp_path):
    pointing.main(["--pages=5", "--seeds=1", "--sample=3", f"--picture={tmp_path / 'a.png'}"])
    printed = capsys.readouterr().out
    assert printed.startswith("5 queries") and all(method in printed for method in pointing.METHODS)
    assert (tmp_path / "a.png").is_file()


def test_the_table_has_paired_differences():
    found = np.zeros((9, len(pointing.METHODS), 2))
    found[:, pointing.METHODS.index("evidence"), 0] = 0.5 + np.arange(9) / 20
    found[:, 1, 0] = 0.25 + np.arange(9) / 20
    assert f"| evidence − {pointing.METHODS[1]} | +0.250 [0.250, 0.250] | +0.000 [0.000, 0.000] |" in pointing.table(
        found
    )


def test_the_answer_of_a_text_is_its_tokens():
    for case in pointing_text.cases(20, seed=0):
        assert set(case.query.split()) <= set(case.text[slice(*case.run)].split()) and len(case.text) >= 300
    spans = np.array([[0, 0, 3], [0, 4, 8], [0, 9, 12], [0, 9, 12]])
    sources = SimpleNamespace(spans=spans, kinds=np.array([2, 2, 2, 0]))
    assert pointing_text.answer_mask(SimpleNamespace(sources=sources), (5, 10)).tolist() == [False, True, True, False]
