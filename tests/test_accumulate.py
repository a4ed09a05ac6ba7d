"""Gradient accumulation: updates from the mean gradient of several batches, each with its own candidates."""

from __future__ import annotations

import dataclasses
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smart_jax.runtime.mesh import make_mesh
from tests.training import make_config
from train.config import from_config_dict
from train.data import Batcher, Examples, open_split
from train.monitor import read_metrics
from train.objective import objective as objective_module
from train.optimizer import OptimizerConfig, make_optimizer, make_schedule, updates_made
from train.posttrain import count_steps, open_data, train
from train.setup import load_encoder, make_objective
from train.step import init_state, make_train_step

pytestmark = pytest.mark.compiles


def np_adamw(params, gradients, config, rates):
    """Clip by global norm, AdamW: arXiv:1711.05101 in float64, weight decay on the projection's kernel alone."""
    params = {n: np.asarray(x, np.float64) for n, x in params.items()}
    m, v = ({n: np.zeros_like(x) for n, x in params.items()} for _ in range(2))
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        norm = np.sqrt(sum((g**2).sum() for g in gradient.values()))
        assert norm > config.clip_norm  # so that clipping before or after averaging is not the same
        for name, g in gradient.items():
            g = g * config.clip_norm / norm
            m[name] = config.b1 * m[name] + (1 - config.b1) * g
            v[name] = config.b2 * v[name] + (1 - config.b2) * g**2
            step = m[name] / (1 - config.b1**t) / (np.sqrt(v[name] / (1 - config.b2**t)) + config.eps)
            decay = config.weight_decay * params[name] if name == "adapter.proj.kernel" else 0
            params[name] = params[name] - rate * (step + decay)
    return params


@pytest.mark.parametrize("broken", [2, pytest.param(None, marks=pytest.mark.slow)])
def test_an_update_is_the_one_of_the_mean_gradient(inputs, tmp_path, monkeypatch, broken):
    """Each update is of two batches; one whose gradient is not finite is left out, and the next takes its place."""
    settings = {"optimizer.eps": 1e-3, "optimizer.clip_norm": 0.1, "optimizer.skip_nonfinite": 1, "accumulate": 2}
    settings |= {"data.document_length": 64, "data.document_patches": 16, "data.query_length": 64, "adapter.dim": 16}
    config = make_config(inputs, tmp_path, **settings)
    mesh = make_mesh(devices=jax.devices()[:1])
    encoder = load_encoder(config, mesh)
    params, frozen, objective = make_objective(config, encoder, mesh, steps=8)
    batcher = Batcher(encoder.preprocessor, config.data, mesh)
    data = Examples(open_split(inputs / "data", "pages"), 8, seed=config.seed)
    batches = [batcher(next(data)) for _ in range(5)]
    gradient_of = jax.jit(jax.grad(objective, has_aux=True))

    optimizer = make_optimizer(config.optimizer, 8, config.accumulate)
    schedule = make_schedule(config.optimizer, 4)
    start = jax.device_get(params)
    state = init_state(params, optimizer, mesh)
    contrastive = objective_module.contrastive

    def sometimes_broken(*arguments):
        loss, metrics = contrastive(*arguments)
        return jnp.where(arguments[5] == broken, jnp.nan, 1.0) * loss, metrics

    if broken is not None:
        monkeypatch.setattr(objective_module, "contrastive", sometimes_broken)
    step_fn = make_train_step(objective, optimizer, schedule, state)
    pairs = [(1, 2), (3, 4)] if broken is None else [(1, 3), (4, 5)]
    seen, gradients, gradient = [start], [], []
    for step, batch in enumerate(batches[: pairs[-1][1]], start=1):
        before = jax.device_get(state.params)
        if step != broken:
            gradient.append(jax.device_get(gradient_of(state.params, frozen, batch, jnp.int32(step))[0]))
        state, metrics = step_fn(state, frozen, batch)
        made = sum(step > last for _, last in pairs)
        assert float(metrics["learning_rate"]) == pytest.approx(float(schedule(made)))
        assert float(metrics["skipped_updates"]) == (broken is not None and step >= broken)
        if len(gradient) == 2:
            gradients.append({n: (gradient[0][n].astype(np.float64) + gradient[1][n]) / 2 for n in start})
            gradient = []
            seen.append(jax.device_get(state.params))
        else:
            chex.assert_trees_all_equal(state.params, before)
    rates = [float(schedule(0)), float(schedule(1))]
    for count in (1, 2):
        expected = np_adamw(start, gradients[:count], config.optimizer, rates[:count])
        chex.assert_trees_all_close(seen[count], jax.tree.map(np.float32, expected), rtol=1e-7, atol=2e-6)
    moved = np.abs(seen[2]["adapter.proj.kernel"] - start["adapter.proj.kernel"]).max()
    assert moved > 100 * 2e-6


def test_resumes_between_two_batches_of_an_update_bit_identically(inputs, tmp_path):
    settings = {"accumulate": 2, "steps": 6, "checkpoint.every": 3, "checkpoint.keep": 5, "eval.validation_batches": 0}
    settings |= {"optimizer.warmup_ratio": 0.0, "adapter.dim": 16}
    train(make_config(inputs, tmp_path, **settings))
    file = tmp_path / "adapter" / "adapter.safetensors"
    whole, records = file.read_bytes(), read_metrics(tmp_path / "metrics.jsonl")
    rates = [record["learning_rate"] for record in records]
    assert rates[::2] == rates[1::2] and rates[0] > rates[2] > rates[4] > 0

    shutil.rmtree(tmp_path / "checkpoints" / "6")
    file.unlink()
    train(make_config(inputs, tmp_path, resume=True, **settings))
    assert file.read_bytes() == whole
    again = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["loss"] for r in again] == [r["loss"] for r in records] and len(again) == 6
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["accumulate"] == 2


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize(
    ("accumulate", "skip", "expected"),
    [(1, 0, [0, 1, 2, 3, 4, 5]), (2, 0, [0, 0, 1, 1, 2, 2]), (2, 3, [0, 0, 1, 1, 1, 2])],
)
def test_updates_are_counted(name, accumulate, skip, expected):
    """The third of 6 gradients is not finite."""
    config = OptimizerConfig(name=name, skip_nonfinite=skip, schedule="linear")
    optimizer = make_optimizer(config, 6, accumulate)
    params = {"proj.kernel": jnp.ones((4, 3)), "norm.scale": jnp.ones(4)}
    state, counts = optimizer.init(params), []
    for step in range(6):
        counts.append(int(updates_made(state)))
        gradient = jax.tree.map(lambda x, step=step: jnp.full_like(x, jnp.nan if step == 2 and skip else 0.1), params)
        _, state = optimizer.update(gradient, state, params)
    assert counts == expected


def test_epochs_make_whole_updates(inputs, tmp_path):
    """28 examples in batches of 8: 3 a pass; 2.5 passes are 7 batches, of which 6 make 2 updates of 3."""
    config = make_config(inputs, tmp_path, epochs=2.5, accumulate=3, steps=3)
    batches = open_data(config, make_mesh(devices=jax.devices()[:1])).batches_per_epoch
    assert batches == 3 and count_steps(config, batches) == 3
    assert count_steps(dataclasses.replace(config, steps=None), batches) == 6
    assert count_steps(dataclasses.replace(config, steps=None, epochs=0.1), batches) == 3


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"accumulate": 0}, "accumulate is 0: it must be positive"),
        ({"accumulate": 4, "steps": 9}, "steps is 9, which does not divide by accumulate = 4"),
        ({"remat_policy": "half"}, "choose one of full, dots"),
    ],
)
def test_values_out_of_range(values, error):
    with pytest.raises(ValueError, match=error):
        from_config_dict(values)
