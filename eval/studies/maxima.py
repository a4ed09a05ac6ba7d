"""Places where the maxima of late interaction land: on a page's prompt, and there on the same token as the query's."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from eval.studies.prompt_words import prompt_words
from smart_jax.retrieval import States

QUERY_TOKENS = 512  # whose similarities with all pages' tokens are held at a time


class Maxima(NamedTuple):
    """Means over the pages, for each query token.

    Attributes:
      value: the maximum itself.
      on_prompt: how often it is on a word of the page's prompt.
      on_copy: how often on one with the same id, where the query token is a word of the prompt, too.
      value_on_copy: the maximum where it is, 0 elsewhere.
    """

    value: Float[np.ndarray, " T"]
    on_prompt: Float[np.ndarray, " T"]
    on_copy: Float[np.ndarray, " T"]
    value_on_copy: Float[np.ndarray, " T"]


def maxima(queries: States, corpus: States) -> Maxima:
    """Returns where the maxima of the queries' tokens land, of the last layer; a tie counts for the prompt."""
    q, d = queries.embeddings(), corpus.embeddings()
    is_prompt, asked = prompt_words(corpus), prompt_words(queries)
    places = np.flatnonzero(is_prompt).reshape(len(corpus), -1)  # of the same words in each page
    parts = []
    for start in range(0, len(q.tokens), QUERY_TOKENS):
        part = slice(start, start + QUERY_TOKENS)
        similarity = q.tokens[part].astype(np.float32) @ d.tokens.astype(np.float32).T
        best = np.maximum.reduceat(similarity, d.offsets[:-1], axis=1)  # [part, N]
        same = (queries.ids[part, None] == corpus.ids[places[0]]) & asked[part, None]
        on_prompt = similarity[:, places].max(axis=2, initial=-np.inf) == best
        copies = np.where(same[:, None], similarity[:, places], -np.inf).max(axis=2, initial=-np.inf)
        on_copy = copies == best
        parts.append(np.stack([x.mean(axis=1) for x in (best, on_prompt, on_copy, best * on_copy)]))
    return Maxima(*np.concatenate(parts, axis=1))


def shares(found: Maxima, chosen: Bool[np.ndarray, " T"], queries: States) -> dict[str, float]:
    """Returns shares of the maxima of some query tokens, in the mean over queries; all are 0 where none is chosen.

    Args:
      found: of all query tokens.
      chosen: which of them take part.
      queries: whose tokens they are.

    Returns:
      "on prompt" and "on copy": shares of the maxima; "late on copy": share of the late score.
    """
    counts = np.add.reduceat(chosen.astype(float), queries.offsets[:-1])
    sums = [np.add.reduceat(np.where(chosen, x, 0), queries.offsets[:-1]) / np.maximum(counts, 1) for x in found]
    value, on_prompt, on_copy, value_on_copy = (float(x[counts > 0].mean()) if counts.any() else 0.0 for x in sums)
    return {"on prompt": on_prompt, "on copy": on_copy, "late on copy": value_on_copy / value if value else 0.0}
