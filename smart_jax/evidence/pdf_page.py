"""The characters of a PDF page with their places on its picture, by PDFium."""

from __future__ import annotations

import ctypes
import dataclasses
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float
from PIL import Image

if TYPE_CHECKING:
    from pypdfium2 import PdfPage

POINTS_PER_INCH = 72
_DEVICE = 1_000_000  # pixels of the page's sides where PDFium is asked for places: it answers in whole ones
LEAST_HEIGHT = 0.3  # of a line: letters may be set smaller in it
WIDEST_COLUMN = 4.0  # times a character of it: stacked letters differ in width
_INSTEAD = {0: " ", 2: "-", 0xFFFE: "-"}  # of no character, and of a hyphen at the end of a line


def page_scale(page: PdfPage, dpi: float, name: str) -> float:
    """Returns the scale at which `page.render` has so many pixels per inch.

    Args:
      page: of a document that `pypdfium2.PdfDocument` opened.
      dpi: pixels per inch.
      name: what messages call the page.

    Raises:
      ValueError: the picture would be larger than Pillow lets images be (`PIL.Image.MAX_IMAGE_PIXELS`).

    Example:
      >>> import pypdfium2
      >>> page_scale(pypdfium2.PdfDocument.new().new_page(30_000, 30_000), 100, "page 1")
      Traceback (most recent call last):
      ValueError: page 1 is 41667 x 41667 pixels at 100 dpi, beyond the limit of 89478485 pixels: lower the dpi
    """
    scale, limit = dpi / POINTS_PER_INCH, Image.MAX_IMAGE_PIXELS
    width, height = (max(side * scale, 1.0) for side in page.get_size())
    if limit is not None and not width * height <= limit:
        raise ValueError(
            f"{name} is {width:.0f} x {height:.0f} pixels at {dpi:g} dpi, beyond the limit of {limit} pixels: lower "
            "the dpi"
        )
    return scale


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PageText:
    """The text of a page, and a box of each character on the page as it is rendered.

    Attributes:
      text: the characters in reading order, lines ended as PDFium ends them.
      boxes: float32 [characters, 4], (left, top, right, bottom) in parts of the page's width and height, from its upper
        left corner; all 0 of a line break. A box is as high as its font.

    Example:
      >>> page = PageText("oil", np.float32([[0.25, 0.5, 0.375, 1], [0.375, 0.5, 0.5, 1], [0.5, 0.5, 0.625, 1]]))
      >>> [box.tolist() for box in page.lines(0, 2)]
      [[0.25, 0.5, 0.5, 1.0]]
    """

    text: str
    boxes: Float[np.ndarray, "characters 4"]

    def __post_init__(self) -> None:
        if self.boxes.shape != (len(self.text), 4):
            raise ValueError(f"boxes have shape {self.boxes.shape} for {len(self.text)} characters")

    @classmethod
    def read(cls, page: PdfPage) -> PageText:
        """Reads a page of a document that `pypdfium2.PdfDocument` opened.

        Rotation and crop box of the page are those of `page.render`. What PDFium gives as two halves of a character
        becomes one; a lone half, and what is no character, is replaced, so that the text can be encoded.
        """
        import pypdfium2.raw as pdfium

        words = page.get_textpage()
        try:
            count = words.count_chars()
            codes = [pdfium.FPDFText_GetUnicode(words, i) for i in range(count)]
            corners = np.array([words.get_charbox(i, loose=True) for i in range(count)], np.float64).reshape(-1, 4)
        finally:
            words.close()
        characters, whole = _characters(codes)
        drawn = np.array([not c.isspace() for c in characters], bool)[:, None]
        boxes = np.where(drawn, _on_picture(page, corners[whole]), 0)
        return cls("".join(characters), boxes.astype(np.float32))

    def lines(self, start: int, stop: int) -> list[Float[np.ndarray, " 4"]]:
        """Returns boxes that cover the characters start:stop, one for each line or column that they are on."""
        lines: list[np.ndarray] = []
        broken = False
        for character, box in zip(self.text[start:stop], self.boxes[start:stop], strict=True):
            if box[2] <= box[0] or box[3] <= box[1]:
                broken |= character in "\r\n"
                continue
            if lines and (_is_beside(box, lines[-1]) or (not broken and _is_below(box, lines[-1]))):
                lines[-1] = np.concatenate([np.minimum(lines[-1][:2], box[:2]), np.maximum(lines[-1][2:], box[2:])])
            else:
                lines.append(box)
            broken = False
        return lines


def _is_beside(box: Float[np.ndarray, " 4"], line: Float[np.ndarray, " 4"]) -> bool:
    """Returns whether a character is on a line, and not beside a column of many."""
    on_line = line[1] < (box[1] + box[3]) / 2 < line[3] and box[3] - box[1] > LEAST_HEIGHT * (line[3] - line[1])
    return bool(on_line and box[2] > line[0])


def _is_below(box: Float[np.ndarray, " 4"], column: Float[np.ndarray, " 4"]) -> bool:
    """Returns whether a character goes on with a column of turned or stacked text, down or up."""
    in_column = column[0] < (box[0] + box[2]) / 2 < column[2]
    return bool(in_column and column[2] - column[0] <= WIDEST_COLUMN * (box[2] - box[0]))


def _characters(codes: list[int]) -> tuple[list[str], list[int]]:
    """Returns the characters of PDFium's codes, and which code each comes from."""
    characters: list[str] = []
    origins: list[int] = []
    for i, code in enumerate(codes):
        if 0xDC00 <= code < 0xE000 and i and 0xD800 <= codes[i - 1] < 0xDC00:
            characters[-1] = chr(0x10000 + ((codes[i - 1] - 0xD800) << 10) + code - 0xDC00)
            continue
        valid = code < 0x110000 and not 0xD800 <= code < 0xE000
        characters.append(_INSTEAD.get(code, chr(code) if valid else "\ufffd"))
        origins.append(i)
    return characters, origins


def _on_picture(page: PdfPage, corners: Float[np.ndarray, "characters 4"]) -> Float[np.ndarray, "characters 4"]:
    """Returns boxes (left, bottom, right, top) in points as (left, top, right, bottom) in parts of the picture."""
    import pypdfium2.raw as pdfium

    def place(x: float, y: float) -> np.ndarray:
        left, top = ctypes.c_int(), ctypes.c_int()
        pdfium.FPDF_PageToDevice(page, 0, 0, _DEVICE, _DEVICE, 0, x, y, left, top)
        return np.array([left.value, top.value]) / _DEVICE

    width, height = (max(side, 1.0) for side in page.get_size())
    far = max(width, height)
    origin = place(0, 0)
    across, up = (place(far, 0) - origin) / far, (place(0, far) - origin) / far
    points = np.stack([origin + corners[:, [x]] * across + corners[:, [y]] * up for x, y in ((0, 1), (2, 3))])
    return np.concatenate([points.min(axis=0), points.max(axis=0)], axis=1)
