"""Quality and time of training by each objective: `python -m benchmarks.objectives --out build/objectives`.

The embedded model is trained from the same start, on the same pages and in equal steps: LoRA by the objectives pooled,
late and hybrid (configs/lora_visdoc.py:tiny,OBJECTIVE), and the adapter by the objective late (configs/tiny.py), each
from several seeds. LoRA by the objective late is a multi-vector model; SMART (arXiv:2605.24938) says that the hybrid
objective reaches its quality in at least 20 % less time.

Each run is trained in a process of its own on one core, side by side on `--cores`, all four of a seed before those of
the next. At intervals it is evaluated on held-out pages; the clock, which is the process's CPU time, stands still then
(and while up to three batches are prepared ahead). Compilation is left out: programs come from a cache that is filled
first, when updates of all four runs are timed, interleaved in one process. A finished run is not run again, and one
that was cut off starts anew. The folder gets objectives.json, objectives.md and objectives.png.

All that could be chosen by the result is in `Settings` and SEEDS, fixed before the first run, and in the config files.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import queue
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.objectives_report import CLAIM, METRICS, MULTI_VECTOR, RUNS, SCORES, START, summarise, write
from benchmarks.processes import RunError, answer_request, in_process

SEEDS = (0, 1, 2)  # seeds of the order of the pages, and of the start of what is trained
LONGEST = 6 * 3600  # seconds after which a run is taken to hang


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings that all runs share.

    Attributes:
      model: the model that they start from: "tiny", or the folder of another model of these pages.
      steps: updates of a run; 184 batches are an epoch, as in the paper's LoRA runs.
      batch_size: queries of an update.
      every: steps between two evaluations.
      train_pages: pairs of pages and queries made for training.
      pages: pages of a benchmark.
      query_seeds: number of benchmarks, each with as many queries as pages, drawn anew.
      timed: number of updates of each run that are timed.
    """

    model: str = "tiny"
    steps: int = 184
    batch_size: int = 64
    every: int = 12
    train_pages: int = 12_000
    pages: int = 500
    query_seeds: int = 3
    timed: int = 21

    def __post_init__(self) -> None:
        if not 0 < self.every <= self.steps:
            raise ValueError(
                f"there are {self.steps} steps, evaluated every {self.every}: it must be 1 to {self.steps}"
            )


class Clock:
    """CPU seconds of the process, and wall-clock seconds, since the clock was made; it can be stopped."""

    def __init__(self) -> None:
        self._start = time.process_time(), time.perf_counter()

    def read(self) -> dict[str, float]:
        """Returns "cpu_seconds" and "wall_seconds", without those spent in `stopped`."""
        cpu, wall = self._start
        return {"cpu_seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - wall}

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stops the clock in a `with` block."""
        cpu, wall = time.process_time(), time.perf_counter()
        yield
        start_cpu, start_wall = self._start
        self._start = start_cpu + time.process_time() - cpu, start_wall + time.perf_counter() - wall


def run_folder(out: Path, run: str, seed: int) -> Path:
    """Returns the folder of a run."""
    return out / "runs" / f"{run.replace(' ', '-')}-{seed}"


def run_config(run: str, seed: int, settings: Settings, *, data: Path, output: Path) -> Any:
    """Returns the `TrainConfig` of a run: that of its config file, with the settings that all runs share."""
    from configs import lora_visdoc, tiny
    from train.config import from_config_dict

    what, objective = run.split()
    config = lora_visdoc.get_config(f"tiny,{objective}") if what == "lora" else tiny.get_config()
    config.model, config.output, config.overwrite, config.data.dir = settings.model, str(output), True, str(data)
    config.data.max_length = config.data.query_length = config.data.document_length  # one compilation
    config.seed, config.steps, config.batch_size = seed, settings.steps, settings.batch_size
    config.data.cache_states = "off"  # a step then has the work that it has on data which do not come again
    config.eval.every = settings.every
    config.eval.validation_batches = config.eval.validation_documents = 0  # the clock would count them
    config.checkpoint.every = settings.steps
    config.lora.merge = False
    return from_config_dict(config)


def make_data(settings: Settings, out: Path) -> None:
    """Makes the training pages of `make demo` in `out`/data, unless they are there."""
    from recipes.tiny import Canvas, for_training, training_pairs, write_pairs
    from train.data import convert

    if (out / "data" / "pages").is_dir():
        return
    with tempfile.TemporaryDirectory(dir=out) as pairs:
        made = training_pairs(for_training(), Canvas(), count=settings.train_pages, meaning=0.1)
        print(f"{write_pairs(pairs, made)} pairs of pages and queries")
        convert(pairs, "pages", out / "data")


def benchmarks_of(settings: Settings) -> list[Any]:
    """Returns the wording benchmarks of configs/eval_tiny.py."""
    from configs import eval_tiny

    config = eval_tiny.get_config()
    config.pages, config.query_seeds, config.meaning = settings.pages, settings.query_seeds, False
    return eval_tiny.get_benchmarks(config)


def evaluate(encoder: Any, benchmarks: Sequence[Any]) -> list[Any]:
    """Returns pooled, late and hybrid scores on each benchmark; an encoder with an adapter gives its tokens."""
    from eval.methods import run_benchmark

    return [run_benchmark(encoder, benchmark, methods=SCORES, metrics=METRICS) for benchmark in benchmarks]


def point(results: Sequence[Any]) -> dict[str, float]:
    """Returns means over the benchmarks by "SCORE/METRIC"."""
    keys = [(score, metric) for score in SCORES for metric in METRICS]
    return {f"{s}/{m}": sum(result.mean(s, m) for result in results) / len(results) for s, m in keys}


def per_query(results: Sequence[Any]) -> list[dict[str, Any]]:
    """Returns the results as JSON values."""
    return [
        {
            "benchmark": result.benchmark,
            "query_ids": list(result.query_ids),
            "documents": result.documents,
            "values": {row: {name: x.tolist() for name, x in found.items()} for row, found in result.values.items()},
        }
        for result in results
    ]


def measure_start(request: dict[str, Any]) -> None:
    """Measures the model that the runs start from."""
    import smart_jax

    settings, out = _read(request)
    results = evaluate(smart_jax.load(settings.model), benchmarks_of(settings))
    curve = [{"step": 0, "cpu_seconds": 0.0, "wall_seconds": 0.0} | point(results)]
    _write(out / "runs" / f"{START}.json", settings, {"curve": curve, "results": per_query(results)})


def train_and_measure(request: dict[str, Any]) -> None:
    """Makes a run, and writes its figures at intervals, with the time until then, and those of the exported weights."""
    import smart_jax
    from train.monitor import read_metrics
    from train.posttrain import train

    settings, out = _read(request)
    run, seed = request["run"], request["seed"]
    folder, benchmarks = run_folder(out, run, seed), benchmarks_of(settings)
    _use_cache(out)
    clock = Clock()

    def eval_fn(encoder: Any) -> dict[str, float]:
        until_now = clock.read()
        with clock.stopped():
            return until_now | point(evaluate(encoder, benchmarks))

    if not train(run_config(run, seed, settings, data=out / "data", output=folder), eval_fn):
        raise InterruptedError("the run was stopped: the same command starts it anew")
    curve = [
        {"step": record["step"]} | {name.removeprefix("eval/"): x for name, x in record.items() if "eval/" in name}
        for record in read_metrics(folder / "metrics.jsonl")
        if "eval/cpu_seconds" in record
    ]
    adapted = run.startswith("adapter")
    trained = smart_jax.load(settings.model, adapter=folder / "adapter") if adapted else smart_jax.load(folder / "lora")
    _write(
        _result_file(out, run, seed), settings, {"curve": curve, "results": per_query(evaluate(trained, benchmarks))}
    )


def time_updates(request: dict[str, Any]) -> None:
    """Measures milliseconds of single updates of each run, interleaved, which also fills the cache of programs."""
    import jax

    from smart_jax.runtime import make_mesh
    from train.posttrain import open_data
    from train.training import Training

    settings, out = _read(request)
    _use_cache(out)
    updates = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in RUNS:
            output, mesh = run_folder(Path(folder), name, 0), make_mesh()
            config = run_config(name, SEEDS[0], settings, data=out / "data", output=output)
            training = Training(config, mesh, settings.steps)
            updates[name] = (
                training,
                next(training.batcher.prepare(open_data(config, mesh))).put(mesh).batch,
            )
        times: dict[str, list[dict[str, float]]] = {name: [] for name in RUNS}
        for _ in range(1 + settings.timed):  # the first compiles
            for name, (training, batch) in updates.items():
                clock = Clock()
                jax.block_until_ready(training.update(batch))
                times[name].append({unit: 1e3 * x for unit, x in clock.read().items()})
    _write(out / "runs" / "updates.json", settings, {name: of_run[1:] for name, of_run in times.items()})


TASKS = {"start": measure_start, "updates": time_updates, "train": train_and_measure}


def _read(request: dict[str, Any]) -> tuple[Settings, Path]:
    return Settings(**request["settings"]), Path(request["out"])


def _write(path: Path, settings: Settings, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(json.dumps({"settings": dataclasses.asdict(settings)} | result) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _use_cache(out: Path) -> None:
    from smart_jax.runtime import compilation_cache

    os.environ.pop(compilation_cache.VARIABLE, None)
    compilation_cache.enable(out / "programs")


def _result_file(out: Path, run: str, seed: int) -> Path:
    return run_folder(out, run, seed).with_suffix(".json")


def finished(path: Path, settings: Settings) -> dict[str, Any] | None:
    """Reads the result of a job; None = the job is still to be done.

    Raises:
      ValueError: it was done with other settings.
    """
    if not path.is_file():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    wanted = dataclasses.asdict(settings)
    if differ := [
        f"{name} {result['settings'].get(name)}" for name in wanted if result["settings"].get(name) != wanted[name]
    ]:
        raise ValueError(f"{path} was made with {', '.join(differ)}: choose another --out, or delete {path.parent}")
    return result


@dataclasses.dataclass(frozen=True)
class Job:
    """A task in a process of its own, and the file in which its result is kept."""

    name: str
    task: str
    file: Path
    request: dict[str, Any] = dataclasses.field(default_factory=dict)


def jobs(out: Path, runs: Sequence[str], seeds: Sequence[int]) -> list[list[Job]]:
    """Returns the jobs in two stages: the start and the updates, then the runs."""
    folder = out / "runs"
    first = [Job("updates", "updates", folder / "updates.json"), Job(START, "start", folder / f"{START}.json")]
    train = [
        Job(f"{run}, seed {seed}", "train", _result_file(out, run, seed), {"run": run, "seed": seed})
        for seed in seeds
        for run in runs
    ]
    return [first, train]


def do(stage: Sequence[Job], settings: Settings, out: Path, cores: Sequence[int]) -> dict[str, Any]:
    """Does the jobs of a stage that are still to be done, one at a time on each core, and returns results by job.

    Raises:
      ValueError: see `finished`.
      RunError: some jobs failed; the others were done first.
    """
    done = {job.name: finished(job.file, settings) for job in stage}
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for core in cores:
        free.put(core)
    shared = {"settings": dataclasses.asdict(settings), "out": str(out), "module": "benchmarks.objectives"}

    def work(job: Job) -> Any:
        core = free.get()
        try:
            return in_process(job.task, core, longest=LONGEST, **shared, **job.request)
        finally:
            free.put(core)

    failed = []
    with ThreadPoolExecutor(len(cores)) as pool:
        waiting = {pool.submit(work, job): job for job in stage if done[job.name] is None}
        for future in as_completed(waiting):
            job = waiting[future]
            try:
                future.result()
                done[job.name] = finished(job.file, settings)
                print(f"{time.strftime('%H:%M:%S')} {job.name}: done", flush=True)
            except RunError as error:
                failed.append(f"{job.name} {error}")
                print(f"{time.strftime('%H:%M:%S')} {failed[-1]}", flush=True)
    if failed:
        raise RunError("; ".join(failed))
    return done


def run(
    settings: Settings, out: Path, cores: Sequence[int], *, runs: Sequence[str] = RUNS, seeds: Sequence[int] = SEEDS
) -> dict[str, Any]:
    """Does all jobs that are still to be done, and writes the report to `out`.

    Returns:
      The report's summary, with its "files" added.

    Raises:
      ValueError: a run is unknown, one of the two that are compared is missing, there is no seed, or a seed is given
        twice; see also `finished`.
      RunError: see `do`.
    """
    if unknown := [name for name in runs if name not in RUNS]:
        raise ValueError(f"unknown runs {', '.join(unknown)}: there are {', '.join(RUNS)}")
    if missing := [name for name in (CLAIM[0], MULTI_VECTOR[0]) if name not in runs]:
        raise ValueError(f"{' and '.join(missing)} must be among the runs: time is compared between them")
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"the seeds are {list(seeds)}: there must be at least one, and none twice")
    make_data(settings, out)
    done: dict[str, Any] = {}
    for stage in jobs(out, runs, seeds):
        done |= do(stage, settings, out, cores)
    results = {run: [done[f"{run}, seed {seed}"] for seed in seeds] for run in runs}
    summary = summarise(dataclasses.asdict(settings) | {"seeds": list(seeds)}, done[START], done["updates"], results)
    return summary | {"files": write(summary, out)}


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(","))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", help="folder of runs and report")
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--every", type=int, default=Settings.every, help="steps between two evaluations")
    parser.add_argument("--model", default=Settings.model, help="where the runs start (default: %(default)s)")
    parser.add_argument("--runs", default=",".join(RUNS), help="default: %(default)s")
    parser.add_argument("--seeds", type=_numbers, default=SEEDS, help="of the runs, such as 0,1,2")
    parser.add_argument(
        "--cores", type=_numbers, default=tuple(sorted(os.sched_getaffinity(0))), help="one run on each"
    )
    parser.add_argument("--task", choices=TASKS, help=argparse.SUPPRESS)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    parser.add_argument("files", nargs="*", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        answer_request(TASKS[options.task], options.core, *options.files)
        return
    if not options.out:
        parser.error("--out is needed: the folder of runs and report")
    out = Path(options.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    model = str(Path(options.model).resolve()) if Path(options.model).is_dir() else options.model
    try:
        settings = Settings(model=model, steps=options.steps, every=options.every)
        summary = run(settings, out, options.cores, runs=options.runs.split(","), seeds=options.seeds)
    except (RunError, ValueError) as error:
        sys.exit(f"benchmarks.objectives: {error}")
    print(f"\n{Path(summary['files']['objectives.md']).read_text(encoding='utf-8')}")
    print(*summary["files"].values(), sep="\n")


if __name__ == "__main__":
    main()
