"""Parts of a mesh: parameters, optimizer state and activations; and masters of more bits than the computing."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from smart_jax.models.qwen_vl import QwenVL
from smart_jax.runtime import AXES, batch_sharding
from smart_jax.runtime.mesh import batch_part, make_mesh
from tests.test_posttrain import examples
from tests.training import make_config
from train.data import Batcher
from train.optimizer import make_optimizer, make_schedule
from train.setup import load_encoder, make_objective
from train.step import init_state, make_train_step

LORA = {"trainable": "lora", "lora.r": 4, "lora.modules": r"_proj$"}
FULL = {"trainable": "full", "weights": ".", "loss.temperature": 0.3}
LENGTHS = {"data.query_length": 64, "data.document_length": 64, "data.document_patches": 16}


def step_of(config, mesh):
    """The train step, and its state, frozen parameters and batch."""
    encoder = load_encoder(config, mesh)
    params, frozen, objective = make_objective(config, encoder, mesh, steps=8)
    optimizer = make_optimizer(config.optimizer, 8, config.accumulate)
    state = init_state(params, optimizer, mesh)
    step_fn = make_train_step(objective, optimizer, make_schedule(config.optimizer, 8), state)
    return step_fn, state, frozen, Batcher(encoder.preprocessor, config.data, mesh)(examples(16))


def axes(spec: PartitionSpec) -> set[str]:
    return {axis for axis in spec if axis is not None}


@pytest.mark.parametrize("settings", [LORA, FULL], ids=["lora", "full"])
def test_parameters_and_the_optimizers_state_are_split(inputs, tmp_path, settings):
    """Each moment, and each sum of gradients, is where its parameter is; a device has its share of the bytes."""
    config = make_config(inputs, tmp_path, accumulate=2, **settings)
    encoder, mesh = load_encoder(config, make_mesh(2, 2, 2)), make_mesh(2, 2, 2)
    params, frozen, _ = make_objective(config, encoder, mesh, steps=8)
    state = init_state(params, make_optimizer(config.optimizer, 8, config.accumulate), mesh)
    weights = frozen | params
    q = "language_model.layers.0.self_attn.q_proj"
    assert weights[f"model.{q}.kernel"].sharding.spec == PartitionSpec("fsdp", "tensor")
    if config.trainable == "lora":
        assert axes(params[f"lora.{q}.a"].sharding.spec) == {"fsdp"}
        assert axes(params[f"lora.{q}.b"].sharding.spec) == {"tensor"}
    moments = [
        x for x in jax.tree.leaves(state.opt_state, is_leaf=lambda x: isinstance(x, dict)) if isinstance(x, dict)
    ]
    assert len(moments) == 3  # both of Adam, and the mean gradient
    for tree in moments:
        assert tree.keys() == params.keys()
        for name, x in tree.items():
            assert x.sharding.is_equivalent_to(params[name].sharding, x.ndim), name
    for name, x in (*weights.items(), *(pair for tree in moments for pair in tree.items())):
        parts = np.prod([mesh.shape[axis] for axis in axes(x.sharding.spec)], dtype=int)
        shards = {shard.device: shard.data.nbytes for shard in x.addressable_shards}
        assert len(shards) == 8 and set(shards.values()) == {x.nbytes // parts}, name


@pytest.mark.slow
@pytest.mark.parametrize("settings", [LORA, FULL], ids=["lora", "full"])
def test_a_devices_memory_falls_with_each_axis(inputs, tmp_path, settings):
    """Memory of the compiled step: arguments (weights, moments, rows) and temporaries (activations, gradients)."""
    config = make_config(inputs, tmp_path, **settings, **LENGTHS)
    sizes = {}
    for shape in ((1, 1, 1), (8, 1, 1), (2, 4, 1), (2, 2, 2)):
        mesh = make_mesh(*shape, devices=jax.devices()[: np.prod(shape)])
        step_fn, state, frozen, batch = step_of(config, mesh)
        analysis = step_fn.lower(state, frozen, batch).compile().memory_analysis()
        rows = sum(x.nbytes for x in jax.tree.leaves(batch)) / (shape[0] * shape[1])
        sizes[shape] = analysis.argument_size_in_bytes - rows, analysis.temp_size_in_bytes
    arguments = {shape: found for shape, (found, _) in sizes.items()}
    assert arguments[8, 1, 1] == pytest.approx(arguments[1, 1, 1], rel=0.02)  # a copy of the weights on each
    assert arguments[2, 4, 1] < 0.6 * arguments[8, 1, 1] and arguments[2, 2, 2] < 0.6 * arguments[8, 1, 1], arguments
    assert sizes[8, 1, 1][1] < 0.3 * sizes[1, 1, 1][1], sizes  # of an eighth of the rows, beside what all need


@pytest.mark.slow
def test_masters_are_float32_where_bfloat16_computes(inputs, tmp_path, monkeypatch):
    """An update far below bfloat16's spacing is kept, and is float32's but for the rounding of the computing."""
    computed, call = set(), QwenVL.__call__

    def seen(self, batch, **options):
        hidden = call(self, batch, **options)
        computed.add(hidden.states.dtype.name)
        return hidden

    monkeypatch.setattr(QwenVL, "__call__", seen)
    settings = {"trainable": "full", "loss.objective": "pooled", "loss.temperature": 0.3, "optimizer.eps": 1e-2}
    settings |= {"optimizer.learning_rate": 1e-4, "optimizer.warmup_ratio": 0.0, "optimizer.weight_decay": 0.0}
    moved = {}

    def move(name, step_fn, state, frozen, batch):
        start = jax.device_get(state.params)
        state, _ = step_fn(state, frozen, batch)
        leaves = [x for x in jax.tree.leaves((state.params, state.opt_state)) if jnp.issubdtype(x.dtype, jnp.floating)]
        assert {x.dtype.name for x in leaves} == {"float32"}
        steps = [np.ravel(np.asarray(state.params[n]) - start[n]) for n in sorted(start)]
        moved[name] = np.concatenate(steps).astype(np.float64)

    for dtype in ("float32", "bfloat16"):
        config = make_config(inputs, tmp_path, dtype=dtype, **settings, **LENGTHS)
        step_fn, state, frozen, batch = step_of(config, make_mesh(devices=jax.devices()[:1]))
        assert {x.dtype.name for x in frozen.values()} == {dtype}  # vision: no master is needed
        if dtype == "float32":  # what rounding does to the weights alone, as a measure
            rounded, constants = jax.tree.map(
                lambda x: jnp.copy(x.astype(jnp.bfloat16).astype(jnp.float32)), (state.params, frozen)
            )
            again = dataclasses.replace(state, params=rounded, opt_state=jax.tree.map(jnp.copy, state.opt_state))
            move("rounded", step_fn, dataclasses.replace(again, step=jnp.copy(state.step)), constants, batch)
        move(dtype, step_fn, state, frozen, batch)
        assert computed == {dtype}
        computed.clear()
    size = np.linalg.norm(moved["float32"])
    rounding, error = (np.linalg.norm(moved[n] - moved["float32"]) / size for n in ("rounded", "bfloat16"))
    assert 0 < np.abs(moved["bfloat16"]).max() < 2e-4  # weights are about 0.2, where bfloat16's spacing is 1e-3
    assert 0.2 * rounding < error < 6 * rounding < 0.3, (error, rounding)


@dataclasses.dataclass(frozen=True)
class Device:
    process_index: int


def part(monkeypatch, owners, process: int) -> tuple[int, int]:
    """Part of a process, where `owners` [data * fsdp, tensor] are the processes of the mesh's devices."""
    monkeypatch.setattr(jax, "process_index", lambda: process)
    devices = np.vectorize(Device, otypes=[object])(np.asarray(owners))[:, None]
    shape = dict(zip(("data", "fsdp", "tensor"), devices.shape, strict=True))
    return batch_part(SimpleNamespace(devices=devices, shape=shape))


def test_processes_prepare_equal_parts_of_a_batch(monkeypatch, unchecked):
    def parts(owners):
        return [part(monkeypatch, owners, process) for process in range(int(np.max(owners)) + 1)]

    assert parts([[0, 0], [0, 0]]) == [(0, 1)]
    assert parts([[0], [0], [1], [1]]) == [(0, 2), (1, 2)]
    assert parts([[1], [0], [1], [0]]) == [(1, 2), (0, 2)]
    assert parts([[0, 1], [0, 1]]) == [(0, 1), (0, 1)]  # matrices are split between them: both read everything
    assert parts([[0, 1], [2, 3]]) == [(0, 2), (0, 2), (1, 2), (1, 2)]
    for uneven in ([[0], [0], [1]], [[0, 0], [0, 1], [1, 1]]):
        with pytest.raises(ValueError, match="do not split the batch into equal parts"):
            parts(uneven)


def test_rows_are_split_over_all_axes_but_the_tensors():
    mesh = AbstractMesh((2, 4, 3), AXES)
    assert batch_sharding(mesh).shard_shape((16, 5)) == (2, 5)
    assert batch_sharding(mesh, leading=1).shard_shape((7, 16, 5)) == (7, 2, 5)
