"""benchmarks.maxsim_tpu: that it compiles and counts, where the compiler is, and else says how to install it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_quick_table():
    command = [sys.executable, "-m", "benchmarks.maxsim_tpu", "--quick", "--chips", "v5e"]
    environment = os.environ | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    if importlib.util.find_spec("libtpu") is None:
        assert done.returncode == 1 and "pip install --no-deps --target DIR" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    scoring, training = (line.split(" | ") for line in done.stdout.splitlines()[-2:])
    assert scoring[1] == "1 x 32, 16 x 256 x 1,024" and training[1] == "8 x 32, 16 x 256 x 1,024, training"
    assert 1 <= float(scoring[3]) < 3 and 1 <= float(training[3]) < 5
    similarities = 8 * 32 * 16 * 256 * 4 / 2**20  # of which neither program holds a quarter
    assert all(float(row[5].removesuffix(" |")) < similarities / 4 for row in (scoring, training))
