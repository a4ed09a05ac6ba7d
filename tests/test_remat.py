"""Rematerialisation of a backbone's layers: the same loss and gradient, in less memory."""

from __future__ import annotations

import dataclasses
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smart_jax.runtime.mesh import make_mesh
from tests.backbone import write_backbone
from tests.checkpoints import write_processor
from tests.test_posttrain import examples
from tests.training import make_config
from train.data import Batcher
from train.setup import load_encoder, make_objective

pytestmark = pytest.mark.compiles

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
def inputs(inputs, tmp_path_factory):
    """Inputs with a backbone of six layers, so that what a layer keeps is most of the memory."""
    folder = shutil.copytree(inputs, tmp_path_factory.mktemp("remat") / "inputs")
    text = {"num_hidden_layers": 6, "intermediate_size": 96}
    write_processor(write_backbone(folder / "deep", text_config=text, vision_config={"depth": 3}))
    return folder


def objective_and_arguments(config, mesh=None):
    """Returns what a run's step differentiates, and where."""
    mesh = make_mesh(devices=jax.devices()[:1]) if mesh is None else mesh
    encoder = load_encoder(config, mesh)
    params, frozen, objective = make_objective(config, encoder, mesh, steps=10)
    rng = np.random.default_rng(0)
    noise = {n: 0.1 * rng.standard_normal(x.shape).astype(np.float32) for n, x in sorted(params.items())}
    params = {n: jax.device_put(x + noise[n], x.sharding) for n, x in params.items()}
    batch = Batcher(encoder.preprocessor, config.data, mesh)(examples(16, negatives=config.data.negatives))
    return objective, (params, frozen, batch, jnp.int32(3))


def kept(objective, arguments) -> int:
    """Bytes that the forward pass keeps for the backward pass, beyond weights and batch.

    As traced: XLA's CPU compiler merges what is computed twice, so that its memory says nothing of other devices'.
    """

    def residuals(params, *others):
        return jax.tree.leaves(jax.vjp(lambda p: objective(p, *others)[0], params)[1])

    jaxpr = jax.make_jaxpr(residuals)(*arguments).jaxpr
    found = {id(x): x.aval for x in jaxpr.outvars} | {id(x): None for x in jaxpr.invars}
    return sum(x.size * x.dtype.itemsize for x in found.values() if x is not None)


def with_policies(inputs, folder, kind, **settings):
    """The config without rematerialisation, and with each policy."""
    settings = {"loss.temperature": 0.3, "data.query_length": 128, "data.document_length": 128} | settings
    plain = make_config(inputs, folder, **KINDS[kind] | settings, **{"data.document_patches": 32})
    rematerialised = {p: dataclasses.replace(plain, remat=True, remat_policy=p) for p in ("dots", "full")}
    return {"none": plain} | rematerialised


@pytest.mark.parametrize("kind", KINDS)
def test_policies_change_what_is_kept(inputs, tmp_path, kind):
    configs = with_policies(inputs, tmp_path, kind, model=str(inputs / "deep"))
    memory = {policy: kept(*objective_and_arguments(config)) for policy, config in configs.items()}
    assert memory["full"] < 0.1 * memory["none"], memory
    # Without a policy little is kept beside what products give and take: norms' gradients are written out.
    assert 5 * memory["full"] < memory["dots"] < 0.97 * memory["none"], memory


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_policies_change_nothing_else(inputs, tmp_path, kind):
    found = {}
    for policy, config in with_policies(inputs, tmp_path, kind).items():
        objective, arguments = objective_and_arguments(config)
        (loss, _), gradient = jax.device_get(jax.jit(jax.value_and_grad(objective, has_aux=True))(*arguments))
        found[policy] = loss, gradient
    loss, gradient = found["none"]
    scale = max(1, *(np.abs(g).max() for g in gradient.values()))
    for policy in ("dots", "full"):
        np.testing.assert_allclose(found[policy][0], loss, atol=1e-5, rtol=1e-5)
        for name, value in gradient.items():
            np.testing.assert_allclose(found[policy][1][name], value, atol=1e-5 * scale, err_msg=f"{policy} {name}")
