"""The embedded default model: its files, and what the README says of it."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest

import smart_jax
from configs import eval_tiny
from eval.methods import run_benchmark
from eval.ranking.bootstrap import interval, resampled_means


@pytest.fixture(scope="module")
def tiny():
    return smart_jax.load("tiny")


def benchmarks(pages: int, seeds: int):
    config = eval_tiny.get_config()
    config.pages, config.query_seeds, config.meaning = pages, seeds, False
    return eval_tiny.get_benchmarks(config)


def test_files_are_small_and_in_hugging_face_layout(tiny):
    folder = Path(tiny.folder)
    assert sum(x.size for x in jax.tree.leaves(tiny.params)) in range(2_000_000, 6_000_000)
    assert (folder / "model.safetensors").stat().st_size <= 15 * 2**20
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "preprocessor_config.json"):
        assert (folder / name).is_file()


@pytest.mark.compiles
def test_it_reads_pages(tiny):
    """Far above chance (1 in 60) on pages of modules that it was not trained on."""
    (benchmark,) = benchmarks(60, 1)
    result = run_benchmark(tiny, benchmark, methods=("pooled", "late", "hybrid"), metrics=("hit@1",))
    for row in ("pooled", "late", "hybrid"):
        assert result.mean(row, "hit@1") > 0.25


@pytest.mark.slow
def test_hybrid_beats_pooled_without_training(tiny):
    """1,500 queries on 500 pages: the 95 % interval of the difference in nDCG@5 excludes 0."""
    gains = []
    for benchmark in benchmarks(500, 3):
        values = run_benchmark(tiny, benchmark, methods=("pooled", "hybrid"), metrics=("ndcg@5",)).values
        gains.append(values["hybrid"]["ndcg@5"] - values["pooled"]["ndcg@5"])
    low, _ = interval(resampled_means(np.concatenate(gains)[None])[0])
    assert low > 0
