"""Pages are what they say: cells at their places, text flowed at spaces, every font at hand."""

import time

import numpy as np
import pytest

from recipes.tiny import typeset

TEXT = "Return the string obtained by replacing the leftmost occurrences of the pattern by the replacement. " * 4


def test_printable_keeps_one_space_between_ascii_words():
    assert typeset.printable("  caf\u00e9\n\t and\x00 tea ") == "caf and tea"


def test_wrap_breaks_at_spaces_and_counts_what_is_shown():
    lines, shown = typeset.wrap("one two three four", rows=2, columns=8)
    assert lines == ["one two", "three"]
    assert "one two three four"[:shown] == "one two three"


def test_wrap_cuts_a_word_that_is_longer_than_a_line():
    lines, shown = typeset.wrap("abcdefghij", rows=2, columns=4)
    assert lines == ["abcd", "efgh"]
    assert shown == 8


@pytest.mark.parametrize("rows,columns", [(0, 4), (4, 0)])
def test_wrap_refuses_a_page_without_cells(rows, columns):
    with pytest.raises(ValueError, match="holds no text"):
        typeset.wrap("text", rows, columns)


def test_grid_cells_hold_their_characters():
    page, shown = typeset.typeset_grid("ab a", 32, 32)
    assert page.shape == (32, 32, 3) and page.dtype == np.uint8 and shown == "ab a"
    cells = page[..., 0].reshape(2, 16, 4, 8).swapaxes(1, 2)  # [row, column, 16, 8]
    assert np.array_equal(cells[0, 0], cells[0, 3])  # both are "a"
    assert not np.array_equal(cells[0, 0], cells[0, 1])
    assert (cells[0, 2] == 255).all() and (cells[1] == 255).all()
    assert (cells[0, 0] < 64).any()


def test_every_character_has_a_glyph_of_its_own():
    glyphs = typeset.draw_codes(np.arange(95, dtype=np.uint8)[:, None, None])
    assert len(np.unique(glyphs.reshape(95, -1), axis=0)) == 95


def test_grid_page_takes_half_a_millisecond_at_most():
    typeset.typeset_grid(TEXT, 128, 256)
    times = []
    for _ in range(50):
        start = time.process_time()
        typeset.typeset_grid(TEXT, 128, 256)
        times.append(time.process_time() - start)
    assert min(times) < 5e-4


@pytest.mark.parametrize("height,width", [(100, 256), (128, 100), (0, 256)])
def test_grid_refuses_pages_that_are_no_whole_number_of_cells(height, width):
    with pytest.raises(ValueError, match="multiple of 16 px high and 8 px wide"):
        typeset.typeset_grid(TEXT, height, width)


@pytest.mark.parametrize("font", typeset.FONTS)
def test_every_font_prints_within_its_margins(font):
    layout = typeset.Layout(font=font, size=16, margin=20, spacing=2, ink=0, paper=240)
    page, shown = typeset.typeset(TEXT, 200, 300, layout)
    pixels = np.asarray(page)
    assert pixels.shape == (200, 300, 3)
    assert TEXT.startswith(shown) and len(shown.split()) > 10
    assert (pixels[:, :15] == 240).all() and (pixels[:, -15:] == 240).all() and (pixels[:18] == 240).all()
    assert (pixels < 100).any()


def test_layouts_differ_and_follow_their_seed():
    layouts = [typeset.random_layout(np.random.default_rng(seed)) for seed in range(40)]
    assert len({layout.font for layout in layouts}) > 5
    assert layouts[3] == typeset.random_layout(np.random.default_rng(3))


def test_margins_without_room_are_refused():
    with pytest.raises(ValueError, match="no room"):
        typeset.typeset(TEXT, 60, 60, typeset.Layout("DejaVuSans", 16, 30, 2, 0, 255))


def test_unknown_font_is_named():
    with pytest.raises(ValueError, match="Wingdings"):
        typeset.typeset(TEXT, 200, 200, typeset.Layout("Wingdings", 16, 8, 2, 0, 255))


def test_grid_places_are_where_the_characters_are_drawn():
    text = "one two  three abcdefghij"
    page, shown = typeset.typeset_grid(text, 64, 64)
    places = typeset.grid_places(text, rows=4, columns=8)
    assert len(places) == len(shown)
    for character, (row, column) in zip(shown, places, strict=True):
        if row < 0:
            assert character == " "
            continue
        cell = page[16 * row : 16 * row + 16, 8 * column : 8 * column + 8, 0]
        codes = typeset.grid_codes([character], rows=1, columns=1)
        assert np.array_equal(cell, typeset.draw_codes(codes))
