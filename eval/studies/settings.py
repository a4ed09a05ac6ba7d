"""Reductions of stored states by name, one after another: "pool 4 + pca 1/2 + int8".

  own              without the words of the prompt; must come first
  pool K           hierarchical token pooling to 1/K of a page's tokens
  runs K           means of K tokens that follow one another
  grid K           means of K x K neighbours among an image's visual tokens; must come first
  first A/B        the first A/B of the components of every token
  pca A/B          as many principal components, fitted on the pages' tokens
  centred pca A/B  likewise, after their mean is subtracted
  int8             a byte for each component and a scale for each token
  binary           a bit for each component; queries keep their precision
  binary both      queries are binarised too

"float16", in which the states are stored, is the setting without a reduction. Queries follow where widths change.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

import numpy as np

from eval.studies.prompt_words import prompt_words
from smart_jax.retrieval import Embeddings, States
from smart_jax.retrieval.reductions import PCA, BinaryEmbeddings, keep_tokens, pool_grid, pool_tokens, truncate

UNREDUCED = "float16"
SEPARATOR = " + "
_STEP = re.compile(
    r"own|(pool|runs|grid) [1-9][0-9]*|(first|pca|centred pca) [1-9][0-9]*/[1-9][0-9]*|int8|binary both|binary"
)
_BITS = ("int8", "binary", "binary both")
_OF_STATES = ("own", "grid")
Pair = tuple[Embeddings, Embeddings]  # of queries and documents


def parse(name: str) -> tuple[str, ...]:
    """Returns the steps of a setting.

    Raises:
      ValueError: a step is unknown or in the wrong place.

    Example:
      >>> parse("pool 4 + pca 1/2 + int8")
      ('pool 4', 'pca 1/2', 'int8')
    """
    steps = () if name == UNREDUCED else tuple(name.split(SEPARATOR))
    for place, step in enumerate(steps):
        if not _STEP.fullmatch(step):
            raise ValueError(
                f"setting {name!r}: unknown step {step!r}; there are own, pool K, runs K, grid K, first A/B, "
                "pca A/B, centred pca A/B, int8, binary and binary both"
            )
        if step in _BITS and place < len(steps) - 1:
            raise ValueError(f"setting {name!r}: {step} comes last")
        if place and step.partition(" ")[0] in _OF_STATES:
            raise ValueError(f"setting {name!r}: {step} comes first")
    return steps


class Reducer:
    """Reduces one benchmark's last states; steps that several settings begin with are computed once."""

    def __init__(self, queries: States, corpus: States):
        self._corpus = corpus
        self._done: dict[tuple[str, ...], Pair] = {(): (queries.embeddings(), corpus.embeddings())}

    def applies(self, steps: tuple[str, ...]) -> bool:
        """Returns whether the first step has something to do: there are images, or a prompt has words."""
        first = steps[0] if steps else ""
        if first.startswith("grid"):
            return bool(len(self._corpus.grids))
        return first != "own" or bool(prompt_words(self._corpus).any())

    def __call__(self, steps: tuple[str, ...]) -> tuple[Embeddings, Embeddings, int]:
        """Returns queries and documents to score with, and the bytes that the documents take when stored."""
        if steps and steps[-1] in _BITS:
            q, d = self._pair(steps[:-1])
            if steps[-1] == "int8":
                d = d.astype(np.int8)
                return q, d, d.nbytes
            packed = BinaryEmbeddings.of(d)
            q = BinaryEmbeddings.of(q).embeddings() if steps[-1] == "binary both" else q
            return q, packed.embeddings(), packed.nbytes
        q, d = self._pair(steps)
        return q, d, d.nbytes

    def _pair(self, steps: tuple[str, ...]) -> Pair:
        if steps not in self._done:
            self._done[steps] = self._apply(steps[-1], *self._pair(steps[:-1]))
        return self._done[steps]

    def _apply(self, step: str, q: Embeddings, d: Embeddings) -> Pair:
        if step == "own":
            return q, keep_tokens(d, ~prompt_words(self._corpus))
        kind, _, size = step.rpartition(" ")
        if kind == "grid":
            return q, pool_grid(self._corpus, int(size)).embeddings()
        if kind in _POOLINGS:
            return q, pool_tokens(d, int(size), _POOLINGS[kind])
        width = max(1, round(Fraction(size) * d.tokens.shape[1]))
        narrow = _NARROWINGS[kind](d, width)
        return narrow(q), narrow(d)


_POOLINGS = {"pool": "hierarchical", "runs": "sequential"}
_NARROWINGS: dict[str, Callable[[Embeddings, int], Callable[[Embeddings], Embeddings]]] = {
    "first": lambda _, width: lambda e: truncate(e, width),
    "pca": lambda d, width: PCA.fit(d, width),
    "centred pca": lambda d, width: PCA.fit(d, width, centred=True),
}
