"""Evaluates an encoder on benchmarks: python -m eval.run --config configs/eval_pdf.py --config.path=file.pdf

A config file has `get_config(arg="") -> ConfigDict` (start from `eval.config.default_config`) and
`get_benchmarks(config) -> list[Benchmark | Deferred]`; a `get_encoder(config)` there replaces `smart_jax.load`, a
`get_groups(config) -> list[Group]` says which benchmarks are averaged, a `write_extra(report, folder)`, which returns
paths by name, writes further files, and `FOR_EMBEDDED = True` says that the embedded model, the default, can do the
job. Any key is changed on the command line (--config.adapter=runs/x/adapter); unknown keys are refused, and --help
lists them all.

States are encoded once and kept (config.cache): a run that was killed goes on where it was, and a run with other
methods, weights or adapters does not touch the model. --config.keep_states=False deletes the states of each benchmark
when it is done and keeps its result instead: the states of 30,000 pages take 220 GB. Several processes share the work
(--config.distributed.enabled=True).
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import secrets
import time
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from tqdm.auto import tqdm

import smart_jax
from eval.benchmarks import Benchmark, Deferred, fingerprint
from eval.config import default_config
from eval.environment import environment
from eval.methods import ADAPTER_METHODS, MODEL_METHODS, Options, Result, run_benchmark
from eval.ranking import reference_scores
from eval.reports import Failure, Group, Report, check_groups, markdown, summarise, write
from eval.states import GIB, Cache, Worker
from smart_jax.config_files import run_config_file
from smart_jax.files import EMBEDDED, files_fingerprint, write_whole_text
from smart_jax.retrieval import Retriever, open_adapter
from smart_jax.runtime import DistributedConfig, distributed

STORAGE_DTYPES = ("float32", "float16")
SCORERS = {"fast": smart_jax.score, "reference": reference_scores}

NOT_FOR_EMBEDDED = (
    "the embedded model reads small pages of one font and nothing else: on these benchmarks it will be at chance. Take "
    "--config.model=minilm (texts; configs/minilm_pages.py for those of PDF pages), or a multimodal model such as "
    "--config.model=Qwen/Qwen3-VL-Embedding-2B"
)

_logger = logging.getLogger(__name__)


def evaluate(
    config: ConfigDict,
    benchmarks: Sequence[Benchmark | Deferred],
    encoder: Retriever | None,
    groups: Sequence[Group] = (),
    worker: Worker | None = None,
) -> tuple[Report, dict[str, Path]]:
    """Runs every benchmark and writes the report to config.output.

    A benchmark that fails does not stop the others: the report has it in `failed`, and it is missing in its groups.

    Args:
      config: keys as in `eval.config.default_config`.
      benchmarks: at least one, of distinct names; deferred ones are opened one at a time.
      encoder: the model, or None if config.rows needs none; config.adapter is added with its `with_adapter`.
      groups: as in `eval.reports.summarise`.
      worker: this process, where there are several; the first writes the report, the others write nothing.

    Returns:
      The report, and the paths that were written, by what they are.

    Raises:
      ValueError: no benchmarks, two of one name, an adapter without an encoder, a group whose primary metric is not in
        config.metrics.
      Exception: what the first benchmark raised, where all of them fail.
    """
    worker, start = worker or Worker(), time.perf_counter()
    _check(config, benchmarks, groups)
    if config.adapter and encoder is None:
        raise ValueError("config.adapter needs an encoder: list a model's row in config.rows, or drop the adapter")
    adapter_encoder = _with_adapter(config, encoder) if config.adapter and encoder is not None else None
    cache = _open_cache(config, encoder, worker)
    results: list[Result] = []
    errors: dict[str, Exception] = {}
    for benchmark in tqdm(benchmarks, desc="benchmarks", unit="benchmark", disable=len(benchmarks) == 1):
        try:
            with worker.task(benchmark.name):
                results.append(_result(config, _open(config, benchmark), encoder, adapter_encoder, cache))
        except Exception as error:
            errors[benchmark.name] = error
            _logger.error("benchmark %s failed", benchmark.name, exc_info=error)
    if not results:
        raise next(iter(errors.values()))
    report = dataclasses.replace(
        summarise(results, groups=groups, **config.bootstrap.to_dict()),
        failed=tuple(Failure(name, _message(error)) for name, error in errors.items()),
        config=config.to_dict(),
        environment=environment(),
    )
    return report, {} if worker.index else _write(report, results, time.perf_counter() - start)


def _with_adapter(config: ConfigDict, encoder: Retriever) -> Retriever:
    """Returns the encoder with the config's adapter, at another layer than its own if one is asked for."""
    if config.adapter_layer is None:
        return encoder.with_adapter(config.adapter)
    return encoder.with_adapter(open_adapter(config.adapter).at_layer(config.adapter_layer))


def _check(config: ConfigDict, benchmarks: Sequence[Benchmark | Deferred], groups: Sequence[Group]) -> None:
    """Refuses what cannot be run, before anything is."""
    names = [benchmark.name for benchmark in benchmarks]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"the benchmarks are {names}: there must be at least one, and their names must differ")
    if config.adapter_layer is not None and not config.adapter:
        raise ValueError(
            f"adapter_layer is {config.adapter_layer}, but there is no adapter: set adapter, or leave it out"
        )
    if config.storage_dtype not in STORAGE_DTYPES:
        raise ValueError(f"storage_dtype is {config.storage_dtype!r}: use one of {', '.join(STORAGE_DTYPES)}")
    if config.scorer not in SCORERS:
        raise ValueError(f"scorer is {config.scorer!r}: use one of {', '.join(SCORERS)}")
    check_groups(groups, names, tuple(config.metrics))


def _write(report: Report, results: Sequence[Result], seconds: float) -> dict[str, Path]:
    """Writes the report, and in a file of its own what took how long: results.json is equal from run to run."""
    folder = Path(report.config["output"])
    files = write(report, folder) | {"timing": folder / "timing.json"}
    timing = {"seconds": seconds, "benchmarks": {result.benchmark: result.seconds for result in results}}
    write_whole_text(files["timing"], json.dumps(timing, indent=2) + "\n")
    return files


def _open(config: ConfigDict, benchmark: Benchmark | Deferred) -> Benchmark:
    """Returns the benchmark, or the sample of it that the config asks for."""
    if isinstance(benchmark, Deferred):
        name, benchmark = benchmark.name, benchmark.load()
        if benchmark.name != name:
            raise ValueError(f"benchmark {name} calls itself {benchmark.name} when it is opened: use one name")
    if config.max_queries or config.max_corpus:
        return benchmark.sample(queries=config.max_queries, corpus=config.max_corpus, seed=config.seed)
    return benchmark


def _result(
    config: ConfigDict,
    benchmark: Benchmark,
    encoder: Retriever | None,
    adapter_encoder: Retriever | None,
    cache: Cache | None,
) -> Result:
    """Returns the result of a benchmark; where its states are not kept, that is, so that a run can go on after it."""
    if cache is None or config.keep_states:
        return _run(config, benchmark, encoder, adapter_encoder, cache)
    file = cache.folder_of(benchmark.name) / f"result-{_identity(config, benchmark, cache)}.json"
    if file.is_file():
        return Result.load(file)
    result = _run(config, benchmark, encoder, adapter_encoder, cache)
    cache.drop(benchmark.name)
    if cache.worker.index == 0:
        result.save(file)
    return result


def _identity(config: ConfigDict, benchmark: Benchmark, cache: Cache) -> str:
    """Returns a digest of all that a result depends on."""
    chosen = ("rows", "metrics", "pooled_weight", "late_weight", "scorer", "storage_dtype", "adapter", "adapter_layer")
    about: list[object] = [cache.fingerprint, {name: config[name] for name in chosen}]
    about += [benchmark.qrels, benchmark.candidates, benchmark.texts]
    about += [fingerprint.of_items(side.items, side.ids, side.instruction) for side in benchmark.sides()]
    adapter = Path(config.adapter or "")
    files = sorted(adapter.glob("*")) if adapter.is_dir() else [adapter]
    about.append(files_fingerprint([file for file in files if file.is_file()]) if config.adapter else None)
    return hashlib.blake2b(repr(about).encode(errors="surrogatepass"), digest_size=8).hexdigest()


def _run(
    config: ConfigDict,
    benchmark: Benchmark,
    encoder: Retriever | None,
    adapter_encoder: Retriever | None,
    cache: Cache | None,
) -> Result:
    return run_benchmark(
        encoder,
        benchmark,
        methods=config.rows,
        adapter_encoder=adapter_encoder,
        metrics=tuple(config.metrics),
        cache=cache,
        options=Options(
            batch_size=config.batch_size,
            dtype=config.storage_dtype,
            pooled_weight=config.pooled_weight,
            late_weight=config.late_weight,
            query_block=config.query_block,
            score=SCORERS[config.scorer],
        ),
    )


def _message(error: Exception) -> str:
    return " ".join([f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())])


def _open_cache(config: ConfigDict, encoder: Retriever | None, worker: Worker) -> Cache | None:
    """Returns None where embeddings stay in memory, as asked or because there are none."""
    if config.cache == "" or encoder is None:
        return None
    folder = Path(config.output) / "embeddings" if config.cache is None else Path(config.cache)
    memory = int(config.memory_gib * GIB)
    return Cache(folder, encoder.fingerprint(), memory=memory, worker=worker, layers=config.layers)


def _load_encoder(config: ConfigDict, module: ModuleType) -> Retriever | None:
    needed = config.rows is None or config.adapter or set(config.rows) & {*MODEL_METHODS, *ADAPTER_METHODS}
    if not needed:
        return None
    if hasattr(module, "get_encoder"):
        return module.get_encoder(config)
    if config.model in EMBEDDED and not getattr(module, "FOR_EMBEDDED", False):
        _logger.warning(NOT_FOR_EMBEDDED)
    how = {name: config[name] for name in ("head", "pooling", "prompt", "task")}
    devices = jax.local_devices()
    mesh = smart_jax.make_mesh(**config.mesh.to_dict(), devices=devices) if len(devices) > 1 else None
    settings = {} if config.soft_tokens is None else {"soft_tokens": config.soft_tokens}
    return smart_jax.load(config.model, dtype=config.dtype, mesh=mesh, settings=settings, **how)


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


def main() -> None:
    """Runs the command."""

    def run(config: ConfigDict, module: ModuleType) -> None:
        worker = _join(config)
        benchmarks = module.get_benchmarks(config)
        groups = module.get_groups(config) if hasattr(module, "get_groups") else ()
        report, files = evaluate(config, benchmarks, _load_encoder(config, module), groups, worker)
        if worker.index == 0:
            if hasattr(module, "write_extra"):
                files |= module.write_extra(report, Path(config.output))
            print(f"\n{markdown(report)}")
            print(*files.values(), sep="\n")
        worker.finish()
        if report.failed:
            raise SystemExit(f"{len(report.failed)} of {len(benchmarks)} benchmarks failed")

    example = "python -m eval.run --config configs/eval_tiny.py"
    run_config_file(run, needs="get_benchmarks", example=example, defaults=default_config)


if __name__ == "__main__":
    main()
