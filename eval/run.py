"""Evaluates an encoder on benchmarks: python -m eval.run --config configs/eval_pdf.py --config.path=file.pdf

A config file has `get_config(arg="") -> ConfigDict` (start from `eval.config.default_config`) and
`get_benchmarks(config) -> list[Benchmark | Deferred]`; a `get_encoder(config)` there replaces `smart_jax.load`, a
`get_groups(config) -> list[Group]` says which benchmarks are averaged, and a `write_extra(summary, folder) -> dict[str,
Path]` writes further files. Any key is changed on the command line (--config.adapter=runs/x/adapter); unknown keys are
refused.

States are encoded once and kept (config.cache): a run that was killed goes on where it was, and a run with other rows,
weights or adapters does not touch the model. Several processes share the work (--config.distributed.enabled=True).
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from tqdm import tqdm

import smart_jax
from eval.benchmarks.benchmark import Benchmark, Deferred
from eval.benchmarks.benchmark_groups import Group, check_groups
from eval.environment import environment
from eval.evaluate import ADAPTER_ROWS, MODEL_ROWS, Result, run_benchmark
from eval.ranking import reference
from eval.reports.report import markdown, summarise, write
from eval.states.cache import GIB, Cache
from eval.states.workers import Worker
from smart_jax.cli import run_config_file
from smart_jax.runtime import DistributedConfig, distributed

STORAGE_DTYPES = ("float32", "float16")
SCORERS = {"fast": smart_jax.score, "reference": reference.scores}

_logger = logging.getLogger(__name__)


def evaluate(
    config: ConfigDict,
    benchmarks: Sequence[Benchmark | Deferred],
    encoder: Any | None,
    groups: Sequence[Group] = (),
    worker: Worker | None = None,
) -> dict[str, Any]:
    """Runs every benchmark, writes the report to config.output and returns it with "files" added.

    A benchmark that fails does not stop the others: it is in "failed", [{"name", "error"}], and missing in its groups.

    Args:
      config: keys as in `eval.config.default_config`.
      benchmarks: at least one, of distinct names; deferred ones are opened one at a time.
      encoder: an `Encoder`, or None if config.rows needs none; config.adapter is added with its `with_adapter`.
      groups: as in `eval.reports.report.summarise`.
      worker: this process, where there are several; the first writes the report, the others return it without files.

    Raises:
      ValueError: no benchmarks, two of one name, an adapter without an encoder, a group whose primary metric is not in
        config.metrics.
      Exception: what the first benchmark raised, where all of them fail.
    """
    worker = worker or Worker()
    names = [benchmark.name for benchmark in benchmarks]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"the benchmarks are {names}: there must be at least one, and their names must differ")
    if config.storage_dtype not in STORAGE_DTYPES:
        raise ValueError(f"storage_dtype is {config.storage_dtype!r}: use one of {', '.join(STORAGE_DTYPES)}")
    if config.scorer not in SCORERS:
        raise ValueError(f"scorer is {config.scorer!r}: use one of {', '.join(SCORERS)}")
    check_groups(groups, names, tuple(config.metrics))
    adapter_encoder = None
    if config.adapter:
        if encoder is None:
            raise ValueError("config.adapter needs an encoder: list a model's row in config.rows, or drop the adapter")
        adapter_encoder = encoder.with_adapter(config.adapter)
    cache = _open_cache(config, encoder, worker)
    start = time.perf_counter()
    results: list[Result] = []
    errors: dict[str, Exception] = {}
    for benchmark in tqdm(benchmarks, desc="benchmarks", unit="benchmark", disable=len(benchmarks) == 1):
        try:
            with worker.task(benchmark.name):
                results.append(_run(config, benchmark, encoder, adapter_encoder, cache))
        except Exception as error:
            errors[benchmark.name] = error
            _logger.error("benchmark %s failed", benchmark.name, exc_info=error)
    if not results:
        raise next(iter(errors.values()))
    summary = summarise(results, groups=groups, **config.bootstrap.to_dict())
    summary |= {
        "failed": [{"name": name, "error": _message(error)} for name, error in errors.items()],
        "config": config.to_dict(),
        "environment": environment(),
    }
    if worker.index:
        return summary
    files = write(summary, config.output)
    files["timing"] = Path(config.output) / "timing.json"
    timing = {"seconds": time.perf_counter() - start, "benchmarks": {r.benchmark: r.seconds for r in results}}
    files["timing"].write_text(json.dumps(timing, indent=2) + "\n", encoding="utf-8")
    return summary | {"files": {kind: str(path) for kind, path in files.items()}}


def _run(
    config: ConfigDict, benchmark: Benchmark | Deferred, encoder: Any, adapter_encoder: Any, cache: Cache | None
) -> Result:
    if isinstance(benchmark, Deferred):
        name, benchmark = benchmark.name, benchmark.load()
        if benchmark.name != name:
            raise ValueError(f"benchmark {name} calls itself {benchmark.name} when it is opened: use one name")
    if config.max_queries or config.max_corpus:
        benchmark = benchmark.sample(queries=config.max_queries, corpus=config.max_corpus, seed=config.seed)
    return run_benchmark(
        encoder,
        benchmark,
        rows=config.rows,
        adapter_encoder=adapter_encoder,
        metrics=tuple(config.metrics),
        pooled_weight=config.pooled_weight,
        late_weight=config.late_weight,
        batch_size=config.batch_size,
        dtype=np.dtype(config.storage_dtype),
        query_block=config.query_block,
        cache=cache,
        layers=config.layers,
        score=SCORERS[config.scorer],
    )


def _message(error: Exception) -> str:
    return " ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])


def _open_cache(config: ConfigDict, encoder: Any | None, worker: Worker) -> Cache | None:
    """None = embeddings stay in memory, as asked or because there are none."""
    if config.cache == "" or encoder is None:
        return None
    folder = Path(config.output) / "embeddings" if config.cache is None else Path(config.cache)
    return Cache(folder, encoder.fingerprint(), memory=int(config.memory_gib * GIB), worker=worker)


def _load_encoder(config: ConfigDict, module: ModuleType) -> Any | None:
    needed = config.rows is None or config.adapter or set(config.rows) & {*MODEL_ROWS, *ADAPTER_ROWS}
    if not needed:
        return None
    if hasattr(module, "get_encoder"):
        return module.get_encoder(config)
    how = {name: config[name] for name in ("head", "pooling", "prompt", "task")}
    devices = jax.local_devices()
    mesh = smart_jax.make_mesh(**config.mesh.to_dict(), devices=devices) if len(devices) > 1 else None
    return smart_jax.load(config.model, dtype=config.dtype, mesh=mesh, **how)


def _join(config: ConfigDict) -> Worker:
    """This process among those that share the evaluation."""
    distributed.initialize(DistributedConfig(**config.distributed))
    count, index = jax.process_count(), jax.process_index()
    if count == 1:
        return Worker()
    if not config.cache:
        raise ValueError("several processes exchange their work through files: set config.cache to a folder all see")
    token = np.frombuffer(secrets.token_bytes(8), np.uint8)
    run = bytes(np.asarray(multihost_utils.broadcast_one_to_all(token)).astype(np.uint8)).hex()
    return Worker(index, count, Path(config.cache) / "runs" / run)


def _extra(module: ModuleType, summary: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    return module.write_extra(summary, folder) if hasattr(module, "write_extra") else {}


def main() -> None:
    """The command."""

    def run(config: ConfigDict, module: ModuleType) -> None:
        worker = _join(config)
        benchmarks = module.get_benchmarks(config)
        groups = module.get_groups(config) if hasattr(module, "get_groups") else ()
        summary = evaluate(config, benchmarks, _load_encoder(config, module), groups, worker)
        if worker.index == 0:
            files = summary["files"] | _extra(module, summary, Path(config.output))
            print(f"\n{markdown(summary)}")
            for path in files.values():
                print(path)
        worker.finish()
        if failed := summary["failed"]:
            raise SystemExit(f"{len(failed)} of {len(benchmarks)} benchmarks failed")

    run_config_file(run, needs="get_benchmarks", example="python -m eval.run --config configs/eval_tiny.py")


if __name__ == "__main__":
    main()
