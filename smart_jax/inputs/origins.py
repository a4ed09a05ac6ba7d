"""Origins of tokens: characters of an item's texts, and cells of its images, videos and audio."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Int

from smart_jax.inputs.tokenized_item import TokenizedItem

MARK = "\ue000"  # of private use: stands for a text where the prompt's own words are wanted


class Frame(NamedTuple):
    """An image, or a temporal patch of a video, as the grid of cells that its visual tokens are; or a clip of audio.

    Attributes:
      medium: what it is of.
      number: of the image among the item's images, of the video among its videos, of the clip among its audio.
      rows, columns: cells, each a visual token, line by line; they cover the whole picture. Audio has one row, whose
        cells follow one another in time.
      step: number of the temporal patch; None = an image, or the middle frame of a video that is read as one.
      seconds: mean time of the temporal patch's frames; of audio, the time that its cells cover.

    Example:
      >>> Frame("image", 0, rows=4, columns=8).step is None
      True
    """

    medium: Literal["image", "video", "audio"]
    number: int
    rows: int
    columns: int
    step: int | None = None
    seconds: float | None = None


class Origins(NamedTuple):
    """A tokenised item, and what each of its L tokens stands for.

    Attributes:
      tokens: the item without its pixels.
      pieces: what each token is of the prompt, "" of a visual one.
      spans: (text, start, stop) of each token: characters of one of the item's texts, of which blanks at either end are
        left out; -1 = of the prompt's own words, or visual.
      frames: the grids of which the visual tokens are, in order, the cells.

    Example:
      >>> from smart_jax.files import resolve
      >>> from smart_jax.inputs import open_preprocessor
      >>> from smart_jax.models import load_config
      >>> preprocessor = open_preprocessor(resolve("tiny"), load_config(resolve("tiny")))
      >>> origins = preprocessor.origins("error code")
      >>> {piece: span.tolist() for piece, span in zip(origins.pieces, origins.spans) if span[0] >= 0}
      {'error': [0, 0, 5], ' code': [0, 6, 10]}
    """

    tokens: TokenizedItem
    pieces: tuple[str, ...]
    spans: Int[np.ndarray, "L 3"]
    frames: tuple[Frame, ...]


def text_places(prompt: str, marked: str, texts: Sequence[str]) -> list[tuple[int, int, int]]:
    """Returns where texts stand in their prompt: for each its number, its first character there, and the one beyond.

    A template may strip a text; its place is then that of what is left. Where a template does not write each text once,
    nothing is told.

    Args:
      prompt: with the texts.
      marked: the same prompt with `MARK` in place of each.
      texts: in order.

    Example:
      >>> text_places("user: a user", f"user: {MARK}", ["a user"])
      [(0, 6, 12)]
    """
    between = marked.split(MARK)
    if len(between) != len(texts) + 1:
        return []
    places, at = [], 0
    for number, (before, text) in enumerate(zip(between, texts, strict=False)):
        at += len(before) if prompt.startswith(before, at) else 0
        core = text if prompt.startswith(text, at) else text.strip()
        start = prompt.find(core, at)
        if start < 0:
            return []
        places.append((number, start, start + len(core)))
        at = start + len(core)
    return places


def text_spans(
    offsets: Int[np.ndarray, "L 2"], prompt: str, places: Sequence[tuple[int, int, int]], texts: Sequence[str]
) -> Int[np.ndarray, "L 3"]:
    """Returns the characters of the texts that tokens stand for, as `Origins.spans` has them.

    Args:
      offsets: first character in the prompt of each token, and the one beyond.
      prompt: that was tokenised.
      places: of the texts in it, from `text_places`.
      texts: of which a place may hold a part only.

    Example:
      >>> text_spans(np.array([[0, 4], [4, 7]]), "ask: oil", [(0, 4, 8)], ["oil"])[:, 1:].tolist()
      [[-1, -1], [0, 2]]
    """
    spans = np.full((len(offsets), 3), -1, np.int32)
    for number, first, last in places:
        moved = texts[number].find(prompt[first:last]) - first
        for token in np.flatnonzero((offsets[:, 0] < last) & (offsets[:, 1] > first)):
            start, stop = max(int(offsets[token, 0]), first), min(int(offsets[token, 1]), last)
            piece = prompt[start:stop]
            if piece.strip():
                start, stop = stop - len(piece.lstrip()), start + len(piece.rstrip())
            spans[token] = number, start + moved, stop + moved
    return spans


def in_parts(spans: Int[np.ndarray, "L 3"], texts: Sequence[str]) -> Int[np.ndarray, "L 3"]:
    """Returns the same spans for texts that were joined by single spaces into one.

    Example:
      >>> in_parts(np.int32([[0, 4, 7]]), ["oil", "gas"]).tolist()
      [[1, 0, 3]]
    """
    starts = np.cumsum([0, *(len(text) + 1 for text in texts[:-1])])
    number = np.searchsorted(starts, spans[:, 1], side="right") - 1
    moved = np.stack([number, spans[:, 1] - starts[number], spans[:, 2] - starts[number]], axis=1)
    return np.where(spans[:, :1] >= 0, moved, -1).astype(np.int32)
