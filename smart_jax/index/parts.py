"""Both parts of the score of a query with a few of the documents: cosines of pooled vectors, and late interaction."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from smart_jax.maxsim import Packed, packed_scores
from smart_jax.retrieval import Embeddings

TOKENS_AT_ONCE = 2**15  # copied out of the files


def part_scores(
    query: Embeddings, documents: Embeddings, places: Int[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Returns the pooled and the late scores, float32, of one query with the documents at some places.

    Args:
      query: one item.
      documents: may be left in files; only those at the places are read.
      places: of documents, ascending.
    """
    pooled = documents.pooled[places].astype(np.float32) @ query.pooled[0].astype(np.float32)
    late = np.empty(len(places), np.float32)
    lengths = documents.offsets[places + 1] - documents.offsets[places]
    wanted = Packed(query.tokens, query.offsets, query.scales)
    first = 0
    while first < len(places):
        last = max(first + 1, int(np.searchsorted(np.cumsum(lengths[first:]), TOKENS_AT_ONCE, side="right")) + first)
        some = documents[places[first:last]]
        late[first:last] = packed_scores(wanted, Packed(some.tokens, some.offsets, some.scales))[0]
        first = last
    return pooled, late
