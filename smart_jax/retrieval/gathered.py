"""`Gathered`: items that do not lie side by side in memory, packed block by block as they are scored."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Num

from smart_jax.retrieval.block import Parts, Run, aligned_zeros
from smart_jax.retrieval.embeddings import Embeddings

TokenArrays = Sequence[Num[np.ndarray, "_ D"]]


@dataclasses.dataclass(frozen=True, eq=False)
class Gathered:
    """Items of embeddings in an order of their own, or items whose tokens are an array each.

    Nothing is copied until `pack` puts a run of them side by side: memory holds a few blocks, whatever the number of
    items, and of a mapped file only the items that are asked for are read.

    Attributes:
      source: embeddings, or an array of tokens for each item.
      ids: numbers of these items in the source; one may come several times.
      offsets: where each item's tokens would begin if all were packed, and where the last end.
    """

    source: Embeddings | TokenArrays
    ids: Int[np.ndarray, " M"]
    offsets: Int[np.ndarray, " M+1"]

    @classmethod
    def of(cls, source: Embeddings | Gathered | TokenArrays, ids: Int[np.ndarray, " M"]) -> Gathered:
        """Returns items of embeddings, of a list of arrays, or of items that were gathered before."""
        if isinstance(source, Gathered):
            return cls.of(source.source, source.ids[ids])
        if isinstance(source, Embeddings):
            lengths = source.offsets[ids + 1] - source.offsets[ids]
        else:
            lengths = np.asarray([len(source[i]) for i in ids.tolist()], np.int64)
        return cls(source, ids, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> Num[np.ndarray, "_ D"]:
        """Tokens of the source, or of one of its items: an array that has the width and the dtype of all."""
        return self.source.tokens if isinstance(self.source, Embeddings) else self.source[0]

    @property
    def pooled(self) -> Float[np.ndarray, "_ H"]:
        """Pooled vectors of the source, of width 0 where it is arrays of tokens."""
        return self.source.pooled if isinstance(self.source, Embeddings) else np.empty((0, 0), self.tokens.dtype)

    def pack(self, run: Run, parts: Parts, size: int) -> Embeddings:
        """Returns a run of items as embeddings, of the parts alone, with zeros behind the last token up to `size`."""
        first, last = run
        ids, offsets = self.ids[first:last].tolist(), self.offsets[first : last + 1] - self.offsets[first]
        if not isinstance(self.source, Embeddings):
            tokens = packed([self.source[i] for i in ids], size, self.tokens)
            return Embeddings.from_checked(_nothing(ids), tokens, offsets)
        pooled = self.source.pooled[ids] if parts.pooled else _nothing(ids)
        if not parts.late:
            return Embeddings.from_checked(pooled, self.tokens[:0], offsets)
        bounds, scales = self.source.offsets, self.source.scales
        spans = [slice(bounds[i], bounds[i + 1]) for i in ids]
        tokens = packed([self.tokens[span] for span in spans], size, self.tokens)
        scales = None if scales is None else packed([scales[span] for span in spans], size, scales)
        return Embeddings.from_checked(pooled, tokens, offsets, scales)


def _nothing(ids: Sequence[int]) -> Float[np.ndarray, "M 0"]:
    """Returns pooled vectors of width 0."""
    return np.empty((len(ids), 0), np.float32)


def packed(parts: Sequence[np.ndarray], size: int, like: np.ndarray) -> np.ndarray:
    """Returns the arrays one after another and zeros behind them, where XLA on a CPU uses them in place."""
    out = aligned_zeros((size, *like.shape[1:]), like.dtype)
    if parts:
        np.concatenate(parts, out=out[: sum(map(len, parts))])
    return out
