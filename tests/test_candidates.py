"""score and search with `candidates`, and documents in lists, which are gathered block by block."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from smart_jax.retrieval import block_plan, candidate_scores, candidates, gathered, operands, scattered_scores
from smart_jax.retrieval.candidates import CandidateLists
from smart_jax.retrieval.embeddings import Embeddings
from smart_jax.retrieval.score import score
from smart_jax.retrieval.search import search
from smart_jax.runtime.mesh import make_mesh
from tests.test_score import TOLERANCE, make, oracle, ranked, unit, use_devices

WEIGHTS = [(1.0, 1.0), (0.0, 2.0), (1.0, 0.0)]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(params=["packed", "in place"])
def large(request, monkeypatch):
    """Every corpus counts as large; long documents are scored in place, or packed as short ones are."""
    use_devices(monkeypatch)
    for module in (block_plan, candidate_scores, operands):
        monkeypatch.setattr(module, "COPIED_BYTES", 0)
    monkeypatch.setattr(block_plan, "PACKED_BYTES", 2**13)
    monkeypatch.setattr(candidates, "TOGETHER", 0)
    monkeypatch.setattr(scattered_scores, "MOST_WASTE", 0 if request.param == "packed" else 100)
    return request.param


def row_of(expected: np.ndarray, lists) -> np.ndarray:
    """The oracle's scores at each query's candidates, -inf behind them."""
    table = np.full((len(lists), max(map(len, lists))), -np.inf)
    for i, ids in enumerate(lists):
        for j, document in enumerate(ids):
            if document >= 0:
                table[i, j] = expected[i, document]
    return table


@pytest.mark.compiles
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.int8])
def test_scores_are_those_of_all_documents(rng, large, weights, dtype):
    """The corpus's first and last document, which no view reaches, included; and an array that starts anywhere."""
    lengths = [*rng.integers(100, 500, 30), 1, 300]
    q, d = make(rng, [3, 20, 1], 16, 8), make(rng, [1, *lengths], 16, 8).astype(dtype)[1:]
    expected = oracle(q, d.astype(np.float32), *weights)
    options = dict(zip(("pooled_weight", "late_weight"), weights, strict=True))
    shared = [31, 5, 0, 5, 30, 17]
    found = score(q, d, candidates=shared, **options)
    assert (found.shape, found.dtype) == ((3, 6), np.float32)
    np.testing.assert_allclose(found, expected[:, shared], atol=TOLERANCE)
    lists = [[31, 0, 2], [], [7, 7, 30, 1]]
    np.testing.assert_allclose(score(q, d, candidates=lists, **options), row_of(expected, lists), atol=TOLERANCE)
    array = np.array([[4, -1, 31], [0, 1, 2], [-1, -1, 9]])
    np.testing.assert_allclose(score(q, d, candidates=array, **options), row_of(expected, array), atol=TOLERANCE)


@pytest.mark.compiles
@pytest.mark.parametrize("weights", WEIGHTS)
def test_search_among_candidates(rng, large, weights):
    q, d = make(rng, [3, 20, 1]), make(rng, rng.integers(100, 300, 12))
    options = dict(zip(("pooled_weight", "late_weight"), weights, strict=True))
    expected = oracle(q, d, *weights)
    for lists in ([[11, 3, 3, 0], [5], [2, 1, 4, 9, 0]], [[], [0, 1], [3]]):
        values, indices = search(q, d, 3, candidates=lists, **options)
        assert values.shape == indices.shape == (3, min(3, max(map(len, lists))))
        for i, ids in enumerate(lists):
            best = sorted(set(ids), key=lambda document, i=i: -expected[i, document])[:3]
            assert indices[i].tolist() == best + [-1] * (indices.shape[1] - len(best))
            np.testing.assert_allclose(values[i, : len(best)], expected[i, best], atol=TOLERANCE)
            assert (values[i, len(best) :] == -np.inf).all()
    shared = [11, 0, 7, 7, 3, 2]
    best = np.unique(shared)[np.argsort(-expected[:, np.unique(shared)], axis=1)[:, :4]]
    for elsewhere in ({}, {"mesh": make_mesh()}, {"device_bytes": 2**17}):
        values, indices = search(q, d, 4, candidates=shared, **elsewhere, **options)
        np.testing.assert_array_equal(indices, best)
        np.testing.assert_allclose(values, np.take_along_axis(expected, best, 1), atol=TOLERANCE)


def test_equal_scores_come_by_number(rng):
    one = make(rng, [3])
    d = Embeddings.concatenate([one] * 5)
    assert search(one, d, 3, candidates=[4, 1, 3, 2])[1].tolist() == [[1, 2, 3]]
    assert search(one, d, 3, candidates=[[4, 1, 3, 2]])[1].tolist() == [[1, 2, 3]]


def test_candidates_that_are_not_allowed_are_left_out(rng):
    q, d = make(rng, [2, 3]), make(rng, [4, 1, 5, 2])
    allow = np.array([True, False, True, True])
    expected = np.where(allow, oracle(q, d), -np.inf)
    for given in ([0, 1, 2], [[0, 1, 2], [2, 0]]):
        values, indices = search(q, d, 3, candidates=given, allow=allow)
        np.testing.assert_array_equal(indices, ranked(expected[:, :3], 2))
        np.testing.assert_allclose(values, np.take_along_axis(expected, indices, 1), atol=TOLERANCE)
    assert search(q, d, 3, candidates=[1], allow=allow)[1].shape == (2, 0)


def test_what_search_returns_is_reranked(rng):
    """The indices of one search are the candidates of the next, with what pads them."""
    q, d = make(rng, [2, 3]), make(rng, [4, 1, 5, 2])
    _, indices = search(q, d, 3, candidates=[[0, 1, 2], [3]])
    reranked = score(q, d, candidates=indices)
    np.testing.assert_allclose(reranked, row_of(oracle(q, d), indices.tolist()), atol=TOLERANCE)
    assert search(q, d, 9, candidates=indices)[1].tolist()[1] == [3, -1, -1]


def test_lists_with_much_in_common_are_scored_at_once(rng, monkeypatch):
    q, d = make(rng, [2, 3]), make(rng, [4, 1, 5, 2])
    calls = []

    def watched(*arguments):
        calls.append(len(arguments[0]))
        return oracle(*arguments[:2]).astype(np.float32)

    for lists, expected in ([[[0, 1, 2], [2, 1]], [2]], [[[0], [3]], [2]], [[[0], [1], [2]], [1, 1, 1]]):
        queries = make(rng, [2] * len(lists))
        chosen = CandidateLists.of(lists, len(lists), len(d))
        found = candidate_scores.candidate_scores(queries, d, np.float32([1, 1]), chosen, watched)
        np.testing.assert_allclose(found, row_of(oracle(queries, d), lists), atol=TOLERANCE)
        assert calls == expected
        calls.clear()
    assert score(q, d, candidates=[[0], [3]]).shape == (2, 1)


@pytest.mark.compiles
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_documents_in_a_list(rng, large, dtype):
    q, arrays = unit(rng, 2, 5, 16), [unit(rng, n, 16).astype(dtype) for n in (300, 1, 40, 700, 2)]
    expected = np.array([[(a @ b.T.astype(np.float32)).max(axis=1).mean() for b in arrays] for a in q])
    np.testing.assert_allclose(score(q, arrays), expected, atol=TOLERANCE)
    np.testing.assert_allclose(score(q, arrays, candidates=[3, 0]), expected[:, [3, 0]], atol=TOLERANCE)
    np.testing.assert_array_equal(search(q, arrays, 2)[1], np.argsort(-expected, axis=1)[:, :2])
    arrays[3][650, 2] = np.nan
    with pytest.raises(ValueError, match="d, item 3, token 650: it holds NaN or infinity"):
        score(q, arrays)


@pytest.mark.usefixtures("large")
def test_a_list_of_documents_is_packed_block_by_block(rng, monkeypatch):
    sizes, packed = [], gathered.packed
    monkeypatch.setattr(gathered, "packed", lambda parts, size, like: sizes.append(size) or packed(parts, size, like))
    score(unit(rng, 1, 2, 16), [unit(rng, 32, 16) for _ in range(64)])
    assert len(sizes) > 10 and max(sizes) * 16 * 4 <= 2**13


@pytest.mark.usefixtures("large")
def test_of_a_mapped_file_only_the_candidates_are_read(rng, tmp_path, monkeypatch):
    make(rng, [200] * 40, 16).save(tmp_path)
    q, d = make(rng, [4], 16), Embeddings.load(tmp_path, mmap=True)
    expected = oracle(q, d)[:, [33, 4]]
    views, values = [], scattered_scores.values_in_place
    monkeypatch.setattr(
        scattered_scores, "values_in_place", lambda *arguments: views.append(values(*arguments)) or views[-1]
    )
    np.testing.assert_allclose(score(q, d, candidates=[33, 4]), expected, atol=TOLERANCE)
    assert all(np.shares_memory(view, d.tokens) for _, view, _ in views)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("call", [score, search])
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ([0, 3], IndexError, "candidate 3: d has 3 documents, from 0 to 2"),
        ([0, -1], IndexError, "candidate -1: d has 3"),
        ([[0], [1, 3]], IndexError, "candidate 3 of query 1: d has 3 documents"),
        (np.array([[0, -2], [1, 1]]), IndexError, "candidate -2 of query 0"),
        ([[0]], ValueError, "candidates are 1 lists for 2 queries: pass a list for each, or one list of ids"),
        ([0.5], TypeError, "candidates are float64: they must be integers"),
        (np.ones(3, bool), TypeError, "candidates are bool: .* np.flatnonzero"),
        (np.zeros((1, 2, 3), int), ValueError, r"candidates have shape \(1, 2, 3\): pass ids"),
        ([[0], [[1]]], ValueError, r"candidates\[1\] have shape \(1, 1\): pass ids"),
        (np.array(0), ValueError, r"candidates have shape \(\): pass ids"),
    ],
)
def test_bad_candidates(rng, call, given, error, message):
    with pytest.raises(error, match=message):
        call(make(rng, [2, 3]), make(rng, [4, 1, 5]), candidates=given)


def test_candidates_of_each_query_stay_on_one_device(rng):
    e = make(rng, [2, 3])
    with pytest.raises(ValueError, match="mesh is given with candidates for each query"):
        search(e, e, 1, candidates=[[0], [1]], mesh=make_mesh())


def test_no_candidates(rng):
    e = make(rng, [2, 3])
    assert score(e, e, candidates=[]).shape == (2, 0)
    assert [x.shape for x in search(e, e, 3, candidates=[[], []])] == [(2, 0), (2, 0)]
    assert score(e[:0], e, candidates=[0, 1]).shape == (0, 2)


@pytest.mark.parametrize(
    ("lengths", "width", "tile"), [([225], 128, 240), ([700] * 9, 2048, 240), ([20, 40], 128, None)]
)
def test_tiles_suit_the_documents(lengths, width, tile):
    assert scattered_scores.best_tile(np.asarray(lengths), width) == tile
