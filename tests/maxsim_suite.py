"""Tests of what every implementation of MaxSim must do: subclass `MaxSimSuite` in a test file and set `implementation`.

The oracle is NumPy in float64, token by token; gradients are compared with autodiff of the dense reference and with
finite differences.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.test_util import check_grads

from smart_jax.maxsim import NO_TOKENS, maxsim, maxsim_pairs

TOLERANCE = 1e-5


def oracle(q, d, q_mask=None, d_mask=None, reduction="mean") -> np.ndarray:
    q, d = np.asarray(q).astype(np.float64), np.asarray(d).astype(np.float64)
    q_mask = np.ones(q.shape[:2], bool) if q_mask is None else np.asarray(q_mask)
    d_mask = np.ones(d.shape[:2], bool) if d_mask is None else np.asarray(d_mask)
    scores = np.empty((len(q), len(d)))
    for b in range(len(q)):
        for n in range(len(d)):
            if not d_mask[n].any():
                scores[b, n] = NO_TOKENS
                continue
            best = (q[b][q_mask[b]] @ d[n][d_mask[n]].T).max(axis=1)
            scores[b, n] = best.sum() / (max(len(best), 1) if reduction == "mean" else 1)
    return scores


def unit(rng, *shape) -> np.ndarray:
    x = rng.normal(size=shape)
    return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def make(rng, queries=3, query_length=4, documents=5, length=6, width=8, kept=0.6):
    """Tokens and masks; every item keeps at least its first token."""
    masks = [rng.random(shape) < kept for shape in ((queries, query_length), (documents, length))]
    for mask in masks:
        mask[:, 0] = True
    return unit(rng, queries, query_length, width), unit(rng, documents, length, width), *masks


def close(actual, expected, tolerance=TOLERANCE):
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=tolerance, atol=tolerance)


def close_trees(actual, expected, tolerance=TOLERANCE):
    chex.assert_trees_all_close(actual, expected, rtol=tolerance, atol=tolerance)


compiled = jax.jit(maxsim, static_argnames=("reduction", "implementation"))


class MaxSimSuite:
    implementation: str
    half_tolerance = 1e-6  # of the gradient of bfloat16
    ragged_share = 0.1  # of the profile's ragged cases
    shapes = (
        (1, 1, 1, 1, 1),
        (3, 4, 5, 6, 8),
        (2, 1, 7, 300, 16),
        (1, 5, 300, 2, 3),
        (4, 33, 3, 129, 24),
        (2, 3, 5, 16, 8),
    )

    @property
    def maxsim(self):
        return partial(compiled, implementation=self.implementation)

    @pytest.fixture
    def rng(self):
        return np.random.default_rng(0)

    # Forward

    @pytest.mark.parametrize("shape", shapes)
    @pytest.mark.parametrize(("masked", "reduction"), [(False, "mean"), (True, "mean"), (True, "sum")])
    def test_shapes(self, rng, shape, masked, reduction):
        q, d, q_mask, d_mask = make(rng, *shape)
        masks = (q_mask, d_mask) if masked else ()
        score = self.maxsim(q, d, *masks, reduction=reduction)
        assert (score.shape, score.dtype) == ((shape[0], shape[2]), jnp.float32)
        close(score, oracle(q, d, *masks, reduction=reduction))

    def test_ragged(self):
        """Ragged lengths by random masks, empty items too; sign -1 = all similarities negative, 0 = all tied."""

        @settings(max_examples=max(20, int(settings.default.max_examples * self.ragged_share)))
        @given(
            st.integers(0, 2**32 - 1),
            st.sampled_from([(2, 3, 4, 7, 5), (1, 2, 9, 1, 3), (3, 1, 2, 31, 2)]),
            st.floats(0, 1),
            st.sampled_from([-1.0, 1.0, 0.0]),
        )
        def run(seed, shape, kept, sign):
            rng = np.random.default_rng(seed)
            q, d, _, _ = make(rng, *shape)
            q_mask, d_mask = rng.random(q.shape[:2]) < kept, rng.random(d.shape[:2]) < kept
            if sign <= 0:
                q, d = np.abs(q), sign * np.abs(d)
            close(self.maxsim(q, d, q_mask, d_mask), oracle(q, d, q_mask, d_mask))

        run()

    @pytest.mark.parametrize(
        "width", [1, 7, 100, 128, 1024, 4096, *(pytest.param(n, marks=pytest.mark.slow) for n in (64, 192, 320, 2048))]
    )
    @pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
    def test_widths(self, rng, width, dtype):
        q, d, q_mask, d_mask = make(rng, 2, 5, 3, 9, width)
        q, d = q.astype(dtype), d.astype(dtype)
        close(self.maxsim(q, d, q_mask, d_mask), oracle(q, d, q_mask, d_mask))

    @pytest.mark.parametrize("lengths", [(1, 3001), (1025, 1), (257, 1023)])
    def test_lengths(self, rng, lengths):
        q, d, q_mask, d_mask = make(rng, 1, lengths[0], 2, lengths[1], 8)
        close(self.maxsim(q, d, q_mask, d_mask), oracle(q, d, q_mask, d_mask))

    def test_everything_masked(self, rng):
        q, d, q_mask, d_mask = make(rng)
        score = self.maxsim(q, d, np.zeros_like(q_mask), np.zeros_like(d_mask))
        assert (np.asarray(score) == NO_TOKENS).all()
        assert not np.asarray(self.maxsim(q, d, np.zeros_like(q_mask), d_mask)).any()

    def test_dropped_tokens_never_win(self, rng):
        """All kept similarities are negative, and the dropped tokens are zero or best."""
        q = np.abs(unit(rng, 2, 3, 8))
        d = -np.abs(unit(rng, 4, 6, 8))
        d_mask = np.arange(6)[None] < np.array([1, 3, 5, 6])[:, None]
        d[~d_mask] = 0
        d[0, -1] = 1
        close(self.maxsim(q, d, None, d_mask), oracle(q, d, None, d_mask))

    def test_padding_changes_nothing(self, rng):
        q, d, q_mask, d_mask = make(rng)
        score = self.maxsim(q, d, q_mask, d_mask)
        wide = [np.concatenate([x, np.full_like(x, 7.0)], axis=1) for x in (q, d)]
        masks = [np.concatenate([m, np.zeros_like(m)], axis=1) for m in (q_mask, d_mask)]
        close(self.maxsim(*wide, *masks), score, 1e-6)

    def test_items_without_tokens(self, rng):
        q, d, q_mask, d_mask = make(rng)
        q_mask[1], d_mask[2] = False, False
        score = np.asarray(self.maxsim(q, d, q_mask, d_mask))
        assert (score[:, 2] == NO_TOKENS).all() and np.isfinite(score**2).all()
        assert (score[1, [0, 1, 3, 4]] == 0).all()
        close(score, oracle(q, d, q_mask, d_mask))

    @pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
    @pytest.mark.parametrize("both", [True, False])
    def test_half_precision_inputs_are_summed_in_float32(self, rng, dtype, both):
        q, d, q_mask, d_mask = make(rng, 2, 40, 3, 20, 512)
        q, d = q.astype(dtype) if both else q, d.astype(dtype)
        score = self.maxsim(q, d, q_mask, d_mask)
        assert score.dtype == jnp.float32
        close(score, oracle(q, d, q_mask, d_mask))

    # Gradient

    @pytest.mark.parametrize(("shape", "reduction"), [*((s, "mean") for s in shapes), (shapes[1], "sum")])
    def test_gradient_is_the_reference_s(self, rng, shape, reduction):
        q, d, q_mask, d_mask = make(rng, *shape)
        g = rng.normal(size=(shape[0], shape[2])).astype(np.float32)

        @partial(jax.jit, static_argnums=0)
        def total(implementation, q, d):
            return jnp.sum(g * maxsim(q, d, q_mask, d_mask, reduction=reduction, implementation=implementation))

        ours = jax.grad(partial(total, self.implementation), (0, 1))(q, d)
        theirs = jax.grad(partial(total, "reference"), (0, 1))(q, d)
        chex.assert_type(ours, jnp.float32)
        close_trees(ours, theirs)

    def test_gradient_by_finite_differences(self, rng):
        with jax.enable_x64(True):
            q, d, q_mask, d_mask = make(rng)
            q, d = q.astype(np.float64), d.astype(np.float64)
            score = self.maxsim(q, d, q_mask, d_mask)
            assert score.dtype == jnp.float64
            np.testing.assert_allclose(score, oracle(q, d, q_mask, d_mask), rtol=1e-12, atol=1e-12)
            run = partial(self.maxsim, q_mask=q_mask, d_mask=d_mask)
            check_grads(run, (q, d), order=1, modes=["rev"], eps=1e-6, atol=1e-8, rtol=1e-8)

    def test_gradient_of_infonce_is_finite_beside_items_without_tokens(self, rng):
        q, d, q_mask, d_mask = make(rng)
        q_mask[1], d_mask[4] = False, False

        @jax.jit
        @partial(jax.value_and_grad, argnums=(0, 1, 2))
        def loss(q, d, temperature):
            logits = self.maxsim(q, d, q_mask, d_mask) / temperature
            return jnp.mean(jax.nn.logsumexp(logits, axis=1) - jnp.diagonal(logits[:, :3]))

        value, grads = loss(q, d, 0.03)
        expected = oracle(q, d[:4], q_mask, d_mask[:4]) / 0.03  # a document without tokens has no weight
        top = expected.max(axis=1, keepdims=True)
        lse = np.log(np.exp(expected - top).sum(axis=1)) + top[:, 0]
        assert float(value) == pytest.approx(np.mean(lse - np.diagonal(expected[:, :3])), rel=1e-5)
        assert all(np.isfinite(g).all() for g in grads)
        assert not np.asarray(grads[1])[4].any()
        assert not np.asarray(grads[0])[1].any()

    def test_dropped_tokens_get_no_gradient(self, rng):
        q, d, q_mask, d_mask = make(rng)
        dq, dd = jax.grad(lambda q, d: self.maxsim(q, d, q_mask, d_mask).sum(), (0, 1))(q, d)
        assert not np.asarray(dq)[~q_mask].any()
        assert not np.asarray(dd)[~d_mask].any()

    @pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
    def test_gradient_of_half_precision_inputs(self, rng, dtype):
        q, d, q_mask, d_mask = make(rng, width=32)
        q, d = q.astype(dtype), d.astype(dtype)
        run = jax.grad(lambda q, d: self.maxsim(q, d, q_mask, d_mask).sum(), (0, 1))
        for half, whole in zip(run(q, d), run(q.astype(np.float32), d.astype(np.float32)), strict=True):
            assert half.dtype == dtype
            tolerance = 1e-6 if dtype == np.float16 else self.half_tolerance
            close(half, np.asarray(whole).astype(dtype).astype(np.float64), tolerance)

    @pytest.mark.parametrize("length", [6, 300])
    @pytest.mark.parametrize("bad", [np.nan, -np.nan])
    def test_nan_stays_with_its_item(self, rng, length, bad):
        """One NaN in one token of document 1, and of query 2."""
        q, d, _, _ = make(rng, length=length)
        d[1, length // 2, 3] = bad
        assert np.isnan(np.asarray(self.maxsim(q, d))).tolist() == [[False, True, False, False, False]] * 3
        q[2, 1, 0] = bad
        score = np.asarray(self.maxsim(q, d))
        assert np.isnan(score).tolist() == [[False, True, False, False, False]] * 2 + [[True] * 5]
        good = np.array([0, 2, 3, 4])
        close(score[:2][:, good], oracle(q[:2], d[good]))

    @pytest.mark.parametrize("width", [8, 256])  # a CPU has another way for few query tokens of a large width
    def test_nan_of_a_document_is_seen_by_a_query_without_tokens(self, rng, width):
        q, d = rng.normal(size=(2, 3, width)).astype(np.float32), rng.normal(size=(3, 5, width)).astype(np.float32)
        d[1, 2, 0] = np.nan
        score = np.asarray(self.maxsim(q, d, np.array([[False] * 3, [True] * 3])))
        assert np.isnan(score).tolist() == [[False, True, False]] * 2 and not score[0, [0, 2]].any()

    def test_nan_of_dropped_tokens_is_not_seen(self, rng):
        q, d, q_mask, d_mask = make(rng)
        d_mask[3] = False

        def run(q, d):
            value, pullback = jax.vjp(lambda q, d: self.maxsim(q, d, q_mask, d_mask), q, d)
            return value, *pullback(jnp.ones_like(value))

        expected = run(q, d)
        q[~q_mask], d[~d_mask] = np.nan, np.nan
        close_trees(run(q, d), expected, 1e-6)

    def test_no_nan_beside_items_without_tokens(self, rng):
        """jax's own check, of everything that a program returns."""
        q, d, q_mask, d_mask = make(rng)
        q_mask[1], d_mask[2] = False, False
        with jax.debug_nans(True):
            value, pullback = jax.vjp(lambda q, d: self.maxsim(q, d, q_mask, d_mask), q, d)
            gradients = pullback(jnp.ones_like(value))
        chex.assert_tree_all_finite((value, gradients))

    # Transformations

    def test_no_tracer_leaks(self, rng):
        q, d, q_mask, d_mask = make(rng)
        with jax.checking_leaks():
            jax.grad(lambda q, d: self.maxsim(q, d, q_mask, d_mask).sum(), (0, 1))(q, d)

    def test_jit_and_checkpoint(self, rng):
        q, d, q_mask, d_mask = make(rng)
        plain = jax.value_and_grad(lambda q, d: self.maxsim(q, d, q_mask, d_mask).sum(), (0, 1))(q, d)

        @jax.jit
        @partial(jax.value_and_grad, argnums=(0, 1))
        @jax.checkpoint
        def run(q, d, q_mask, d_mask):
            return self.maxsim(q, d, q_mask, d_mask).sum()

        close_trees(run(q, d, q_mask, d_mask), plain, 1e-6)

    def test_vmap(self, rng):
        q, d, q_mask, d_mask = (
            np.stack(x) for x in zip(*(make(rng, query_length=5, length=7) for _ in range(3)), strict=True)
        )

        @jax.jit
        def run(q, d, q_mask, d_mask):
            value, pullback = jax.vjp(lambda q, d: self.maxsim(q, d, q_mask, d_mask), q, d)
            return value, *pullback(jnp.ones_like(value))

        batched = jax.vmap(run)(q, d, q_mask, d_mask)
        for i in range(3):
            one = jax.tree.map(lambda x, i=i: x[i], batched)
            close_trees(one, run(q[i], d[i], q_mask[i], d_mask[i]), 1e-6)
        shared = jax.vmap(self.maxsim, in_axes=(None, 0))(q[0], d)
        close(shared, np.stack([oracle(q[0], x) for x in d]))

    @pytest.mark.parametrize(("masked", "length"), [(False, 6), (True, 300)])
    def test_shard_map_over_queries(self, rng, masked, length):
        """Queries split over devices, documents whole on each: scores and both gradients as on one device."""
        devices = jax.devices()
        assert len(devices) == 8
        q, d, *masks = make(rng, queries=16, length=length)
        masks = masks if masked else (None, None)
        mesh = Mesh(np.array(devices), ("data",))
        split, whole = PartitionSpec("data"), PartitionSpec()

        def run(q, d, q_mask, d_mask):
            return self.maxsim(q, d, q_mask, d_mask)

        specs = (split, whole, split, whole)
        sharded = jax.shard_map(run, mesh=mesh, in_specs=specs, out_specs=split)
        close(sharded(q, d, *masks), oracle(q, d, *masks))
        g = rng.normal(size=(16, 5)).astype(np.float32)
        ours = jax.jit(jax.grad(lambda q, d: jnp.sum(g * sharded(q, d, *masks)), (0, 1)))(q, d)
        theirs = jax.grad(lambda q, d: jnp.sum(g * run(q, d, *masks)), (0, 1))(q, d)
        close_trees(ours, theirs)

    def test_sharded_arrays_under_jit(self, rng):
        """As the trainer calls it: the compiler splits the work by the arrays' shardings."""
        q, d, q_mask, d_mask = make(rng, queries=16)
        mesh = Mesh(np.array(jax.devices()), ("data",))
        split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
        run = jax.jit(jax.value_and_grad(lambda *x: jnp.sum(self.maxsim(*x) ** 2), (0, 1)))
        placed = jax.device_put((q, d, q_mask, d_mask), (split, whole, split, whole))
        close_trees(run(*placed), run(q, d, q_mask, d_mask))

    # Each query with its own documents

    def test_pairs(self, rng):
        made = [make(rng, 1, 4, 3, 6, 8) for _ in range(5)]
        q, d, q_mask, d_mask = (np.stack(x) for x in zip(*made, strict=True))
        q, q_mask, d_mask[1, 2] = q[:, 0], q_mask[:, 0], False
        run = jax.jit(partial(maxsim_pairs, implementation=self.implementation))
        one = [slice(b, b + 1) for b in range(5)]
        plain = [oracle(q[i], d[i][0]) for i in one]
        close(run(q, d), np.concatenate(plain))
        masked = [oracle(q[i], d[i][0], q_mask[i], d_mask[i][0]) for i in one]
        close(run(q, d, q_mask, d_mask), np.concatenate(masked))

        def reference(q, d):
            return jnp.stack([maxsim(q[i], d[i][0], q_mask[i], implementation="reference")[0] for i in one])

        ours = jax.jit(jax.grad(lambda q, d: jnp.sum(run(q, d, q_mask) ** 2), (0, 1)))(q, d)
        theirs = jax.jit(jax.grad(lambda q, d: jnp.sum(reference(q, d) ** 2), (0, 1)))(q, d)
        close_trees(ours, theirs)

    @pytest.mark.usefixtures("unchecked")
    def test_pairs_of_other_shapes_are_refused(self, rng):
        q, d, _, _ = make(rng)
        with pytest.raises(ValueError, match=r"d has shape \(5, 6, 8\) for q of shape \(3, 4, 8\): it must be"):
            maxsim_pairs(q, d, implementation=self.implementation)
        with pytest.raises(ValueError, match="documents of each, tokens, width"):
            maxsim_pairs(q, d[None], implementation=self.implementation)

    # Bad input

    @pytest.mark.usefixtures("unchecked")
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"q": np.ones((3, 4, 7), np.float32)}, ValueError, "q has width 7 and d has width 8"),
            (
                {"q": np.ones((4, 8), np.float32)},
                ValueError,
                r"q has shape \(4, 8\): tokens are \[items, tokens, width",
            ),
            ({"d": np.ones((0, 6, 8), np.float32)}, ValueError, r"d has shape \(0, 6, 8\).*no axis empty"),
            ({"d": np.ones((5, 6, 8), np.int32)}, TypeError, "d has dtype int32: tokens must be floating point"),
            ({"q_mask": np.ones((3, 5), bool)}, ValueError, r"q_mask has shape \(3, 5\) .* it must be \(3, 4\)"),
            ({"d_mask": np.ones((5,), bool)}, ValueError, r"d_mask has shape \(5,\) .* it must be \(5, 6\)"),
            ({"d_mask": np.ones((5, 6), np.int32)}, TypeError, "d_mask has dtype int32: a mask is boolean"),
            ({"reduction": "max"}, ValueError, "reduction 'max': choose 'mean' or 'sum'"),
        ],
    )
    def test_bad_input(self, rng, change, error, message):
        q, d, q_mask, d_mask = make(rng)
        with pytest.raises(error, match=message):
            self.maxsim(**({"q": q, "d": d, "q_mask": q_mask, "d_mask": d_mask} | change))


class MaxSimVariants(chex.TestCase):
    """Tests with jit and without, of arrays on a device and on the host: subclass it beside `MaxSimSuite`."""

    implementation: str

    @chex.all_variants(with_pmap=False)
    def test_score_and_gradient(self):
        q, d, q_mask, d_mask = make(np.random.default_rng(0))

        def run(implementation, *arrays):
            def total(q, d, *masks):
                return jnp.sum(maxsim(q, d, *masks, implementation=implementation) ** 2)

            return jax.value_and_grad(total, (0, 1))(*arrays)

        ours = self.variant(partial(run, self.implementation))(q, d, q_mask, d_mask)
        close_trees(ours, run("reference", q, d, q_mask, d_mask))
