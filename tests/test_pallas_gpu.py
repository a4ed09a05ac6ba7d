from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from smart_jax.maxsim import hopper, maxsim, maxsim_pairs, pallas_gpu
from tests.maxsim_suite import MaxSimSuite, close, make, oracle

gpu_maxsim = partial(maxsim, implementation="pallas_gpu")


@pytest.mark.slow
class TestPallasGPU(MaxSimSuite):
    """Interpreted on a CPU, a second or two a call."""

    implementation = "pallas_gpu"
    ragged_share = 0  # the least: 20
    test_gradient_by_finite_differences = None  # in float64, in which the tensor cores do not sum
    test_jit_and_checkpoint = None  # jax.checkpoint refuses the interpreter's ordered callbacks: lowered below
    test_shard_map_over_queries = None  # the interpreter's devices would wait for each other: lowered below
    test_pairs = None  # a call for each query, which the interpreter compiles anew: lowered below


def test_float64_is_refused():
    with jax.enable_x64(True), pytest.raises(TypeError, match="float64 tokens: the GPU kernel"):
        gpu_maxsim(np.ones((1, 2, 3)), np.ones((1, 2, 3)))


@pytest.mark.compiles
@pytest.mark.parametrize(
    ("dtype", "width"),
    [(jnp.float32, 1), (jnp.float32, 100), (jnp.float32, 4096), (jnp.bfloat16, 4096), (jnp.float16, 100)],
)
def test_some_widths(dtype, width):
    """Takes some of those that the slow suite goes through."""
    q, d, *masks = make(np.random.default_rng(width), 2, 3, 1, 10, width)
    q, d = q.astype(dtype), d.astype(dtype)
    close(gpu_maxsim(q, d, *masks), oracle(q, d, *masks))


def test_three_bfloat16_terms_are_exact():
    """Over the exponents of float32 whose last bits bfloat16 still has."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 50)).astype(np.float32) * np.exp2(rng.integers(-90, 120, (64, 50))).astype(np.float32)
    terms = jax.jit(pallas_gpu._bfloat16_terms)(x)
    assert terms.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(terms).astype(np.float64).reshape(64, 3, 50).sum(axis=1), x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "query_length", "width", "shared_bytes", "thread_blocks"),
    [
        (jnp.float32, 20, 80, 300_000, 1),  # query tokens stay in shared memory
        (jnp.float32, 20, 80, 160_000, 1),  # they come along by slices
        (jnp.bfloat16, 65, 130, 500_000, 3),  # two blocks of query tokens; two runs of two documents of three
        (jnp.bfloat16, 33, 130, 140_000, 1),
    ],
)
def test_several_blocks(monkeypatch, dtype, query_length, width, shared_bytes, thread_blocks):
    """Three blocks of a document's tokens, two warpgroups, more slices than slots; with positions and without."""
    monkeypatch.setattr(pallas_gpu, "DOCUMENT_TOKENS", 16)
    monkeypatch.setattr(pallas_gpu, "SLOTS", 2)
    monkeypatch.setattr(pallas_gpu, "SHARED_BYTES", shared_bytes)
    monkeypatch.setattr(pallas_gpu, "INTERPRETED_THREAD_BLOCKS", thread_blocks)
    q, d, _, d_mask = make(np.random.default_rng(0), 4, query_length, 3, 40, width)
    q, d = q.astype(dtype), d.astype(dtype)
    kept = np.where(d_mask[:, None, None], np.einsum("bpd,nld->nbpl", *(np.float64(x) for x in (q, d))), -np.inf)
    assert set(kept[0].argmax(axis=-1).ravel() // 16) == {0, 1, 2}
    with_index = shared_bytes > 200_000
    scores, index = pallas_gpu.gpu_forward(*map(jnp.asarray, (q, d, d_mask)), jnp.ones(q.shape[:2]), with_index)
    close(scores, kept.max(axis=-1).sum(axis=-1).T)
    if with_index:
        np.testing.assert_array_equal(index, kept.argmax(axis=-1))
    else:
        assert index is None


@pytest.mark.compiles
def test_the_first_of_equal_maxima_is_found(monkeypatch):
    """Takes one block, and two."""
    monkeypatch.setattr(pallas_gpu, "DOCUMENT_TOKENS", 8)
    d = np.zeros((2, 20, 4), np.float32)
    d[0, [3, 6, 12]], d[1, [10, 18]] = 1, 1
    d_mask = np.ones((2, 20), bool)
    d_mask[0, 3] = False
    _, index = pallas_gpu.gpu_forward(jnp.ones((1, 1, 4)), jnp.asarray(d), jnp.asarray(d_mask), jnp.ones((1, 1)), True)
    np.testing.assert_array_equal(index[:, 0, 0], [6, 10])


@pytest.mark.compiles
def test_a_nan_enters_and_stays(monkeypatch):
    monkeypatch.setattr(pallas_gpu, "DOCUMENT_TOKENS", 8)
    q, d, _, _ = make(np.random.default_rng(0), 2, 1, 3, 20)
    d[0, 3], d[1, 18] = np.nan, np.nan
    d_mask = np.ones((3, 20), bool)
    d_mask[1, 18] = False  # a dropped token's does not
    q, d, d_mask = (jnp.asarray(x) for x in (q, d, d_mask))
    score, _ = pallas_gpu.gpu_forward(q, d, d_mask, jnp.ones((2, 1)), False)
    assert np.isnan(np.asarray(score)).tolist() == [[True, False, False]] * 2


def lowered(f, *shapes) -> str:
    """The module for a GPU: the kernel's own lowering, all but the assembler, has then run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "gpu")  # compiled, not interpreted
        patch.setattr(hopper, "available", lambda: True)
        return jax.jit(f).trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()


def loss(q, d, q_mask=None, d_mask=None):
    return jnp.sum(gpu_maxsim(q, d, q_mask, d_mask) ** 2)


def shapes(dtype, queries, width):
    tokens = [jax.ShapeDtypeStruct(s, dtype) for s in ((queries, 20, width), (5, 700, width))]
    return *tokens, *(jax.ShapeDtypeStruct(s.shape[:2], jnp.bool) for s in tokens)


@pytest.mark.compiles
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize(
    ("queries", "width"), [(1, 1), (3, 100), (5, 128), (30, 128), (30, 320), (30, 1024), (1, 4096)]
)
def test_mosaic_accepts_the_kernel(dtype, queries, width):
    """Forward with masks, and gradient. Its maximum is the one that lets NaN through."""
    modules = [
        lowered(jax.value_and_grad(loss, (0, 1)), *shapes(dtype, queries, width)),
        lowered(loss, *shapes(dtype, queries, width)[:2]),
    ]
    assert all("mosaic_gpu" in module and "max.NaN.f32" in module and "maxnum" not in module for module in modules)


@pytest.mark.compiles
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_mosaic_accepts_the_kernel_in_transformations(dtype):
    q, d, q_mask, d_mask = shapes(dtype, 16, 128)
    gradient = jax.value_and_grad(loss, (0, 1))
    assert "mosaic_gpu" in lowered(jax.value_and_grad(jax.checkpoint(loss), (0, 1)), q, d, q_mask, d_mask)
    stacked = [jax.ShapeDtypeStruct((3, *x.shape), x.dtype) for x in (q, d, q_mask, d_mask)]
    assert "mosaic_gpu" in lowered(jax.vmap(gradient), *stacked)
    assert "mosaic_gpu" in lowered(jax.vmap(gradient, in_axes=(None, 0)), q, stacked[1])
    split, whole = PartitionSpec("data"), PartitionSpec()
    specs = {"in_specs": (split, whole, split, whole), "out_specs": split}
    sharded = jax.shard_map(gpu_maxsim, mesh=Mesh(np.array(jax.devices()), ("data",)), **specs)
    total = jax.value_and_grad(lambda *x: jnp.sum(sharded(*x) ** 2), (0, 1))
    assert "mosaic_gpu" in lowered(total, q, d, q_mask, d_mask)
    pairs = partial(maxsim_pairs, implementation="pallas_gpu")
    assert "mosaic_gpu" in lowered(pairs, stacked[0].update(shape=(3, 20, 128)), stacked[1])


@pytest.mark.parametrize(("backend", "capability", "expected"), [("gpu", "9.0", True), ("gpu", "8.0", False)])
def test_available_on_hopper(monkeypatch, backend, capability, expected):
    assert not hopper.available()
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax, "devices", lambda: [type("Device", (), {"compute_capability": capability})])
    assert hopper.available() == expected
