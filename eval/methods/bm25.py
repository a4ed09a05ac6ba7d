"""BM25 over the pages' texts: what word matching alone finds, given the text that a page image has only as pixels."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import bm25s
import numpy as np
from bm25s.stopwords import STOPWORDS_EN
from jaxtyping import Float32

logging.getLogger("bm25s").setLevel(logging.WARNING)  # it logs its progress
# Text in scripts without spaces is matched by character, other text by word.
_CHARACTERS = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CHARACTERS}]|[^\W{_CHARACTERS}]+")
_STOPWORDS = frozenset(STOPWORDS_EN)


def words(text: str) -> list[str]:
    """Returns lower-case words without English stop words; Chinese and Japanese characters are words of their own.

    Example:
      >>> words("The map of H2O_content")
      ['map', 'h2o_content']
    """
    return [word for word in _WORD.findall(text.lower()) if word not in _STOPWORDS]


class BM25:
    """Okapi BM25 in Lucene's form (k1 = 1.5, b = 0.75), without stemming.

    Example:
      >>> scores = BM25(["a red kite", "the blue sea"]).score(["kites", "blue kite"])
      >>> scores.shape, bool(scores[1, 0] > 0), scores[0].tolist()
      ((2, 2), True, [0.0, 0.0])
    """

    def __init__(self, texts: Sequence[str]):
        """Indexes the texts of the documents."""
        self._count = len(texts)
        corpus = [words(text) for text in texts]
        self._index: bm25s.BM25 | None = None  # of a corpus without any word
        if any(corpus):
            self._index = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
            self._index.index(corpus, show_progress=False)

    def score(self, queries: Sequence[str]) -> Float32[np.ndarray, "Nq Nd"]:
        """Returns the scores of all documents; a query that shares no word with the corpus scores 0 everywhere."""
        scores = np.zeros((len(queries), self._count), np.float32)
        if self._index is None:
            return scores
        for of_query, query in zip(scores, queries, strict=True):
            known = [word for word in words(query) if word in self._index.vocab_dict]
            if known:
                of_query[:] = self._index.get_scores(known)
        return scores
