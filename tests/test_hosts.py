"""Two processes on loopback: they train, stop, resume and export as one does."""

from __future__ import annotations

import dataclasses
import functools
import json
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

import smart_jax
from smart_jax.runtime import distributed
from smart_jax.runtime.distributed import DistributedConfig
from tests.processes import ROOT, environment
from tests.training import make_config, write_mixed_inputs
from train.config import DataConfig
from train.data import Batcher, Examples, convert, open_split
from train.data.rows import Skipped
from train.monitor import read_metrics

LENGTHS = {"data.query_length": 64, "data.document_length": 64, "data.document_patches": 16}
KINDS = {
    "adapter": LENGTHS | {"trainable": "adapter", "eval.validation_documents": 99},
    "derived": {"trainable": "adapter", "data.workers": 3},  # shapes of each batch, from what is stored of it
    "cached": {  # frozen states computed once, by all processes
        "trainable": "adapter",
        "data.cache_states": "auto",
        "eval.every": 4,
        "eval.validation_documents": 99,
    },
    "adapter+lora": {
        **LENGTHS,
        "trainable": "adapter+lora",
        "lora.r": 4,
        "lora.alpha": 8.0,
        "lora.dropout": 0.3,
        "lora.modules": r"_proj$|visual\.blocks\.1",
        "loss.temperature": 0.3,
        "mesh.data": 1,
        "mesh.fsdp": 2,
    },
    "full": LENGTHS | {"trainable": "full", "loss.objective": "pooled", "mesh.data": 1, "mesh.tensor": 2},
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
        own = others | settings
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
def mixed(tmp_path_factory):
    return write_mixed_inputs(tmp_path_factory.mktemp("mixed"))


@pytest.fixture(scope="module")
def one_process(inputs, tmp_path_factory):
    """Run directory of one process, and its results, by kind and devices."""

    @functools.cache
    def trained(kind: str, devices: int):
        folder = tmp_path_factory.mktemp("one_process")
        return folder, results(launch(inputs, folder, 1, devices, **KINDS[kind])[0])

    return trained


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "devices"), [("adapter", 2), ("cached", 2), ("adapter+lora", 2), ("full", 2), ("adapter", 8)]
)
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
    assert None not in sums and any(isinstance(value, str) for value in sums) == (KINDS[kind]["trainable"] != "adapter")


@pytest.mark.slow
def test_shapes_need_no_setting(mixed, tmp_path):
    """Two processes on pages of many sizes, 8 devices of one process, and a single device: the same parameters.

    A process gets SIGTERM and the run goes on in one process.
    """
    folders = [tmp_path / name for name in ("one", "eight", "two")]
    one = results(launch(mixed, folders[0], 1, 1, **KINDS["derived"])[0])
    assert results(launch(mixed, folders[1], 1, 8, **KINDS["derived"])[0]) == pytest.approx(one, abs=1e-5, rel=1e-5)
    first, _ = launch(mixed, folders[2], 2, 8, (-4, 4), **KINDS["derived"], **{"checkpoint.every": 100})
    assert STOPPED in first
    resumed = launch(mixed, folders[2], 1, 8, **KINDS["derived"], resume=True)[0]
    assert results(resumed) == pytest.approx(one, abs=1e-5, rel=1e-5)
    for folder in folders[1:]:
        assert_same_parameters(folder, folders[0], 2e-6)
    assert_same_log(folders[2], folders[0], starts=2)


@pytest.mark.compiles
def test_every_process_derives_the_shapes_that_one_has(mixed):
    config = make_config(mixed, Path("unused"))
    encoder = smart_jax.load(config.model)
    batcher = Batcher(encoder.preprocessor, config.data, smart_jax.make_mesh(devices=jax.devices()[:1]))
    split = open_split(config.data.dir, "pages")
    found = set()
    whole, *parts = (Examples(split, 4, process_index=i, process_count=n) for n, i in ((1, 0), (2, 0), (2, 1)))
    for batch, *shares in zip(whole, *parts, strict=False):
        sides = [batcher.arrays(some, Skipped(0)) for some in (batch, *shares)]
        shapes = [
            tuple(
                (x.input_ids.shape[1], x.vision and x.vision.patches.shape[1]) for x in (side.queries, side.documents)
            )
            for side in sides
        ]
        assert shapes[0] == shapes[1] == shapes[2]
        found.add(shapes[0])
        for name in ("input_ids", "keep_mask"):
            joined = np.concatenate([getattr(side.documents, name) for side in sides[1:]])
            np.testing.assert_array_equal(joined, getattr(sides[0].documents, name))
        if whole.get_state()["batches"] == 12:
            break
    assert len(found) > 3  # they do differ
    fixed = Batcher(encoder.preprocessor, dataclasses.replace(config.data, document_patches=1024), batcher._mesh)
    assert fixed.arrays(next(parts[0]), Skipped(0)).documents.vision.patches.shape[1] == 1024


@pytest.mark.compiles
def test_shapes_of_texts_follow_too_and_those_of_unmeasured_data_are_asked_for(checkpoint, tmp_path):
    rows = [
        {"query": f"q{i}", "text": "word " * (9 * i + 1), "negatives": ["no " * (150 if i == 3 else 1)]}
        for i in range(8)
    ]
    (tmp_path / "source").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "source" / "a.parquet")
    convert(tmp_path / "source", "texts", tmp_path, validation_ratio=0)
    config = DataConfig(negatives=1)
    preprocessor = smart_jax.load(checkpoint).preprocessor
    batcher = Batcher(preprocessor, config, smart_jax.make_mesh(devices=jax.devices()[:1]))
    shares = [next(Examples(open_split(tmp_path, "texts"), 8, process_index=i, process_count=2)) for i in range(2)]
    lengths = [batcher.arrays(share, Skipped(0)).documents.input_ids.shape[1] for share in shares]
    longest = max(len(preprocessor.tokenize({"text": text})) for text in ("word " * 64, "no " * 150))
    assert lengths == [preprocessor.length_bucket(longest)] * 2
    next(tmp_path.rglob("outlines-train.parquet")).unlink()
    earlier = next(Examples(open_split(tmp_path, "texts"), 8, process_index=0, process_count=2))
    with pytest.raises(ValueError, match=r"have no sizes.*convert the data again, or set config.data.query_length"):
        batcher.arrays(earlier, Skipped(0))
    sizes = {"query_length": 64, "query_patches": 0, "document_length": 640, "document_patches": 0}
    fixed = Batcher(preprocessor, dataclasses.replace(config, **sizes), batcher._mesh)
    assert fixed.arrays(earlier, Skipped(0)).documents.input_ids.shape == (8, 640)


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
    """Goes on from the middle of an epoch, which is of three steps."""
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


@pytest.mark.parametrize(("tasks", "in_step", "joins"), [("8", True, True), ("1", True, False), ("8", False, False)])
def test_tasks_of_a_slurm_step_join_each_other(monkeypatch, tasks, in_step, joins):
    calls = []
    monkeypatch.setattr(distributed, "_platforms", lambda: "cuda")
    monkeypatch.setattr(jax.distributed, "initialize", lambda *arguments: calls.append(arguments))
    monkeypatch.setenv("SLURM_NTASKS", tasks)
    if in_step:
        monkeypatch.setenv("SLURM_STEP_NODELIST", "node[1-2]")
    distributed.initialize(DistributedConfig())
    assert len(calls) == joins


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
