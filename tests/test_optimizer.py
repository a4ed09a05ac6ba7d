"""Schedules, decay mask and clipping against the formulas in NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.optimizer import OptimizerConfig, decay_mask, make_optimizer, make_schedule


def rates(steps, **settings):
    schedule = make_schedule(OptimizerConfig(learning_rate=2.0, **settings), steps)
    return np.array([schedule(n) for n in range(steps + 1)])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_warmup_is_linear_and_reaches_the_peak(schedule):
    values = rates(100, schedule=schedule, warmup_ratio=0.1)
    np.testing.assert_allclose(values[:11], 2.0 * np.arange(11) / 10, rtol=1e-6)


def test_no_warmup_starts_at_the_peak():
    assert rates(10, schedule="linear", warmup_ratio=0.0)[0] == 2.0


def test_after_the_warmup():
    x = np.arange(81) / 80
    after = {name: rates(100, schedule=name, warmup_ratio=0.2, final_ratio=0.1)[20:] for name in ("linear", "cosine")}
    np.testing.assert_allclose(after["linear"], 2 * (1 - 0.9 * x), rtol=1e-5)
    np.testing.assert_allclose(after["cosine"], 2 * (0.1 + 0.9 * (1 + np.cos(np.pi * x)) / 2), rtol=1e-5)
    assert (rates(100, schedule="constant", warmup_ratio=0.2)[20:] == 2).all()
    wsd = rates(100, schedule="wsd", warmup_ratio=0.2, decay_ratio=0.4)
    assert (wsd[20:61] == 2).all()
    np.testing.assert_allclose(wsd[60:], 2 * (1 - np.arange(41) / 40), atol=1e-6)


def test_the_papers_schedule():
    # arXiv:2605.24938's code: int(3 % of the steps) of warm-up from 0, then half a cosine to 0.
    steps, warmup = 463, 13
    n = np.arange(steps)
    expected = np.where(n < warmup, n / warmup, (1 + np.cos(np.pi * (n - warmup) / (steps - warmup))) / 2)
    schedule = make_schedule(OptimizerConfig(), steps)
    np.testing.assert_allclose([schedule(i) for i in n], 1e-3 * expected, rtol=1e-4, atol=1e-9)


def test_unknown_schedule_and_bad_ratio_are_refused():
    with pytest.raises(ValueError, match="constant, linear, cosine, wsd"):
        OptimizerConfig(schedule="step")
    with pytest.raises(ValueError, match="warmup_ratio is 3"):
        OptimizerConfig(warmup_ratio=3.0)


def test_decay_leaves_out_norms_biases_and_embeddings():
    names = {
        "adapter.norm.scale": False,
        "adapter.norm.bias": False,
        "adapter.proj.kernel": True,
        "model.visual.pos_embed.embedding": False,
        "model.language_model.embed_tokens.embedding": False,
        "model.language_model.layers.0.self_attn.q_norm.scale": False,
        "model.language_model.layers.0.mlp.up_proj.kernel": True,
        "model.visual.blocks.0.attn.qkv.bias": False,
        "log_temperature.late": False,
    }
    assert decay_mask(dict.fromkeys(names)) == names
    with_norms = {name: decayed or name.endswith(".scale") for name, decayed in names.items()}
    assert decay_mask(dict.fromkeys(names), norms=True) == with_norms


def test_gains_of_norms_are_decayed_where_asked():
    params = {"adapter.norm.scale": jnp.ones(3), "adapter.norm.bias": jnp.ones(3)}
    zero = jax.tree.map(jnp.zeros_like, params)
    for decayed in (False, True):
        config = OptimizerConfig(
            learning_rate=1.0, schedule="constant", warmup_ratio=0.0, weight_decay=0.25, decay_norms=decayed
        )
        optimizer = make_optimizer(config, steps=8)
        updates, _ = optimizer.update(zero, optimizer.init(params), params)
        np.testing.assert_allclose(updates["adapter.norm.scale"], -0.25 if decayed else 0.0)
        np.testing.assert_array_equal(updates["adapter.norm.bias"], 0.0)


def test_an_update_equals_adamw_by_hand():
    config = OptimizerConfig(
        learning_rate=0.1, schedule="constant", warmup_ratio=0.0, b1=0.8, b2=0.9, weight_decay=0.5, clip_norm=1.0
    )
    params = {"a.kernel": jnp.array([1.0, -2.0]), "a.bias": jnp.array([3.0])}
    gradients = [
        {"a.kernel": jnp.array([3.0, 0.0]), "a.bias": jnp.array([4.0])},  # norm 5 -> divided by 5
        {"a.kernel": jnp.array([0.1, 0.2]), "a.bias": jnp.array([0.2])},  # norm 0.3: as it is
    ]
    optimizer = make_optimizer(config, 10)
    state = optimizer.init(params)
    x, m, v = np.array([1.0, -2.0, 3.0]), np.zeros(3), np.zeros(3)
    for t, gradient in enumerate(gradients, start=1):
        updates, state = optimizer.update(gradient, state, params)
        params = jax.tree.map(jnp.add, params, updates)
        g = np.concatenate([gradient["a.kernel"], gradient["a.bias"]]).astype(np.float64)
        g = g / max(1.0, np.linalg.norm(g))
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g * g
        step = (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-8)
        x = x - 0.1 * (step + np.array([0.5, 0.5, 0.0]) * x)
    np.testing.assert_allclose(np.concatenate([params["a.kernel"], params["a.bias"]]), x, rtol=1e-5)


@pytest.mark.compiles
def test_muon_turns_a_matrix_gradient_into_a_nearly_orthogonal_update():
    config = OptimizerConfig(
        name="muon", learning_rate=0.1, schedule="constant", warmup_ratio=0.0, weight_decay=0.5, clip_norm=0.0
    )
    rng = np.random.default_rng(0)
    params = {"a.kernel": jnp.ones((24, 40)), "a.embedding": jnp.ones((8, 4)), "a.bias": jnp.ones(6)}
    gradient = {name: jnp.asarray(rng.normal(size=x.shape)) for name, x in params.items()}
    optimizer = make_optimizer(config, 10)
    updates, _ = optimizer.update(gradient, optimizer.init(params), params)
    u, _, v = np.linalg.svd(gradient["a.kernel"], full_matrices=False)
    update = np.asarray(updates["a.kernel"]) + 0.1 * 0.5  # without the decay
    values = np.diag(u.T @ update @ v.T) / (-0.1 * 0.2 * np.sqrt(40))
    # Newton-Schulz with five steps brings the singular values near 1 (0.7 .. 1.2) and keeps the vectors.
    assert values.min() > 0.65 and values.max() < 1.25
    np.testing.assert_allclose(
        u @ np.diag(np.diag(u.T @ update @ v.T)) @ v, update, atol=1e-3 * np.abs(update).max(), rtol=0
    )
    nesterov = 1 + 0.9 * 0.1 / (1 - 0.9**2)  # Adam's first step is this times the sign; nothing decays here
    for name in ("a.embedding", "a.bias"):
        np.testing.assert_allclose(updates[name], -0.1 * nesterov * np.sign(gradient[name]), rtol=1e-4)


def test_unknown_optimizer_is_refused():
    with pytest.raises(ValueError, match=r"optimizer\.name 'sgd' is unknown: choose one of adamw, muon"):
        OptimizerConfig(name="sgd")
