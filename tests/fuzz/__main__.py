"""Damages good files at random and reads them, each in a process of its own with limits.

python -m tests.fuzz --minutes 5                    cases of all readers, from a seed that is printed
python -m tests.fuzz --seed 7 --case 1234           one of them again; its files stay in build/fuzz
python -m tests.fuzz --minutes 5 --reader images    one reader alone

A case fails if the process crashes, takes more than 5 s of CPU time (or 60 s in all) or 1 GiB more than it began with,
or ends in an exception that the reader does not document. The case's files stay, and the command that repeats it is
printed.
"""

from __future__ import annotations

import argparse
import collections
import os
import random
import re
import resource
import secrets
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import NamedTuple, NoReturn

CPU_SECONDS, WALL_SECONDS = 5, 60
MEMORY = 2**30  # bytes above what the process has when it begins
LONGEST_MESSAGE = 20_000  # characters
KEPT = Path("build/fuzz")
OK, REFUSED, FAILED = 0, 10, 11  # exit statuses of a case


class Failure(NamedTuple):
    """A case that failed: which, and why."""

    reader: str
    case: int
    reason: str
    files: Path


def main(arguments: list[str] | None = None) -> int:
    """Runs cases until the time is over; returns 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=None, help="default: drawn, and printed")
    parser.add_argument("--case", type=int, default=None, help="this one alone")
    parser.add_argument("--reader", default=None, help="one reader alone")
    options = parser.parse_args(arguments)
    seed = secrets.randbelow(10**9) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    failures = run(seed, options.minutes * 60, reader=options.reader, case=options.case)
    return 1 if failures else 0


def run(seed: int, seconds: float, *, reader: str | None = None, case: int | None = None) -> list[Failure]:
    """Runs cases of a seed, or one, and returns those that failed."""
    os.environ |= {"MALLOC_ARENA_MAX": "2", "TOKENIZERS_PARALLELISM": "false", "JAX_PLATFORMS": "cpu"}
    os.environ["HF_HUB_OFFLINE"] = "1"  # a damaged name of a base model is looked for nowhere
    os.environ |= {"ARROW_DEFAULT_MEMORY_POOL": "system", "OMP_NUM_THREADS": "1", "ARROW_IO_THREADS": "1"}
    import transformers  # each case is a fork, which then need not import it

    transformers.AutoTokenizer  # noqa: B018  which imports torch

    from tests.fuzz.readers import READERS

    names = [reader] if reader else sorted(READERS)
    failures: list[Failure] = []
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as place:
        samples = Path(place) / "samples"
        for name in names:
            _in_a_fork(lambda name=name: _write(READERS[name], samples / name))
            if not any((samples / name).rglob("*")):
                raise RuntimeError(f"the good files of {name!r} could not be written")
        start = time.monotonic()
        numbers = iter(range(10**9)) if case is None else iter([case])
        for number in numbers:
            if case is None and time.monotonic() - start > seconds:
                break
            name, rng = names[number % len(names)], random.Random(f"{seed}/{number}")
            folder = Path(place) / "case"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(samples / name, folder)
            changed = _damage(READERS[name], folder, rng)
            status, report = _in_a_fork(lambda name=name, folder=folder: _read(name, folder), Path(place) / "report")
            counts["refused" if status == REFUSED else "read" if status == OK else "failed"] += 1
            if status not in (OK, REFUSED):
                failures.append(_kept(Failure(name, number, _reason(status, report), folder), seed, changed, reader))
            if status == OK and case is not None:
                print("it was read")
        print(f"{sum(counts.values())} cases in {time.monotonic() - start:.0f} s: {dict(counts)}", flush=True)
    return failures


def _write(reader: object, folder: Path) -> None:
    folder.mkdir(parents=True)
    reader.write(folder)  # type: ignore[attr-defined]
    reader.read(folder)  # type: ignore[attr-defined]


def _damage(reader: object, folder: Path, rng: random.Random) -> str:
    from tests.fuzz.mutations import mutate

    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    return mutate(folder, list(reader.names) or files, rng)  # type: ignore[attr-defined]


def _in_a_fork(work: object, report: Path | None = None) -> tuple[int, str]:
    """Does some work in a fork, and returns its exit status, negative where a signal ended it, and what it wrote."""
    pid = os.fork()
    if pid == 0:
        _work(work, report)
    deadline = time.monotonic() + WALL_SECONDS * (1 if report else 10)
    pause = 0.002
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return -signal.SIGALRM, ""
        time.sleep(pause)
        pause = min(pause * 1.5, 0.05)
    text = report.read_text(errors="replace") if report and report.exists() else ""
    return os.waitstatus_to_exitcode(status), text


def _work(work: object, report: Path | None) -> NoReturn:
    status = OK
    try:
        if report is not None:
            report.unlink(missing_ok=True)
            _quiet(report)
        status = work() or OK  # type: ignore[operator]
    except BaseException:
        traceback.print_exc()
        status = FAILED
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _quiet(report: Path) -> None:
    """Sends what the process writes to a file."""
    handle = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, 1)
    os.dup2(handle, 2)


def _read(name: str, folder: Path) -> int:
    import jax

    from tests.fuzz.readers import READERS

    jax.devices()  # its threads count as what is there before
    before = int(re.search(r"VmData:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024  # type: ignore[index]
    resource.setrlimit(resource.RLIMIT_DATA, (before + MEMORY, before + MEMORY))
    used = int(time.process_time()) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (used + CPU_SECONDS, used + CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        READERS[name].read(folder)
    except READERS[name].errors as error:
        if len(str(error)) > LONGEST_MESSAGE:
            print(f"a message of {len(str(error))} characters: {str(error)[:200]}")
            return FAILED
        if isinstance(error, OSError) and error.errno == 12:  # ENOMEM
            raise
        return REFUSED
    return OK


def _reason(status: int, report: str) -> str:
    if status == -signal.SIGXCPU or status == -signal.SIGALRM or status == -signal.SIGKILL:
        return "it hangs"
    if status < 0:
        return f"it crashes: {signal.Signals(-status).name}"
    lines = [line for line in report.splitlines() if line.strip()]
    return (lines[-1] if lines else f"exit status {status}")[:300]


def _kept(failure: Failure, seed: int, changed: str, reader: str | None) -> Failure:
    kept = KEPT / f"{seed}-{failure.case}"
    shutil.rmtree(kept, ignore_errors=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(failure.files, kept, symlinks=True)
    only = f" --reader '{reader}'" if reader else ""
    print(f"{failure.reader}, {changed}: {failure.reason}")
    print(f"  python -m tests.fuzz --seed {seed} --case {failure.case}{only}", flush=True)
    return failure._replace(files=kept)


if __name__ == "__main__":
    sys.exit(main())
