"""Tasks in fresh processes of one thread on one core, and the time and memory that they take there."""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ENVIRONMENT = {  # LanceDB hangs with a single I/O thread, so that its number of these is left as it is
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "LANCE_CPU_THREADS": "1",
    "PJRT_NPROC": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
}
QUIET = 0.1  # cores that other processes may have in a round that counts
LONGEST = 1800  # seconds of a process, after which it is taken to hang


class RunError(Exception):
    """Raised for a process that ended without a result; the message says how it ended."""


def in_process(
    task: str, core: int, *, module: str = "benchmarks.maxsim", longest: float = LONGEST, **request: Any
) -> Any:
    """Returns the result of a module's task in a fresh process.

    Args:
      task: name of the task, an argument of the module's command line.
      core: the core that the process is pinned to.
      module: whose command line does the task by `answer_request`.
      longest: seconds after which the process is taken to hang.
      **request: JSON values that the task gets.

    Raises:
      RunError: the process hangs, crashes, raises, or ends without a result.
    """
    with tempfile.TemporaryDirectory() as folder:
        request_file, answer, text = (Path(folder) / name for name in ("request.json", "answer.json", "output.txt"))
        request_file.write_text(json.dumps(request))
        files = [str(request_file), str(answer)]
        command = [sys.executable, "-m", module, "--task", task, "--core", str(core), *files]
        environment = os.environ | ENVIRONMENT
        with text.open("w") as output:
            try:
                done = subprocess.run(command, env=environment, stdout=output, stderr=output, timeout=longest)
            except subprocess.TimeoutExpired:
                raise RunError(f"hangs: no result within {longest} s") from None
        if done.returncode < 0:
            raise RunError(f"crashes: {signal.Signals(-done.returncode).name}")
        if not answer.exists():
            raise RunError(f"exits with {done.returncode}: {text.read_text()[-500:]}")
        result = json.loads(answer.read_text())
    if "raised" in result:
        raise RunError(result["raised"])
    return result["result"]


def in_process_or_note(task: str, core: int, **request: Any) -> Any:
    """Returns the result of `in_process`, or how the process failed."""
    try:
        return in_process(task, core, **request)
    except RunError as error:
        return str(error)


def answer_request(task: Callable[[Any], Any], core: int, request: Path, answer: Path) -> None:
    """Does a task in the fresh process and writes what `in_process` reads."""
    os.sched_setaffinity(0, [core])
    try:
        import torch

        torch.set_num_threads(1)
    except ModuleNotFoundError:
        pass  # torch is a peer, which need not be there
    try:
        result = {"result": task(json.loads(request.read_text()))}
    except ModuleNotFoundError as error:
        result = {"raised": f"not installed ({error.name})"}
    except BaseException as error:  # panics of some extensions are not an Exception
        first_line = next(iter(str(error).splitlines()), "").rstrip(" :")
        result = {"raised": f"raises {type(error).__name__}: {first_line}"}
    answer.write_text(json.dumps(result))


def resident(field: str) -> int:
    """Returns the bytes that a line of /proc/self/status states."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def peak_growth(run: Callable[[], Any]) -> tuple[Any, int]:
    """Returns a call's result, and by how many bytes its peak of resident memory exceeds what was resident before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    before = resident("VmRSS")
    result = run()
    return result, max(0, resident("VmHWM") - before)


def keep_freed_memory(keep: bool) -> None:
    """Makes the C library keep freed blocks, as it does once large ones were freed, or give them back at once.

    Blocks that it keeps would hide the memory that a call takes.
    """
    mmap_threshold, trim_threshold = -3, -1
    libc = ctypes.CDLL(None)
    libc.mallopt(mmap_threshold, 2**25 if keep else 2**16)
    libc.mallopt(trim_threshold, 2**26 if keep else 2**16)


def cpu_seconds(run: Callable[[], Any]) -> float:
    """Returns the process's CPU seconds during a call."""
    gc.collect()
    started = time.process_time()
    run()
    return time.process_time() - started


def watched(run: Callable[[], object]) -> tuple[float, float]:
    """Returns the seconds that a run takes, and how many cores other processes had meanwhile."""
    start, own, all_before = time.perf_counter(), time.process_time(), _all_cpu_seconds()
    run()
    seconds = time.perf_counter() - start
    return seconds, (_all_cpu_seconds() - all_before - (time.process_time() - own)) / seconds


def _all_cpu_seconds() -> float:
    """Returns what all processes of the machine have taken; 0 where the system does not say."""
    path = Path("/proc/stat")
    if not path.is_file():
        return 0.0
    user, nice, system, _, _, *others = map(int, path.read_text().split("\n")[0].split()[1:9])
    return float(user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")
