"""The sections of the study: what is scored in each, from the states of one benchmark."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Float
from tqdm.auto import tqdm

from eval.studies.maxima import maxima, shares
from eval.studies.prompt_words import prompt_words
from eval.studies.scores import late_scores, pooled_scores
from eval.studies.settings import UNREDUCED, Reducer
from eval.studies.study_plots import CENTRED
from smart_jax.retrieval import States
from smart_jax.retrieval.reductions import PCA, keep_tokens

POOLED = "pooled vector only"
ALL_WORDS = "all"


@dataclasses.dataclass(frozen=True)
class Variant:
    """A line of a section's table, of one benchmark.

    Attributes:
      name: heads the line.
      facts: further columns by name, such as bytes.
      scores: of all queries and pages, by kind: "late", "hybrid".
    """

    name: str
    facts: Mapping[str, float]
    scores: Mapping[str, Float[np.ndarray, "Nq Nd"]]


@dataclasses.dataclass(frozen=True)
class Section:
    """A table: the variants that are its lines, and the name of the one that others are compared with."""

    variants: Callable[[States, States], Iterator[Variant]]
    default: str


def make_sections(settings: Mapping[str, tuple[str, ...]], weights: Sequence[float]) -> dict[str, Section]:
    """Returns the study's sections by name.

    Args:
      settings: steps as of `eval.studies.settings.parse`, by name, UNREDUCED among them.
      weights: late weights, 1 among them.
    """
    return {
        "storage": Section(lambda q, d: storage(q, d, settings), UNREDUCED),
        "late weight": Section(lambda q, d: late_weights(q, d, weights), "1"),
        "layers": Section(layers, "-1"),
        "words": Section(words, ALL_WORDS),
    }


def storage(queries: States, corpus: States, settings: Mapping[str, tuple[str, ...]]) -> Iterator[Variant]:
    """Yields every setting that applies, and the pooled vector alone."""
    reducer = Reducer(queries, corpus)
    pooled = pooled_scores(queries.embeddings(), corpus.embeddings())
    yield Variant(POOLED, {"bytes": corpus.pooled.nbytes / len(corpus), "tokens": 0.0}, {"hybrid": pooled})
    for name, steps in tqdm(settings.items(), desc="settings", delay=2, leave=False):
        if reducer.applies(steps):
            q, d, nbytes = reducer(steps)
            facts = {"bytes": nbytes / len(d), "tokens": len(d.tokens) / len(d)}
            yield Variant(name, facts, _with_pooled(pooled, late_scores(q, d)))


def late_weights(queries: States, corpus: States, weights: Sequence[float]) -> Iterator[Variant]:
    """Yields the hybrid score of every late weight, the pooled weight being 1."""
    q, d = queries.embeddings(), corpus.embeddings()
    pooled, late = pooled_scores(q, d), late_scores(q, d)
    for weight in weights:
        yield Variant(f"{weight:g}", {}, {"hybrid": pooled + np.float32(weight) * late})
    yield Variant("late only", {}, {"hybrid": late})


def layers(queries: States, corpus: States) -> Iterator[Variant]:
    """Yields each layer's tokens, as they are and centred; the pooled vectors are the last layer's."""
    pooled = pooled_scores(queries.embeddings(), corpus.embeddings())
    for layer in sorted(corpus.layers):
        q, d = queries.embeddings(layer), corpus.embeddings(layer)
        centre = PCA.fit(d, d.tokens.shape[1], centred=True)
        facts = {"length": float(corpus.norms[:, corpus.layers.index(layer)].mean())}
        yield Variant(f"{layer}", facts, _with_pooled(pooled, late_scores(q, d)))
        yield Variant(f"{layer}{CENTRED}", facts, _with_pooled(pooled, late_scores(centre(q), centre(d))))


def words(queries: States, corpus: States) -> Iterator[Variant]:
    """Yields late interaction of some tokens only: those of the prompt, or those of the items themselves.

    Facts are the numbers of tokens, and where the maxima land, see `eval.studies.maxima.shares`.
    """
    q, d = queries.embeddings(), corpus.embeddings()
    pooled, found = pooled_scores(q, d), maxima(queries, corpus)
    asked, shown = prompt_words(queries), prompt_words(corpus)
    every = np.ones(len(asked), bool), np.ones(len(shown), bool)
    chosen = {ALL_WORDS: every}
    if asked.any():
        chosen["queries' own words"] = ~asked, every[1]
        chosen["queries' prompt"] = asked, every[1]
    if shown.any():
        chosen["pages' own tokens"] = every[0], ~shown
    if asked.any() and shown.any():
        chosen["own on both sides"] = ~asked, ~shown
    for name, (of_queries, of_pages) in chosen.items():
        kept_q, kept_d = (x if mask.all() else keep_tokens(x, mask) for x, mask in ((q, of_queries), (d, of_pages)))
        facts = {"query tokens": len(kept_q.tokens) / len(q), "page tokens": len(kept_d.tokens) / len(d)}
        # Without the pages' words of the prompt no maximum lands on them.
        facts |= shares(found, of_queries & of_pages.all(), queries)
        yield Variant(name, facts, _with_pooled(pooled, late_scores(kept_q, kept_d)))


def _with_pooled(
    pooled: Float[np.ndarray, "Nq Nd"], late: Float[np.ndarray, "Nq Nd"]
) -> dict[str, Float[np.ndarray, "Nq Nd"]]:
    return {"late": late, "hybrid": pooled + late}
