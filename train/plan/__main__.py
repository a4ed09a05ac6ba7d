"""Says what a run will take: `python -m train.plan --config FILE[:ARG] [--topology v5e:2x4] [--config.KEY=VALUE ...]`.

    python -m train.plan --config configs/vidore.py                          # on the devices that are here
    python -m train.plan --config configs/vidore.py --topology v5e:2x4 --topology v5p:2x2x2
    python -m train.plan --config configs/vidore.py --topology h100x8 --json             # or --table
    python -m train.plan --config configs/vidore.py --topology v6e:2x4 --nocompile       # arithmetic alone, in a second

Neither the devices nor the model's weights need be here. TPUs are compiled for by libtpu, which needs no TPU
(`pip install --no-deps --target DIR "libtpu==0.0.42.*"`, and PYTHONPATH=DIR), in 1 to 20 minutes of one core.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from types import ModuleType

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from smart_jax.config_files import run_config_file
from train.config import TrainConfig, from_config_dict
from train.plan.machines import machine, this_machine
from train.plan.planning import plan
from train.plan.report import TABLE, Plan, as_json, as_row, as_text

TOPOLOGY = flags.DEFINE_multi_string("topology", [], "Machines: v5e:2x4, v5p:2x2x2, v6e:2x4, h100x8, cpu, ...")
JSON = flags.DEFINE_bool("json", False, "Print JSON, a line for each machine.")
ROWS = flags.DEFINE_bool("table", False, "Print a table, a line for each machine.")
COMPILE = flags.DEFINE_bool("compile", True, "Ask a compiler, too; off = arithmetic alone.")


def main() -> None:
    """Runs the command."""
    example = "python -m train.plan --config configs/vidore.py --topology v5e:2x4"
    run_config_file(run, example=example, defaults=TrainConfig)


def run(values: ConfigDict, module: ModuleType) -> None:
    """Prints the plan for each machine."""
    try:
        config = from_config_dict(values)
        machines = [machine(name) for name in TOPOLOGY.value]
        if machines:
            _without_devices(max(machine.devices for machine in machines))
        file, *argument = config_flags.get_config_filename(flags.FLAGS["config"]).split(":", 1)
        name = ":".join([Path(file).name, *argument])
        if ROWS.value:
            print(TABLE)
        for where in machines or [this_machine()]:
            found = plan(config, where, name=name, compile=COMPILE.value)
            print(_shown(found), flush=True)
    except (ModuleNotFoundError, FileNotFoundError, ConnectionError, ValueError) as error:
        sys.exit(str(error))


def _shown(found: Plan) -> str:
    if JSON.value:
        return json.dumps(as_json(found))
    return as_row(found) if ROWS.value else f"{as_text(found)}\n"


def _without_devices(count: int) -> None:
    """Starts jax on virtual devices of this CPU, scheduled for little memory as accelerators' programs are."""
    os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}  # libtpu looks for no TPU
    flags = "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)


if __name__ == "__main__":
    main()
