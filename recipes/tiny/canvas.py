"""The size and the style of a page, and the page that shows a text."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image

from recipes.tiny.typeset import CELL_HEIGHT, CELL_WIDTH, random_layout, typeset, typeset_grid

STYLES = ("grid", "print")
_PRINT_CELL = 22 * 9  # pixels of a character of a middling font, spaces between lines included


@dataclasses.dataclass(frozen=True)
class Canvas:
    """Look of a page.

    Attributes:
      height, width: in pixels; for the style "grid" multiples of 16 and of 8.
      style: "grid" = monospace cells of 8 x 16 pixels, "print" = a random proportional layout for each page.

    Raises:
      ValueError: the style is unknown.

    Example:
      >>> canvas = Canvas(height=32, width=64)
      >>> canvas.characters
      16
      >>> page, shown = canvas.draw("Return the value of the table.", np.random.default_rng(0))
      >>> page.size, shown
      ((64, 32), 'Return the')
    """

    height: int = 128
    width: int = 256
    style: str = "grid"

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ValueError(f"style is '{self.style}': choose one of {', '.join(STYLES)}")

    def draw(self, text: str, rng: np.random.Generator) -> tuple[Image.Image, str]:
        """Draws the text from its beginning.

        Args:
          text: of any length.
          rng: draws the layout of a page in the style "print".

        Returns:
          The page, in RGB, and the part of the text that it shows.
        """
        if self.style == "print":
            return typeset(text, self.height, self.width, random_layout(rng))
        pixels, shown = typeset_grid(text, self.height, self.width)
        return Image.fromarray(pixels), shown

    @property
    def characters(self) -> int:
        """Number of characters that a page holds: exact for the style "grid", an estimate for "print"."""
        area = self.height * self.width
        return area // (CELL_HEIGHT * CELL_WIDTH if self.style == "grid" else _PRINT_CELL)
