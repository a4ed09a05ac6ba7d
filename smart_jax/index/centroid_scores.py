"""Late interaction with the centroids of documents' tokens in the tokens' place.

A query has its cosines with all centroids first, in bytes; a document's tokens look theirs up. Plain late interaction
of centroids, as in PLAID (arXiv:2205.09707), over all documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8, UInt16

from smart_jax.index.token_runs import float_tokens, runs
from smart_jax.retrieval import Embeddings

BLOCK_BYTES = 2**20  # looked up at once
QUERY_TOKENS = 256  # whose cosines are in one table
LONGER = 1.25  # times the tokens of a block's shortest document are those of its longest, at most


class Table(NamedTuple):
    """Inner products of query tokens with centroids, in bytes.

    Attributes:
      levels: a row of bytes for each centroid, as one value; level 0 = a token's lowest product, 255 its highest.
      low, step: float32, product = low + step * level of a query token.
    """

    levels: np.ndarray
    low: Float[np.ndarray, " P"]
    step: Float[np.ndarray, " P"]

    @classmethod
    def of(cls, tokens: Float[np.ndarray, "P D"], centroids: Float[np.ndarray, "centroids D"]) -> Table:
        """Returns the table of some query tokens."""
        products = centroids @ np.ascontiguousarray(tokens.T)
        low = products.min(axis=0)
        step = (products.max(axis=0) - low) / np.float32(255)
        step[step == 0] = 1
        levels = np.rint((products - low) / step).astype(np.uint8)
        return cls(levels.view(f"V{len(tokens)}")[:, 0], low, step)

    def look_up(self, codes: UInt16[np.ndarray, "L N"]) -> UInt8[np.ndarray, "L NP"]:
        """Returns the levels of all query tokens with tokens of these centroids, those of a document side by side."""
        return np.take(self.levels, codes).view(np.uint8).reshape(len(codes), -1)


def centroid_scores(
    queries: Embeddings,
    centroids: Float[np.ndarray, "centroids D"],
    codes: UInt16[np.ndarray, " T"],
    offsets: Int[np.ndarray, " bounds"],
    mask: Bool[np.ndarray, " N"] | None = None,
) -> Float[np.ndarray, "Nq N"]:
    """Returns the late scores, float32, that documents have if each of their tokens is its centroid.

    Products are rounded to 255th parts of their range over the centroids, for each query token.

    Args:
      queries: any number of them.
      centroids: float32.
      codes: the centroid of each token.
      offsets: of the documents, each with at least one token.
      mask: which documents are scored; the others have 0. None = all.

    Example:
      >>> queries = Embeddings(np.zeros((1, 2), np.float32), np.float32([[1, 0], [0, 1]]), np.array([0, 2]))
      >>> centroids = np.float32([[1, 0], [0, 1], [0.5, 0.5]])
      >>> centroid_scores(queries, centroids, np.uint16([0, 1, 1, 2]), np.array([0, 2, 4])).round(2).tolist()
      [[1.0, 0.75]]
    """
    scores = np.zeros((len(queries), len(offsets) - 1), np.float32)
    for first, last in runs(queries.offsets, QUERY_TOKENS):
        some = queries[first:last]
        table = Table.of(float_tokens(some), centroids)
        bounds, counts = some.offsets[:-1], some.lengths.astype(np.float32)
        for documents, places in _blocks(offsets, mask, len(some.tokens)):
            levels = table.look_up(codes[places]).max(axis=0).reshape(len(documents), -1)
            products = levels * table.step
            products += table.low
            scores[first:last, documents] = (np.add.reduceat(products, bounds, axis=1) / counts).T
    return scores


def _blocks(
    offsets: Int[np.ndarray, " bounds"], mask: Bool[np.ndarray, " N"] | None, width: int
) -> Iterator[tuple[Int[np.ndarray, " n"], Int[np.ndarray, "L n"]]]:
    """Yields documents of like length, and the places of their tokens; short ones repeat their last token."""
    lengths = np.diff(offsets)
    small = lengths.astype(np.uint16) if lengths.max() < 2**16 else lengths  # which are sorted by radix
    order = np.argsort(small, kind="stable")
    if mask is not None:
        order = order[mask[order]]
    first = 0
    while first < len(order):
        most = BLOCK_BYTES // (width * int(lengths[order[first]]))
        rising = lengths[order[first : first + max(1, most)]]
        fits = (rising * np.arange(1, len(rising) + 1) * width <= BLOCK_BYTES) & (rising <= LONGER * rising[0])
        documents = np.sort(order[first : first + max(1, int(np.count_nonzero(fits)))])
        of_each = lengths[documents]
        yield documents, np.minimum(np.arange(of_each.max())[:, None], of_each - 1) + offsets[documents]
        first += len(documents)
