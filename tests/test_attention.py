"""Every way to compute attention against NumPy in float64; those of accelerators interpreted or lowered."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding, PartitionSpec

from smart_jax.models import attention as A
from smart_jax.runtime.mesh import BATCH, make_mesh

PADDINGS = {
    "none": lambda n: [[1] * n, [1] * n],
    "right": lambda n: [[1] * n, [1] * (n // 3) + [0] * (n - n // 3)],
    "left": lambda n: [[0] * (n - n // 3) + [1] * (n // 3), [1] * n],
    "segments": lambda n: [[1] * (n // 4) + [2] * (n // 2) + [0] * (n - n // 4 - n // 2), [3] + [4] * (n - 1)],
}


def oracle(q, k, v, segment, causal, scale=None, band=None):
    q, k, v = (np.float64(x) for x in (q, k, v))
    k, v = (np.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    scores = np.einsum("bqhk,blhk->bhql", q, k) * (q.shape[-1] ** -0.5 if scale is None else scale)
    segment = np.asarray(segment)
    mask = segment[:, None, :, None] == segment[:, None, None, :]
    if causal:
        mask = mask & np.tri(q.shape[1], dtype=bool)
    if band is not None:
        place = np.arange(q.shape[1])
        mask = mask & (np.abs(place[:, None] - place) <= band)
    weights = np.where(mask, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    return np.einsum("bhql,blhk->bqhk", weights / weights.sum(-1, keepdims=True), v)


def arrays(length, heads=4, groups=2, width=16, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(batch, length, h, width)), jnp.float32) for h in (heads, groups, groups)]


def value_and_gradients(way, q, k, v, segment, **options):
    """Gradients of a weighted sum over what is not padding."""
    attended = np.asarray(segment) > 0
    weights = np.random.default_rng(1).normal(size=q.shape).astype(np.float32) * attended[..., None, None]

    def weighted(*x):
        out = way(*x, segment, **options)
        return jnp.sum(out.astype(jnp.float32) * weights), out

    (_, out), gradients = jax.jit(jax.value_and_grad(weighted, (0, 1, 2), has_aux=True))(q, k, v)
    return out, *gradients


def check(way, q, k, v, segment, causal, atol=3e-6, padding=True):
    """The value against NumPy, with that of padding or without; the gradients against attention in one piece."""
    segment = jnp.asarray(segment, jnp.int32)
    whole = partial(A._attend, q_segment=segment, k_segment=segment, q_index=jnp.arange(q.shape[1]), causal=causal)
    out, *gradients = value_and_gradients(way, q, k, v, segment, causal=causal)
    assert np.isfinite(np.asarray(out, np.float32)).all()
    compared = np.asarray(segment) > (-1 if padding else 0)
    np.testing.assert_allclose(np.asarray(out)[compared], oracle(q, k, v, segment, causal)[compared], atol=atol)
    _, *expected = value_and_gradients(lambda q, k, v, _: whole(q, k, v), q, k, v, segment)
    for a, b in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=10 * atol)


@pytest.fixture(params=PADDINGS)
def padding(request):
    return PADDINGS[request.param]


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("length", "most"), [(40, 256), (37, 16)])
def test_by_head(monkeypatch, padding, causal, length, most):
    """Takes one block and several, the last of them full or not."""
    monkeypatch.setattr(A, "CPU_SCORES", 0)
    monkeypatch.setattr(A, "CPU_QUERIES", most)
    check(A._by_head, *arrays(length), padding(length), causal)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("length", "most"), [(40, 2**21), (37, 400)])
def test_by_rows(monkeypatch, padding, causal, length, most):
    monkeypatch.setattr(A, "SCORES_AT_ONCE", most)
    check(A._by_rows, *arrays(length), padding(length), causal)


@pytest.mark.compiles
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("length", [25, 64, 71])
def test_windows(monkeypatch, backend, length):
    """Runs of one to eight positions, in every place towards the blocks; longer ones of padding."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    rng = np.random.default_rng(length)
    sizes = [rng.permutation([8, 8, 8, 7, 5, 4, 3, 2, 1, 8, 8, 6, 3]) for _ in range(4)]
    segment = np.stack([np.repeat(np.arange(1, 14), some)[:length] for some in sizes])
    segment[1, length - 20 :] = 0
    segment[2, :20] = 0
    segment = jnp.asarray(segment)
    q, k, v = arrays(length, batch=4)
    with pytest.MonkeyPatch.context() as patch:  # padding may see less of itself than in one piece
        patch.setattr(A, "attention", None)
        out, *gradients = value_and_gradients(A.window_attention, q, k, v, segment, longest=8)
    attended = np.asarray(segment) > 0
    assert np.isfinite(np.asarray(out)).all()
    np.testing.assert_allclose(np.asarray(out)[attended], oracle(q, k, v, segment, False)[attended], atol=3e-6)
    _, *expected = value_and_gradients(A.attention, q, k, v, segment, causal=False)
    for a, b in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5)


@pytest.mark.compiles
def test_a_run_longer_than_said_shows():
    q, k, v = arrays(64)
    segment = jnp.ones((2, 64), jnp.int32)
    out = A.window_attention(q, k, v, segment, longest=8)
    assert np.abs(out - oracle(q, k, v, segment, False)).max() > 0.01


def test_short_rows_have_no_windows(monkeypatch):
    monkeypatch.setattr(A, "_by_head", None)
    monkeypatch.setattr(A, "attention", lambda q, k, v, segment, *, causal: q if causal is False else None)
    q, k, v = arrays(24)
    assert A.window_attention(q, k, v, jnp.ones((2, 24), jnp.int32), longest=8) is q


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize(("length", "band"), [(40, 7), (61, 16), (23, 6)])
def test_bands(monkeypatch, padding, backend, length, band):
    """A block of queries with the keys around it, the last block full or not; or all keys, where that is no more."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(A, "CPU_SCORES", 0)
    monkeypatch.setattr(A, "CPU_QUERIES", 12)
    q, k, v = arrays(length)
    segment = jnp.asarray(padding(length), jnp.int32)
    out, *gradients = value_and_gradients(A.band_attention, q, k, v, segment, band=band, scale=0.5)
    attended = np.asarray(segment) > 0
    assert np.isfinite(np.asarray(out)).all()
    expected = oracle(q, k, v, segment, False, 0.5, band)
    np.testing.assert_allclose(np.asarray(out)[attended], expected[attended], atol=3e-6)
    index = jnp.arange(length)
    whole = partial(A._attend, q_segment=segment, k_segment=segment, q_index=index, causal=False, scale=0.5, band=band)
    _, *expected = value_and_gradients(lambda q, k, v, _: whole(q, k, v), q, k, v, segment)
    for a, b in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5)


@pytest.mark.compiles
@pytest.mark.parametrize("length", [40, 200])
def test_a_scale_of_one_s_own(length):
    """Takes all heads at once and one by one."""
    q, k, v = arrays(length)
    segment = jnp.ones((2, length), jnp.int32)
    out = A.attention(q, k, v, segment, causal=True, scale=1.0)
    np.testing.assert_allclose(out, oracle(q, k, v, segment, True, 1.0), atol=3e-6)
    assert np.abs(out - oracle(q, k, v, segment, True)).max() > 0.01


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_scores_of_bands_grow_with_the_length(monkeypatch, backend):
    """A position sees no more keys in a longer row, and no array of all positions by all is made."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    way = partial(A._by_head, causal=False) if backend == "cpu" else partial(A._by_band, scale=1.0)

    def largest(length):
        shapes = [jax.ShapeDtypeStruct(x, jnp.float32) for x in [(1, length, 4, 16)] * 3]
        jaxpr = jax.make_jaxpr(partial(way, band=64))(*shapes, jax.ShapeDtypeStruct((1, length), jnp.int32))
        sizes = re.findall(r"f32\[([\d,]+)\]", str(jaxpr))
        return max(np.prod([int(n) for n in size.split(",")]) for size in sizes)

    assert largest(4096) <= 2 * largest(2048) <= 2 * 2048 * 64 * 8


def test_scores_of_windows_grow_with_the_length():
    """No array of 4,096 x 4,096 anywhere, and twice the patches are twice the arithmetic."""

    def flops(length):
        shapes = [jax.ShapeDtypeStruct(x, jnp.float32) for x in [(1, length, 4, 16)] * 3]
        f = jax.jit(partial(A._by_blocks, block=64))
        return f.lower(*shapes, jax.ShapeDtypeStruct((1, length), jnp.int32)).compile().cost_analysis()["flops"]

    assert flops(4096) < 2.1 * flops(2048) < 1.5 * 2 * 2 * 2 * 2048 * 192 * 4 * 16


# --- GPU ------------------------------------------------------------------------------------------------------------


@pytest.mark.compiles
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("longest", [0, 512])
def test_arguments_for_cudnn(monkeypatch, padding, causal, longest):
    """The same calls of the same function, computed by XLA instead; a whole mask, or of 10 queries at a time."""
    monkeypatch.setattr(A, "CUDNN_MASK", longest)
    monkeypatch.setattr(A, "SCORES_AT_ONCE", 400)
    with jax.numpy_rank_promotion("allow"):  # jax's own code gives a causal mask its first axes that way
        check(partial(A._by_cudnn, implementation="xla"), *arrays(40), padding(40), causal, padding=False)


@pytest.fixture
def cudnn(monkeypatch):
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)


def for_cudnn(length, heads, width, batch=2, sharding=None):
    rows = None if sharding is None else NamedSharding(sharding, BATCH)
    shapes = [jax.ShapeDtypeStruct((batch, length, h, width), jnp.bfloat16, sharding=rows) for h in heads]
    return *shapes, jax.ShapeDtypeStruct((batch, length), jnp.int32, sharding=rows)


def loss(*x, causal):
    return jnp.sum(jax.checkpoint(partial(A._by_cudnn_on_each_device, causal=causal))(*x).astype(jnp.float32))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mesh", [None, (2, 4, 1)])
def test_cudnn_is_called(cudnn, causal, mesh):
    """Lowered for CUDA, with the gradient, as where cuDNN is found; head widths of Qwen3-VL's two towers."""
    sharding = None if mesh is None else make_mesh(*mesh)
    gradient = jax.jit(jax.grad(partial(loss, causal=causal), (0, 1, 2)))
    for length, ways in ((64, ["ScaleBiasSoftmax"]), (640, ["Softmax", "ScaleBiasSoftmax"])):  # by lengths, by a mask
        shapes = for_cudnn(length, (4, 2, 2), 128 if causal else 72, batch=8, sharding=sharding)
        text = gradient.trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
        calls = {f"__cudnn$fmha{way}{passed}(" for way in ways for passed in ("", "Backward")}
        assert {call + "(" for call in re.findall(r"__cudnn\$fmha\w+", text)} == calls
        assert "all_reduce" not in text


def every_array(jaxpr):
    """Shapes and dtypes of all arrays of a program, and of the programs inside."""
    for equation in jaxpr.eqns:
        yield from (x.aval for x in (*equation.invars, *equation.outvars))
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                yield from every_array(getattr(inner, "jaxpr", inner))


@pytest.mark.parametrize(
    ("causal", "length", "heads", "width"), [(False, 7200, (16, 16, 16), 64), (True, 1848, (16, 8, 8), 128)]
)
def test_no_mask_of_all_by_all(cudnn, causal, length, heads, width):
    """Value and gradient; the largest mask is of so many queries that it has 2^21 elements a row, in 16 bits."""
    for function in (partial(loss, causal=causal), jax.grad(partial(loss, causal=causal), (0, 1, 2))):
        shapes = [x for x in every_array(jax.make_jaxpr(function)(*for_cudnn(length, heads, width)).jaxpr) if x.shape]
        by_key = [x for x in shapes if x.shape[-1] == length and len(x.shape) > 2]
        assert by_key and max(x.size for x in by_key) <= 2 * 1.01 * A.SCORES_AT_ONCE
        assert not any(x.shape.count(length) > 1 for x in shapes)


@pytest.mark.parametrize(
    ("capability", "dtype", "shape", "taken"),
    [
        ("9.0", "bfloat16", (2, 64, 4, 128), True),
        ("8.0", "float16", (2, 64, 4, 72), True),
        ("8.0", "bfloat16", (2, 64, 4, 256), False),
        ("9.0", "bfloat16", (2, 64, 4, 256), True),
        ("10.3", "bfloat16", (2, 64, 4, 80), True),
        ("7.5", "float16", (2, 64, 4, 64), False),
        ("9.0", "float32", (2, 64, 4, 64), False),
        ("9.0", "bfloat16", (2, 63, 4, 64), False),
        ("9.0", "bfloat16", (2, 64, 4, 60), False),
        ("gfx942", "bfloat16", (2, 64, 4, 64), False),
    ],
)
def test_what_cudnn_takes(monkeypatch, capability, dtype, shape, taken):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "devices", lambda: [type("Device", (), {"compute_capability": capability})])
    assert A._choose(shape, jnp.dtype(dtype)) is (A._by_cudnn_on_each_device if taken else A._by_rows)


# --- TPU ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("backend", "length", "dtype", "way"),
    [
        ("cpu", 96, "float32", "_by_rows"),
        ("cpu", 97, "float32", "_by_head_on_each_device"),
        ("tpu", 511, "bfloat16", "_by_rows"),
        ("tpu", 512, "bfloat16", "_by_flash_on_each_device"),
        ("tpu", 512, "float32", "_by_flash_on_each_device"),
        ("tpu", 512, "float16", "_by_rows"),
    ],
)
def test_choice(monkeypatch, backend, length, dtype, way):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert A._choose((2, length, 4, 64), jnp.dtype(dtype)) is getattr(A, way)


def test_flash_takes_large_blocks():
    lengths = {512: 512, 600: 384, 640: 384, 768: 384, 900: 512, 1048: 384, 1824: 512, 2304: 512, 7200: 512}
    assert {length: A.block_size(length, A.FLASH_BLOCKS) for length in lengths} == lengths


@pytest.mark.slow
@pytest.mark.parametrize(("causal", "length", "width"), [(True, 300, 32), (False, 256, 72)])
@pytest.mark.parametrize("padding", ["left", "segments"])
def test_flash(monkeypatch, padding, causal, length, width):
    """Interpreted: blocks of 128, so that there are several, and of 256; lengths that are filled up and not."""
    if causal:
        monkeypatch.setattr(A, "FLASH_BLOCKS", (128,))
    with pltpu.force_tpu_interpret_mode():
        check(A._by_flash, *arrays(length, 2, 1, width), PADDINGS[padding](length), causal, atol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(
    ("causal", "length", "heads", "groups", "width"),
    [
        (True, 512, 16, 8, 128),
        (True, 1000, 4, 2, 64),
        (False, 1024, 16, 16, 72),
        (False, 7200, 16, 16, 80),
        (False, 640, 2, 2, 256),
    ],
)
def test_mosaic_accepts_flash(monkeypatch, dtype, causal, length, heads, groups, width):
    """Takes the gradient, too; head widths of Qwen3-VL (64 or 72, 128) and Qwen2.5-VL (80)."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")

    def loss(q, k, v, segment):
        return jnp.sum(jax.checkpoint(partial(A.attention, causal=causal))(q, k, v, segment).astype(jnp.float32))

    shapes = [jax.ShapeDtypeStruct((2, length, h, width), dtype) for h in (heads, groups, groups)]
    shapes.append(jax.ShapeDtypeStruct((2, length), jnp.int32))
    for f in (partial(A.attention, causal=causal), jax.grad(loss, (0, 1, 2))):
        assert "tpu_custom_call" in jax.jit(f).trace(*shapes).lower(lowering_platforms=("tpu",)).as_text()


# --- several devices ------------------------------------------------------------------------------------------------


@pytest.mark.compiles
@pytest.mark.parametrize("sizes", [(2, 2, 2), (8, 1, 1)])
def test_over_a_mesh(sizes):
    """Rows and heads stay on their devices: no collective operation but those of a gradient."""
    mesh = make_mesh(*sizes)
    q, k, v = arrays(100, batch=8)
    segment = np.ones((8, 100), np.int32)
    segment[:, 70:] = 0
    placed = [jax.device_put(x, NamedSharding(mesh, PartitionSpec(*BATCH, None, "tensor"))) for x in (q, k, v)]
    placed.append(jax.device_put(segment, NamedSharding(mesh, BATCH)))
    run = jax.jit(partial(A.attention, causal=True))
    text = run.lower(*placed).compile().as_text()
    assert not any(word in text for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"))
    np.testing.assert_allclose(run(*placed), oracle(q, k, v, segment, True), atol=3e-6)
    weighted = jax.jit(jax.grad(lambda *x: jnp.sum(A.attention(*x, causal=True) ** 2), (0, 1, 2)))
    for a, b in zip(weighted(*placed), weighted(q, k, v, segment), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5)


def test_mosaic_accepts_flash_over_a_mesh(monkeypatch):
    """The compiler splits no kernel: each device runs one on what it has."""
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    mesh = make_mesh(2, 2, 2)
    placed = NamedSharding(mesh, PartitionSpec(*BATCH, None, "tensor"))
    shapes = [jax.ShapeDtypeStruct((4, 512, h, 64), jnp.bfloat16, sharding=placed) for h in (4, 2, 2)]
    shapes.append(jax.ShapeDtypeStruct((4, 512), jnp.int32, sharding=NamedSharding(mesh, BATCH)))
    loss = jax.jit(jax.grad(lambda *x: jnp.sum(A.attention(*x, causal=True).astype(jnp.float32)), (0, 1, 2)))
    text = loss.trace(*shapes).lower(lowering_platforms=("tpu",)).as_text()
    assert text.count("tpu_custom_call") == 3
    assert "tensor<1x2x512x64xbf16>" in text  # a row and two heads


def test_rows_and_heads_that_do_not_divide():
    mesh = make_mesh(2, 1, 4)
    q, k, v = arrays(100, batch=3)
    segment = np.ones((3, 100), np.int32)
    placed = [jax.device_put(x, NamedSharding(mesh, PartitionSpec())) for x in (q, k, v, segment)]
    out = jax.jit(partial(A.attention, causal=False))(*placed)
    np.testing.assert_allclose(out, oracle(q, k, v, segment, False), atol=3e-6)
