"""Pages typeset from plain text with Pillow: a monospace grid drawn from a glyph atlas, and free proportional layouts.

Fonts are read at run time from the installed packages: matplotlib carries DejaVu, Computer Modern and STIX, Pillow one
of its own. Characters outside printable ASCII are replaced by spaces, so that every page shows what its text says.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw, ImageFont

CELL_HEIGHT, CELL_WIDTH = 16, 8  # pixels of one character of the grid: two characters side by side fill a 16 x 16 patch
FIRST, LAST = 32, 126  # printable ASCII
PILLOW_FONT = "Pillow"
FONTS = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSansMono",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "STIXGeneral",
    "STIXGeneralItalic",
    PILLOW_FONT,
)
_MONOSPACE_POINTS = 13  # DejaVu Sans Mono's advance is then 7.8 px: the largest size that fits the cell


def printable(text: str) -> str:
    """Replaces each run of whitespace and of characters outside printable ASCII by one space, and strips the ends.

    Example:
      >>> printable("  caf\u00e9\\n and  tea ")
      'caf and tea'
    """
    return " ".join("".join(c if FIRST <= ord(c) <= LAST else " " for c in text).split())


def wrap(text: str, rows: int, columns: int) -> tuple[list[str], int]:
    """Breaks text at spaces into at most `rows` lines of at most `columns` characters; longer words are cut.

    Returns:
      The lines, and how many characters of `printable(text)` they show (a word cut by the page's end is not shown).

    Raises:
      ValueError: the grid has no cell.

    Example:
      >>> wrap("one two three four", rows=2, columns=8)
      (['one two', 'three'], 13)
    """
    if rows < 1 or columns < 1:
        raise ValueError(f"a page of {rows} x {columns} characters holds no text: both must be at least 1")
    text = printable(text)
    # No page shows more than rows * columns characters and the spaces that line ends swallow.
    lines = textwrap.wrap(text[: rows * (columns + 1) + columns], columns, break_on_hyphens=False)[:rows]
    shown = 0
    for line in lines:
        shown = text.index(line, shown) + len(line)
    return lines, shown


@functools.cache
def _atlas(font: str) -> UInt8[np.ndarray, "characters 16 8"]:
    """Draws a cell for each printable character, black on white; the first, of the space, is white."""
    face = _face(font, _MONOSPACE_POINTS)
    ascent = face.getmetrics()[0]
    cells = []
    for code in range(FIRST, LAST + 1):
        image = Image.new("L", (CELL_WIDTH, CELL_HEIGHT), 255)
        ImageDraw.Draw(image).text((0, ascent), chr(code), fill=0, font=face, anchor="ls")
        cells.append(np.asarray(image))
    return np.stack(cells)


def grid_codes(lines: Sequence[str], rows: int, columns: int) -> UInt8[np.ndarray, "rows columns"]:
    """Returns the character of every cell as its code minus 32; 0 = space = empty.

    Example:
      >>> grid_codes(["ab"], rows=1, columns=3).tolist()
      [[65, 66, 0]]
    """
    codes = np.zeros((rows, columns), np.uint8)
    for row, line in enumerate(lines[:rows]):
        characters = np.frombuffer(line[:columns].encode("ascii"), np.uint8)
        codes[row, : len(characters)] = characters - FIRST
    return codes


def typeset_grid(
    text: str, height: int, width: int, *, font: str = "DejaVuSansMono"
) -> tuple[UInt8[np.ndarray, "height width 3"], str]:
    """Typesets monospace text on a fixed grid of cells of 8 x 16 pixels, in well under a millisecond.

    Args:
      text: flows over the page, whitespace collapsed.
      height, width: of the page in pixels, multiples of 16 and of 8.
      font: a monospace face.

    Returns:
      The page, in RGB, black on white, and the part of the text that it shows.

    Raises:
      ValueError: the page is not a whole number of cells.

    Example:
      >>> page, shown = typeset_grid("Return it.", 16, 96)
      >>> page.shape, page.dtype, shown
      ((16, 96, 3), dtype('uint8'), 'Return it.')
    """
    if height % CELL_HEIGHT or width % CELL_WIDTH or height < CELL_HEIGHT or width < CELL_WIDTH:
        raise ValueError(
            f"a grid page is a multiple of {CELL_HEIGHT} px high and {CELL_WIDTH} px wide, not {height} x {width}"
        )
    rows, columns = height // CELL_HEIGHT, width // CELL_WIDTH
    lines, shown = wrap(text, rows, columns)
    gray = draw_codes(grid_codes(lines, rows, columns), font)
    return np.repeat(gray[..., None], 3, axis=-1), printable(text)[:shown]


def grid_places(text: str, rows: int, columns: int) -> Int[np.ndarray, "shown 2"]:
    """Returns row and column of each character that a grid page shows of a text; -1 of a space that a line ends with.

    Example:
      >>> grid_places("one two", rows=2, columns=4).tolist()
      [[0, 0], [0, 1], [0, 2], [-1, -1], [1, 0], [1, 1], [1, 2]]
    """
    lines, shown = wrap(text, rows, columns)
    text, at = printable(text), 0
    places = np.full((shown, 2), -1)
    for row, line in enumerate(lines):
        at = text.index(line, at)
        places[at : at + len(line)] = [(row, column) for column in range(len(line))]
        at += len(line)
    return places


def draw_codes(
    codes: UInt8[np.ndarray, "*batch rows columns"], font: str = "DejaVuSansMono"
) -> UInt8[np.ndarray, "*batch height width"]:
    """Draws gray pages of the cells that `grid_codes` gives."""
    *batch, rows, columns = codes.shape
    cells: np.ndarray = np.moveaxis(_atlas(font)[codes], -2, -3)  # [..., rows, 16, columns, 8]
    return cells.reshape(*batch, rows * CELL_HEIGHT, columns * CELL_WIDTH)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Layout of one proportional page; lengths are in pixels."""

    font: str
    size: int
    margin: int
    spacing: int  # between lines
    ink: int  # gray level of the text
    paper: int  # gray level of the page


def random_layout(rng: np.random.Generator, *, min_size: int = 12, max_size: int = 22) -> Layout:
    """Draws font, size, margins and gray levels from the ranges in which documents vary."""
    return Layout(
        font=FONTS[rng.integers(len(FONTS))],
        size=int(rng.integers(min_size, max_size + 1)),
        margin=int(rng.integers(8, 49)),
        spacing=int(rng.integers(1, 7)),
        ink=int(rng.integers(0, 64)),
        paper=int(rng.integers(225, 256)),
    )


def typeset(text: str, height: int, width: int, layout: Layout) -> tuple[Image.Image, str]:
    """Typesets proportional text; lines are broken at spaces by measured widths.

    Returns:
      The page, in RGB, width x height pixels, and the part of the text that it shows.

    Raises:
      ValueError: the margins leave no room for a line.
    """
    face = _face(layout.font, layout.size)
    line_height = sum(face.getmetrics()) + layout.spacing
    room, lines_at_most = width - 2 * layout.margin, (height - 2 * layout.margin) // line_height
    if room < layout.size or lines_at_most < 1:
        raise ValueError(
            f"margins of {layout.margin} px leave no room for {layout.size} px text on {height} x {width} px"
        )
    words = printable(text).split(" ")
    image = Image.new("RGB", (width, height), (layout.paper,) * 3)
    draw = ImageDraw.Draw(image)
    shown = 0
    for row in range(lines_at_most):
        line, taken = _fill_line(words[shown:], face, room)
        draw.text((layout.margin, layout.margin + row * line_height), line, fill=(layout.ink,) * 3, font=face)
        shown += taken
        if shown >= len(words):
            break
    return image, " ".join(words[:shown])


def _fill_line(words: Sequence[str], face: ImageFont.FreeTypeFont, room: int) -> tuple[str, int]:
    """Returns the longest run of words that fits; a word wider than the line stands alone and the margin cuts it."""
    width, taken, space = 0.0, 0, face.getlength(" ")
    for word in words:
        wider = width + (space if taken else 0) + face.getlength(word)
        if taken and wider > room:
            break
        width, taken = wider, taken + 1
    return " ".join(words[:taken]), taken


@functools.lru_cache(maxsize=256)
def _face(name: str, size: int) -> ImageFont.FreeTypeFont:
    if name == PILLOW_FONT:
        face = ImageFont.load_default(size)
        if not isinstance(face, ImageFont.FreeTypeFont):
            raise RuntimeError("this Pillow was built without FreeType: install the wheel from the package index")
        return face
    path = font_folder() / f"{name}.ttf"
    if not path.is_file():
        raise ValueError(f"font '{name}' is not among matplotlib's in {path.parent}: choose one of {', '.join(FONTS)}")
    return ImageFont.truetype(str(path), size)


def font_folder() -> Path:
    """Returns the folder of matplotlib's TrueType fonts, found without importing matplotlib."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("pages are typeset with the fonts of matplotlib: pip install 'smart_jax[eval]'")
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
