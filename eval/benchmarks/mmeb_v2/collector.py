"""Collects a task's queries, candidates and labels into a benchmark."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from eval.benchmarks.benchmark import Benchmark
from eval.benchmarks.mmeb_v2.records import Record
from eval.benchmarks.mmeb_v2.table import Task

Item = dict[str, Any]  # what an encoder takes


class Collector:
    """Collects queries, candidates and labels; of candidates of one name the first counts, as in the reference."""

    def __init__(self, task: Task):
        self.task = task
        self.corpus: dict[str, Item] = {}
        self._queries: list[Item] = []
        self._names: dict[str, str] = {}  # one object of each name, which a million candidates share
        self._candidates: dict[str, list[str]] = {}
        self._qrels: dict[str, dict[str, int]] = {}

    def add(self, query: Item, candidates: Iterable[str], labels: Sequence[str]) -> None:
        """Adds one query; its candidates and labels are names in `corpus`."""
        name = str(len(self._queries))
        self._queries.append(query)
        self._candidates[name] = list(dict.fromkeys(self._names.setdefault(c, c) for c in candidates))
        self._qrels[name] = dict.fromkeys(labels, 1)

    def benchmark(self) -> Benchmark:
        """Returns what was collected."""
        return Benchmark(
            name=self.task.name,
            queries=self._queries,
            query_ids=list(self._candidates),
            corpus=list(self.corpus.values()),
            corpus_ids=list(self.corpus),
            qrels=self._qrels,
            candidates=None if self.task.global_ranking else self._candidates,
            instruction=self.task.instruction,
        )


def add_texts(record: Record, column: str, names: Sequence[str], texts: Sequence[str], corpus: dict[str, Item]) -> None:
    """Adds candidates that are texts alone."""
    for name, text in zip(names, texts, strict=True):
        if name not in corpus:
            if not text.strip():
                raise record.wrong(column, "candidates that are not empty")
            corpus[name] = {"text": text}
