"""One run, killed at twenty random moments and resumed after each: as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.processes import ROOT, environment
from tests.training import repeatable
from train.monitor import read_metrics

KILLS, STEPS, EVERY = 20, 26, 2

# Imports once and forks for each try, before jax has made any thread: a try starts in a fraction of the time.
NURSERY = """
import json, os, random, signal, sys, threading, time
from pathlib import Path
import jax
from smart_jax.runtime import compilation_cache
from tests.training import make_config
from train import training
from train.posttrain import train

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def arm(kind, at, when, output):
    make, save = training.make_train_step, training.Training.save

    def make_train_step(*args):
        update = make(*args)
        def train_step(state, frozen, batch):
            if int(state.step) + 1 >= at:
                if kind == "update":
                    die()
                if kind == "time":
                    threading.Timer(when, die).start()
            return update(state, frozen, batch)
        return train_step

    def killed_save(self, *args):
        if self.step >= at and kind == "save":
            count = 0
            def hook(name, args):
                nonlocal count
                if name in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and output in str(args[0]):
                    count += 1
                    if count == when:
                        die()
            sys.addaudithook(hook)
        if self.step >= at and kind == "save time":
            threading.Timer(when, die).start()
        save(self, *args)

    training.make_train_step, training.Training.save = make_train_step, killed_save

for line in sys.stdin:
    inputs, output, settings, moment = json.loads(line)
    assert threading.active_count() == 1
    child = os.fork()
    if not child:
        status = 1
        try:
            os.dup2(os.open(output + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
            os.dup2(1, 2)
            compilation_cache.enable()
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
            if moment:
                arm(*moment, output)
            train(make_config(Path(inputs), Path(output), resume=True, **settings))
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""

SETTINGS = {
    "adapter": {"loss__objective": "hybrid"},
    "lora": {"trainable": "lora", "lora__r": 4, "lora__dropout": 0.2, "lora__merge": False},
}
ALL = {"steps": STEPS, "checkpoint__every": EVERY, "eval__validation_batches": 0, "data__query_length": 64}
ALL |= {"data__document_length": 64, "data__document_patches": 16, "optimizer__schedule": "constant"}


@pytest.fixture(scope="module")
def attempt(inputs, tmp_path_factory):
    """A function that starts or resumes the run in a folder, up to a moment; its exit code."""
    compiled = tmp_path_factory.mktemp("compiled")  # not among the suite's: some die as they write
    variables = environment(SMART_JAX_COMPILATION_CACHE=str(compiled))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    options = {"cwd": ROOT, "env": variables, "text": True, "start_new_session": True}
    nursery = subprocess.Popen([sys.executable, "-c", NURSERY], **options, **pipes)

    def run(output: Path, settings: dict, moment: list | None = None) -> int:
        nursery.stdin.write(json.dumps([str(inputs), str(output), settings, moment]) + "\n")
        nursery.stdin.flush()
        if not (answer := nursery.stdout.readline()):
            pytest.fail(nursery.stderr.read())
        return int(answer)

    yield run
    os.killpg(nursery.pid, signal.SIGKILL)  # and a try that a failed test has left
    nursery.communicate()


def moments(seed: int) -> list[list]:
    """Before an update, some time after its start, at a file operation of a save, or some time after its start."""
    rng = np.random.default_rng(seed)
    steps = sorted(rng.integers(1, STEPS - 2, KILLS).tolist())
    kinds = rng.permutation(["update", "time", "save", "save", "save time"] * (KILLS // 5)).tolist()
    when = {"update": lambda: 0, "time": lambda: rng.uniform(0, 0.1), "save time": lambda: rng.uniform(0, 0.3)}
    when["save"] = lambda: int(rng.integers(1, 60))
    return [[kind, step, when[kind]()] for kind, step in zip(kinds, steps, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize("trainable", SETTINGS)
def test_killed_at_twenty_moments_and_resumed_is_bit_identical(inputs, attempt, tmp_path, trainable):
    settings, whole, cut = ALL | SETTINGS[trainable], tmp_path / "whole", tmp_path / "cut"
    assert attempt(whole, settings) == 0, (tmp_path / "whole.log").read_text()
    partial = 0
    for moment in moments(seed=len(trainable)):
        code = attempt(cut, settings, moment)
        assert code == -signal.SIGKILL, (moment, code, (tmp_path / "cut.log").read_text()[-3000:])
        checkpoints = cut / "checkpoints"
        partial += checkpoints.exists() and any("tmp" in path.name for path in checkpoints.iterdir())
    assert partial >= 3  # killed while a checkpoint was being written
    assert attempt(cut, settings) == 0, (tmp_path / "cut.log").read_text()[-3000:]
    name = {"adapter": "adapter/adapter.safetensors", "lora": "lora/adapter_model.safetensors"}[trainable]
    assert (cut / name).read_bytes() == (whole / name).read_bytes()
    records = [repeatable(read_metrics(folder / "metrics.jsonl")) for folder in (cut, whole)]
    assert records[0] == records[1] and [r["step"] for r in records[0]] == list(range(1, STEPS + 1))
    assert sorted(path.name for path in (cut / "checkpoints").iterdir()) == [str(STEPS - EVERY), str(STEPS)]
