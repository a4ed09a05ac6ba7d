"""The tasks of `eval.benchmarks.mmeb_v2.table` as benchmarks, one loader per layout.

A folder holds them all: that of the hub's TIGER-Lab/MMEB-V2, its archives unpacked, for images and frames; and the
annotations, each in a copy of its hub repository, FOLDER/OWNER/NAME.

Candidates are named as in the reference, for the tie-breaking hash: by their text, their path, their path and text,
their video or their page. Clips of moment retrieval, there named by the absolute path of their frames, are named by
the path inside the MMEB-V2 folder, so that ties are broken alike on every machine. Queries are named by the number of
their record.

nDCG is trec_eval's. The reference pairs a query's pages with their grades through an unordered set, which can
exchange grades where a query has pages of several.
"""

from __future__ import annotations

import itertools
import logging
from pathlib import Path

from eval.benchmarks.benchmark import Benchmark
from eval.benchmarks.mmeb_v2 import layouts, records
from eval.benchmarks.mmeb_v2.collector import Collector
from eval.benchmarks.mmeb_v2.image_tasks import read_pairs
from eval.benchmarks.mmeb_v2.media import Media
from eval.benchmarks.mmeb_v2.page_tasks import how_to_get_set, read_pages, set_folder
from eval.benchmarks.mmeb_v2.table import Task, how_to_unpack
from eval.benchmarks.mmeb_v2.video_tasks import (
    read_captions,
    read_classes,
    read_clips,
    read_moments,
    read_questions,
)

_logger = logging.getLogger(__name__)


def load(task: Task, root: str | Path) -> Benchmark:
    """Opens a task; images and frames are looked for, not read.

    Args:
      task: of the table.
      root: the MMEB-V2 folder.

    Raises:
      FileNotFoundError: annotations, images or frames are missing; the message says what to download and where it goes.
      ValueError: a record or column of the annotations is not as the task's layout says; the message names them.

    Example:
      >>> from eval.benchmarks.mmeb_v2 import select
      >>> load(select(["CIRR"])[0], "no-such-folder")  # doctest: +ELLIPSIS
      Traceback (most recent call last):
      FileNotFoundError: task CIRR: ...
    """
    if isinstance(task.layout, layouts.Pages):
        benchmark = read_pages(task, task.layout, Path(root))
    else:
        try:
            benchmark = _annotated(task, Path(root))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"task {task.name}: {error}") from error
        except ValueError as error:
            raise ValueError(f"task {task.name}: {error}") from error
    if len(benchmark.queries) != task.queries:
        _logger.warning(
            "task %s has %d queries, on the leaderboard %d: these are others, or not all",
            task.name,
            len(benchmark.queries),
            task.queries,
        )
    return benchmark


def lacking(task: Task, root: str | Path) -> list[str]:
    """Returns commands that get what a task lacks, as far as its files of annotations and folders of media show it.

    Example:
      >>> from eval.benchmarks.mmeb_v2 import select
      >>> commands = lacking(select(["CIRR"])[0], "no-such-folder")
      >>> len(commands), commands[0].startswith("hf download")
      (2, True)
    """
    root = Path(root)
    if isinstance(task.layout, layouts.Pages):
        return [] if set_folder(task.layout, root) else [how_to_get_set(task.layout, root)]
    assert task.source is not None
    commands = [] if records.are_there(task.source, root) else [records.how_to_get(task.source, root)]
    if not any((root / name).is_dir() for name in task.media):
        commands.append(how_to_unpack(task.archive, root))
    return commands


def _annotated(task: Task, root: Path) -> Benchmark:
    assert task.source is not None
    stored = records.read(task.source, root)
    first = next(stored)  # missing annotations are reported before missing images
    annotations = itertools.islice(itertools.chain([first], stored), task.limit)
    media, collector = Media(task, root), Collector(task)
    match task.layout:
        case layouts.Pairs():
            read_pairs(task.layout, annotations, media, collector)
        case layouts.Classes():
            read_classes(task.layout, annotations, media, collector)
        case layouts.Captions():
            read_captions(task.layout, annotations, media, collector)
        case layouts.Questions():
            read_questions(task.layout, annotations, media, collector)
        case layouts.Moments():
            read_moments(annotations, media, collector)
        case layouts.Clips():
            read_clips(annotations, media, collector)
    media.check()
    return collector.benchmark()
