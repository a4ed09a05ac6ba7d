"""Cosines of a query's tokens with documents' tokens, in float64: the best, where it is, and what is usual."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from smart_jax.retrieval import Embeddings

AT_ONCE = 2**22  # values of tokens that are widened at a time


class Best(NamedTuple):
    """The best document token of each query token.

    Attributes:
      tokens: its number among the document's.
      cosines: with it.
      means: of the query token's cosines with all of the document's tokens.

    Example:
      >>> Best(np.array([1]), np.array([0.5]), np.array([0.25])).tokens.tolist()
      [1]
    """

    tokens: Int[np.ndarray, " P"]
    cosines: Float[np.ndarray, " P"]
    means: Float[np.ndarray, " P"]


def best_tokens(q: Embeddings, d: Embeddings) -> Best:
    """Returns the best tokens of one document for one query."""
    similarities = values(q) @ values(d).T
    tokens = similarities.argmax(axis=1)
    return Best(tokens, np.take_along_axis(similarities, tokens[:, None], axis=1)[:, 0], similarities.mean(axis=1))


def values(e: Embeddings) -> Float[np.ndarray, "T D"]:
    """Returns the tokens in float64, of int8 with their scales."""
    tokens = e.tokens.astype(np.float64)
    return tokens if e.scales is None else tokens * e.scales[:, None].astype(np.float64)


def usual_cosines(query: Embeddings, others: Embeddings) -> Float[np.ndarray, " P"]:
    """Returns the mean, over a sample of documents, of each query token's best cosine with one of them.

    A token's *lift* on a document is its best cosine there minus this: what the document has that others have not.
    Words that match anywhere, such as "the", have none. `explain` takes the result as `others`, so that what one query
    needs is computed once for all of its hits.

    Args:
      query: embeddings of one query with P tokens.
      others: of some tens of documents, drawn at random; without the documents that are explained where there are few.

    Returns:
      float64 [P].

    Raises:
      ValueError: the query is not one item, there are no documents, or widths differ.

    Example:
      >>> query = Embeddings(np.float32([[1, 0]]), np.float32([[1, 0], [0, 1]]), [0, 2])
      >>> others = Embeddings(np.float32([[1, 0], [1, 0]]), np.float32([[1, 0], [0.6, 0.8]]), [0, 1, 2])
      >>> usual_cosines(query, others).round(2).tolist()
      [0.8, 0.4]
    """
    if len(query) != 1 or not len(others):
        raise ValueError(f"there are {len(query)} queries and {len(others)} documents: pass one query and a sample")
    if query.tokens.shape[1] != others.tokens.shape[1]:
        raise ValueError(
            f"tokens of the query have width {query.tokens.shape[1]}, of the others {others.tokens.shape[1]}: encode "
            "both with the same model, and reduce both alike"
        )
    tokens, total = values(query), np.zeros(len(query.tokens))
    first = 0
    while first < len(others):  # as many documents at a time as fit, at least one
        room = others.offsets[first] + AT_ONCE // tokens.shape[1]
        last = max(first + 1, int(np.searchsorted(others.offsets, room, side="right")) - 1)
        part = others[first:last]
        total += np.maximum.reduceat(tokens @ values(part).T, part.offsets[:-1], axis=1).sum(axis=1)
        first = last
    return total / len(others)
