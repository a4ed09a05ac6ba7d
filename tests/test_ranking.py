"""Rankings with hash tie-break, blocks of queries, and metrics from scores."""

import hashlib

import numpy as np
import pytest

from eval.benchmarks import Benchmark
from eval.ranking.ranking import UNION_WASTE, Judge, query_key, rank
from eval.ranking.ties import tie_hash
from smart_jax.retrieval.metrics import compute_metrics


def reference_hash(*parts):
    """Straight from the definition: blake2b of 8 bytes over each part's UTF-8 and a zero byte, big-endian."""
    data = b"".join(part.encode("utf-8") + b"\0" for part in parts)
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")


def reference_rank(key, names, scores):
    """Candidates in the hash's order, then stably by descending score."""
    by_hash = sorted(range(len(names)), key=lambda i: reference_hash(key, names[i]))
    return sorted(by_hash, key=lambda i: -scores[i])


def test_distinct_scores_rank_by_score_alone():
    scores = np.array([0.1, 3.0, -2.0, 0.2], np.float32)
    assert rank("any:0", list("abcd"), scores).tolist() == [1, 3, 0, 2]


@pytest.mark.parametrize("levels", [1, 2, 5, 50])
def test_equal_to_hash_first_then_stable_sort(levels):
    rng = np.random.default_rng(levels)
    for query in range(20):
        names = [f"doc-é{i}" for i in rng.permutation(60)]
        scores = rng.integers(0, levels, 60).astype(np.float32)
        key = query_key("set", query)
        assert rank(key, names, scores).tolist() == reference_rank(key, names, scores)


def test_ties_without_a_relevant_candidate_may_stay_but_no_relevant_place_changes():
    rng = np.random.default_rng(9)
    names = [f"d{i}" for i in range(40)]
    for query in range(20):
        scores, relevant = rng.integers(0, 10, 40), rng.random(40) < 0.05
        expected = relevant[reference_rank(f"s:{query}", names, scores)]
        np.testing.assert_array_equal(relevant[rank(f"s:{query}", names, scores, relevant=relevant)], expected)


def test_query_key():
    assert query_key("ViDoRe", 12) == "ViDoRe:12"


def test_ranking_does_not_depend_on_the_candidates_order():
    rng = np.random.default_rng(0)
    names = np.array([f"d{i}" for i in range(30)])
    scores = rng.integers(0, 3, 30).astype(np.float32)
    order = rng.permutation(30)
    ranked = names[rank("k:1", names.tolist(), scores)]
    again = names[order][rank("k:1", names[order].tolist(), scores[order])]
    np.testing.assert_array_equal(ranked, again)


def test_constant_scorer_is_at_chance():
    queries, documents = 2000, 20
    names = [f"d{i}" for i in range(documents)]
    # The relevant document is always the first: without the hash every query would be a hit.
    places = np.array([rank(query_key("c", q), names, np.zeros(documents)).tolist().index(0) for q in range(queries)])
    error = np.sqrt(1 / documents * (1 - 1 / documents) / queries)
    assert abs((places == 0).mean() - 1 / documents) < 4 * error
    assert abs(places.mean() - (documents - 1) / 2) < 4 * np.sqrt((documents**2 - 1) / 12 / queries)


def test_bad_scores_are_refused():
    with pytest.raises(ValueError, match="score of candidate b is NaN"):
        rank("s:0", ["a", "b"], np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match=r"shape \(3,\) for 2 candidates"):
        rank("s:0", ["a", "b"], np.zeros(3))


def test_infinite_scores_rank_at_the_ends():
    assert rank("s:0", list("abc"), np.array([0, -np.inf, np.inf])).tolist() == [2, 0, 1]


def benchmark(queries, documents, *, rng, candidates=None):
    qrels = {
        f"q{q}": {f"d{d}": int(rng.integers(1, 4)) for d in rng.permutation(documents)[: rng.integers(1, 4)]}
        for q in range(queries)
    }
    return Benchmark(
        name="made",
        queries=["?"] * queries,
        query_ids=[f"q{q}" for q in range(queries)],
        corpus=["x"] * documents,
        corpus_ids=[f"d{d}" for d in range(documents)],
        qrels=qrels,
        candidates=candidates,
    )


NAMES = ["ndcg@5", "map", "recall@3", "mrr"]


def brute_force(made, scores):
    """Metrics of each query on its own, from the full matrix of scores."""
    values = []
    for q, query in enumerate(made.query_ids):
        names = made.corpus_ids if made.candidates is None else made.candidates[query]
        own = np.array([scores[q, made.corpus_ids.index(d)] for d in names])
        grades = [[made.qrels[query].get(names[i], 0) for i in reference_rank(query_key("made", q), names, own)]]
        values.append(compute_metrics(NAMES, np.array(grades), np.array([list(made.qrels[query].values())])))
    return {name: np.concatenate([v[name] for v in values]) for name in NAMES}


def in_blocks(made, scores, size):
    judge = Judge(made)
    parts, seen = [], []
    for block in judge.blocks(size):
        queries, documents = block
        assert 1 <= len(queries) <= size
        seen += queries.tolist()
        rows = scores[queries] if documents is None else scores[np.ix_(queries, documents)]
        parts.append(judge.metrics(block, rows, NAMES))
    assert seen == list(range(len(made.query_ids)))
    return {name: np.concatenate([p[name] for p in parts]) for name in NAMES}


@pytest.mark.parametrize("size", [1, 4, 100])
def test_global_blocks_measure_what_single_queries_do(size):
    rng = np.random.default_rng(1)
    made = benchmark(11, 17, rng=rng)
    scores = rng.integers(0, 6, (11, 17)).astype(np.float32)  # with ties
    found, expected = in_blocks(made, scores, size), brute_force(made, scores)
    for name in NAMES:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-12, err_msg=name)


@pytest.mark.parametrize("size", [1, 4, 100])
def test_local_blocks_measure_what_single_queries_do(size):
    rng = np.random.default_rng(2)
    lists = {f"q{q}": [f"d{d}" for d in rng.permutation(17)[: rng.integers(1, 9)]] for q in range(11)}
    made = benchmark(11, 17, rng=rng, candidates=lists)
    scores = rng.integers(0, 6, (11, 17)).astype(np.float32)
    found, expected = in_blocks(made, scores, size), brute_force(made, scores)
    for name in NAMES:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-12, err_msg=name)


def test_local_blocks_share_candidates_but_do_not_score_wastefully():
    shared = [f"d{d}" for d in range(10)]
    lists = {f"q{q}": shared if q < 6 else [f"d{q * 5 + i}" for i in range(5)] for q in range(12)}
    made = benchmark(12, 60, rng=np.random.default_rng(3), candidates=lists)
    blocks = list(Judge(made).blocks(100))
    assert len(blocks[0][0]) >= 6  # the same candidates: one block
    for queries, documents in blocks:
        used = sum(len(lists[f"q{q}"]) for q in queries)
        assert len(queries) * len(documents) <= UNION_WASTE * used
        assert set(documents.tolist()) == {int(d[1:]) for q in queries for d in lists[f"q{q}"]}


def test_block_size_must_be_positive():
    made = benchmark(2, 3, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="query_block"):
        Judge(made).blocks(0)


def test_tie_hash_by_hand():
    """Big-endian BLAKE2b-64 of the bytes written out, from Python's hashlib and once as a literal."""
    assert tie_hash() == int.from_bytes(hashlib.blake2b(b"", digest_size=8).digest(), "big")
    expected = hashlib.blake2b(b"news:0\x00p\xc3\xa4ge\x00", digest_size=8).hexdigest()
    assert tie_hash("news:0", "päge") == int(expected, 16)
    assert tie_hash("") == int(hashlib.blake2b(b"\x00", digest_size=8).hexdigest(), 16)
    assert tie_hash("a", "b") == 0xAD2FBBF2E07B42C7  # printf "a\0b\0" | b2sum --length 64


def test_tie_hash_keeps_parts_apart():
    assert len({tie_hash("ab", "c"), tie_hash("a", "bc"), tie_hash("abc"), tie_hash("abc", "")}) == 4
    assert 0 <= tie_hash("x") < 2**64


def test_tie_hash_orders_evenly():
    """First place among 10 equal candidates goes to each about equally often over 2,000 queries (7 standard errors)."""
    first = [min(range(10), key=lambda c: tie_hash(f"set:{i}", f"doc{c}")) for i in range(2000)]
    counts = np.bincount(first, minlength=10)
    assert np.abs(counts - 200).max() < 7 * np.sqrt(2000 * 0.1 * 0.9)
