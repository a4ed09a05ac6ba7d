"""The host's part of training: conversion, and batches from a data set on disk, on the CPU alone.

`python -m benchmarks.host_training [--pages 48]` measures on pages of 1240 x 1754 pixels, JPEG, of which the
preprocessing of Qwen3-VL makes about 1,750 visual tokens. No model is needed but for its preprocessing.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

import smart_jax
from benchmarks.processes import QUIET, watched
from smart_jax.inputs import Preprocessor
from train.config import DataConfig
from train.data import Batcher, Examples, Split, content_hash, convert, open_split

PAGE = (1240, 1754)  # width and height
MAX_PIXELS = 1_843_200
BATCH = 8
FILES = 2
ATTEMPTS = 8  # to have a round that counts, which other processes leave alone


class Figures(NamedTuple):
    """A measured quantity: its name, its values, and what they are."""

    name: str
    values: list[float]
    unit: str

    def row(self) -> str:
        """Returns a row of the table."""
        low, middle, high = min(self.values), statistics.median(self.values), max(self.values)
        return f"| {self.name} | {middle:.3g} [{low:.3g}, {high:.3g}] {self.unit} |"


def measure(pages: int = 48, rounds: int = 5) -> list[Figures]:
    """Measures conversion and preparation.

    Args:
      pages: number of pages, of which each round takes all.
      rounds: number of rounds, in which what is compared takes turns.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, data = Path(folder) / "source", Path(folder) / "data"
        bytes_of_all = write_pages(source, pages)
        figures = _conversion(source, data, pages, bytes_of_all, rounds)
        split = open_split(data, "pages")
        return figures + _preparation(split, rounds) + _threads(split, rounds)


def write_pages(folder: Path, count: int) -> int:
    """Writes pages and queries in parquet files; returns the pages' bytes."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    rows = [{"query": f"what does page {i} say", "image": {"bytes": page(rng), "path": None}} for i in range(count)]
    for part in range(FILES):
        some = rows[part * count // FILES : (part + 1) * count // FILES]
        pq.write_table(pa.Table.from_pylist(some), folder / f"train-{part:05d}-of-{FILES:05d}.parquet")
    return sum(len(row["image"]["bytes"]) for row in rows)


def page(rng: np.random.Generator) -> bytes:
    """Draws lines of text and a noisy picture on a page, and encodes it as JPEG."""
    image = Image.new("RGB", PAGE, "white")
    draw = ImageDraw.Draw(image)
    for y in range(60, 1200, 22):
        words = "".join(map(chr, rng.integers(97, 123, 100)))
        draw.text((80, y), words, fill="black", font_size=18)
    noise = rng.integers(0, 256, (25, 50, 3), np.uint8)
    image.paste(Image.fromarray(noise).resize((1000, 500), Image.Resampling.BICUBIC), (120, 1220))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _conversion(source: Path, data: Path, pages: int, size: int, rounds: int) -> list[Figures]:
    def run(processes: int) -> Callable[[], object]:
        return lambda: convert(
            source, "pages", data, validation_ratio=0, shards=FILES, overwrite=True, processes=processes
        )

    cpu = _clocked([run(1)], rounds, time.process_time)[0]
    return [
        Figures("conversion, one process, CPU time", [1e3 * t / pages for t in cpu], "ms a page"),
        Figures("conversion, one process, rate", [size / t / 1e6 for t in cpu], "MB/s of CPU time"),
    ]


def _preparation(split: Split, rounds: int) -> list[Figures]:
    preprocessor = _preprocessor()
    batcher = _batcher(preprocessor, threads=1)
    items = [preprocessor.tokenize(split[i].document) for i in range(BATCH)]
    examples = [split[i] for i in range(len(split))]
    tasks: dict[str, tuple[Callable[[], object], int]] = {
        "reading an example": (lambda: [split[i] for i in range(len(split))], len(split)),
        "digest of its page, were it not stored": (
            lambda: [content_hash(example.document) for example in examples],
            len(split),
        ),
        "collating": (lambda: preprocessor.collate(items), BATCH),
        "all, from the data set to the batch": (partial(_drain, batcher, split), len(split)),
    }
    times = _clocked([run for run, _ in tasks.values()], rounds, time.process_time)
    return [
        Figures(f"{name}, CPU time", [1e3 * t / count for t in some], "ms an example")
        for (name, (_, count)), some in zip(tasks.items(), times, strict=True)
    ]


def _threads(split: Split, rounds: int) -> list[Figures]:
    """Compares two threads with one, in rounds that other processes leave alone, as far as there are such."""
    preprocessor = _preprocessor()
    runs = [partial(_drain, _batcher(preprocessor, threads), split) for threads in (1, 2)]
    found: list[tuple[float, float]] = []  # the speed-up of a round, and what others took meanwhile
    for _ in range(1 + ATTEMPTS * rounds):
        (alone, before), (together, after) = (watched(run) for run in runs)
        found.append((alone / together, max(before, after)))
        quiet = [speed_up for speed_up, others in found[1:] if others < QUIET]
        if len(quiet) >= rounds:
            break
    values = quiet or [speed_up for speed_up, _ in found[1:]]
    return [Figures(f"two threads, speed-up, {len(quiet)} quiet rounds", values, "times")]


def _drain(batcher: Batcher, split: Split) -> None:
    for _ in _prepared(batcher, split):
        pass


def _prepared(batcher: Batcher, split: Split) -> Iterable[object]:
    return batcher.prepare(Examples(split, BATCH, epochs=1))


def _batcher(preprocessor: Preprocessor, threads: int) -> Batcher:
    mesh = smart_jax.make_mesh(devices=jax.devices()[:1])
    return Batcher(preprocessor, DataConfig(workers=threads), mesh)


def _preprocessor() -> Preprocessor:
    return smart_jax.load("tiny", settings={"max_pixels": MAX_PIXELS, "max_length": 8192}).preprocessor


def _clocked(runs: Sequence[Callable[[], object]], rounds: int, clock: Callable[[], float]) -> list[list[float]]:
    """Returns the seconds of each run in rounds that come after a first, in which the runs take turns."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(1 + rounds):
        for some, run in zip(times, runs, strict=True):
            start = clock()
            run()
            some.append(clock() - start)
    return [some[1:] for some in times]


def table(figures: Iterable[Figures]) -> str:
    """Returns a Markdown table."""
    return "\n".join(["| | median [min, max] |", "| --- | --- |", *(each.row() for each in figures)])


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.host_training", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--pages", type=int, default=48, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores")
    print(table(measure(options.pages, options.rounds)))


if __name__ == "__main__":
    main()
