"""A short run of the fuzzer, always of the same cases; SMART_JAX_FUZZ_MINUTES makes it longer."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.processes import ROOT, environment

MINUTES = float(os.environ.get("SMART_JAX_FUZZ_MINUTES", "0.5"))


@pytest.mark.slow
def test_no_reader_crashes_hangs_or_ends_in_an_error_that_it_does_not_document():
    command = [sys.executable, "-m", "tests.fuzz", "--minutes", str(MINUTES), "--seed", "0"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60 * MINUTES + 600
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "cases in" in done.stdout
