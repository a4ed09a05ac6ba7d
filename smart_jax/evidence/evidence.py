"""`Evidence`: a score taken apart into its pooled part and the shares of the query's tokens, each with its place."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from PIL import Image

from smart_jax.evidence.comparison import Comparison, compared
from smart_jax.evidence.html import to_html
from smart_jax.evidence.marks import Box, Highlight, Moment, boxes_of, highlights_of, moments_of
from smart_jax.evidence.picture import png_bytes, to_picture
from smart_jax.evidence.similarities import Best
from smart_jax.evidence.svg import to_svg
from smart_jax.evidence.token_sources import PROMPT
from smart_jax.evidence.traced import Traced

_PAGE = '<!DOCTYPE html>\n<meta charset="utf-8"><meta name="color-scheme" content="light dark"><title>Evidence</title>'


class Weights(NamedTuple):
    """Weights of the score's two parts.

    Example:
      >>> Weights(pooled=1.0, late=0.5).late
      0.5
    """

    pooled: float
    late: float


class TokenEvidence(NamedTuple):
    """Share of one kept token of a query in a score, and where it comes from.

    Attributes:
      text: characters of the query, or the prompt's words, that the token stands for.
      best: what the best document token stands for, in words.
      token: number of that token among the document's vectors.
      cosine: with it.
      share: of the score: late_weight * cosine / P.
      pooled_share: what it brings to the pooled part; None = the pooled vector is no mean of token states.
      lift: cosine minus what is usual for the token; None = there was no sample of other documents.
      emphasis: 0 to 1, with which it is drawn: its lift by the query's greatest. Without lifts, how far the cosine is
        above the token's mean over the document. 0 for the prompt's own words.

    Example:
      >>> TokenEvidence("oil", "image 1, row 2, column 3", 14, 0.6, 0.2, None, 0.3, 1.0).share
      0.2
    """

    text: str
    best: str
    token: int
    cosine: float
    share: float
    pooled_share: float | None
    lift: float | None
    emphasis: float


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Evidence:
    """A document's evidence for a query, from `smart_jax.explain`; a notebook shows it.

    Attributes:
      query, document: the two items.
      found: the best document token of each query token.
      lifts: float64 [P]; None = there was no sample of other documents.
      weights: of the score's parts.

    Example:
      >>> import smart_jax
      >>> model = smart_jax.load("tiny")
      >>> page = "Revenue fell. Errors are listed by their code."
      >>> others = model.encode_document(["a table of values", "the page of a report"], progress=False)
      >>> evidence = smart_jax.explain("errors by code", page, model=model, others=others)
      >>> words = [page[span.start : span.stop] for _, span in evidence.highlights()]
      >>> "Errors" in words and "code" in words
      True
    """

    query: Traced
    document: Traced
    found: Best
    lifts: Float[np.ndarray, " P"] | None
    weights: Weights

    @property
    def score(self) -> float:
        """The score, as `smart_jax.score` computes it, up to float32's rounding."""
        return self.pooled + self.late

    @property
    def pooled(self) -> float:
        """The pooled part: its weight by the cosine of the pooled vectors."""
        q, d = (item.embeddings.pooled[0].astype(np.float64) for item in (self.query, self.document))
        return self.weights.pooled * float(q @ d)

    @property
    def late(self) -> float:
        """The late part: the sum of the tokens' shares."""
        return math.fsum(self.shares)

    @property
    def shares(self) -> Float[np.ndarray, " P"]:
        """Share of each query token in the score: the late part."""
        return self.weights.late * self.found.cosines / len(self.found.cosines)

    @functools.cached_property
    def pooled_shares(self) -> Float[np.ndarray, " P"] | None:
        """Share of each query token in the pooled part; None = the query's pooled vector is no mean of states."""
        return self._pooled_shares(self.query, self.document)

    @functools.cached_property
    def document_shares(self) -> Float[np.ndarray, " L"] | None:
        """Share of each document token in the pooled part; None = the document's is no mean, or was not traced."""
        return self._pooled_shares(self.document, self.query)

    def _pooled_shares(self, split: Traced, other: Traced) -> Float[np.ndarray, " tokens"] | None:
        if split.parts is None:
            return None
        shares: np.ndarray = split.parts.astype(np.float64) @ other.embeddings.pooled[0].astype(np.float64)
        return self.weights.pooled * shares

    @functools.cached_property
    def pair_shares(self) -> Float[np.ndarray, "P L"] | None:
        """Share of each pair of a query token and a document token in the pooled part.

        Where token vectors are the states of which both pooled vectors are means, it is the cosine that the late part
        takes the maxima of, times two weights that depend on the tokens' lengths. None = one of them is no such mean,
        or was not traced.
        """
        if self.query.parts is None or self.document.parts is None:
            return None
        q, d = (item.parts.astype(np.float64) for item in (self.query, self.document) if item.parts is not None)
        shares: np.ndarray = self.weights.pooled * (q @ d.T)
        return shares

    @property
    def rest(self) -> float:
        """Rest of the pooled part where it is told by token: the share of tokens that are not kept."""
        return 0.0 if self.pooled_shares is None else self.pooled - math.fsum(self.pooled_shares)

    @functools.cached_property
    def emphasis(self) -> Float[np.ndarray, " P"]:
        """Strength with which each query token is drawn, 0 to 1; see `TokenEvidence`."""
        sources = self.query.sources
        speaks = np.array([any(sources.kinds[m] != PROMPT for m in sources.members(i)) for i in range(len(sources))])
        values = self.found.cosines - self.found.means if self.lifts is None else self.lifts
        values = np.where(speaks, np.maximum(values, 0), 0)
        return np.asarray(values / max(values.max(initial=0), np.finfo(np.float64).tiny))

    @functools.cached_property
    def tokens(self) -> tuple[TokenEvidence, ...]:
        """Evidence of each kept token of the query, in the query's order."""
        return tuple(
            TokenEvidence(
                self.query.label(i),
                self.document.label(best),
                best,
                float(self.found.cosines[i]),
                float(self.shares[i]),
                None if self.pooled_shares is None else float(self.pooled_shares[i]),
                None if self.lifts is None else float(self.lifts[i]),
                float(self.emphasis[i]),
            )
            for i, best in enumerate(self.found.tokens.tolist())
        )

    def boxes(self) -> list[Box]:
        """Returns where on the document's pictures the query's tokens find their best match.

        A cell's box is the cell; a pooled token has the boxes of all its cells; characters of a PDF page grow to their
        words, with a box for each line.
        """
        return boxes_of(self.document, self.found.tokens)

    def highlights(self) -> list[Highlight]:
        """Returns the words of the document's texts in which the query's tokens find their best match."""
        return highlights_of(self.document, self.found.tokens)

    def moments(self) -> list[Moment]:
        """Returns when, in the document's audio, the query's tokens find their best match."""
        return moments_of(self.document, self.found.tokens)

    def heat(self, frame: int = 0, *, least: float = 0.0) -> Float[np.ndarray, "rows columns"]:
        """Returns the emphasis that the cells of one of the document's frames get from the query's tokens, summed.

        Args:
          frame: number of the frame.
          least: emphasis of the tokens that take part; `smart_jax.evidence.SHOWN` = those that drawings show.

        Raises:
          IndexError: the document has no such frame.
        """
        rows, columns = (grid := self.document.sources.frames[frame]).rows, grid.columns
        heat = np.zeros((rows, columns))
        boxes = [box for box in self.boxes() if box.picture == frame and self.emphasis[box.token] >= least]
        cells = {token: sum(box.token == token for box in boxes) for token in {box.token for box in boxes}}
        for box in boxes:
            row, column = int((box.top + box.bottom) / 2 * rows), int((box.left + box.right) / 2 * columns)
            heat[row, column] += self.emphasis[box.token] / cells[box.token]
        return heat

    def above(self, other: Evidence) -> Comparison:
        """Returns why this document stands above another for the same query, token by token.

        Raises:
          ValueError: the other evidence is of another query or of other weights.
        """
        return compared(self, other)

    def picture(self, number: int | None = None, *, width: int = 960) -> Image.Image:
        """Returns one of the document's pictures, or its text, with what is shown of its evidence.

        Args:
          number: of the picture; None = that with the most evidence.
          width: in pixels.

        Raises:
          IndexError: the document has no such picture.
        """
        return to_picture(self, number, width=width)

    def html(self) -> str:
        """Returns a fragment of HTML that needs nothing else: pictures, text and a table, in light and dark themes.

        Pointing at a word of the query shows its place alone.
        """
        return to_html(self)

    def svg(self, number: int | None = None) -> str:
        """Returns `picture` as an SVG file that needs nothing else."""
        return to_svg(self, number)

    def to_dict(self) -> dict[str, Any]:
        """Returns all numbers and places as JSON has them, without pictures."""
        tokens = [token._asdict() for token in self.tokens]
        for token in tokens:
            token["boxes"], token["highlights"], token["moments"] = [], [], []
        for box in self.boxes():
            tokens[box.token]["boxes"].append(box._asdict())
        for highlight in self.highlights():
            tokens[highlight.token]["highlights"].append(highlight.span._asdict())
        for moment in self.moments():
            tokens[moment.token]["moments"].append(moment._asdict())
        parts = {name: getattr(self, name) for name in ("score", "pooled", "late", "rest")}
        return parts | {"weights": self.weights._asdict(), "tokens": tokens}

    def save(self, path: str | Path) -> None:
        """Writes a file: a picture (.png), a page (.html), a drawing (.svg) or the numbers (.json).

        Raises:
          ValueError: the name ends in another way.
        """
        path = Path(path)
        writers = {
            ".png": lambda: png_bytes(self.picture()),
            ".html": lambda: f"{_PAGE}{self.html()}".encode(),
            ".svg": lambda: self.svg().encode(),
            ".json": lambda: json.dumps(self.to_dict(), indent=2).encode(),
        }
        if path.suffix.lower() not in writers:
            raise ValueError(f"'{path}' ends in none of {', '.join(writers)}: the ending says what is written")
        path.write_bytes(writers[path.suffix.lower()]())

    def _repr_html_(self) -> str:
        return self.html()

    def _repr_png_(self) -> bytes:
        return png_bytes(self.picture())

    def __repr__(self) -> str:
        strongest = sorted(self.tokens, key=lambda token: -token.emphasis)[:3]
        words = ", ".join(f"{token.text!r} at {token.best}" for token in strongest if token.emphasis > 0)
        parts = f"{self.score:.4f} = pooled {self.pooled:.4f} + late {self.late:.4f}"
        return f"Evidence({parts}; {words or 'no word stands out'})"
