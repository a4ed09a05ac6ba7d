"""Reports: means, paired intervals, the average, and the files."""

import datetime
import json
from dataclasses import astuple

import numpy as np
import pytest
from PIL import Image

from eval.methods import Result
from eval.ranking import Estimate, interval, resampled_means
from eval.reports import Group, Published, check_groups, markdown, read_results, summarise, write


def result(name="pages", seed=0, queries=80, rows=("pooled", "late", "hybrid"), gain=0.1, metrics=("ndcg@5", "hit@1")):
    """Every row is the first plus `gain` per step, so that paired differences are certain."""
    rng = np.random.default_rng(seed)
    base = {m: 0.7 * rng.random(queries) for m in metrics}
    values = {row: {m: base[m] + i * gain for m in metrics} for i, row in enumerate(rows)}
    return Result(name, [f"q{i}" for i in range(queries)], 200, False, values, {"score": 1.23456})


def test_means_intervals_and_paired_differences():
    made = result()
    summary = summarise([made], samples=500)
    (entry,) = summary.benchmarks
    assert (entry.name, entry.queries, entry.documents, entry.ranking) == ("pages", 80, 200, "global")
    for row, values in made.values.items():
        figure = entry.estimates[row]["ndcg@5"]
        assert figure.mean == pytest.approx(values["ndcg@5"].mean(), abs=1e-12)
        assert figure.low < figure.mean < figure.high
        spread = values["ndcg@5"].std() / np.sqrt(80)
        assert figure.high - figure.low == pytest.approx(2 * 1.96 * spread, rel=0.15)
    assert list(entry.differences) == [("hybrid", "pooled")]
    gain = entry.differences["hybrid", "pooled"]["hit@1"]
    assert (gain.mean, gain.low, gain.high) == pytest.approx((0.2, 0.2, 0.2), abs=1e-9)


def test_differences_of_adapter_rows():
    rows = ("pooled", "late", "hybrid", "adapter-late", "adapter-hybrid")
    (entry,) = summarise([result(rows=rows)], samples=50).benchmarks
    pairs = {pair: by_metric["ndcg@5"].mean for pair, by_metric in entry.differences.items()}
    assert pairs == pytest.approx(
        {
            ("hybrid", "pooled"): 0.2,
            ("adapter-late", "late"): 0.2,
            ("adapter-hybrid", "hybrid"): 0.2,
            ("adapter-hybrid", "pooled"): 0.4,
        }
    )


def test_average_of_benchmarks_is_unweighted_and_over_shared_rows():
    first, second = result("a", 1, 30), result("b", 2, 120, rows=("bm25", "pooled", "hybrid"))
    average = summarise([first, second], samples=2000).average
    assert average.name == "average" and list(average.estimates) == ["pooled", "hybrid"]
    assert (average.queries, average.documents) == (150, 400)
    figure = average.estimates["pooled"]["ndcg@5"]
    values = [r.values["pooled"]["ndcg@5"] for r in (first, second)]
    assert figure.mean == pytest.approx(np.mean([v.mean() for v in values]))
    # Queries are resampled within each benchmark: the errors of the two means add up in squares.
    error = np.sqrt(sum(v.var() / len(v) for v in values)) / 2
    assert figure.high - figure.low == pytest.approx(2 * 1.96 * error, rel=0.12)


def test_same_seed_same_intervals():
    assert summarise([result()], samples=100, seed=1) == summarise([result()], samples=100, seed=1)
    assert summarise([result()], samples=100, seed=1) != summarise([result()], samples=100, seed=2)


def test_level_widens_the_interval():
    summaries = [summarise([result()], level=level) for level in (0.5, 0.99)]
    narrow, wide = (s.benchmarks[0].estimates["late"]["hit@1"] for s in summaries)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_markdown_table():
    text = markdown(summarise([result(), result("other", 1, gain=0.0)], samples=200))
    lines = text.splitlines()
    assert "### pages (80 queries, 200 documents, global ranking)" in lines
    table = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in table} == {4}
    assert "| row | ndcg@5 | hit@1 |" in table
    hybrids = [line for line in table if line.startswith("| hybrid − pooled |")]
    assert len(hybrids) == 3  # two benchmarks and their average
    assert hybrids[0].count("+0.200 [+0.200, +0.200] *") == 2
    assert hybrids[1].count("+0.000 [+0.000, +0.000] |") == 2  # no star: 0 is inside
    assert "95 % bootstrap interval" in lines[-1]


def test_excludes_zero():
    assert Estimate(0.1, 0.01, 0.2).excludes_zero
    assert Estimate(-0.1, -0.2, -0.01).excludes_zero
    assert not Estimate(0.1, -0.01, 0.2).excludes_zero
    assert not Estimate(0.0, 0.0, 0.0).excludes_zero


def test_files_are_written_and_overwritten(tmp_path):
    folder = tmp_path / "deep" / "er"
    for seed in (0, 1):
        summary = summarise([result(seed=seed)], samples=50)
        paths = write(summary, folder)
        assert read_results(paths["json"]) == summary
        assert paths["md"].read_text(encoding="utf-8") == markdown(summary)
        with Image.open(paths["png"]) as image:
            assert image.width > 500 and len(image.convert("RGB").getcolors(1 << 24)) > 3
    assert sorted(folder.iterdir()) == sorted(paths.values())


def test_values_of_every_query_are_stored_on_a_line_each(tmp_path):
    made = [result("a", 1, 30), result("b", 2, 40)]
    paths = write(summarise(made, samples=20), tmp_path)
    text = paths["json"].read_text()
    *entries, average = json.loads(text)["benchmarks"]
    for entry, its in zip(entries, made, strict=True):
        assert entry["query_ids"] == its.query_ids
        assert list(entry["values"]) == list(its.values)
        for row, values in its.values.items():
            for metric, expected in values.items():
                np.testing.assert_allclose(entry["values"][row][metric], expected, rtol=0, atol=5.1e-8)
    assert "values" not in average and "query_ids" not in average
    lines = [line.strip() for line in text.splitlines()]
    assert sum(line.startswith('"ndcg@5": [0.') for line in lines) == 2 * 3
    assert sum(line.startswith('"query_ids": ["q0", "q1", ') for line in lines) == 2


def test_bad_results_are_refused():
    with pytest.raises(ValueError, match="no results"):
        summarise([])
    with pytest.raises(ValueError, match="benchmark b has metrics"):
        summarise([result("a"), result("b", metrics=("mrr",))])


SOURCE = {"source": "a paper", "date": datetime.date(2026, 1, 2)}


def grouped(*, metrics, published=(), samples=200):
    made = [result("a", 1, 30), result("b", 2, 120, rows=("bm25", "pooled", "hybrid"))]
    return summarise(made, groups=[Group("both", metrics, published)], samples=samples), made


def test_group_averages_the_primary_metrics_of_what_was_run():
    summary, made = grouped(metrics={"b": "hit@1", "a": "ndcg@5", "c": "ndcg@5"})
    assert [entry.name for entry in summary.benchmarks] == ["a", "b"] and summary.average is None
    (group,) = summary.groups
    assert list(group.benchmarks.items()) == [("b", "hit@1"), ("a", "ndcg@5")]
    assert group.missing == ["c"] and list(group.estimates) == ["pooled", "hybrid"]
    values = {row: [made[1].values[row]["hit@1"], made[0].values[row]["ndcg@5"]] for row in ("pooled", "hybrid")}
    seeds = (1, 0)  # each benchmark's place in the run
    means = {
        row: np.mean([resampled_means(v[None], samples=200, seed=s)[0] for v, s in zip(x, seeds, strict=True)], axis=0)
        for row, x in values.items()
    }
    for row in values:
        low, high = interval(means[row])
        expected = (np.mean([v.mean() for v in values[row]]), low, high)
        assert astuple(group.estimates[row]) == pytest.approx(expected, abs=1e-12)
    assert list(group.differences) == [("hybrid", "pooled")]
    gain = group.differences["hybrid", "pooled"]
    low, high = interval(means["hybrid"] - means["pooled"])
    assert (gain.low, gain.high) == pytest.approx((low, high), abs=1e-12)


def test_group_of_which_nothing_was_run():
    summary = summarise([result()], groups=[Group("other", {"x": "ndcg@5"})], samples=20)
    (group,) = summary.groups
    assert (group.benchmarks, group.missing, group.estimates, group.differences) == ({}, ["x"], {}, {})
    assert markdown(summary).startswith("### other: 0 of 1 benchmarks\n\n- missing: x\n")


def test_group_table():
    published = [Published("rival", figures={"ndcg@5": {"a": 0.5, "b": 0.25}}, **SOURCE)]
    summary, _ = grouped(metrics={"a": "ndcg@5", "b": "ndcg@5", "c": "ndcg@5"}, published=published)
    lines = markdown(summary).splitlines()
    assert lines[0] == "### both: 2 of 3 benchmarks"
    assert lines[2] == "| benchmark | metric | pooled | late | hybrid | bm25 | rival, published |"
    assert lines[4].startswith("| a | ndcg@5 | 0.") and lines[4].endswith(" |  | 0.500 |")
    assert lines[5].startswith("| b | ndcg@5 | 0.") and lines[5].endswith(" | 0.250 |")
    assert lines[6].startswith("| average of 2 |  | 0.") and lines[6].endswith(" |  | 0.375 |")
    assert {line.count("|") for line in lines[2:7]} == {8}
    assert lines[8].startswith("- hybrid − pooled, average: +0.1") and lines[8].endswith(" *")
    assert lines[9:11] == ["- missing: c", "- rival: a paper (2026-01-02)"]


@pytest.mark.parametrize(
    ("metrics", "figures", "averages", "expected"),
    [
        (("a", "b"), {"a": 0.5, "b": 0.25}, {}, 0.375),
        (("a", "b"), {"a": 0.5}, {}, None),
        (("a", "b"), {}, {"both": 0.7}, 0.7),
        (("a", "b"), {"a": 0.5, "b": 0.25}, {"both": 0.7}, 0.375),  # the figures are more exact
        (("a", "b", "c"), {}, {"both": 0.7}, "left out"),  # c was not run: nothing to compare
        (("a", "b"), {}, {"other": 0.7}, "left out"),
    ],
)
def test_published_average_is_of_the_same_benchmarks(metrics, figures, averages, expected):
    entry = Published("rival", figures={"ndcg@5": figures}, averages={"ndcg@5": averages}, **SOURCE)
    summary, _ = grouped(metrics=dict.fromkeys(metrics, "ndcg@5"), published=[entry], samples=20)
    shown = summary.groups[0].published
    assert [x.average for x in shown] == ([] if expected == "left out" else [expected])
    other, _ = grouped(metrics=dict.fromkeys(metrics, "hit@1"), published=[entry], samples=20)
    assert other.groups[0].published == []  # of another metric


def test_group_needs_its_metric():
    with pytest.raises(ValueError, match="group both is reported by mrr, and the metrics are ndcg@5, hit@1"):
        grouped(metrics={"a": "mrr", "c": "map"})
    check_groups([Group("g", {"x": "mrr"})], ["a"], ["ndcg@5"])  # x is not run


def test_files_of_groups(tmp_path):
    summary, _ = grouped(metrics={"a": "ndcg@5"}, published=[Published("r", figures={"ndcg@5": {"a": 1.0}}, **SOURCE)])
    write(summary, tmp_path)
    assert read_results(tmp_path) == summary
