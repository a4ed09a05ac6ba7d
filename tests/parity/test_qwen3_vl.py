"""The Flax Qwen3-VL against transformers + torch on random checkpoints, float32: every layer within 2e-5."""

from __future__ import annotations

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from smart_jax.models import load_config
from smart_jax.models.weights import abstract_model, load_weights, save_weights
from tests.parity.qwen3_vl import (
    BATCHES,
    BROKEN,
    CASES,
    CONFIGS,
    TOLERANCE,
    Inputs,
    errors,
    odd_image,
    our_states,
    save,
    torch_model,
)

pytestmark = pytest.mark.compiles


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
    """(torch model, config, graphdef, params) of one random checkpoint."""
    model = torch_model(CONFIGS[request.param])
    folder = save(model, tmp_path_factory.mktemp(request.param))
    config = load_config(folder)
    return model, config, *load_weights(folder, config)


@pytest.fixture(scope="module")
def two_taps(tmp_path_factory):
    model = torch_model(CONFIGS["two_taps"])
    folder = save(model, tmp_path_factory.mktemp("controls"))
    config = load_config(folder)
    return model, config, *load_weights(folder, config)


@partial(jax.jit, static_argnames=("graphdef", "layers"))
def run(graphdef, params, batch, layers=(-1,)):
    return nnx.merge(graphdef, params)(batch, layers=layers)


@pytest.mark.parametrize("rows", BATCHES)
def test_every_layer_matches(pair, rows):
    model, config, graphdef, params = pair
    inputs = Inputs.random(BATCHES[rows])
    theirs = inputs.torch_states(model)
    assert 1 < np.abs(theirs[-1]).max() < 8
    assert max(errors(theirs, our_states(graphdef, params, inputs.batch(config)), inputs)) < TOLERANCE


@pytest.mark.parametrize("case", ["text", "two_sizes"])
def test_left_padding_matches(pair, case):
    model, config, graphdef, params = pair
    inputs = Inputs.random(CASES[case], seed=3)
    ours = our_states(graphdef, params, inputs.batch(config, left=True))
    assert max(errors(inputs.torch_states(model, left=True), ours, inputs, left=True)) < TOLERANCE


@pytest.mark.parametrize("bins", [1, 2])
def test_rows_that_share_a_bin_match(pair, bins):
    model, config, graphdef, params = pair
    inputs = Inputs.random(CASES["image_and_text"] + CASES["three_images_beside_text"], seed=4)
    batch = inputs.batch(config, bins=bins, extra=5)
    assert len(batch.vision.patches) == bins < len(batch.input_ids)
    assert max(errors(inputs.torch_states(model), our_states(graphdef, params, batch), inputs)) < TOLERANCE


def test_pooled_is_the_last_attended_state(two_taps):
    _, config, graphdef, params = two_taps
    inputs = Inputs.random(CASES["two_sizes"])
    for left in (False, True):
        batch = inputs.batch(config, left=left, extra=3)
        hidden = run(graphdef, params, batch)
        for i, mask in enumerate(batch.attention_mask):
            np.testing.assert_array_equal(hidden.pooled[i], hidden.states[i, np.flatnonzero(mask)[-1], 0])


def test_chosen_layers_are_transformers_indices(two_taps):
    _, config, graphdef, params = two_taps
    batch = Inputs.random(CASES["one_image"]).batch(config)
    every = our_states(graphdef, params, batch)
    some = run(graphdef, params, batch, layers=(-1, 0, 2, -3)).states
    np.testing.assert_allclose(some, every[:, :, [4, 0, 2, 2]], atol=TOLERANCE)


def test_padding_never_matters(two_taps):
    _, config, graphdef, params = two_taps
    inputs = Inputs.random(CASES["three_images_beside_text"])
    short = our_states(graphdef, params, inputs.batch(config))
    long = our_states(graphdef, params, inputs.batch(config, extra=13))
    for i, (row, _, _) in enumerate(inputs.rows):
        np.testing.assert_allclose(short[i, : len(row)], long[i, : len(row)], atol=TOLERANCE)


def test_batch_equals_single_rows(two_taps):
    _, config, graphdef, params = two_taps
    inputs = Inputs.random(CASES["image_and_text"] + CASES["three_images_beside_text"])
    together = our_states(graphdef, params, inputs.batch(config))
    for i, row in enumerate(inputs.rows):
        alone = our_states(graphdef, params, Inputs([row]).batch(config))
        np.testing.assert_allclose(together[i, : len(row[0])], alone[0], atol=TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("steps", ["cpu", "accelerator"])
def test_attention_in_steps_equals_whole(two_taps, monkeypatch, steps):
    """Forward and gradient, by the CPU's steps (heads and queries) and by an accelerator's (queries)."""
    _, config, graphdef, params = two_taps
    batch = Inputs.random([[3, (1, 16, 16), 59], [128]]).batch(config)
    assert batch.input_ids.shape[1] == 128

    def pooled_and_gradient():
        return jax.jit(jax.value_and_grad(lambda p: jnp.mean(nnx.merge(graphdef, p)(batch).pooled ** 2)))(params)

    whole = pooled_and_gradient()
    if steps == "cpu":
        monkeypatch.setattr("smart_jax.models.attention.CPU_WHOLE", 32)
        monkeypatch.setattr("smart_jax.models.attention.CPU_SCORES", 0)
        monkeypatch.setattr("smart_jax.models.attention.CPU_QUERIES", 32)
    else:
        monkeypatch.setattr("smart_jax.models.attention.jax.default_backend", lambda: "gpu")
        monkeypatch.setattr("smart_jax.models.attention.SCORES_AT_ONCE", 8192)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=TOLERANCE), whole, pooled_and_gradient())


@pytest.mark.slow
def test_remat_keeps_states_and_gradients(two_taps):
    _, config, graphdef, params = two_taps
    batch = Inputs.random(CASES["two_sizes"]).batch(config)

    def loss(p, remat):
        return jnp.sum(nnx.merge(graphdef, p)(batch, remat=remat).pooled ** 2)

    plain = jax.jit(jax.value_and_grad(lambda p: loss(p, False)))(params)
    saved = jax.jit(jax.value_and_grad(lambda p: loss(p, True)))(params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, saved)


@pytest.mark.slow
def test_bfloat16_pooled_cosine(pair, tmp_path):
    _, config, graphdef, params = pair
    batch = Inputs.random(CASES["image_and_text"]).batch(config)
    save_weights(tmp_path, params, config)
    half = load_weights(tmp_path, config, dtype=jnp.bfloat16)[1]
    full = np.asarray(run(graphdef, params, batch).pooled)
    low = run(graphdef, half, batch).pooled
    assert low.dtype == jnp.bfloat16
    low = np.asarray(low, np.float32)
    cosine = (full * low).sum(-1) / np.linalg.norm(full, axis=-1) / np.linalg.norm(low, axis=-1)
    assert cosine.min() >= 0.999


def test_odd_image_at_the_pixel_floor(two_taps):
    model, config, graphdef, params = two_taps
    inputs = odd_image(37, 29, config)
    assert inputs.rows[0][1] == [(1, 4, 6)]  # 1,073 pixels come up to 64 x 96, the first size above 4,096
    ours = our_states(graphdef, params, inputs.batch(config))
    assert max(errors(inputs.torch_states(model), ours, inputs)) < TOLERANCE


@pytest.mark.slow
def test_odd_image_at_the_pixel_ceiling(two_taps):
    """Nearly 1,800 visual tokens, the most that an image may have; attention runs in steps here."""
    model, config, graphdef, params = two_taps
    inputs = odd_image(1999, 3001, config)
    ((_, h, w),) = inputs.rows[0][1]
    assert 1700 < h * w // 4 <= 1800
    ours = our_states(graphdef, params, inputs.batch(config))
    assert max(errors(inputs.torch_states(model), ours, inputs)) < TOLERANCE


# --- negative controls: what must break parity by at least 100 times the tolerance -----------------------------------


def control_error(pair, change_config=lambda c: c, change_batch=lambda b: b) -> float:
    model, config, _, params = pair
    inputs = Inputs.random([[3, (1, 4, 6), 4, (1, 8, 4), 2], [9, (1, 6, 6), 5]])
    changed, _ = abstract_model(change_config(config))
    ours = our_states(changed, params, change_batch(inputs.batch(config)))
    return max(errors(inputs.torch_states(model), ours, inputs))


def test_controls_start_from_parity(two_taps):
    assert control_error(two_taps) < TOLERANCE


def test_control_chunked_mrope(two_taps):
    def chunked(c):
        return dataclasses.replace(c, text=dataclasses.replace(c.text, mrope_interleaved=False))

    assert control_error(two_taps, chunked) > BROKEN


def test_control_wrong_deepstack_taps(two_taps):
    def shifted(c):
        return dataclasses.replace(c, vision=dataclasses.replace(c.vision, deepstack_visual_indexes=(1, 3)))

    assert control_error(two_taps, shifted) > BROKEN


def test_control_no_position_interpolation(two_taps):
    def nearest(b):
        v = b.vision
        weights = (v.interp_w == v.interp_w.max(-1, keepdims=True)).astype(np.float32)
        return dataclasses.replace(b, vision=dataclasses.replace(v, interp_w=weights))

    assert control_error(two_taps, change_batch=nearest) > BROKEN


def test_control_swapped_height_and_width(two_taps):
    def swapped_rotary(b):
        return dataclasses.replace(b, vision=dataclasses.replace(b.vision, coords=b.vision.coords[..., ::-1]))

    def swapped_positions(b):
        return dataclasses.replace(b, position_ids=b.position_ids[[0, 2, 1]])

    assert control_error(two_taps, change_batch=swapped_rotary) > BROKEN
    assert control_error(two_taps, change_batch=swapped_positions) > BROKEN


def test_control_attended_padding(two_taps):
    """Padding attended on the left of the text, and padding patches in an image's segment."""
    model, config, graphdef, params = two_taps
    inputs = Inputs.random(CASES["text"])
    batch = inputs.batch(config, left=True)
    batch = dataclasses.replace(batch, attention_mask=np.ones_like(batch.attention_mask))
    theirs = inputs.torch_states(model, left=True)
    assert max(errors(theirs, our_states(graphdef, params, batch), inputs, left=True)) > BROKEN

    def one_segment(b):
        return dataclasses.replace(b, vision=dataclasses.replace(b.vision, segment=np.ones_like(b.vision.segment)))

    assert control_error(two_taps, change_batch=one_segment) > BROKEN
