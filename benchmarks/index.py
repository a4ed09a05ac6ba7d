"""The local index against its bars: adding, opening, searching and disk, without the model's share.

    python -m benchmarks.index                    # 100,000 pages, and 1,000,000 that are opened: 5 GB of disk, minutes
    python -m benchmarks.index --pages 2000 --opened 5000
    python -m benchmarks.index --stages           # the first stages that keep centroids or signs of the tokens, too

Pages are synthetic: 100 tokens x 128, float16, a pooled vector of 128 and an id with two values of metadata each. One
process of one thread on one core does all of it. Searches are measured in CPU time, the others in wall time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import answer_request, cpu_seconds, in_process
from smart_jax import Embeddings, Index, search

TOKENS, WIDTH, QUERY_TOKENS = 100, 128, 32  # of a page, and of a query
BATCH = 1000  # pages of one transaction
ROUNDS = 9
CANDIDATES = 200


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Returns random unit vectors, float32."""
    x = rng.standard_normal(shape, np.float32)
    return np.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True))


def batches(pages: int, tokens: int = TOKENS) -> list[Embeddings]:
    """Returns pages in batches that share their tokens' memory, which makes no difference to an index."""
    rng = np.random.default_rng(0)
    shared = unit(rng, BATCH * tokens, WIDTH).astype(np.float16)
    sizes = [min(BATCH, pages - first) for first in range(0, pages, BATCH)]
    return [
        Embeddings.from_checked(unit(rng, n, WIDTH), shared[: n * tokens], np.arange(n + 1, dtype=np.int64) * tokens)
        for n in sizes
    ]


def facts(first: int, count: int) -> tuple[list[str], list[dict[str, Any]]]:
    """Returns ids and metadata of pages."""
    numbers = range(first, first + count)
    return [f"report-{i // 40}.pdf#{i % 40}" for i in numbers], [{"year": 1990 + i % 35, "team": "a"} for i in numbers]


def fill(index: Index, parts: Sequence[Embeddings]) -> tuple[float, float]:
    """Adds pages, and returns the seconds that it takes, and those of the processor."""
    prepared, first = [], 0
    for part in parts:
        names, metadata = facts(first, len(part))
        prepared.append((part, names, metadata))
        first += len(part)
    start, cpu = time.perf_counter(), time.process_time()
    for part, names, metadata in prepared:
        index.add_embeddings(part, names, metadata)
    return time.perf_counter() - start, time.process_time() - cpu


def plain_seconds(path: Path, parts: Sequence[Embeddings]) -> float:
    """Returns the seconds that it takes to write the same vectors to a plain file and flush them, batch by batch."""
    start = time.perf_counter()
    with path.open("wb") as file:
        for part in parts:
            file.write(part.tokens.data)
            file.write(part.pooled.data)
            file.flush()
            os.fdatasync(file.fileno())
    seconds = time.perf_counter() - start
    path.unlink()
    return seconds


def times(run: Callable[[], Any], clock: Callable[[Callable[[], Any]], float], rounds: int = ROUNDS) -> list[float]:
    """Returns the milliseconds of each of some rounds, after one that does not count."""
    run()
    return [1000 * clock(run) for _ in range(rounds)]


def wall_seconds(run: Callable[[], Any]) -> float:
    """Returns the seconds during a call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def row(name: str, values: Sequence[float], unit_name: str, bar: float, *, least: bool = False) -> str:
    """Returns a line of the table: the median with its range, and whether it keeps to the bar."""
    middle = statistics.median(values)
    held = "yes" if (middle >= bar if least else middle <= bar) else "no"
    spread = f" [{_figure(min(values))}, {_figure(max(values))}]" if len(values) > 1 else ""
    return (
        f"| {name} | {_figure(middle)}{spread} {unit_name} | {'at least' if least else 'at most'} {bar:,g} | {held} |"
    )


def measure(request: dict[str, Any]) -> list[str]:
    """Returns the lines of the table."""
    pages, opened = request["pages"], request["opened"]
    with tempfile.TemporaryDirectory(dir=request["folder"]) as folder:
        small = open_row(Path(folder) / "opened", opened)
        parts = batches(pages)
        with Index(Path(folder) / "index", model="tiny") as index:
            plain = pages / plain_seconds(Path(folder) / "plain", parts)
            seconds, cpu = fill(index, parts)
            vectors = pages * (TOKENS * WIDTH * 2 + WIDTH * 4)
            name = f"add without encoding; a plain file that is written and flushed: {plain:,.0f} pages/s"
            lines = [row(name, [pages / seconds], "pages/s", 30_000, least=True)]
            lines.append(row("the same in CPU time", [pages / cpu], "pages/s", 30_000, least=True))
            lines += [small, *search_rows(index, parts, Path(folder) / "arrays")]
            lines.append(row("disk, of the vectors", [index.info().bytes / vectors], "x", 1.05))
            lines.append(one_page_row(index, parts[0][:1]))
            if request["stages"]:
                lines += stage_rows(index, parts)
    return lines


def open_row(folder: Path, opened: int) -> str:
    """Returns the line of opening: pages of one token, since tokens are not read."""
    with Index(folder, model="tiny") as index:
        fill(index, batches(opened, tokens=1))
        index.delete(where={"year": 1990})

    def run() -> None:
        with Index(folder) as again, again._engine.store.reading() as (_, snapshot):
            assert snapshot.segments

    return row(f"open {opened:,} pages, 1 in 35 deleted", times(run, wall_seconds), "ms", 300)


def search_rows(index: Index, parts: Sequence[Embeddings], folder: Path) -> list[str]:
    """Returns the lines of searching: exactly, interleaved with `search` on arrays, and by pooled vectors first."""
    rng = np.random.default_rng(1)
    query = Embeddings(unit(rng, 1, WIDTH), unit(rng, QUERY_TOKENS, WIDTH), np.array([0, QUERY_TOKENS]))
    arrays = Embeddings.from_checked(
        np.concatenate([part.pooled for part in parts]),
        np.concatenate([part.tokens for part in parts]),
        np.arange(sum(map(len, parts)) + 1, dtype=np.int64) * TOKENS,
    )
    arrays.save(folder)
    mapped = Embeddings.load(folder, mmap=True)
    ways = (lambda: index.search(query), lambda: search(query, arrays), lambda: search(query, mapped))
    for way in ways:
        way()
    taken = np.array([[1000 * cpu_seconds(way) for way in ways] for _ in range(ROUNDS)])
    ours, in_memory, in_file = np.median(taken, axis=0)
    count = f"{len(arrays):,} pages"
    lines = [
        row(f"exact hybrid, {count}, {ours:.0f} ms, by `search` on {name}, {theirs:.0f} ms", list(ratios), "x", 1.05)
        for name, theirs, ratios in (
            ("arrays in memory", in_memory, taken[:, 0] / taken[:, 1]),
            ("arrays that are mapped from a file", in_file, taken[:, 0] / taken[:, 2]),
        )
    ]
    first = times(lambda: index.search(query, candidates=CANDIDATES), cpu_seconds, 3 * ROUNDS)
    lines.append(row(f"pooled first, K = {CANDIDATES}, {count}", first, "ms", 15))
    for share, where in (("1 in 35", {"year": 2000}), ("3 in 4", {"year": {"gte": 2000}})):
        found = times(lambda where=where: index.search(query, candidates=CANDIDATES, where=where), cpu_seconds)
        lines.append(f"| the same where {share} is allowed, asked again | {statistics.median(found):,.4g} ms | | |")
    return lines


def stage_rows(index: Index, parts: Sequence[Embeddings]) -> list[str]:
    """Returns the lines of the first stages that have marks: searching, adding, and disk."""
    rng = np.random.default_rng(1)
    query = Embeddings(unit(rng, 1, WIDTH), unit(rng, QUERY_TOKENS, WIDTH), np.array([0, QUERY_TOKENS]))
    lines = []
    for name in ("binary", "centroids"):
        cpu = cpu_seconds(lambda name=name: index.keep_stages([name]))
        found = times(
            lambda name=name: index.search(query, candidates=CANDIDATES, first_stage=name), cpu_seconds, 2 * ROUNDS
        )
        size = sum(path.stat().st_size for path in (index.folder / "stages").iterdir())
        lines += [
            plain_row(f"{name} first, K = {CANDIDATES}, {len(index):,} pages", found, "ms"),
            plain_row(f"{name}: disk, of all tokens", [size / (len(index) * TOKENS)], "bytes a token"),
            plain_row(f"{name}: made for all pages", [cpu], "s of CPU"),
        ]
        names, metadata = facts(10**7, len(parts[0]))
        adding = cpu_seconds(lambda names=names, metadata=metadata: index.add_embeddings(parts[0], names, metadata))
        lines.append(plain_row(f"{name}: added with it", [len(parts[0]) / adding], "pages/s of CPU"))
        index.delete(names)
    index.keep_stages([])
    return lines


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def plain_row(name: str, values: Sequence[float], unit_name: str) -> str:
    """Returns a line of the table that has no bar."""
    spread = f" [{_figure(min(values))}, {_figure(max(values))}]" if len(values) > 1 else ""
    return f"| {name} | {_figure(statistics.median(values))}{spread} {unit_name} | | |"


def one_page_row(index: Index, page: Embeddings) -> str:
    """Returns the line of adding one page to all others."""
    numbers = iter(range(10**9))
    found = times(
        lambda: index.add_embeddings(page, [f"new-{next(numbers)}"], {"year": 2026}), wall_seconds, 3 * ROUNDS
    )
    return row(f"one page added to {len(index):,}", found, "ms", 20)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pages", type=int, default=100_000)
    parser.add_argument("--opened", type=int, default=1_000_000)
    parser.add_argument("--stages", action="store_true", help="first stages by centroids and signs, too: a minute more")
    parser.add_argument("--folder", help="where the indexes are made; default: the system's folder of temporary files")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--task")
    parser.add_argument("files", nargs="*", type=Path)
    args = parser.parse_args()
    if args.task:
        answer_request(measure, args.core, *args.files)
        return
    request = {"pages": args.pages, "opened": args.opened, "folder": args.folder, "stages": args.stages}
    lines = in_process("index", args.core, module="benchmarks.index", **request)
    print("\n".join(["| | measured | bar | holds |", "|---|---|---|---|", *lines]))


if __name__ == "__main__":
    main()
