"""One run, killed at random moments and resumed after each: as if nothing had happened."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import pytest

from tests.processes import left_over, nursery
from tests.training import repeatable
from train.monitor import read_metrics

KILLS, STEPS, EVERY = 10, 26, 2  # `python -m tests.kills` has more of the first

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
    make, save, export = training.make_train_step, training.Training.save, training.Training.export

    def die_at_operation(number):
        count = 0
        def hook(name, args):
            nonlocal count
            if name in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir") and output in str(args[0]):
                count += 1
                if count == number:
                    die()
        sys.addaudithook(hook)

    def killed_export(self, *args):
        if kind == "export":
            die_at_operation(when)
        if kind == "export time":
            threading.Timer(when, die).start()
        return export(self, *args)

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
            die_at_operation(when)
        if self.step >= at and kind == "save time":
            threading.Timer(when, die).start()
        save(self, *args)

    training.make_train_step, training.Training.save = make_train_step, killed_save
    training.Training.export = killed_export

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
    "full": {"trainable": "full"},
    "merged": {"trainable": "adapter+lora", "lora__r": 4, "lora__merge": True},
}
ALL = {"steps": STEPS, "checkpoint__every": EVERY, "eval__validation_batches": 0, "data__query_length": 64}
ALL |= {"data__document_length": 64, "data__document_patches": 16, "optimizer__schedule": "constant"}


def moments(seed: int, kills: int) -> list[list]:
    """Before an update, some time after its start, at a file operation of a save, or some time after its start.

    The last tenth, and at least one, are at a file operation of the export, or some time after its start.
    """
    rng, exports = np.random.default_rng(seed), max(1, kills // 10)
    steps = sorted(rng.integers(1, STEPS - 2, kills - exports).tolist())
    kinds = rng.permutation((["update", "time", "save", "save", "save time"] * kills)[: len(steps)]).tolist()
    when = {"update": lambda: 0, "time": lambda: rng.uniform(0, 0.1), "save time": lambda: rng.uniform(0, 0.3)}
    when["save"] = lambda: int(rng.integers(1, 60))
    found = [[kind, step, when[kind]()] for kind, step in zip(kinds, steps, strict=True)]
    found += [["export", STEPS, int(rng.integers(1, 5))] for _ in range(exports // 2 + exports % 2)]
    return found + [["export time", STEPS, rng.uniform(0, 0.05)] for _ in range(exports // 2)]


def killed_runs(inputs: Path, folder: Path, trainable: str, kills: int) -> tuple[int, int]:
    """Returns how often a run was killed, and how often as it wrote a checkpoint; it is as one that nobody stopped."""
    settings, whole, cut = ALL | SETTINGS[trainable], folder / "whole", folder / "cut"
    compiled = folder / "compiled"  # not among the suite's: some die as they write
    with nursery(NURSERY, SMART_JAX_COMPILATION_CACHE=str(compiled)) as attempt:

        def run(output: Path, moment: list | None = None) -> int:
            return attempt(str(inputs), str(output), settings, moment)

        log = folder / "cut.log"
        assert run(whole) == 0, (folder / "whole.log").read_text()
        killed = partial = 0
        for moment in moments(len(trainable), kills):
            code = run(cut, moment)
            # 0 = done sooner: on a machine with other work, timers end late, and leave nothing for the next moments.
            assert code in (0, -signal.SIGKILL), (moment, code, log.read_text()[-3000:])
            killed += code == -signal.SIGKILL
            checkpoints = cut / "checkpoints"
            partial += checkpoints.exists() and any("tmp" in path.name for path in checkpoints.iterdir())
        assert run(cut) == 0, log.read_text()[-3000:]
    exported = [sorted(path.relative_to(run) for path in run.glob("[alm]*/**/*")) for run in (cut, whole)]
    assert exported[0] == exported[1] and not left_over(cut)
    for path in exported[0]:
        a, b = cut / path, whole / path
        assert a.is_dir() or a.read_bytes() == b.read_bytes(), path
    records = [repeatable(read_metrics(run / "metrics.jsonl")) for run in (cut, whole)]
    assert records[0] == records[1] and [r["step"] for r in records[0]] == list(range(1, STEPS + 1))
    assert sorted(path.name for path in (cut / "checkpoints").iterdir()) == [str(STEPS - EVERY), str(STEPS)]
    return killed, partial


@pytest.mark.slow
@pytest.mark.parametrize("trainable", ["adapter", "lora"])
def test_killed_at_ten_moments_and_resumed_is_bit_identical(inputs, tmp_path, trainable):
    killed, partial = killed_runs(inputs, tmp_path, trainable, KILLS)
    assert killed >= KILLS * 3 // 4 and partial >= 1  # killed while a checkpoint was being written
