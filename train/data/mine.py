"""Hard negatives: a model searches the documents of a data set, which is written again with its best wrong answers.

    python -m train.data.mine --model runs/first/model --data data --name colpali --out colpali_mined --negatives 4
    python -m train.posttrain ... --config.data.name=colpali_mined --config.data.negatives=4

The model's scores of each query's document and negatives are written, too: it can be a teacher (loss.distillation).

For each query the best documents of its split are taken, in falling order, except for its positives, the first `skip`
of the others, and those whose score exceeds `margin` times the positive's: such a document likely answers the query,
too (TopK-PercPos of Moreira et al. 2024, arXiv:2407.15831, whose margin is 0.95). Where fewer than `negatives` are left
of the first `depth`, documents drawn at random make up for them.

Documents are encoded part by part and scored at once, exactly, by pooled_weight * pooled + late_weight * late; their
vectors are not kept. A query with several documents in the split has all of them, and equal ones, as positives.
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
from jaxtyping import Float, Int
from tqdm.auto import tqdm

import smart_jax
from smart_jax.config_files import meanings_of
from smart_jax.retrieval import Embeddings, Retriever
from train.data.dataset import Example, Item, Source, content_hash, open_split, split_names
from train.data.outlines import outline_of
from train.data.writer import VERSION, DataSetWriter, check_name

PART = 256  # documents encoded, scored and forgotten at a time
EXAMPLES_PER_SHARD = 2**12
DTYPE = np.float16  # of embeddings, while they are needed


@dataclasses.dataclass(frozen=True)
class MineConfig:
    """Says what is taken for a negative, see the module's docstring.

    Attributes:
      negatives: of each query.
      depth: rank up to which the search goes, not counting positives.
      skip: best documents that are left out.
      margin: largest score of a negative, as a multiple of the positive's.
      pooled_weight: of the pooled score, by which the model searches.
      late_weight: of the late score.
      query_instruction: None = the model's.
      document_instruction: None = the model's.
      batch_size: items that are encoded at a time; None = the model's choice.
      seed: of what is drawn at random.
    """

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

    def score(self, query: Embeddings, document: Embeddings) -> float:
        """Returns the score of one query and one document."""
        scores = smart_jax.score(query, document, pooled_weight=self.pooled_weight, late_weight=self.late_weight)
        return float(scores[0, 0])


@dataclasses.dataclass(frozen=True)
class Mined:
    """Result of `mine`.

    Attributes:
      path: folder of the data set.
      examples: how many there are, by split.
      random: how many negatives were drawn at random.
    """

    path: Path
    examples: dict[str, int]
    random: int


def mine(
    encoder: Retriever,
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
      encoder: searches.
      data_dir: folder of all data sets.
      name: of the data set that is searched.
      out: of the one that is written.
      config: says what is taken.
      splits: those of them that the data set has are searched, each by itself.
      overwrite: whether a data set `out` is replaced.

    Raises:
      FileExistsError: there is a data set `out`, and `overwrite` is off.
      FileNotFoundError: there is no data set `name`.
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
    counts, drawn = {}, 0
    shutil.rmtree(partial, ignore_errors=True)
    try:
        writer = DataSetWriter(partial / VERSION, out, _features(kind), list(sources), EXAMPLES_PER_SHARD)
        for split, source in sources.items():
            corpus = Corpus(source, f"{name}, split {split}")
            ranked = search(encoder, source, corpus, config)
            chosen, random = choose(ranked, corpus, config)
            scores = score_chosen(encoder, corpus, config, ranked, chosen)
            for i in tqdm(range(len(source)), desc=f"write {split}", unit=" examples"):
                example, negatives = source[i], [corpus.item(d) for d in chosen[i]]
                outline = outline_of(example.query["text"], [example.document, *negatives])
                writer.add({split: [(_record(example, kind, negatives, scores[i]), outline)]})
            counts[split], drawn = len(source), drawn + random
        writer.close()
        if target.exists():
            shutil.rmtree(target)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Mined(target, counts, drawn)


def _features(kind: str) -> tfds.features.FeaturesDict:
    """Returns what records of the new data set hold; `kind`: "image" or "text", what documents are."""
    document = tfds.features.Image if kind == "image" else tfds.features.Text
    features = {key: tfds.features.Text() for key in ("id", "query", "source")}
    features |= {kind: document(), "negatives": tfds.features.Sequence(document())}
    return tfds.features.FeaturesDict(features | {"scores": tfds.features.Sequence(np.float32)})


class Corpus:
    """Distinct documents of a split, and which of them are each example's positives.

    Attributes:
      positives: a set of documents of each example: its own, and those of examples with the same query.
      own: the document of each example.
      name: for messages.
    """

    def __init__(self, source: Source, name: str):
        """Reads the split once; raises ValueError where an example has a video."""
        self._source = source
        self._examples: list[int] = []  # an example of each document
        self.own: list[int] = []
        place: dict[str, int] = {}
        by_query: dict[str, set[int]] = collections.defaultdict(set)
        queries = []
        for i in tqdm(range(len(source)), desc=name, unit=" examples", delay=2):
            example = source[i]
            if "video" in example.document or "video" in example.query:
                raise ValueError(f"{name}: example '{example.id}' has a video: mine among images or texts")
            document = place.setdefault(example.document_hashes()[0], len(place))
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
        """Returns a document."""
        return self._source[self._examples[document]].document


@dataclasses.dataclass(frozen=True)
class Ranked:
    """Result of a search for the queries of all examples.

    Attributes:
      documents: the best documents of each query, in falling order.
      scores: of these.
      own: score of each example's own document.
      queries: embeddings of the queries.
    """

    documents: Int[np.ndarray, "Nq K"]
    scores: Float[np.ndarray, "Nq K"]
    own: Float[np.ndarray, " Nq"]
    queries: Embeddings


def search(encoder: Retriever, source: Source, corpus: Corpus, config: MineConfig) -> Ranked:
    """Searches the whole corpus exactly for every example's query, at the memory of one part of the corpus."""
    items = [source[i].query for i in range(len(source))]
    queries = encoder.encode_query(
        items, instruction=config.query_instruction, batch_size=config.batch_size, dtype=DTYPE
    )
    positives = max(map(len, corpus.positives))
    k = min(config.depth + positives, len(corpus))
    best = np.full((len(items), 0), -np.inf, np.float32), np.zeros((len(items), 0), np.int64)
    own, answers = np.empty(len(items), np.float32), np.asarray(corpus.own)
    for start in tqdm(range(0, len(corpus), PART), desc="search", unit=" parts"):
        part = range(start, min(start + PART, len(corpus)))
        documents = _encode(encoder, corpus, part, config)
        scores, indices = smart_jax.search(
            queries,
            documents,
            min(k, len(part)),
            pooled_weight=config.pooled_weight,
            late_weight=config.late_weight,
        )
        both = np.concatenate([best[0], scores], axis=1), np.concatenate([best[1], indices + start], axis=1)
        order = np.argsort(-both[0], axis=1, kind="stable")[:, :k]
        best = np.take_along_axis(both[0], order, axis=1), np.take_along_axis(both[1], order, axis=1)
        here = np.flatnonzero((answers >= part.start) & (answers < part.stop))
        if len(here):
            answer = answers[here] - start
            own[here] = [
                config.score(queries[i], documents[d]) for i, d in zip(here.tolist(), answer.tolist(), strict=True)
            ]
    return Ranked(best[1], best[0], own, queries)


def _encode(encoder: Retriever, corpus: Corpus, documents: Sequence[int], config: MineConfig) -> Embeddings:
    return encoder.encode_document(
        [corpus.item(d) for d in documents],
        instruction=config.document_instruction,
        progress=False,
        batch_size=config.batch_size,
        dtype=DTYPE,
    )


def choose(ranked: Ranked, corpus: Corpus, config: MineConfig) -> tuple[list[list[int]], int]:
    """Chooses the negatives of each query, hardest first.

    Returns:
      Documents of the corpus for each query, and how many of them were drawn at random.

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
        most = ranked.own[i] * config.margin if ranked.own[i] > 0 else ranked.own[i]
        others = [(d, s) for d, s in zip(ranked.documents[i], ranked.scores[i], strict=True) if d not in positives]
        negatives = [int(d) for d, s in others[config.skip : config.depth] if s <= most][: config.negatives]
        while len(negatives) < config.negatives:
            document = int(rng.integers(len(corpus)))
            if document not in positives and document not in negatives:
                negatives.append(document)
                drawn += 1
        chosen.append(negatives)
    return chosen, drawn


def score_chosen(
    encoder: Retriever, corpus: Corpus, config: MineConfig, ranked: Ranked, chosen: Sequence[Sequence[int]]
) -> Float[np.ndarray, "Nq documents"]:
    """Returns the scores of each query's own document and then of its negatives.

    Negatives that were drawn at random, beyond the reach of the search, are encoded once more.
    """
    documents = np.array(chosen)
    scores = np.concatenate([ranked.own[:, None], np.full(documents.shape, np.nan, np.float32)], axis=1)
    for i, negatives in enumerate(documents):
        places, at = np.nonzero(negatives[:, None] == ranked.documents[i])
        scores[i, 1 + places] = ranked.scores[i, at]
    unknown = np.isnan(scores[:, 1:])
    drawn = np.unique(documents[unknown])
    for start in range(0, len(drawn), PART):
        part = drawn[start : start + PART].tolist()
        embeddings = _encode(encoder, corpus, part, config)
        for n, document in enumerate(part):
            for i, k in np.argwhere(unknown & (documents == document)).tolist():
                scores[i, 1 + k] = config.score(ranked.queries[i], embeddings[n])
    return scores


def _record(
    example: Example, kind: str, negatives: Sequence[Item], scores: Float[np.ndarray, " documents"]
) -> dict[str, Any]:
    return {
        "id": example.id,
        "query": example.query["text"],
        "source": example.source,
        kind: example.document[kind],
        "negatives": [item[kind] for item in negatives],
        "scores": scores.tolist(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command with these arguments; None = those of the command line."""
    parser = argparse.ArgumentParser(prog="python -m train.data.mine", description="Add hard negatives to a data set.")
    parser.add_argument("--model", required=True, help="that searches: a folder, a hub id, or tiny")
    parser.add_argument("--adapter", help="a trained token projection of the model")
    parser.add_argument("--data", required=True, help="folder of the data sets")
    parser.add_argument("--name", required=True, help="of the data set that is searched")
    parser.add_argument("--out", required=True, help="name of the data set that is written")
    parser.add_argument("--overwrite", action="store_true", help="replace a data set of that name")
    meanings = meanings_of(MineConfig)
    for field in dataclasses.fields(MineConfig):
        kind = {"int": int, "int | None": int, "float": float, "str | None": str}[str(field.type)]
        parser.add_argument(
            f"--{field.name}", type=kind, default=field.default, help=f"{meanings[field.name]} (default: %(default)s)"
        )
    options = vars(parser.parse_args(arguments))
    try:
        config = MineConfig(**{field.name: options[field.name] for field in dataclasses.fields(MineConfig)})
        encoder = smart_jax.load(options["model"], adapter=options["adapter"])
        mined = mine(encoder, options["data"], options["name"], options["out"], config, overwrite=options["overwrite"])
    except (OSError, ValueError) as error:
        sys.exit(f"train.data.mine: {error}")
    counts = ", ".join(f"{split}: {count} examples" for split, count in mined.examples.items())
    total = sum(mined.examples.values()) * config.negatives
    print(f"wrote {mined.path} with {counts}; {mined.random} of {total} negatives were drawn at random")


if __name__ == "__main__":
    main()
