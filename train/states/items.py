"""The items of data sets, each once: which queries and documents an example has, by number."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, UInt

from train.data import Example, Item, Source, content_hash

Key = tuple[str, str]  # a data set and its split
ARRAYS = ("queries", "documents", "words", "scores", "first_queries", "first_documents")
READ_AHEAD = 256  # examples that are read and digested at a time


@dataclasses.dataclass(frozen=True)
class Items:
    """Examples of some splits, one after another, as numbers of items that differ.

    Attributes:
      starts: number of the first example of each split.
      sizes: number of examples of each split.
      queries: number of each example's query, among those that differ.
      documents: numbers of each example's document and its negatives, likewise; -1 = it has no more.
      words: digest of each document's content, as `TrainBatch.document_ids` has it.
      scores: a teacher's scores of the same documents, NaN = none.
      first_queries: example that each query is first met in.
      first_documents: the same of each document, and its place there: 0 = the positive.

    Example:
      >>> pages = [Example(str(i), {"text": f"query {i}"}, {"text": "the same page"}) for i in range(2)]
      >>> items = Items.of({("pages", "train"): pages}, negatives=0)
      >>> items.queries.tolist(), items.documents.tolist()
      ([0, 1], [[0], [0]])
    """

    starts: Mapping[Key, int]
    sizes: Mapping[Key, int]
    queries: Int[np.ndarray, " N"]
    documents: Int[np.ndarray, "N K"]
    words: UInt[np.ndarray, "documents 4"]
    scores: Float[np.ndarray, "N K"]
    first_queries: Int[np.ndarray, " queries"]
    first_documents: Int[np.ndarray, "documents 2"]

    @classmethod
    def of(cls, sources: Mapping[Key, Source], negatives: int, *, scored: bool = False, threads: int = 2) -> Items:
        """Numbers the items of the splits; what a data set stores of its examples is not read again.

        Args:
          sources: the splits.
          negatives: number of negatives of each example that are used.
          scored: whether a teacher's scores are needed.
          threads: that read and digest.

        Raises:
          ValueError: an example is corrupt.
        """
        queries, documents = _Numbers(), _Numbers()
        rows: list[tuple[int, list[int], Sequence[float]]] = []
        starts = {}
        for key, source in sources.items():
            starts[key] = len(rows)
            for query, pages, scores in _digests(source, negatives, scored, threads):
                at = len(rows)
                numbers = [documents.number(page, (at, k)) for k, page in enumerate(pages)]
                rows.append((queries.number(query, (at, 0)), numbers, scores))
        words = b"".join(bytes.fromhex(digest.partition(" ")[0]) for digest in documents.known)
        return cls(
            starts=starts,
            sizes={key: len(source) for key, source in sources.items()},
            queries=np.array([row[0] for row in rows], np.int32),
            documents=_padded([row[1] for row in rows], 1 + negatives, -1).astype(np.int32),
            words=np.frombuffer(words, np.uint32).reshape(-1, 4),
            scores=_padded([row[2] for row in rows], 1 + negatives, np.nan).astype(np.float32),
            first_queries=np.array([at for at, _ in queries.firsts], np.int32),
            first_documents=np.array(documents.firsts, np.int32).reshape(-1, 2),
        )

    def save(self, path: Path) -> None:
        """Writes one file, whole or not at all."""
        partial = path.with_name(path.name + ".tmp")
        keys = np.array([[*key, str(start), str(self.sizes[key])] for key, start in self.starts.items()])
        with partial.open("wb") as file:
            np.savez(file, starts=keys, **{name: getattr(self, name) for name in ARRAYS})
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Items:
        """Reads what `save` wrote."""
        with np.load(path) as arrays:
            rows = arrays["starts"].tolist()
            starts = {(name, split): int(start) for name, split, start, _ in rows}
            sizes = {(name, split): int(size) for name, split, _, size in rows}
            return cls(starts=starts, sizes=sizes, **{name: arrays[name] for name in ARRAYS})

    def examples(self, key: Key) -> Source:
        """Returns the examples of a split by number alone: `Example.id` is the number, and nothing else is read."""
        return _NumberedExamples(self.starts[key], self.sizes[key])

    def locate(self, example: int) -> tuple[Key, int]:
        """Returns the split of an example, and its place there."""
        key = max((key for key, start in self.starts.items() if start <= example), key=lambda key: self.starts[key])
        return key, example - self.starts[key]

    def name(self, example: int) -> str:
        """Returns what messages call an example."""
        (name, split), place = self.locate(example)
        return f"{name}/{split}[{place}]"


class _Numbers:
    """Numbers of digests in the order in which they are met, and where each was met first."""

    def __init__(self) -> None:
        self.known: dict[str, int] = {}
        self.firsts: list[tuple[int, int]] = []

    def number(self, digest: str, at: tuple[int, int]) -> int:
        if digest not in self.known:
            self.known[digest] = len(self.known)
            self.firsts.append(at)
        return self.known[digest]


@dataclasses.dataclass(frozen=True)
class _NumberedExamples:
    start: int
    size: int

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self.size:
            raise IndexError(f"there is no example {index} of {self.size}")
        return Example(str(self.start + index), {}, {})


def _digests(
    source: Source, negatives: int, scored: bool, threads: int
) -> Iterator[tuple[str, list[str], Sequence[float]]]:
    """Yields digests of each example's query and documents, and the teacher's scores of these."""

    def digest(index: int) -> tuple[str, list[str], Sequence[float]]:
        outline = source.outline(index) if hasattr(source, "outline") else None
        if outline is not None and not scored and outline.query and all(outline.hashes):
            pages = [_sampled(page, {}) for page in outline.hashes[: 1 + negatives]]
            return _sampled(content_hash({"text": outline.query}), {}), pages, ()
        example = source[index]
        documents = (example.document, *example.negatives)
        hashes = example.document_hashes(1 + negatives)
        pages = [_sampled(page, document) for page, document in zip(hashes, documents, strict=False)]
        return _sampled(content_hash(example.query), example.query), pages, example.scores

    with ThreadPoolExecutor(max(1, threads), thread_name_prefix="digests") as pool:
        for start in range(0, len(source), READ_AHEAD):  # all at once would hold every result
            yield from pool.map(digest, range(start, min(start + READ_AHEAD, len(source))))


def _sampled(digest: str, item: Item) -> str:
    """Returns an item's digest with, of a video, how it is sampled."""
    return f"{digest} {item.get('fps')} {item.get('max_frames')}"


def _padded(rows: Sequence[Sequence[float]], width: int, filling: float) -> np.ndarray:
    padded = np.full((len(rows), width), filling)
    for i, row in enumerate(rows):
        padded[i, : min(len(row), width)] = row[:width]
    return padded
