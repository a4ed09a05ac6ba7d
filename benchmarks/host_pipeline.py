"""Encoding's host side before a stand-in for the device, which takes a fixed time for each row of a batch.

What is measured is how busy the device is kept, when it gets its first batch, and how much memory is in flight; nothing
is computed. With simulated workers nothing is decoded either: each sleeps 45 ms for a page, so that there may be more
of them than cores.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import queue
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

import smart_jax
from benchmarks.processes import QUIET, peak_growth, watched
from smart_jax.encoding import Encoding, Pipeline, Side, Vectors
from smart_jax.inputs import Preprocessor, TokenizedItem, open_rgb, parse_items
from smart_jax.models import Batch

MIB = 2**20
ATTEMPTS = 8  # to have a round that other processes leave alone
PAGE_SECONDS = 0.045  # what a simulated worker sleeps for a page
MAX_PIXELS, MAX_LENGTH = 1_843_200, 8192  # of Qwen3-VL-Embedding
# Widths and heights in pixels, and how often each occurs.
SIZES = {
    "A4": [((1240, 1754), 1)],
    "slides": [((1920, 1080), 3), ((1440, 1080), 1)],
    "mixed": [((1240, 1754), 4), ((1700, 2200), 2), ((1920, 1080), 2), ((800, 600), 1), ((640, 1200), 1)],
    "scans": [((width, height), 1) for width in range(600, 2600, 190) for height in range(700, 3300, 230)],
}


class StandIn:
    """A device that takes its time for a batch, one after another, and whose results are zeros."""

    def __init__(self, seconds: float):
        """Takes the seconds of a row of a batch."""
        self._seconds, self._work = seconds, queue.SimpleQueue[Any]()
        self.started, self.first, self.ended, self.busy, self.rows = time.perf_counter(), 0.0, 0.0, 0.0, 0
        self.flying = 0
        threading.Thread(target=self._run, daemon=True).start()

    def compute(self, batch: Any) -> Any:
        """Starts the computation of a batch."""
        self.first = self.first or time.perf_counter()
        done, shape = threading.Event(), batch.input_ids.shape
        self._work.put((batch, shape[0], done))
        states = _Pending(done, (*shape, 1, 4))
        return Vectors(_Pending(done, (shape[0], 4)), states, _Pending(done, (*shape, 1)))

    def close(self) -> None:
        """Ends the thread."""
        self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            _, rows, done = work
            time.sleep(rows * self._seconds)
            self.busy, self.rows = self.busy + rows * self._seconds, self.rows + rows
            self.ended = time.perf_counter()
            done.set()


class _Pending:
    """An array that is there when the device has computed it."""

    def __init__(self, done: threading.Event, shape: tuple[int, ...]):
        self._done, self._shape = done, shape

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self._done.wait()
        return np.zeros(self._shape, np.float32)


class Outcome(NamedTuple):
    """Figures of the device: share of the time in which it was busy, seconds to the first batch, pages a second."""

    busy: float
    first: float
    speed: float


def run(preprocessor: Preprocessor, items: Sequence[Any], seconds: float, *, rows: int, pipeline: Pipeline) -> Outcome:
    """Encodes items on a stand-in for the device that takes so many seconds a row."""
    device = StandIn(seconds)
    parsed = parse_items(items)
    encoding = Encoding(preprocessor, parsed, device.compute, rows=rows, side=Side(), pipeline=pipeline, progress=False)
    for _ in encoding.batches():
        pass
    device.close()
    took = device.ended - device.started
    return Outcome(device.busy / took, device.first - device.started, len(items) / took)


class Simulated:
    """A preprocessor that sleeps instead of decoding; its pixels take no memory before they are collated."""

    def __init__(self, real: Preprocessor, seconds: float = PAGE_SECONDS):
        """Takes the preprocessor that measures and collates, and the seconds that a page takes."""
        self.real, self._seconds = real, seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def tokenize(self, item: Any, **options: Any) -> TokenizedItem:
        """Returns the item after a while, with zeros for pixels."""
        time.sleep(self._seconds)
        outline = self.real.outline(item, **options)
        count = sum(int(np.prod(grid)) for grid in outline.grids)
        pixels = np.broadcast_to(outline.patches.dtype.type(0), (count, outline.patches.shape[1]))
        return dataclasses.replace(outline, patches=pixels)


class _Counted(Simulated):
    """One that does not collate either, but counts what a batch with a bin for each row would hold."""

    def __init__(self, real: Preprocessor):
        super().__init__(real, 0.0)
        self.used, self.padded, self.shapes = np.zeros(2), np.zeros(2), set[tuple[int, int]]()

    def collate(self, items: Sequence[TokenizedItem], *, batch_size: int, **_: Any) -> Batch:
        """Returns a batch without pixels."""
        patches, tokens = [len(item.patches) for item in items], [len(item) for item in items]
        length, bin_size = self.real.padded_sizes(max(tokens), max(patches))
        shape = bin_size, length
        self.shapes.add(shape)
        self.used += sum(patches), sum(tokens)
        self.padded += len(items) * np.array(shape)
        ids = np.zeros((batch_size, length), np.int32)
        mask = ids > 0
        return Batch(ids, mask, np.stack([ids] * 3), keep_mask=mask, index=ids, vision=None)


class _Lazy(Sequence[Any]):
    """Pages that are made when they are asked for."""

    def __init__(self, pages: Sequence[Any]):
        self._pages = pages

    def __len__(self) -> int:
        return len(self._pages)

    def __getitem__(self, index: Any) -> Any:
        return self._pages[index]


def preprocessor() -> Preprocessor:
    """Returns the embedded model's preprocessor with the sizes of Qwen3-VL-Embedding."""
    settings: dict[str, Any] = {"max_pixels": MAX_PIXELS, "max_length": MAX_LENGTH}
    settings |= {"length_buckets": None, "patch_buckets": None}
    return smart_jax.load("tiny", settings=settings).preprocessor


def blank_pages(name: str, count: int) -> list[np.ndarray]:
    """Returns pages of one of the sets of sizes, shuffled, that take no memory."""
    sizes = [size for size, times in SIZES[name] for _ in range(times)]
    rng = np.random.default_rng(0)
    order = [sizes[i] for i in rng.integers(0, len(sizes), count)]
    return [np.broadcast_to(np.uint8(255), (height, width, 3)) for width, height in order]


def real_pages(count: int, distinct: int = 8) -> list[bytes]:
    """Returns JPEG files of pages of 1240 x 1754 pixels with lines of text and a picture."""
    rng, pages = np.random.default_rng(0), []
    for _ in range(distinct):
        image = Image.new("RGB", (1240, 1754), "white")
        draw = ImageDraw.Draw(image)
        for y in range(120, 1100, 24):
            words = rng.integers(97, 123, (22, 7))
            draw.text((100, y), " ".join("".join(map(chr, word)) for word in words), "black")
        image.paste(Image.fromarray(rng.integers(0, 256, (40, 90, 3), np.uint8)).resize((900, 400)), (170, 1200))
        image.save(data := io.BytesIO(), "JPEG", quality=90)
        pages.append(data.getvalue())
    return list(itertools.islice(itertools.cycle(pages), count))


def simulated_table(made: Preprocessor, pages: int, workers: Sequence[int], seconds: Sequence[float]) -> list[str]:
    """Returns the table of simulated workers."""
    lines = ["| device, ms a page | workers, 45 ms a page | busy | pages/s | at most | first batch |"]
    lines.append("|---|---|---|---|---|---|")
    items = blank_pages("mixed", pages)
    for each in seconds:
        for count in workers:
            found = run(Simulated(made), items, each, rows=8, pipeline=Pipeline(workers=count))
            most = min(1 / each, count / PAGE_SECONDS)
            about = f"{found.busy:.0%} | {found.speed:.1f} | {most:.1f} | {found.first:.2f} s"
            lines.append(f"| {each * 1e3:.0f} | {count} | {about} |")
    return lines


def real_table(made: Preprocessor, pages: int, seconds: Sequence[float]) -> list[str]:
    """Returns the table of real pages, decoded by as many threads as there are cores."""
    lines = [
        "| device, ms a page | threads | busy | pages/s | first batch | memory, MiB |",
        "|---|---|---|---|---|---|",
    ]
    items = real_pages(pages)
    pipeline = Pipeline()
    run(made, items[:16], 0.0, rows=8, pipeline=pipeline)  # imports, and what allocators keep
    for each in seconds:
        found, grown = peak_growth(lambda each=each: run(made, items, each, rows=8, pipeline=pipeline))
        lines.append(
            f"| {each * 1e3:.0f} | {pipeline.threads} | {found.busy:.0%} | {found.speed:.1f} | {found.first:.2f} s | "
            f"{grown / MIB:,.0f} |"
        )
    return lines


def speed_up(made: Preprocessor, pages: int, rounds: int) -> list[str]:
    """Returns the table of one thread against two: preparing pages, and Pillow's resize alone, which holds no lock.

    Rounds count that other processes leave alone, if there are any; the resize shows what two threads can gain at all.
    """
    items = real_pages(pages)
    decoded = [open_rgb(item) for item in items[:8]]
    ways: dict[str, Callable[[int], object]] = {
        "preparation and collation": lambda n: run(made, items, 0.0, rows=8, pipeline=Pipeline(workers=n)),
        "resize alone": lambda n: _resize(decoded, pages, n),
    }
    found: dict[str, list[tuple[bool, float, float]]] = {name: [] for name in ways}
    for _ in range(ATTEMPTS * rounds):
        for name, way in ways.items():
            (one, before), (two, after) = (watched(partial(way, threads)) for threads in (1, 2))
            found[name].append((max(before, after) < QUIET, one, two))
        if all(sum(quiet for quiet, *_ in each) >= rounds for each in found.values()):
            break
    lines = ["| | one thread, pages/s | two threads, pages/s | ratio | rounds |", "|---|---|---|---|---|"]
    for name, each in found.items():
        chosen = [times for times in each if times[0]] or each
        what = "quiet" if chosen[0][0] else "beside others"
        ratios = [one / two for _, one, two in chosen]
        one, two = (f"{pages / statistics.median(times[n] for times in chosen):.1f}" for n in (1, 2))
        spread = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        lines.append(f"| {name} | {one} | {two} | {spread} | {len(chosen)} {what} |")
    return lines


def _resize(pages: Sequence[Image.Image], count: int, threads: int) -> None:
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda i: pages[i % len(pages)].resize((1120, 1600)), range(count)))


def padding_table(made: Preprocessor, pages: int) -> list[str]:
    """Returns the table of how much of the batches is padding, and how many shapes they have."""
    lines = ["| pages | sorted among | padding of patches | of tokens | shapes |", "|---|---|---|---|---|"]
    for name in SIZES:
        items = blank_pages(name, pages)
        for window, given in (("all", items), ("16 batches", _Lazy(items))):
            counted = _Counted(made)
            run(counted, given, 0.0, rows=8, pipeline=Pipeline(memory=2**33))
            patches, tokens = 1 - counted.used / counted.padded
            lines.append(f"| {name} | {window} | {patches:.1%} | {tokens:.1%} | {len(counted.shapes)} |")
    return lines
