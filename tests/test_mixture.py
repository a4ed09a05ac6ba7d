"""Mixtures: shares, one source a batch, order, resuming, on one process and several."""

import json
from itertools import chain

import pytest

from tests.test_data import examples, pair, write
from train.data import Example, Examples, Mixture, convert, open_examples, parse_names


def source(name, count):
    return [Example(f"{name}{e.id}", e.query, e.document) for e in examples(count)]


def mixture(weights, sizes=(40, 23, 9), batch=4, **options):
    parts = {n: Examples(source(n, size), batch, seed=3, **options) for n, size in zip("abc", sizes, strict=False)}
    return Mixture(parts, dict(zip("abc", weights, strict=True)))


def take(batches, count):
    return [[example.id for example in next(batches)] for _ in range(count)]


def names(batches):
    return ["".join(sorted({i[0] for i in batch})) for batch in batches]


@pytest.mark.parametrize("weights", [(5, 3, 2), (1, 1, 1), (0.7, 0.2, 0.1), (100, 1, 1)])
def test_each_batch_is_of_one_source_and_shares_are_kept(weights):
    drawn = names(take(mixture(weights), 200))
    assert set(drawn) <= set("abc")  # one letter each: no batch is mixed
    for t in range(1, 201):
        for name, weight in zip("abc", weights, strict=True):
            assert abs(drawn[:t].count(name) - t * weight / sum(weights)) < 1.5


def test_each_source_goes_through_its_own_epochs():
    drawn = take(mixture((1, 1, 1)), 60)
    own = [batch for batch in drawn if batch[0][0] == "b"]
    assert own == take(iter(Examples(source("b", 23), 4, seed=3)), len(own))
    assert mixture((1, 2, 3)).batches_per_epoch == 10 + 5 + 2


def test_resumes_also_on_another_number_of_processes():
    whole = take(mixture((3, 2, 1)), 30)
    first = mixture((3, 2, 1))
    assert take(first, 13) == whole[:13]
    state = json.loads(json.dumps(first.get_state()))
    for count in (1, 2, 4):
        parts = []
        for index in range(count):
            again = mixture((3, 2, 1), process_index=index, process_count=count)
            again.set_state(state)
            parts.append(take(again, 17))
        joined = [sorted(chain(*each)) for each in zip(*parts, strict=True)]
        assert joined == [sorted(batch) for batch in whole[13:]]
    with pytest.raises(ValueError, match="is of the mixture"):
        mixture((3, 2, 2)).set_state(state)
    with pytest.raises(ValueError, match="batch_size"):
        mixture((3, 2, 1), batch=2).set_state(state)


def test_names():
    assert parse_names("pages") == {"pages": None}
    assert parse_names(" pages = 2, charts=0.5 ,x") == {"pages": 2.0, "charts": 0.5, "x": None}
    for wrong in ("", "a,,b", "a,a", "a=0", "a=-1", "a=inf", "a=1e", "a=b", "a=1=2"):
        with pytest.raises(ValueError, match=r"data\.name"):
            parse_names(wrong)


def test_opens_data_sets(tmp_path):
    for name, count in (("a", 30), ("b", 12)):
        write(tmp_path / name / "train-00000-of-00001.parquet", [pair(i, source=name) for i in range(count)])
        convert(tmp_path / name, name, tmp_path / "data", validation_ratio=0)

    def sources(names, count):
        batches = open_examples(tmp_path / "data", names, "train", 3)
        return [{example.source for example in next(batches)} for _ in range(count)]

    assert sources("a", 5) == [{"a"}] * 5
    even = sources("a=1,b=1", 20)
    assert even.count({"a"}) == even.count({"b"}) == 10
    by_size = sources("a,b", 14)  # 10 and 4 batches
    assert (by_size.count({"a"}), by_size.count({"b"})) == (10, 4)
    with pytest.raises(ValueError, match="b has no weight"):
        sources("a=1,b", 1)
    with pytest.raises(FileNotFoundError, match="no data set 'c'"):
        sources("a,c", 1)
    with pytest.raises(ValueError, match="data set 'b': batch_size=20 exceeds the 12"):
        open_examples(tmp_path / "data", "a,b", "train", 20)
