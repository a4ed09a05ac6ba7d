"""Hard negatives: searches a data set's documents with a model, and writes the data set again with what was found.

    python -m train.data.mine --model runs/first/model --data data --name colpali --out colpali_mined --negatives 4
    python -m train.posttrain ... --config.data.name=colpali_mined --config.data.negatives=4

The model's scores of each query's document and negatives are written, too: it can be a teacher (loss.distillation).

For each query the best documents of its split are taken, in falling order, but those that are its own (or equal to
one of its own), the first `skip`, and those whose score exceeds `margin` times the positive's: such a document likely
answers the query too (TopK-PercPos of Moreira et al. 2024, arXiv:2407.15831, whose margin is 0.95). Where fewer than
`negatives` are left of the first `depth`, documents drawn at random make up for them.

Documents are encoded part by part and scored at once, exactly, by pooled_weight * pooled + late_weight * late; of their
vectors nothing is kept. A query with several documents in the split has all of them as positives.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float
from tqdm import tqdm

import smart_jax
from smart_jax.retrieval import Embeddings
from train.data.convert import VERSION, check_name, open_writer
from train.data.dataset import Example, Item, Split, content_hash, open_split, split_names

PART = 256  # documents encoded, scored and forgotten at a time
EXAMPLES_PER_SHARD = 2**12
DTYPE = np.float16  # of embeddings, while they are needed


@dataclasses.dataclass(frozen=True)
class MineConfig:
    """What is taken for a negative, see the module's docstring."""

    negatives: int = 4
    depth: int = 100
    skip: int = 0
    margin: float = 0.95
    pooled_weight: float = 1.0
    late_weight: float = 1.0
    query_instruction: str | None = None
    document_instruction: str | None = None
    batch_size: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("negatives", 1), ("depth", self.negatives + self.skip), ("skip", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        if self.margin <= 0:
            raise ValueError(f"margin is {self.margin}: it must be positive; 1 and more keep more documents")

    @property
    def weights(self) -> dict[str, Any]:
        """Of the score."""
        return {"pooled_weight": self.pooled_weight, "late_weight": self.late_weight}


@dataclasses.dataclass(frozen=True)
class Mined:
    """What `mine` did: where the data set is, examples per split, and how many negatives were drawn at random."""

    path: Path
    examples: dict[str, int]
    random: int


def mine(
    encoder: Any,
    data_dir: str | Path,
    name: str,
    out: str,
    config: MineConfig = MineConfig(),
    *,
    splits: Sequence[str] = ("train", "validation"),
    overwrite: bool = False,
) -> Mined:
    """Writes `data_dir`/`out`, which appears only when it is complete.

    Args:
      encoder: has `encode_query` and `encode_document`, as `smart_jax.Encoder`.
      data_dir: the folder of all data sets.
      name: of the data set that is searched.
      out: of the one that is written.
      config: what is taken.
      splits: of those that it has; each is searched by itself.
      overwrite: replace a data set of this name.

    Raises:
      FileExistsError: there is a data set `out`, and `overwrite` is off.
      FileNotFoundError: no data set `name`.
      ValueError: its documents are videos, a split has too few documents, or `out` is no name.
    """
    check_name(out)
    target, partial = Path(data_dir) / out, Path(data_dir) / f".{out}.partial"
    if out == name:
        raise ValueError(f"out is '{out}', the data set that is searched: choose another name")
    if target.exists() and not overwrite:
        raise FileExistsError(f"'{target}' exists: pass overwrite (--overwrite) to replace it, or choose another name")
    there = split_names(data_dir, name)
    sources = {split: open_split(data_dir, name, split) for split in splits if split in there}
    if not sources:
        raise ValueError(f"data set '{name}' has none of the splits {', '.join(splits)}, but {', '.join(there)}")
    kind = "image" if "image" in next(iter(sources.values()))[0].document else "text"
    feature = tfds.features.Image if kind == "image" else tfds.features.Text
    features = {key: tfds.features.Text() for key in ("id", "query", "source")}
    features |= {kind: feature(), "negatives": tfds.features.Sequence(feature())}
    features["scores"] = tfds.features.Sequence(np.float32)
    counts, drawn = {}, 0
    shutil.rmtree(partial, ignore_errors=True)
    try:
        writer = open_writer(
            partial / VERSION, out, tfds.features.FeaturesDict(features), list(sources), EXAMPLES_PER_SHARD
        )
        for split, source in sources.items():
            corpus = Corpus(source, f"{name}, split {split}")
            found = search(encoder, source, corpus, config)
            chosen, random = choose(found, corpus, config)
            scores = score_chosen(encoder, corpus, config, found, chosen)
            for i in tqdm(range(len(source)), desc=f"write {split}", unit=" examples"):
                record = _record(source[i], kind, [corpus.item(d) for d in chosen[i]], scores[i])
                writer.add_examples({split: [record]})
            counts[split], drawn = len(source), drawn + random
        writer.close_all()
        if target.exists():
            shutil.rmtree(target)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Mined(target, counts, drawn)


class Corpus:
    """The distinct documents of a split, and which of them are each example's positives.

    Attributes:
      positives: of each example, a set of documents: its own, and those of examples with the same query.
      own: the document of each example.
    """

    def __init__(self, source: Split, name: str):
        self._source = source
        self._examples: list[int] = []  # where each document is found
        self.own: list[int] = []
        place: dict[str, int] = {}
        by_query: dict[str, set[int]] = collections.defaultdict(set)
        queries = []
        for i in tqdm(range(len(source)), desc=name, unit=" examples", delay=2):
            example = source[i]
            if "video" in example.document or "video" in example.query:
                raise ValueError(f"{name}: example '{example.id}' has a video: mine among images or texts")
            document = place.setdefault(content_hash(example.document), len(place))
            if document == len(self._examples):
                self._examples.append(i)
            queries.append(content_hash(example.query))
            by_query[queries[-1]].add(document)
            self.own.append(document)
        self.positives = [by_query[query] for query in queries]
        self.name = name

    def __len__(self) -> int:
        return len(self._examples)

    def item(self, document: int) -> Item:
        return self._source[self._examples[document]].document


@dataclasses.dataclass(frozen=True)
class Found:
    """The best documents of each query, falling, and what its own document scores: [Q, k], [Q, k], [Q]; the queries."""

    documents: np.ndarray
    scores: np.ndarray
    own: np.ndarray
    queries: Embeddings


def search(encoder: Any, source: Split, corpus: Corpus, config: MineConfig) -> Found:
    """Exact search of the whole corpus for every example's query, at the memory of one part of the corpus."""
    items = [source[i].query for i in range(len(source))]
    how: dict[str, Any] = {"batch_size": config.batch_size, "dtype": DTYPE}
    queries: Embeddings = encoder.encode_query(items, instruction=config.query_instruction, **how)
    positives = max(map(len, corpus.positives))
    k = min(config.depth + positives, len(corpus))
    best = np.full((len(items), 0), -np.inf, np.float32), np.zeros((len(items), 0), np.int64)
    own, answers = np.empty(len(items), np.float32), np.asarray(corpus.own)
    for start in tqdm(range(0, len(corpus), PART), desc="search", unit=" parts"):
        part = range(start, min(start + PART, len(corpus)))
        documents = _encode(encoder, corpus, part, config)
        scores, indices = smart_jax.search(queries, documents, min(k, len(part)), **config.weights)
        both = np.concatenate([best[0], scores], axis=1), np.concatenate([best[1], indices + start], axis=1)
        order = np.argsort(-both[0], axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(both[0], order, axis=1), np.take_along_axis(both[1], order, axis=1)
        here = np.flatnonzero((answers >= part.start) & (answers < part.stop))
        if len(here):
            answer = answers[here] - start
            own[here] = [
                smart_jax.score(queries[i], documents[d], **config.weights)[0, 0]
                for i, d in zip(here.tolist(), answer.tolist(), strict=True)
            ]
    return Found(best[1], best[0], own, queries)


def _encode(encoder: Any, corpus: Corpus, documents: Sequence[int], config: MineConfig) -> Embeddings:
    return encoder.encode_document(
        [corpus.item(d) for d in documents],
        instruction=config.document_instruction,
        progress=False,
        batch_size=config.batch_size,
        dtype=DTYPE,
    )


def choose(found: Found, corpus: Corpus, config: MineConfig) -> tuple[list[list[int]], int]:
    """The negatives of each query, documents of the corpus, hardest first; and how many were drawn at random.

    Raises:
      ValueError: the corpus has fewer documents than a query's positives and negatives.
    """
    rng = np.random.default_rng(config.seed)
    chosen, drawn = [], 0
    for i, positives in enumerate(corpus.positives):
        if len(corpus) < len(positives) + config.negatives:
            raise ValueError(
                f"{corpus.name} has {len(corpus)} documents, too few for {config.negatives} negatives beside "
                f"{len(positives)} positives: lower negatives"
            )
        most = found.own[i] * config.margin if found.own[i] > 0 else found.own[i]
        others = [(d, s) for d, s in zip(found.documents[i], found.scores[i], strict=True) if d not in positives]
        own = [int(d) for d, s in others[config.skip : config.depth] if s <= most][: config.negatives]
        while len(own) < config.negatives:
            document = int(rng.integers(len(corpus)))
            if document not in positives and document not in own:
                own.append(document)
                drawn += 1
        chosen.append(own)
    return chosen, drawn


def score_chosen(
    encoder: Any, corpus: Corpus, config: MineConfig, found: Found, chosen: Sequence[Sequence[int]]
) -> Float[np.ndarray, "Q K"]:
    """Of each query, the score of its own document and then those of its negatives.

    Negatives that the search has not found, drawn at random, are encoded once more.
    """
    documents = np.array(chosen)
    scores = np.concatenate([found.own[:, None], np.full(documents.shape, np.nan, np.float32)], axis=1)
    for i, own in enumerate(documents):
        places, at = np.nonzero(own[:, None] == found.documents[i])
        scores[i, 1 + places] = found.scores[i, at]
    unknown = np.isnan(scores[:, 1:])
    drawn = np.unique(documents[unknown])
    for start in range(0, len(drawn), PART):
        part = drawn[start : start + PART].tolist()
        embeddings = _encode(encoder, corpus, part, config)
        for n, document in enumerate(part):
            for i, k in np.argwhere(unknown & (documents == document)).tolist():
                scores[i, 1 + k] = smart_jax.score(found.queries[i], embeddings[n], **config.weights)[0, 0]
    return scores


def _record(example: Example, kind: str, negatives: Sequence[Item], scores: Float[np.ndarray, " K"]) -> dict[str, Any]:
    return {
        "id": example.id,
        "query": example.query["text"],
        "source": example.source,
        kind: example.document[kind],
        "negatives": [item[kind] for item in negatives],
        "scores": scores.tolist(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m train.data.mine", description="Add hard negatives to a data set.")
    parser.add_argument("--model", required=True, help="that searches: a folder, a hub id, or tiny")
    parser.add_argument("--adapter", help="a trained token projection of the model")
    parser.add_argument("--data", required=True, help="folder of the data sets")
    parser.add_argument("--name", required=True, help="of the data set that is searched")
    parser.add_argument("--out", required=True, help="name of the data set that is written")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set of that name")
    for field in dataclasses.fields(MineConfig):
        kind = {"int": int, "int | None": int, "float": float, "str | None": str}[str(field.type)]
        parser.add_argument(f"--{field.name}", type=kind, default=field.default, help="default: %(default)s")
    options = vars(parser.parse_args(arguments))
    try:
        config = MineConfig(**{field.name: options[field.name] for field in dataclasses.fields(MineConfig)})
        encoder = smart_jax.load(options["model"], adapter=options["adapter"])
        found = mine(encoder, options["data"], options["name"], options["out"], config, overwrite=options["overwrite"])
    except (OSError, ValueError) as error:
        sys.exit(f"train.data.mine: {error}")
    counts = ", ".join(f"{split}: {count} examples" for split, count in found.examples.items())
    total = sum(found.examples.values()) * config.negatives
    print(f"wrote {found.path} with {counts}; {found.random} of {total} negatives were drawn at random")


if __name__ == "__main__":
    main()
