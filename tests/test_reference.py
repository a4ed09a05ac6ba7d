"""The reference's evaluation loop: ours in NumPy, torch as the reference describes it, and the fast path."""

import hashlib

import numpy as np
import pytest
import torch

import smart_jax
from eval.benchmarks import Benchmark
from eval.methods import run_benchmark
from eval.ranking import reference_scores
from eval.ranking.ranking import query_key, rank
from smart_jax.retrieval import metrics
from smart_jax.retrieval.embeddings import Embeddings
from tests import reference_loop
from tests.fake_encoder import FakeEncoder

WIDTH = 32
WEIGHTS = [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0), (0.5, 2.0)]
SCORE_TOLERANCE = 1e-6  # of cosines whose sums are rounded in another order


def embeddings(seed, lengths, *, exact, negative=False):
    """Random and nearly unit. Exact: multiples of 1/64, of which every sum below is exact in float32, in any order; a
    mean is where it is over a power of two, else it is rounded once.
    """
    rng = np.random.default_rng(seed)
    offsets = np.cumsum([0, *lengths])
    vectors = rng.standard_normal((len(lengths) + offsets[-1], WIDTH))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    if negative:  # all of one orthant, and the queries of its opposite: every inner product is below 0
        vectors = -np.abs(vectors)
    vectors = (np.round(vectors * 64) / 64 if exact else vectors).astype(np.float32)
    return Embeddings(pooled=vectors[: len(lengths)], tokens=vectors[len(lengths) :], offsets=offsets)


def task(seed, folder, *, exact=True, powers=True, queries=11, documents=90, longest=30, copies=0, negative=False):
    """Queries, documents (some of them copies of others, as pages may be) and their names, read back from disk."""
    rng = np.random.default_rng(seed)
    lengths = 2 ** rng.integers(0, 6, queries) if powers else rng.integers(1, 40, queries)
    q = embeddings(seed + 1, lengths, exact=exact)
    d = embeddings(seed + 2, [*rng.integers(1, longest, documents - 1), 1], exact=exact, negative=negative)
    if negative:
        q = Embeddings(np.abs(q.pooled), np.abs(q.tokens), q.offsets)
    d = Embeddings.concatenate([d, d[rng.integers(0, documents, copies)]])[rng.permutation(documents + copies)]
    for name, part in (("q", q), ("d", d)):
        part.save(folder / name)
    names = [f"page-é{i}" for i in rng.permutation(len(d))]
    return Embeddings.load(folder / "q"), Embeddings.load(folder / "d"), names


def torch_scores(q, d, pooled_weight, late_weight):
    """The score that the reference describes: a query and a chunk of 64 padded candidates at a time."""
    pooled = torch.matmul(torch.tensor(q.pooled), torch.tensor(d.pooled).T)
    rows = []
    for i in range(len(q)):
        query = torch.tensor(q[i].tokens)
        parts = []
        for chunk in torch.arange(len(d)).split(64):
            own = [torch.tensor(d[int(j)].tokens) for j in chunk]
            padded = torch.nn.utils.rnn.pad_sequence(own, batch_first=True)
            mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(x), dtype=bool) for x in own], batch_first=True)
            similarity = torch.einsum("qd,ckd->qck", query, padded)
            similarity = similarity.masked_fill(~mask[None], torch.finfo(torch.float32).min)
            parts.append(similarity.max(dim=-1).values.sum(dim=0) / torch.tensor(float(len(query))))
        rows.append(torch.cat(parts))
    return pooled_weight * pooled + late_weight * torch.stack(rows)


def torch_rank(key, names, scores):
    """Candidates sorted by blake2b of the key and their name, then stably by descending score."""

    def digest(name):
        data = key.encode() + b"\0" + name.encode() + b"\0"
        return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "big")

    by_hash = torch.tensor(sorted(range(len(names)), key=lambda i: digest(names[i])))
    return by_hash[torch.argsort(scores[by_hash], descending=True, stable=True)].tolist()


@pytest.mark.compiles
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(
    "kind", [dict(), dict(copies=60), dict(longest=3, copies=20), dict(negative=True, longest=60, copies=9)]
)
def test_global_ranking_is_the_references_in_every_place(tmp_path, kind, weights):
    q, d, names = task(7, tmp_path, **kind)
    oracle = torch_scores(q, d, *weights)
    given = dict(pooled_weight=weights[0], late_weight=weights[1])
    ours = reference_scores(q, d, **given)
    assert ours.dtype == np.float32
    np.testing.assert_array_equal(ours, oracle.numpy())  # bit for bit
    if kind.get("copies"):
        assert all(len(np.unique(row)) < len(row) for row in ours)  # there are ties
    expected = [torch_rank(f"set:{i}", names, row) for i, row in enumerate(oracle)]
    assert reference_loop.rank_global("set", q, d, names, **given) == [[names[i] for i in row] for row in expected]
    fast = smart_jax.score(q, d, **given)
    np.testing.assert_array_equal(fast, ours)
    assert [rank(query_key("set", i), names, row).tolist() for i, row in enumerate(fast)] == expected


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.7, 1.3)])
def test_roundings_are_the_references(tmp_path, weights):
    """Means over any number of tokens and weights that round: in the last bit, XLA's may be others."""
    q, d, names = task(5, tmp_path, powers=False, copies=30)
    oracle = torch_scores(q, d, *weights)
    given = dict(pooled_weight=weights[0], late_weight=weights[1])
    ours = reference_scores(q, d, **given)
    np.testing.assert_array_equal(ours, oracle.numpy())
    expected = [torch_rank(f"set:{i}", names, row) for i, row in enumerate(oracle)]
    assert [rank(query_key("set", i), names, row).tolist() for i, row in enumerate(ours)] == expected
    assert reference_loop.rank_global("set", q, d, names, **given) == [[names[i] for i in row] for row in expected]
    np.testing.assert_allclose(smart_jax.score(q, d, **given), ours, rtol=0, atol=SCORE_TOLERANCE)


@pytest.mark.parametrize("weights", WEIGHTS[:3])
def test_local_ranking_is_the_references_in_every_place(tmp_path, weights):
    q, d, names = task(8, tmp_path, copies=40)
    rng = np.random.default_rng(0)
    candidates = [[names[i] for i in rng.permutation(len(names))[: rng.integers(1, 80)]] for _ in range(len(q))]
    given = dict(pooled_weight=weights[0], late_weight=weights[1])
    place = {name: i for i, name in enumerate(names)}
    expected, fast = [], []
    for i, own in enumerate(candidates):
        documents = d[[place[name] for name in own]]
        expected.append([own[j] for j in torch_rank(f"set:{i}", own, torch_scores(q[i], documents, *weights)[0])])
        scores = smart_jax.score(q[i], documents, **given)[0]
        fast.append([own[j] for j in rank(query_key("set", i), own, scores)])
    assert reference_loop.rank_local("set", q, d, names, candidates, **given) == expected == fast


@pytest.mark.parametrize("seed", range(3))
def test_real_vectors(tmp_path, seed):
    """Scores within rounding, and no two candidates swapped that differ by more."""
    q, d, names = task(seed, tmp_path, exact=False, documents=200)
    oracle = torch_scores(q, d, 1.0, 1.0).numpy()
    ours, fast = reference_scores(q, d), smart_jax.score(q, d)
    np.testing.assert_allclose(ours, oracle, rtol=0, atol=SCORE_TOLERANCE)
    np.testing.assert_allclose(fast, oracle, rtol=0, atol=SCORE_TOLERANCE)
    exact = q.pooled.astype(np.float64) @ d.pooled.T.astype(np.float64)
    for i in range(len(q)):
        similarity = q[i].tokens.astype(np.float64) @ d.tokens.T.astype(np.float64)
        exact[i] += [part.max(axis=1).mean() for part in np.split(similarity, d.offsets[1:-1], axis=1)]
        for scores in (ours, fast):
            along = exact[i][rank(query_key("set", i), names, scores[i])]
            assert (np.diff(along) <= SCORE_TOLERANCE).all()
    np.testing.assert_allclose(ours, exact, rtol=0, atol=SCORE_TOLERANCE)


def test_rounded_storage_is_scored_in_float32():
    q, d = (embeddings(seed, [3, 1, 5], exact=True) for seed in (0, 1))
    expected = reference_scores(q, d)
    np.testing.assert_array_equal(reference_scores(q.astype(np.float16), d.astype(np.float16)), expected)
    integers = d.astype(np.int8)
    np.testing.assert_array_equal(reference_scores(q, integers), reference_scores(q, integers.astype(np.float32)))


def test_candidates_that_appear_twice_keep_their_order():
    names, values = ["a", "b", "a", "c", "b"], np.zeros(5, np.float32)
    assert reference_loop.rank("k:0", names, values).tolist() == torch_rank("k:0", names, torch.tensor(values))


def graded(rng, documents):
    """A ranking by name, and the judgements of some, at least one relevant; most candidates are unjudged."""
    names = [f"d{i}" for i in range(documents)]
    judged = rng.choice(names, size=rng.integers(1, documents + 1), replace=False).tolist()
    return rng.permutation(names).tolist(), dict(zip(judged, rng.integers(1, 4, len(judged)).tolist(), strict=True))


@pytest.mark.parametrize("documents", [1, 3, 8, 40])
def test_figures(documents):
    """Match `smart_jax.retrieval`'s, which trec_eval checks, except for the reference's own convention of MAP."""
    rng = np.random.default_rng(documents)
    same = {"ndcg_linear": "ndcg", "ndcg_exponential": "ndcg_exp"}
    for _ in range(50):
        ranked, grades = graded(rng, documents)
        found = reference_loop.figures(ranked, list(grades), list(grades.values()))
        row, judged = np.array([[grades.get(name, 0) for name in ranked]]), np.array([list(grades.values())])
        for name, value in found.items():
            metric, _, k = name.partition("@")
            if metric == "f1":
                p, r = found[f"precision@{k}"], found[f"recall@{k}"]
                assert value == pytest.approx(2 * p * r / (p + r) if p + r else 0, abs=1e-12)
                continue
            expected = metrics.compute_metrics([f"{same.get(metric, metric)}@{k}"], row, judged).popitem()[1][0]
            if metric == "map":
                expected *= len(grades) / min(len(grades), int(k))
            assert value == pytest.approx(expected, abs=1e-12), name
        binary = reference_loop.figures(ranked, list(grades))
        expected = metrics.compute_metrics(["ndcg@5"], (row > 0).astype(int), (judged > 0).astype(int))["ndcg@5"][0]
        assert binary["ndcg_linear@5"] == binary["ndcg_exponential@5"] == pytest.approx(expected, abs=1e-12)


def test_figures_by_hand():
    found = reference_loop.figures(["a", "b", "c"], ["b", "z"], [2, 3])
    assert found["hit@1"] == 0 and found["hit@5"] == 1
    assert found["precision@5"] == 1 / 5 and found["recall@5"] == 1 / 2
    assert found["f1@5"] == pytest.approx(2 / 7) and found["mrr@5"] == 1 / 2
    assert found["map@5"] == pytest.approx((1 / 2) / 2)
    assert found["ndcg_linear@5"] == pytest.approx((2 / np.log2(3)) / (3 + 2 / np.log2(3)))
    nothing = reference_loop.figures(["a"], [])
    assert nothing["recall@1"] == 1 and nothing["hit@1"] == nothing["ndcg_linear@1"] == nothing["map@1"] == 0


def test_a_benchmark_gets_the_references_figures(tmp_path):
    """Through the evaluation's own loop, with labels and candidates: nDCG and hit of every query."""
    q, d, names = task(3, tmp_path, copies=30)
    rng = np.random.default_rng(1)
    own = {f"q{i}": [names[j] for j in rng.permutation(len(names))[:25]] for i in range(len(q))}
    qrels = {query: {name: int(rng.integers(1, 4)) for name in rng.choice(own[query], 4, False)} for query in own}
    benchmark = Benchmark(
        *("set", [f"query {i}" for i in range(len(q))], list(own), [f"text {n}" for n in names], names, qrels)
    )
    encoder = Fixed(q, d)
    for candidates in (None, own):
        benchmark = Benchmark(
            *("set", benchmark.queries, list(own), benchmark.corpus, names, qrels), candidates=candidates
        )
        made = run_benchmark(encoder, benchmark, methods=["hybrid"], metrics=["ndcg@5", "ndcg_exp@10", "hit@1"])
        ranked = (
            reference_loop.rank_global("set", q, d, names)
            if candidates is None
            else reference_loop.rank_local("set", q, d, names, list(own.values()))
        )
        figures = [
            reference_loop.figures(r, list(g), list(g.values())) for r, g in zip(ranked, qrels.values(), strict=True)
        ]
        for ours, theirs in (("ndcg@5", "ndcg_linear@5"), ("ndcg_exp@10", "ndcg_exponential@10"), ("hit@1", "hit@1")):
            expected = [figure[theirs] for figure in figures]
            np.testing.assert_allclose(made.values["hybrid"][ours], expected, atol=1e-12)


class Fixed(FakeEncoder):
    """Gives the embeddings that it was made with."""

    def __init__(self, q, d):
        super().__init__()
        self.q, self.d = q, d

    def encode_query(self, items, **options):
        return self.q

    def encode_document(self, items, **options):
        return self.d


def test_what_is_refused():
    q, d = embeddings(0, [2, 1], exact=True), embeddings(1, [2, 3, 1], exact=True)
    with pytest.raises(ValueError, match="both 0"):
        reference_scores(q, d, pooled_weight=0, late_weight=0)
    narrow = Embeddings(d.pooled, d.tokens[:, :8], d.offsets)
    with pytest.raises(ValueError, match="tokens of q have width 32, of d 8"):
        reference_scores(q, narrow)
    np.testing.assert_array_equal(reference_scores(q, narrow, late_weight=0), reference_scores(q, d, late_weight=0))
    with pytest.raises(ValueError, match="3 names, 2 of them distinct, for 3 documents"):
        reference_loop.rank_global("set", q, d, ["a", "b", "a"])
    with pytest.raises(ValueError, match="query 1 has unknown candidates: 'z'"):
        reference_loop.rank_local("set", q, d, ["a", "b", "c"], [["a"], ["b", "z"]])
    with pytest.raises(ValueError, match="1 lists of candidates for 2 queries"):
        reference_loop.rank_local("set", q, d, ["a", "b", "c"], [["a"]])
    with pytest.raises(ValueError, match="1 grades for 2 labels"):
        reference_loop.figures(["a"], ["a", "b"], [1])
    with pytest.raises(ValueError, match="2 grades for 2 labels, 1 of them distinct"):
        reference_loop.figures(["a"], ["a", "a"], [1, 2])
