"""Commands and child processes of tests."""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parent.parent
COMPILED = ROOT / "build" / "tests" / "xla"  # programs of every test and every child
# LLVM spends as long on optimising a test's programs as all else together takes, and little is computed with them.
QUICK_COMPILATION = "--xla_backend_optimization_level=0"


def xla_flags(devices: int = 1) -> str:
    """Value of XLA_FLAGS for so many virtual CPU devices."""
    return f"--xla_force_host_platform_device_count={devices} {QUICK_COMPILATION}"


def environment(devices: int = 1, **changes: str) -> dict[str, str]:
    """Environment of a child with so many virtual CPU devices; its programs come from and go to the suite's cache."""
    return os.environ | {"XLA_FLAGS": xla_flags(devices)} | changes


def run_python(*arguments: str, devices: int = 1, timeout: float = 600, **changes: str) -> subprocess.CompletedProcess:
    """Runs Python with these arguments in the repository's root, as text; `changes` are of its environment."""
    options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": timeout}
    return subprocess.run([sys.executable, *arguments], env=environment(devices, **changes), **options)


def run_main(module: str, *arguments: str) -> subprocess.CompletedProcess:
    """Does what `python -m module ARGUMENTS` does, in this process: nothing is imported or compiled again.

    absl's flags, which a process has once, are afterwards those of before.
    """
    from absl import flags
    from absl.testing import flagsaver

    main = importlib.import_module(module).main  # which may define flags
    before, (output, errors) = flagsaver.save_flag_values(), (io.StringIO(), io.StringIO())
    argv = mock.patch.object(sys, "argv", [module, *arguments])
    try:
        with argv, redirect_stdout(output), redirect_stderr(errors):
            main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            errors.write(end.code)
    finally:
        flagsaver.restore_flag_values(before)
        flags.FLAGS.unparse_flags()
    return subprocess.CompletedProcess([module, *arguments], code, output.getvalue(), errors.getvalue())


@contextmanager
def nursery(program: str, *arguments: str, **changes: str) -> Iterator[Callable[..., int]]:
    """A function of JSON values that gives the exit code of a try of them: minus the signal, where one ended it.

    The program imports once, and forks for each try, before jax has made any thread: a try starts in a fraction of the
    time. It reads a list of values from each line, and answers with a line.
    """
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    with tempfile.TemporaryFile("w+") as errors:
        command = [sys.executable, "-c", program, *arguments]
        process = subprocess.Popen(command, cwd=ROOT, env=environment(**changes), stderr=errors, **pipes)

        def attempt(*values: object) -> int:
            process.stdin.write(json.dumps(values) + "\n")
            process.stdin.flush()
            if answer := process.stdout.readline():
                return int(answer)
            errors.seek(0)
            raise AssertionError(errors.read())

        try:
            yield attempt
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # and a try that a failed test has left
            process.communicate()


def left_over(folder: Path) -> list[str]:
    """Files and folders that only a process at work has: what is being written, and locks."""
    paths = folder.rglob("*")
    return [str(path.relative_to(folder)) for path in paths if "tmp" in path.name or path.suffix in (".part", ".lock")]
