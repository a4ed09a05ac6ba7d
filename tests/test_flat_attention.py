"""The kernel that reads projections as they are, interpreted, against heads as an axis and `attention` of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding, PartitionSpec

from smart_jax.models import flat_attention as F
from smart_jax.models import layers as L
from smart_jax.models import projected_attention as P
from smart_jax.models.heads import LANES, takes
from smart_jax.runtime.mesh import BATCH, make_mesh

CASES = {  # and whether queries and keys are normalised, and one array holds all three
    "vision": (F.Heads(4, 4, 64, causal=False), {"normed": False, "fused": True}),
    "text": (F.Heads(4, 2, 128, causal=True, eps=1e-3), {"normed": True, "fused": False}),
    "one head a block, all alike": (F.Heads(2, 2, 128, causal=False), {"normed": True, "fused": True}),
    "four heads a block, causal": (F.Heads(8, 8, 32, causal=True, eps=1e-3), {"normed": True, "fused": False}),
    "one head of keys": (F.Heads(3, 1, 128, causal=True), {"normed": False, "fused": False}),
    "wider than a block": (F.Heads(2, 1, 256, causal=True), {"normed": True, "fused": False}),
    "in a band": (
        F.Heads(2, 1, 128, causal=False, scale=0.1, band=19, value_norm=True, eps=1e-3),
        {"normed": True, "fused": False},
    ),
    "in a band of one block": (F.Heads(2, 2, 64, causal=False, band=16), {"normed": False, "fused": True}),
}


def arguments(length, heads, *, normed, fused, batch=2, seed=0, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    widths = [n * heads.width for n in (heads.queries, heads.keys, heads.keys)]
    q, k, v = (jnp.asarray(rng.normal(size=(batch, length, w)), dtype) for w in widths)
    scales = tuple(jnp.asarray(rng.uniform(0.5, 2, heads.width), dtype) for _ in range(2)) if normed else None
    positions = jnp.asarray(rng.integers(0, 100, (1, batch, length)))
    frequencies = L.inverse_frequencies(heads.width, 1e4)
    rotation = L.rotation_of(positions, frequencies, jnp.zeros(heads.width // 2, int))
    return (jnp.concatenate([q, k, v], -1),) if fused else (q, k, v), scales, rotation


def segments(length, seed):
    """Runs of random lengths: frames, padding after or before, windows."""
    rng = np.random.default_rng(seed)
    cuts = np.sort(rng.integers(0, length, rng.integers(0, 8)))
    runs = np.searchsorted(cuts, np.arange(length), side="right") + 1
    left, right = np.where(np.arange(length) < length // 3, 0, 1), np.where(np.arange(length) < length // 2, runs, 0)
    return jnp.asarray(np.stack([(runs, left)[seed % 2], right]), jnp.int32)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "length"), [*((name, 75) for name in CASES), ("vision", 17), ("text", 32)])
def test_conformance(monkeypatch, name, length):
    """Blocks of 16 positions, the last full or not; memory that nobody wrote holds NaN."""
    monkeypatch.setattr(F, "BLOCKS", (16,))
    heads, form = CASES[name]
    assert takes(heads, length)
    projected, scales, rotation = arguments(length, heads, **form)
    flat = jax.jit(lambda segment: F.flat_attention(projected, scales, rotation, segment, heads))
    by_head = jax.jit(lambda segment: P._by_head(projected, scales, rotation, segment, heads))
    with pltpu.force_tpu_interpret_mode(pltpu.InterpretParams(uninitialized_memory="nan")):
        for seed in range(3):
            segment = segments(length, seed)
            np.testing.assert_allclose(flat(segment), by_head(segment), atol=3e-6, rtol=3e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vision", "text"])
def test_bfloat16_is_rounded_no_more_than_by_head(monkeypatch, name):
    monkeypatch.setattr(F, "BLOCKS", (16,))
    heads, form = CASES[name]
    segment = segments(40, 1)
    exact = P._by_head(*arguments(40, heads, **form), segment, heads)
    rounded = arguments(40, heads, **form, dtype=jnp.bfloat16)
    with pltpu.force_tpu_interpret_mode():
        flat = F.flat_attention(*rounded, segment, heads)
    assert flat.dtype == jnp.bfloat16
    errors = [np.abs(np.float32(x) - exact).mean() for x in (flat, P._by_head(*rounded, segment, heads))]
    assert errors[0] < 1.05 * errors[1]


@pytest.mark.slow
def test_blocks_without_a_common_segment_are_skipped(monkeypatch):
    """Infinite keys of another segment would make NaN of a product with them."""
    monkeypatch.setattr(F, "BLOCKS", (16,))
    heads = F.Heads(2, 2, 64, causal=False)
    (q, k, v), _, rotation = arguments(64, heads, normed=False, fused=False)
    segment = jnp.broadcast_to(jnp.arange(64) // 16, (2, 64))
    with pltpu.force_tpu_interpret_mode():
        expected = F.flat_attention((q, k, v), None, rotation, segment, heads)
        found = F.flat_attention((q, k, v.at[:, 48:].set(jnp.nan)), None, rotation, segment, heads)
    assert np.isnan(found[:, 48:]).all()
    np.testing.assert_array_equal(found[:, :48], expected[:, :48])


@pytest.mark.parametrize(
    ("heads", "length", "taken"),
    [
        (F.Heads(16, 16, 64, causal=False), 7200, True),
        (F.Heads(16, 8, 128, causal=True), 1848, True),
        (F.Heads(16, 16, 72, causal=False), 1024, False),  # heads that no block holds whole
        (F.Heads(16, 16, 80, causal=False), 1024, False),
        (F.Heads(16, 8, 64, causal=True), 1024, False),  # narrow heads that share keys
        (F.Heads(3, 3, 64, causal=False), 1024, False),  # half a block
        (F.Heads(8, 8, 16, causal=False), 1024, False),
        (F.Heads(16, 8, 128, causal=True), 2**15 + 1, False),  # keys beyond vector memory
    ],
)
def test_what_the_kernel_takes(heads, length, taken):
    assert takes(heads, length) is taken


def test_blocks_divide_the_padded_sizes_nearly():
    """Lengths of rows of pages (patches / 4 + 24) and of bins; an eighth more positions at most, in few blocks."""
    for length in (536, 600, 664, 1048, 1176, 1304, 1824, 1848, 2048, 2304, 4096, 7168, 7200, 7680):
        block = F.block_size(length, F.BLOCKS)
        blocks = -(-length // block)
        assert blocks * block <= 1.125 * length + LANES and blocks <= 1 + length / 512
    assert F.block_size(7200, F.BLOCKS) == 768


# --- which way is taken -----------------------------------------------------------------------------------------------


@pytest.fixture
def tpu(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")


def lowered(function, *shapes):
    return jax.jit(function).trace(*shapes).lower(lowering_platforms=("tpu",)).as_text()


def shapes(length, heads, *, normed, fused, batch=2, dtype=jnp.bfloat16, sharding=None):
    made = jax.eval_shape(lambda: arguments(length, heads, normed=normed, fused=fused, batch=batch, dtype=dtype))
    made = (*made, jax.ShapeDtypeStruct((batch, length), jnp.int32))
    if sharding is None:
        return made
    rows, whole = (NamedSharding(sharding, spec) for spec in (BATCH, PartitionSpec()))
    of_scales = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), made[1])
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), made)
    return placed[0], of_scales, *placed[2:]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize(("name", "length"), [("vision", 1024), ("text", 1048), ("wider than a block", 600)])
def test_mosaic_accepts_the_kernel(tpu, name, length, dtype):
    heads, form = CASES[name]

    def run(projected, scales, rotation, segment):
        return P.projected_attention(projected, rotation, segment, heads, scales=scales)

    text = lowered(run, *shapes(length, heads, **form, dtype=dtype))
    assert text.count("tpu_custom_call") == 1 and "flat_attention" in text


@pytest.mark.parametrize("wrapped", [lambda f: f, jax.checkpoint])
def test_a_gradient_takes_heads_as_an_axis(tpu, wrapped):
    """Its forward pass does, too; its program has no flat kernel."""
    heads, form = CASES["text"]

    @wrapped
    def run(projected, scales, rotation, segment):
        return P.projected_attention(projected, rotation, segment, heads, scales=scales)

    def loss(*x):
        return jnp.sum(run(*x).astype(jnp.float32))

    given = shapes(1024, heads, **form)
    assert "flat_attention" in lowered(loss, *given)
    text = lowered(jax.grad(loss, (0, 1)), *given)
    assert "flat_attention" not in text and "tpu_custom_call" in text


@pytest.mark.compiles
def test_the_gradient_is_that_of_heads_as_an_axis(monkeypatch):
    heads, form = CASES["text"]
    projected, scales, rotation = arguments(40, heads, **form)
    weights = np.random.default_rng(3).normal(size=(2, 40, heads.queries * heads.width)).astype(np.float32)

    def loss(projected, scales):
        out = P.projected_attention(projected, rotation, segments(40, 1), heads, scales=scales)
        return jnp.sum(out * weights)

    expected = jax.jit(jax.value_and_grad(loss, (0, 1)))(projected, scales)
    monkeypatch.setattr(P, "_is_flat", lambda *_: True)
    found = jax.jit(jax.value_and_grad(lambda *x: loss(*x), (0, 1)))(projected, scales)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_each_device_runs_the_kernel_on_its_rows(tpu):
    heads, form = CASES["text"]

    def run(projected, scales, rotation, segment):
        return P.projected_attention(projected, rotation, segment, heads, scales=scales)

    text = lowered(run, *shapes(512, heads, **form, batch=8, sharding=make_mesh(2, 4, 1)))
    assert "flat_attention" in text and "tensor<1x512x512xbf16>" in text  # a row of four heads
    assert "flat_attention" not in lowered(run, *shapes(512, heads, **form, batch=8, sharding=make_mesh(2, 2, 2)))
    assert "flat_attention" not in lowered(run, *shapes(511, heads, **form))
