"""Tokens brought under Qdrant's limit of values a point: by pooling and by PCA, in turns.

Both mildly keep more than one of them strongly: half as many tokens first, then tokens of half the width, and so on.
Pooling is of the documents that need it; the width is of a whole collection, and chosen with its first documents.
"""

from __future__ import annotations

import base64
import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from smart_jax.retrieval import Embeddings, reductions

CAP = 1_048_576  # values of a point's tokens: fewer
POOLED_AT_ONCE = 4096  # tokens of a document that Ward's clustering sees together


def choose_width(longest: int, width: int, cap: int = CAP) -> int:
    """Returns the width of a collection whose longest document has so many tokens.

    Example:
      >>> choose_width(1280, 128), choose_width(1280, 2048)  # the latter are pooled by 2, too
      (128, 1024)
    """
    factor, chosen, by_width = 1, width, False
    while math.ceil(longest / factor) * chosen >= cap and (chosen > 1 or factor < longest):
        if by_width and chosen > 1:
            chosen = math.ceil(chosen / 2)
        else:
            factor *= 2
        by_width = not by_width
    return chosen


def choose_factor(tokens: int, width: int, cap: int = CAP) -> int:
    """Returns by how much a document's tokens are pooled, a power of 2.

    Example:
      >>> choose_factor(1280, 128), choose_factor(1280, 1024)
      (1, 2)
    """
    factor = 1
    while math.ceil(tokens / factor) * width >= cap and factor < tokens:
        factor *= 2
    return factor


@dataclasses.dataclass(frozen=True, eq=False)
class Narrowing:
    """Components that the tokens of a collection are told in, queries' and documents' alike.

    Attributes:
      components: float32 [D, width], orthonormal columns.
    """

    components: Float[np.ndarray, "D width"]

    @classmethod
    def fit(cls, documents: Embeddings, width: int) -> Narrowing:
        """Returns the principal components of documents, in float16."""
        components = reductions.PCA.fit(_floats(documents), width).components
        return cls(components.astype(np.float16).astype(np.float32))

    def __call__(self, e: Embeddings) -> Embeddings:
        """Returns embeddings with narrower tokens."""
        D, width = self.components.shape
        return reductions.PCA(np.zeros(D, np.float32), self.components, np.zeros(width, np.float32))(_floats(e))

    def of_model(self, e: Embeddings) -> Embeddings:
        """Returns embeddings with narrower tokens, and those that are narrower already as they are."""
        return self(e) if e.tokens.shape[1] == len(self.components) else e

    def to_json(self) -> dict[str, Any]:
        """Returns it as an engine keeps it."""
        data = base64.b64encode(self.components.astype(np.float16).tobytes()).decode()
        return {"shape": list(self.components.shape), "float16": data}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Narrowing:
        """Returns what `to_json` told.

        Example:
          >>> narrowing = Narrowing(np.eye(4, 2, dtype=np.float32))
          >>> Narrowing.from_json(narrowing.to_json()).components.shape
          (4, 2)
        """
        values = np.frombuffer(base64.b64decode(fields["float16"]), np.float16)
        return cls(values.reshape(fields["shape"]).astype(np.float32))


def pool_long(item: Embeddings, factor: int) -> tuple[Embeddings, Int[np.ndarray, " L"]]:
    """Returns one document with pooled tokens, and the group of each token.

    Example:
      >>> item = Embeddings(np.float32([[1, 0]]), np.float32([[1, 0], [0, 1], [1, 0], [0, 1]]), np.array([0, 4]))
      >>> pooled, groups = pool_long(item, 2)
      >>> len(pooled.tokens), groups
      (2, array([0, 1, 0, 1]))
    """
    item, count = _floats(item), len(item.tokens)
    runs = math.ceil(count / POOLED_AT_ONCE)
    bounds = np.linspace(0, count, runs + 1).astype(np.int64)
    pieces = Embeddings.from_checked(np.repeat(item.pooled, runs, axis=0), item.tokens, bounds)
    groups = reductions.group_tokens(pieces, factor)
    return reductions.pool_groups(item, groups), groups


def _floats(e: Embeddings) -> Embeddings:
    return e.astype(np.float32)
