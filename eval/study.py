"""What a model's frozen states give, and what they cost: python -m eval.study --config configs/study.py

For each model and its benchmarks, from states that are encoded once:
  storage       late and hybrid of every setting of `eval.studies.named_reductions`, beside the bytes that a page takes
  late weight   pooled + weight * late
  layers        late and hybrid of the tokens of each hidden layer, as they are and after the pages' mean is subtracted
  words         query tokens with and without the words of the prompt, and pages' likewise

Every figure stands beside its difference from the row that is the default, with a paired bootstrap interval over
queries. A config file has `get_config(arg="") -> ConfigDict` and `get_subjects(config) -> list[Subject]`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from eval.benchmarks.benchmark import Benchmark
from eval.environment import environment
from eval.evaluate import Result
from eval.ranking.ranking import Judge
from eval.reports.report import summarise
from eval.states.cache import GIB, Cache
from eval.studies.named_reductions import UNREDUCED, Reducer, parse, prompt_words
from eval.studies.study_report import CENTRED, markdown, write
from smart_jax.cli import run_config_file
from smart_jax.retrieval import Embeddings, States, score
from smart_jax.retrieval.reductions import PCA, keep_tokens

POOLED = "pooled vector only"
ALL_WORDS = "all"
Scores = dict[str, np.ndarray]  # [Q, N] by kind: "late", "hybrid"


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model and what it is tried on.

    Attributes:
      name: heads its tables.
      load: gives its `Encoder`.
      benchmarks: at least one; figures are averaged over them.
    """

    name: str
    load: Callable[[], Any]
    benchmarks: Sequence[Benchmark]


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of a table, of one benchmark."""

    name: str
    facts: Mapping[str, float]
    scores: Scores


@dataclasses.dataclass(frozen=True)
class Section:
    """A table: its rows of one benchmark, and which of them the others are compared with."""

    rows: Callable[[States, States], Iterator[Row]]
    reference: str


def sections(config: ConfigDict) -> dict[str, Section]:
    """The study's tables by name.

    Raises:
      ValueError: a setting that `eval.studies.named_reductions` does not know.
    """
    settings = {name: parse(name) for name in dict.fromkeys([UNREDUCED, *config.settings])}
    weights = sorted({*map(float, config.weights), 1.0})
    return {
        "storage": Section(lambda q, d: storage(q, d, settings), UNREDUCED),
        "late weight": Section(lambda q, d: late_weights(q, d, weights), "1"),
        "layers": Section(layers, "-1"),
        "words": Section(words, ALL_WORDS),
    }


def storage(queries: States, corpus: States, settings: Mapping[str, tuple[str, ...]]) -> Iterator[Row]:
    """Every setting that applies, and the pooled vector alone."""
    reducer = Reducer(queries, corpus)
    unreduced = queries.embeddings(), corpus.embeddings()
    pooled = _pooled(*unreduced)
    yield Row(POOLED, {"bytes": corpus.pooled.nbytes / len(corpus), "tokens": 0.0}, {"hybrid": pooled})
    for name, steps in tqdm(settings.items(), desc="settings", delay=2, leave=False):
        if reducer.applies(steps):
            q, d, nbytes = reducer(steps)
            facts = {"bytes": nbytes / len(d), "tokens": len(d.tokens) / len(d)}
            yield Row(name, facts, _with_pooled(pooled, _late(q, d)))


def late_weights(queries: States, corpus: States, weights: Sequence[float]) -> Iterator[Row]:
    """The hybrid score of every late weight, the pooled weight being 1."""
    q, d = queries.embeddings(), corpus.embeddings()
    pooled, late = _pooled(q, d), _late(q, d)
    for weight in weights:
        yield Row(f"{weight:g}", {}, {"hybrid": pooled + np.float32(weight) * late})
    yield Row("late only", {}, {"hybrid": late})


def layers(queries: States, corpus: States) -> Iterator[Row]:
    """Late and hybrid of each layer's tokens, as they are and centred; the pooled vectors are the last layer's."""
    pooled = _pooled(queries.embeddings(), corpus.embeddings())
    for layer in sorted(corpus.layers):
        q, d = queries.embeddings(layer), corpus.embeddings(layer)
        centre = PCA.fit(d, d.tokens.shape[1], centred=True)
        facts = {"length": float(corpus.norms[:, corpus.layers.index(layer)].mean())}
        yield Row(f"{layer}", facts, _with_pooled(pooled, _late(q, d)))
        yield Row(f"{layer}{CENTRED}", facts, _with_pooled(pooled, _late(centre(q), centre(d))))


def words(queries: States, corpus: States) -> Iterator[Row]:
    """Late interaction of some tokens only: those of the prompt, or those of the items' own."""
    q, d = queries.embeddings(), corpus.embeddings()
    pooled = _pooled(q, d)
    prompts = {"query": prompt_words(queries), "page": prompt_words(corpus)}
    chosen = {ALL_WORDS: (q, d)}
    if prompts["query"].any():
        chosen["queries' own words"] = keep_tokens(q, ~prompts["query"]), d
        chosen["queries' prompt"] = keep_tokens(q, prompts["query"]), d
    if prompts["page"].any():
        chosen["pages' own tokens"] = q, keep_tokens(d, ~prompts["page"])
    if prompts["query"].any() and prompts["page"].any():
        chosen["own on both sides"] = keep_tokens(q, ~prompts["query"]), keep_tokens(d, ~prompts["page"])
    for name, (some_q, some_d) in chosen.items():
        facts = {"query tokens": len(some_q.tokens) / len(q), "page tokens": len(some_d.tokens) / len(d)}
        yield Row(name, facts, _with_pooled(pooled, _late(some_q, some_d)))


def _pooled(q: Embeddings, d: Embeddings) -> np.ndarray:
    return np.asarray(score(q.astype(np.float32), d, late_weight=0.0))


def _late(q: Embeddings, d: Embeddings) -> np.ndarray:
    return np.asarray(score(q.astype(np.float32), d, pooled_weight=0.0))


def _with_pooled(pooled: np.ndarray, late: np.ndarray) -> Scores:
    return {"late": late, "hybrid": pooled + late}


def run_study(config: ConfigDict, subjects: Sequence[Subject]) -> dict[str, Any]:
    """Runs every section on every subject, writes the report to config.output and returns it with "files" added.

    Raises:
      ValueError: no subjects, two of one name, or a setting that is unknown.
    """
    names = [subject.name for subject in subjects]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"the subjects are {names}: there must be at least one, and their names must differ")
    start, tables = time.perf_counter(), sections(config)
    found = [_run_subject(subject, tables, config) for subject in subjects]
    summary = {"metrics": list(config.metrics), "level": config.bootstrap.level, "subjects": found}
    summary |= {"config": config.to_dict(), "environment": environment(), "seconds": time.perf_counter() - start}
    return summary | {"files": {name: str(path) for name, path in write(summary, Path(config.output)).items()}}


def _run_subject(subject: Subject, tables: Mapping[str, Section], config: ConfigDict) -> dict[str, Any]:
    encoder = subject.load()
    made: dict[str, list[tuple[Benchmark, dict[str, Row], Result]]] = {name: [] for name in tables}
    for benchmark in subject.benchmarks:
        if config.max_queries or config.max_corpus:
            benchmark = benchmark.sample(queries=config.max_queries, corpus=config.max_corpus, seed=config.seed)
        queries, corpus = encode(encoder, benchmark, config)
        for name, section in tables.items():
            rows, values = {}, {}
            for row in section.rows(queries, corpus):
                rows[row.name] = dataclasses.replace(row, scores={})
                for kind, scores in row.scores.items():
                    values[_key(row.name, kind)] = measure(benchmark, scores, config.metrics)
            made[name].append((benchmark, rows, _result(benchmark, values)))
    return {
        "name": subject.name,
        "benchmarks": [
            {"name": benchmark.name, "queries": len(benchmark.queries), "pages": len(benchmark.corpus)}
            for benchmark, _, _ in made["storage"]
        ],
        "sections": {name: _table(parts, tables[name].reference, config) for name, parts in made.items()},
    }


def encode(encoder: Any, benchmark: Benchmark, config: ConfigDict) -> tuple[States, States]:
    """States of the benchmark's queries and corpus, in every layer that config.layers asks for, float16, in memory.

    They are kept in config.cache as those of `python -m eval.run` are.
    """
    depth = encoder.config.text.num_hidden_layers
    layers = tuple(range(-depth - 1, 0)) if config.layers == "all" else (*map(int, config.layers.split(",")),)
    how: dict[str, Any] = {"layers": layers, "batch_size": config.batch_size, "dtype": np.float16}
    queries: dict[str, Any] = {"query": True, "instruction": benchmark.instruction}
    corpus: dict[str, Any] = {"query": False, "instruction": benchmark.document_instruction}
    if config.cache == "":
        return encoder.states(benchmark.queries, **queries, **how), encoder.states(benchmark.corpus, **corpus, **how)
    folder = Path(config.output) / "embeddings" if config.cache is None else Path(config.cache)
    cache = Cache(folder, encoder.fingerprint(), memory=int(config.memory_gib * GIB))
    sides = (
        cache.encode(encoder, benchmark.name, benchmark.queries, benchmark.query_ids, **queries, **how),
        cache.encode(encoder, benchmark.name, benchmark.corpus, benchmark.corpus_ids, **corpus, **how),
    )
    found = [shards.take(np.arange(len(shards))) for shards in sides]
    return found[0], found[1]


def measure(benchmark: Benchmark, scores: np.ndarray, metrics: Sequence[str]) -> dict[str, np.ndarray]:
    """Metrics by name, float64 [Q], of the scores [Q, N] of all queries and pages."""
    judge = Judge(benchmark)
    parts = []
    for block in judge.blocks(len(scores)):
        queries, documents = block
        own = scores[queries] if documents is None else scores[np.ix_(queries, documents)]
        parts.append(judge.measure(block, own, metrics))
    return {name: np.concatenate([part[name] for part in parts]) for name in metrics}


def _key(row: str, kind: str) -> str:
    return f"{row}\t{kind}"


def _result(benchmark: Benchmark, values: dict[str, dict[str, np.ndarray]]) -> Result:
    local = benchmark.candidates is not None
    return Result(benchmark.name, list(benchmark.query_ids), len(benchmark.corpus), local, values, {}, {})


def _table(
    parts: Sequence[tuple[Benchmark, Mapping[str, Row], Result]], reference: str, config: ConfigDict
) -> list[dict[str, Any]]:
    """Rows that every benchmark has, averaged over them: name, facts, and figures of each kind and metric."""
    results = [result for _, _, result in parts]
    keys = [key for key in results[0].values if all(key in result.values for result in results)]
    pairs = [(key, _key(reference, key.partition("\t")[2])) for key in keys]
    summary = summarise(results, differences=pairs, **config.bootstrap.to_dict())["benchmarks"][-1]
    differences = {pair["row"]: pair["metrics"] for pair in summary["differences"]}
    table: dict[str, dict[str, Any]] = {}
    for key in keys:
        name, _, kind = key.partition("\t")
        facts = [rows[name].facts for _, rows, _ in parts]
        entry = table.setdefault(
            name, {"name": name, **{fact: float(np.mean([each[fact] for each in facts])) for fact in facts[0]}}
        )
        figures = {m: dict(summary["rows"][key][m]) for m in config.metrics}
        for metric, figure in differences.get(key, {}).items():
            figures[metric]["difference"] = figure
        entry[kind] = figures
    return list(table.values())


def main() -> None:
    """The command."""

    def run(config: ConfigDict, module: Any) -> None:
        summary = run_study(config, module.get_subjects(config))
        print(f"\n{markdown(summary)}")
        for path in summary["files"].values():
            print(path)

    run_config_file(run, needs="get_subjects", example="python -m eval.study --config configs/study.py")


if __name__ == "__main__":
    main()
