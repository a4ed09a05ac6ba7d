"""First stages of a search; those kept beside the vectors have a mark of two bytes, or of some bits, for each token."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from jaxtyping import Float, Num

from smart_jax.files import checked_int, shown
from smart_jax.index.centroids import assign
from smart_jax.index.sign_scores import sign_words, words_of
from smart_jax.index.token_runs import float_tokens
from smart_jax.index.vector_format import VectorFormat
from smart_jax.retrieval import Embeddings

StageName: TypeAlias = Literal["pooled", "centroids", "binary"]
Marked: TypeAlias = Literal["centroids", "binary"]
STAGES: tuple[StageName, ...] = get_args(StageName)
MARKED: tuple[Marked, ...] = get_args(Marked)  # need marks
OUTGROWN = 4  # times the tokens that centroids were learned for: then others are learned

Marks: TypeAlias = Num[np.ndarray, "T ..."]


@dataclasses.dataclass(frozen=True)
class Stage:
    """A first stage whose marks are kept.

    Attributes:
      name: "centroids" or "binary".
      number: that no stage of the index has had before.
      centroids: number of them.
      tokens: of the index, when they were learned.

    Example:
      >>> Stage("centroids", 1, 2048, 60_000).file(7)
      'centroids-000001.000007'
    """

    name: Marked
    number: int
    centroids: int = 0
    tokens: int = 0

    def file(self, segment: int | None = None) -> str:
        """Returns the name of the file of a segment's marks, or of the centroids."""
        ending = "vectors" if segment is None else f"{segment:06d}"
        return f"{self.name}-{self.number:06d}.{ending}"

    def mark_shape(self, vectors: VectorFormat) -> tuple[np.dtype, tuple[int, ...]]:
        """Returns dtype and shape of the mark of one token."""
        if self.name == "centroids":
            return np.dtype("<u2"), ()
        return np.dtype("<u4"), (words_of(vectors.token_width),)

    def marks(self, items: Embeddings, centroids: Float[np.ndarray, "centroids D"] | None) -> Marks:
        """Returns the marks of the tokens of items, as they are stored."""
        if centroids is None:
            return sign_words(items.tokens)  # scales are positive
        return assign(float_tokens(items), centroids)

    def outgrown(self, tokens: int) -> bool:
        """Tells whether the index has grown so much, to so many tokens, that other centroids are due."""
        return self.name == "centroids" and tokens >= OUTGROWN * self.tokens

    def to_json(self) -> dict[str, Any]:
        """Returns it as the catalog keeps it."""
        return dataclasses.asdict(self)


def parse_stages(known: Iterable[Mapping[str, Any]] | None) -> list[Stage]:
    """Returns the stages as the catalog has them; None = none."""
    return [_stage(each) for each in known or ()]


def _stage(fields: object) -> Stage:
    names = {field.name for field in dataclasses.fields(Stage)}
    if not isinstance(fields, dict) or not {"name", "number"} <= fields.keys() <= names or fields["name"] not in MARKED:
        raise ValueError(f"a first stage of the index is {shown(fields)}: the index is damaged; restore it")
    for key in fields.keys() - {"name"}:
        checked_int(fields[key], f"a first stage of the index: {key}", least=0, most=2**62)
    if fields["name"] == "centroids":
        checked_int(fields.get("centroids"), "a first stage of the index: centroids", most=2**16)
    return Stage(**fields)


def check_stage(name: str) -> StageName:
    """Returns a first stage's name.

    Raises:
      ValueError: there is none of this name.
    """
    for known in STAGES:
        if name == known:
            return known
    raise ValueError(f"first_stage is {name!r}: known are {', '.join(STAGES)}")
