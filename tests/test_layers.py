"""Layers whose gradient, or order of operations, is written out: against float64 NumPy and their plain definitions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from smart_jax.models import layers as L


@pytest.mark.parametrize("shape", [(7,), (2, 3, 8), (2, 3, 4, 16)])
def test_rms_norm_and_its_gradient(shape):
    """dx = r (g s - u mean(g s u)), ds = sum g u, with r = 1 / sqrt(mean(x^2) + eps) and u = r x."""
    rng = np.random.default_rng(0)
    x, g, scale = (rng.standard_normal(size) for size in (shape, shape, shape[-1:]))
    eps = 0.1
    value, pull_back = jax.vjp(lambda x, s: L.rms_normalized(x, s, eps), jnp.float32(x), jnp.float32(scale))
    r = 1 / np.sqrt((x**2).mean(-1, keepdims=True) + eps)
    np.testing.assert_allclose(value, x * r * scale, rtol=2e-6, atol=1e-6)
    of_x = r * (g * scale - r * x * (g * scale * r * x).mean(-1, keepdims=True))
    of_scale = (g * r * x).reshape(-1, shape[-1]).sum(0)
    for found, expected in zip(pull_back(jnp.float32(g)), (of_x, of_scale), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-6)


def test_rms_norm_is_flax_own_and_autodiffs():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 5, 12)), jnp.float32)
    theirs = nnx.RMSNorm(12, epsilon=1e-3, rngs=nnx.Rngs(0))
    ours = L.RMSNorm(12, 1e-3)
    ours.scale[...] = theirs.scale[...] = jnp.linspace(0.5, 2, 12)
    np.testing.assert_allclose(ours(x), theirs(x), atol=1e-6)
    gradients = [jax.grad(lambda x, norm=norm: jnp.sin(norm(x)).sum())(x) for norm in (ours, theirs)]
    np.testing.assert_allclose(*gradients, atol=2e-6)


def test_rms_norm_computes_in_float32():
    """In 16 bits squares of 300 would overflow float16, and a mean of 4,096 would lose digits."""
    x = 300 * np.random.default_rng(0).standard_normal((3, 4096))
    for dtype, tolerance in ((jnp.float16, 2e-3), (jnp.bfloat16, 1e-2)):
        given = jnp.asarray(x, dtype)
        value, pull_back = jax.vjp(lambda x, d=dtype: L.rms_normalized(x, jnp.ones(4096, d), 1e-6), given)
        wide = np.asarray(given, np.float64)
        expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True))
        assert value.dtype == pull_back(value)[0].dtype == dtype
        np.testing.assert_allclose(np.asarray(value, np.float64), expected, atol=5 * tolerance, rtol=tolerance)


def test_a_rotation_turns_by_the_chosen_positions():
    """Complex numbers x1 + i x2, each turned by its frequency times the position on its axis."""
    rng = np.random.default_rng(0)
    positions, axes = rng.integers(0, 1000, (3, 2, 5)), np.array([2, 0, 1, 0])
    frequencies = L.inverse_frequencies(8, 10_000.0)
    x = rng.standard_normal((2, 5, 6, 8))
    found = L.rotate(jnp.float32(x), L.rotation_of(jnp.asarray(positions), frequencies, jnp.asarray(axes)))
    angles = positions.astype(np.float32)[axes].transpose(1, 2, 0) * np.asarray(frequencies)  # float32, as models do
    turned = (x[..., :4] + 1j * x[..., 4:]) * np.exp(1j * angles.astype(np.float64))[:, :, None]
    np.testing.assert_allclose(found, np.concatenate([turned.real, turned.imag], -1), atol=2e-6)


def test_a_cosine_is_computed_once_for_all_heads():
    """Is not in the fusions that turn the vectors, on a CPU."""
    x, positions, axes = jnp.ones((2, 8, 4, 16)), jnp.ones((3, 2, 8), jnp.int32), jnp.arange(8) % 3

    def turned(x, positions):
        rotation = L.rotation_of(positions, L.inverse_frequencies(16, 1e4), axes)
        return L.rotate(x, rotation), L.rotate(2 * x, rotation)

    program = jax.jit(turned).lower(x, positions).compile().as_text()
    turns = [text for text in program.split("\n\n") if " concatenate(" in text]
    assert turns and not any(" cosine(" in text or " sine(" in text for text in turns)
    assert program.count(" cosine(") == program.count(" sine(") == 1
