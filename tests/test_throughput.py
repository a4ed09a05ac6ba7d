"""Work, cost and rates: FLOPs against every matrix product that jax traces, clocks and devices by hand."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
import pytest

from smart_jax.inputs.multimodal import MultimodalPreprocessor
from smart_jax.models.lora import LoraLinear
from smart_jax.runtime import distributed, make_mesh, sum_over_processes
from tests.backbone import write_checkpoint
from tests.small_bert import write_plain
from tests.training import make_config, page
from train.data import Batcher, Example, Work, count_work
from train.data.rows import Skipped
from train.monitor import Throughput, memory, peak_flops, throughput, training_cost
from train.monitor.throughput import GIB, Cost
from train.objective import Partition
from train.setup import load_encoder, make_objective


def products(jaxpr: jex.Jaxpr) -> float:
    """FLOPs of the matrix products in a jaxpr, those of its inner ones included."""
    flops = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            inner = math.prod(equation.invars[0].aval.shape[i] for i in contracted)
            flops += 2.0 * inner * math.prod(equation.outvars[0].aval.shape)
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: isinstance(x, jex.Jaxpr | jex.ClosedJaxpr)):
            inner = inner.jaxpr if isinstance(inner, jex.ClosedJaxpr) else inner
            flops += times * products(inner) if isinstance(inner, jex.Jaxpr) else 0.0
    return flops


def filled(batch: Any) -> Any:
    """Batch without padding: all that is computed counts."""
    vision = batch.vision
    if vision is not None:
        vision = dataclasses.replace(vision, segment=np.ones_like(vision.segment))
    return dataclasses.replace(batch, attention_mask=np.ones_like(batch.attention_mask), vision=vision)


SETTINGS = {
    "adapter": {"adapter__dim": 24},
    "attention": {"adapter__kind": "self_attention", "adapter__blocks": 2},
    "mlp": {"adapter__kind": "mlp", "adapter__mlp_dim": 48},
    "full": {"trainable": "full", "weights": "."},
    "text": {"trainable": "full"},
    "lora": {"trainable": "lora", "lora__r": 4, "lora__modules": "."},
    "int8": {"trainable": "adapter+lora", "lora__r": 4, "lora__quantize": "int8"},
    "nf4": {"trainable": "lora", "lora__r": 4, "lora__quantize": "nf4"},
}


@pytest.mark.compiles
@pytest.mark.parametrize(
    "name", [n if n in ("adapter", "lora") else pytest.param(n, marks=pytest.mark.slow) for n in SETTINGS]
)
def test_model_flops_are_those_of_the_matrix_products(tmp_path, monkeypatch, name):
    """Eight blocks: what nothing needs of the lowest one's gradients, the learned positions' weights and the like are
    within the tolerance."""
    monkeypatch.setattr(LoraLinear, "_merges", lambda self: False)  # as on accelerators, whose peak is known
    write_checkpoint(tmp_path / "model", text_config={"num_hidden_layers": 8}, vision_config={"depth": 8})
    config, mesh = make_config(tmp_path, tmp_path / "run", **SETTINGS[name]), make_mesh(devices=jax.devices()[:1])
    encoder = load_encoder(config, mesh)
    params, frozen, objective = make_objective(config, encoder, mesh, steps=1)
    examples = [Example(str(i), {"text": f"find {i}"}, {"image": page(i)}) for i in range(2)]
    batch = Batcher(encoder.preprocessor, config.data, mesh).arrays(examples, Skipped(0))
    sides = [filled(side) for side in (batch.queries, batch.documents)]

    def loss(params):
        encoded = [objective.encode(params, frozen, side) for side in sides]
        return sum(jnp.sum(e.pooled[:, :5]) + jnp.sum(e.tokens[..., :5]) for e in encoded)

    expected = products(jax.make_jaxpr(jax.grad(loss))(params).jaxpr)
    cost, work = (
        training_cost(objective.partition, params | frozen, encoder.config),
        count_work(sides[0], 2) + count_work(sides[1]),
    )
    in_adapter = 12.0 * 32 * 2 if name == "attention" else 0.0  # which is not causal: the width 32 in two blocks
    # The CPU's attention computes what is masked, too.
    whole = cost._replace(token_pair=2 * (cost.token_pair - in_adapter) + in_adapter)
    assert whole.flops(work) == pytest.approx(expected, rel=1e-3 if name == "adapter" else 0.04)
    assert work.examples == 2 and cost.flops(work) < whole.flops(work)


def test_model_flops_of_a_bert(tmp_path):
    write_plain(tmp_path / "model")
    config, mesh = make_config(tmp_path, tmp_path / "run", pooling="cls"), make_mesh(devices=jax.devices()[:1])
    encoder = load_encoder(config, mesh)
    params, frozen, objective = make_objective(config, encoder, mesh, steps=1)
    examples = [Example(str(i), {"text": f"find {i}"}, {"text": f"page {i}"}) for i in range(2)]
    side = filled(Batcher(encoder.preprocessor, config.data, mesh).arrays(examples, Skipped(0)).documents)
    jaxpr = jax.make_jaxpr(jax.grad(lambda p: jnp.sum(objective.encode(p, frozen, side).tokens[..., :5])))(params)
    cost = training_cost(objective.partition, params | frozen, encoder.config)
    assert cost.flops(count_work(side)) == pytest.approx(products(jaxpr.jaxpr), rel=1e-2)  # of a model this small
    cached = training_cost(objective.partition, params, encoder.config)  # attention is part of the states
    assert (cached.token, cached.token_pair) == (2 * 2 * encoder.width**2, 0) and cost.token_pair > 0


def test_work_counts_what_is_real(checkpoint):
    from smart_jax.models import load_config

    preprocessor = MultimodalPreprocessor.from_pretrained(checkpoint, load_config(checkpoint))
    rows = [
        preprocessor.tokenize(item) for item in ({"image": page(1)}, {"text": "a text"}, {"images": [page(2), page(3)]})
    ]
    lengths, sizes = [len(row.input_ids) for row in rows], [t * h * w for row in rows for t, h, w in row.grids]
    work = count_work(preprocessor.collate(rows, length=128, patches=96), examples=3)
    assert work == Work(3, sum(lengths), sum(n * n for n in lengths), sum(sizes), sum(n * n for n in sizes), 0)
    assert len(sizes) == 3 and work + work == Work(*(2 * x for x in work))


def test_attention_windows_count_as_what_they_are(tmp_path):
    from smart_jax.models import load_config

    folder = write_checkpoint(tmp_path, model_type="qwen2_5_vl")
    config = load_config(folder)
    preprocessor = MultimodalPreprocessor.from_pretrained(folder, config, head="lamra")
    batch = preprocessor.collate([preprocessor.tokenize({"image": page(1)})])
    t, h, w = preprocessor.tokenize({"image": page(1)}).grids[0]
    side = config.vision.window_patches
    windows = [min(side, h - i) * min(side, w - j) for i in range(0, h, side) for j in range(0, w, side)]
    assert count_work(batch).window_pairs == sum(n * n for n in windows)
    assert count_work(batch).patch_pairs == (t * h * w) ** 2
    cost = training_cost(Partition({}, {}), {}, config)
    assert (cost.patch_pair, cost.window_pair) == (4 * 16, 4 * 16)  # one block of each kind, 16 wide


def test_linear_attention_counts_its_states_and_no_pairs(tmp_path):
    from smart_jax.models import load_config

    config = load_config(write_checkpoint(tmp_path, model_type="qwen3_5"))  # a layer of each kind
    cost = training_cost(Partition({}, {}), {}, config)
    assert cost.token == 2 * 3 * (4 * 8 * 8)  # four heads' states of 8 x 8: read, corrected, read
    assert cost.token_pair == 4 * 32 / 2


def test_rates_leave_out_pauses_and_the_first_compilation():
    now = [100.0]
    clock = Throughput(Cost(token=5.0, patch=1.0), peak=1000.0, clock=lambda: now[0])

    def wait(seconds):
        now[0] += seconds

    work = Work(examples=8, tokens=100, patches=500)
    wait(60.0)  # compiling
    clock.add(work)
    wait(2.0)
    with clock.paused():
        wait(30.0)
    clock.add(work)
    wait(2.0)
    with pytest.raises(OSError), clock.paused():
        wait(1.0)
        raise OSError
    expected = {"examples_per_second": 4.0, "tokens_per_second": 50.0, "seconds_per_step": 2.0, "mfu": 0.5}
    assert clock.read() == pytest.approx(expected)
    wait(1.0)
    clock.add(work)
    wait(1.0)
    assert clock.read()["seconds_per_step"] == pytest.approx(2.0)
    assert "mfu" not in Throughput(Cost()).read()


def test_devices_are_known_by_their_kind():
    def peak(kind):
        found = peak_flops(kind)
        return None if found is None else found / 1e12

    kinds = {
        **{"TPU v4": 275, "TPU v5 lite": 197, "TPU v5e": 197, "TPU v5": 459, "TPU v5p": 459, "TPU v6 lite": 918},
        **{"NVIDIA A100-SXM4-80GB": 312, "NVIDIA A100-PCIE-40GB": 312, "NVIDIA H100 80GB HBM3": 989},
        **{"NVIDIA H100 PCIe": 756, "NVIDIA H200": 989, "NVIDIA L4": 121, "NVIDIA L40S": 362, "NVIDIA B200": 2250},
        **{"NVIDIA GB200": 2500, "cpu": None, "NVIDIA GeForce RTX 4090": None},
    }
    assert {kind: peak(kind) for kind in kinds} == kinds


def test_counts_are_summed_over_processes(monkeypatch):
    counts = np.array([3, 5_000_000_000_000, 0])
    assert sum_over_processes(counts).tolist() == counts.tolist()
    monkeypatch.setattr(distributed.jax, "process_count", lambda: 2)
    gathered = []

    def allgather(x):
        gathered.append(x.dtype)
        return jnp.stack([x, x])  # as jax gives it, in 32 bits

    monkeypatch.setattr(distributed.multihost_utils, "process_allgather", allgather)
    assert sum_over_processes(counts).tolist() == [6, 10_000_000_000_000, 0] and gathered == [np.int32]


def test_memory_is_that_of_the_fullest_device(monkeypatch):
    found = memory()
    assert found.keys() == {"host_memory_gib"} and 0.05 < found["host_memory_gib"] < 200
    devices = [SimpleNamespace(memory_stats=lambda n=n: {"peak_bytes_in_use": n * GIB}) for n in (1, 3)]
    monkeypatch.setattr(throughput.jax, "local_devices", lambda: devices)
    assert memory()["device_memory_gib"] == 3.0
