import importlib
from functools import partial
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from smart_jax import maxsim, maxsim_pairs
from smart_jax.maxsim import argmax, fused, projected, xla
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


@pytest.mark.compiles
class TestFused(MaxSimSuite):
    """Compiled for a CPU, where nothing is fused."""

    implementation = "xla_tpu"
    half_tolerance = 2**-7  # weights at the maxima are rounded to bfloat16


@pytest.mark.compiles
class TestFusedVariants(maxsim_suite.MaxSimVariants):
    implementation = "xla_tpu"


@pytest.mark.slow
class TestFusedInSmallGroups(MaxSimSuite):
    """Several groups of queries, the last one padded, and queries in several pieces."""

    implementation = "xla_tpu"
    half_tolerance = 2**-7

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def small_groups(cls):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fused, "QUERY_TOKENS", 3)
            jax.clear_caches()  # compiled with other groups
            yield
        jax.clear_caches()


@pytest.mark.slow
class TestChunkedWithSmallTiles(MaxSimSuite):
    """Tests of the code for GPUs but Hopper, compiled for a CPU: several tiles on both axes, overlapping at last."""

    implementation = "xla_gpu"

    @pytest.fixture(autouse=True, scope="class")
    @classmethod
    def small_tiles(cls):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(xla, "GPU_SCORES", (40, 80))
            patch.setattr(xla, "LEAST_TOKENS", 4)
            jax.clear_caches()  # compiled with other tiles
            yield
        jax.clear_caches()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_platform_that_is_compiled_for_chooses(dtype):
    """One program, traced once, on a CPU: tiles here, and on TPUs three products without loop, gather or scatter."""
    q, d, q_mask, d_mask = make(np.random.default_rng(0))
    q, d = jnp.asarray(q, dtype), jnp.asarray(d, dtype)
    ours, tiled = (partial(maxsim, implementation=name) for name in (None, "xla"))
    close(jax.jit(ours)(q, d, q_mask, d_mask), jax.jit(tiled)(q, d, q_mask, d_mask), 0)
    total = jax.value_and_grad(lambda *x: jnp.sum(maxsim(*x) ** 2), (0, 1))
    here, tpu = (
        jax.jit(total).trace(q, d, q_mask, d_mask).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "tpu")
    )
    assert all(f"stablehlo.{op}" in here for op in ("while", "gather", "scatter"))
    assert not any(f"stablehlo.{op}" in tpu for op in ("while", "gather", "scatter"))
    assert tpu.count("stablehlo.dot_general") == 3


def test_documents_without_tokens_bring_no_nan_to_dropped_query_tokens():
    """Their maxima of -inf are replaced before they meet a weight of 0, which would trip `jax_debug_nans`."""
    q, d, weight = jnp.ones((1, 2, 4)), jnp.ones((2, 3, 4)), jnp.array([[1.0, 0.0]])
    scores, _ = fused.fused_forward(q, d, jnp.array([[True] * 3, [False] * 3]), weight, False)
    np.testing.assert_array_equal(scores, [[4, 0]])


@pytest.mark.usefixtures("unchecked")
def test_unknown_implementations_are_refused():
    choices = r"\('reference', 'xla', 'xla_gpu', 'xla_tpu', 'pallas_gpu'\)"
    with pytest.raises(ValueError, match=f"implementation 'dense': choose None or one of {choices}"):
        maxsim(*make(np.random.default_rng(0)), implementation="dense")


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


@pytest.mark.compiles
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(
    ("sizes", "group_values"), [((1, 1), 1), ((2, 1), 2**20), ((2, 2), 1), ((2, 2), 2**20)], ids=str
)
def test_projected_documents_travel_around_a_ring_of_devices(monkeypatch, sizes, group_values, masked):
    """Values, and gradients in params, queries and states; nothing is gathered, and one device passes nothing on."""
    monkeypatch.setattr(projected, "GROUP_VALUES", group_values)
    axes, count = ("data", "fsdp"), int(np.prod(sizes))
    mesh, split, whole = Mesh(np.asarray(jax.devices()[:count]).reshape(sizes), axes), P(axes), P()
    score = jax.shard_map(
        partial(projected.projected_maxsim, projection, axis_name=axes),
        mesh=mesh,
        in_specs=(whole, *[split] * 4),
        out_specs=split,
    )
    rng = np.random.default_rng(0)
    q, states, *masks = make(rng, 4, 3, 8, 5, 8)
    masks = masks if masked else (np.ones(q.shape[:2], bool), np.ones(states.shape[:2], bool))
    kernel, g = rng.normal(size=(8, 8)).astype(np.float32), rng.normal(size=(4, 8)).astype(np.float32)

    def ours(kernel, q, states):
        scores = score(kernel, q, states, *masks)
        return jnp.sum(g * scores), scores

    def all_at_once(kernel, q, states):
        return jnp.sum(g * maxsim(q, projection(kernel, states), *masks, implementation="reference"))

    run = jax.value_and_grad(ours, argnums=(0, 1, 2), has_aux=True)
    (_, scores), gradients = jax.jit(run)(kernel, q, states)
    close(scores, oracle(q, projection(kernel, states), *masks))
    close_trees(gradients, jax.grad(all_at_once, (0, 1, 2))(kernel, q, states))
    jaxpr = str(jax.make_jaxpr(run)(kernel, q, states))
    assert ("ppermute" in jaxpr) == (count > 1) and "all_gather" not in jaxpr


@pytest.mark.parametrize(
    ("backend", "hopper", "width", "expected"),
    [
        ("cpu", False, 128, "xla"),
        ("tpu", False, 128, "xla"),  # for what a TPU's host compiles for its CPU
        ("gpu", True, 512, "pallas_gpu"),
        ("gpu", True, 513, "xla_gpu"),
        ("gpu", False, 128, "xla_gpu"),
    ],
)
def test_each_device_has_its_default(monkeypatch, backend, hopper, width, expected):
    api = importlib.import_module("smart_jax.maxsim.api")
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(api.hopper, "available", lambda: hopper)
    assert api._elsewhere(jnp.dtype(jnp.float32), width) == expected
    assert api._elsewhere(jnp.dtype(jnp.float64), width) == ("xla_gpu" if backend == "gpu" else "xla")
    if backend == "gpu" and not hopper:
        x = jnp.ones((1, 1, width))
        with pytest.warns(UserWarning, match="'pallas_gpu' is for Hopper GPUs"):
            assert api.way_of("pallas_gpu", x, x) == xla.CHUNKED


@pytest.mark.parametrize(
    ("width", "memory", "scores"),
    [(512, None, 2**23), (513, None, 2**25), (2048, 80 * 2**30, 2**25), (2048, 2**32, 2**23)],
)
def test_a_gpu_s_tiles(monkeypatch, width, memory, scores):
    """Follow from the width, and take a small part of the memory."""
    stats = {"bytes_limit": memory} if memory else None
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [type("Device", (), {"memory_stats": lambda _: stats})()])
    assert xla._gpu_scores(width) == scores


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


@pytest.mark.parametrize("implementation", [None, "xla", "xla_gpu", "xla_tpu"])
def test_the_first_of_equal_maxima_gets_the_gradient(implementation):
    q = np.array([[[1.0, 0.0]]], np.float32)
    d = np.array([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]], np.float32)
    gradient = jax.grad(lambda d: maxsim(q, d, implementation=implementation)[0, 0])(d)
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


@pytest.mark.compiles
@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-5), (jnp.bfloat16, 1e-2)])
@pytest.mark.parametrize("tokens", [3, 20])
def test_few_query_tokens_and_wide_documents(monkeypatch, dtype, tolerance, tokens):
    """Each product takes all of them: by rows and by columns, of all queries and of each with its own, in tiles."""
    monkeypatch.setattr(xla, "TILE_VALUES", 2 * 9 * 320)
    jax.clear_caches()
    rng = np.random.default_rng(0)
    made = [[jnp.asarray(x) for x in make(rng, 1, tokens, 5, 9, 320)] for _ in range(2)]
    q, d, q_mask, d_mask = (jnp.stack(x) for x in zip(*made, strict=True))
    q, d, q_mask, d_mask = q[:, 0].astype(dtype), d.astype(dtype), q_mask[:, 0], d_mask.at[1, 2].set(False)
    q, d = q.at[0, -1].set(jnp.nan), d.at[1, 0, 0].set(jnp.inf).at[1, 1, 3].set(jnp.nan)
    q_mask, d_mask = q_mask.at[0, -1].set(False), d_mask.at[1, 0, 0].set(False).at[1, 1, 3].set(True)

    def whole(q, d, **how):
        return maxsim(q, d[1], q_mask, d_mask[1], **how)

    def pairs(q, d, **how):
        return maxsim_pairs(q, d, q_mask, d_mask, **how)

    def weighted(score, name, q, d):
        return jnp.sum(score(q, d, implementation=name) * jnp.arange(5.0)[None])

    for score in (whole, pairs):
        ours, theirs = (score(q, d, implementation=name) for name in ("xla", "reference"))
        assert np.isnan(ours).sum() == (2 if score is whole else 1)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        numbers = jnp.nan_to_num(q), jnp.nan_to_num(d, posinf=0)
        of_both = [jax.grad(partial(weighted, score, name), (0, 1))(*numbers) for name in ("xla", "reference")]
        for a, b in zip(*of_both, strict=True):
            np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), atol=tolerance)
    jax.clear_caches()


@pytest.mark.compiles
@pytest.mark.parametrize("tokens", [24, 256])
def test_half_precision_documents_are_not_converted_as_a_whole(tokens):
    q, d = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((1, tokens, 256), (300, 128, 256)))
    for run in (maxsim, jax.grad(lambda *x: jnp.sum(maxsim(*x)), (0, 1))):
        temporary = jax.jit(run).lower(q, d).compile().memory_analysis().temp_size_in_bytes
        assert temporary < d.size * 2 / 2


def test_the_backward_pass_keeps_indices_only():
    B, P, N, L, D = 4, 8, 6, 16, 32
    q, d = jnp.ones((B, P, D)), jnp.ones((N, L, D))
    _, pullback = jax.vjp(maxsim, q, d)
    kept = [x for x in jax.tree.leaves(pullback) if hasattr(x, "shape") and x.shape not in (q.shape, d.shape)]
    assert sum(x.size for x in kept if x.dtype == jnp.int32) == B * P * N
    assert sum(x.size for x in kept if x.dtype != jnp.int32) <= B * N


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("scores", [xla.TILE_SCORES, *xla.GPU_SCORES])
def test_tile_shapes(scores):
    for query_tokens, documents, length in [(1, 1, 1), (1024, 32, 256), (2**20, 8, 5000), (32, 10_000, 8), (7, 3, 999)]:
        tile = xla._tile_shape(query_tokens, (documents, length, 2), scores)
        assert 1 <= tile[0] <= documents
        assert 1 <= tile[1] <= length
        assert query_tokens * tile[0] * tile[1] <= max(scores, xla.LEAST_TOKENS * query_tokens)


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


def test_blocks_of_queries_are_of_nearly_equal_sizes():
    """100 queries of 32 tokens in blocks of at most 2,048 are not 64 and 36, which would be padded as 64 are."""
    plan = query_plan(tokens_alone(*ragged(np.random.default_rng(0), [32] * 100)), LATE)
    assert (plan.runs, plan.window, plan.slots) == ([[(0, 50), (50, 100)]], 1600, 64)
    plan = query_plan(tokens_alone(*ragged(np.random.default_rng(0), [1000, 1000, 1000, 30, 700, 5])), LATE)
    assert (plan.runs, plan.window) == ([[(0, 2), (2, 6)]], 2048)


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
    """Every block but those at the array's ends is an aligned view in place, wherever the array starts."""
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
    """Copies the first item and the last of more than 4 MiB in place."""
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
