"""Metrics against trec_eval and hand-computed values; bootstrap intervals against what theory says."""

import math

import numpy as np
import pytest
import pytrec_eval

from eval.ranking import bootstrap
from eval.ranking.bootstrap import interval, resampled_means
from smart_jax.retrieval.metrics import METRICS, compute_metrics, ndcg, parse_metric

CUTOFFS = (1, 5, 10)
TREC = {"ndcg": "ndcg_cut", "hit": "success", "recall": "recall", "precision": "P", "map": "map_cut"}
CASES = 200


def random_run(rng, *, queries, documents, negative, levels):
    """Random judgements and scores; few candidates are judged, some relevant documents are never ranked, some lists are
    shorter than a cut-off, and with few levels of score there are ties, which trec_eval breaks by descending name.
    """
    qrels, run, ranked, judged = {}, {}, [], []
    for q in range(queries):
        names = [f"d{i:03}" for i in range(documents)]
        grades = {n: int(g) for n, g in zip(names, rng.integers(-1 if negative else 0, 4, documents), strict=True)}
        grades = {n: g for n, g in grades.items() if rng.random() < 0.3} or {names[0]: 1}
        retrieved = rng.permutation(names)[: rng.integers(1, documents + 1)].tolist()
        # trec_eval reads scores as float32: integers are what they were.
        scores = dict(zip(retrieved, rng.integers(0, levels, len(retrieved)).astype(float).tolist(), strict=True))
        qrels[f"q{q}"], run[f"q{q}"] = grades, scores
        ordered = sorted(retrieved, key=lambda n: (scores[n], n), reverse=True)
        ranked.append([grades.get(n, 0) for n in ordered] + [0] * (documents - len(ordered)))
        judged.append(list(grades.values()) + [0] * (documents - len(grades)))
    return qrels, run, np.array(ranked), np.array(judged)


def trec_eval(qrels, run, measures):
    """Values [Q] by measure, queries in order."""
    found = pytrec_eval.RelevanceEvaluator(qrels, measures).evaluate(run)
    return {name: np.array([found[query][name] for query in qrels]) for name in next(iter(found.values()))}


def cut(run, k):
    """The k best of every query."""
    best = {q: sorted(s, key=lambda n: (s[n], n), reverse=True)[:k] for q, s in run.items()}
    return {query: {name: run[query][name] for name in names} for query, names in best.items()}


@pytest.mark.parametrize("levels", [4, 10**6])
@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("documents", [1, 3, 8, 150])
def test_equal_to_trec_eval(documents, negative, levels):
    rng = np.random.default_rng(documents)
    qrels, run, ranked, judged = random_run(rng, queries=CASES, documents=documents, negative=negative, levels=levels)
    gains = {q: {name: 2 ** max(grade, 0) - 1 for name, grade in grades.items()} for q, grades in qrels.items()}
    whole = trec_eval(qrels, run, {"map", "recip_rank"})
    at = trec_eval(qrels, run, {f"{measure}.{','.join(map(str, CUTOFFS))}" for measure in TREC.values()})
    exponential = trec_eval(gains, run, {f"ndcg_cut.{','.join(map(str, CUTOFFS))}"})
    expected = {"map": whole["map"], "mrr": whole["recip_rank"]}
    for k in CUTOFFS:
        expected |= {f"{ours}@{k}": at[f"{theirs}_{k}"] for ours, theirs in TREC.items()}
        expected[f"ndcg_exp@{k}"] = exponential[f"ndcg_cut_{k}"]
        expected[f"mrr@{k}"] = trec_eval(qrels, cut(run, k), {"recip_rank"})["recip_rank"]
    assert {name.partition("@")[0] for name in expected} == set(METRICS)
    values = compute_metrics(list(expected), ranked, judged)
    for name, theirs in expected.items():
        np.testing.assert_allclose(values[name], theirs, rtol=0, atol=1e-6, err_msg=name)


def test_values_by_hand():
    ranked = np.array([[0, 3, 0, 1], [0, 0, 0, 2]])  # grades in rank order
    judged = np.array([[1, 3, 2], [2, 0, 0]])  # the first query's document of grade 2 is not ranked
    ideal = 3 + 2 / math.log2(3) + 1 / 2
    ideal_exp = 7 + 3 / math.log2(3) + 1 / 2
    expected = {
        "ndcg@3": [3 / math.log2(3) / ideal, 0],
        "ndcg_exp@3": [7 / math.log2(3) / ideal_exp, 0],
        "hit@1": [0, 0],
        "hit@2": [1, 0],
        "recall": [2 / 3, 1],
        "precision@2": [0.5, 0],
        "map": [(1 / 2 + 2 / 4) / 3, 1 / 4],
        "mrr": [1 / 2, 1 / 4],
        "mrr@3": [1 / 2, 0],
    }
    values = compute_metrics(list(expected), ranked, judged)
    for name, value in expected.items():
        np.testing.assert_allclose(values[name], value, atol=1e-12, err_msg=name)


def test_exponential_gain_equals_linear_for_binary_grades_only():
    rng = np.random.default_rng(0)
    ranked = rng.integers(0, 2, (20, 9))
    np.testing.assert_allclose(ndcg(ranked, ranked, 5, gain="exponential"), ndcg(ranked, ranked, 5), atol=1e-12)
    graded = 3 * ranked + 1
    assert not np.allclose(ndcg(graded, graded, 5, gain="exponential"), ndcg(graded, graded, 5))


def test_query_without_relevant_document_scores_zero():
    values = compute_metrics(list(METRICS), np.zeros((1, 4)), np.zeros((1, 2)))
    assert all(v.shape == (1,) and v[0] == 0 for v in values.values())


def test_ranking_of_nothing_scores_zero():
    values = compute_metrics([*METRICS, "mrr@5", "precision@5"], np.zeros((2, 0)), np.ones((2, 1)))
    assert all((v == [0, 0]).all() for v in values.values())


@pytest.mark.parametrize("name", ["ndgc@5", "ndcg@0", "ndcg@", "ndcg@-1", "ndcg@5.0", "", "ndcg 5"])
def test_unknown_metric_is_refused(name):
    with pytest.raises(ValueError, match="unknown metric"):
        parse_metric(name)


def test_bad_arrays_are_refused():
    with pytest.raises(ValueError, match="ranked must be"):
        ndcg(np.zeros(3), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="ranked must be"):
        ndcg(np.zeros((2, 3)), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="cut-off"):
        ndcg(np.zeros((1, 3)), np.zeros((1, 3)), 0)
    with pytest.raises(ValueError, match="gain"):
        ndcg(np.zeros((1, 3)), np.zeros((1, 3)), gain="quadratic")


def test_interval_agrees_with_normal_theory():
    values = np.random.default_rng(1).random(400)
    means = resampled_means(values[None], samples=4000, seed=0)[0]
    low, high = interval(means)
    error = values.std() / math.sqrt(400)
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    assert interval(means, 0.5)[1] - interval(means, 0.5)[0] == pytest.approx(2 * 0.6745 * error, rel=0.1)


def test_rows_of_one_call_are_paired():
    values = np.random.default_rng(2).random(50)
    means = resampled_means(np.stack([values, values + 0.25]), samples=200, seed=3)
    np.testing.assert_allclose(means[1] - means[0], 0.25, atol=1e-12)  # unpaired draws would spread by 0.06
    assert interval(means[1] - means[0]) == pytest.approx((0.25, 0.25), abs=1e-12)


def test_draws_depend_on_the_seed_only(monkeypatch):
    values = np.random.default_rng(4).random((3, 30))
    means = resampled_means(values, samples=100, seed=5)
    np.testing.assert_allclose(resampled_means(values[1:2], samples=100, seed=5)[0], means[1], atol=1e-12)
    assert not np.allclose(resampled_means(values, samples=100, seed=6), means)
    monkeypatch.setattr(bootstrap, "BLOCK", 30 * 7)  # seven resamples at a time
    np.testing.assert_allclose(resampled_means(values, samples=100, seed=5), means, atol=1e-12)


def test_bad_bootstrap_is_refused():
    with pytest.raises(ValueError, match="at least one query"):
        resampled_means(np.zeros((2, 0)))
    with pytest.raises(ValueError, match="samples"):
        resampled_means(np.zeros((1, 3)), samples=0)
    with pytest.raises(ValueError, match="level"):
        interval(np.zeros(3), 1.0)
