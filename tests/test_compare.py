"""Two runs compared: against plain float64 NumPy, and what is refused or listed."""

import copy
import json
from dataclasses import astuple

import numpy as np
import pytest

from eval.compare import main
from eval.methods import Result
from eval.reports import Group, compare, summarise, write
from eval.reports import comparison_markdown as markdown
from eval.reports import read_results as read
from eval.reports.comparison import Unmatched

ROWS = ("pooled", "late", "hybrid")
METRICS = ("ndcg@5", "mrr")
SAMPLES = 300


def run(seed, *, names=("first", "second"), rows=ROWS, metrics=METRICS, counts=(40, 70), documents=90):
    """Values that seven decimals hold."""
    rng = np.random.default_rng(seed)
    results = []
    for name, count in zip(names, counts, strict=True):
        values = {row: {metric: rng.integers(0, 1000, count) / 1000 for metric in metrics} for row in rows}
        results.append(Result(name, [f"{name}{i}" for i in range(count)], documents, False, values, {}))
    return results


def summary(results):
    return summarise(results, samples=20)


def shuffled(result, seed=0):
    """The same, queries in another order."""
    order = np.random.default_rng(seed).permutation(len(result.query_ids))
    values = {row: {metric: x[order] for metric, x in of_row.items()} for row, of_row in result.values.items()}
    return Result(result.benchmark, [result.query_ids[i] for i in order], result.documents, False, values, {})


def oracle(first, second, row, metric, *, seed=0, level=0.95):
    """Mean and interval of the difference, of every benchmark and of their average, one resample at a time."""
    found, resamples = [], []
    for place, (a, b) in enumerate(zip(first, second, strict=True)):
        theirs = dict(zip(b.query_ids, b.values[row][metric].tolist(), strict=True))
        difference = np.array([theirs[q] - x for q, x in zip(a.query_ids, a.values[row][metric].tolist(), strict=True)])
        count = len(difference)
        drawn = np.random.default_rng(seed + place).integers(count, size=(SAMPLES, count))
        resamples.append(np.array([difference[sample].sum() / count for sample in drawn]))
        found.append((difference.sum() / count, resamples[-1]))
    found.append((np.mean([mean for mean, _ in found]), np.mean(resamples, axis=0)))
    tail = 100 * (1 - level) / 2
    return [(mean, *np.percentile(x, [tail, 100 - tail])) for mean, x in found]


@pytest.mark.parametrize(("seed", "level"), [(0, 0.95), (3, 0.8)])
def test_equals_the_oracle(seed, level):
    first, second = run(1), [shuffled(result) for result in run(2)]
    made = compare(summary(first), summary(second), samples=SAMPLES, seed=seed, level=level)
    entries = [*made.benchmarks, made.average]
    assert [(entry.name, entry.queries) for entry in entries] == [*(("first", 40), ("second", 70), ("average", 110))]
    for row in ROWS:
        for metric in METRICS:
            expected = oracle(first, second, row, metric, seed=seed, level=level)
            for entry, figures in zip(entries, expected, strict=True):
                assert astuple(entry.changes[row][metric].difference) == pytest.approx(figures, abs=1e-12)
            for side, results in (("a", first), ("b", second)):
                means = [result.mean(row, metric) for result in results]
                found = [getattr(entry.changes[row][metric], side) for entry in entries]
                assert found == pytest.approx([*means, np.mean(means)], abs=1e-12)


def test_a_run_against_itself():
    made = compare(summary(run(1)), summary([shuffled(result) for result in run(1)]), samples=50)
    entries = [*made.benchmarks, made.average]
    changes = [x for entry in entries for by_metric in entry.changes.values() for x in by_metric.values()]
    assert {astuple(x.difference) for x in changes} == {(0, 0, 0)}
    assert "*" not in markdown(made).partition("Brackets")[0]


def test_what_has_no_counterpart_is_listed():
    first = run(1, names=("first", "mine"), rows=("bm25", *ROWS), metrics=("mrr", "ndcg@5"))
    second = run(2, names=("yours", "first"), counts=(70, 40), rows=(*ROWS, "adapter-late"), metrics=("ndcg@5", "map"))
    made = compare(summary(first), summary(second), samples=50)
    assert made.metrics == ["ndcg@5"]
    assert made.unmatched_benchmarks == Unmatched(["mine"], ["yours"])
    assert made.unmatched_metrics == Unmatched(["mrr"], ["map"])
    (entry,) = made.benchmarks
    assert made.average is None and list(entry.changes) == list(ROWS)
    assert entry.unmatched == Unmatched(["bm25"], ["adapter-late"])
    stored = made.to_json()
    assert stored["without_counterpart"] == {"a": ["mine"], "b": ["yours"]}
    assert stored["benchmarks"][0]["rows_without_counterpart"] == {"a": ["bm25"], "b": ["adapter-late"]}
    text = markdown(made)
    for line in (
        "rows that only a has: bm25",
        "rows that only b has: adapter-late",
        "benchmarks that only a has: mine",
    ):
        assert f"- {line}\n" in text
    assert "- benchmarks that only b has: yours\n- metrics that only a has: mrr\n" in text


def test_average_is_over_the_rows_of_all():
    first = [*run(1, names=("first",), counts=(40,)), *run(1, names=("second",), counts=(70,), rows=("late", "bm25"))]
    average = compare(summary(first), summary(first), samples=20).average
    assert (average.name, list(average.changes)) == ("average", ["late"])


def test_markdown():
    first = run(1, names=("first",), counts=(40,), rows=("late",), metrics=("mrr",))
    second = copy.deepcopy(first)
    second[0].values["late"]["mrr"] = first[0].values["late"]["mrr"] + 0.125
    a, b = (results[0].values["late"]["mrr"].mean() for results in (first, second))
    lines = markdown(compare(summary(first), summary(second), samples=50)).splitlines()
    assert lines == [
        *("### first (40 queries)", "", "| b − a | mrr |", "|---|---|"),
        f"| late | {a:.3f} → {b:.3f}, +0.125 [+0.125, +0.125] * |",
        *("", "Brackets: 95 % paired bootstrap interval over queries; * = it excludes 0."),
    ]


NAMES = ("first", "second", "third")
GROUP = {"first": "mrr", "second": "ndcg@5", "third": "ndcg@5", "never": "mrr"}


def grouped(results, *groups):
    return summarise(results, samples=20, groups=[Group(name, metrics) for name, metrics in groups])


def test_groups_are_averaged_in_their_primary_metrics():
    counts = (40, 70, 20)
    first, second = run(1, names=NAMES, counts=counts), run(2, names=NAMES, counts=counts)
    second = [shuffled(result) for result in second]
    groups = [("all", GROUP), ("one", {"third": "mrr"})]
    made = compare(grouped(first, *groups), grouped(second, *groups), metrics=["mrr"], samples=SAMPLES, seed=4)
    assert made.metrics == ["mrr"]  # a group's own are not among them
    assert [(group.name, group.benchmarks) for group in made.groups] == [
        ("all", {name: GROUP[name] for name in NAMES}),
        ("one", {"third": "mrr"}),
    ]
    for row in ROWS:
        draws, means = [], {"a": [], "b": []}
        for place, (a, b) in enumerate(zip(first, second, strict=True)):
            metric = GROUP[a.benchmark]
            theirs = dict(zip(b.query_ids, b.values[row][metric].tolist(), strict=True))
            pairs = np.array([[x, theirs[q]] for q, x in zip(a.query_ids, a.values[row][metric].tolist(), strict=True)])
            drawn = np.random.default_rng(4 + place).integers(len(pairs), size=(SAMPLES, len(pairs)))
            draws.append([pairs[sample, 1].mean() - pairs[sample, 0].mean() for sample in drawn])
            for side, x in zip(means, pairs.mean(axis=0), strict=True):
                means[side].append(x)
        low, high = np.percentile(np.mean(draws, axis=0), [2.5, 97.5])
        a, b = np.mean(means["a"]), np.mean(means["b"])
        expected = {"a": a, "b": b, "mean": b - a, "low": low, "high": high}
        assert made.groups[0].changes[row].to_json() == pytest.approx(expected, abs=1e-12)
        third = next(entry for entry in made.benchmarks if entry.name == "third").changes[row]["mrr"]
        assert made.groups[1].changes[row].to_json() == pytest.approx(third.to_json(), abs=1e-12)
    assert [group["rows"]["late"] for group in made.to_json()["groups"]] == [
        group.changes["late"].to_json() for group in made.groups
    ]
    text = markdown(made)
    assert text.startswith("### all: average of 3\n\n| b − a | mrr or ndcg@5 |\n|---|---|\n| pooled | ")
    assert "\n### one: average of 1\n\n| b − a | mrr |\n" in text
    assert text.index("### one") < text.index("### first") and "groups that" not in text


def test_intervals_of_groups_are_of_the_level_that_is_asked_for():
    first, second = run(1, names=NAMES, counts=(40, 70, 20)), run(2, names=NAMES, counts=(40, 70, 20))
    sides = grouped(first, ("all", GROUP)), grouped(second, ("all", GROUP))
    widths = []
    for level in (0.5, 0.9, 0.99):
        change = compare(*sides, samples=SAMPLES, level=level).groups[0].changes["late"].to_json()
        widths.append(change["high"] - change["low"])
    assert widths[0] < widths[1] < widths[2]


def test_groups_of_one_side_only():
    first, second = run(1, names=("first", "mine"), rows=("late", "bm25")), run(2, names=("first", "yours"))
    a = grouped(
        first, ("both", {"first": "mrr", "mine": "mrr"}), ("mine", {"first": "mrr"}), ("empty", {"mine": "mrr"})
    )
    b = grouped(second, ("both", {"first": "mrr", "yours": "mrr"}), ("empty", {"yours": "mrr"}))
    made = compare(a, b, samples=SAMPLES)
    assert made.unmatched_groups == Unmatched(["mine"], [])
    both, empty = made.groups
    assert both.unmatched == Unmatched(["mine"], ["yours"]) and list(both.changes) == ["late"]
    assert (empty.benchmarks, empty.changes) == ({}, {})
    assert made.to_json()["groups_without_counterpart"] == {"a": ["mine"], "b": []}
    text = markdown(made)
    assert "- benchmarks that only a has: mine\n- benchmarks that only b has: yours\n\n### empty" in text
    assert "### empty: average of 0\n\nnothing that both have run\n" in text
    assert "- groups that only a has: mine\n- benchmarks that only a has: mine\n" in text
    assert "groups" not in compare(a, summary(second), samples=20).to_json()


def test_groups_of_different_metrics_are_refused():
    a, b = (grouped(run(1), ("all", {"first": metric})) for metric in METRICS)
    with pytest.raises(ValueError, match="group all: the primary metric of first is ndcg@5 in a and mrr in b"):
        compare(a, b)


def test_metrics_can_be_chosen():
    a, b = summary(run(1)), summary(run(2))
    assert compare(a, b, metrics=["mrr"], samples=20).metrics == ["mrr"]
    with pytest.raises(ValueError, match="map is not in both: a has ndcg@5, mrr, b has ndcg@5, mrr"):
        compare(a, b, metrics=["map"])
    with pytest.raises(ValueError, match="no metric is in both: a has ndcg@5, mrr, b has map"):
        compare(a, summary(run(2, metrics=("map",))))


def test_runs_that_can_not_be_compared():
    first, second = run(1), run(2)
    second[1].query_ids[3] = "stranger"
    with pytest.raises(
        ValueError, match="benchmark second has other queries .*: only a has 'second3'; only b has 'stranger'"
    ):
        compare(summary(first), summary(second))
    with pytest.raises(ValueError, match="only a has 'first34', .* and 1 more. Run both with the same max_queries"):
        compare(summary(first), summary(run(1, counts=(34, 70))))
    with pytest.raises(ValueError, match="benchmark first: documents is 90 in a and 80 in b"):
        compare(summary(first), summary(run(2, documents=80)))
    with pytest.raises(ValueError, match="no benchmark is in both: a has 'first', 'second', b has 'x', 'y'"):
        compare(summary(first), summary(run(2, names=("x", "y"))))


def test_files_that_can_not_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="no file '.*results.json': give a folder"):
        read(tmp_path)
    path = tmp_path / "results.json"
    path.write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        read(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="holds a JSON list"):
        read(path)
    for text in ('{"benchmarks": 7}', '{"benchmarks": [7]}', '{"benchmarks": [{"ranking": "all", "name": []}]}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"results\.json.*(no benchmarks|is not a results|values per query)"):
            read(path)
    write(summary(run(1)), tmp_path)
    text = path.read_text()
    old = json.loads(text)
    del old["benchmarks"][0]["values"], old["benchmarks"][0]["query_ids"]
    path.write_text(json.dumps(old))
    with pytest.raises(ValueError, match="benchmark first has no values per query, .*: run it again"):
        read(tmp_path)
    short = json.loads(text)
    short["benchmarks"][1]["values"]["late"]["mrr"].pop()
    path.write_text(json.dumps(short))
    with pytest.raises(ValueError, match="benchmark second, row late, mrr has 69 values for 70 queries"):
        read(tmp_path)


def test_command(tmp_path, capsys):
    for seed, name in ((1, "a"), (2, "b")):
        write(summary(run(seed)), tmp_path / name)
    a, b, out = tmp_path / "a", tmp_path / "b" / "results.json", tmp_path / "deep" / "out.json"
    main([str(a), str(b), "--metrics", "mrr", "--samples", "50", "--seed", "5", "--level", "0.9", "--out", str(out)])
    printed = capsys.readouterr().out
    stored = json.loads(out.read_text())
    expected = compare(read(a), read(b), metrics=["mrr"], samples=50, seed=5, level=0.9)
    assert stored == expected.to_json() | {"a": str(a), "b": str(b)}
    assert printed.startswith(f"a: {a}\nb: {b}\n\n### first (40 queries)") and "Brackets: 90 %" in printed
    with pytest.raises(SystemExit):
        main([str(a), str(tmp_path / "c")])
    assert "no file" in capsys.readouterr().err
