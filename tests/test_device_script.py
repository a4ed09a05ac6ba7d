"""benchmarks/device.sh: that its commands run, at tiny sizes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_every_part_prints_its_table(tmp_path):
    table = tmp_path / "device.md"
    environment = os.environ | {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "",
    }
    command = ["bash", "benchmarks/device.sh", "--quick", str(table)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    title, *parts = table.read_text().split("\n## ")
    assert title.startswith("# 1 x cpu, jax ")
    names = ["MaxSim", "Encoding", "Search of resident corpora", "Training: gradcache"]
    assert [part.splitlines()[0] for part in parts] == names
    rows = [sum(line.startswith("| ") and "---" not in line for line in part.splitlines()) for part in parts]
    assert rows == [1 + 10, 1 + 1, 1 + 1, 1 + 1]
