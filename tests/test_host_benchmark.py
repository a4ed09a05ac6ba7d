"""benchmarks.host: that it runs, and what it counts."""

from __future__ import annotations

import re

import numpy as np
import pytest

from benchmarks import host_pipeline
from tests.processes import run_main


@pytest.fixture(scope="module")
def preprocessor():
    return host_pipeline.preprocessor()


def test_the_sizes_are_those_of_the_2b_model(preprocessor):
    page = host_pipeline.real_pages(1)[0]
    assert preprocessor.measure({"image": page})[1] == 4 * 1750  # an A4 page at 150 dpi
    assert preprocessor.length_buckets[-1] == host_pipeline.MAX_LENGTH


@pytest.mark.parametrize("workers", [1, 4])
def test_a_simulated_run_is_bounded_by_its_workers(preprocessor, monkeypatch, workers):
    monkeypatch.setattr(host_pipeline, "blank_pages", lambda *_: [np.zeros((64, 96, 3), np.uint8)] * 12)
    (*_, row) = host_pipeline.simulated_table(preprocessor, 12, [workers], [0.001])
    shown = re.fullmatch(r"\| 1 \| (\d) \| (\d+)% \| ([\d.]+) \| ([\d.]+) \| [\d.]+ s \|", row)
    assert shown and int(shown[1]) == workers
    assert float(shown[3]) <= float(shown[4]) == pytest.approx(workers / 0.045, abs=0.1)


def test_padding_counts_what_is_not_used(preprocessor, monkeypatch):
    monkeypatch.setattr(host_pipeline, "SIZES", {"one": [((1240, 1754), 1)]})
    *_, whole, by_window = host_pipeline.padding_table(preprocessor, 24)
    tokens = preprocessor.measure({"image": host_pipeline.real_pages(1)[0]})[0]
    length, patches = preprocessor.padded_sizes(tokens, 7000)
    expected = f"{1 - 7000 / patches:.1%} | {1 - tokens / length:.1%} | 1 |"
    assert whole == f"| one | all | {expected}" and by_window == f"| one | 16 batches | {expected}"


@pytest.mark.slow
def test_the_command_prints_every_table():
    done = run_main("benchmarks.host", "--quick", "--part", "pipeline")
    assert done.returncode == 0, done.stderr
    for head in (
        "device, ms a page | workers",
        "device, ms a page | threads",
        "| resize alone |",
        "padding of patches",
    ):
        assert head in done.stdout
