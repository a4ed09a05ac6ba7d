"""Losses against values derived by hand and against float64 NumPy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train.config import LossConfig
from train.objective import contrastive, losses, start_temperatures

LN2, LN3 = np.log(2.0), np.log(3.0)


def np_info_nce(logits, positives, excluded=None):
    logits = np.array(logits, np.float64)
    if excluded is not None:
        logits = np.where(excluded, -np.inf, logits)
    shifted = logits - logits.max(axis=1, keepdims=True)
    logp = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return -logp[np.arange(len(logits)), positives].mean()


def test_info_nce_by_hand():
    # Rows: equal scores of 4 documents -> log 4; positive 2 + log-odds: exp(log 3) of 3 + 1 + 1 + 1 -> log 2.
    logits = jnp.array([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, LN3, 0.0]])
    loss = losses.info_nce(logits, jnp.array([1, 2]))
    np.testing.assert_allclose(loss, (np.log(4) + LN2) / 2, rtol=1e-6)
    assert loss.dtype == jnp.float32


def test_info_nce_excludes_by_hand():
    logits = jnp.array([[0.0, 100.0, 0.0], [LN2, LN2, 0.0]])
    excluded = jnp.array([[False, True, False], [True, False, False]])
    # Row 0: 100 does not count -> log 2. Row 1: 2 of (2 + 1) -> log(3/2).
    loss = losses.info_nce(logits, jnp.array([0, 1]), excluded)
    np.testing.assert_allclose(loss, (LN2 + LN3 - LN2) / 2, rtol=1e-6)
    gradient = jax.grad(losses.info_nce)(logits, jnp.array([0, 1]), excluded)
    # d/ds = (softmax - onehot) / B, and exactly 0 where excluded.
    np.testing.assert_allclose(gradient, [[-0.25, 0, 0.25], [0, -1 / 6, 1 / 6]], atol=1e-7)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_info_nce_equals_float64(scale):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((5, 15)).astype(np.float32) * scale
    positives = np.arange(5) * 3
    excluded = rng.random((5, 15)) < 0.3
    excluded[np.arange(5), positives] = False
    loss = losses.info_nce(jnp.asarray(logits), jnp.asarray(positives), jnp.asarray(excluded))
    np.testing.assert_allclose(loss, np_info_nce(logits, positives, excluded), rtol=2e-6)


def test_symmetric_ranks_queries_for_each_positive_only():
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((3, 6)).astype(np.float32)  # a positive and a negative for each query
    positives = np.array([0, 2, 4])
    expected = (np_info_nce(logits, positives) + np_info_nce(logits[:, positives].T, np.arange(3))) / 2
    loss = losses.symmetric_info_nce(jnp.asarray(logits), jnp.asarray(positives))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_symmetric_leaves_out_what_is_excluded_on_both_ways():
    rng = np.random.default_rng(2)
    logits, positives = rng.standard_normal((3, 6)).astype(np.float32), np.array([0, 2, 4])
    excluded = np.zeros((3, 6), bool)
    excluded[0, [2, 3]] = excluded[2, 0] = True
    left = np.where(excluded, -np.inf, logits)
    expected = (np_info_nce(left, positives) + np_info_nce(left[:, positives].T, np.arange(3))) / 2
    loss = losses.symmetric_info_nce(*map(jnp.asarray, (logits, positives, excluded)))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_symmetric_by_hand():
    # Query -> document rows: log 2 and log 2; columns: document 0 sees (log 3, 0) -> log(4/3); document 1 (log 3, 0)
    # with its positive 0 -> log 4.
    logits = jnp.array([[LN3, LN3], [0.0, 0.0]])
    expected = (LN2 + (np.log(4 / 3) + np.log(4)) / 2) / 2
    np.testing.assert_allclose(losses.symmetric_info_nce(logits, jnp.array([0, 1])), expected, rtol=1e-6)


def test_false_negatives_marks_the_same_document_elsewhere():
    ids = jnp.array([[1, 7], [2, 7], [1, 7], [1, 8], [2, 7], [3, 3]], jnp.uint32)  # queries' positives: columns 0, 2, 4
    expected = [
        [False, False, True, False, False, False],
        [True, False, False, False, False, False],
        [False, True, False, False, False, False],
    ]
    np.testing.assert_array_equal(losses.false_negatives(ids, jnp.array([0, 2, 4])), expected)


def test_hybrid_logits_by_hand():
    pooled, late = jnp.array([[0.3, 0.0]]), jnp.array([[0.6, 0.1]])
    logits = losses.hybrid_logits(
        pooled, late, pooled_weight=2.0, late_weight=0.5, pooled_temperature=0.1, late_temperature=0.05
    )
    np.testing.assert_allclose(logits, [[2 * 3 + 0.5 * 12, 0.5 * 2]], rtol=1e-6)


def test_two_cross_entropies_by_hand():
    """CE(pooled / t) + CE(late / t), and with weights beside CE((pooled + late) / t)."""
    pooled = jnp.array([[0.1, 0.0], [0.0, 0.1]]) * LN3  # over 0.1: odds 3 to 1 for the positive, log(4/3) each
    late = jnp.array([[0.0, 0.1], [0.1, 0.0]]) * LN2  # over 0.1: odds 1 to 2, log 3 each
    scores, at = {"pooled": pooled, "late": late}, jnp.array([0, 1])

    def loss(**weights):
        config = LossConfig("hybrid", temperature=0.1, **weights)
        return contrastive(config, scores, start_temperatures(config), at, None, jnp.int32(1), 1)

    both, metrics = loss(hybrid_loss_weight=0.0, pooled_loss_weight=1.0, late_loss_weight=1.0)
    np.testing.assert_allclose(both, np.log(4 / 3) + LN3, rtol=1e-5)
    np.testing.assert_allclose(metrics["pooled_loss"], np.log(4 / 3), rtol=1e-5)
    np.testing.assert_allclose(loss()[0], np.log(5 / 3), rtol=1e-5)  # of the sum: odds 3 to 2
    weighted = loss(hybrid_loss_weight=2.0, pooled_loss_weight=0.5, late_loss_weight=0.25)[0]
    np.testing.assert_allclose(weighted, 2 * np.log(5 / 3) + 0.5 * np.log(4 / 3) + 0.25 * LN3, rtol=1e-5)


def test_ramp_goes_from_the_first_step_to_the_last():
    values = [float(losses.linear_ramp(s, 5, 1.0, 3.0)) for s in (1, 2, 3, 5, 9)]
    np.testing.assert_allclose(values, [1.0, 1.5, 2.0, 3.0, 3.0])
    assert float(losses.linear_ramp(1, 1, 0.0, 2.0)) == 2.0


def test_hit_rate_counts_a_tie_as_a_miss():
    logits = jnp.array([[1.0, 0.0, 0.5], [2.0, 2.0, 0.0], [0.0, 5.0, 1.0]])
    assert float(losses.hit_rate(logits, jnp.array([0, 1, 2]))) == pytest.approx(1 / 3)
    excluded = jnp.array([[False] * 3, [True, False, False], [False, True, False]])
    assert float(losses.hit_rate(logits, jnp.array([0, 1, 2]), excluded)) == 1.0


def test_diversity_by_hand():
    # Item 0: three kept tokens, cosines 0, 1/sqrt2, 1/sqrt2 -> six ordered pairs, squares sum 2 * (0 + .5 + .5) = 2.
    # Item 1: one kept token, no pair.
    states = jnp.array([[[2.0, 0], [0, 3.0], [1.0, 1.0], [9.0, 9.0]], [[1.0, 0], [1.0, 0], [1.0, 0], [1.0, 0]]])
    mask = jnp.array([[True, True, True, False], [False, True, False, False]])
    np.testing.assert_allclose(losses.diversity(states, mask), 2 / 6, rtol=1e-6)
    assert float(losses.diversity(states, jnp.zeros((2, 4), bool))) == 0.0


def test_diversity_takes_evenly_spaced_kept_tokens_whatever_the_padding():
    rng = np.random.default_rng(2)
    kept = rng.standard_normal((7, 3)).astype(np.float32)
    chosen = kept[[0, 3, 6]] / np.linalg.norm(kept[[0, 3, 6]], axis=1, keepdims=True)
    squares = (chosen.astype(np.float64) @ chosen.T) ** 2
    expected = (squares.sum() - 3) / 6
    for places in (np.arange(7), np.array([1, 2, 4, 5, 7, 8, 11])):
        states, mask = np.full((1, 12, 3), 5, np.float32), np.zeros((1, 12), bool)
        states[0, places], mask[0, places] = kept, True
        found = losses.diversity(jnp.asarray(states), jnp.asarray(mask), max_tokens=3)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_diversity_equals_the_reference_formula_on_full_rows():
    rng = np.random.default_rng(3)
    states = rng.standard_normal((2, 200, 8)).astype(np.float32)
    index = np.round(np.linspace(0, 199, 128)).astype(int)
    x = states[:, index].astype(np.float64)
    x /= np.linalg.norm(x, axis=-1, keepdims=True)
    squares = np.einsum("bih,bjh->bij", x, x) ** 2
    expected = (squares.sum() - 2 * 128) / (2 * 128 * 127)
    np.testing.assert_allclose(losses.diversity(jnp.asarray(states), jnp.ones((2, 200), bool)), expected, rtol=1e-5)


def test_overlap_by_hand():
    pooled = jnp.array([[3.0, 0.0], [1.0, 1.0]])
    states = jnp.array([[[5.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [7.0, 7.0]]])
    mask = jnp.array([[True, True], [True, False]])
    np.testing.assert_allclose(losses.overlap(pooled, states, mask), (1 + 0 + 0.5) / 3, rtol=1e-6)


@pytest.mark.compiles
def test_regularisers_have_finite_gradients_at_zero_states():
    states, mask = jnp.zeros((1, 3, 4)), jnp.ones((1, 3), bool)
    for gradient in (
        jax.grad(losses.diversity)(states, mask),
        jax.grad(losses.overlap, argnums=1)(jnp.zeros((1, 4)), states, mask),
    ):
        assert np.isfinite(np.asarray(gradient)).all()


def test_objectives_combine_the_parts():
    rng = np.random.default_rng(4)
    scores = {name: jnp.asarray(rng.uniform(-1, 1, (4, 4)).astype(np.float32)) for name in ("pooled", "late")}
    positives, step = jnp.arange(4), jnp.int32(3)

    def loss(**settings):
        config = LossConfig(temperature=0.1, **settings)
        return float(contrastive(config, scores, start_temperatures(config), positives, None, step, 5)[0])

    pooled, late = (np.asarray(scores[n], np.float64) for n in ("pooled", "late"))
    at = np.arange(4)
    assert loss(objective="pooled") == pytest.approx(np_info_nce(pooled / 0.1, at), rel=1e-5)
    assert loss(objective="late", late_temperature=0.2) == pytest.approx(np_info_nce(late / 0.2, at), rel=1e-5)
    hybrid = np_info_nce((0.5 * pooled + 2 * late) / 0.1, at)
    expected = 0.25 * hybrid + 1.5 * np_info_nce(late / 0.1, at)  # step 3 of 5 is the middle of the ramp 1 .. 2
    found = loss(
        objective="hybrid",
        pooled_weight=0.5,
        late_weight=2.0,
        hybrid_loss_weight=0.25,
        late_loss_weight=1.0,
        late_loss_weight_end=2.0,
    )
    assert found == pytest.approx(expected, rel=1e-5)
