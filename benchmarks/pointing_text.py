"""Pointing test on texts: does the evidence lie where the answer is? `python -m benchmarks.pointing_text`.

Texts are held-out docstrings, and a query is some of the words of a run of 5 to 8 in its text (`recipes.tiny`): the
answer's characters are known. On a page of a PDF its box follows from these, character by character. Of a map over the
text's tokens two figures are taken: the share of its mass on tokens of the answer, and whether its peak is there. The
maps, all of the same forward pass:

- chance: a map of equal values.
- pooled: what each token brings to the cosine of the pooled vectors, where it is positive, without a gradient; for
  models whose pooled vector is a mean of token states, such as MiniLM.
- shares, evidence without others, evidence: as in `benchmarks.pointing`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

import smart_jax
from benchmarks.pointing import inside_and_peak, table
from recipes.tiny import held_out, wording_run
from smart_jax.evidence import Evidence, Traced, trace, usual_cosines

METHODS = ("chance", "pooled", "shares: best tokens, all alike", "evidence without others", "evidence")
CHARACTERS = 300, 900  # of a text: MiniLM reads 254 tokens


class Case(NamedTuple):
    """A text, a query of its words, and the characters start:stop of the run that it is made of."""

    text: str
    query: str
    run: tuple[int, int]


def cases(count: int, seed: int) -> list[Case]:
    """Returns texts, each with a query; the same for the same seed."""
    rng = np.random.default_rng(seed)
    texts = [text for d in held_out() if CHARACTERS[0] <= len(text := " ".join(d.text.split())) <= CHARACTERS[1]]
    return [Case(texts[i], *wording_run(texts[i], rng)) for i in rng.permutation(len(texts))[:count].tolist()]


def answer_mask(document: Traced, run: tuple[int, int]) -> Bool[np.ndarray, " tokens"]:
    """Returns which tokens show a character of the answer."""
    _, start, stop = document.sources.spans.T
    return (start < run[1]) & (stop > run[0]) & (document.sources.kinds == 2)


def by_token(evidence: Evidence, weights: Float[np.ndarray, " P"]) -> Float[np.ndarray, " tokens"]:
    """Returns what each document token gets, where each query token's weight goes to its best token."""
    return np.bincount(evidence.found.tokens, weights, minlength=len(evidence.document.sources))


def figures(with_others: Evidence, without: Evidence, run: tuple[int, int]) -> Float[np.ndarray, "methods 2"]:
    """Returns the two figures of every method for one query."""
    document, words = with_others.document, with_others.query.sources.kinds == 2
    pooled = with_others.document_shares
    assert pooled is not None, "the model pools otherwise than by a mean of token states"
    maps = [
        np.ones(len(document.sources)),
        np.maximum(pooled, 0),
        by_token(with_others, words.astype(float)),
        by_token(without, without.emphasis),
        by_token(with_others, with_others.emphasis),
    ]
    texts, mask = (document.sources.kinds == 2)[None], answer_mask(document, run)[None]
    return np.array([inside_and_peak((each[None] * texts)[None], mask) for each in maps])


def measure(
    model: smart_jax.Encoder, chosen: Sequence[Case], *, sample: int, seed: int
) -> Float[np.ndarray, "queries methods 2"]:
    """Returns the figures of every query."""
    documents = model.encode_document([case.text for case in chosen])
    rng, found = np.random.default_rng(seed), []
    for i, case in enumerate(chosen):
        query, document = trace(model, case.query, query=True), trace(model, case.text)
        others = rng.permutation(np.delete(np.arange(len(chosen)), i))[:sample]
        usual = usual_cosines(query.embeddings, documents[others])
        evidence = [smart_jax.explain(query, document, others=usual), smart_jax.explain(query, document)]
        found.append(figures(evidence[0], evidence[1], case.run))
    return np.stack(found)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm")
    parser.add_argument("--texts", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2, help="sets of texts and queries")
    parser.add_argument("--sample", type=int, default=64, help="other texts of which lift is computed")
    options = parser.parse_args(arguments)
    model, begun = smart_jax.load(options.model), time.process_time()
    parts = [
        measure(model, cases(options.texts, seed), sample=options.sample, seed=seed) for seed in range(options.seeds)
    ]
    found = np.concatenate(parts)
    print(f"{len(found)} queries, their own texts, {time.process_time() - begun:.0f} s of CPU time\n")
    print(table(found, METHODS))


if __name__ == "__main__":
    main()
