"""Evidence as the page draws it: numbers and places, texts, and names of pictures."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from smart_jax.evidence import SHOWN, Evidence, Span


class TokenAnswer(BaseModel):
    """Share of one token of the query; see `smart_jax.evidence.TokenEvidence`."""

    text: str
    word: bool = Field(description="Whether it is of the query, and not of the prompt around it.")
    joined: bool = Field(description="Whether it goes on with the word of the token before.")
    best: str = Field(description="What the item's best token for it stands for.")
    token: int
    cosine: float
    share: float
    pooled_share: float | None
    lift: float | None
    emphasis: float = Field(description=f"With which it is drawn; below {SHOWN} it is not, unless it is asked for.")
    boxes: list[dict[str, Any]] = Field(description="On pictures, in parts of their sides.")
    highlights: list[dict[str, Any]] = Field(description="Characters start to stop of texts.")
    moments: list[dict[str, Any]] = Field(default=[], description="Seconds start to stop of audio.")


class EvidenceAnswer(BaseModel):
    """A score taken apart; the shares and the pooled part add up to it."""

    id: str
    score: float
    pooled: float
    late: float
    rest: float
    tokens: list[TokenAnswer]
    texts: list[str] = Field(description="Of the item, where they are not on a picture.")
    pictures: list[str] = Field(description="Names of the item's pictures, by number.")

    @classmethod
    def of(cls, item_id: str, evidence: Evidence) -> EvidenceAnswer:
        """Returns the evidence of an item."""
        fields, document = evidence.to_dict(), evidence.document
        for i, token in enumerate(fields["tokens"]):
            token["word"], token["joined"] = _is_word(evidence, i), _joined(evidence, i)
        texts = [] if document.page is not None and document.pictures else list(document.texts)
        return cls(id=item_id, **fields, texts=texts, pictures=_picture_names(evidence))


class DifferenceAnswer(BaseModel):
    """Share of one token in the difference of two scores; see `smart_jax.evidence.TokenDifference`."""

    text: str
    share: float
    pooled_share: float | None
    best: str
    other: str


class CompareAnswer(BaseModel):
    """Reason why one item stands above another: the difference of their scores, by part and by token."""

    score: float
    pooled: float
    late: float
    rest: float
    tokens: list[DifferenceAnswer] = Field(description="Those that decide come first.")

    @classmethod
    def of(cls, above: Evidence, below: Evidence) -> CompareAnswer:
        """Returns the comparison of two items' evidence for one query."""
        difference = above.above(below)
        tokens = [DifferenceAnswer(**token._asdict()) for token in difference.strongest()]
        return cls(**(difference.to_dict() | {"tokens": tokens}))


def _is_word(evidence: Evidence, token: int) -> bool:
    sources = evidence.query.sources
    return any(sources.piece(member) is None for member in sources.members(token))


def _joined(evidence: Evidence, token: int) -> bool:
    sources = evidence.query.sources
    if sources.groups is not None or not token:
        return False
    before, after = sources.place(token - 1), sources.place(token)
    return isinstance(before, Span) and isinstance(after, Span) and (before.text, before.stop) == after[:2]


def _picture_names(evidence: Evidence) -> list[str]:
    document = evidence.document
    if document.page is not None or len(document.pictures) <= 1:
        return ["page"] * len(document.pictures)
    frames = document.sources.frames
    return [
        f"{frame.medium} {frame.number + 1}" + ("" if frame.seconds is None else f" at {frame.seconds:.1f} s")
        for frame in frames
    ]
