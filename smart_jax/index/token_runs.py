"""Runs of items that are worked on at once, and tokens in float32."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from smart_jax.retrieval import Embeddings


def runs(offsets: Int[np.ndarray, " bounds"], most: int) -> Iterator[tuple[int, int]]:
    """Yields the first item and that behind the last of runs of so many tokens at most, or of one item.

    Example:
      >>> list(runs(np.array([0, 2, 3, 9, 10]), 3))
      [(0, 2), (2, 3), (3, 4)]
    """
    first = 0
    while first < len(offsets) - 1:
        last = int(np.searchsorted(offsets, offsets[first] + most, side="right")) - 1
        last = max(first + 1, last)
        yield first, last
        first = last


def float_tokens(items: Embeddings, first: int = 0, last: int | None = None) -> Float[np.ndarray, "tokens D"]:
    """Returns some of the tokens, scaled where they have scales."""
    tokens = items.tokens[first:last]
    if items.scales is None:
        return tokens.astype(np.float32, copy=False)
    return np.asarray(tokens * items.scales[first:last, None])
