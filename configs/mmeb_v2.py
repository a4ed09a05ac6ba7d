"""MMEB-V2: 36 image, 18 video and 24 visual-document tasks, task by task.

    python -m eval.run --config configs/mmeb_v2.py --config.path=FOLDER --config.model=Qwen/Qwen3-VL-Embedding-2B
    python -m eval.run --config configs/mmeb_v2.py --config.path=FOLDER --config.modality=visdoc
    python -m eval.run --config configs/mmeb_v2.py:complete --config.path=FOLDER --config.tasks=MSCOCO_t2i,K700

FOLDER is a copy of the hub's data set TIGER-Lab/MMEB-V2 with its archives unpacked, for images and frames, and holds
the tasks' annotations, each as FOLDER/OWNER/NAME of its repository; `python -m eval.benchmarks.mmeb_v2 FOLDER` prints
the commands that get what it lacks. A task that lacks something is reported as missing;
`eval/benchmarks/mmeb_v2/table.py` has all that is read. The archive of document images may be left out: pages that it
lacks are read from their sets.

Prints and writes to results/mmeb_v2 a table of the whole benchmark, of the 41 retrieval tasks that the paper of SMART
evaluates (arXiv:2605.24938), of each modality and of each of its categories, in
hit@1 (images, videos) and nDCG@5 (visual documents), with the average over the tasks that were run and the published
figures of the model, if `eval/reports/published.toml` has some; then that of every task. The folder `leaderboard` there
has each method in the format of the MMEB leaderboard: with the metrics that were measured, which are all of its metrics
with `:complete`; it is not written where only a sample is evaluated.

Expected, from others and not measured here: Qwen3-VL-Embedding-2B, pooled, 73.2 (75.0 / 61.9 / 79.2), -8B 77.8
(80.1 / 67.1 / 82.4).
"""

from functools import partial
from pathlib import Path

from ml_collections import ConfigDict

from eval.benchmarks import Deferred
from eval.benchmarks.mmeb_v2 import Task, groups, load, select
from eval.config import default_config
from eval.reports import Group, Report, leaderboard, published

METRICS = ("hit@1", "hit@10", "ndcg@5", "ndcg@10")


def get_config(arg: str = "") -> ConfigDict:
    """Returns the settings; the argument is "complete" for every metric of the leaderboard's files, else nothing."""
    if arg not in ("", "complete"):
        raise ValueError(f'the argument is {arg!r}: use "complete" or none, and --config.path for the folder')
    config = default_config()
    config.path = ""  # the MMEB-V2 folder
    config.tasks = ""  # names, separated by commas; "" = all
    config.modality = ""  # image, video, visdoc, separated by commas; "" = all
    config.metrics = leaderboard.METRICS if arg else METRICS
    config.published = ""  # models whose published figures are printed too, or all; "" = the one evaluated
    config.output = "results/mmeb_v2"
    return config


def get_benchmarks(config: ConfigDict) -> list[Deferred]:
    """Returns the tasks that are asked for, each opened when its turn comes.

    Raises:
      ValueError: no path, or an unknown task or modality.
      FileNotFoundError: there is no such folder.
    """
    root = Path(config.path)
    get = "`hf download --repo-type dataset TIGER-Lab/MMEB-V2 --local-dir FOLDER` gets it"
    if not config.path:
        raise ValueError(f"config.path is not set: it is the MMEB-V2 folder. {get}")
    if not root.is_dir():
        raise FileNotFoundError(f"there is no folder '{root}': config.path is the MMEB-V2 folder. {get}")
    return [Deferred(task.name, partial(load, task, root)) for task in _chosen(config)]


def get_groups(config: ConfigDict) -> list[Group]:
    """Returns all tasks, the paper's 41, each modality and its categories; those without a chosen task are left out.

    What is published is left out where only a sample is evaluated.
    """
    names = {task.name for task in _chosen(config)}
    sampled = config.max_queries or config.max_corpus
    figures = [] if sampled else published.choose(published.load(), config.published, config.model)
    return [
        Group(name, {task.name: task.metric for task in tasks}, figures)
        for name, tasks in groups().items()
        if names & {task.name for task in tasks}
    ]


def write_extra(report: Report, folder: str | Path) -> dict[str, Path]:
    """Writes the leaderboard's files, see `eval.reports.leaderboard`; none of a sample."""
    config = report.config
    return {} if config.get("max_queries") or config.get("max_corpus") else leaderboard.write(report, folder)


def _chosen(config: ConfigDict) -> list[Task]:
    names, modalities = ([part.strip() for part in text.split(",")] for text in (config.tasks, config.modality))
    return select([name for name in names if name], [modality for modality in modalities if modality])
