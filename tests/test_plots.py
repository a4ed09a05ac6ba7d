"""Plots: what is drawn, and when."""

import dataclasses

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from PIL import Image

from eval.ranking import Estimate
from eval.reports import Group, Pair, plots, summarise
from eval.reports.drawing import label_points
from tests.test_report import result


def summary(count, *, sizes=True, rows=("pooled", "late", "hybrid"), groups=()):
    of = {"pooled": 100.0, "late": 4000.0, "hybrid": 4100.0} if sizes else {}
    made = [dataclasses.replace(result(f"t{i}", i, rows=rows), bytes_per_document=of) for i in range(count)]
    return summarise(made, samples=20, groups=groups)


@pytest.mark.compiles
def test_files(tmp_path):
    found = plots.write(summary(2), tmp_path)
    assert {path.name for path in found.values()} == {path.name for path in tmp_path.iterdir()}
    assert set(found) == {"png", "gains", "hybrid_pooled", "storage"}
    many = plots.write(summary(plots.MOST_PANELS), tmp_path)  # and their average: one panel too many
    assert set(many) == {"gains", "hybrid_pooled", "storage"}
    assert not (tmp_path / "results.png").exists()  # of the other results
    only = plots.write(summary(1, sizes=False, rows=("bm25",)), tmp_path)
    assert set(only) == {"png"} and len(list(tmp_path.iterdir())) == 1


def test_labels_of_near_points_do_not_lie_upon_each_other():
    rng = np.random.default_rng(0)
    figure = Figure(figsize=(5, 5))
    axis = figure.subplots()
    points = [(f"ViDoRe_benchmark_{i}", *rng.uniform(0.45, 0.65, 2)) for i in range(10)]
    axis.set(xlim=(0, 1), ylim=(0, 1))
    label_points(axis, points)
    boxes = [text.get_window_extent() for text in axis.texts]
    assert {text.get_text() for text in axis.texts} == {name for name, _, _ in points}
    assert not [i for i in range(10) for j in range(i) if Bbox.intersection(boxes[i], boxes[j])]


def test_plots_are_readable_on_light_and_on_dark_ground(tmp_path):
    for path in plots.write(summary(2), tmp_path).values():
        pixels = np.asarray(Image.open(path))
        assert pixels[0, 0, 3] == 0  # no ground of its own
        drawn = pixels[pixels[..., 3] > 200][:, :3].astype(int)
        grey = drawn[np.ptp(drawn, axis=1) < 8]
        assert len(grey) > 500 and grey.min() > 90  # ink neither black nor white


def test_gains_are_sorted_and_of_the_primary_metric():
    made = summary(3, groups=[Group("g", {"t0": "ndcg@5", "t1": "hit@1", "t2": "ndcg@5"})])
    gains = [{m: Estimate(gain + (m == "hit@1"), gain, gain + 1) for m in made.metrics} for gain in (0.2, -0.1, 0.05)]
    benchmarks = [
        dataclasses.replace(benchmark, differences={Pair("hybrid", "pooled"): gain})
        for benchmark, gain in zip(made.benchmarks, gains, strict=True)
    ]
    made = dataclasses.replace(made, benchmarks=benchmarks)
    (axis,) = plots.gains(made).axes
    assert axis.get_title() == "hybrid − pooled"
    assert [label.get_text() for label in axis.get_yticklabels()] == ["t2 (ndcg@5)", "t0 (ndcg@5)", "t1 (hit@1)"]
    assert [bar.get_width() for bar in axis.patches] == pytest.approx([0.05, 0.2, 0.9])


def test_points_of_hybrid_against_pooled():
    made = summary(2)
    (axis,) = plots.hybrid_against_pooled(made).axes
    points = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axis.lines[1:]]
    rows = [entry.estimates for entry in made.benchmarks]
    assert points == [(row["pooled"]["ndcg@5"].mean, row["hybrid"]["ndcg@5"].mean) for row in rows]


@pytest.mark.parametrize("size", [1000.0, 1536.0])
def test_storage_of_one_method_on_one_task(tmp_path, size):
    made = dataclasses.replace(result("t", 0, rows=("late",)), bytes_per_document={"late": size})
    assert "storage" in plots.write(summarise([made], samples=20), tmp_path)


def test_storage_has_a_mean_of_every_row():
    made = summary(3)
    (axis,) = plots.storage(made).axes
    means = {line.get_label().split(":")[0]: line for line in axis.lines if ":" in str(line.get_label())}
    assert list(means) == ["pooled", "late", "hybrid"] and axis.get_xscale() == "log"
    values = [entry.estimates["late"]["ndcg@5"].mean for entry in made.benchmarks]
    assert means["late"].get_xdata()[0] == pytest.approx(4000) and means["late"].get_ydata()[0] == np.mean(values)
