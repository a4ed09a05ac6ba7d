"""Documents that stay on devices: `to_device`, and `score` and `search` of them."""

import importlib.util
import itertools

import jax
import ml_dtypes
import numpy as np
import pytest

from smart_jax.maxsim import packed
from smart_jax.retrieval import length_groups, resident, resident_rows, resident_search
from smart_jax.retrieval.embeddings import Embeddings
from smart_jax.retrieval.resident import to_device
from smart_jax.retrieval.score import score
from smart_jax.retrieval.search import search
from smart_jax.retrieval.streamed_search import document_mesh
from smart_jax.runtime.mesh import make_mesh
from tests.test_score import TOLERANCE, make, oracle, ranked, unit

WEIGHTS = [(1.0, 1.0), (0.0, 1.0), (0.7, 0.0)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def small(monkeypatch):
    """Several calls of queries, several pieces, chunks of documents and of query tokens, at a test's sizes."""
    monkeypatch.setattr(resident_search, "QUERIES", 4)
    monkeypatch.setattr(resident_rows, "PIECE_BYTES", 2048)
    monkeypatch.setattr(packed, "CPU_SCORES", 2**11)
    resident_search.search_program.cache_clear()
    yield
    resident_search.search_program.cache_clear()


def check(q, d, exact, k=7, mesh=None, **options):
    """Score and search against the oracle, of what `exact` holds in float32."""
    weights = options.get("pooled_weight", 1.0), options.get("late_weight", 1.0)
    expected = oracle(q.astype(np.float32), exact.astype(np.float32), *weights)
    on_device = to_device(d, mesh)
    found = score(q, on_device, **options)
    assert (found.shape, found.dtype) == (expected.shape, np.float32)
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)
    values, indices = search(q, on_device, k, **options)
    assert (values.dtype, indices.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(indices, ranked(expected, k))
    np.testing.assert_allclose(values, np.take_along_axis(expected, indices, 1), rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.compiles
@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("weights", WEIGHTS)
def test_ragged(rng, small, devices, weights):
    """Groups of several lengths, items without tokens, empty rows, queries in several calls."""
    q = make(rng, [3, 20, 1, 16, 0, 2])
    d = make(rng, [*rng.integers(1, 30, 40), 100, 1, 64, *rng.integers(0, 5, 30)])
    mesh = make_mesh(devices=jax.devices()[:devices])
    check(q, d, d, mesh=mesh, **dict(zip(("pooled_weight", "late_weight"), weights, strict=True)))


@pytest.mark.parametrize("q_dtype", [np.float32, ml_dtypes.bfloat16, np.int8])
@pytest.mark.parametrize("d_dtype", [np.float16, ml_dtypes.bfloat16, np.int8])
def test_stores_are_scored_in_float32(rng, q_dtype, d_dtype):
    """Exact for the stored values, which are not rounded to the other side's type."""
    q, d = make(rng, [30, 3], 128, 128).astype(q_dtype), make(rng, [9, 30, 1], 128, 128).astype(d_dtype)
    if np.int8 in (q_dtype, d_dtype):  # pooled vectors as they are
        q, d = (Embeddings.from_checked(x.pooled.astype(np.float32), x.tokens, x.offsets, x.scales) for x in (q, d))
    check(q, d, d, k=2)


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
@pytest.mark.parametrize("dtypes", list(itertools.product([np.float32, ml_dtypes.bfloat16, np.int8], repeat=2)))
def test_what_other_devices_compute(rng, monkeypatch, platform, dtypes):
    """Their order of products, chunks and casts, run here."""
    monkeypatch.setattr(packed, "GPU_SCORES", (2**11, 2**11))
    q, d = make(rng, [40, 20, 4], 16).astype(dtypes[0]), make(rng, [9] * 11, 16).astype(dtypes[1])
    owner = np.repeat(np.arange(3, dtype=np.int32), q.lengths)
    lengths = d.lengths.astype(np.int32)
    lengths[4] = 0
    scales = None if d.scales is None else d.scales.reshape(11, 9)
    arguments = q.tokens, owner, q.lengths.astype(np.int32), d.tokens.reshape(11, 9, 16), lengths, q.scales, scales
    found = jax.jit(packed.packed_maxsim, static_argnames="platform")(*arguments, platform=platform)
    expected = oracle(q.astype(np.float32), d.astype(np.float32), 0.0, 1.0)
    expected[:, 4] = -np.inf
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


# Ties, k


@pytest.mark.compiles
@pytest.mark.parametrize("devices", [1, 8])
def test_ties_go_to_the_lowest_index(rng, devices):
    """Equal documents in several groups, on several devices: equal pooled vectors, tokens of any number."""
    mesh = make_mesh(devices=jax.devices()[:devices])
    d = make(rng, rng.integers(1, 200, 60))
    pooled = np.repeat(unit(rng, 2, 8), 30, axis=0)[rng.permutation(60)]
    on_device = to_device(Embeddings(pooled, d.tokens, d.offsets), mesh)
    assert len(on_device.documents.groups) > 1
    for k in (1, 13, 60):
        _, indices = search(make(rng, [3, 4]), on_device, k, late_weight=0)
        assert all(np.diff(row[:30]).min(initial=1) > 0 and np.diff(row[30:]).min(initial=1) > 0 for row in indices)
    one, other = make(rng, [3]), make(rng, [3])
    same = to_device(Embeddings.concatenate([other] * 5 + [one] * 30), mesh)
    assert search(one, same, 33)[1].tolist() == [[*range(5, 35), 0, 1, 2]]


def test_fewer_documents_than_asked_for_or_none(rng):
    q, d = make(rng, [2, 3]), make(rng, [4, 1, 5])
    assert [x.shape for x in search(q, to_device(d), 50)] == [(2, 3), (2, 3)]
    assert [x.shape for x in search(q, to_device(d[:0]), 3)] == [(2, 0), (2, 0)]
    assert score(q, to_device(d[:0])).shape == (2, 0)
    assert [x.shape for x in search(q[:0], to_device(d), 3)] == [(0, 3), (0, 3)]
    assert score(q[:0], to_device(d)).shape == (0, 3)


@pytest.mark.parametrize("devices", [1, 8])
def test_only_documents_that_are_allowed(rng, devices):
    q, d = make(rng, [3, 4]), make(rng, rng.integers(1, 60, 40))
    on_device, allow = to_device(d, make_mesh(devices=jax.devices()[:devices])), rng.integers(0, 2, 40).astype(bool)
    expected = ranked(np.where(allow, oracle(q, d), -np.inf), 40)[:, : allow.sum()]
    np.testing.assert_array_equal(search(q, on_device, 40, allow=allow)[1], expected)
    np.testing.assert_array_equal(search(q, on_device, 5, allow=allow)[1], expected[:, :5])
    assert search(q, on_device, 5, allow=np.zeros(40, bool))[1].shape == (2, 0)


def test_rescoring_finds_what_full_precision_finds(rng):
    q, d = make(rng, [4] * 5, 64, 64), make(rng, rng.integers(3, 20, 80), 64, 64)
    expected, found = search(q, d, 5), search(q, to_device(d.astype(np.int8)), 5, rescore=d)
    np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_allclose(found[0], expected[0], atol=TOLERANCE)


# Compilations, transfers


@pytest.mark.compiles
def test_compilations_are_few(rng):
    """60 random numbers of queries, lengths and k: few shapes reach the compiler, and k none at all."""
    on_device = to_device(make(rng, [9] * 20))
    program = resident_search.search_program(on_device.mesh)
    program.clear_cache()
    for _ in range(60):
        search(make(rng, rng.integers(1, 41, rng.integers(1, 5))), on_device, int(rng.integers(1, 20)))
    assert program.programs() <= 12
    compiled = program.programs()
    for k in range(1, 100):
        search(make(rng, [5]), on_device, k)
    assert program.programs() <= compiled + 1


@pytest.mark.compiles
def test_nothing_is_transferred_implicitly(rng, small):
    q, d = make(rng, [3, 20, 1]), make(rng, rng.integers(1, 90, 32))
    with jax.transfer_guard("disallow"), jax.checking_leaks():
        on_device = to_device(d, make_mesh())
        score(q, on_device)
        search(q, on_device, 5)


def test_a_mapped_file_is_read_in_pieces(rng, small, tmp_path):
    d = make(rng, rng.integers(20, 30, 200))
    d.save(tmp_path)
    check(make(rng, [3]), Embeddings.load(tmp_path, mmap=True), d)


# Groups


@pytest.mark.parametrize("devices", [1, 3])
def test_groups_pad_least(rng, monkeypatch, devices):
    """Equals trying every way, where another group costs nothing."""
    monkeypatch.setattr(length_groups, "WORTH", 0)
    monkeypatch.setattr(length_groups, "GROUPS", 3)
    lengths = rng.integers(1, 12, 40)

    def padded(ends):
        group = np.searchsorted(ends, lengths)
        return sum(-(-int((group == i).sum()) // devices) * devices * end for i, end in enumerate(ends))

    levels, longest = np.unique(lengths)[:-1], lengths.max()
    ways = [(*some, longest) for n in range(3) for some in itertools.combinations(levels, n)]
    groups = length_groups.length_groups(lengths, unit=1, devices=devices)
    assert padded([g.length for g in groups]) == min(map(padded, ways))
    np.testing.assert_array_equal(np.sort(np.concatenate([g.items for g in groups])), np.arange(40))
    assert all((lengths[g.items] <= g.length).all() and (np.diff(g.items) > 0).all() for g in groups)


@pytest.mark.parametrize(
    ("lengths", "groups", "padding"),
    [
        (lambda rng: np.full(104, 1030), 1, 0.01),
        (lambda rng: 1030 - rng.integers(0, 30, 1000), 2, 0.03),
        (lambda rng: rng.integers(256, 1040, 5000), 8, 0.10),
        (lambda rng: rng.lognormal(np.log(120), 0.6, 20_000).astype(int) + 1, 8, 0.22),
        (lambda rng: rng.integers(1, 2**20, 3000), 8, 0.13),
    ],
)
def test_groups_are_few_and_pad_little(rng, lengths, groups, padding):
    lengths = lengths(rng)
    found = length_groups.length_groups(lengths, unit=8, devices=8)
    assert len(found) <= groups
    assert sum(-(-len(g.items) // 8) * 8 * g.length for g in found) <= (1 + padding) * lengths.sum()


# Errors


def test_too_large_for_the_devices(rng, monkeypatch):
    monkeypatch.setattr(resident, "_free_bytes", lambda device, mesh: resident.WORK_BYTES + 1000)
    match = r"Embeddings\(4 items, .* needs \d+ bytes on each of 1 devices, and .* has \d+: store it as int8"
    with pytest.raises(ValueError, match=match):
        to_device(make(rng, [9] * 4))


def test_devices_of_a_host_share_its_memory():
    devices = jax.devices()
    alone, shared = (resident._free_bytes(devices[0], document_mesh(make_mesh(devices=devices[:n]))) for n in (1, 8))
    assert shared == alone // 8 > 0


@pytest.mark.usefixtures("unchecked")
def test_bad_input(rng):
    q, d = make(rng, [2]), make(rng, [2, 3])
    on_device = to_device(d)
    for call in (score, search):
        with pytest.raises(ValueError, match="tokens of q have width 6, of d 8: encode both"):
            call(make(rng, [2], 6), on_device)
        with pytest.raises(TypeError, match="q is a Resident, which only documents can be"):
            call(on_device, on_device)
        with pytest.raises(ValueError, match="q has tokens, d has pooled vectors and tokens: pass the same kind"):
            call(unit(rng, 1, 2, 8), on_device)
        with pytest.raises(ValueError, match="d_mask is for tokens"):
            call(q, on_device, d_mask=np.ones((2, 3), bool))
        with pytest.raises(ValueError, match="candidates are given with a Resident: pass the Embeddings"):
            call(q, on_device, candidates=[0])
    for options in ({"mesh": make_mesh()}, {"device_bytes": 2**20}):
        with pytest.raises(ValueError, match="is given with a Resident: pass the mesh to to_device"):
            search(q, on_device, **options)
    with pytest.raises(ValueError, match="k is 0"):
        search(q, on_device, 0)
    with pytest.raises(ValueError, match="rescore has 1 items, d has 2"):
        search(q, on_device, 1, rescore=d[:1])
    with pytest.raises(TypeError, match="to_device takes Embeddings, not ndarray"):
        to_device(d.tokens)
    assert score(unit(rng, 1, 2, 8), on_device, pooled_weight=0).shape == (1, 2)


# The compiler's word


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_a_search_copies_no_documents(dtype):
    """Asks the TPU's compiler where libtpu is installed, else that for CPUs, which counts no cycles."""
    from benchmarks import resident_tpu

    case = resident_tpu.Case(10_000, 512, 256, dtype, 2)  # 512: for int8 a length that would be copied on a TPU
    if importlib.util.find_spec("libtpu") is None:
        mesh, most = make_mesh(), 0.1
    else:
        mesh, most = resident_tpu.mesh_of("v5e:2x4"), 0.01
    found = resident_tpu.figures(case, mesh, resident_tpu.CHIPS["v5e"])
    corpus = 10_000 * (512 * 256 * np.dtype(getattr(ml_dtypes, dtype, dtype)).itemsize) / mesh.size
    assert found.temporary < most * corpus
    assert "| 10,000 x 512 x 256 |" in resident_tpu.row("v5e:2x4", case, found)
