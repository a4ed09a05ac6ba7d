"""LIMIT: documents that list what a person likes, and queries that ask for every pair of people.

The benchmark of arXiv:2508.21038 (github.com/google-deepmind/limit) shows that one vector per document is not enough:
k = 2 documents are relevant to each query, and every pair of documents is the answer to one query, which vectors of too
few dimensions cannot give. `load` reads the published sets, of 1,000 queries about 46 documents, alone (limit-small) or
among 50,000 (limit). `make` builds such a benchmark of any size from the words of this package, without a download.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from eval.benchmarks.benchmark import Benchmark
from eval.benchmarks.limit_words import ATTRIBUTES, NAMES, SURNAMES

FOLDERS = {"small": "limit-small", "full": "limit"}  # in the repository's folder data
METRICS = (
    "recall@2",
    "recall@10",
    "recall@20",
    "recall@100",
)  # in the paper: 2, 10, 20 (small), 2, 10, 100 (full)
PER_QUERY = 2  # relevant documents


def load(folder: str | Path, variant: str = "small") -> Benchmark:
    """Opens a published set.

    Args:
      folder: with queries.jsonl, corpus.jsonl and qrels.jsonl in it, or with the repository's folders limit-small and
        limit.
      variant: "small" or "full": which of these two folders.

    Raises:
      FileNotFoundError: one of the files is missing.
      ValueError: another variant, or a file is not as in `eval.benchmarks.beir`.

    Example:
      >>> load("limit/data", "medium")
      Traceback (most recent call last):
      ValueError: variant is 'medium': use one of small, full
    """
    if variant not in FOLDERS:
        raise ValueError(f"variant is {variant!r}: use one of {', '.join(FOLDERS)}")
    folder = Path(folder)
    inside = folder / FOLDERS[variant]
    return Benchmark.load(inside if inside.is_dir() else folder, name=f"LIMIT-{variant}")


def make(
    documents: int = 24,
    *,
    queries: int | None = None,
    others: int = 0,
    liked: int = 40,
    seed: int = 0,
    names: Sequence[str] | None = None,
    attributes: Sequence[str] = ATTRIBUTES,
) -> Benchmark:
    """Returns a benchmark of this kind: "Who likes kites?", and documents "Ada Dahl likes rice, kites, ... and moths.".

    The attribute that a query asks for is listed by its two relevant documents and by no other. Documents are filled up
    with attributes that no query asks for, and list theirs in random order.

    Args:
      documents: number N that are relevant to a query; there are N * (N - 1) / 2 pairs of them.
      queries: number of the pairs that are asked for, drawn at random; None = all.
      others: number of documents beside them, of attributes that no query asks for.
      liked: attributes in a document, at least; N - 1 of them are asked for where all pairs are.
      seed: of the draws.
      names: of the people, distinct, at least N + others; None = 600 that are made from this package's words.
      attributes: distinct, more than there are queries.

    Raises:
      ValueError: a number is too small, or there are not enough distinct names or attributes for it.

    Example:
      >>> benchmark = make(3, liked=2)
      >>> len(benchmark.queries), len(benchmark.corpus), sorted(map(len, benchmark.qrels.values()))
      (3, 3, [2, 2, 2])
    """
    names = list(names or (f"{first} {last}" for first, last in itertools.product(NAMES, SURNAMES)))
    pairs = math.comb(documents, PER_QUERY) if documents > 0 else 0
    count = pairs if queries is None else queries
    _check_numbers(documents, pairs, count, others, liked)
    _check_distinct("names", names, documents + others, "documents")
    _check_distinct("attributes", attributes, count, "queries")
    rng = np.random.default_rng(seed)
    people = [names[i] for i in rng.permutation(len(names))[: documents + others]]
    shuffled = [attributes[i] for i in rng.permutation(len(attributes))]
    asked, unasked = shuffled[:count], shuffled[count:]
    combinations = list(itertools.combinations(range(documents), PER_QUERY))
    chosen = [combinations[i] for i in np.sort(rng.permutation(pairs)[:count])]
    texts = _texts(rng, people, dict(zip(asked, chosen, strict=True)), unasked, liked)
    order = rng.permutation(len(people))  # relevant ones and others mixed
    query_ids = [f"query-{i}" for i in range(count)]
    return Benchmark(
        name=f"LIMIT-made-{documents}" + (f"+{others}" if others else ""),
        queries=[{"text": f"Who likes {attribute}?"} for attribute in asked],
        query_ids=query_ids,
        corpus=[{"text": texts[i]} for i in order],
        corpus_ids=[people[i] for i in order],
        qrels={query: {people[i]: 1 for i in pair} for query, pair in zip(query_ids, chosen, strict=True)},
        texts=[texts[i] for i in order],
    )


def _check_numbers(documents: int, pairs: int, count: int, others: int, liked: int) -> None:
    if documents < PER_QUERY or not 1 <= count <= pairs:
        raise ValueError(
            f"{documents} documents make {pairs} pairs: 1 to {pairs} of them can be asked for, not {count}"
        )
    if others < 0 or liked < 1:
        raise ValueError(f"others is {others} and liked is {liked}: they must be at least 0 and 1")


def _check_distinct(what: str, given: Sequence[str], needed: int, made: str) -> None:
    if len(set(given)) < len(given) or len(given) < needed:
        raise ValueError(
            f"{len(given)} {what}, {len(set(given))} of them distinct, where {needed} distinct ones are needed: "
            f"pass others as {what}, or make fewer {made}"
        )


def _texts(
    rng: np.random.Generator,
    people: Sequence[str],
    asked: dict[str, tuple[int, ...]],
    unasked: Sequence[str],
    liked: int,
) -> list[str]:
    """Returns each person's document, of the attributes asked for, by which people, and of others that fill it up."""
    likes: list[list[str]] = [[] for _ in people]
    for attribute, pair in asked.items():
        for person in pair:
            likes[person].append(attribute)
    for listed in likes:
        lacking = max(liked - len(listed), 0)
        if lacking > len(unasked):
            raise ValueError(
                f"a document lacks {lacking} of {liked} attributes and {len(unasked)} are left that nobody asks for: "
                "lower liked, or pass more attributes"
            )
        listed += [unasked[i] for i in rng.permutation(len(unasked))[:lacking]]
    return [
        _sentence(name, [listed[i] for i in rng.permutation(len(listed))])
        for name, listed in zip(people, likes, strict=True)
    ]


def _sentence(name: str, likes: Sequence[str]) -> str:
    listed = ", ".join(likes[:-1]) + " and " if len(likes) > 1 else ""
    return f"{name} likes {listed}{likes[-1]}."
