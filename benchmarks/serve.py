"""A server of an index under load: `python -m benchmarks.serve [--model minilm] [--items 1000] [--requests 2000]`.

Texts are docstrings of the standard library, queries runs of their words, a third each hybrid, pooled and late, a third
of them with a condition, k from 1 to 20. The server is `smart_jax.serve.serve` in a process of its own; this process is
its clients: so many connections, each of which asks again when it is answered. Every answer is compared with that of a
search alone, by an index that this process has open: the same items in the same order, scores within 1e-4 (items that
are closer than that may change places), none missing. Then SIGTERM: the server ends after what it has begun, and the
writer's lock is free.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import smart_jax
from recipes.tiny import held_out, wording_run
from smart_jax.index import Hit
from smart_jax.serve import Limits, serve

TOKEN = "of the benchmark"
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1"}  # where others want the cores, threads of BLAS wait for each other
NEW = "new.txt"  # is added, and removed
CLOSE = 1e-4  # of scores
LONGEST_TEXT = 600  # characters
WEIGHTS: dict[str, dict[str, float]] = {"hybrid": {}, "pooled": {"late_weight": 0.0}, "late": {"pooled_weight": 0.0}}


class Answer(NamedTuple):
    """An answer, and how long it took."""

    status: int
    body: dict[str, Any]
    seconds: float


class Server(NamedTuple):
    """A server in a process."""

    url: str
    process: int

    def cpu_seconds(self) -> float:
        """Returns the processor time that it has taken."""
        fields = Path(f"/proc/{self.process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Run(NamedTuple):
    """Answers to all requests, in their order, and what they took."""

    answers: list[Answer]
    seconds: float
    cpu_seconds: float


def texts(count: int) -> list[str]:
    """Returns so many docstrings, the longest without their ends."""
    every = [docstring.text[:LONGEST_TEXT] for docstring in held_out()]
    return [every[i % len(every)] + (f" {i // len(every)}" if i >= len(every) else "") for i in range(count)]


def make_index(folder: Path, model: str, count: int) -> None:
    """Makes the index that is searched."""
    with smart_jax.Index(folder, model=model) as index:
        items = [{"id": f"t{i}", "text": text, "metadata": {"group": i % 4}} for i, text in enumerate(texts(count))]
        index.add(items)


def searches(count: int, of: Sequence[str]) -> list[dict[str, Any]]:
    """Returns bodies of requests, all different."""
    rng, found = np.random.default_rng(0), []
    for i in range(count):
        words, _ = wording_run(of[int(rng.integers(len(of)))], rng)
        where = {"group": {"in": [int(rng.integers(4)), int(rng.integers(4))]}} if i % 3 == 1 else None
        mode = ("hybrid", "pooled", "late")[i // 3 % 3]
        found.append({"query": f"{words} {i}", "k": int(rng.integers(1, 21)), "where": where, "mode": mode})
    return found


def same(answer: Answer, alone: Sequence[Hit]) -> bool:
    """Returns whether an answer has the hits of a search alone; the file that is added for a time may be one more."""
    if answer.status != 200 or len(answer.body["hits"]) != len(alone):
        return False
    scores = {hit["id"]: hit["score"] for hit in answer.body["hits"] if hit.get("file") != NEW}
    alone = alone[: max(len(scores), len(alone) - 1)]
    if len(scores) != len(alone):
        return False
    if not np.allclose(list(scores.values()), [hit.score for hit in alone], atol=CLOSE):
        return False
    last = alone[-1].score if alone else 0.0  # which one of equals is the last is left open
    return all(hit.id in scores or hit.score - last < CLOSE for hit in alone)


@contextlib.contextmanager
def server(folder: Path, batch: int) -> Iterator[Server]:
    """Yields a server in a process, which is ended by SIGTERM."""
    command = [sys.executable, "-m", "benchmarks.serve", "--serve", str(folder), "--batch", str(batch)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | ONE_THREAD) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().split(" at ")[1].split(",")[0]
            asyncio.run(_until_ready(url))
            yield Server(url, process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            ended = process.wait(60)
    if ended:
        raise RuntimeError(f"the server ended with status {ended}")


async def _until_ready(url: str) -> None:
    async with _connection(url) as connection:
        while (await _ask(connection, "GET", "/ready")).status != 200:
            await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def _connection(url: str) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    try:
        yield reader, writer
    finally:
        writer.close()
        await writer.wait_closed()


async def _ask(
    connection: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    method: str,
    path: str,
    body: bytes = b"",
    kind: str = "application/json",
) -> Answer:
    reader, writer = connection
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    began = time.perf_counter()
    writer.write(f"{head}Authorization: Bearer {TOKEN}\r\n\r\n".encode() + body)
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    sizes = [int(line.split(":")[1]) for line in lines if line.lower().startswith("content-length:")]
    content = await reader.readexactly(sizes[0])
    return Answer(int(lines[0].split()[1]), json.loads(content), time.perf_counter() - began)


async def load(server: Server, bodies: Sequence[dict[str, Any]], connections: int) -> Run:
    """Returns the answers to all requests, so many of which are under way at a time."""
    waiting, answers = list(enumerate(bodies))[::-1], list[Answer | None]([None] * len(bodies))

    async def client() -> None:
        async with _connection(server.url) as connection:
            while waiting:
                number, body = waiting.pop()
                answers[number] = await _ask(connection, "POST", "/search", json.dumps(body).encode())

    began, cpu = time.perf_counter(), server.cpu_seconds()
    await asyncio.gather(*(client() for _ in range(min(connections, len(bodies)))))
    found = [answer for answer in answers if answer is not None]
    return Run(found, time.perf_counter() - began, server.cpu_seconds() - cpu)


async def load_beside_upload(server: Server, bodies: Sequence[dict[str, Any]], connections: int, text: str) -> Run:
    """Does the same while a file is added, and removed."""
    form = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{NEW}"\r\n\r\n{text}\r\n--x--\r\n'

    async def change() -> None:
        async with _connection(server.url) as connection:
            answers = [await _ask(connection, "POST", "/upload", form.encode(), "multipart/form-data; boundary=x")]
            answers.append(await _ask(connection, "POST", "/delete", json.dumps({"files": [NEW]}).encode()))
        assert [answer.status for answer in answers] == [200, 200], answers

    found, _ = await asyncio.gather(load(server, bodies, connections), change())
    return found


def row(name: str, run: Run, expected: Sequence[Sequence[Hit]]) -> str:
    """Returns a line of the table."""
    times = 1000 * np.percentile([answer.seconds for answer in run.answers], (50, 95, 99))
    errors = sum(answer.status != 200 for answer in run.answers)
    other = sum(not same(answer, alone) for answer, alone in zip(run.answers, expected, strict=True))
    figures = " / ".join(f"{value:,.0f}" for value in times)
    count, cpu = len(run.answers), 1000 * run.cpu_seconds / len(run.answers)
    return f"| {name} | {count / run.seconds:,.0f} | {figures} | {cpu:,.0f} | {errors} | {other} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="minilm", help="as smart_jax.load takes it")
    parser.add_argument("--items", type=int, default=1000)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--concurrent", type=int, default=200)
    parser.add_argument("--batch", type=int, default=Limits().batch, help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)  # the server's process
    options = parser.parse_args(arguments)
    if options.serve is not None:
        with smart_jax.Index(options.serve) as index:
            serve(index, port=0, token=TOKEN, limits=Limits(batch=options.batch))
        return
    with tempfile.TemporaryDirectory() as folder:
        measure(Path(folder) / "index", options)


def measure(folder: Path, options: argparse.Namespace) -> None:
    """Makes the index, and prints what its server does."""
    make_index(folder, options.model, options.items)
    bodies = searches(options.requests, texts(options.items))
    few = bodies[: max(options.requests // 10, 1)]
    many, new = options.concurrent, "\n\n".join(texts(40))
    with smart_jax.Index(folder) as index:
        expected = [index.search(b["query"], b["k"], where=b["where"], **WEIGHTS[b["mode"]]) for b in bodies]
        print(f"{options.items} texts, {options.model}\n")
        names = "requests at a time", "answered a second", "p50 / p95 / p99, ms", "CPU of the server, ms a request"
        print(f"| {' | '.join(names)} | errors | unlike a search alone |\n|{'---|' * 6}")
        with server(folder, options.batch) as busy:
            for connections in (many, 1):
                asyncio.run(load(busy, few, connections))  # what is compiled is compiled
            print(row("1", asyncio.run(load(busy, few, 1)), expected[: len(few)]), flush=True)
            print(row(f"{many}", asyncio.run(load(busy, bodies, many)), expected), flush=True)
            beside = asyncio.run(load_beside_upload(busy, bodies, many, new))
            print(row(f"{many}, while a text is added and removed", beside, expected), flush=True)
        with server(folder, 1) as busy:
            asyncio.run(load(busy, few, many))
            print(row(f"{many}, each alone", asyncio.run(load(busy, bodies, many)), expected), flush=True)
        index.delete(["t0"])  # the lock is free
        assert len(index) == options.items - 1


if __name__ == "__main__":
    main()
