"""Form in which an index stores vectors: dtypes and widths."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from smart_jax.files import checked_int, shown
from smart_jax.retrieval import Embeddings

STORED = ("float16", "float32", "int8")


@dataclasses.dataclass(frozen=True)
class VectorFormat:
    """Dtype of the tokens, and widths; pooled vectors are float32.

    Attributes:
      name: of the tokens' dtype, one of `STORED`.
      pooled_width, token_width: number of components.

    Example:
      >>> VectorFormat("float16", 4, 2).row_bytes()
      {'.tokens': 4, '.pooled': 16, '.bounds': 8}
    """

    name: str
    pooled_width: int
    token_width: int

    @classmethod
    def of(cls, embeddings: Embeddings, name: str) -> VectorFormat:
        """Returns the format of such embeddings."""
        return cls(name, embeddings.pooled.shape[1], embeddings.tokens.shape[1])

    @classmethod
    def from_json(cls, fields: object) -> VectorFormat:
        """Returns the format as the catalog keeps it; raises ValueError where that is damaged."""
        names = {field.name for field in dataclasses.fields(cls)}
        if not isinstance(fields, dict) or fields.keys() != names or fields["name"] not in STORED:
            raise ValueError(f"the form of the index's vectors is {shown(fields)}: the index is damaged; restore it")
        least = {"pooled_width": 0, "token_width": 1}  # no pooled vectors, of a model that has none
        widths = (checked_int(fields[key], f"the index's {key}", least=each) for key, each in least.items())
        return cls(str(fields["name"]), *widths)

    @property
    def dtype(self) -> np.dtype:
        """Dtype of the tokens."""
        return np.dtype(self.name)

    @property
    def scaled(self) -> bool:
        """Whether each token has a scale."""
        return self.name == "int8"

    def row_bytes(self) -> dict[str, int]:
        """Returns the bytes of a row of each of a segment's files, by their suffixes."""
        tokens = self.token_width * self.dtype.itemsize
        sizes = {".tokens": tokens, ".pooled": 4 * self.pooled_width, ".bounds": 8}
        return sizes | {".scales": 4} if self.scaled else sizes

    def stored(self, embeddings: Embeddings) -> Embeddings:
        """Returns the embeddings with tokens of the dtype, and pooled vectors in float32.

        Raises:
          ValueError: their widths are others, or a value does not fit the dtype.
        """
        widths = embeddings.pooled.shape[1], embeddings.tokens.shape[1]
        if widths != (self.pooled_width, self.token_width):
            raise ValueError(
                f"the embeddings have pooled width {widths[0]} and token width {widths[1]}, the index has "
                f"{self.pooled_width} and {self.token_width}: encode with the model of the index"
            )
        pooled = embeddings.pooled.astype(np.float32, copy=False)
        same = embeddings if embeddings.dtype == self.dtype else embeddings.astype(self.dtype)
        return Embeddings.from_checked(pooled, same.tokens, same.offsets, same.scales, same.provenance)

    def arrays(self, embeddings: Embeddings) -> dict[str, np.ndarray]:
        """Returns the arrays of stored embeddings that are written as they are, by the suffixes of their files."""
        arrays = {".tokens": embeddings.tokens, ".pooled": embeddings.pooled}
        return arrays if embeddings.scales is None else arrays | {".scales": embeddings.scales}

    def to_json(self) -> dict[str, Any]:
        """Returns it as the catalog keeps it."""
        return dataclasses.asdict(self)
