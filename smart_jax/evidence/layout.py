"""Layout of drawn evidence: marks merged by place, the pictures that have some, lines of a text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from smart_jax.evidence.token_sources import TEXT, Span
from smart_jax.evidence.traced import frame_name

if TYPE_CHECKING:
    from smart_jax.evidence.evidence import Evidence

SHOWN = 0.55  # of the greatest emphasis: what is drawn without being asked for
COLUMNS, LINES = 88, 28  # characters and lines of a drawn text


class Mark(NamedTuple):
    """A box of a picture, or characters start:stop of a text, with the query tokens that point at it.

    Attributes:
      box: (left, top, right, bottom) in parts of the picture, or (start, stop).
      tokens: numbers of the query's tokens.
      emphasis: the greatest of the tokens'.

    Example:
      >>> Mark((0.0, 0.0, 0.5, 1.0), [2, 3], 0.8).tokens
      [2, 3]
    """

    box: tuple[float, ...]
    tokens: list[int]
    emphasis: float


def picture_marks(evidence: Evidence, picture: int) -> list[Mark]:
    """Returns the boxes of one picture, each once, the weakest first."""
    places: dict[tuple[float, ...], list[int]] = {}
    for box in evidence.boxes():
        if box.picture == picture:
            places.setdefault(tuple(box[2:]), []).append(box.token)
    return _marks(evidence, places)


def text_marks(evidence: Evidence, text: int) -> list[Mark]:
    """Returns the marked characters of one text, each run once, the weakest first."""
    places: dict[tuple[float, ...], list[int]] = {}
    for token, span in evidence.highlights():
        if span.text == text:
            places.setdefault((span.start, span.stop), []).append(token)
    return _marks(evidence, places)


def _marks(evidence: Evidence, places: dict[tuple[float, ...], list[int]]) -> list[Mark]:
    marks = [Mark(box, tokens, float(evidence.emphasis[tokens].max())) for box, tokens in places.items()]
    return sorted(marks, key=lambda mark: mark.emphasis)


def words_of(evidence: Evidence, mark: Mark) -> str:
    """Returns the words that point at a mark and are shown, in the query's order."""
    return " ".join(evidence.query.label(token) for token in mark.tokens if evidence.emphasis[token] >= SHOWN)


def shown_pictures(evidence: Evidence) -> list[int]:
    """Returns the pictures with evidence that is shown, in order; the first if none has some."""
    there = range(len(evidence.document.pictures))
    shown = {box.picture for box in evidence.boxes() if evidence.emphasis[box.token] >= SHOWN}
    return sorted(shown.intersection(there)) or list(there)[:1]


def best_picture(evidence: Evidence) -> int:
    """Returns the picture on which most of the evidence is."""
    sums = np.zeros(len(evidence.document.pictures))
    for picture in shown_pictures(evidence):
        sums[picture] = sum(mark.emphasis for mark in picture_marks(evidence, picture) if mark.emphasis >= SHOWN)
    return int(sums.argmax())


def best_text(evidence: Evidence) -> int:
    """Returns the text in which most of the evidence is."""
    texts = evidence.document.texts
    sums = [sum(m.emphasis for m in text_marks(evidence, i) if m.emphasis >= SHOWN) for i in range(len(texts))]
    return int(np.argmax(sums))


def picture_name(evidence: Evidence, picture: int) -> str:
    """Returns what a picture is called: "page", or its frame's name."""
    if evidence.document.page is not None:
        return "page"
    frame = evidence.document.sources.frames[picture]
    return frame_name(frame.medium, frame.number, frame.seconds)


def caption(evidence: Evidence) -> str:
    """Returns the score and its parts."""
    return f"{evidence.score:.3f} = pooled {evidence.pooled:.3f} + late {evidence.late:.3f}"


def query_words(evidence: Evidence) -> list[int]:
    """Returns the query's tokens that are shown as its words: those of its texts, or all if it has none."""
    sources = evidence.query.sources
    words = np.flatnonzero(sources.kinds == TEXT).tolist()
    return words if words and sources.groups is None else list(range(len(sources)))


def follows_at_once(evidence: Evidence, token: int) -> bool:
    """Returns whether a query token goes on with the word of the one before."""
    sources = evidence.query.sources
    if sources.groups is not None or not token:
        return False
    before, after = sources.place(token - 1), sources.place(token)
    return isinstance(before, Span) and isinstance(after, Span) and before[::2] == after[:2]


def scaled(picture: Image.Image, width: int) -> Image.Image:
    """Returns the picture in another width."""
    return picture.resize((width, max(1, round(picture.height * width / picture.width))), Image.Resampling.LANCZOS)


def text_lines(text: str, columns: int = COLUMNS) -> list[tuple[int, int]]:
    """Returns the characters start:stop of each line of at most so many columns; lines are broken at spaces.

    Example:
      >>> text_lines("no longer maintain", columns=10)
      [(0, 9), (10, 18)]
    """
    lines, start = [], 0
    for paragraph in text.splitlines(keepends=True) or [""]:
        end = start + len(paragraph.rstrip("\r\n\v\f\x1c\x1d\x1e\x85\u2028\u2029"))
        at = start
        while end - at > columns:
            space = text.rfind(" ", at + 1, at + columns + 1)
            stop = at + columns if space < 0 else space
            lines.append((at, stop))
            at = stop if space < 0 else space + 1
        lines.append((at, end))
        start += len(paragraph)
    return lines


def shown_lines(lines: Sequence[tuple[int, int]], marks: Sequence[Mark]) -> list[tuple[int, int]]:
    """Returns the lines that are drawn: all, or as many as there is room for around most of the evidence."""
    if len(lines) <= LINES:
        return list(lines)
    weights = np.zeros(len(lines))
    for mark in marks:
        if mark.emphasis >= SHOWN:
            on = [i for i, (start, stop) in enumerate(lines) if start < mark.box[1] and stop > mark.box[0]]
            weights[on] += mark.emphasis
    sums = np.convolve(weights, np.ones(LINES), "valid")
    best = np.flatnonzero(sums >= sums.max() - 1e-9)
    first = int(best[len(best) // 2])  # in the middle of what is equally good
    return list(lines[first : first + LINES])
