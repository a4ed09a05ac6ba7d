"""maxsim and maxsim_pairs outside of jit: on the host, or by a program of a shape that came before."""

from functools import partial

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smart_jax import maxsim, maxsim_pairs
from smart_jax.maxsim import eager, host
from tests.maxsim_suite import MaxSimSuite, close, close_trees, oracle, unit


@pytest.fixture(autouse=True)
def shapes(monkeypatch):
    """No shape came before."""
    new = eager.Shapes()
    monkeypatch.setattr(eager, "shapes", new)
    return new


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def compilations() -> list[str]:
    """Returns the events of jax from now on; a compilation has one that is called `COMPILATION`."""
    events: list[str] = []
    jax.monitoring.register_event_duration_secs_listener(lambda event, _, **__: events.append(event))
    return events


COMPILATION = "/jax/core/compile/backend_compile_duration"


@pytest.mark.compiles
class TestEager(MaxSimSuite):
    """Tests of the suite that do without jit."""

    implementation = None
    test_pairs = None  # under jit
    test_jit_and_checkpoint = None
    test_sharded_arrays_under_jit = None
    test_shard_map_over_queries = None
    test_gradient_by_finite_differences = None
    test_gradient_of_half_precision_inputs = None
    test_dropped_tokens_get_no_gradient = None
    test_gradient_of_infonce_is_finite_beside_items_without_tokens = None

    @property
    def maxsim(self):
        return maxsim


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("pair_scores", [1, 2**16])
def test_ragged_on_the_host(monkeypatch, dtype, pair_scores):
    """Masked at random, with items without tokens, each query against all documents and against its own."""
    monkeypatch.setattr(host, "PAIR_SCORES", pair_scores)
    monkeypatch.setattr(host, "TOKENS_IN_TILE", (4, 16))
    monkeypatch.setattr(host, "BY_ROWS", 10)
    monkeypatch.setattr(eager, "PROGRAMS", 0)

    @given(
        st.integers(0, 2**32 - 1),
        st.tuples(*(st.integers(1, n) for n in (4, 7, 5, 20, 9))),
        st.floats(0, 1),
        st.sampled_from(["mean", "sum"]),
        st.booleans(),
    )
    def run(seed, sizes, kept, reduction, masked):
        rng = np.random.default_rng(seed)
        B, P, K, L, D = sizes
        q, d = unit(rng, B, P, D).astype(dtype), unit(rng, B, K, L, D).astype(dtype)
        q_mask, d_mask = (rng.random((B, P)) < kept, rng.random((B, K, L)) < kept) if masked else (None, None)
        flat = d.reshape(B * K, L, D), None if d_mask is None else d_mask.reshape(B * K, L)
        expected = oracle(q, flat[0], q_mask, flat[1], reduction)
        close(maxsim(q, flat[0], q_mask, flat[1], reduction=reduction), expected)
        of_own = np.stack([expected[i, i * K : (i + 1) * K] for i in range(B)])
        close(maxsim_pairs(q, d, q_mask, d_mask, reduction=reduction), of_own)

    run()


def test_nan_of_a_pair_stays_with_its_item(rng):
    q, d = unit(rng, 3, 4, 8), unit(rng, 3, 2, 5, 8)
    d_mask = np.ones((3, 2, 5), bool)
    q[0, 1, 2], d[1, 1, 3, 0], d[2, 0, 4], d_mask[2, 0, 4] = np.nan, np.nan, np.nan, False
    for q_mask in (None, np.array([[True] * 4, [True] * 4, [False] * 4])):  # the last query without a token
        scores = np.asarray(maxsim_pairs(q, d, q_mask, d_mask))
        assert np.isnan(scores).tolist() == [[True, True], [False, True], [False, False]]
        scores = np.asarray(maxsim(q, d[2], q_mask, d_mask[2]))
        assert np.isnan(scores).tolist() == [[True, True], [False, False], [False, False]]


def test_changing_shapes_compile_nothing(rng):
    events = compilations()
    for B, P, N, L in rng.integers(1, 40, (60, 4)).tolist():
        q, d = np.ones((B, P, 8), np.float32), np.ones((N, L, 8), ml_dtypes.bfloat16)
        maxsim(q, jax.device_put(d), d_mask=np.ones((N, L), bool))
        maxsim_pairs(jax.device_put(q), np.ones((B, 2, L, 8), np.float16))
    assert COMPILATION not in events


@pytest.mark.compiles
@pytest.mark.parametrize("score", [maxsim, maxsim_pairs])
def test_a_shape_that_comes_again_is_compiled_once(rng, score):
    q, d = unit(rng, 3, 5, 8), unit(rng, *((3, 4, 6, 8) if score is maxsim_pairs else (4, 6, 8)))
    on_device = jnp.asarray(q), jnp.asarray(d)
    events = compilations()
    first, counts = score(q, d), []
    for arrays in ((q, d), on_device, (q, d), on_device):
        close(score(*arrays), np.asarray(first, np.float64))
        counts.append(events.count(COMPILATION))
    assert counts[0] > 0 and counts == counts[:1] * 4


@pytest.mark.compiles
@pytest.mark.parametrize("score", [maxsim, maxsim_pairs])
def test_gradients_outside_of_jit_are_compiled_once(rng, score):
    q, d = jnp.asarray(unit(rng, 3, 5, 8)), unit(rng, *((3, 4, 6, 8) if score is maxsim_pairs else (4, 6, 8)))
    d = jnp.asarray(d)
    gradient = jax.grad(lambda q, d: jnp.sum(score(q, d) ** 2), (0, 1))
    expected = jax.jit(gradient)(q, d)
    gradient(q, d)
    events = compilations()
    close_trees(gradient(q, d), expected)
    assert COMPILATION not in events


def test_few_shapes_are_worth_a_program(monkeypatch):
    shapes = eager.Shapes()
    assert [shapes.are_compiled("a", 1) for _ in range(3)] == [False, True, True]
    assert shapes.are_compiled("large", eager.LARGE)
    for i in range(eager.RECENT + 1):
        assert not shapes.are_compiled(i, 1)
    assert not shapes.are_compiled(0, 1)  # forgotten
    assert sum(shapes.are_compiled(i, 1) for i in range(2, 40)) == eager.PROGRAMS - 2
    shapes.are_compiled("much", eager.LARGE - 1)
    monkeypatch.setattr(eager, "EARNED_BY", eager.LARGE // 2)
    assert shapes.are_compiled(38, 1) and shapes.are_compiled(39, 1)


def test_what_is_on_a_device_or_traced_is_not_the_hosts(rng):
    q, d = unit(rng, 2, 3, 8), unit(rng, 4, 5, 8)
    last = jax.devices()[-1]
    scores = maxsim(jax.device_put(q, last), jax.device_put(d, last))
    assert scores.devices() == {last}
    close(scores, oracle(q, d))
    assert eager.are_hosts(q, jnp.asarray(d), None) and not eager.are_hosts(q.astype(np.float64))
    seen = []
    jax.vmap(lambda q: seen.append(eager.are_hosts(q, d)) or q)(q)
    assert seen == [False]
    close(jax.vmap(partial(maxsim, d=d))(q[:, None])[:, 0], oracle(q, d))
