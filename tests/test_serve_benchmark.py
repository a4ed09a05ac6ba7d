"""benchmarks.serve: a server in a process of its own under load, and its end."""

from __future__ import annotations

import pytest

from benchmarks import serve
from smart_jax.index import Hit
from tests.processes import environment


@pytest.mark.slow
def test_every_answer_is_that_of_a_search_alone(capsys, monkeypatch):
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    serve.main(["--model", "tiny", "--items", "40", "--requests", "120", "--concurrent", "60"])
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[1:]] == ["1", "60", "60, while a text is added and removed", "60, each alone"]
    assert [row[4:] for row in rows[1:]] == [["0", "0"]] * 4  # errors, and answers of others


@pytest.mark.parametrize(
    ("found", "is_same"),
    [
        ([("a", 1.0), ("b", 0.5), ("c", 0.2)], True),
        ([("a", 1.0), ("b", 0.5), ("d", 0.20001)], True),  # as good as the last
        ([("a", 1.0), ("d", 0.5), ("c", 0.2)], False),
        ([("a", 1.0), ("b", 0.5)], False),
        ([("a", 1.0), ("b", 0.6), ("c", 0.2)], False),
    ],
)
def test_what_is_the_same(found, is_same):
    alone = [Hit(name, score=score) for name, score in (("a", 1.0), ("b", 0.5), ("c", 0.2))]
    answer = serve.Answer(200, {"hits": [{"id": name, "score": score} for name, score in found]}, 0.1)
    assert serve.same(answer, alone) == is_same
    assert not serve.same(answer._replace(status=504), alone)
    new = [{"id": "n", "score": 0.7, "file": serve.NEW}]
    hits = [hit for hit in answer.body["hits"][:2] + new][: len(alone)]
    assert serve.same(answer._replace(body={"hits": hits}), alone) == ([score for _, score in found[:2]] == [1, 0.5])
