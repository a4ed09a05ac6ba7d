"""Examples read, tokenised and identified, each in a thread of its own; and those that cannot be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt

from smart_jax.inputs import Preprocessor, TokenizedItem
from train.config import DataConfig
from train.data.clean_queries import clean_query
from train.data.dataset import Example

UNREADABLE = (ValueError, TypeError, OSError)  # raised by `preprocessor.tokenize` where the item is at fault


class Row(NamedTuple):
    """An example as a batch takes it.

    Attributes:
      id: of the example.
      query: tokenised.
      documents: its document and then its negatives, likewise.
      document_ids: digests of these as numbers, which fit into arrays.
      scores: a teacher's scores of these, NaN = not scored; None = they are not asked for.
    """

    id: str
    query: TokenizedItem
    documents: list[TokenizedItem]
    document_ids: UInt[np.ndarray, "K 4"]
    scores: Float[np.ndarray, " K"] | None


class Unreadable(NamedTuple):
    """An example that cannot be read, and why."""

    example: Example
    error: Exception

    @property
    def id(self) -> str:
        """Id of the example."""
        return self.example.id


class RowReader:
    """Makes rows of examples; it may be called from several threads."""

    def __init__(self, preprocessor: Preprocessor, config: DataConfig, *, teacher: bool):
        """Takes how examples become rows; `teacher`: with a teacher's scores."""
        self._preprocessor, self._config, self._teacher = preprocessor, config, teacher

    def __call__(self, examples: Sequence[Example], index: int) -> Row | Unreadable:
        """Reads one of the examples, as far as it can be read.

        Raises:
          ValueError: the data have no such example, or it lacks negatives or a teacher's scores.
        """
        example, config = examples[index], self._config
        name = f"example '{example.id}'"
        if len(example.negatives) < config.negatives:
            raise ValueError(
                f"{name} has {len(example.negatives)} negatives, data.negatives asks for {config.negatives}: lower it, "
                "or convert the data with negatives"
            )
        scores = self._scores(example) if self._teacher else None
        documents = [example.document, *example.negatives[: config.negatives]]
        tokenize, instruction = self._preprocessor.tokenize, config.document_instruction
        try:
            of_query = f"query of {name}"
            cleaned = clean_query(example.query, config.clean_queries, name=of_query)
            query = tokenize(cleaned, instruction=config.query_instruction, query=True, name=of_query)
            tokenised = [
                tokenize(item, instruction=instruction, name=f"document {k} of {name}")
                for k, item in enumerate(documents)
            ]
        except UNREADABLE as error:
            return Unreadable(example, error)
        digests = b"".join(map(bytes.fromhex, example.document_hashes(len(documents))))
        return Row(example.id, query, tokenised, np.frombuffer(digests, np.uint32).reshape(-1, 4), scores)

    def _scores(self, example: Example) -> Float[np.ndarray, " K"]:
        scores = np.array(example.scores[: 1 + self._config.negatives], np.float32)
        if len(scores) <= self._config.negatives or np.isnan(scores[0]) or np.isnan(scores[1:]).all():
            raise ValueError(
                f"example '{example.id}' lacks a teacher's scores, of its document and of at least one of its first "
                f"{self._config.negatives} negatives: convert the data with a column 'scores', write one with "
                "`python -m train.data.mine`, or set loss.distillation to none"
            )
        return scores


class Skipped:
    """Count of examples that could not be read, each time one is met.

    Example:
      >>> skipped = Skipped(limit=2)
      >>> skipped.add(Example("7", {"text": "a query"}, {}), ValueError("the page is empty"))
      <BLANKLINE>
      example '7' is left out, 1 of at most 2: the page is empty
      >>> skipped.count
      1
    """

    def __init__(self, limit: int, before: int = 0):
        """Starts to count.

        Args:
          limit: more are an error; at 0 that of the first example is raised itself.
          before: examples that were counted before this process started.
        """
        self.limit, self.count, self._names = limit, before, list[str]()

    def add(self, example: Example, error: Exception) -> None:
        """Counts an example and prints why it is left out.

        Raises:
          ValueError: there are too many; the message names those of this process.
        """
        if not self.limit:
            raise error
        self.count += 1
        self._names.append(f"'{example.id}'" + (f" ({example.source})" if example.source else ""))
        if self.count > self.limit:
            raise ValueError(
                f"{self.count} examples could not be read, data.max_skipped allows {self.limit}: "
                f"{', '.join(dict.fromkeys(self._names))}. The last: {error}. Repair the data, or raise the limit"
            ) from error
        print(f"\nexample {self._names[-1]} is left out, {self.count} of at most {self.limit}: {error}")


def readable(rows: Sequence[Row | Unreadable], skipped: Skipped) -> list[Row]:
    """Returns for each example its row or, where it cannot be read, the next one that can, after the last the first.

    Raises:
      ValueError: none can be read, or more than `skipped` allows cannot.
    """
    for row in rows:
        if isinstance(row, Unreadable):
            skipped.add(row.example, row.error)
    good = {i: row for i, row in enumerate(rows) if isinstance(row, Row)}
    if not good:
        names = ", ".join(f"'{row.id}'" for row in rows)
        raise ValueError(f"none of a batch's examples can be read: {names}. Repair the data")
    count = len(rows)
    return [next(good[j % count] for j in range(i, i + count) if j % count in good) for i in range(count)]
