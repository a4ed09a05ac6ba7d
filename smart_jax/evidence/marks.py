"""Places of evidence on a document: boxes on its pictures, words of its texts, moments of its audio."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from smart_jax.evidence.token_sources import Cell, Span
from smart_jax.evidence.traced import Traced


class Box(NamedTuple):
    """A part of a picture in which a query token finds its best match.

    Attributes:
      token: number of the query token.
      picture: number of the picture among the document's.
      left, top, right, bottom: in parts of the picture's width and height, from its upper left corner.

    Example:
      >>> Box(0, picture=0, left=0.0, top=0.5, right=0.25, bottom=1.0).top
      0.5
    """

    token: int
    picture: int
    left: float
    top: float
    right: float
    bottom: float


class Highlight(NamedTuple):
    """Words of a text in which a query token finds its best match.

    Attributes:
      token: number of the query token.
      span: whole words around the characters of the best document token.

    Example:
      >>> Highlight(0, Span(text=0, start=4, stop=7)).span.stop
      7
    """

    token: int
    span: Span


class Moment(NamedTuple):
    """A moment of a clip in which a query token finds its best match.

    Attributes:
      token: number of the query token.
      audio: number of the clip among the document's.
      start, stop: seconds from the clip's beginning.

    Example:
      >>> Moment(0, audio=0, start=1.2, stop=1.24).start
      1.2
    """

    token: int
    audio: int
    start: float
    stop: float


def moments_of(document: Traced, best: Int[np.ndarray, " P"]) -> list[Moment]:
    """Returns the moments of each query token's best document token; see `boxes_of`."""
    moments = []
    for token, vector in enumerate(best.tolist()):
        for member in document.sources.members(vector):
            place, moment = document.sources.place(member), document.moment(member)
            if moment is not None and isinstance(place, Cell):
                moments.append(Moment(token, document.sources.frames[place.frame].number, *moment))
    return moments


def boxes_of(document: Traced, best: Int[np.ndarray, " P"]) -> list[Box]:
    """Returns the boxes of each query token's best document token.

    Args:
      document: that is drawn on.
      best: number of the document token for each query token.
    """
    return [
        Box(token, *box)
        for token, vector in enumerate(best.tolist())
        for member in document.sources.members(vector)
        for box in _boxes(document, member)
    ]


def _boxes(document: Traced, token: int) -> Iterator[tuple[int, float, float, float, float]]:
    place = document.sources.place(token)
    if isinstance(place, Cell):
        frame = document.sources.frames[place.frame]
        left, top = place.column / frame.columns, place.row / frame.rows
        yield place.frame, left, top, (place.column + 1) / frame.columns, (place.row + 1) / frame.rows
    elif isinstance(place, Span) and place.text == 0 and document.page is not None:
        start, stop = whole_words(document.page.text, place.start, place.stop)
        for left, top, right, bottom in document.page.lines(start, stop):
            yield 0, float(left), float(top), float(right), float(bottom)


def highlights_of(document: Traced, best: Int[np.ndarray, " P"]) -> list[Highlight]:
    """Returns the words of each query token's best document token; see `boxes_of`."""
    highlights = []
    for token, vector in enumerate(best.tolist()):
        for member in document.sources.members(vector):
            place = document.sources.place(member)
            if isinstance(place, Span) and place.text < len(document.texts):
                span = Span(place.text, *whole_words(document.texts[place.text], place.start, place.stop))
                highlights.append(Highlight(token, span))
    return highlights


def whole_words(text: str, start: int, stop: int) -> tuple[int, int]:
    """Returns the characters start:stop grown to the words that they are part of; marks between words stay alone.

    Example:
      >>> whole_words("no longer maintain", 4, 6)
      (3, 9)
    """
    while 0 < start < len(text) and text[start].isalnum() and text[start - 1].isalnum():
        start -= 1
    while 0 < stop < len(text) and text[stop - 1].isalnum() and text[stop].isalnum():
        stop += 1
    return start, stop
