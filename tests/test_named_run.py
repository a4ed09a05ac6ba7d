"""The named run, unchanged but for the model's path, from a folder in the training set's layout to a ViDoRe table."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.backbone import write_checkpoint
from tests.processes import ROOT, environment, run_main
from tests.vidore_folders import write_v1

RUN = ("-m", "train.posttrain", f"--config={ROOT}/configs/vidore.py", "--config.model=model")


def start(folder: Path, *arguments: str, devices: int = 1, **changes: str) -> subprocess.Popen:
    """Python in a folder, with the checkout's modules; `changes` are of its environment."""
    variables = environment(devices, PYTHONPATH=str(ROOT), SMART_JAX_COMPILATION_CACHE="", **changes)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *arguments], cwd=folder, env=variables, **pipes)


def finish(*processes: subprocess.Popen) -> list[str]:
    """Standard outputs of processes, each of which has to end well."""
    try:
        done = [(process, *process.communicate(timeout=900)) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, _, errors in done:
        assert process.returncode == 0, errors
    return [output for _, output, _ in done]


def tasks_of_a_slurm_step(count: int) -> list[dict[str, str]]:
    """The variables by which Slurm tells each task of a step on this machine of the others."""
    for job in itertools.count(os.getpid()):
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", job % 2**12 + 2**16 - 2**12))  # the port that jax takes for this job
            break
    step = {"JOB_ID": str(job), "NTASKS": str(count), "STEP_NODELIST": "127.0.0.1", "STEP_NUM_NODES": "1"}
    tasks = [step | {"PROCID": str(i), "LOCALID": str(i)} for i in range(count)]
    return [{f"SLURM_{name}": value for name, value in task.items()} for task in tasks]


def adapter(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "runs" / "vidore" / "adapter" / "adapter.safetensors")


@pytest.mark.slow
def test_from_pages_to_a_table_on_one_process_on_two_and_on_eight_devices(tmp_path):
    folders = {name: tmp_path / name for name in ("one", "two", "eight")}
    pairs = ("pairs", "--out", str(tmp_path / "pairs"), "--count", "560", "--height", "64", "--width", "96")
    assert run_main("recipes.tiny.pages", *pairs).returncode == 0
    data = ("--source", str(tmp_path / "pairs"), "--name", "colpali", "--out", str(tmp_path / "data"))
    assert run_main("train.data.__main__", *data, "--processes", "1").returncode == 0
    write_checkpoint(tmp_path / "model")
    for folder in folders.values():
        folder.mkdir()
        for name in ("data", "model"):
            (folder / name).symlink_to(tmp_path / name)
    [printed] = finish(start(folders["one"], *RUN))
    assert "computed anew" not in printed  # of the two epochs the second reads the states
    finish(start(folders["eight"], *RUN, devices=8))
    kept = "--config.data.cache_states=states"
    finish(*(start(folders["two"], *RUN, kept, **task) for task in tasks_of_a_slurm_step(2)))
    expected = adapter(folders["one"])
    for name in ("two", "eight"):
        found = adapter(folders[name])
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            difference = np.abs(found[key] - value)  # Adam makes a whole step of a gradient that is rounding alone
            assert difference.max() < 1e-3 and np.mean(difference > 2e-5) < 0.01, (name, key)

    write_v1(tmp_path / "vidore" / "docvqa_test_subsampled_beir")
    command = ("-m", "eval.run", f"--config={ROOT}/configs/vidore_eval.py:{tmp_path}/vidore", "--config.model=model")
    [printed] = finish(start(folders["one"], *command, "--config.adapter=runs/vidore/adapter"))
    assert "ViDoRe V1: 1 of 10 benchmarks" in printed and "| adapter-late |" in printed
    results = json.loads((folders["one"] / "results" / "vidore" / "results.json").read_text())
    [benchmark] = results["benchmarks"]
    assert benchmark["name"] == "ViDoRe_docvqa" and {"pooled", "late", "adapter-late"} <= set(benchmark["rows"])
