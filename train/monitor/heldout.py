"""Search of a held-out split while a run trains: how well each score ranks the documents, and for which queries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from PIL import Image

from smart_jax import Encoder
from smart_jax.retrieval import Embeddings, Retriever, compute_metrics, score
from train.config import TrainConfig
from train.data import Example, Item, Source, clean_query
from train.monitor.tensorboard import Sample

METRICS = ("ndcg@5", "recall@1", "recall@10")
SCORES = ("pooled", "late", "hybrid")
CHUNK = 64  # documents whose tokens are held at a time
PICTURE_HEIGHT = 512
Embed = Callable[[Sequence[int], bool], Embeddings]


class Scored(NamedTuple):
    """Scores of all queries with all documents by method, pooled, late and hybrid; and the positives' numbers."""

    scores: dict[str, Float[np.ndarray, "Nq Nd"]]
    positives: Int[np.ndarray, " Nq"]


class HeldOut:
    """Queries of a split and their documents, each of which is taken once; read from disk when they are needed.

    Example:
      >>> import smart_jax
      >>> from train.config import TrainConfig
      >>> texts = ("red", "green", "blue")
      >>> examples = [Example(str(i), {"text": text}, {"text": f"The page is {text}."}) for i, text in enumerate(texts)]
      >>> held_out = HeldOut(examples, limit=8, readable=lambda example: True, name="validation")
      >>> scored = held_out.search(smart_jax.load("tiny"), TrainConfig())
      >>> scored.scores["late"].shape, scored.positives.tolist()
      ((3, 3), [0, 1, 2])
    """

    def __init__(self, source: Source, limit: int, readable: Callable[[Example], bool], *, name: str):
        """Takes examples in their order until there are `limit` documents that differ.

        Args:
          source: the split.
          limit: number of documents.
          readable: returns whether an example can be encoded; others are left out.
          name: of the split, for messages.

        Raises:
          ValueError: there are fewer than two documents.
        """
        self._source = source
        self._queries: list[int] = []  # numbers of the examples of the queries ...
        self._documents: list[int] = []  # ... and of the first example of each document
        positives, known = [], dict[str, int]()
        for i in range(len(source)):
            example = source[i]
            if not readable(example):
                continue
            key = example.document_hashes()[0]
            if key not in known:
                if len(known) == limit:
                    break
                known[key] = len(known)
                self._documents.append(i)
            self._queries.append(i)
            positives.append(known[key])
        self._positives = np.array(positives, np.int64)
        if len(known) < 2:
            raise ValueError(
                f"{name} has {len(known)} different documents that can be read, too few for a search: convert the data "
                "with more, or set config.eval.validation_documents=0"
            )

    def search(self, encoder: Retriever, config: TrainConfig, embed: Embed | None = None) -> Scored:
        """Scores every query with every document, exactly.

        Args:
          encoder: the model.
          config: instructions, and weights of the hybrid score.
          embed: makes the embeddings of some examples' queries (True) or documents; None = the encoder does.
        """
        loss, embed = config.loss, embed or self._encoded_by(encoder, config)
        queries = embed(self._queries, True)
        pooled, late = [], []
        for start in range(0, len(self._documents), CHUNK):
            documents = embed(self._documents[start : start + CHUNK], False)
            pooled.append(score(queries, documents, late_weight=0.0))
            late.append(score(queries, documents, pooled_weight=0.0))
        scores = {"pooled": np.concatenate(pooled, axis=1), "late": np.concatenate(late, axis=1)}
        scores["hybrid"] = loss.pooled_weight * scores["pooled"] + loss.late_weight * scores["late"]
        return Scored(scores, self._positives)

    def _encoded_by(self, encoder: Retriever, config: TrainConfig) -> Embed:
        def embed(numbers: Sequence[int], query: bool) -> Embeddings:
            if query:
                items = [clean_query(self._source[i].query, config.data.clean_queries) for i in numbers]
                return encoder.encode_query(items, instruction=config.data.query_instruction, progress=False)
            items, instruction = [self._source[i].document for i in numbers], config.data.document_instruction
            return encoder.encode_document(items, instruction=instruction, progress=False)

        return embed

    def samples(self, scored: Scored, by: str, count: int, encoder: Encoder, prefix: str = "samples") -> list[Sample]:
        """Shows the best and worst queries by the margin of the positive's score over the best other document's.

        A picture shows, from left to right, those of query, positive and best other document that are images or, as
        middle frames, videos.

        Args:
          scored: result of `search`.
          by: method whose scores count.
          count: number of the best queries, and of the worst; fewer where there are not as many.
          encoder: its preprocessing says which frame of a video is shown.
          prefix: of the samples' names.

        Returns:
          The samples, the worst query first.
        """
        scores, positives = scored.scores[by], scored.positives
        of_positives, others = split_scores(scores, positives)
        rivals, margins = others.argmax(axis=1), of_positives - others.max(axis=1)
        order = np.argsort(margins, kind="stable")
        count = min(count, len(order) // 2)
        chosen = {"worst": order[:count], "best": order[::-1][:count]}
        return [
            self._sample(f"{prefix}/{kind}_{n}", int(q), int(rivals[q]), scored, by, encoder)
            for kind, numbers in chosen.items()
            for n, q in enumerate(numbers, start=1)
        ]

    def _sample(self, name: str, query: int, rival: int, scored: Scored, by: str, encoder: Encoder) -> Sample:
        positive, scores = scored.positives[query], scored.scores[by][query]
        example = self._source[self._queries[query]]
        documents = [self._source[self._documents[d]] for d in (positive, rival)]
        lines = [f"**query** of example '{example.id}': {_text(example.query)}"]
        for title, d, shown in zip(("its document", "the best other"), (positive, rival), documents, strict=True):
            lines.append(f"**{title}**, {by} score {scores[d]:.4f}, example '{shown.id}': {_text(shown.document)}")
        items = (example.query, *(shown.document for shown in documents))
        pictures = [encoder.preprocessor.picture(item) for item in items]
        return Sample(name, "\n\n".join(lines), side_by_side([p for p in pictures if p is not None]))


def split_scores(
    scores: Float[np.ndarray, "Nq Nd"], positives: Int[np.ndarray, " Nq"]
) -> tuple[Float[np.ndarray, " Nq"], Float[np.ndarray, "Nq Nd"]]:
    """Returns the scores of the positives, and all scores with these at -inf."""
    rows, others = np.arange(len(scores)), scores.copy()
    others[rows, positives] = -np.inf
    return scores[rows, positives], others


def ranking_metrics(scores: Float[np.ndarray, "Nq Nd"], positives: Int[np.ndarray, " Nq"]) -> dict[str, float]:
    """Computes nDCG@5, recall@1 and recall@10 for queries with one relevant document each, of rank r:

        nDCG@k = 1 / log2(1 + r)   and   recall@k = 1   where r <= k, else 0

    A tie counts as lost, so that a constant score is no good one.

    Args:
      scores: of every query with every document.
      positives: number of each query's relevant document.

    Returns:
      Means over the queries by name.

    Example:
      >>> ranking_metrics(np.array([[0.5, 0.25, 0.75]]), np.array([0]))  # rank 2
      {'ndcg@5': 0.6309297535714575, 'recall@1': 0.0, 'recall@10': 1.0}
    """
    of_positives, others = split_scores(scores, positives)
    ranks = 1 + (others >= of_positives[:, None]).sum(axis=1)
    grades = ranks[:, None] == 1 + np.arange(scores.shape[1])
    values = compute_metrics(METRICS, grades, np.ones((len(scores), 1)))
    return {name: float(x.mean()) for name, x in values.items()}


def side_by_side(pictures: list[Image.Image]) -> Image.Image | None:
    """Returns pictures beside each other at one height, on grey; None where there are none."""
    if not pictures:
        return None
    height = min(PICTURE_HEIGHT, max(p.height for p in pictures))
    scaled = [p.resize((max(1, round(p.width * height / p.height)), height)) for p in pictures]
    gap = 8
    whole = Image.new("RGB", (sum(p.width + gap for p in scaled) - gap, height), (128, 128, 128))
    left = 0
    for p in scaled:
        whole.paste(p, (left, 0))
        left += p.width + gap
    return whole


def _text(item: Item) -> str:
    video = item.get("video")
    kind = f"video {video}" if isinstance(video, str | Path) else ", ".join(item.keys() & {"image", "video"})
    return item.get("text") or f"({kind})"
