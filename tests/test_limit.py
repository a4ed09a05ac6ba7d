"""LIMIT: what is made, and what is read."""

import itertools
import json
import re
from collections import Counter

import pytest

from configs import limit as config_file
from eval.benchmarks import limit
from eval.methods import run_benchmark
from tests.fake_encoder import FakeEncoder


def likes(text):
    """Name and attributes of a document."""
    name, _, listed = text.removesuffix(".").partition(" likes ")
    return name, re.split(", | and ", listed)


def asked(query):
    return re.fullmatch(r"Who likes (\S+)\?", query["text"])[1]


@pytest.mark.parametrize(("documents", "others", "liked"), [(2, 0, 1), (5, 3, 10), (24, 40, 40), (9, 0, 3)])
def test_every_pair_of_documents_answers_one_query(documents, others, liked):
    benchmark = limit.make(documents, others=others, liked=liked, seed=documents)
    people = dict(likes(item["text"]) for item in benchmark.corpus)
    assert list(people) == list(benchmark.corpus_ids) and len(people) == documents + others
    assert benchmark.texts == [item["text"] for item in benchmark.corpus]
    relevant = set()
    for query, query_id in zip(benchmark.queries, benchmark.query_ids, strict=True):
        who = {name for name, own in people.items() if asked(query) in own}
        assert who == set(benchmark.qrels[query_id]) and set(benchmark.qrels[query_id].values()) == {1}
        relevant.add(frozenset(who))
    names = set().union(*relevant)
    assert len(names) == documents and relevant == {frozenset(p) for p in itertools.combinations(names, 2)}
    for own in people.values():
        assert len(set(own)) == len(own) and len(own) == max(liked, documents - 1)


def test_draws():
    first, again, other = limit.make(8, seed=1), limit.make(8, seed=1), limit.make(8, seed=2)
    assert first == again and first.texts != other.texts
    some = limit.make(24, queries=30, seed=1)
    assert len(some.queries) == 30 and len({asked(query) for query in some.queries}) == 30
    pairs = {frozenset(grades) for grades in some.qrels.values()}
    busiest = Counter(name for pair in pairs for name in pair).most_common(1)[0][1]
    assert len(pairs) == 30 and busiest < 10  # drawn among all; of the first 30, one person is in 23


def test_what_is_asked_for_stands_anywhere_in_a_document():
    benchmark = limit.make(8, liked=10, seed=3)
    wanted = {asked(query) for query in benchmark.queries}
    places = [[attribute in wanted for attribute in likes(text)[1]] for text in benchmark.texts]
    assert all(sum(place) == 7 for place in places)  # a pair with each other person
    assert not any(all(place[:7]) or all(place[-7:]) for place in places)


def test_own_words():
    made = limit.make(3, names=["Ann", "Bob", "Cy", "Di"], attributes=["tea", "soup", "figs"], liked=2, seed=0)
    assert {asked(query) for query in made.queries} == {"tea", "soup", "figs"}
    assert set(made.corpus_ids) < {"Ann", "Bob", "Cy", "Di"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(documents=1), "1 documents make 0 pairs"),
        (dict(documents=4, queries=7), "4 documents make 6 pairs: 1 to 6 of them can be asked for, not 7"),
        (dict(documents=4, queries=0), "not 0"),
        (dict(documents=4, others=-1), "others is -1"),
        (dict(documents=4, liked=0), "liked is 0"),
        (dict(documents=29), "380 attributes, 380 of them distinct, where 406"),
        (dict(documents=24, others=600), "600 names, 600 of them distinct, where 624"),
        (dict(documents=3, attributes=["a", "b", "a"]), "3 attributes, 2 of them distinct"),
        (dict(documents=3, liked=4, attributes=["a", "b", "c", "d"]), "lacks 2 of 4 attributes and 1 are left"),
    ],
)
def test_what_can_not_be_made(options, message):
    with pytest.raises(ValueError, match=message):
        limit.make(**options)


def test_late_interaction_sees_what_one_vector_can_not():
    """Words of fixed directions in 16 dimensions: a document's mean forgets its attributes, its tokens do not."""
    benchmark = limit.make(12, seed=0)
    benchmark = type(benchmark)(
        **vars(benchmark)
        | {
            "queries": [{"text": asked(query)} for query in benchmark.queries],
            "corpus": [{"text": " ".join(likes(text)[1])} for text in benchmark.texts],
        }
    )
    made = run_benchmark(FakeEncoder(), benchmark, metrics=limit.METRICS)
    assert made.mean("late", "recall@2") == 1 and made.mean("bm25", "recall@2") == 1
    assert made.mean("pooled", "recall@2") < 0.6 and made.mean("late", "recall@100") == 1


def write(folder):
    folder.mkdir(parents=True)
    people = [{"_id": n, "title": "", "text": f"{n} likes {x} and tea."} for n, x in (("Ann", "figs"), ("Bob", "soup"))]
    rows = {
        "corpus": people,
        "queries": [{"_id": "query_0", "text": "Who likes tea?"}],
        "qrels": [{"query-id": "query_0", "corpus-id": name, "score": 1} for name in ("Ann", "Bob")],
    }
    for name, own in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    return folder


def test_published_sets(tmp_path):
    write(tmp_path / "data" / "limit-small")
    for folder in (tmp_path / "data", tmp_path / "data" / "limit-small"):
        benchmark = limit.load(folder)
        assert (benchmark.name, benchmark.query_ids) == ("LIMIT-small", ["query_0"])
        assert benchmark.qrels == {"query_0": {"Ann": 1, "Bob": 1}}
        assert benchmark.corpus[0] == "Ann likes figs and tea."
    with pytest.raises(FileNotFoundError, match="neither queries"):
        limit.load(tmp_path / "data", "full")
    with pytest.raises(ValueError, match="variant is 'large': use one of small, full"):
        limit.load(tmp_path, "large")


def test_config(tmp_path):
    write(tmp_path / "limit")
    config = config_file.get_config(str(tmp_path))
    assert config.metrics == ("recall@2", "recall@10", "recall@20", "recall@100")
    config.variant = "full"
    assert [benchmark.name for benchmark in config_file.get_benchmarks(config)] == ["LIMIT-full"]
    config.update(path="", documents="4,6", others=2, liked=7)
    made = config_file.get_benchmarks(config)
    assert [(b.name, len(b.queries), len(b.corpus)) for b in made] == [
        ("LIMIT-made-4+2", 6, 6),
        ("LIMIT-made-6+2", 15, 8),
    ]
    assert all(len(likes(text)[1]) == 7 for text in made[0].texts)
