"""First stages of an index: scores against NumPy, what is kept beside the vectors through every change, verdicts."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest

import smart_jax
from smart_jax import Embeddings, Index
from smart_jax.index.centroid_scores import Table, centroid_scores
from smart_jax.index.centroids import assign, centroid_count, learn_centroids
from smart_jax.index.certifying import first_ranks
from smart_jax.index.first_stage import Weights, first_scores
from smart_jax.index.recalls import fewest_candidates, recall_at
from smart_jax.index.sign_scores import sign_scores, sign_words
from smart_jax.index.snapshot import PLACES
from smart_jax.index.stages import MARKED, STAGES
from tests.fake_encoder import FakeEncoder
from tests.indexes import check_marks, check_nothing_left_over, contents, random_embeddings

COUNT = 90


def late(similar: np.ndarray, queries: Embeddings, documents: Embeddings) -> np.ndarray:
    """Late scores of similarities of all tokens, in float64."""
    return np.array(
        [
            [similar[q, d].max(axis=1).mean() for d in map(slice, documents.offsets[:-1], documents.offsets[1:])]
            for q in map(slice, queries.offsets[:-1], queries.offsets[1:])
        ]
    )


@pytest.fixture
def index(tmp_path):
    with Index(tmp_path / "index", model=FakeEncoder()) as opened:
        opened.add_embeddings(
            random_embeddings(COUNT), [f"d{i}" for i in range(COUNT)], [{"n": i} for i in range(COUNT)]
        )
        yield opened


@pytest.fixture
def no_shortcuts(monkeypatch):
    monkeypatch.setattr("smart_jax.index.ranking.FEW_TOKENS", 0)
    monkeypatch.setattr("smart_jax.index.choosing.AFFORDABLE", 0)
    monkeypatch.setattr("smart_jax.index.first_stage.SCORES_AT_ONCE", 2 * COUNT)  # two queries


def store(index: Index):
    return index._engine.store


def test_centroids_are_directions_of_what_is_nearest_to_them():
    rng = np.random.default_rng(0)
    places = np.linalg.qr(rng.standard_normal((8, 8)))[0].astype(np.float32)
    tokens = rng.permutation(np.repeat(places, 30, axis=0) + rng.standard_normal((240, 8)).astype(np.float32) / 20)
    found = learn_centroids(tokens, 14)
    assert np.array_equal(found, learn_centroids(tokens, 14))
    assert not np.array_equal(found, learn_centroids(tokens, 14, seed=1))
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    products = tokens.astype(np.float64) @ found.T.astype(np.float64)
    nearest = assign(tokens, found)
    np.testing.assert_allclose(products[np.arange(240), nearest], products.max(axis=1), atol=1e-5)
    assert products.max(axis=1).min() > 0.8 and len(set(nearest.tolist())) == 14  # no place is missed, none is idle
    doubled = np.repeat(np.eye(3, dtype=np.float32), 9, axis=0)
    np.testing.assert_allclose(np.linalg.norm(learn_centroids(doubled, 7), axis=1), 1, atol=1e-6)
    assert centroid_count(0) == 1


@pytest.mark.parametrize("ragged", [True, False])
def test_centroid_scores_are_those_of_numpy(monkeypatch, ragged):
    monkeypatch.setattr("smart_jax.index.centroid_scores.BLOCK_BYTES", 300)
    monkeypatch.setattr("smart_jax.index.centroid_scores.QUERY_TOKENS", 12)
    queries, documents = random_embeddings(5, seed=1), random_embeddings(40, longest=30 if ragged else 1)
    centroids = random_embeddings(7, seed=2).tokens[:9]
    codes = assign(documents.tokens, centroids)
    products = queries.tokens @ centroids.T
    expected = late(products[:, codes], queries, documents)
    half_step = float((products.max(axis=1) - products.min(axis=1)).max()) / 510
    mask = np.arange(40) % 3 > 0
    found = centroid_scores(queries, centroids, codes, documents.offsets)
    np.testing.assert_allclose(found, expected, atol=half_step + 1e-6)
    assert np.abs(found - expected).max() > 0  # bytes were there
    masked = centroid_scores(queries, centroids, codes, documents.offsets, mask)
    np.testing.assert_array_equal(masked, np.where(mask, found, 0))
    np.testing.assert_allclose(Table.of(np.zeros((2, 4), np.float32), centroids).low, 0)


@pytest.mark.parametrize("width", [4, 32, 70])
def test_sign_scores_are_those_of_numpy(monkeypatch, width):
    monkeypatch.setattr("smart_jax.index.sign_scores.BLOCK_TOKENS", 64)
    monkeypatch.setattr("smart_jax.index.sign_scores.QUERY_TOKENS", 12)
    queries, documents = random_embeddings(5, seed=1, width=width), random_embeddings(40, longest=90, width=width)
    words = sign_words(documents.tokens)
    assert words.shape[1] == -(-width // 32)
    differ = ((queries.tokens > 0)[:, None] != (documents.tokens > 0)[None]).sum(axis=2)
    expected = late(np.cos(np.pi * differ / width), queries, documents)
    mask = np.arange(40) % 3 > 0
    np.testing.assert_allclose(sign_scores(queries, words, documents.offsets), expected, atol=1e-6)
    masked = sign_scores(queries, words, documents.offsets, mask)
    np.testing.assert_allclose(masked, np.where(mask, expected, 0), atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_marks_are_kept_right_through_every_change(tmp_path, dtype):
    batches = itertools.count()

    def add(index: Index, count: int, *names: str) -> None:
        batch = next(batches)
        index.add_embeddings(
            random_embeddings(count, batch), [*names, *(f"{batch}-{i}" for i in range(count - len(names)))]
        )

    with Index(tmp_path / "index", model="tiny", dtype=dtype) as index:
        with pytest.raises(ValueError, match="holds no items: add some"):
            index.keep_stages(["binary"])
        store(index)._segment_bytes = 200
        for _ in range(3):
            add(index, 20)
        index.keep_stages(["binary", "centroids"])
        number = store(index).stages()[0].number
        for change in (
            lambda: add(index, 20, "0-3", "1-4"),
            lambda: index.delete([f"0-{i}" for i in range(15)]),
            index.compact,
            lambda: add(index, 1),
            lambda: index.update(["1-1"], metadata={"a": 1}),
        ):
            change()
            if dtype == "float16":
                check_marks(index)
            check_nothing_left_over(index)
            with Index(index.folder) as reader:
                (hits,) = reader.search(random_embeddings(1), 3, candidates=99, first_stage="centroids")
                assert [h.id for h in hits] == [h.id for h in index.search(random_embeddings(1), 3)[0]]
        assert store(index).stages()[0].number == number and index.info().stages == ("centroids", "binary")
        add(index, 300)  # more than four times the tokens
        assert store(index).stages()[0].number > number
        check_nothing_left_over(index)
        index.keep_stages(["binary"])
        assert index.info().stages == ("binary",) and not list((index.folder / "stages").glob("centroids*"))
        index.delete(where={})
        index.compact()
        add(index, 9)
        assert len(index.search(random_embeddings(1), 9, candidates=9, first_stage="binary")[0]) == 9
        index.keep_stages([])
        check_nothing_left_over(index)
        assert not (index.folder / "stages").exists()


@pytest.mark.parametrize("stage", ["pooled", "centroids", "binary"])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 1.0), (0.5, -2.0)])
def test_a_search_scores_the_candidates_of_its_first_stage(index, no_shortcuts, stage, weights):
    index.keep_stages(["centroids", "binary"])
    index.delete([f"d{i}" for i in range(0, COUNT, 7)])
    queries, how = random_embeddings(3, seed=1), {"pooled_weight": weights[0], "late_weight": weights[1]}
    with store(index).reading() as (_, snapshot):
        allowed = [segment.alive for segment in snapshot.segments]
        scores, rows = first_scores(stage, queries, snapshot, allowed, Weights(*weights))
    exact = [{hit.id: hit for hit in hits} for hits in index.search(queries, COUNT, **how)]
    candidates = index.search(queries, 12, candidates=12, first_stage=stage, **how)
    found = index.search(queries, 5, candidates=12, first_stage=stage, **how)
    for values, all_hits, chosen, hits in zip(scores, exact, candidates, found, strict=True):
        places = np.searchsorted(rows, [(1 << PLACES) + int(hit.id[1:]) for hit in chosen])
        assert values[places].min() >= np.sort(values)[-12] and len({*places}) == 12
        expected = sorted((all_hits[hit.id] for hit in chosen), key=lambda hit: -hit.score)
        assert chosen == expected and hits == expected[:5]
    few = index.search(queries, 50, candidates=60, first_stage=stage, where={"n": {"lt": 10}}, **how)[0]
    assert {hit.id for hit in few} == {f"d{i}" for i in (1, 2, 3, 4, 5, 6, 8, 9)}


def test_recall_is_counted_and_drawn_as_in_numpy(index, no_shortcuts):
    index.keep_stages(["centroids", "binary"])
    queries = random_embeddings(30, seed=1)
    ids = [[hit.id for hit in hits] for hits in index.search(queries, 6)]
    best = np.array([[(1 << PLACES) + int(name[1:]) for name in names] for names in ids])
    with store(index).reading() as (_, snapshot):
        ranks = {name: first_ranks(name, queries, snapshot, [None], Weights(), best) for name in ("pooled", *MARKED)}
    for name, found in ranks.items():
        for K in (6, 20, 50):
            chosen = [{hit.id for hit in hits} for hits in index.search(queries, K, candidates=K, first_stage=name)]
            shares = np.array([len(set(names) & some) / 6 for names, some in zip(ids, chosen, strict=True)])
            recall = recall_at(found, K)
            assert recall.mean == pytest.approx(shares.mean()) and recall == recall_at(found, K)
            drawn = np.random.default_rng(5).choice(shares, (4000, 30)).mean(axis=1)
            np.testing.assert_allclose(recall[2:], np.quantile(drawn, [0.025, 0.975]), atol=0.02)
    enough = fewest_candidates(ranks["centroids"], 0.8, COUNT)
    assert enough.low >= 0.8 > recall_at(ranks["centroids"], enough.candidates - 1).low
    assert fewest_candidates(ranks["pooled"], 0.99, COUNT // 4) is None


def test_certify_chooses_what_holds_and_says_so(index, no_shortcuts, monkeypatch):
    cost = {"exact": 9.0, "pooled": 1.0, "centroids": 2.0, "binary": 3.0}
    monkeypatch.setattr(
        "smart_jax.index.certifying.milliseconds", lambda _, run: cost[run.args[0].name if run.args[0] else "exact"]
    )
    queries = random_embeddings(40, seed=1)
    weights = {"pooled_weight": 0.1, "late_weight": 1.0}
    report = index.certify(queries, k=4, recall=0.6, **weights)
    by_name = {each.name: each for each in report.results}
    held = [name for name in by_name if by_name[name].candidates is not None]
    assert by_name["pooled"].candidates is None and held  # pooled vectors are random here: nothing follows from them
    assert (
        report.certified and report.stage == held[0] and report.candidates == by_name[held[0]].candidates <= COUNT // 4
    )
    assert index.info().stages == (held[0],) and index.info().verdict == report
    assert index.info().first_stage == "certified" and report == report.from_dict(report.to_dict())
    assert repr(report).startswith(f"Certificate(certified: {held[0]}, ") and "\n" not in repr(report)
    assert "| pooled |" in str(report) and "refused" in str(report)
    again = index.certify(queries, k=4, recall=0.6, **weights)
    assert again.results == report.results
    check_nothing_left_over(index)
    auto, named = (
        index.search(queries, 4, candidates=K, first_stage=name, **weights)
        for K, name in (("auto", None), (report.candidates, report.stage))
    )
    assert [[h.id for h in hits] for hits in auto] == [[h.id for h in hits] for hits in named]
    exact = index.search(queries, 4, **weights)
    shared = [len({h.id for h in a} & {h.id for h in b}) / 4 for a, b in zip(auto, exact, strict=True)]
    assert 0.6 <= np.mean(shared) < 1
    with pytest.warns(smart_jax.index.Provisional, match="does not fit this search"):
        index.search(queries, 5, candidates="auto", **weights)
    with pytest.warns(smart_jax.index.Provisional, match="does not fit this search"):
        index.search(queries, 4, candidates="auto")
    index.add_embeddings(random_embeddings(60, seed=3), [f"new{i}" for i in range(60)])
    assert index.info().first_stage == "stale"
    with pytest.warns(smart_jax.index.Provisional, match="certify"):
        index.search(queries, 4, candidates="auto", **weights)
    index.keep_stages([])
    with pytest.warns(smart_jax.index.Provisional, match="1,000 candidates by pooled.*keeps nothing for that stage"):
        index.search(queries, 4, candidates="auto", **weights)
    strict = index.certify(queries, k=4, recall=0.999, first_stages=["pooled"], **weights)
    assert strict.stage == "exact" and strict.candidates is None and index.info().stages == ()
    assert index.search(queries, 4, candidates="auto", **weights)[0] == index.search(queries, 4, **weights)[0]


def test_auto_scores_all_items_where_that_is_affordable(index):
    assert index.search(random_embeddings(1), candidates="auto") == index.search(random_embeddings(1))


def test_auto_without_a_verdict_is_provisional(index, no_shortcuts, monkeypatch):
    monkeypatch.setattr("smart_jax.index.choosing.PROVISIONAL", 25)
    with pytest.warns(smart_jax.index.Provisional, match="25 candidates by pooled: nothing is certified"):
        found = index.search(random_embeddings(1), 1, candidates="auto")
    assert found == index.search(random_embeddings(1), 1, candidates=25)


def test_spans_of_texts_and_few_queries_certify_nothing(tmp_path):
    texts = ["oil price pump bearing", "revenue by region", f"{tmp_path}", " "]  # the third names a folder
    with Index(tmp_path / "index", model=FakeEncoder()) as index:
        with pytest.raises(ValueError, match="no texts to draw queries from"):
            index.certify()
        index.add_embeddings(random_embeddings(1, pooled=16, width=16), ["bare"])
        with pytest.raises(ValueError, match="no texts to draw queries from"):
            index.certify()
        index.add([{"text": text} for text in texts if text.strip()])
        report = index.certify()
        assert (report.source, report.queries, report.certified) == ("spans", 3, False)
        assert "provisional" in repr(report) and "Provisional: certify with" in str(report)
        assert index.certify("oil").queries == 1
        assert not index.certify(["oil", "grease"]).certified and index.info().first_stage == "provisional"
        assert [index.certify(["oil"] * count).certified for count in (19, 20)] == [False, True]


def test_what_cannot_be_certified_or_searched_is_refused(index, unchecked):
    query = random_embeddings(1)
    for call, message in (
        (lambda: index.certify(query, recall=1.0), "between 0 and 1"),
        (lambda: index.certify(query, late_weight=0), "another than 0"),
        (lambda: index.certify(query, k=0), "at least 1"),
        (lambda: index.certify([]), "there are no queries"),
        (lambda: index.certify(query, first_stages=["hnsw"]), "known are pooled, centroids, binary"),
        (lambda: index.certify(random_embeddings(2, width=5)), "encode it with the model"),
        (lambda: index.keep_stages(["pooled"]), "those that are kept are centroids, binary"),
        (lambda: index.search(query, candidates=9, first_stage="binary"), r"keeps nothing for 'binary'.*keep_stages"),
        (lambda: index.search(query, first_stage="binary"), "candidates is None: give a number"),
        (lambda: index.search(query, candidates=0), "at least 1, 'auto' or None"),
        (lambda: index.search(query, candidates="most"), "at least 1, 'auto' or None"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_readers_hold_while_stages_are_made_anew(index):
    done, found = threading.Event(), []
    query = random_embeddings(1, seed=1)
    index.keep_stages(["centroids", "binary"])
    names = [hit.id for hit in index.search(query, 5)[0]]

    def read() -> None:
        with Index(index.folder) as reader:
            while not done.is_set():
                for stage in ("centroids", "binary"):
                    found.append([hit.id for hit in reader.search(query, 5, candidates=COUNT, first_stage=stage)[0]])

    readers = [threading.Thread(target=read) for _ in range(2)]
    for thread in readers:
        thread.start()
    for _ in range(12):
        with store(index).writing() as writer:
            with store(index).reading() as (_, snapshot):
                pass
            made = [writer._stages._made(name, snapshot, snapshot.tokens) for name in MARKED]
            with store(index).catalog.writing():
                store(index).catalog.set("stages", [stage.to_json() for stage in made])
            writer._stages.trim()
    done.set()
    for thread in readers:
        thread.join()
    assert len(found) > 4 and all(each == names for each in found)
    check_nothing_left_over(index)


@pytest.mark.parametrize(
    ("stage", "file", "values", "message"),
    [
        ("binary", "stages/binary-000002.000001", np.uint32([2**32 - 1] * 9), "000001' is damaged .*is out of bounds"),
        ("centroids", "stages/centroids-000001.000001", np.uint16([65535]), "000001' is damaged .*index 65535 is out"),
        ("centroids", "stages/centroids-000001.vectors", np.float32([np.nan]), "centroids that are not of length 1"),
        ("binary", "stages/centroids-000001.vectors", np.float32([-1e38]), "centroids that are not of length 1"),
        *((stage, "segments/000001.pooled", np.float32([np.nan]), "item 0 of segment 1.*NaN") for stage in STAGES),
    ],
)
def test_marks_centroids_and_vectors_that_are_damaged(index, no_shortcuts, stage, file, values, message):
    index.keep_stages(MARKED)
    with (index.folder / file).open("r+b") as opened:
        opened.write(values.tobytes())
    with pytest.raises(ValueError, match=message), Index(index.folder, model=FakeEncoder()) as again:
        again.search(random_embeddings(1), candidates=10, first_stage=stage)


def test_a_write_of_marks_that_was_cut_off_is_cleared_away(index):
    index.keep_stages(["binary"])
    before, folder = contents(index), index.folder / "stages"
    (path,) = folder.iterdir()
    path.write_bytes(path.read_bytes() + b"half")
    (folder / "centroids-000009.000001").write_bytes(b"half")
    index.delete(["nowhere"])
    check_nothing_left_over(index)
    assert contents(index) == before
    path.write_bytes(path.read_bytes()[:-1])
    with Index(index.folder) as reader, pytest.raises(ValueError, match="the index is damaged"):
        reader.search(random_embeddings(1))
