"""Sources of an item's kept tokens: a cell of a picture, characters of a text, or the prompt's own words."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Int, UInt8

from smart_jax.inputs import Frame, ItemLike, Origins, Preprocessor, TextPreprocessor

PROMPT, CELL, TEXT = 0, 1, 2  # kinds of tokens
_MEDIA: tuple[Literal["image", "video", "audio"], ...] = ("image", "video", "audio")  # stored as their places


class Cell(NamedTuple):
    """A cell of a frame; of audio, a moment.

    Attributes:
      frame: number of the frame among the item's.
      row, column: of the cell; the columns of audio follow one another in time.

    Example:
      >>> Cell(frame=0, row=2, column=5).row
      2
    """

    frame: int
    row: int
    column: int


class Span(NamedTuple):
    """Characters of a text.

    Attributes:
      text: number of the text among the item's.
      start, stop: its characters start:stop.

    Example:
      >>> Span(text=0, start=4, stop=7)
      Span(text=0, start=4, stop=7)
    """

    text: int
    start: int
    stop: int


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TokenSources:
    """Sources of the kept tokens of one item, a few bytes a token, to be stored beside its vectors.

    Attributes:
      kinds: uint8 of each kept token: 0 = the prompt's own words, 1 = a cell, 2 = characters of a text.
      spans: int32 [tokens of kind 2, 3]: (text, start, stop) of each, in order.
      frames: the grids of which the tokens of kind 1 are, in order, the cells, line by line.
      pieces: what the prompt says at each token of kind 0, in order.
      groups: int32, of each kept token the number of the vector that it went into, where tokens were pooled; None =
        each has its own.

    Example:
      >>> import smart_jax
      >>> model = smart_jax.load("tiny")
      >>> sources = TokenSources.of(model.preprocessor, "errors by code")
      >>> sources
      TokenSources(7 tokens: 3 of the prompt, 0 cells of 0 frames, 4 of texts)
      >>> [sources.place(token) for token in (0, 2, 5)]  # the prompt, "error", "code"
      [None, Span(text=0, start=0, stop=5), Span(text=0, start=10, stop=14)]
      >>> TokenSources.from_arrays(sources.to_arrays()).place(5)
      Span(text=0, start=10, stop=14)
    """

    kinds: UInt8[np.ndarray, " kept"]
    spans: Int[np.ndarray, "spans 3"]
    frames: tuple[Frame, ...] = ()
    pieces: tuple[str, ...] = ()
    groups: Int[np.ndarray, " kept"] | None = None

    def __post_init__(self) -> None:
        counts = np.bincount(self.kinds, minlength=3).tolist()
        cells = sum(frame.rows * frame.columns for frame in self.frames)
        if counts != [len(self.pieces), cells, len(self.spans)]:
            raise ValueError(
                f"kinds are {counts[0]} of the prompt, {counts[1]} cells and {counts[2:]} of texts, but there are "
                f"{len(self.pieces)} pieces, {cells} cells in {len(self.frames)} frames and {len(self.spans)} spans"
            )
        if self.groups is not None and (self.groups.shape != self.kinds.shape or self.groups.min(initial=0) < 0):
            raise ValueError(f"groups must be a number from 0 on for each of {len(self.kinds)} tokens")
        object.__setattr__(self, "_numbers", _numbers_within(self.kinds))

    @classmethod
    def of(
        cls, preprocessor: Preprocessor, item: ItemLike, *, instruction: str | None = None, query: bool = False
    ) -> TokenSources:
        """Returns those of an item as an encoder with this preprocessor reads it; no pixels are decoded.

        Args:
          preprocessor: of the encoder.
          item, instruction, query: as given to the encoder.

        Raises:
          TypeError, ValueError, OSError: the item cannot be used.
        """
        soft = (*preprocessor.visual_ids, *preprocessor.audio_ids)
        return cls._of(preprocessor.origins(item, instruction=instruction, query=query), soft)

    @classmethod
    def of_whole_text(
        cls, preprocessor: TextPreprocessor, text: str, *, instruction: str | None = None
    ) -> TokenSources:
        """Returns those of a text that is longer than a model reads at once, and is encoded in several windows.

        Args:
          preprocessor: of a model that reads texts only.
          text, instruction: as given to the encoder; the instruction's tokens come once, before all of the text's.
        """
        return cls._of(preprocessor.origins({"text": text}, instruction=instruction, whole=True), ())

    @classmethod
    def _of(cls, origins: Origins, soft_ids: tuple[int, ...]) -> TokenSources:
        keep = origins.tokens.keep
        visual = np.isin(origins.tokens.input_ids, soft_ids)[keep]
        spans = origins.spans[keep]
        kinds = np.where(visual, CELL, np.where(spans[:, 0] >= 0, TEXT, PROMPT)).astype(np.uint8)
        pieces = [piece for piece, kept in zip(origins.pieces, keep, strict=True) if kept]
        return cls(
            kinds,
            spans[kinds == TEXT],
            origins.frames if visual.any() else (),
            tuple(pieces[i] for i in np.flatnonzero(kinds == PROMPT)),
        )

    def __len__(self) -> int:
        """Number of vectors that the tokens have: one each, or as many as groups."""
        return len(self.kinds) if self.groups is None else int(self.groups.max(initial=-1)) + 1

    def __repr__(self) -> str:
        prompt, cells, texts = np.bincount(self.kinds, minlength=3)
        return (
            f"TokenSources({len(self)} tokens: {prompt} of the prompt, {cells} cells of {len(self.frames)} frames, "
            f"{texts} of texts)"
        )

    def members(self, vector: int) -> list[int]:
        """Returns the kept tokens of a vector: one, or those that were pooled into it."""
        return [vector] if self.groups is None else np.flatnonzero(self.groups == vector).tolist()

    def place(self, token: int) -> Cell | Span | None:
        """Returns the cell or the characters that a kept token stands for; None = the prompt's own words."""
        kind, number = int(self.kinds[token]), self._number(token)
        if kind == TEXT:
            return Span(*self.spans[number].tolist())
        if kind == PROMPT:
            return None
        for i, frame in enumerate(self.frames):
            if number < frame.rows * frame.columns:
                return Cell(i, number // frame.columns, number % frame.columns)
            number -= frame.rows * frame.columns
        raise AssertionError("there are as many cells as tokens of that kind")

    def piece(self, token: int) -> str | None:
        """Returns what the prompt says at a token of its own words; None = another kind of token."""
        return self.pieces[self._number(token)] if self.kinds[token] == PROMPT else None

    def _number(self, token: int) -> int:
        numbers: np.ndarray = self._numbers  # type: ignore[attr-defined]  # set after the checks
        return int(numbers[token])

    def grouped(self, groups: Int[np.ndarray, " vectors"]) -> TokenSources:
        """Returns the sources of tokens that were pooled.

        Args:
          groups: of each present vector the number of the one that it went into; 0, 1, ... without a gap.

        Raises:
          ValueError: there is not one for each vector, or a number is left out.
        """
        groups = np.asarray(groups)
        if len(groups) != len(self) or not np.array_equal(np.unique(groups), np.arange(groups.max(initial=-1) + 1)):
            raise ValueError(f"groups must be a number from 0 on, none left out, for each of {len(self)} vectors")
        return dataclasses.replace(
            self, groups=(groups if self.groups is None else groups[self.groups]).astype(np.int32)
        )

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Returns flat arrays, from which `from_arrays` makes the same sources: about a byte a token of a page.

        `kinds` uint8, `spans` int32 [spans, 3], `frames` float64 [frames, 6], `pieces` uint8 and, if there are some,
        `groups` int32.
        """
        frames = [
            (
                _MEDIA.index(f.medium),
                f.number,
                f.rows,
                f.columns,
                *(np.nan if x is None else x for x in (f.step, f.seconds)),
            )
            for f in self.frames
        ]
        arrays = {
            "kinds": self.kinds,
            "spans": self.spans,
            "frames": np.array(frames, np.float64).reshape(-1, 6),
            "pieces": np.frombuffer("\0".join(self.pieces).encode(), np.uint8),
        }
        return arrays if self.groups is None else arrays | {"groups": self.groups}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> TokenSources:
        """Returns the sources of which `to_arrays` made the arrays.

        Raises:
          KeyError, ValueError: an array is missing, or they do not fit together.
        """
        pieces = bytes(np.asarray(arrays["pieces"])).decode().split("\0")
        kinds = np.asarray(arrays["kinds"])
        return cls(
            kinds,
            np.asarray(arrays["spans"]),
            tuple(_frame(*row) for row in np.asarray(arrays["frames"]).tolist()),
            tuple(pieces) if (kinds == PROMPT).any() else (),
            groups=arrays.get("groups"),
        )


def _frame(medium: float, number: float, rows: float, columns: float, step: float, seconds: float) -> Frame:
    at: dict[str, Any] = {} if np.isnan(step) else {"step": int(step)}
    at |= {} if np.isnan(seconds) else {"seconds": seconds}
    return Frame(_MEDIA[int(medium)], int(number), int(rows), int(columns), **at)


def _numbers_within(kinds: UInt8[np.ndarray, " kept"]) -> Int[np.ndarray, " kept"]:
    """Returns of each token how many of its kind are before it."""
    numbers = np.zeros(len(kinds), np.int64)
    for kind in (PROMPT, CELL, TEXT):
        of_kind = kinds == kind
        numbers[of_kind] = np.arange(of_kind.sum())
    return numbers
