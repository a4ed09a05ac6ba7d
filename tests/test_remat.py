"""Rematerialisation of a backbone's layers: the same loss and gradient, in less memory."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smart_jax.sharding import make_mesh
from tests.backbone import write_backbone
from tests.checkpoints import write_processor
from tests.test_posttrain import examples
from tests.training import make_config, write_inputs
from train.batches import Batcher
from train.run import load_encoder, make_objective

KINDS = {
    "lora": {
        "trainable": "lora",
        "lora.r": 4,
        "lora.alpha": 8.0,
        "lora.dropout": 0.3,
        "lora.modules": r"_proj$|visual",
    },
    "full": {"trainable": "full", "weights": "."},
    "adapter+lora": {"trainable": "adapter+lora", "lora.r": 4, "adapter.layers": "last 2", "data.negatives": 1},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """With a backbone of six layers, so that what a layer keeps is most of the memory."""
    folder = write_inputs(tmp_path_factory.mktemp("remat"))
    text = {"num_hidden_layers": 6, "intermediate_size": 96}
    write_processor(write_backbone(folder / "deep", text_config=text, vision_config={"depth": 3}))
    return folder


def compiled(config, mesh=None):
    """The step's gradient as compiled, and its arguments."""
    mesh = make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh
    encoder = load_encoder(config, mesh)
    params, frozen, objective = make_objective(config, encoder, mesh, steps=10)
    rng = np.random.default_rng(0)
    noise = {n: 0.1 * rng.standard_normal(x.shape).astype(np.float32) for n, x in sorted(params.items())}
    params = {n: jax.device_put(x + noise[n], x.sharding) for n, x in params.items()}
    batch = Batcher(encoder.preprocessor, config.data, mesh)(examples(16, negatives=config.data.negatives))
    arguments = (params, frozen, batch, jnp.int32(3))
    return jax.jit(jax.value_and_grad(objective, has_aux=True)).lower(*arguments).compile(), arguments


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_policies_change_memory_and_nothing_else(inputs, tmp_path, kind):
    settings = {"model": str(inputs / "deep"), "loss.temperature": 0.3, "data.query_length": 128} | KINDS[kind]
    settings |= {"data.document_length": 128, "data.document_patches": 32}
    plain = make_config(inputs, tmp_path, **settings)
    found = {}
    for policy in ("none", "dots", "full"):
        config = plain if policy == "none" else dataclasses.replace(plain, remat=True, remat_policy=policy)
        step, arguments = compiled(config)
        (loss, _), gradient = jax.device_get(step(*arguments))
        found[policy] = loss, gradient, step.memory_analysis().temp_size_in_bytes
    memory = {policy: size for policy, (_, _, size) in found.items()}
    assert memory["full"] < 0.5 * memory["dots"] and memory["dots"] < 0.95 * memory["none"], memory
    loss, gradient, _ = found["none"]
    scale = max(1, *(np.abs(g).max() for g in gradient.values()))
    for policy in ("dots", "full"):
        assert found[policy][0] == pytest.approx(loss, abs=1e-5 * max(1, abs(loss)))
        for name, value in gradient.items():
            np.testing.assert_allclose(found[policy][1][name], value, atol=1e-5 * scale, err_msg=f"{policy} {name}")
