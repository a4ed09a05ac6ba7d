"""Two processes on loopback: they train, stop, resume and export as one does."""

from __future__ import annotations

import functools
import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from smart_jax.runtime import distributed
from smart_jax.runtime.distributed import DistributedConfig
from tests.processes import ROOT, environment
from train.monitor import read_metrics

LENGTHS = {"data.query_length": 64, "data.document_length": 64, "data.document_patches": 16}
KINDS = {
    "adapter": {"trainable": "adapter", "eval.validation_documents": 99},
    "adapter+lora": {
        "trainable": "adapter+lora",
        "lora.r": 4,
        "lora.alpha": 8.0,
        "lora.dropout": 0.3,
        "lora.modules": r"_proj$|visual\.blocks\.1",
        "loss.temperature": 0.3,
        "mesh.data": 1,
        "mesh.fsdp": 2,
    },
    "full": {"trainable": "full", "loss.objective": "pooled", "mesh.data": 1, "mesh.tensor": 2},
}

# One process: its settings as JSON and, if it is to be stopped, the step before which it gets SIGTERM. From there on
# steps take as long as a large model's, for the notice to reach the other process before the run is over.
PROCESS = """
import json, os, signal, sys, time
from pathlib import Path
inputs, output, settings, term_at = sys.argv[1:]
from smart_jax.runtime import compilation_cache
from tests.training import make_config
from train import training
from train.posttrain import train
make = training.make_train_step
def make_train_step(*args):
    step_fn = make(*args)
    def train_step(state, frozen, batch):
        if 0 < abs(int(term_at)) <= int(state.step) + 1:
            time.sleep(0.5)
        if int(state.step) + 1 == int(term_at):
            os.kill(os.getpid(), signal.SIGTERM)
        return step_fn(state, frozen, batch)
    return train_step
training.make_train_step = make_train_step
def eval_fn(encoder):
    tokens = encoder.encode_document(["a text", "another"]).tokens
    return {"cosine": float(tokens[0] @ tokens[-1])}
compilation_cache.enable()
results = train(make_config(Path(inputs), Path(output), **json.loads(settings)), eval_fn)
print(json.dumps(results))
"""


def launch(inputs: Path, output: Path, processes: int, devices: int, term_at: Sequence[int] = (0, 0), **settings):
    """The standard outputs of a run of `processes` that share the devices; each sends itself SIGTERM at its step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = environment(devices // processes, SMART_JAX_COMPILATION_CACHE="")
    running = []
    for process in range(processes):
        others = {
            "distributed.enabled": processes > 1,
            "distributed.coordinator": f"127.0.0.1:{port}",
            "distributed.processes": processes,
            "distributed.process": process,
        }
        own = LENGTHS | others | settings
        arguments = [str(inputs), str(output), json.dumps(own), str(term_at[process])]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        command = [sys.executable, "-c", PROCESS, *arguments]
        running.append(subprocess.Popen(command, cwd=ROOT, env=variables, **pipes))
    outputs = []
    try:
        for process in running:
            out, errors = process.communicate(timeout=900)
            assert process.returncode == 0, errors
            outputs.append(out)
    finally:
        for process in running:  # one that waits for another which has failed
            process.kill()
    return outputs


def results(output: str) -> dict[str, float]:
    return json.loads(output.splitlines()[-1])


def exported(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for file in sorted(folder.glob("*/*.safetensors")):
        found |= {f"{file.parent.name}/{name}": x for name, x in load_file(file).items()}
    return found


def assert_same_parameters(found: Path, expected: Path, tolerance: float) -> None:
    a, b = exported(found), exported(expected)
    assert a.keys() == b.keys() and a
    for name, value in b.items():
        np.testing.assert_allclose(a[name], value, atol=tolerance, rtol=0, err_msg=name)


def assert_same_log(found: Path, expected: Path, starts: int = 1) -> None:
    """Each step once, by one process, with the loss over the whole batch; an event file for each start."""
    a, b = (read_metrics(folder / "metrics.jsonl") for folder in (found, expected))
    assert [record["step"] for record in a] == [record["step"] for record in b]
    np.testing.assert_allclose([r["loss"] for r in a], [r["loss"] for r in b], atol=1e-5, rtol=1e-5)
    assert len(list((found / "tensorboard").iterdir())) == starts


@pytest.fixture(scope="module")
def one_process(inputs, tmp_path_factory):
    """By kind and devices: the run directory of one process, and its results."""

    @functools.cache
    def trained(kind: str, devices: int):
        folder = tmp_path_factory.mktemp("one_process")
        return folder, results(launch(inputs, folder, 1, devices, **KINDS[kind])[0])

    return trained


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "devices"), [("adapter", 2), ("adapter+lora", 2), ("full", 2), ("adapter", 8)])
def test_two_processes_train_as_one(inputs, one_process, tmp_path, kind, devices):
    """The same devices in one process and in two: split by rows, by fsdp, and by matrices."""
    expected, evaluation = one_process(kind, devices)
    first, second = launch(inputs, tmp_path, 2, devices, **KINDS[kind])
    assert_same_parameters(tmp_path, expected, 1e-6)
    assert_same_log(tmp_path, expected)
    assert results(first) == pytest.approx(evaluation, abs=1e-5, rel=1e-6) and results(second) == results(first)
    assert "steps 1 to 8" in first and "steps 1 to 8" not in second  # one of them prints
    checksums = json.loads(next(tmp_path.glob("checkpoints/8/info/*")).read_text())["checksums"]
    sums = [value for item in checksums.values() for value in item.values()]
    assert None not in sums and any(isinstance(value, str) for value in sums) == (kind != "adapter")


STOPPED = "stopped by SIGTERM after saving step "


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "term_at"), [("adapter", (4, 4)), ("adapter+lora", (-4, 4))])
def test_two_are_stopped_and_one_goes_on(inputs, one_process, tmp_path, kind, term_at):
    """SIGTERM to both, and to one, of which the other hears: both save the same step."""
    settings = KINDS[kind] | {"checkpoint.every": 100}
    first, second = launch(inputs, tmp_path, 2, 2, term_at, **settings)
    step = int(first.partition(STOPPED)[2].partition(":")[0])
    assert 4 <= step < 8 and STOPPED not in second
    assert results(first) == results(second) == {}
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [str(step)]
    assert f"steps {step + 1} to 8" in launch(inputs, tmp_path, 1, 2, **settings, resume=True)[0]
    expected, _ = one_process(kind, 2)
    assert_same_parameters(tmp_path, expected, 1e-6)
    assert_same_log(tmp_path, expected, starts=2)


@pytest.mark.slow
def test_one_is_stopped_and_two_go_on(inputs, one_process, tmp_path):
    """From the middle of an epoch, which is of three steps."""
    settings = KINDS["adapter+lora"] | {"checkpoint.every": 100}
    joined = {"distributed.enabled": True}  # as on a single machine with TPUs
    assert f"{STOPPED}4:" in launch(inputs, tmp_path, 1, 2, (4,), **settings | joined)[0]
    assert "steps 5 to 8" in launch(inputs, tmp_path, 2, 2, **settings, resume=True)[0]
    expected, _ = one_process("adapter+lora", 2)
    assert_same_parameters(tmp_path, expected, 1e-6)
    assert_same_log(tmp_path, expected, starts=2)


@pytest.mark.slow
def test_two_go_on_from_the_checkpoint_before_a_damaged_one(inputs, one_process, tmp_path):
    settings = KINDS["adapter"] | {"checkpoint.every": 3}
    launch(inputs, tmp_path, 2, 2, **settings)
    for file in (tmp_path / "checkpoints" / "8" / "params").rglob("d/*"):  # arrays; which are read is orbax's affair
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert "steps 7 to 8" in launch(inputs, tmp_path, 2, 2, **settings, resume=True)[0]
    assert [path.name for path in (tmp_path / "checkpoints-damaged").iterdir()] == ["8"]
    assert_same_parameters(tmp_path, one_process("adapter", 2)[0], 1e-6)


@pytest.mark.parametrize(
    ("platforms", "config", "joins"),
    [
        (None, {}, False),
        ("cpu", {}, False),
        ("tpu,cpu", {}, True),
        ("tpu,cpu", {"enabled": False}, False),
        ("cuda", {"enabled": True, "coordinator": "host:1", "processes": 4, "process": 3}, True),
    ],
)
def test_when_a_process_joins_others(monkeypatch, platforms, config, joins):
    calls = []
    monkeypatch.setattr(distributed, "_platforms", lambda: platforms or "")
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments: calls.append(arguments))
    distributed.initialize(DistributedConfig(**config))
    assert calls == ([(config.get("coordinator"), config.get("processes"), config.get("process"))] if joins else [])


def test_a_process_that_can_not_join_says_what_to_set():
    """Devices are in use here, and no cluster is around."""
    with pytest.raises(ValueError, match=r"cannot join others .*distributed\.coordinator=HOST:PORT"):
        distributed.initialize(DistributedConfig(enabled=True))


def test_a_tpu_of_one_machine_goes_on_alone(monkeypatch):
    def initialize(*_):
        raise RuntimeError("no cluster")

    before = jax.config.jax_platforms
    assert jax.process_count() == 1  # the device is chosen
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    try:
        jax.config.update("jax_platforms", "tpu,cpu")
        distributed.initialize(DistributedConfig())
        with pytest.raises(ValueError, match=r"cannot join others \(no cluster\): set distributed.coordinator"):
            distributed.initialize(DistributedConfig(enabled=True))
    finally:
        jax.config.update("jax_platforms", before)
