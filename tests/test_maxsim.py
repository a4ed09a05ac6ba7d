import importlib
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from smart_jax import maxsim
from smart_jax.maxsim import argmax, pallas_gpu, pallas_tpu, projected, xla
from smart_jax.retrieval.block import Parts, Window
from smart_jax.retrieval.block_plan import (
    Limits,
    Plan,
    document_limits,
    eighths,
    make_plan,
    query_plan,
    runs,
    usable_in_place,
)
from smart_jax.retrieval.block_scores import late_scores
from smart_jax.retrieval.embeddings import Embeddings
from tests import maxsim_suite
from tests.maxsim_suite import MaxSimSuite, close, close_trees, make, oracle, unit


@pytest.mark.compiles
class TestReference(MaxSimSuite):
    implementation = "reference"
    test_gradient_is_the_reference_s = None  # nothing to compare with: finite differences check its gradient


class TestXLA(MaxSimSuite):
    implementation = "xla"
    ragged_share = 1.0


@pytest.mark.compiles
class TestXLAVariants(maxsim_suite.MaxSimVariants):
    implementation = "xla"


@pytest.mark.compiles
class TestXLAWithSmallTiles(MaxSimSuite):
    """Several tiles along both axes, the last ones overlapping, and several scatters, at the suite's small shapes."""

    implementation = "xla"

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def small_tiles(cls):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(xla, "TILE_SCORES", 40)
            patch.setattr(xla, "LEAST_TOKENS", 4)
            patch.setattr(argmax, "SCATTERED_VALUES", 64)
            jax.clear_caches()  # compiled with other tiles
            yield
        jax.clear_caches()


@pytest.mark.slow
class TestPallasTPUVariants(maxsim_suite.MaxSimVariants):
    implementation = "pallas_tpu"


@pytest.mark.slow
class TestPallasTPU(MaxSimSuite):
    """Interpreted on a CPU."""

    implementation = "pallas_tpu"
    check_vma = False  # Pallas' interpreter, unlike the compiler, knows no varying scratch memory
    test_gradient_by_finite_differences = None  # in float64, which a TPU does not compute in

    def test_float64_is_refused(self):
        with jax.enable_x64(True), pytest.raises(TypeError, match="float64 tokens: the TPU kernel"):
            maxsim(np.ones((1, 2, 3)), np.ones((1, 2, 3)), implementation="pallas_tpu")

    @pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
    @pytest.mark.parametrize("width", [1, 64, 100, 128, 320, 2048, 4096])
    def test_mosaic_accepts_the_kernel(self, dtype, width):
        """Lowered for a TPU, forward with masks and gradient: the module carries the kernel."""

        def loss(q, d, q_mask, d_mask):
            return jnp.sum(maxsim(q, d, q_mask, d_mask, implementation="pallas_tpu") ** 2)

        shapes = [jax.ShapeDtypeStruct(s, dtype) for s in ((3, 20, width), (5, 700, width))]
        shapes += [jax.ShapeDtypeStruct(s.shape[:2], jnp.bool) for s in shapes]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax, "default_backend", lambda: "tpu")  # compiled, not interpreted
            exported = jax.export.export(jax.jit(jax.value_and_grad(loss, (0, 1))), platforms=["tpu"])(*shapes)
        assert "tpu_custom_call" in exported.mlir_module()


@pytest.mark.parametrize(
    ("dtype", "width", "tokens"),
    [
        ("float32", 1536, 512),
        ("float32", 2048, 256),
        ("float32", 3584, 128),
        ("float32", 7168, 128),
        ("bfloat16", 4096, 512),
        ("bfloat16", 8192, 256),
    ],
)
def test_a_block_of_the_tpu_kernel_fits_its_memory(dtype, width, tokens):
    """These were compiled for v4, v5e, v5p and v6e; float32 of 3,584 in blocks of 256 did not fit, nor 2,560 of 512."""
    assert pallas_tpu._document_tokens(1024, 128, width, jnp.dtype(dtype)) == tokens
    assert pallas_tpu._vmem_bytes(128, tokens, width, jnp.dtype(dtype)) <= pallas_tpu.VMEM_BYTES
    assert pallas_tpu._document_tokens(100, 128, width, jnp.dtype(dtype)) == 128  # no larger than the document


@pytest.mark.parametrize(("width", "asked"), [(7168, None), (8192, 2**24 + 2**21)])
def test_the_tpu_kernel_asks_for_the_memory_of_the_widest_tokens(width, asked):
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 128, width), (1, 128, width), (1, 128))]
    traced = jax.make_jaxpr(lambda q, d, weight: pallas_tpu.tpu_forward(q, d, None, weight, True))(*shapes)
    assert f"vmem_limit_bytes={asked}" in str(traced)


@pytest.mark.compiles
@pytest.mark.parametrize("masked", [False, True])
def test_the_tpu_kernel_over_several_blocks(monkeypatch, masked):
    """Three blocks of a document's tokens and nine of query tokens; the best token is in each block for some query."""
    monkeypatch.setattr(pallas_tpu, "DOCUMENT_TOKENS", (128,))
    monkeypatch.setattr(pallas_tpu, "QUERY_TOKENS", 16)
    rng = np.random.default_rng(0)
    q, d, *masks = make(rng, 4, 33, 3, 300, 24)
    masks = masks if masked else (None, None)
    best = np.argmax(q.reshape(-1, 24) @ d[0].T, axis=1)
    assert set(best // 128) == {0, 1, 2}
    g = rng.normal(size=(4, 3)).astype(np.float32)

    def run(implementation):
        def loss(q, d):
            scores = maxsim(q, d, *masks, implementation=implementation)
            return jnp.sum(g * scores), scores

        (_, scores), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(q, d)
        return scores, *gradients

    ours, theirs = run("pallas_tpu"), run("reference")
    close(ours[0], oracle(q, d, *masks))
    close_trees(ours, theirs)


@pytest.mark.usefixtures("unchecked")
def test_the_default_is_xla():
    q, d, q_mask, d_mask = make(np.random.default_rng(0))
    run = partial(jax.make_jaxpr(maxsim, static_argnums=()), q, d, q_mask, d_mask)
    assert str(run()) == str(jax.make_jaxpr(partial(maxsim, implementation="xla"))(q, d, q_mask, d_mask))
    with pytest.raises(
        ValueError,
        match=r"implementation 'dense': choose None or one of \('reference', 'xla', 'pallas_tpu', 'pallas_gpu'\)",
    ):
        maxsim(q, d, implementation="dense")


def projection(kernel, states):
    tokens = jnp.tanh(states) @ kernel
    return tokens / jnp.linalg.norm(tokens, axis=-1, keepdims=True)


@pytest.mark.compiles
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("group_values", [1, 2**7, 2**20])
def test_projected_groups_equal_projecting_all(monkeypatch, masked, group_values):
    """Value and gradients in params, queries and states, with groups of 1, 2 and all of 6 documents."""
    monkeypatch.setattr(projected, "GROUP_VALUES", group_values)
    rng = np.random.default_rng(0)
    q, states, *masks = make(rng, 3, 4, 6, 7, 8)
    masks = masks if masked else (None, None)
    kernel = rng.normal(size=(8, 8)).astype(np.float32)
    g = rng.normal(size=(3, 6)).astype(np.float32)

    @jax.jit
    @partial(jax.value_and_grad, argnums=(0, 1, 2), has_aux=True)
    def ours(kernel, q, states):
        scores = projected.projected_maxsim(projection, kernel, q, states, *masks)
        return jnp.sum(g * scores), scores

    def all_at_once(kernel, q, states):
        return jnp.sum(g * maxsim(q, projection(kernel, states), *masks, implementation="reference"))

    (_, scores), gradients = ours(kernel, q, states)
    close(scores, oracle(q, projection(kernel, states), *masks))
    close_trees(gradients, jax.grad(all_at_once, (0, 1, 2))(kernel, q, states))


@pytest.mark.compiles
def test_projected_memory_is_a_groups():
    """Temporary memory of the gradient, by XLA's count, is below the bank's projected tokens."""
    B, P, N, L, D = 4, 8, 64, 512, 512
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((D, D), (B, P, D), (N, L, D))]

    def temporary(score):
        run = jax.grad(lambda *x: jnp.sum(score(*x) ** 2), (0, 1))
        return jax.jit(run).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    bank = 4 * N * L * D
    assert temporary(partial(projected.projected_maxsim, projection)) < bank
    assert temporary(lambda kernel, q, states: maxsim(q, projection(kernel, states))) > 2 * bank


@pytest.mark.parametrize("devices", [1, 2])
def test_projected_documents_are_gathered_from_other_devices_only(devices):
    mesh, split, whole = Mesh(np.asarray(jax.devices()[:devices]), ("data",)), P("data"), P()
    score = partial(projected.projected_maxsim, projection, axis_name="data")
    score = jax.shard_map(score, mesh=mesh, in_specs=(whole, split, split), out_specs=split)
    rng = np.random.default_rng(0)
    kernel, (q, states, *_) = rng.normal(size=(8, 8)).astype(np.float32), make(rng, 4, 3, 6, 5, 8)
    close(jax.jit(score)(kernel, q, states), oracle(q, projection(kernel, states)))
    assert ("all_gather" in str(jax.make_jaxpr(score)(kernel, q, states))) == (devices > 1)


def test_each_device_has_its_default(monkeypatch):
    choose = importlib.import_module("smart_jax.maxsim.api")._for_device
    for backend, hopper, expected in [
        ("cpu", False, "xla"),
        ("tpu", False, "pallas_tpu"),
        ("gpu", True, "pallas_gpu"),
        ("gpu", False, "xla"),
    ]:
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        monkeypatch.setattr(pallas_gpu, "available", lambda hopper=hopper: hopper)
        assert choose(None, jnp.dtype(jnp.float32)) == expected
        assert choose(None, jnp.dtype(jnp.float64)) == "xla"
        assert choose("pallas_tpu", jnp.dtype(jnp.float32)) == "pallas_tpu"
    with pytest.warns(UserWarning, match="'pallas_gpu' is for Hopper GPUs"):
        assert choose("pallas_gpu", jnp.dtype(jnp.float32)) == "xla"


def embeddings(rng, lengths, width=8) -> Embeddings:
    tokens, offsets = ragged(rng, lengths, width)
    return Embeddings(np.ones((len(lengths), 1), np.float32), tokens, offsets)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_embeddings(reduction, dtype):
    rng = np.random.default_rng(0)
    q, d = embeddings(rng, [3, 40, 1]), embeddings(rng, [1, 7, 300, 2, 19])
    stored = d.astype(dtype)
    values = stored.tokens.astype(np.float64) * (1 if stored.scales is None else stored.scales[:, None])
    expected = [
        [(q.tokens[a:b] @ values[s:e].T).max(axis=1).sum() / (b - a if reduction == "mean" else 1) for s, e in spans(d)]
        for a, b in spans(q)
    ]
    scores = maxsim(q, stored, reduction=reduction)
    assert (type(scores), scores.dtype) == (type(jnp.zeros(1)), jnp.float32)
    close(scores, np.array(expected))


def spans(items):
    return pairwise(items.offsets)


@pytest.mark.usefixtures("unchecked")
def test_embeddings_refuse_what_is_for_arrays():
    rng = np.random.default_rng(0)
    q, d = embeddings(rng, [3, 2]), embeddings(rng, [1, 7])
    with pytest.raises(TypeError, match="d is an array and the other side Embeddings"):
        maxsim(q, np.ones((1, 2, 8), np.float32))
    with pytest.raises(ValueError, match="d_mask is given with Embeddings"):
        maxsim(q, d, None, np.ones((2, 7), bool))
    with pytest.raises(ValueError, match="implementation 'reference': Embeddings are scored by 'xla'"):
        maxsim(q, d, implementation="reference")
    with pytest.raises(ValueError, match="tokens of q have width 8, of d 4: use the same model"):
        maxsim(q, embeddings(rng, [1], 4))


def test_the_first_of_equal_maxima_gets_the_gradient():
    q = np.array([[[1.0, 0.0]]], np.float32)
    d = np.array([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]], np.float32)
    gradient = jax.grad(lambda d: maxsim(q, d)[0, 0])(d)
    np.testing.assert_array_equal(gradient, [[[0, 0], [1, 0], [0, 0]]])


@pytest.mark.parametrize("masked", [False, True])
def test_memory_of_forward_and_backward(masked):
    """Temporary memory, by XLA's count, stays below 1/10 of the similarities; the dense way needs more than all."""
    B, P, N, L, D = 16, 32, 24, 512, 16
    shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((B, P, D), (N, L, D))]
    if masked:
        shapes += [jax.ShapeDtypeStruct(s, jnp.bool) for s in ((B, P), (N, L))]
    similarities = 4 * B * P * N * L

    def temporary(implementation, differentiate):
        run = partial(maxsim, implementation=implementation)
        if differentiate:
            run = jax.grad(lambda *x: jnp.sum(maxsim(*x, implementation=implementation) ** 2), (0, 1))
        return jax.jit(run).lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert temporary("xla", False) < similarities / 10
    assert temporary("xla", True) < similarities / 10
    assert temporary("reference", True) > similarities


def test_the_backward_pass_keeps_indices_only():
    B, P, N, L, D = 4, 8, 6, 16, 32
    q, d = jnp.ones((B, P, D)), jnp.ones((N, L, D))
    _, pullback = jax.vjp(maxsim, q, d)
    kept = [x for x in jax.tree.leaves(pullback) if hasattr(x, "shape") and x.shape not in (q.shape, d.shape)]
    assert sum(x.size for x in kept if x.dtype == jnp.int32) == B * P * N
    assert sum(x.size for x in kept if x.dtype != jnp.int32) <= B * N


def test_tile_shapes():
    for query_tokens, documents, length in [(1, 1, 1), (1024, 32, 256), (2**20, 8, 5000), (32, 10_000, 8), (7, 3, 999)]:
        tile = xla._tile_shape(query_tokens, documents, length)
        assert 1 <= tile[0] <= documents
        assert 1 <= tile[1] <= length
        assert query_tokens * tile[0] * tile[1] <= max(xla.TILE_SCORES, xla.LEAST_TOKENS * query_tokens)


def ragged(rng, lengths, width=8):
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return unit(rng, int(offsets[-1]), width), offsets


LATE = Parts(pooled=False, late=True)


def tokens_alone(tokens, offsets) -> Embeddings:
    return Embeddings.from_checked(np.empty((len(offsets) - 1, 0), tokens.dtype), tokens, offsets)


def blocks(plan: Plan):
    return [plan.block(run) for run in plan.runs[0]]


@pytest.mark.parametrize(
    ("lengths", "max_tokens", "max_items", "spans"),
    [
        ([], 8, 4, []),
        ([3], 8, 4, [(0, 1)]),
        ([3, 5, 1, 1], 8, 4, [(0, 2), (2, 4)]),
        ([4, 4, 4, 4], 8, 4, [(0, 2), (2, 4)]),
        ([1, 1, 1, 1, 1], 8, 2, [(0, 2), (2, 4), (4, 5)]),
        ([9, 8, 7, 2], 8, 4, [(0, 1), (1, 3), (3, 4)]),  # 9 tokens: windows of 16
    ],
)
def test_runs(lengths, max_tokens, max_items, spans):
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    assert runs(offsets, (0, len(lengths)), Limits(max_tokens, max_items)) == spans


def test_sizes_of_query_windows():
    tokens, offsets = ragged(np.random.default_rng(0), [20] * 16)
    (block,) = blocks(query_plan(tokens_alone(tokens, offsets), LATE))
    assert len(block.window.tokens) == 320  # not 512: each would cost a row of every product
    assert [eighths(n) for n in (1, 32, 33, 250, 256, 257, 320, 513, 2000)] == [
        32,
        32,
        64,
        256,
        256,
        288,
        320,
        576,
        2048,
    ]


def document_blocks(documents: Embeddings, limits: Limits, in_place: bool):
    plan = make_plan(documents, LATE, limits, in_place=in_place)
    return [(*run, plan.block(run)) for run in plan.runs[0]]


def own_tokens(block, slot: int, width: int) -> np.ndarray:
    tokens, skip = block.window.tokens, block.window.skip
    if skip is not None:
        tokens = tokens[skip : skip + len(block.window.owner) * width].reshape(-1, width)
    return tokens[block.window.owner == slot]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(("dtype", "width"), [(np.float32, 8), (np.float32, 1), (np.float16, 33), (np.int8, 100)])
def test_blocks_have_one_shape_and_share_memory(in_place, dtype, width):
    """In place every block but those at the array's ends is an aligned view, wherever the array starts."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 30, 50)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    room = rng.integers(-100, 100, offsets[-1] * width + 1).astype(dtype)
    for tokens in (room[:-1].reshape(-1, width), room[1:].reshape(-1, width)):
        found = document_blocks(tokens_alone(tokens, offsets), Limits(64, 4), in_place)
        assert len({(b.window.tokens.shape, b.lengths.shape) for _, _, b in found}) == 1
        views = [np.shares_memory(b.window.tokens, tokens) for _, _, b in found]
        assert all(views[1:-1]) and (in_place or all(views))
        assert found[0][1] == 1 or not in_place
        for first, last, block in found:
            assert not in_place or block.window.tokens.ctypes.data % 64 == 0
            for slot in range(last - first):
                expected = tokens[offsets[first + slot] : offsets[first + slot + 1]]
                np.testing.assert_array_equal(own_tokens(block, slot, width), expected)
        assert [f for f, _, _ in found] + [50] == [0] + [last for _, last, _ in found]


@pytest.mark.parametrize("count", [1, 3, 10, 33, 70])
def test_little_is_copied(count):
    """Of more than 4 MiB in place: the first item and the last."""
    width = 2048
    lengths = np.random.default_rng(0).integers(300, 500, count)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    room = np.zeros(offsets[-1] * width + 3, np.float32)
    tokens = room[3:].reshape(-1, width)
    documents = tokens_alone(tokens, offsets)
    found = document_blocks(documents, document_limits(documents, LATE, in_place=True), True)
    copied = [i for a, b, block in found if not np.shares_memory(block.window.tokens, room) for i in range(a, b)]
    assert set(copied) <= {0, count - 1} if tokens.nbytes > 2**22 else copied == list(range(count))


def test_a_device_of_the_host_uses_tokens_in_place():
    rng = np.random.default_rng(0)
    tokens, offsets = ragged(rng, rng.integers(1, 30, 50))
    documents = tokens_alone(tokens, offsets)
    assert usable_in_place(documents, LATE, "cpu") and not usable_in_place(documents, LATE, "tpu")
    assert not usable_in_place(tokens_alone(tokens[:, ::2], offsets), LATE, "cpu")
    _, _, block = document_blocks(documents, Limits(64, 4), True)[3]
    window = block.window.tokens
    assert jax.device_put(window).unsafe_buffer_pointer() == window.ctypes.data


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("lengths", [[1], [5, 1, 300, 2], [700, 1, 1, 650, 3]])
def test_late_of_ragged_items(lengths, in_place):
    """Documents across many tiles and at both ends of their window."""
    rng = np.random.default_rng(0)
    q, q_offsets = ragged(rng, [2, 5, 1])
    d, d_offsets = ragged(rng, lengths)
    d = -np.abs(d)
    q = np.abs(q)
    expected = np.array(
        [[(q[a:b] @ d[s:e].T).max(axis=1).mean() for s, e in pairwise(d_offsets)] for a, b in pairwise(q_offsets)]
    )
    (query,) = blocks(query_plan(tokens_alone(q, q_offsets), LATE))
    for first, last, block in document_blocks(tokens_alone(d, d_offsets), Limits(256, 2), in_place):
        score = jax.jit(late_scores, static_argnums=3)(query.window, query.lengths, block.window, len(block.lengths))
        close(score[:3, : last - first], expected[:, first:last])
        assert np.isneginf(np.asarray(score)[:3, last - first :]).all()


@pytest.mark.usefixtures("unchecked")
def test_late_keeps_one_tile_of_similarities():
    P, M, D, S = 256, 2**14, 8, 16
    window = [
        Window(
            tokens=jax.ShapeDtypeStruct((n, D), jnp.float32),
            skip=None,
            scales=None,
            owner=jax.ShapeDtypeStruct((n,), jnp.int32),
            used=jax.ShapeDtypeStruct((2,), jnp.int32),
        )
        for n in (P, M)
    ]
    lengths = jax.ShapeDtypeStruct((S,), jnp.int32)
    compiled = jax.jit(late_scores, static_argnums=3).lower(window[0], lengths, window[1], S).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * P * M / 4


def test_oracle_by_hand():
    """The oracle itself: query tokens (1, 0) and (0, 1); best 0.6 and 0.8, or -1 and 0."""
    q = np.array([[[1.0, 0.0], [0.0, 1.0]]])
    d = np.array([[[0.6, 0.8], [0.0, 0.0]], [[-1.0, 0.0], [5.0, 5.0]]])
    d_mask = np.array([[True, False], [True, False]])
    np.testing.assert_allclose(oracle(q, d, None, d_mask), [[0.7, -0.5]])
    np.testing.assert_allclose(oracle(q, d, None, d_mask, "sum"), [[1.4, -1.0]])
