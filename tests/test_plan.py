"""train.plan: what is counted, which settings are chosen, what is refused, and the command."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import lora_visdoc, tiny, vidore, vidore_8b
from smart_jax.models import load_config
from tests.backbone import write_backbone
from tests.processes import ROOT, run_main
from tests.training import make_config
from train import posttrain
from train.config import TrainConfig, from_config_dict
from train.plan import (
    BatchShape,
    Machine,
    Memory,
    advice,
    as_json,
    as_text,
    batch_shape,
    fit,
    machine,
    model_config,
    plan,
)
from train.plan.abstract import abstract_run, device_bytes
from train.plan.compiled import compiler_of
from train.plan.machines import GIB, HERE
from train.plan.memory import counted_bytes, device_mesh, forecast

NAMED = {
    "vidore": from_config_dict(vidore.get_config()),
    "vidore_8b": from_config_dict(vidore_8b.get_config()),
    "lora_visdoc": from_config_dict(lora_visdoc.get_config()),
}


@pytest.mark.parametrize(
    ("name", "platform", "devices", "gib"),
    [
        ("v5e:2x4", "tpu", 8, 15.5),
        ("v5p:2x2x2", "tpu", 8, 95.49),
        ("v6e:2x4", "tpu", 8, 31.0),
        ("v5e:1x1", "tpu", 1, 15.5),
        ("h100x8", "gpu", 8, 0.75 * 79.2),
        ("h100", "gpu", 1, 0.75 * 79.2),
        ("a100-40gx4", "gpu", 4, 0.75 * 39.4),
        ("cpux4", "cpu", 4, None),
    ],
)
def test_machines(monkeypatch, name, platform, devices, gib):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    found = machine(name)
    assert (found.platform, found.devices) == (platform, devices)
    assert found.memory is None if gib is None else found.memory == pytest.approx(gib * GIB, abs=1)


def test_a_gpus_share_is_what_jax_is_told(monkeypatch):
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.95")
    assert machine("h100x8").memory == int(0.95 * 79.2 * GIB)


@pytest.mark.parametrize("name", ["", "v5e", "v5e:8", "v9:2x4", "x8", "tpu", "h100:2x4"])
def test_an_unknown_machine_is_named(name):
    with pytest.raises(ValueError, match=f"machine '{name}' is unknown: give a slice of TPUs such as v5e:2x4"):
        machine(name)


def test_sizes_of_a_batch():
    """The largest pages that a config allows, with room for the prompt; what the config fixes stays."""
    model = model_config("Qwen/Qwen3-VL-Embedding-2B")
    assert batch_shape(NAMED["vidore"], model) == BatchShape(512, 512, 64, 1848, 7200)
    assert batch_shape(NAMED["lora_visdoc"], model) == BatchShape(512, 512, 64, 1008, 3840)
    data = dataclasses.replace(
        NAMED["vidore"].data, negatives=2, query_length=32, document_length=2048, document_patches=4096
    )
    fixed = dataclasses.replace(NAMED["vidore"], data=data, batch_size=16)
    assert batch_shape(fixed, model) == BatchShape(16, 48, 32, 2048, 4096)
    small = from_config_dict(tiny.get_config())
    assert batch_shape(small, model_config("tiny")) == BatchShape(64, 64, 64, 42, 128)


def test_a_model_is_found_in_its_folder_or_in_the_table(checkpoint):
    assert model_config(str(checkpoint)) == load_config(checkpoint)
    assert model_config("someone/Qwen3-VL-Embedding-8B-tuned").text.hidden_size == 4096
    with pytest.raises(ValueError, match="config.model is empty"):
        model_config("")


def test_a_devices_share_is_counted():
    """An eighth of the kernels that fsdp splits, two moments for each trained parameter, the batches that are alive."""
    config = dataclasses.replace(NAMED["lora_visdoc"], dtype="bfloat16", batch_size=16)
    model = model_config(config.model)
    shape = BatchShape(16, 16, 64, 1024, 3840)

    def counted(fsdp):
        mesh = device_mesh(dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, fsdp=fsdp)), 8)
        return abstract_run(config, model, shape, mesh)

    whole, split = counted(1), counted(8)
    name = "model.language_model.layers.0.mlp.up_proj.kernel"
    assert device_bytes(whole.frozen[name]) == 2048 * 6144 * 2 == 8 * device_bytes(split.frozen[name])
    factor = "lora.language_model.layers.0.mlp.up_proj.a"
    assert device_bytes(whole.state.params[factor]) == 2048 * 128 * 4 == 8 * device_bytes(split.state.params[factor])
    for run in (whole, split):
        memory = counted_bytes(run)
        assert memory.optimizer == pytest.approx(2 * device_bytes(run.state.params), abs=64)  # and counters
        assert memory.batches == 2 * device_bytes(run.batch)
    assert whole.objective.partition.trains_backbone and not whole.objective.partition.trains_vision


def test_abstract_branches_on_quantised_kernels():
    lora = dataclasses.replace(NAMED["lora_visdoc"].lora, quantize="nf4")
    config = dataclasses.replace(NAMED["lora_visdoc"], dtype="bfloat16", lora=lora)
    run = abstract_run(config, model_config(config.model), BatchShape(8, 8, 64, 64, 64), device_mesh(config, 8))
    codes = run.frozen["model.language_model.layers.0.mlp.up_proj.kernel.codes"]
    assert codes.shape == (1024, 6144) and codes.dtype == jnp.uint8


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("where", ["v5e:2x4", "v5p:2x2x2", "h100x8"])
def test_the_named_runs_fit(monkeypatch, name, where):
    """They leave a tenth to spare, with all of their batch; 8B asks for more than a v5e-8."""
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    config, place = NAMED[name], machine(where)
    assert (config.remat, config.chunk_size, config.mesh.fsdp) == (None, None, None)
    found = fit(config, place)
    assert found.memory is not None and found.limit == place.memory
    assert found.config.batch_size == 512
    if (name, where) != ("vidore_8b", "v5e:2x4"):
        assert found.memory.total <= 0.9 * place.memory, found.describe()
    assert f"--config.mesh.fsdp={found.config.mesh.fsdp}" in found.describe()


def test_what_a_config_sets_stays():
    place = machine("v5p:2x2x2")
    config = dataclasses.replace(
        NAMED["vidore"], remat=False, chunk_size=16, mesh=dataclasses.replace(NAMED["vidore"].mesh, fsdp=4)
    )
    assert fit(config, place).config == config
    mesh = dataclasses.replace(config.mesh, data=4, fsdp=None, tensor=2)
    assert fit(dataclasses.replace(config, mesh=mesh), place).config.mesh.fsdp == 1
    assert fit(TrainConfig(), machine("cpu")).config == dataclasses.replace(
        TrainConfig(), remat=False, mesh=dataclasses.replace(TrainConfig().mesh, fsdp=1)
    )


def test_a_decoder_of_two_kinds_of_layers(tmp_path):
    """Its projections get branches, and are split over devices as those of attention."""
    folder = str(write_backbone(tmp_path, model_type="qwen3_5", text_config={"hidden_size": 64}))
    config = dataclasses.replace(NAMED["lora_visdoc"], model=folder, head="qwen3_vl_embedding", batch_size=16)
    found = fit(config, machine("v5e:2x4"))
    assert found.fits
    split = dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, fsdp=8))
    run = abstract_run(split, model_config(folder), BatchShape(16, 16, 64, 64, 64), device_mesh(split, 8))
    for name, outputs in {"in_proj_qkv": 64, "in_proj_z": 32, "in_proj_a": 4, "in_proj_b": 4}.items():
        kernel = f"language_model.layers.0.linear_attn.{name}"
        assert run.state.params[f"lora.{kernel}.b"].shape == (128, outputs)
        assert (
            8 * device_bytes(run.frozen[f"model.{kernel}.kernel"])
            == 64 * outputs * run.frozen[f"model.{kernel}.kernel"].dtype.itemsize
        )
    assert "lora.language_model.layers.1.self_attn.q_proj.a" in run.state.params


def test_less_memory_costs_more_time():
    """A trained backbone first keeps everything, then computes layers again, then chunks; its weights are split."""
    config, model = NAMED["lora_visdoc"], model_config("Qwen/Qwen3-VL-Embedding-2B")
    shape = batch_shape(config, model)

    def chosen(gib):
        place = Machine("some", "tpu", "TPU v5", 8, int(gib * GIB))
        found = fit(config, place, model, shape)
        return found.fits, found.config.remat, found.config.chunk_size, found.config.mesh.fsdp

    assert chosen(2000) == (True, False, None, 1)
    assert chosen(45) == (True, True, None, 1)
    fits, _, rows, fsdp = chosen(12)
    assert fits and rows is not None and fsdp > 1
    assert not chosen(2)[0]


def test_arithmetic_grows_with_what_is_alive():
    config, model = NAMED["vidore"], model_config("Qwen/Qwen3-VL-Embedding-2B")
    shape = batch_shape(config, model)

    def total(**settings):
        changed = dataclasses.replace(config, dtype="bfloat16", **settings)
        return forecast(changed, model, shape, 8, "tpu").temporary

    few, many, all_rows = (total(remat=True, chunk_size=n) for n in (8, 64, None))
    assert few < many < all_rows and all_rows > 3 * many
    assert total(remat=False, chunk_size=64) > many + 3 * 64 * 1848 * 2048 * 4  # the device's projected tokens


def test_advice_names_the_nearest_setting(monkeypatch):
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    config, model = dataclasses.replace(NAMED["vidore"], chunk_size=512), model_config("Qwen/Qwen3-VL-Embedding-2B")
    shape = batch_shape(config, model)
    place = machine("v5e:2x4")
    assert not fit(config, place).fits
    assert advice(config, place, model, shape).startswith("it fits with --config.mesh.fsdp=1 --config.remat=True")
    small = Machine("some", "tpu", "TPU v5 lite", 1, int(8 * GIB))
    assert "a smaller batch, which changes the loss: --config.batch_size=" in advice(config, small, model, shape)
    none = small._replace(memory=GIB)
    assert advice(config, none, model, shape).startswith("no batch of these pages fits")


def test_a_run_that_cannot_fit_is_refused(inputs, tmp_path, monkeypatch):
    """Needs known memory; nothing is written before."""
    config = make_config(inputs, tmp_path / "run", steps=2)
    monkeypatch.setattr(posttrain, "this_machine", lambda: Machine(HERE, "gpu", "small", 8, 2**20))
    with pytest.raises(ValueError, match=r"an update does not fit 8 x small: .* of 0\.0 GiB of a device; no batch"):
        posttrain.train(config)
    assert not (tmp_path / "run").exists()


def test_settings_are_chosen_as_a_run_starts(inputs, tmp_path, monkeypatch, capsys):
    config = make_config(inputs, tmp_path)
    assert posttrain.fitted(config) == dataclasses.replace(
        config, remat=False, mesh=dataclasses.replace(config.mesh, fsdp=1)
    )
    assert capsys.readouterr().out == ""  # nothing is known of a CPU's memory
    monkeypatch.setattr(posttrain, "this_machine", lambda: Machine(HERE, "gpu", "large", 8, 2**40))
    found = posttrain.fitted(config)
    assert (found.remat, found.mesh.fsdp, found.chunk_size) == (True, 1, None)
    assert "--config.mesh.fsdp=1 --config.remat=True: " in capsys.readouterr().out


@pytest.mark.compiles
def test_a_plan_of_a_small_run(inputs, tmp_path):
    """Comes by arithmetic and compiled, with the data set's steps, the host's rate and the disk."""
    config = make_config(inputs, tmp_path / "run" / "here", steps=None, epochs=3.0)
    found = plan(config, machine("cpu"), name="small.py")
    assert found.fits is None and found.advice is None  # of a CPU no memory is known
    assert found.compiled.exact and found.compiled.memory.temporary > 0
    assert found.compiled.memory._replace(temporary=0) == found.forecast._replace(temporary=0)
    host = found.host
    assert (host.examples, host.steps) == (27, 9)  # about 7 in 10 of 40, in batches of 8
    assert host.pages_had > 0 and host.step_seconds is None
    assert host.batches == 4 * sum(x.nbytes for x in jax.tree.leaves(blank(found.shape, config)))
    trained = 32 * 32 + 2 * 32  # kernel, scale and bias
    assert host.disk_wanted == pytest.approx(4 * trained * (3 * 3 + 1), rel=0.1)
    assert host.disk_had > 0
    text = as_text(found)
    assert "small.py on cpu: 1 x cpu" in text and "steps: 9" in text and "whether it fits: not known" in text
    assert json.loads(json.dumps(as_json(found)))["bytes"]["compiled"]["exact"] is True


def blank(shape: BatchShape, config: TrainConfig) -> Any:
    """A batch of that shape, of zeros."""
    run = abstract_run(config, model_config(config.model), shape, device_mesh(config, 1))
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), run.batch)


def test_a_plan_without_a_compiler():
    found = plan(dataclasses.replace(NAMED["vidore"], batch_size=4096), machine("v5e:1x1"), compile=False)
    assert found.fits is False and "DOES NOT FIT" in as_text(found)
    assert "steps: not known, since the data set is not here" in as_text(found)
    assert found.host.pages_wanted == pytest.approx(found.shape.documents / found.host.step_seconds)
    assert as_json(found)["bytes"]["compiled"] is None and as_json(found)["fits"] is False


def test_what_fits_is_the_compilers_word_where_it_is_exact():
    found = plan(NAMED["vidore"], machine("v5e:2x4"), compile=False)
    assert found.fits
    from train.plan.compiled import Compiled

    large = found.forecast._replace(temporary=20 * GIB)
    assert found._replace(compiled=Compiled("a", large, exact=True)).fits is False
    assert found._replace(compiled=Compiled("a", None, exact=True, note="needs 20G of 15G")).fits is False
    assert found._replace(compiled=Compiled("a", large, exact=False, note="loose")).fits is True
    assert Memory(1, 2, 3, 4).total == 10


def test_libtpu_is_asked_for_by_its_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install --no-deps --target DIR \"libtpu==.*--nocompile"):
        compiler_of(machine("v5e:2x4"))
    assert compiler_of(machine("h100x8")) == "cpu"


def run_command(monkeypatch, config: str, *words: str) -> subprocess.CompletedProcess:
    with monkeypatch.context() as patched:
        patched.setattr(jax.config, "update", lambda *_: None)  # jax has started
        return run_main("train.plan.__main__", f"--config={ROOT}/configs/{config}", *words)


def test_the_command(monkeypatch):
    words = ["--topology=v5e:2x4", "--topology=h100x8", "--nocompile"]
    text = run_command(monkeypatch, "vidore.py", *words).stdout
    assert "vidore.py on v5e:2x4: 8 x TPU v5 lite (15.50 GiB each)" in text and "vidore.py on h100x8" in text
    assert text.count("fits: ") == 2
    table = run_command(monkeypatch, "vidore.py:reference", *words, "--table").stdout
    head, _, *rows = table.splitlines()
    assert [row.count("|") for row in rows] == [head.count("|")] * 2 and all(row.endswith("| yes |") for row in rows)
    assert all(row.startswith("| vidore.py:reference |") for row in rows)
    lines = run_command(monkeypatch, "vidore_8b.py", *words, "--json").stdout.splitlines()
    assert [json.loads(line)["machine"]["name"] for line in lines] == ["v5e:2x4", "h100x8"]
    assert "machine 'v5e' is unknown" in run_command(monkeypatch, "vidore.py", "--topology=v5e").stderr


def test_states_that_are_kept_are_counted(inputs, tmp_path):
    """Bytes of the largest item for each, the disk that is there, and a step without the backbone."""
    config = make_config(inputs, tmp_path / "run", steps=None, epochs=3.0)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, cache_states="auto"))
    found = plan(config, machine("cpu"), compile=False)
    states, shape = found.host.states, found.shape
    document, query = (4 * 32 + tokens * 4 * 32 for tokens in (shape.document_tokens, shape.query_tokens))
    assert states.item == document and states.size == 27 * (document + query) and states.refusal == ""
    tokens = shape.queries * shape.query_tokens + shape.documents * shape.document_tokens
    assert states.flops == 2 * 2 * 32 * 32 * tokens  # forward, and the kernel's gradient
    assert "frozen states: at most 0.0 GiB of disk, where each is computed once" in as_text(found)
    once = plan(dataclasses.replace(config, epochs=1.0), machine("cpu"), compile=False)
    assert "frozen states are not kept: the run reads 24 documents, of which 27 differ" in as_text(once)
    on_tpu = plan(NAMED["vidore"], machine("v5e:2x4"), compile=False)
    assert "frozen states: at most 7.23 MiB of disk a page, if they are kept" in as_text(on_tpu)
    assert on_tpu.host.states_seconds < on_tpu.host.step_seconds / 20
    assert json.loads(json.dumps(as_json(on_tpu)))["host"]["states"]["item"] == 4 * 2048 + 1848 * 2 * 2048
