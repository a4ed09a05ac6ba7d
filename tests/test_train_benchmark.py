"""benchmarks.train: both sides take the same step, and what its tables count."""

from __future__ import annotations

import dataclasses
import re

import jax
import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import encode_models, train, train_device, train_memory, train_models
from benchmarks.abstract import Work
from benchmarks.shapes import QWEN3_VL_2B, QWEN3_VL_8B, SMALL
from smart_jax.models import attention
from smart_jax.models.qwen_vl_config import QwenVLConfig
from smart_jax.runtime.mesh import make_mesh
from train.plan import device_bytes

SMALL_PAIRS = train_models.Pairs(count=3, query_tokens=5, grid=(1, 4, 6), page_words=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three text and three vision layers."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode_models, "TEXT", encode_models.TEXT | {"num_hidden_layers": 3})
        shape = {"depth": 3, "deepstack_visual_indexes": [0, 1]}
        patch.setitem(encode_models.VISION, "qwen3_vl", encode_models.VISION["qwen3_vl"] | shape)
        return encode_models.checkpoint("qwen3_vl", tmp_path_factory.mktemp("models"))


def both(folder, step):
    ours = train_models.Ours(folder, SMALL_PAIRS, step)
    rng = np.random.default_rng(0)  # else the gradient of every lora_a is 0, and no norm's bias would be told apart
    ours.params = {n: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32) for n, x in ours.params.items()}
    return ours, train_models.Theirs(folder, SMALL_PAIRS, step, ours.params)


@pytest.mark.slow
@pytest.mark.parametrize("step", [train_models.ADAPTER, train_models.LORA], ids=lambda step: step.trainable)
def test_loss_gradient_and_update_are_torchs(folder, step):
    ours, theirs = both(folder, step)
    (loss, gradient), (expected_loss, expected) = ours.loss_and_gradient(), theirs.loss_and_gradient()
    assert loss == pytest.approx(expected_loss, abs=2e-5)
    assert gradient.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(gradient[name], value, atol=2e-4 * np.abs(value).max(), err_msg=name)
    run, torch_run = ours.stepper(), theirs.stepper()
    for _ in range(3):  # the second and third losses are of updated parameters
        assert run() == pytest.approx(torch_run(), rel=1e-3)


@pytest.mark.slow
def test_a_row_of_each_step(monkeypatch, tmp_path):
    """Takes the embedded model, which needs no torch to be written."""
    monkeypatch.setitem(train_models.PAIRS, "tiny", dataclasses.replace(SMALL_PAIRS, count=4))
    rows = train.measure("tiny", encode_models.checkpoint("tiny", tmp_path), list(train.STEPS), 1)
    time = r"[\d.]+ s \[[\d.]+, [\d.]+\]"
    assert re.fullmatch(rf"\| tiny \| adapter \| {time} \| {time} \| [\d.]+ \| {time} \|", rows[0])
    assert re.fullmatch(rf"\| tiny \| gradcache \| {time} \|  \| [\d.]+ of lora's time \|  \|", rows[2])


@pytest.mark.slow
def test_the_products_of_a_step_are_those_that_torch_counts(folder):
    _, theirs = both(folder, train_models.LORA)
    with train_models._Products() as seen, FlopCounterMode(display=False) as counter:
        theirs.loss().backward()
    found = sum(2 * a.shape[:-1].numel() * a.shape[-1] * b.shape[-1] for _, (a, b) in seen.calls)
    counts = counter.get_flop_counts()["Global"]
    expected = {op: flops for op, flops in counts.items() if "attention" not in str(op)}
    assert len(expected) >= 3 and found == sum(expected.values())
    theirs.products()()


def test_rounds_are_interleaved():
    calls = []
    taken = train.interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, 3)
    assert "".join(calls) == "ab" + 3 * "ab" and [len(times) for times in taken.values()] == [3, 3]


def test_memory_of_arrays_is_that_of_a_shard():
    """Over 8 devices: an eighth of the bfloat16 kernels and of the factors that are split, and two moments of these."""
    mesh = make_mesh(1, 8)
    config = QwenVLConfig.from_hf(SMALL)
    state, frozen, batch = Work("lora", rows=2, r=8).run(config, mesh).arguments
    (name,) = (n for n in state.params if n.endswith("layers.0.mlp.up_proj.a"))
    assert state.params[name].sharding.shard_shape((64, 8)) == (8, 8)
    kernel = frozen["model.language_model.layers.0.mlp.up_proj.kernel"]
    assert device_bytes(kernel) == 64 * 96 * 2 // 8
    assert device_bytes(state.opt_state) == pytest.approx(2 * device_bytes(state.params), abs=64)  # and counters
    assert device_bytes(batch.documents.vision.patches) == 2 * 1024 * 3 * config.vision.patch_size**2  # bytes of pixels


@pytest.mark.compiles
@pytest.mark.parametrize(("shape", "billions"), [(QWEN3_VL_2B, 2.13), (QWEN3_VL_8B, 8.14)])
def test_parameters_of_the_real_shapes(shape, billions):
    """Qwen3-VL's model cards say 2B and 9B with an output layer of vocabulary x width, which an encoder has not."""
    frozen = Work("adapter", rows=1).run(QwenVLConfig.from_hf(shape), make_mesh(1, 8)).frozen
    assert sum(x.size for x in frozen.values()) / 1e9 == pytest.approx(billions, abs=0.01)


@pytest.mark.slow
def test_layers_of_the_vision_tower_keep_nothing():
    """Few of them are compiled, therefore; those of the text model keep more."""
    mesh, work = make_mesh(devices=jax.devices()[:1]), Work("lora", rows=8, patches=64, remat=True, r=8)

    def temporary(text, vision):
        shape = train_memory.with_vision_layers(SMALL, vision)
        shape["text_config"]["num_hidden_layers"] = text
        return train_memory.temporary(shape, mesh, work, "cpu")

    found = temporary(2, 4)
    assert temporary(2, 5) == pytest.approx(found, rel=0.01)
    assert temporary(3, 4) > 1.1 * found


def test_a_row_of_memory():
    memory = train_memory.Memory(*(x * 2**30 for x in (1, 2, 3, 64)))
    assert train_memory.row("2b", "lora", 8, memory) == (
        "| 2b | lora | 8 | 1.00 | 2.00 | 3.00 | 64.00 | 70.00 | H100, TPU v5p |"
    )
    full = memory._replace(temporary=80 * 2**30)
    assert train_memory.row("2b", "lora", 8, full).endswith("| 86.00 | none of them |")  # a tenth is the runtime's


@pytest.mark.slow
@pytest.mark.parametrize("step", train_device.STEPS)
def test_a_step_on_the_device(step):
    row = train_device.measure("small", step, 2, 1, 1, r=8)
    assert re.fullmatch(
        rf"\| {step} \| [\d.]+ \| [\d.,]+ \[[\d.,]+, [\d.,]+\] \| [\d.]+ \| unknown peak \| not reported \|", row
    )


@pytest.mark.slow
def test_the_flops_of_a_step_are_those_that_xla_counts(monkeypatch):
    """Takes attention in one piece, which XLA counts; it does not leave out what is not causal, nor padding."""
    monkeypatch.setattr(attention, "_choose", lambda *_: attention._by_rows)
    config = QwenVLConfig.from_hf(train_device.SHAPES["small"])
    update, *arguments = train_device.program(config, "lora", 2, None, 16, remat=False)
    counted = update.lower(*arguments).compile().cost_analysis()["flops"]
    said = train_device.training_flops(config, "lora", 2, 16)
    assert 0.8 * counted < said < counted
