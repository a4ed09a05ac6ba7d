"""Evaluates an encoder on benchmarks: python -m eval.run --config configs/eval_pdf.py --config.path=file.pdf

A config file has `get_config(arg="") -> ConfigDict` (start from `eval.config.default_config`) and
`get_benchmarks(config) -> list[Benchmark]`; a `get_encoder(config)` there replaces `smart_jax.load`, and a
`get_groups(config) -> list[Group]` says which benchmarks are averaged. Any key is changed on the command line
(--config.adapter=runs/x/adapter); unknown keys are refused.
"""

from __future__ import annotations

import importlib.util
import platform
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
from absl import app, flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

import smart_jax
from eval.benchmark import Benchmark
from eval.evaluate import ADAPTER_ROWS, MODEL_ROWS, run_benchmark
from eval.groups import Group, check_groups
from eval.report import markdown, summarise, write
from smart_jax import compilation_cache

STORAGE_DTYPES = ("float32", "float16")


def evaluate(
    config: ConfigDict, benchmarks: Sequence[Benchmark], encoder: Any | None, groups: Sequence[Group] = ()
) -> dict[str, Any]:
    """Runs every benchmark, writes the report to config.output and returns it with "files" added.

    Args:
      config: keys as in `eval.config.default_config`.
      benchmarks: at least one, of distinct names.
      encoder: an `Encoder`, or None if config.rows needs none; config.adapter is added with its `with_adapter`.
      groups: as in `eval.report.summarise`.

    Raises:
      ValueError: no benchmarks, two of one name, an adapter without an encoder, a group whose primary metric is not in
        config.metrics, or as `run_benchmark`.
    """
    names = [benchmark.name for benchmark in benchmarks]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"the benchmarks are {names}: there must be at least one, and their names must differ")
    if config.storage_dtype not in STORAGE_DTYPES:
        raise ValueError(f"storage_dtype is {config.storage_dtype!r}: use one of {', '.join(STORAGE_DTYPES)}")
    check_groups(groups, names, tuple(config.metrics))
    adapter_encoder = None
    if config.adapter:
        if encoder is None:
            raise ValueError("config.adapter needs an encoder: list a model's row in config.rows, or drop the adapter")
        adapter_encoder = encoder.with_adapter(config.adapter)
    start = time.perf_counter()
    results = []
    for benchmark in tqdm(benchmarks, desc="benchmarks", unit="benchmark", disable=len(benchmarks) == 1):
        if config.max_queries or config.max_corpus:
            benchmark = benchmark.sample(queries=config.max_queries, corpus=config.max_corpus, seed=config.seed)
        results.append(
            run_benchmark(
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
            )
        )
    summary = summarise(results, groups=groups, **config.bootstrap.to_dict())
    summary |= {"config": config.to_dict(), "environment": _environment(), "seconds": time.perf_counter() - start}
    return summary | {"files": {kind: str(path) for kind, path in write(summary, config.output).items()}}


def _environment() -> dict[str, Any]:
    devices = jax.devices()
    packages = ("smart_jax", "jax", "flax", "transformers", "numpy", "pillow")
    return {
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "packages": {package: version(package) for package in packages},
    }


def _load_encoder(config: ConfigDict, module: ModuleType) -> Any | None:
    needed = config.rows is None or config.adapter or set(config.rows) & {*MODEL_ROWS, *ADAPTER_ROWS}
    if not needed:
        return None
    if hasattr(module, "get_encoder"):
        return module.get_encoder(config)
    how = {name: config[name] for name in ("head", "pooling", "prompt", "task")}
    return smart_jax.load(config.model, dtype=config.dtype, **how)


def _load_module(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"the config {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_benchmarks"):
        raise ValueError(f"the config {path} has no get_benchmarks(config): python -m eval.run needs one")
    return module


def main() -> None:
    """The command."""
    flag = config_flags.DEFINE_config_file("config", None, "A config file; see configs/eval_*.py.", lock_config=True)
    flags.mark_flag_as_required("config")

    def run(argv: Sequence[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
        config = flag.value
        path, _, _ = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")  # the rest is the argument
        module = _load_module(path)
        compilation_cache.enable()
        benchmarks = module.get_benchmarks(config)
        groups = module.get_groups(config) if hasattr(module, "get_groups") else ()
        summary = evaluate(config, benchmarks, _load_encoder(config, module), groups)
        print(f"\n{markdown(summary)}")
        for path in summary["files"].values():
            print(path)

    app.run(run)


if __name__ == "__main__":
    main()
