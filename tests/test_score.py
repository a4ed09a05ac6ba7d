import importlib
import socket
import subprocess
import sys
from itertools import pairwise

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smart_jax.maxsim import Shapes, host
from smart_jax.retrieval import block_plan, block_scores, host_scores, streamed_search
from smart_jax.retrieval.block import Parts
from smart_jax.retrieval.embeddings import Embeddings
from smart_jax.retrieval.operands import operands
from smart_jax.retrieval.resident import to_device
from smart_jax.retrieval.score import score
from smart_jax.retrieval.search import search
from smart_jax.retrieval.top_k import TopK
from smart_jax.runtime.mesh import make_mesh
from tests.processes import environment

TOLERANCE = 1e-5


def unit(rng, *shape) -> np.ndarray:
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def make(rng, lengths, width=8, pooled_width=8) -> Embeddings:
    """Random embeddings; a length of 0 makes an item without tokens."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Embeddings(unit(rng, len(lengths), pooled_width), unit(rng, int(offsets[-1]), width), offsets)


def oracle(q: Embeddings, d: Embeddings, pooled_weight=1.0, late_weight=1.0) -> np.ndarray:
    """Pair by pair in float64."""
    result = np.empty((len(q), len(d)))
    q_pooled, q_tokens, d_pooled, d_tokens = (x.astype(np.float64) for e in (q, d) for x in (e.pooled, e.tokens))
    for i, (a, b) in enumerate(pairwise(q.offsets)):
        for j, (s, e) in enumerate(pairwise(d.offsets)):
            late = (q_tokens[a:b] @ d_tokens[s:e].T).max(axis=1).mean()
            result[i, j] = pooled_weight * (q_pooled[i] @ d_pooled[j]) + late_weight * late
    return result


def ranked(scores: np.ndarray, k: int) -> np.ndarray:
    """Lowest index first among equal scores."""
    return np.argsort(-scores, axis=1, kind="stable")[:, :k]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def use_devices(monkeypatch):
    """Makes no work so small that the host does it."""
    monkeypatch.setattr(host_scores, "PAIRS", 0)


@pytest.fixture(params=["host", "device"])
def either(request, monkeypatch):
    """Work of a test's sizes is the host's, unless it is kept from it."""
    if request.param == "device":
        use_devices(monkeypatch)


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks of queries and of documents, several tiles in a window, at a test's sizes, on a device."""
    use_devices(monkeypatch)
    monkeypatch.setattr(block_plan, "QUERY_TOKENS", 16)
    monkeypatch.setattr(block_plan, "DOCUMENT_TOKENS", 64)
    monkeypatch.setattr(block_plan, "ITEMS", 8)
    monkeypatch.setattr(block_scores, "TOKENS_IN_TILE", (16, 16))
    jax.clear_caches()
    yield
    jax.clear_caches()


# Against the oracle


@pytest.mark.usefixtures("either")
@pytest.mark.slow
def test_ragged():
    """Ragged lengths, items without tokens, single tokens, all-negative similarities, k below and above N.

    Few numbers of items: each is a compilation, which takes as long as many cases.
    """

    @given(
        st.integers(0, 2**32 - 1),
        st.sampled_from([1, 3]).flatmap(lambda n: st.lists(st.integers(0, 9), min_size=n, max_size=n)),
        st.sampled_from([1, 7]).flatmap(lambda n: st.lists(st.integers(0, 40), min_size=n, max_size=n)),
        st.sampled_from([(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.3, 2.0), (-1.0, 0.5)]),
        st.booleans(),
        st.sampled_from([3, 12]),
    )
    def run(seed, q_lengths, d_lengths, weights, negative, k):
        rng = np.random.default_rng(seed)
        q, d = make(rng, q_lengths), make(rng, d_lengths)
        if negative:
            q = Embeddings(np.abs(q.pooled), np.abs(q.tokens), q.offsets)
            d = Embeddings(-np.abs(d.pooled), -np.abs(d.tokens), d.offsets)
        expected = oracle(q, d, *weights)
        options = dict(zip(("pooled_weight", "late_weight"), weights, strict=True))
        found = score(q, d, **options)
        assert (found.shape, found.dtype) == (expected.shape, np.float32)
        np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)
        values, indices = search(q, d, k, **options)
        assert values.shape == indices.shape == (len(q), min(k, len(d)))
        assert (values.dtype, indices.dtype) == (np.float32, np.int64)
        np.testing.assert_allclose(values, -np.sort(-expected, axis=1)[:, :k], rtol=TOLERANCE, atol=TOLERANCE)
        np.testing.assert_allclose(np.take_along_axis(expected, indices, 1), values, rtol=TOLERANCE, atol=TOLERANCE)
        assert all(len(set(row)) == len(row) for row in indices.tolist())

    run()


@pytest.mark.parametrize("tiles", [(2048, 96, (128, 2048)), (20, 6, (4, 16)), (20, 30, (4, 16))])
def test_ragged_on_the_host(monkeypatch, tiles):
    """Each store; one tile and several, maxima by columns and by rows, several runs of queries."""
    for name, value in zip(("QUERY_TOKENS", "BY_ROWS", "TOKENS_IN_TILE"), tiles, strict=True):
        monkeypatch.setattr(host, name, value)
    monkeypatch.setattr(host, "MAXIMA", 8 * tiles[0])
    stores = st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16, np.int8])

    @given(
        st.integers(0, 2**32 - 1),
        st.lists(st.integers(0, 25), min_size=1, max_size=6),
        st.lists(st.integers(0, 40), min_size=1, max_size=30),
        st.sampled_from([(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (-1.0, 0.5)]),
        st.tuples(stores, stores),
        st.integers(1, 40),
    )
    def run(seed, q_lengths, d_lengths, weights, dtypes, k):
        rng = np.random.default_rng(seed)
        q, d = (make(rng, x).astype(dtype) for x, dtype in zip((q_lengths, d_lengths), dtypes, strict=True))
        options = dict(zip(("pooled_weight", "late_weight"), weights, strict=True))
        expected = oracle(q.astype(np.float32), d.astype(np.float32), *weights)
        np.testing.assert_allclose(score(q, d, **options), expected, atol=TOLERANCE)
        values, indices = search(q, d, k, **options)
        np.testing.assert_allclose(values, -np.sort(-expected, axis=1)[:, :k], atol=TOLERANCE)
        np.testing.assert_allclose(np.take_along_axis(expected, indices, 1), values, atol=TOLERANCE)

    run()


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0)])
def test_many_blocks(rng, small_blocks, weights):
    """Documents longer than a window, queries longer than a block, and windows at the end of the array."""
    q = make(rng, [3, 20, 1, 16, 5, 2, 9, 1, 1, 1, 1, 1, 1, 1, 1])
    d = make(rng, [*rng.integers(1, 30, 40), 100, 1, 64, *rng.integers(0, 5, 30)])
    expected = oracle(q, d, *weights)
    np.testing.assert_allclose(score(q, d, pooled_weight=weights[0], late_weight=weights[1]), expected, atol=TOLERANCE)
    for k in (1, 7, 73, 100):
        values, indices = search(q, d, k, pooled_weight=weights[0], late_weight=weights[1])
        np.testing.assert_array_equal(indices, ranked(expected, k))
        np.testing.assert_allclose(values, np.take_along_axis(expected, indices, 1), atol=TOLERANCE)


def test_by_hand():
    """Pooled 0.6; late: query tokens (1, 0) and (0, 1), best 0.8 and 0.6, mean 0.7."""
    q = Embeddings(np.float32([[1, 0]]), np.float32([[1, 0], [0, 1]]), np.array([0, 2]))
    d = Embeddings(np.float32([[0.6, 0.8]]), np.float32([[0.8, -0.6], [-0.8, 0.6]]), np.array([0, 2]))
    assert score(q, d)[0, 0] == pytest.approx(1.3, abs=1e-6)
    assert score(q, d, pooled_weight=2, late_weight=10)[0, 0] == pytest.approx(8.2, abs=1e-6)
    assert score(q, d, pooled_weight=0)[0, 0] == pytest.approx(0.7, abs=1e-6)


@pytest.mark.parametrize("pooled_width", [8, 5])
def test_pooled_and_token_widths_may_differ(rng, pooled_width):
    q, d = make(rng, [2, 3], 6, pooled_width), make(rng, [4, 1, 5], 6, pooled_width)
    np.testing.assert_allclose(score(q, d), oracle(q, d), atol=TOLERANCE)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("q_dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("d_dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_stores_are_scored_in_float32(rng, q_dtype, d_dtype):
    """Exact for the stored values: the sum over 512 components and 60 tokens is not rounded to their type."""
    q, d = make(rng, [60, 3], 512, 512).astype(q_dtype), make(rng, [9, 30], 512, 512).astype(d_dtype)
    np.testing.assert_allclose(score(q, d), oracle(q, d), atol=TOLERANCE)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("both", [True, False])
def test_int8_stores_are_scored_in_float32(rng, both):
    """Exact for the values that are stored, with a scale for each token."""
    q, d = make(rng, [6, 1, 3], 512, 512), make(rng, [9, 30, 1], 512, 512)
    q, d = q.astype(np.int8) if both else q, d.astype(np.int8)
    expected = oracle(q.astype(np.float32), d.astype(np.float32))
    np.testing.assert_allclose(score(q, d), expected, atol=TOLERANCE)
    values, indices = search(q, d, 2)
    np.testing.assert_array_equal(indices, ranked(expected, 2))
    np.testing.assert_allclose(values, -np.sort(-expected, axis=1)[:, :2], atol=TOLERANCE)


@pytest.mark.parametrize("k", [1, 5, 200])
def test_rescoring_finds_what_full_precision_finds(rng, k):
    q, d = make(rng, [4] * 20, 64, 64), make(rng, rng.integers(3, 20, 150), 64, 64)
    coarse = d.astype(np.int8)
    expected, plain, found = search(q, d, k), search(q, coarse, k), search(q, coarse, k, rescore=d)
    assert np.abs(plain[0] - expected[0]).max() > 1e-4
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], atol=TOLERANCE)


def test_rescoring_with_other_documents_is_refused(rng):
    e = make(rng, [2, 3])
    with pytest.raises(ValueError, match="rescore has 1 items, d has 2: they must be the same documents"):
        search(e, e, 1, rescore=e[:1])
    with pytest.raises(TypeError, match="rescore is for Embeddings"):
        search(e.pooled, e.pooled, 1, rescore=e)


# Ties, k


def test_ties_go_to_the_lowest_index(rng, small_blocks):
    one = make(rng, [3])
    other = make(rng, [3])
    d = Embeddings.concatenate([other] * 5 + [one] * 30)
    _, indices = search(one, d, 7)
    assert indices.tolist() == [list(range(5, 12))]
    _, indices = search(one, d, 33)
    assert indices.tolist() == [[*range(5, 35), 0, 1, 2]]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_equal_documents_score_equally_on_the_host(rng, weights, dtype):
    """Products of a host round differently at the edges of a matrix: equal ones stand in several places of it."""
    options = dict(zip(("pooled_weight", "late_weight"), weights, strict=True))
    q, d = make(rng, [32, 5, 1], 128, 128), make(rng, rng.integers(1, 60, 40), 128, 128).astype(dtype)
    at = rng.permutation(np.repeat(np.arange(40), 3))
    scores = score(q, d[at], **options)
    first = np.asarray([np.flatnonzero(at == i)[0] for i in at])
    np.testing.assert_array_equal(scores, scores[:, first])
    np.testing.assert_allclose(scores, score(q, d, **options)[:, at], atol=TOLERANCE)
    np.testing.assert_array_equal(search(q, d[at], 7, **options)[1], ranked(scores, 7))


def test_documents_that_begin_and_end_alike_are_told_apart(rng):
    """Equal in all that the host compares first, but for documents 0 and 3."""
    lengths = [7] * 4
    d = make(rng, lengths)
    tokens = np.tile(d.tokens[:7], (4, 1))
    tokens[7, 5], tokens[14 + 1, 6] = 2, 3
    pooled = np.tile(d.pooled[:1], (4, 1))
    d, q = Embeddings(pooled, tokens, d.offsets), make(rng, [300, 2])
    np.testing.assert_allclose(score(q, d), oracle(q, d), atol=TOLERANCE)
    assert (score(q, d)[:, 0] == score(q, d)[:, 3]).all()
    stored = d.astype("int8")
    scales = stored.scales * np.where(np.arange(28) < 21, 1, 2).astype(np.float32)  # now 0 and 3 differ in these alone
    stored = Embeddings(pooled, stored.tokens, d.offsets, scales)
    np.testing.assert_allclose(score(q, stored), oracle(q, stored.astype(np.float32)), atol=TOLERANCE)


def test_the_best_so_far(rng):
    """Equal scores, zeros of both signs, rows of few and of many, and parts in which nothing is new."""
    scores = rng.integers(-3, 4, (5, 60)).astype(np.float32) * rng.choice(np.float32([-1, 1, 1e-30, 1e30]), 60)
    for k in (1, 6, 60, 100):
        best = TopK(5, k)
        for first, last in ((0, 1), (1, 8), (8, 50), (50, 60)):
            best.add(scores[:, first:last], first)
        values, indices = best.result()
        np.testing.assert_array_equal(indices, ranked(scores, k))
        np.testing.assert_array_equal(values, np.take_along_axis(scores, indices, 1))


def ways(q: Embeddings, d: Embeddings):
    """`search` by each of its ways, with the numbers of d."""
    mesh = make_mesh(devices=jax.devices()[:1])
    every = np.arange(len(d))
    yield "blocks", lambda k: search(q, d, k, device_bytes=2**20)
    yield "host or blocks", lambda k: search(q, d, k)
    yield "resident", lambda k: search(q, to_device(d, mesh), k)
    yield "candidates", lambda k: search(q, d, k, candidates=every)
    yield "candidates of each", lambda k: search(q, d, k, candidates=[every] * len(q))
    yield "rescored", lambda k: search(q, d, k, rescore=d)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("sign", [0x7FC00000, 0xFFC00000], ids=["positive", "negative"])
@pytest.mark.parametrize("where", ["pooled", "tokens"])
def test_a_mapped_documents_nan_is_met_by_its_name(rng, where, sign):
    """Whatever its sign, which decides on which end a sort puts it, and however many results are asked for."""
    q, d = make(rng, [2, 3]), make(rng, [4, 1, 5, 2])
    arrays = {"pooled": d.pooled.copy(), "tokens": d.tokens.copy()}
    arrays[where][{"pooled": 2, "tokens": 9}[where]].view(np.uint32)[1] = sign
    d = Embeddings.from_checked(**arrays, offsets=d.offsets)  # as a file that was altered has them
    for _, run in ways(q, d):
        for k in (1, 3):
            with pytest.raises(ValueError, match="document 2: its score with query 0 is NaN"):
                run(k)
    for candidates in (None, [0, 2, 3], [[0, 2], [1, 2]]):
        with pytest.raises(ValueError, match="document 2: its score with query 0 is NaN"):
            score(q, d, candidates=candidates)


@pytest.mark.usefixtures("either")
def test_scores_beyond_float32_are_refused(rng):
    """Takes finite vectors: no index is -1, and no score is infinite."""
    q, d = make(rng, [2, 3]), make(rng, [4, 1, 5])
    large = Embeddings(1e30 * np.sign(q.pooled), 1e30 * q.tokens, q.offsets)
    for sign in (1, -1):
        opposite = Embeddings(sign * 1e30 * np.sign(q.pooled[[0, 0, 0]]), 1e30 * d.tokens, d.offsets)
        for _, run in ways(large, opposite):
            for k in (1, 3):
                with pytest.raises(ValueError, match=r"score (of|with) query \d is .*beyond float32.* L2-normalise"):
                    run(k)
        with pytest.raises(ValueError, match="beyond float32"):
            score(large, opposite)
        with pytest.raises(ValueError, match="beyond float32"):
            score(large, opposite, candidates=[[0], [1, 2]])
    for call in (score, search):
        with pytest.raises(ValueError, match="late_weight is 1e.39: it must be finite, and fit float32"):
            call(q, d, late_weight=1e39)
    assert np.isneginf(score(q, d, candidates=[[0], [1, 2]])[0, 1])  # no document, and so no overflow


@pytest.mark.usefixtures("either")
def test_the_second_look_has_a_list_of_four_times_k_and_orders_equal_scores():
    """The exact best is the fourth by d, or the fifth, which is not looked at; all equal, they are in d's order."""

    def of(*pooled: float) -> Embeddings:
        pooled = np.float32(pooled)[:, None]
        return Embeddings(pooled, pooled, np.arange(len(pooled) + 1))

    q, d, options = of(1), of(5, 4, 3, 2, 1), {"late_weight": 0}
    assert search(q, d, 1, rescore=of(0, 0, 0, 5, 9), **options)[1].tolist() == [[3]]
    assert search(q, d, 2, rescore=of(0, 0, 0, 5, 9), **options)[1].tolist() == [[4, 3]]
    assert search(q, of(1, 2, 3, 4), 2, rescore=of(7, 7, 7, 7), **options)[1].tolist() == [[0, 1]]


@pytest.mark.usefixtures("either")
def test_zeros_of_both_signs_are_equal():
    """The lowest index comes first."""
    q = Embeddings(np.ones((1, 2), np.float32), np.ones((1, 2), np.float32), [0, 1])
    zeros = np.float32([[-0.0, -0.0], [0.0, 0.0], [-0.0, -0.0], [0.0, 0.0]])
    d = Embeddings(zeros, zeros, np.arange(5))
    assert np.signbit(np.float32(-0.0) * np.float32(1) + np.float32(-0.0))
    for name, run in ways(q, d):
        for k in (1, 2, 4):
            assert run(k)[1].tolist() == [list(range(k))], name


def test_the_best_of_several_devices_has_equal_zeros():
    scores, indices = jnp.float32([[-0.0, 0.0, -0.0]]), jnp.int32([[3, 5, 9]])
    assert streamed_search._largest(scores, indices, 2)[1].tolist() == [[3, 5]]


@pytest.mark.usefixtures("either")
def test_more_than_there_are(rng):
    q, d = make(rng, [2, 3]), make(rng, [4, 1, 5])
    values, indices = search(q, d, 50)
    assert values.shape == (2, 3)
    np.testing.assert_array_equal(indices, ranked(oracle(q, d), 3))


def test_nothing_to_score(rng):
    e = make(rng, [2, 3])
    assert score(e, e[0:0]).shape == (2, 0)
    assert score(e[0:0], e).shape == (0, 2)
    assert [x.shape for x in search(e, e[0:0], 3)] == [(2, 0), (2, 0)]
    assert [x.shape for x in search(e[0:0], e, 3)] == [(0, 2), (0, 2)]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("k", [0, -1, 1.5, True, None])
def test_k_must_be_a_positive_integer(rng, k):
    e = make(rng, [2])
    with pytest.raises(ValueError, match="k is .*: it must be an integer of at least 1"):
        search(e, e, k)


# Plain arrays


@pytest.mark.usefixtures("either")
def test_pooled_arrays(rng):
    q, d = unit(rng, 3, 8), unit(rng, 5, 8)
    np.testing.assert_allclose(score(q, d, pooled_weight=2.0), 2 * q.astype(np.float64) @ d.T, atol=TOLERANCE)
    np.testing.assert_array_equal(search(jnp.asarray(q), d, 2)[1], ranked(q @ d.T, 2))


@pytest.mark.usefixtures("either")
def test_token_arrays_with_and_without_masks(rng):
    q, d = unit(rng, 3, 4, 8), unit(rng, 5, 6, 8)
    q_mask, d_mask = (np.arange(n)[None] < rng.integers(1, n + 1, m)[:, None] for m, n in ((3, 4), (5, 6)))

    def pairs(q_mask, d_mask):
        return [
            [(a[x] @ b[y].T).max(axis=1).mean() for b, y in zip(d, d_mask, strict=True)]
            for a, x in zip(q, q_mask, strict=True)
        ]

    whole = np.ones((3, 4), bool), np.ones((5, 6), bool)
    np.testing.assert_allclose(score(q, d), pairs(*whole), atol=TOLERANCE)
    np.testing.assert_allclose(score(q, d, q_mask=q_mask, d_mask=d_mask), pairs(q_mask, d_mask), atol=TOLERANCE)
    ragged = [x[m] for x, m in zip(d, d_mask, strict=True)]
    np.testing.assert_allclose(score(q, ragged, q_mask=q_mask), pairs(q_mask, d_mask), atol=TOLERANCE)


# Bad input

GOOD = np.ones((2, 3, 4), np.float32)


def with_nan(shape, at):
    x = np.ones(shape, np.float32)
    x[at] = np.nan
    return x


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("call", [score, search])
@pytest.mark.parametrize(
    ("q", "d", "options", "error", "message"),
    [
        (GOOD, with_nan((4, 3, 4), (2, 1, 0)), {}, ValueError, "d, item 2, token 1: .* NaN or infinity"),
        (with_nan((2, 3, 4), (1, 2, 3)), GOOD, {}, ValueError, "q, item 1, token 2"),
        (GOOD[0], with_nan((4, 4), (3, 0)), {}, ValueError, "d, item 3: .* NaN or infinity"),
        ([GOOD[0]], [GOOD[0], with_nan((2, 4), (1, 1))], {}, ValueError, "d, item 1, token 1"),
        (GOOD, GOOD[..., :3], {}, ValueError, "tokens of q have width 4, of d 3: encode both"),
        (GOOD[0], GOOD[0, :, :2], {}, ValueError, "pooled vectors of q have width 4, of d 2"),
        (GOOD, GOOD[0], {}, ValueError, "q has tokens, d has pooled vectors: pass the same kind"),
        (
            GOOD,
            GOOD,
            {"d_mask": np.ones((2, 4), bool)},
            ValueError,
            r"d_mask has shape \(2, 4\) .* it must be \(2, 3\)",
        ),
        (GOOD, GOOD, {"q_mask": np.ones((2, 3))}, TypeError, "q_mask has dtype float64: a mask is boolean"),
        (GOOD, GOOD, {"d_mask": np.zeros((2, 3), bool)}, ValueError, "d, item 0 has no token"),
        (GOOD[0], GOOD[0], {"d_mask": np.ones((3, 4), bool)}, ValueError, "d_mask is for tokens"),
        (GOOD.astype(np.float64), GOOD, {}, TypeError, "q has dtype float64: use .astype"),
        (GOOD, GOOD.astype(np.int32), {}, TypeError, "d has dtype int32"),
        (GOOD[0, 0], GOOD[0], {}, ValueError, r"q has shape \(4,\): pass Embeddings"),
        ([], GOOD, {}, ValueError, "q is an empty list"),
        (GOOD, [GOOD[0], GOOD[0, :, :2]], {}, ValueError, r"d\[1\] has width 2 .*d\[0\] has 4"),
        (GOOD, GOOD, {"late_weight": 0}, ValueError, "q holds only tokens: late_weight must not be 0"),
        (
            GOOD[0],
            GOOD[0],
            {"pooled_weight": 0},
            ValueError,
            "q holds only pooled vectors: pooled_weight must not be 0",
        ),
        (GOOD, GOOD, {"late_weight": 0, "pooled_weight": 0}, ValueError, "both 0"),
        (GOOD, GOOD, {"late_weight": float("nan")}, ValueError, "late_weight is nan: it must be finite"),
    ],
)
def test_bad_input(call, q, d, options, error, message):
    with pytest.raises(error, match=message):
        call(q, d, **options)


def test_embeddings_of_two_models(rng):
    with pytest.raises(ValueError, match="tokens of q have width 8, of d 6"):
        score(make(rng, [2]), make(rng, [2], 6, 8))
    with pytest.raises(ValueError, match="q has pooled vectors and tokens, d has tokens: pass the same kind"):
        score(make(rng, [2]), unit(rng, 1, 2, 8))
    assert score(make(rng, [2]), unit(rng, 1, 2, 8), pooled_weight=0).shape == (1, 1)


# Compilations and memory


def bound_traces(monkeypatch, most: int) -> None:
    """Makes a score or a search fail that traces more shapes of blocks; the scores are zeros."""
    use_devices(monkeypatch)

    def zeros(q, d, weights):
        return jnp.zeros((len(q.lengths), len(d.lengths)))

    traced = jax.jit(chex.assert_max_traces(zeros, n=most))
    monkeypatch.setattr(streamed_search, "score_block", traced)
    monkeypatch.setattr(importlib.import_module("smart_jax.retrieval.score"), "score_block", traced)


@pytest.mark.compiles
def test_compilations_are_few(rng, monkeypatch):
    """40 corpora and query sets of random sizes: the buckets bound the shapes that reach the compiler."""
    bound_traces(monkeypatch, 25)
    for _ in range(40):
        q = make(rng, rng.integers(1, 17, rng.integers(1, 9)))
        d = make(rng, rng.integers(1, 33, rng.integers(9, 33)))
        search(q, d, int(rng.integers(1, 40)))
        score(q, d)
    # Query windows of 16 ... 128 tokens and 1 ... 8 slots, documents of 128 ... 1,024 tokens and 16 or 32 slots.


def test_sizes_of_one_bucket_and_every_k_are_compiled_once(rng, monkeypatch):
    bound_traces(monkeypatch, 1)
    for length, k in ((31, 5), (32, 1), (17, 100)):
        search(make(rng, [16] * 8), make(rng, [length] * 32), k)


def test_devices_compile_a_search_once_for_every_small_k(rng, monkeypatch):
    zeros = lambda best, q, d, weights, mesh: (jnp.zeros_like(best[0]), best[1])  # noqa: E731
    block = chex.assert_max_traces(zeros, n=1)
    monkeypatch.setattr(streamed_search, "_search_block", jax.jit(block, static_argnames="mesh"))
    for k in (5, 1, 32):
        assert search(make(rng, [16]), make(rng, [3] * 32), k, mesh=make_mesh())[0].shape == (1, k)


def test_a_corpus_that_comes_again_is_a_devices(rng, monkeypatch):
    """However many query tokens of a bucket there are; work for milliseconds is always the host's."""
    monkeypatch.setattr(host_scores, "shapes", Shapes())
    monkeypatch.setattr(host_scores, "SMALL", 8 * 40 * 100)
    both = Parts(True, True)
    once, again, other = make(rng, [50] * 10), make(rng, [50] * 10), make(rng, [49] * 10)
    assert [host_scores.is_small(make(rng, [n]), d, both) for n, d in ((60, once), (50, again))] == [True, False]
    assert host_scores.is_small(make(rng, [60]), other, both) and not host_scores.is_small(make(rng, [64]), other, both)
    assert [host_scores.is_small(make(rng, [4]), once, both) for _ in range(2)] == [True, True]
    monkeypatch.setattr(host_scores, "ONCE", 0)
    assert not host_scores.is_small(make(rng, [60]), make(rng, [48] * 10), both)


def test_small_work_needs_no_device(rng, monkeypatch):
    """Neither a compilation nor a transfer, whatever is stored."""
    monkeypatch.setattr(jax, "device_put", None)
    monkeypatch.setattr(jax, "jit", None)
    q, d = make(rng, [4, 1]), make(rng, [3, 0, 9])
    for dtype in (np.float32, np.float16, ml_dtypes.bfloat16, np.int8):
        stored = d.astype(dtype)
        np.testing.assert_allclose(score(q, stored), oracle(q, stored.astype(np.float32)), atol=TOLERANCE)
        assert search(q, stored, 2)[1].shape == (2, 2)


@pytest.mark.compiles
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0)])
def test_nothing_is_transferred_implicitly(rng, monkeypatch, weights):
    """Puts and fetches all that goes to the devices and back; not even a scalar slips in."""
    use_devices(monkeypatch)
    q, d = make(rng, [3, 20, 1]), make(rng, rng.integers(1, 30, 12))
    options = dict(zip(("pooled_weight", "late_weight"), weights, strict=True))
    with jax.transfer_guard("disallow"):
        score(q, d, **options)
        search(q, d, 5, **options)
        search(q, d, 5, mesh=make_mesh(), **options)


@pytest.mark.parametrize("devices", [None, 2])
def test_only_documents_that_are_allowed_are_found(rng, either, devices):
    q, d = make(rng, [3, 2, 4]), make(rng, [4, 1, 7, 2, 5, 3, 1, 6])
    allow = np.array([True, False, True, True, False, True, False, True])
    mesh = None if devices is None else make_mesh(devices=jax.devices()[:devices])
    values, indices = search(q, d, 8, allow=allow, mesh=mesh)
    expected = np.where(allow, oracle(q, d), -np.inf)
    np.testing.assert_array_equal(indices, ranked(expected, 5))
    np.testing.assert_allclose(values, np.take_along_axis(expected, indices, 1), atol=TOLERANCE)
    with pytest.raises(ValueError, match=r"allow is bool \(2,\): it must be bool, one for each of 8 documents"):
        search(q, d, 8, allow=np.array([1, 0]) == 1, mesh=mesh)


@pytest.mark.compiles
def test_no_tracer_leaks(rng, monkeypatch):
    use_devices(monkeypatch)
    q, d = make(rng, [3, 2]), make(rng, [4, 1, 7])
    with jax.checking_leaks():
        np.testing.assert_allclose(score(q, d), oracle(q, d), atol=TOLERANCE)
        np.testing.assert_array_equal(search(q, d, 2)[1], ranked(oracle(q, d), 2))


def test_search_holds_neither_all_similarities_nor_all_scores(rng):
    """XLA's own count of a search step's temporary memory, whose shapes do not depend on the corpus."""
    q, d = make(rng, [32] * 64), make(rng, [200] * 400)
    queries, documents, weights = operands(q, d, 1.0, 1.0)
    plan = block_plan.query_plan(queries, Parts.of(weights))
    query = plan.block(plan.run(0, 0))
    mesh = streamed_search.document_mesh(None)
    block = next(streamed_search.stream(block_plan.document_plan(documents, Parts.of(weights), "cpu"), mesh))
    best = streamed_search._nothing_yet(mesh, len(query.lengths), 10)
    compiled = streamed_search._search_block.lower(best, query, block, weights, mesh).compile()
    similarities = 4 * len(q.tokens) * len(d.tokens)
    assert compiled.memory_analysis().temp_size_in_bytes < similarities / 50


# Many devices


@pytest.mark.compiles
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0)])
def test_many_devices_find_what_one_finds(rng, small_blocks, weights):
    """Equal documents in several devices' parts, so that ties are broken between devices too."""
    options = dict(zip(("pooled_weight", "late_weight"), weights, strict=True))
    q = make(rng, [3, 20, 1, 16, 5])
    d = make(rng, [*rng.integers(1, 30, 40), 100, 1, 64, *rng.integers(0, 5, 30)])
    d = Embeddings.concatenate([d[:10], d, d[5:20], d])
    for k in (1, 7, 100, 500):
        expected, found = search(q, d, k, **options), search(q, d, k, mesh=make_mesh(2, 2, 2), **options)
        np.testing.assert_array_equal(found[1], expected[1])
        np.testing.assert_allclose(found[0], expected[0], atol=TOLERANCE)


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9])
def test_about_as_many_documents_as_devices(rng, count):
    q, d = make(rng, [2, 3]), make(rng, rng.integers(1, 9, count))
    np.testing.assert_array_equal(search(q, d, 5, mesh=make_mesh())[1], ranked(oracle(q, d), 5))


def test_documents_are_split_by_tokens():
    def shares(lengths, count):
        return block_plan.split(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), count)

    assert shares([100, *[1] * 100], 2) == [(0, 1), (1, 101)]
    assert shares([5, 5, 5, 5], 2) == [(0, 2), (2, 4)]
    assert shares([1, 1000, 1], 3) == [(0, 1), (1, 2), (2, 3)]
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 300, 1000)
    tokens = [int(lengths[a:b].sum()) for a, b in shares(lengths, 8)]
    assert sum(tokens) == lengths.sum() and max(tokens) - min(tokens) < 2 * 300


def test_documents_are_streamed_within_the_memory_that_is_given(rng, tmp_path, monkeypatch):
    """A mapped corpus of 20 times the setting: what lives on the device at any step stays below it."""
    setting = 2**18
    make(rng, [200] * 400, 16, 16).save(tmp_path)
    q, d = make(rng, [4, 7], 16, 16), Embeddings.load(tmp_path, mmap=True)
    assert isinstance(d.tokens.base, np.memmap) or isinstance(d.tokens.base.base, np.memmap)
    assert d.nbytes > 19 * setting
    before, peaks, run = sum(x.nbytes for x in jax.live_arrays()), [], streamed_search.score_block

    def watched(query, block, weights):
        temporary = run.lower(query, block, weights).compile().memory_analysis().temp_size_in_bytes
        peaks.append(sum(x.nbytes for x in jax.live_arrays()) - before + temporary)
        return run(query, block, weights)

    monkeypatch.setattr(streamed_search, "score_block", watched)
    monkeypatch.setattr(block_plan, "QUERY_TOKENS", 16)
    _, indices = search(q, d, 5, device_bytes=setting)
    assert len(peaks) >= 80 and max(peaks) <= setting
    np.testing.assert_array_equal(indices, ranked(oracle(q, d), 5))


def test_a_document_larger_than_the_memory_that_is_given(rng):
    with pytest.raises(ValueError, match=r"device_bytes is 65536, but document 1 needs \d+: raise it"):
        search(make(rng, [2]), make(rng, [3, 4000]), device_bytes=2**16)


PROCESS = """
import sys
import jax
jax.distributed.initialize(f"127.0.0.1:{sys.argv[2]}", 2, int(sys.argv[1]))
import numpy as np
import smart_jax
from smart_jax import Embeddings, make_mesh
q, d = (Embeddings.load(f"{sys.argv[3]}/{side}", mmap=True) for side in "qd")
assert jax.process_count() == 2 and jax.device_count() == 4
scores, indices = smart_jax.search(q, d, 20, mesh=make_mesh())
resident = smart_jax.to_device(d, make_mesh())
all_scores, found = smart_jax.score(q, resident), smart_jax.search(q, resident, 20)
np.savez(f"{sys.argv[3]}/{sys.argv[1]}.npz", scores=scores, indices=indices, all=all_scores, found=found[1])
"""


@pytest.mark.compiles
def test_two_processes(rng, tmp_path):
    q, d = make(rng, [3, 5, 1]), make(rng, rng.integers(1, 60, 200))
    q.save(tmp_path / "q")
    d.save(tmp_path / "d")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(i), port, str(tmp_path)], env=environment(2), stderr=subprocess.PIPE
        )
        for i in range(2)
    ]
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
    scores, indices = search(q, d, 20)
    for i in range(2):
        found = np.load(tmp_path / f"{i}.npz")
        np.testing.assert_array_equal(found["indices"], indices)
        np.testing.assert_allclose(found["scores"], scores, atol=TOLERANCE)
        np.testing.assert_array_equal(found["found"], indices)
        np.testing.assert_allclose(found["all"], score(q, d), atol=TOLERANCE)
