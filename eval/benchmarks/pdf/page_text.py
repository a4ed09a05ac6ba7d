"""The characters of a PDF page with their boxes, and the place of a heading among them."""

from __future__ import annotations

import dataclasses
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence

import pypdfium2 as pdfium

Box = tuple[float, float, float, float]  # left, bottom, right, top, in the page's points

MARGIN = 0.07  # of the page's height, at either end: where running headers and footers stand
_NUMBERING = re.compile(
    r"""^\s*(?:
        (?i:chapter|section|appendix|annex|part)\s+(?:\d+(?:\.\d+)*|[A-Z]|[IVXLC]+)(?:[.:)\s–—-]+|$)
      | (?:\d+|[A-Z])(?:\.\d+)+[.:)]?\s+
      | (?:\d{1,3}|[A-Z]|[IVXLC]+)[.:)]\s+
      | \d{1,2}\s+
    )""",
    re.VERBOSE,
)


def clean_title(title: str) -> str:
    """Returns a title without its numbering and with single spaces; one that is nothing but numbering stays.

    Example:
      >>> clean_title("4.1.2.  Using  the tool"), clean_title("Appendix B: Licences"), clean_title("3D maps")
      ('Using the tool', 'Licences', '3D maps')
    """
    title = " ".join(title.replace("\x00", " ").split())
    return _NUMBERING.sub("", title).strip() or title


def fold(text: str) -> str:
    """Returns what counts when titles are compared: no case, spaces or hyphens, and one style of quotes.

    Example:
      >>> fold("On-line ‘Help’")
      "online'help'"
    """
    return "".join(_fold_character(c) for c in text)


def _fold_character(character: str) -> str:
    if character in "'’‘`´\"“”":
        return "'"
    if character in "-‐‑‒–—\u00ad\ufffe\x02":  # U+FFFE and \x02: a hyphen at the end of a line
        return ""
    return "".join(unicodedata.normalize("NFKC", character).casefold().split())


@dataclasses.dataclass(frozen=True)
class PageText:
    """A page's characters in reading order, line breaks included.

    Attributes:
      characters: one each.
      character_boxes: a box of each, as high as the font; meaningless for line breaks.
      size: (width, height) of the page in points.
      objects: number of things drawn on the page.
    """

    characters: Sequence[str]
    character_boxes: Sequence[Box]
    size: tuple[float, float]
    objects: int

    @classmethod
    def read(cls, page: pdfium.PdfPage) -> PageText:
        """Reads a page of an open document."""
        text = page.get_textpage()
        try:
            codes = [pdfium.raw.FPDFText_GetUnicode(text, i) for i in range(text.count_chars())]
            boxes = [text.get_charbox(i, loose=True) for i in range(len(codes))]
        finally:
            text.close()
        objects = pdfium.raw.FPDFPage_CountObjects(page)
        return cls([chr(code) if code < 0x110000 else " " for code in codes], boxes, page.get_size(), objects)

    @property
    def text(self) -> str:
        """The whole text, lines ended by a line feed."""
        return self.without(set())

    @property
    def blank(self) -> bool:
        """Whether nothing is drawn on the page."""
        return self.objects == 0 and not self.text.strip()

    def without(self, hidden: set[int]) -> str:
        """Returns the text, lines ended by a line feed, without some characters."""
        shown = "".join(c for i, c in enumerate(self.characters) if i not in hidden and c not in "\x00\x02\ufffe")
        return "\n".join(line for line in shown.replace("\r\n", "\n").replace("\r", "\n").split("\n"))

    def find_heading(self, title: str, y: float | None) -> set[int]:
        """Returns the characters of a title's heading, empty if it is not on the page.

        Of several matches, those that fill their lines except for numbering come first, then the one nearest below y.
        Matches in the page's margins (running headers) are added.

        Args:
          title: without numbering.
          y: height that the outline points to, in points from the page's bottom; None = not known.
        """
        matches = list(self._matches(fold(title)))
        if not matches:
            return set()
        lines = {match: self._line(match) for match in matches}
        wanted = fold(title)
        headings = [m for m in matches if fold(clean_title(self._slice(lines[m]))) == wanted]
        inner = [m for m in headings or matches if not self._in_margin(m)] or headings or matches
        heading = min(inner, key=lambda match: self._distance(match, y))
        chosen: set[int] = set()
        for match in [heading, *filter(self._in_margin, matches)]:
            chosen |= set(range(*(lines[match] if match in headings else match)))
        return chosen

    def boxes(self, characters: Iterable[int]) -> list[Box]:
        """Returns boxes that cover these characters, one for each run of them on a line."""
        boxes: list[Box] = []
        previous = -1
        for i in sorted(characters):
            if self.characters[i].isspace():
                continue
            box = self.character_boxes[i]
            runs_on = previous >= 0 and not any(c in "\r\n" for c in self.characters[previous:i])
            if runs_on and i - previous <= 4:  # a few spaces lie between
                left, bottom, right, top = boxes[-1]
                box = (min(left, box[0]), min(bottom, box[1]), max(right, box[2]), max(top, box[3]))
                boxes[-1] = box
            else:
                boxes.append(box)
            previous = i
        return boxes

    def _matches(self, wanted: str) -> Iterator[tuple[int, int]]:
        """Yields ranges [start, stop) of characters that fold to `wanted` and do not cut a word of Latin letters."""
        folded, origin = "", []
        for i, character in enumerate(self.characters):
            piece = _fold_character(character)
            folded += piece
            origin += [i] * len(piece)
        at = folded.find(wanted)
        while at >= 0 and wanted:
            start, stop = origin[at], origin[at + len(wanted) - 1] + 1
            before = self.characters[start - 1] if start else " "
            after = self.characters[stop] if stop < len(self.characters) else " "
            if not (_is_latin(before) and _is_latin(wanted[0])) and not (_is_latin(after) and _is_latin(wanted[-1])):
                yield start, stop
            at = folded.find(wanted, at + 1)

    def _line(self, match: tuple[int, int]) -> tuple[int, int]:
        """Returns the match, extended to whole lines."""
        start, stop = match
        while start > 0 and self.characters[start - 1] not in "\r\n":
            start -= 1
        while stop < len(self.characters) and self.characters[stop] not in "\r\n":
            stop += 1
        return start, stop

    def _slice(self, characters: tuple[int, int]) -> str:
        return "".join(self.characters[slice(*characters)])

    def _in_margin(self, match: tuple[int, int]) -> bool:
        _, bottom, _, top = self.character_boxes[match[0]]
        return not MARGIN < (bottom + top) / 2 / self.size[1] < 1 - MARGIN

    def _distance(self, match: tuple[int, int], y: float | None) -> tuple[bool, float]:
        if y is None:
            return False, float(match[0])
        top = self.character_boxes[match[0]][3]
        tolerance = top - self.character_boxes[match[0]][1]  # some outlines point at the baseline
        return top - y > tolerance, abs(y - top)


def _is_latin(character: str) -> bool:
    return character.isalpha() and ord(character) < 0x250
