"""Two processes on loopback: they train, stop, resume and export as one does."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from smart_jax import distributed
from smart_jax.distributed import DistributedConfig
from tests.training import write_inputs

ROOT = Path(__file__).parent.parent
LENGTHS = {"data.query_length": 64, "data.document_length": 64, "data.document_patches": 16}
KINDS = {
    "adapter": {"trainable": "adapter"},
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

# Of one process: JSON settings and, if it is to be stopped, the step before which it gets SIGTERM.
PROCESS = """
import json, os, signal, sys
from pathlib import Path
inputs, output, settings, term_at, cache = sys.argv[1:]
from smart_jax import compilation_cache
from tests.training import make_config
from train import run
from train.posttrain import train
make = run.make_train_step
def make_train_step(*args):
    step_fn = make(*args)
    def train_step(state, frozen, batch):
        if int(state.step) + 1 == int(term_at):
            os.kill(os.getpid(), signal.SIGTERM)
        return step_fn(state, frozen, batch)
    return train_step
run.make_train_step = make_train_step
def eval_fn(encoder):
    return {"sum": float(encoder.encode_document(["a text", "another"]).tokens.sum())}
compilation_cache.enable(cache)
results = train(make_config(Path(inputs), Path(output), **json.loads(settings)), eval_fn)
print(json.dumps(results))
"""


def launch(inputs: Path, output: Path, processes: int, devices: int, *, term_at: int = 0, **settings):
    """The run's standard outputs, of `processes` with so many of the `devices` each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices // processes}"
    environment = os.environ | {"XLA_FLAGS": flags, "SMART_JAX_COMPILATION_CACHE": ""}
    running = []
    for process in range(processes):
        own = LENGTHS | settings
        if processes > 1:
            own |= {
                "distributed.enabled": True,
                "distributed.coordinator": f"127.0.0.1:{port}",
                "distributed.processes": processes,
                "distributed.process": process,
            }
        arguments = [str(inputs), str(output), json.dumps(own), str(term_at), str(inputs / "xla")]
        command = [sys.executable, "-c", PROCESS, *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        running.append(subprocess.Popen(command, cwd=ROOT, env=environment, **pipes))
    outputs = []
    for process in running:
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        outputs.append(out)
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


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("hosts"))


def test_a_tpu_of_one_machine_goes_on_alone(monkeypatch):
    def initialize(*_):
        raise RuntimeError("no cluster")

    before = jax.config.jax_platforms
    assert jax.process_count() == 1  # the device is chosen
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    try:
        jax.config.update("jax_platforms", "tpu,cpu")
        distributed.initialize(DistributedConfig())
        with pytest.raises(ValueError, match=r"can not join others \(no cluster\): set distributed.coordinator"):
            distributed.initialize(DistributedConfig(enabled=True))
    finally:
        jax.config.update("jax_platforms", before)
