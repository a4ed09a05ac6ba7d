"""benchmarks.encode: that it runs, and what it counts."""

from __future__ import annotations

import re

import jax
import numpy as np
import pytest
from flax import nnx

from benchmarks import encode, encode_device, encode_models, encoder_tpu, gated_delta
from benchmarks.shapes import QWEN3_VL_2B
from smart_jax.models import attention
from smart_jax.models.qwen_vl_config import QwenVLConfig


def test_the_models_are_those_of_the_command_line():
    assert encode.MODELS == encode_models.MODELS
    assert list(encode.workloads_of("bert")) == ["text 8 x 128"]
    assert set(encode.workloads_of("qwen3_vl")) > set(encode.workloads_of("qwen2_5_vl"))


@pytest.mark.compiles
@pytest.mark.parametrize("model", ["qwen2_5_vl", "bert"])
def test_both_sides_compute_the_same(model, tmp_path, monkeypatch):
    monkeypatch.setattr(encode_models, "TEXT", encode_models.TEXT | {"num_hidden_layers": 2})
    vision = encode_models.VISION[model] | {"depth": 3} if model in encode_models.VISION else {}
    monkeypatch.setitem(encode_models.VISION, model, vision)
    spec = [[5, (1, 10, 18), 3]] if vision else [[9], [9]]
    folder = encode_models.checkpoint(model, tmp_path)
    ours, theirs = (side(folder, spec, 1)() for side in (encode_models.ours, encode_models.theirs))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.slow
def test_a_row_with_memory(tmp_path, monkeypatch):
    """The processes of their own included; the embedded model needs no torch to be written."""
    row = encode.measure("tiny", encode_models.checkpoint("tiny", tmp_path), "1 image of 256 patches", [0], 1)
    assert re.fullmatch(
        r"\| tiny \| 1 image of 256 patches( \| [\d.,]+ ms \[[\d.,]+, [\d.,]+\]){2} "
        r"\| [\d.]+ \| [\d.e-]+ \| [\d,]+ / [\d,]+ MiB \|",
        row,
    )


@pytest.mark.slow
def test_flops_are_those_that_xla_counts(monkeypatch):
    """Attention is in one piece, which XLA counts; it does not leave out what is not causal, nor padding."""
    config = QwenVLConfig.from_hf(encode_device.SHAPES["small"])
    monkeypatch.setattr(attention, "_choose", lambda *_: attention._by_rows)
    batch = encode_device.page_batch(config, 1)
    graphdef, params = encode_device.random_params(config)
    run = jax.jit(lambda p, b: nnx.merge(graphdef, p)(b).states)
    counted = run.lower(params, batch).compile().cost_analysis()["flops"]
    said = encode_device.flops(config, batch.input_ids.shape[1], encode_device.GRID)
    assert 0.8 * counted < said < counted


def test_flops_of_the_2b_model_are_twice_its_parameters_a_token():
    """Leaves out an image's share: attention adds little to a short row."""
    config = QwenVLConfig.from_hf(QWEN3_VL_2B)
    per_token = encode_device.flops(config, 33, (0, 32, 32)) - encode_device.flops(config, 32, (0, 32, 32))
    assert per_token == pytest.approx(2 * 1.41e9, rel=0.02)  # 1.72 billion less the embedding's 0.31


@pytest.mark.slow
def test_pages_a_second_of_both():
    text = encode_device.measure("small", 2, 1)
    assert "TFLOP a page" in text and re.search(r"\| ours \| [\d.]+ \|", text) and "unknown peak" in text
    config = QwenVLConfig.from_hf(encode_device.SHAPES["small"])
    encode_device.torch_call("small", config, 2, "cpu")()


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
    ],
)
def test_peaks(kind, peak):
    assert encode_device.peak_flops(kind) == peak


def test_estimates_of_a_program_are_those_of_its_entry():
    inner = '%fused (p: f32[8]) -> f32[8] {\n  %a = f32[8] add(), backend_config={"estimated_cycles":"7"}\n}\n'
    entry = "\nENTRY %main {\n" + "".join(f'  %b = fusion(), config={{"estimated_cycles":"{n}"}}\n' for n in (5, 30))
    assert encoder_tpu.estimated_cycles(inner + entry + "  %c = custom-call()\n}") == 35


def test_estimates_of_a_loop_count_its_trips():
    """Counts those of a loop within it, too; fused operations are no operations of their own."""

    def computation(name, *lines):
        return f"%{name} (p: s32[]) -> s32[] {{\n" + "".join(f"  %x = {line}\n" for line in lines) + "}\n\n"

    def loop(name):
        return f"(s32[]) while(%t), condition=%{name}.until, body=%{name}"

    def op(cycles):
        return f'fusion(), calls=%fused, backend_config={{"estimated_cycles":"{cycles}"}}'

    program = computation("fused", op(1000)) + computation("in.1", op(7)) + computation("in.1.until", "constant(3)")
    program += computation("out.2", op(5), loop("in.1")) + computation("out.2.until", "constant(10)")
    program += "ENTRY " + computation("main", op(100), loop("out.2"), op(1))
    assert gated_delta.estimated_cycles(program) == 100 + 10 * (5 + 3 * 7) + 1
    with pytest.raises(ValueError, match="trips of the loop out.2 are not a constant"):
        gated_delta.estimated_cycles(program.replace("constant(10)", "get-tuple-element(%t)"))


@pytest.mark.slow
def test_a_row_of_the_gated_delta_rule():
    row = gated_delta.measure(gated_delta.Workload(2, 40, 1, 2, width=8), 1, 1)
    time = r"[\d.]+ ms \[[\d.]+, [\d.]+\]"
    found = re.fullmatch(rf"\| 2 x 40, 1 / 2 \| {time} \| {time} \| [\d.]+ \| {time} \| [\d.]+ \| ([\d.e-]+) \|", row)
    assert found and float(found[1]) < 1e-6


def test_products_of_the_gated_delta_rule():
    """Products of a chunk of four positions: with the state, within the chunk, and the systems' inverses."""
    rest, inverses = gated_delta.Workload(1, 4, 1, 2, width=8).products(4)
    assert sorted(rest) == sorted([(1, 4, 8, 4)] * 2 + [(2, 4, 8, 8)] * 2 + [(2, 4, 4, 8)] * 2 + [(2, 8, 4, 8)])
    assert inverses == [(2, 4, 4, 4)] * 2
