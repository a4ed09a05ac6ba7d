"""An adapter's run on the demo's data with its frozen states computed once, and at every step.

    python -m benchmarks.cached_states --data build/demo/data
    python -m benchmarks.cached_states --data build/demo/data --steps 60 --dtype int8

`make demo` writes the data (or the first two commands of configs/tiny.py). Each run is a process of its own and follows
configs/tiny.py without its last evaluation. The figures are CPU seconds of the processes, of which the whole includes
starting, loading, compiling and encoding; a step's is the median over the steps after the first ten. The run that
computes the states at every step takes `--plain` steps, and its whole is extrapolated to `--steps` by its median step.
"Loss" is the largest difference over the steps that both have taken.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

COLUMNS = "states", "dtype", "whole, CPU s", "before the first step", "ms a step [min, max]", "MB", "loss differs by"
HEADER = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def take_steps(data: Path, folder: Path, steps: int, total: int, states: str, dtype: str) -> dict[str, Any]:
    """Returns what the first steps of a run took, and their losses."""
    from configs import tiny
    from smart_jax.runtime import make_mesh
    from train.config import from_config_dict
    from train.posttrain import open_batches, open_data
    from train.training import Training

    values = tiny.get_config()
    values.data.dir, values.data.cache_states, values.data.cache_dtype = str(data), states, dtype
    config, mesh = from_config_dict(values), make_mesh(1, 1, 1)
    training = Training(config, mesh, total)
    folder.mkdir(exist_ok=True)
    cache = training.keep_states(folder, total)
    examples = open_data(config, mesh, cache)
    batches = open_batches(training.batcher, examples, 0, mesh, config.data.prefetch)
    clock, losses = [time.process_time()], []
    for _ in range(steps):
        losses.append(float(training.update(next(batches).batch)["loss"]))
        clock.append(time.process_time())
    batches.close()
    size = 0 if cache is None else cache.queries.bytes + cache.documents.bytes
    return {"clock": clock, "losses": losses, "bytes": size}


def run(options: argparse.Namespace, folder: Path, steps: int, states: str, dtype: str) -> dict[str, Any]:
    """Returns the same of a process of its own."""
    command = [sys.executable, "-m", "benchmarks.cached_states", "--child", "--data", str(options.data)]
    command += ["--out", str(folder), "--plain", str(steps), "--steps", str(options.steps)]
    done = subprocess.run(
        [*command, "--states", states, "--dtype", dtype], stdout=subprocess.PIPE, text=True, check=True
    )
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def row(name: str, dtype: str, taken: dict[str, Any], steps: int, plain: dict[str, Any]) -> str:
    """Returns a line of the table."""
    clock, losses = taken["clock"], taken["losses"]
    each = [1000 * (b - a) for a, b in itertools.pairwise(clock[10:])]
    whole = clock[-1] + (steps - len(losses)) * statistics.median(each) / 1000
    difference = max(abs(a - b) for a, b in zip(losses, plain["losses"], strict=False))
    spread = f"{statistics.median(each):.0f} [{min(each):.0f}, {max(each):.0f}]"
    cells = f"{whole:.0f}", f"{clock[0]:.0f}", spread, f"{taken['bytes'] / 1e6:.0f}", f"{difference:.1e}"
    return f"| {name} | {dtype} | {' | '.join(cells)} |"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set 'pages'")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--plain", type=int, default=60, help="steps of the run that computes the states each time")
    parser.add_argument("--dtype", action="append", choices=("float32", "bfloat16", "int8"), help="float32 by default")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--states", help=argparse.SUPPRESS)
    options = parser.parse_args()
    dtypes = options.dtype or ["float32"]
    if options.child:
        arguments = options.data, options.out, options.plain, options.steps, options.states, dtypes[0]
        print(json.dumps(take_steps(*arguments)))
        return
    print(HEADER, flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        plain = run(options, Path(scratch) / "plain", options.plain, "off", "float32")
        print(row("at every step", "float32", plain, options.steps, plain), flush=True)
        for dtype in dtypes:
            cached = run(options, Path(scratch) / dtype, options.steps, "auto", dtype)
            print(row("once", dtype, cached, options.steps, plain), flush=True)


if __name__ == "__main__":
    main()
