"""benchmarks.objectives: what it runs, what it counts and what it concludes."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks import objectives
from benchmarks import objectives_report as report
from benchmarks.objectives import Clock, Settings, finished, jobs, run_config
from benchmarks.objectives_report import RUNS, START
from benchmarks.processes import RunError
from configs import lora_visdoc, tiny
from tests.processes import xla_flags
from train.config import from_config_dict

SETTINGS = Settings(steps=4, every=2, train_pages=120, pages=12, query_seeds=2, batch_size=8, timed=2)


@pytest.mark.parametrize("run", RUNS)
def test_a_run_is_that_of_its_config_file(run, tmp_path):
    """Differs in steps, batch, seed, evaluation and places alone, which all of them share."""
    config = run_config(run, 5, SETTINGS, data=tmp_path / "data", output=tmp_path / "run")
    what, objective = run.split()
    file = from_config_dict(lora_visdoc.get_config(f"tiny,{objective}") if what == "lora" else tiny.get_config())
    assert (config.trainable, config.loss.objective) == (what, objective)
    assert (config.loss, config.optimizer, config.model) == (file.loss, file.optimizer, file.model)
    assert dataclasses.replace(config.lora, merge=file.lora.merge) == file.lora
    assert (config.seed, config.steps, config.batch_size, config.eval.every) == (5, 4, 8, 2)
    assert config.data.query_length == config.data.max_length == file.data.document_length
    assert config.eval.validation_batches == 0  # it would be timed


def test_a_run_of_full_length_is_an_epoch():
    settings, validation = Settings(), 0.02
    assert abs(settings.steps - settings.train_pages * (1 - validation) / settings.batch_size) <= 1


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"every": 0}, "evaluated every 0: it must be 1 to 184"),
        ({"every": 400}, "evaluated every 400"),
    ],
)
def test_settings_that_make_no_report_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        Settings(**wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seeds": ()}, "at least one"),
        ({"seeds": (1, 1)}, r"the seeds are \[1, 1\]"),
        ({"runs": ("lora late", "lora maxsim")}, "unknown runs lora maxsim: there are lora pooled, lora late"),
        ({"runs": ("lora late", "adapter late")}, "lora hybrid must be among the runs"),
    ],
)
def test_runs_that_can_not_be_compared_are_refused(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        objectives.run(SETTINGS, tmp_path, [0], **wrong)
    assert not list(tmp_path.iterdir())


def test_the_clock_counts_work_and_stands_still_when_stopped(monkeypatch):
    now = {"process_time": 100.0, "perf_counter": 7.0}
    for name in now:
        monkeypatch.setattr(objectives.time, name, lambda name=name: now[name])

    def work(cpu_seconds, wall_seconds):
        now["process_time"] += cpu_seconds
        now["perf_counter"] += wall_seconds

    clock = Clock()
    work(1, 2)
    with clock.stopped():
        work(16, 32)
    work(4, 8)
    assert clock.read() == {"cpu_seconds": 5, "wall_seconds": 10}


def test_results_of_other_settings_are_refused(tmp_path):
    file = tmp_path / "runs" / "untrained.json"
    assert finished(file, SETTINGS) is None
    objectives._write(file, SETTINGS, {"curve": [1]})
    assert finished(file, SETTINGS)["curve"] == [1]
    with pytest.raises(ValueError, match=r"untrained\.json was made with steps 4, pages 12: choose another --out"):
        finished(file, dataclasses.replace(SETTINGS, steps=6, pages=13))


def test_what_is_done_is_not_done_again_and_a_failure_loses_nothing(tmp_path, monkeypatch):
    calls = []

    def in_process(task, core, *, run=None, seed=None, settings, out, **options):
        calls.append((task, run, seed, core))
        if (run, seed) == ("lora late", 1):
            raise RunError("crashes: SIGKILL")
        file = next(job.file for job in all_jobs if job.request == {"run": run, "seed": seed})
        objectives._write(file, *objectives._read({"settings": settings, "out": out})[:1], {"seed": seed})

    settings = SETTINGS
    monkeypatch.setattr(objectives, "in_process", in_process)
    _, all_jobs = jobs(tmp_path, RUNS, (1, 2))
    assert [job.request["seed"] for job in all_jobs] == [1] * 4 + [2] * 4
    objectives._write(all_jobs[0].file, settings, {"seed": 1})
    with pytest.raises(RunError, match="^lora late, seed 1 crashes: SIGKILL$"):
        objectives.do(all_jobs, settings, tmp_path, [3, 4])
    assert len(calls) == 7 and {core for *_, core in calls} <= {3, 4}
    calls.clear()
    with pytest.raises(RunError):
        objectives.do(all_jobs, settings, tmp_path, [3])
    assert calls == [("train", "lora late", 1, 3)]
    objectives._write(all_jobs[1].file, settings, {"seed": 1})
    found = objectives.do(all_jobs, settings, tmp_path, [3])
    assert [found[job.name]["seed"] for job in all_jobs] == [1] * 4 + [2] * 4


def curve(name: str, values: list[float], seconds: float = 10.0) -> list[dict[str, float]]:
    """An evaluation every 2 steps of so many seconds."""
    return [
        {"step": 2 * i, "cpu_seconds": seconds * i, "wall_seconds": seconds * i, f"{name}/ndcg@5": x}
        for i, x in enumerate(values, 1)
    ]


def made_runs(hybrid: list[float], late: list[float] | None = None):
    """One seed: the hybrid run's updates take 12 s where the late run's take 10."""
    own = {"curve": curve("hybrid", hybrid, 12.0)}
    return {"lora hybrid": [own], "lora late": [{"curve": curve("late", late or [0.2, 0.45, 0.3, 0.4])}]}


UNTRAINED = {"curve": [{"step": 0, "cpu_seconds": 0.0, "wall_seconds": 0.0, "hybrid/ndcg@5": 0.1, "late/ndcg@5": 0.1}]}


def test_the_time_until_the_multi_vector_models_quality():
    """The target is the late run's last figure, .4 after 8 steps and 40 s; that run has it after 4 steps and 20 s."""
    (seed,) = report.reaching(UNTRAINED, made_runs([0.3, 0.39, 0.4, 0.2]), "lora hybrid", "hybrid")["seeds"]
    assert seed == {
        "target": 0.4,
        "step": 6,
        "cpu_seconds": 36.0,
        "saved": {"steps": 0.25, "cpu": pytest.approx(0.1)},
        "saved_on_first": {"steps": -0.5, "cpu": pytest.approx(-0.8)},
    }
    (seed,) = report.reaching(UNTRAINED, made_runs([0.3]), "lora late", "late")["seeds"]
    assert (seed["step"], seed["saved"]["steps"], seed["saved_on_first"]["steps"]) == (4, 0.5, 0.0)
    (seed,) = report.reaching(UNTRAINED, made_runs([0.3, 0.399]), "lora hybrid", "hybrid")["seeds"]
    assert seed == {"target": 0.4}
    better = {"curve": [UNTRAINED["curve"][0] | {"hybrid/ndcg@5": 0.4}]}
    (seed,) = report.reaching(better, made_runs([0.3]), "lora hybrid", "hybrid")["seeds"]
    assert (seed["step"], seed["saved"]["cpu"]) == (0, 1.0)
    adapter = made_runs([0.3]) | {"adapter late": [{"curve": curve("hybrid", [0.3])}]}
    assert report.reaching(better, adapter, "adapter late", "hybrid")["seeds"] == [{"target": 0.4}]


@pytest.mark.parametrize(
    ("saved", "conclusion"),
    [
        ([0.2, 0.4], "30 [20, 40] % of its CPU time is saved. The 20 % of the paper are found in every run."),
        (
            [0.1, 0.4],
            "25 [10, 40] % of its CPU time is saved. The 20 % of the paper are found on average, not in every",
        ),
        ([0.1, 0.2], "15 [10, 20] % of its CPU time is saved. The 20 % of the paper are not found."),
        (
            [0.9, None],
            "in 1 of 2 runs, after 1 [1, 1] of 10 steps: 90 [90, 90] % of its CPU time is saved. The 20 % of ",
        ),
        ([0.5, 1.0], "found in every run. In 1 of them the untrained model's hybrid score is there already: "),
        ([None, None], "in 0 of 2 runs: nothing is saved."),
    ],
)
def test_the_conclusion_follows_from_the_runs(saved, conclusion):
    seeds = [
        {"target": 0.4} if x is None else {"step": round(10 * (1 - x)), "saved": {"cpu": x, "steps": x}} for x in saved
    ]
    made = {"settings": {"steps": 10}, "reaching": [{"run": "lora hybrid", "score": "hybrid", "seeds": seeds}]}
    text = report.verdict(made)
    assert conclusion in text
    if None in saved:
        assert "found in every" not in text and "on average" not in text


def random_summary(seeds=(0, 1), queries=(30, 20)):
    rng = np.random.default_rng(0)

    def one(number: int) -> dict:
        results = [
            {
                "benchmark": f"b{i}",
                "query_ids": [f"q{j}" for j in range(count)],
                "documents": 40,
                "values": {s: {m: rng.random(count).tolist() for m in report.METRICS} for s in report.SCORES},
            }
            for i, count in enumerate(queries)
        ]
        steps = [0] if number == 0 else [2, 4]
        points = [
            {"step": step, "cpu_seconds": 10.0 * step, "wall_seconds": 11.0 * step}
            | {f"{s}/{m}": rng.random() for s in report.SCORES for m in report.METRICS}
            for step in steps
        ]
        return {"curve": points, "results": results}

    start, runs = one(0), {run: [one(1) for _ in seeds] for run in RUNS}
    updates = {run: [{"cpu_seconds": x, "wall_seconds": x + 1} for x in (3.0, 1.0, 9.0)] for run in RUNS}
    settings = dataclasses.asdict(SETTINGS) | {"seeds": list(seeds)}
    return start, runs, report.summarise(settings, start, updates, runs)


def test_figures_are_means_over_seeds_and_benchmarks():
    _, runs, summary = random_summary()

    def figure(run, score, metric):
        return np.mean([np.mean(result["values"][score][metric]) for result in run["results"]])

    for name in RUNS:
        for score in report.SCORES:
            for metric in report.METRICS:
                found = summary["table"][name][score][metric]
                seeds = [figure(run, score, metric) for run in runs[name]]
                np.testing.assert_allclose(found["seeds"], seeds, atol=1e-12)
                assert found["mean"] == pytest.approx(np.mean(seeds), abs=1e-12)
                assert found["low"] < found["mean"] < found["high"]
    pair = summary["differences"][0]
    assert (pair["row"], pair["minus"]) == (report.CLAIM, report.MULTI_VECTOR)
    hybrid, late = (summary["table"][run][score]["ndcg@5"]["mean"] for run, score in (pair["row"], pair["minus"]))
    assert pair["metrics"]["ndcg@5"]["mean"] == pytest.approx(hybrid - late, abs=1e-12)
    assert summary["times"]["lora late"]["update_cpu_ms"] == {"median": 3.0, "min": 1.0, "max": 9.0}
    assert summary["times"]["lora late"]["cpu_seconds"] == [40.0, 40.0]


def test_differences_are_paired_by_query():
    """Rows whose queries differ by a constant: the interval has no width, whatever that of the rows."""
    start, runs, summary = random_summary()
    for run, mine in zip(runs["lora hybrid"], runs["lora late"], strict=True):
        for result, other in zip(run["results"], mine["results"], strict=True):
            for metric in report.METRICS:
                result["values"]["hybrid"][metric] = [x + 0.25 for x in other["values"]["late"][metric]]
    updates = {run: [{"cpu_seconds": 1.0, "wall_seconds": 1.0}] for run in RUNS}
    again = report.summarise(summary["settings"], start, updates, runs)["differences"][0]["metrics"]["ndcg@5"]
    assert [again[x] for x in ("mean", "low", "high")] == pytest.approx([0.25] * 3, abs=1e-9)


def test_the_report_is_written(tmp_path):
    _, _, summary = random_summary()
    paths = report.write(summary, tmp_path)
    assert set(paths) == {"objectives.json", "objectives.md", "objectives.png"}
    text = Path(paths["objectives.md"]).read_text()
    assert text.startswith(report.verdict(summary))
    for run in (START, *RUNS):
        cells = [
            r"\d\.\d{3} \[\d\.\d{3}, \d\.\d{3}\]" + ("" if run == START else r", \d\.\d{3}–\d\.\d{3}")
            for _ in report.SCORES
        ]
        row = r" \| ".join([run, *cells])
        assert len(re.findall(rf"^\| {row} \|$", text, re.M)) == len(report.METRICS)
    assert "| lora late | 40 [40, 40] | 44 [44, 44] | 3 [1, 9] | 4 [2, 10] |" in text
    assert json.loads(Path(paths["objectives.json"]).read_text())["table"].keys() == {START, *RUNS}
    assert Path(paths["objectives.png"]).stat().st_size > 10_000


@pytest.mark.slow
def test_all_of_it_on_a_few_pages(tmp_path, monkeypatch):
    """Processes, training, evaluation along it and of the exported weights, and the report; then nothing again."""
    monkeypatch.setenv("XLA_FLAGS", xla_flags(1))
    names = ("lora hybrid", "lora late")  # the others differ by their configs, which a test above has read
    options = {"runs": names, "seeds": [5]}
    summary = objectives.run(SETTINGS, tmp_path, [min(objectives.os.sched_getaffinity(0))], **options)
    for run in names:
        (points,) = summary["curves"][run]
        assert [point["step"] for point in points] == [2, 4]
        assert 0 < points[0]["cpu_seconds"] < points[1]["cpu_seconds"]
        # The last evaluation is that of what was exported.
        for score in report.SCORES:
            assert summary["table"][run][score]["ndcg@5"]["mean"] == pytest.approx(
                points[1][f"{score}/ndcg@5"], abs=1e-6
            )
        assert 0 < summary["times"][run]["update_cpu_ms"]["median"] < 1e3 * points[1]["cpu_seconds"]
    untrained = summary["curves"][START][0][0]
    assert all(summary["curves"][run][0][1] != untrained for run in names)
    monkeypatch.setattr(objectives, "in_process", lambda *_, **__: pytest.fail("it was done"))
    assert objectives.run(SETTINGS, tmp_path, [0], **options)["table"] == summary["table"]
