"""The values of bytes, inside jit: all 256 of each channel, their order, and the frames of a patch."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from smart_jax import load, make_mesh
from smart_jax.forward import put_batch
from smart_jax.models.pixels import Normalisation, normalised
from tests.pixels import CONSTANTS, values_of

run = partial(jax.jit, static_argnames=("how", "size", "frames", "dtype"))(normalised)
EVERY = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)  # each byte in each channel


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", CONSTANTS)
def test_all_768_values_are_those_of_the_reference(name, dtype):
    """Equal to the bit on the devices that tests run on; in float64, byte / 255 - mean over deviation is near."""
    how = CONSTANTS[name]
    found = np.asarray(run(EVERY.reshape(1, 256, 3), how, size=1, frames=1, dtype=dtype))[0]
    assert found.dtype == dtype
    assert np.array_equal(found, values_of(EVERY, how, frames=1).astype(dtype))
    exact = (np.arange(256)[:, None] / 255 - np.array(how.mean)) / np.array(how.std)
    spacing = {jnp.float32: 3e-7, jnp.bfloat16: 0.008, jnp.float16: 0.001}[dtype]
    np.testing.assert_allclose(found.astype(np.float64), exact, atol=spacing)


def test_arithmetic_is_used_only_where_no_rounding_can_differ():
    """Takes bfloat16 and the constants that models use; a value half-way between two numbers asks for a table."""
    assert not any(how.is_linear(jnp.float32) for how in CONSTANTS.values())
    assert all(how.is_linear(jnp.bfloat16) for how in CONSTANTS.values())
    tie = Normalisation((0.0,) * 3, (1.0,) * 3, rescale_factor=1 + 2**-8)  # 1.00390625 is between 1 and 1.0078125
    assert not tie.is_linear(jnp.bfloat16)
    found = np.asarray(run(EVERY.reshape(1, 256, 3), tie, size=1, frames=1, dtype=jnp.bfloat16))[0]
    assert np.array_equal(found, values_of(EVERY, tie, frames=1).astype(jnp.bfloat16))


@pytest.mark.parametrize("name", CONSTANTS)
def test_a_tpu_looks_nothing_up(name, monkeypatch):
    """8 pages of 7,200 patches would take it seconds, and gigabytes, as its compiler has it."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    lowered = jax.jit(lambda x: normalised(x, CONSTANTS[name], size=1, frames=1, dtype=jnp.float32))
    assert "gather" not in lowered.lower(EVERY.reshape(1, 256, 3)).as_text()
    found = np.asarray(lowered(EVERY.reshape(1, 256, 3)))[0]
    np.testing.assert_allclose(found, values_of(EVERY, CONSTANTS[name], frames=1), rtol=0, atol=6e-7)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_order_and_frames(dtype):
    """Each value stands where loops put it; the one frame of a still image stands for each."""
    how, rng = CONSTANTS["clip"], np.random.default_rng(0)
    bytes_ = rng.integers(0, 256, (2, 4, 3, 5, 5, 3), dtype=np.uint8)  # G, V, frames, rows, columns, channels
    expected = np.zeros((2, 4, 3, 3, 5, 5), np.float32)
    table = values_of(EVERY, how, frames=1)  # [256, 3]
    for place in np.ndindex(bytes_.shape):
        g, v, frame, y, x, channel = place
        expected[g, v, channel, frame, y, x] = table[bytes_[place], channel]
    found = run(bytes_.reshape(2, 4, -1), how, size=5, frames=3, dtype=dtype)
    assert np.array_equal(np.asarray(found), expected.reshape(2, 4, -1).astype(dtype))
    still = run(bytes_[:, :, 1].reshape(2, 4, -1), how, size=5, frames=3, dtype=dtype)
    assert np.array_equal(np.asarray(still), np.repeat(expected[:, :, :, 1:2], 3, 3).reshape(2, 4, -1).astype(dtype))


def test_patches_of_another_size_are_refused():
    with pytest.raises(ValueError, match="patches have 36 bytes, expected 12 for a frame, of 1 or 2 frames"):
        normalised(np.zeros((1, 4, 36), np.uint8), Normalisation(), size=2, frames=2, dtype=jnp.float32)


@pytest.mark.compiles
def test_bins_stay_on_their_devices_where_weights_are_split():
    mesh = make_mesh(data=1, fsdp=8)
    model = load("tiny", mesh=mesh)
    items = [model.preprocessor.tokenize(np.zeros((128, 128, 3), np.uint8)) for _ in range(8)]
    batch = put_batch(model.preprocessor.collate(items, shards=8), mesh)

    @jax.jit
    def embedded(params, vision):
        return nnx.merge(model.graphdef, params).visual.patch_embed(vision.patches, vision.normalisation)

    x = embedded(model.params, batch.vision)
    assert x.sharding.shard_shape(x.shape) == (1, *x.shape[1:])
