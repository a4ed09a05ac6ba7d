"""Comparison of two documents for a query: differences of their scores by token."""

from __future__ import annotations

import dataclasses
import html
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from smart_jax.evidence.evidence import Evidence


class TokenDifference(NamedTuple):
    """Share of one query token in the difference of two scores.

    Attributes:
      text: of the token.
      share: difference of its shares.
      pooled_share: difference of what it brings to the pooled parts; None = they are not told by token.
      best, other: its best match in the document above, and in the other.

    Example:
      >>> TokenDifference("oil", 0.1, None, "image 1, row 2, column 3", "the").share
      0.1
    """

    text: str
    share: float
    pooled_share: float | None
    best: str
    other: str


@dataclasses.dataclass(frozen=True, eq=False)
class Comparison:
    """The difference of two documents' scores for one query, from `Evidence.above`; a notebook shows it.

    Attributes:
      score: of the one above minus that of the other; so are the following.
      pooled: the pooled part.
      late: the late part: the sum of the tokens' shares.
      rest: of the pooled part where it is told by token, what tokens bring that are not kept.
      tokens: in the query's order.

    Example:
      >>> import smart_jax
      >>> model = smart_jax.load("tiny")
      >>> above, below = (
      ...     smart_jax.explain("errors by code", page, model=model) for page in ("a list of errors", "an empty page")
      ... )
      >>> difference = above.above(below)
      >>> abs(difference.score - difference.pooled - sum(token.share for token in difference.tokens)) < 1e-9
      True
    """

    score: float
    pooled: float
    late: float
    rest: float
    tokens: tuple[TokenDifference, ...]

    def strongest(self) -> list[TokenDifference]:
        """Returns the tokens that speak for the document above, or against it, the strongest first."""
        return sorted(self.tokens, key=lambda token: -abs(token.share + (token.pooled_share or 0)))

    def to_dict(self) -> dict[str, Any]:
        """Returns the differences as JSON has them."""
        parts = {name: getattr(self, name) for name in ("score", "pooled", "late", "rest")}
        return parts | {"tokens": [token._asdict() for token in self.tokens]}

    def __str__(self) -> str:
        lines = [f"{self.score:+.4f} = pooled {self.pooled:+.4f} + late {self.late:+.4f}"]
        width = max(len(token.text) for token in self.tokens)
        for token in self.strongest():
            pooled = "" if token.pooled_share is None else f"  pooled {token.pooled_share:+.4f}"
            lines.append(f"{token.text:>{width}}  {token.share:+.4f}{pooled}  {token.best} / {token.other}")
        return "\n".join(lines)

    def html(self) -> str:
        """Returns a table of the differences as HTML, in the colours of the page that it is put into."""
        split = any(token.pooled_share is not None for token in self.tokens)
        rows = [["query", "share", *(["pooled share"] if split else []), "match above", "match below"]]
        for token in self.strongest():
            pooled = [f"{token.pooled_share or 0:+.4f}"] if split else []
            rows.append([token.text, f"{token.share:+.4f}", *pooled, token.best, token.other])
        cells = "".join(
            f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in row)}</tr>"
            for tag, row in zip(["th"] + ["td"] * len(self.tokens), rows, strict=True)
        )
        caption = f"{self.score:+.4f} = pooled {self.pooled:+.4f} + late {self.late:+.4f}"
        return f"<table><caption>{caption}</caption>{cells}</table>"

    def _repr_html_(self) -> str:
        return self.html()


def compared(above: Evidence, below: Evidence) -> Comparison:
    """Returns the difference of two documents' evidence for one query.

    Raises:
      ValueError: the queries or the weights differ.
    """
    one, other = (evidence.query.embeddings.tokens for evidence in (above, below))
    if above.weights != below.weights:
        raise ValueError(f"the weights are {above.weights} and {below.weights}: explain both with the same")
    if one.shape != other.shape or not np.allclose(one, other, atol=1e-4):
        raise ValueError("the two are evidence for different queries: explain both documents for the same one")
    tokens = tuple(
        TokenDifference(
            a.text,
            a.share - b.share,
            None if a.pooled_share is None or b.pooled_share is None else a.pooled_share - b.pooled_share,
            a.best,
            b.best,
        )
        for a, b in zip(above.tokens, below.tokens, strict=True)
    )
    parts = {name: getattr(above, name) - getattr(below, name) for name in ("score", "pooled", "late", "rest")}
    return Comparison(**parts, tokens=tokens)
