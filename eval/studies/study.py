"""Runs the sections of the study on models and their benchmarks, and averages each over the benchmarks."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from ml_collections import ConfigDict

from eval.benchmarks import Benchmark
from eval.environment import environment
from eval.ranking import average, query_metrics, resample
from eval.states import GIB, Cache, encode_sides
from eval.studies.lines import BenchmarkSize, Compared, Line, SubjectReport
from eval.studies.sections import Section, make_sections
from eval.studies.settings import UNREDUCED, parse
from eval.studies.study_report import StudyReport, write
from smart_jax.retrieval import Retriever, States


@dataclasses.dataclass(frozen=True)
class Subject:
    """A model and what it is tried on.

    Attributes:
      name: heads its tables.
      load: returns its encoder.
      benchmarks: at least one; figures are averaged over them.

    Example:
      >>> import smart_jax
      >>> Subject("tiny, pages as images", lambda: smart_jax.load("tiny"), benchmarks=[]).name
      'tiny, pages as images'
    """

    name: str
    load: Callable[[], Retriever]
    benchmarks: Sequence[Benchmark]


class _Scored(NamedTuple):
    """Subject of metrics: a variant of a section, by one kind of score."""

    variant: str
    kind: str


@dataclasses.dataclass(frozen=True)
class _Measured:
    """A section of one benchmark: facts by variant, and metrics of every query by variant and kind."""

    facts: Mapping[str, Mapping[str, float]]
    values: Mapping[_Scored, Mapping[str, Float[np.ndarray, " Nq"]]]


def run_study(config: ConfigDict, subjects: Sequence[Subject]) -> tuple[StudyReport, dict[str, Path]]:
    """Runs every section on every subject, and writes the report to config.output.

    Returns:
      The report, and the paths that were written, by file name.

    Raises:
      ValueError: no subjects, two of one name, or a setting that is unknown.

    Example:
      >>> run_study(ConfigDict(), subjects=[])
      Traceback (most recent call last):
      ValueError: the subjects are []: there must be at least one, and their names must differ
    """
    names = [subject.name for subject in subjects]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"the subjects are {names}: there must be at least one, and their names must differ")
    start, sections = time.perf_counter(), sections_of(config)
    report = StudyReport(
        metrics=list(config.metrics),
        level=config.bootstrap.level,
        subjects=[_run_subject(subject, sections, config) for subject in subjects],
        config=config.to_dict(),
        environment=environment(),
        seconds=time.perf_counter() - start,
    )
    return report, write(report, Path(config.output))


def sections_of(config: ConfigDict) -> dict[str, Section]:
    """Returns the sections that a config names, all by default, with its settings and late weights.

    Raises:
      ValueError: a section is unknown, or a setting that `eval.studies.settings` does not know.
    """
    settings = {name: parse(name) for name in dict.fromkeys([UNREDUCED, *config.settings])}
    sections = make_sections(settings, sorted({*map(float, config.weights), 1.0}))
    chosen = [name.strip() for name in config.sections.split(",") if name.strip()] or list(sections)
    if unknown := [name for name in chosen if name not in sections]:
        raise ValueError(f"unknown sections {', '.join(unknown)}: there are {', '.join(sections)}")
    return {name: sections[name] for name in chosen}


def _run_subject(subject: Subject, sections: Mapping[str, Section], config: ConfigDict) -> SubjectReport:
    encoder = subject.load()
    sizes: list[BenchmarkSize] = []
    measured: dict[str, list[_Measured]] = {name: [] for name in sections}
    for benchmark in subject.benchmarks:
        if config.max_queries or config.max_corpus:
            benchmark = benchmark.sample(queries=config.max_queries, corpus=config.max_corpus, seed=config.seed)
        queries, corpus = encode(encoder, benchmark, config)
        sizes.append(BenchmarkSize(benchmark.name, len(benchmark.queries), len(benchmark.corpus)))
        for name, section in sections.items():
            measured[name].append(_measure(section, benchmark, queries, corpus, config.metrics))
    tables = {name: _lines(parts, sections[name].default, config.bootstrap) for name, parts in measured.items()}
    return SubjectReport(subject.name, sizes, tables)


def encode(encoder: Retriever, benchmark: Benchmark, config: ConfigDict) -> tuple[States, States]:
    """Returns states of queries and corpus, in every layer that config.layers asks for, float16, in memory.

    They are kept in config.cache as those of `python -m eval.run` are.
    """
    depth = encoder.depth
    layers = tuple(range(-depth - 1, 0)) if config.layers == "all" else (*map(int, config.layers.split(",")),)
    cache = None
    if config.cache != "":
        folder = Path(config.output) / "embeddings" if config.cache is None else Path(config.cache)
        cache = Cache(folder, encoder.fingerprint(), memory=int(config.memory_gib * GIB))
    return encode_sides(encoder, benchmark, layers=layers, batch_size=config.batch_size, cache=cache)


def _measure(
    section: Section, benchmark: Benchmark, queries: States, corpus: States, metrics: Sequence[str]
) -> _Measured:
    facts, values = {}, {}
    for variant in section.variants(queries, corpus):
        facts[variant.name] = variant.facts
        for kind, scores in variant.scores.items():
            values[_Scored(variant.name, kind)] = query_metrics(benchmark, scores, metrics)
    return _Measured(facts, values)


def _lines(parts: Sequence[_Measured], default: str, bootstrap: ConfigDict) -> list[Line]:
    """Returns the variants that every benchmark has, averaged over the benchmarks."""
    drawn = [resample(part.values, samples=bootstrap.samples, seed=bootstrap.seed + i) for i, part in enumerate(parts)]
    averaged = average(drawn)
    lines: dict[str, dict[str, dict[str, Compared]]] = {}
    for key, means in averaged.items():
        reference = averaged.get(_Scored(default, key.kind))
        lines.setdefault(key.variant, {})[key.kind] = {
            metric: Compared(
                mean.estimate(bootstrap.level),
                None if reference is None else (mean - reference[metric]).estimate(bootstrap.level),
            )
            for metric, mean in means.items()
        }
    return [Line(name, _mean_facts([part.facts[name] for part in parts]), scores) for name, scores in lines.items()]


def _mean_facts(facts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([each[name] for each in facts])) for name in facts[0]}
