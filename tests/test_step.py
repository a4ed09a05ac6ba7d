"""Tests of what a training step does not do: trace again, transfer arrays by itself, train what is frozen."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smart_jax.runtime import make_mesh
from tests.training import make_config, page, write_inputs
from train.data import Example
from train.data.rows import Skipped
from train.objective import Objective, Part, TrainBatch
from train.setup import load_encoder, make_objective
from train.training import Training


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("step"))


def examples(first: int) -> list[Example]:
    return [Example(str(i), {"text": f"page {i}"}, {"image": page(i)}) for i in range(first, first + 4)]


def test_a_step_is_traced_once_and_transfers_nothing(inputs, monkeypatch):
    """Only `device_put` and `device_get` move arrays under the guard; batches of one shape share a program."""
    chex.clear_trace_counter()
    monkeypatch.setattr(Objective, "__call__", chex.assert_max_traces(Objective.__call__, n=1))
    settings = {"loss__objective": "hybrid", "loss__learn_temperature": True, "optimizer__skip_nonfinite": 1}
    settings |= {"data__query_length": 64, "data__document_length": 64, "data__document_patches": 16}
    config = make_config(inputs, Path("unused"), batch_size=4, **settings)
    training = Training(config, make_mesh(devices=jax.devices()[:2]), steps=8)
    temperatures = training.objective.partition.select(training.state.params, Part.TEMPERATURE)
    floor = np.log(np.float32(config.loss.min_temperature))
    lowered = {name: x - 3 for name, x in temperatures.items()}  # from 0.03 to below the floor
    assert all(float(x) < floor for x in lowered.values())
    training.state = dataclasses.replace(training.state, params=training.state.params | lowered)
    before = jax.tree.map(lambda x: x.sharding, training.state)
    training.update(training.batcher(examples(0)))
    with jax.transfer_guard("disallow"):
        metrics = training.update(training.batcher(examples(4)))
        assert np.isfinite(jax.device_get(metrics)["loss"])
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):  # the guard works on this backend
            jnp.sum(training.batcher.arrays(examples(8), Skipped(0)).document_ids)
    assert jax.tree.map(lambda x: x.sharding, training.state) == before
    assert training.step == 2
    temperatures = training.objective.partition.select(training.state.params, Part.TEMPERATURE)
    assert temperatures and all(float(x) >= floor for x in temperatures.values())


@pytest.mark.parametrize(
    ("settings", "parts", "backbone", "vision"),
    [
        ({"trainable": "adapter"}, {Part.ADAPTER}, False, False),
        ({"trainable": "adapter", "loss__learn_temperature": True}, {Part.ADAPTER, Part.TEMPERATURE}, False, False),
        ({"trainable": "adapter+lora"}, {Part.ADAPTER, Part.LORA}, True, False),
        ({"trainable": "lora", "lora__modules": "qkv"}, {Part.LORA}, True, True),
        ({"trainable": "full"}, {Part.BACKBONE}, True, False),
        ({"trainable": "full", "weights": "."}, {Part.BACKBONE}, True, True),
    ],
)
def test_the_partition_says_what_is_trained(inputs, settings, parts, backbone, vision):
    config, mesh = make_config(inputs, Path("unused"), **settings), make_mesh(devices=jax.devices()[:1])
    params, frozen, objective = make_objective(config, load_encoder(config, mesh), mesh, steps=1)
    partition = objective.partition
    assert partition.trained.keys() == params.keys() and partition.frozen.keys() == frozen.keys()
    assert {place.part for place in partition.trained.values()} == parts
    assert (partition.trains_backbone, partition.trains_vision) == (backbone, vision)
    chex.assert_trees_all_equal(partition.split(params | frozen), (params, frozen))
    for part in Part:
        assert all(name.startswith(f"{part.value}.") for name in partition.select(params | frozen, part))


@pytest.mark.usefixtures("unchecked")
def test_queries_and_documents_are_dropped_apart(inputs, monkeypatch):
    """Each side has a key of its own, another at every step."""
    config = make_config(inputs, Path("unused"), trainable="lora", lora__r=2, lora__dropout=0.5)
    mesh = make_mesh(devices=jax.devices()[:1])
    params, frozen, objective = make_objective(config, load_encoder(config, mesh), mesh, steps=8)
    keys = []
    monkeypatch.setattr(Objective, "encode", lambda self, params, frozen, batch, key=None: keys.append(key))
    monkeypatch.setattr(Objective, "compare", lambda *_: (0.0, {}))
    batch = TrainBatch(None, None, None, None)
    for step in (1, 2):
        objective(params, frozen, batch, jnp.int32(step))
    assert len({tuple(jax.random.key_data(key).tolist()) for key in keys}) == 4
