"""The gated delta rule in chunks, against the recurrence in float64 and against transformers' reference in torch."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from transformers.models.qwen3_5 import modeling_qwen3_5

from smart_jax.models.qwen3_5.gated_delta import _inverse, _shares, gated_delta

NAMES = ("q", "k", "v", "g", "beta")
SHAPES = {  # length, heads of keys and of values, width of a key and of a value
    "one token": (1, 1, 1, 4, 4),
    "less than a chunk": (9, 2, 2, 8, 4),
    "a whole chunk and one token more": (17, 1, 3, 4, 8),
    "two chunks": (128, 2, 4, 16, 8),
}
VALUES = {  # mean of a key's components, of log(-g), and of beta's logit
    "keys of all directions": (0, -2, 0),
    "keys that resemble each other, slow decay": (5, -7, 4),
    "keys that are the same, no decay": (1000, -20, 20),
    "little is left": (1, 4, 0),
    "some tokens leave nothing": (1, None, 0),
}
run = jax.jit(gated_delta, static_argnames="chunk")


def arguments(shape="two chunks", values="keys of all directions", *, seed=0):
    rng = np.random.default_rng(seed)
    (length, keys, heads, width, value_width), (mean, decay, mark) = SHAPES[shape], VALUES[values]
    q, k = (rng.normal(size=(2, length, keys, width)) + mean for _ in range(2))
    q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (q, k))
    v = rng.normal(size=(2, length, heads, value_width))
    g = -np.exp(rng.normal(size=(2, length, heads)) + (-3 if decay is None else decay))
    if decay is None:
        g = np.where(rng.random(g.shape) < 0.3, -3e4, g)
    beta = 1 / (1 + np.exp(-rng.normal(size=(2, length, heads)) - mark))
    return tuple(x.astype(np.float32) for x in (q * width**-0.5, k, v, g, beta))


def exact(*inputs):
    """The definition, token by token, in float64."""
    q, k, v, g, beta = (np.float64(x) for x in inputs)
    q, k = (np.repeat(x, v.shape[2] // k.shape[2], 2) for x in (q, k))
    state, read = np.zeros((len(v), v.shape[2], k.shape[3], v.shape[3])), []
    for t in range(v.shape[1]):
        state = np.exp(g[:, t])[..., None, None] * state
        written = beta[:, t, :, None] * (v[:, t] - np.einsum("bac,bacw->baw", k[:, t], state))
        state = state + k[:, t, :, :, None] * written[:, :, None]
        read.append(np.einsum("bac,bacw->baw", q[:, t], state))
    return np.stack(read, 1)


def torch_gradients(inputs, weights):
    """Gradients of the weighted sum of the recurrence's results, in float64 by torch's autodiff."""
    inputs = [torch.from_numpy(np.float64(x)).requires_grad_() for x in inputs]
    q, k, v, g, beta = inputs
    q, k = (x.repeat_interleave(v.shape[2] // k.shape[2], 2) for x in (q, k))
    state, total = torch.zeros(len(v), v.shape[2], k.shape[3], v.shape[3], dtype=v.dtype), 0
    for t in range(v.shape[1]):
        state = g[:, t].exp()[..., None, None] * state
        written = beta[:, t, :, None] * (v[:, t] - torch.einsum("bac,bacw->baw", k[:, t], state))
        state = state + k[:, t, :, :, None] * written[:, :, None]
        total = total + (torch.einsum("bac,bacw->baw", q[:, t], state) * torch.from_numpy(weights[:, t])).sum()
    total.backward()
    return [x.grad.numpy() for x in inputs]


@jax.jit
@partial(jax.grad, argnums=range(5))
def gradients(q, k, v, g, beta, weights):
    return (gated_delta(q, k, v, g, beta, chunk=16) * weights).sum()


@pytest.mark.parametrize("case", [*SHAPES, *VALUES])
def test_is_the_recurrence(case):
    inputs = arguments(case) if case in SHAPES else arguments(values=case)
    for chunk in (16, 64):
        np.testing.assert_allclose(run(*inputs, chunk=chunk), exact(*inputs), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_is_what_torch_computes(shape):
    q, k, v, g, beta = map(torch.from_numpy, arguments(shape))
    scaled = q * q.shape[-1] ** 0.5  # since torch scales queries itself
    expected, _ = modeling_qwen3_5.torch_chunk_gated_delta_rule(scaled, k, v, g, beta)
    np.testing.assert_allclose(run(*arguments(shape), chunk=64), expected, atol=2e-6, rtol=1e-5)


# Where each token replaces all that the state holds, its decay has no gradient that an error could be relative to.
@pytest.mark.parametrize("values", [name for name in VALUES if "the same" not in name])
def test_gradients_are_those_of_the_recurrence(values):
    inputs = arguments("two chunks", values)
    weights = np.random.default_rng(1).normal(size=inputs[2].shape).astype(np.float32)
    for name, a, b in zip(NAMES, gradients(*inputs, weights), torch_gradients(inputs, weights), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4 * np.abs(b).max(), rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("least", [-1e3, -1e30, -np.inf])
def test_a_token_that_leaves_nothing_begins_anew(least):
    """The positions from it on read what they read without those before; nothing becomes NaN."""
    q, k, v, g, beta = arguments()
    g[:, 37] = least
    inputs = q, k, v, g, beta
    weights = np.ones(v.shape, np.float32)
    np.testing.assert_allclose(run(*inputs)[:, 37:], exact(*(x[:, 37:] for x in inputs)), atol=2e-6, rtol=1e-5)
    assert all(np.isfinite(x).all() for x in gradients(*inputs, weights))


def test_sums_of_strong_and_weak_decays_keep_the_weak():
    """A plain running sum of float32 would be wrong by 2e-4 behind a hundred strong ones."""
    g = np.where(np.arange(128) < 100, -100.0, -1e-3 * np.arange(128)).astype(np.float32)
    _, between, rest = _shares(jnp.asarray(g))
    expected = np.exp(np.float64(g[101:]).sum())
    np.testing.assert_allclose([between[-1, 100], rest[100]], expected, rtol=1e-6)


def test_inverse_of_keys_that_are_the_same():
    """Takes a triangle of ones, whose powers reach 1e18: doubling multiplies these."""
    system = np.tril(np.ones((2, 64, 64), np.float32), -1)
    expected = np.eye(64) - np.eye(64, k=-1)
    np.testing.assert_array_equal(_inverse(jnp.asarray(system)), np.broadcast_to(expected, system.shape))


@pytest.mark.parametrize("shape", ["less than a chunk", "a whole chunk and one token more"])
def test_padding_on_the_right_changes_nothing(shape):
    inputs = arguments(shape)
    length = inputs[0].shape[1]
    pairs = zip(inputs, arguments("two chunks", seed=1), strict=True)
    longer = [np.concatenate([x, np.resize(noise, (2, 60 - length, *x.shape[2:]))], 1) for x, noise in pairs]
    np.testing.assert_allclose(run(*longer)[:, :length], run(*inputs), atol=1e-6)


def test_chunks_change_nothing():
    inputs = arguments("a whole chunk and one token more")
    found = [run(*inputs, chunk=chunk) for chunk in (1, 2, 128)]
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], atol=1e-6)


def test_vmap():
    seeds = (arguments("less than a chunk", seed=seed) for seed in range(2))
    inputs = [np.stack(both) for both in zip(*seeds, strict=True)]
    one_by_one = [run(*(x[i] for x in inputs)) for i in range(2)]
    np.testing.assert_allclose(jax.jit(jax.vmap(gated_delta))(*inputs), one_by_one, atol=1e-6)


def test_half_precision_is_computed_in_float32():
    inputs = [jnp.asarray(x, jnp.bfloat16) for x in arguments("less than a chunk")]
    found = run(*inputs)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, exact(*(np.float32(x) for x in inputs)), atol=2e-6, rtol=1e-5)


def test_arguments_that_do_not_fit():
    q, k, v, g, beta = arguments("two chunks")
    with pytest.raises(ValueError, match="2 heads of keys cannot serve 3 heads of values"):
        run(q, k, v[:, :, :3], g[:, :, :3], beta[:, :, :3])
    with pytest.raises(ValueError, match="a chunk cannot have 48 positions: choose a power of two"):
        run(q, k, v, g, beta, chunk=48)


def test_the_backward_pass_keeps_its_arguments_and_a_state_of_each_chunk():
    """As traced: XLA's CPU compiler merges what is computed twice."""
    inputs = arguments()
    traced = jax.make_jaxpr(lambda *x: jax.tree.leaves(jax.vjp(partial(gated_delta, chunk=16), *x)[1]))(*inputs).jaxpr
    kept = sum(x.aval.size for x in {id(x): x for x in traced.outvars}.values())
    (length, _, heads, width, value_width), batch = SHAPES["two chunks"], 2
    states = batch * heads * width * value_width * length // 16
    masks = 8 * 16 * 16
    assert states <= kept - sum(x.size for x in inputs) < states + masks


@pytest.mark.slow
def test_heads_on_eight_devices():
    """Eight heads of keys that serve two of values each, split over the devices: results and gradients."""
    inputs = [np.concatenate([x] * 4, 2) for x in arguments()]
    weights = np.random.default_rng(1).normal(size=inputs[2].shape).astype(np.float32)
    heads = NamedSharding(Mesh(np.array(jax.devices()[:8]), "heads"), PartitionSpec(None, None, "heads"))
    placed = [jax.device_put(x, heads) for x in inputs]
    found = run(*placed)
    assert found.sharding.is_equivalent_to(heads, found.ndim)
    np.testing.assert_allclose(found, run(*inputs), atol=1e-6)
    for a, b in zip(gradients(*placed, weights), gradients(*inputs, weights), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max())
