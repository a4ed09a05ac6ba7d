"""Everything: the 78 tasks of MMEB-V2 and the sets of ViDoRe V1, V2 and V3, in one run.

    python -m eval.run --config configs/full_eval.py --config.path=FOLDER --config.model=Qwen/Qwen3-VL-Embedding-2B

FOLDER is laid out as configs/mmeb_v2.py has it, ViDoRe's sets too as FOLDER/OWNER/NAME; `python -m
eval.benchmarks.mmeb_v2 FOLDER` prints what gets the tasks that it lacks. What is not there is reported as missing, and
the rest is run. Sets that both benchmarks have are run once.

Prints and writes to results/full the tables of configs/mmeb_v2.py and of configs/vidore_eval.py.
"""

from pathlib import Path

from ml_collections import ConfigDict

from configs import mmeb_v2, vidore_eval
from eval.benchmarks import Deferred, vidore
from eval.reports import Group, Report


def get_config(arg: str = "") -> ConfigDict:
    """Returns the settings; the argument is as in configs/mmeb_v2.py."""
    config = mmeb_v2.get_config(arg)
    with config.unlocked():
        config.version = ""  # of ViDoRe, as in configs/vidore_eval.py
        config.sets = ""
    config.output = "results/full"
    return config


def get_benchmarks(config: ConfigDict) -> list[Deferred]:
    """Returns MMEB-V2's tasks, then the other sets of ViDoRe that are there; errors as in configs/mmeb_v2.py."""
    tasks = mmeb_v2.get_benchmarks(config)
    names = {task.name for task in tasks}
    chosen = vidore.select(vidore_eval.parts(config.sets), vidore_eval.parts(config.version))
    there = any(vidore.find(entry, config.path) for entry in chosen if entry.name not in names)
    return [*tasks, *(b for b in vidore_eval.get_benchmarks(config) if b.name not in names)] if there else tasks


def get_groups(config: ConfigDict) -> list[Group]:
    """Returns the groups of both."""
    return [*mmeb_v2.get_groups(config), *vidore_eval.get_groups(config)]


def write_extra(report: Report, folder: str | Path) -> dict[str, Path]:
    """Writes the same files as configs/mmeb_v2.py."""
    return mmeb_v2.write_extra(report, folder)
