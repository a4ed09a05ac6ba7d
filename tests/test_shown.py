"""Tests of what `print` and a notebook show of the library's objects: a line, and a table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flax import nnx

import smart_jax
from eval.methods import Result
from eval.reports import summarise
from smart_jax import Adapter, AdapterConfig, Embeddings, States
from smart_jax.index.hits import Hit
from smart_jax.index.index_info import IndexInfo
from smart_jax.index.report import AddReport
from smart_jax.notebook import facts_table
from smart_jax.retrieval.reductions import PCA, BinaryEmbeddings

EMBEDDED = Embeddings(np.eye(2, 8, dtype=np.float32), np.eye(3, 8, dtype=np.float32), [0, 1, 3])
ADAPTER = Adapter(AdapterConfig(hidden_size=8, dim=4, layers=(-2, -1)), rngs=nnx.Rngs(0))
STATES = States(
    *(np.eye(1, 4, dtype=np.float32), np.ones((2, 1, 4), np.float32), np.ones((2, 1), np.float32)),
    *(np.array([5, 6], np.int32), np.array([0, 2])),
    grids=np.zeros((0, 4), np.int32),
    visual_ids=(),
    layers=(-1,),
    depth=3,
)


@pytest.mark.parametrize(
    ("shown", "line", "facts"),
    [
        (EMBEDDED, "2 items, 3 tokens", "<th>tokens of an item</th><td>1 to 2, median 1.5</td>"),
        (STATES, "layers (-1,) of 3 blocks", "<th>tokens</th><td>2</td>"),
        (PCA.fit(EMBEDDED, 2), "PCA(width 8 to 2, 66.7% of the sample kept)", "66.7% of the sample"),
        (BinaryEmbeddings.of(EMBEDDED), "2 items, 3 tokens of 8 bits, pooled width 8", "<td>3 of 8 bits</td>"),
        (ADAPTER, "Adapter(linear, width 8 to 4, of layers -2, -1)", "<th>parameters</th><td>56</td>"),
        (smart_jax.to_device(EMBEDDED), "2 items in groups of", "<th>devices</th><td>1</td>"),
        (AddReport(3, 1, failed={"a<b.pdf": "bad"}), "3 items added, 1 unchanged", "<th>a&lt;b.pdf</th><td>bad</td>"),
        (IndexInfo(Path("x"), 2, 10, 1, 0, 0, 1, bytes=2048), "items=2", "<th>size</th><td>2 KiB</td>"),
        (Hit("a#3", file="a", page=3, score=1.25), "score=1.25", "<th>score</th><td>1.2500</td>"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else "",
)
def test_a_line_and_a_table(shown, line, facts):
    assert line in repr(shown) and "\n" not in repr(shown)
    table = shown._repr_html_()
    assert facts in table and table.startswith(f"<table><caption>{type(shown).__name__}</caption>")


def test_an_encoder():
    model = smart_jax.load("tiny", adapter=Adapter(AdapterConfig(hidden_size=192, dim=64), rngs=nnx.Rngs(0)))
    table = model._repr_html_()
    assert "<td>tiny (qwen3_vl)</td>" in table and "<td>text, image</td>" in table
    assert "<th>adapter</th><td>Adapter(linear, width 192 to 64, of layer -1)</td>" in table


def test_an_index(tmp_path):
    with smart_jax.Index(tmp_path / "index", model="tiny") as index:
        assert "<th>items</th><td>0</td>" in index._repr_html_() and "<td>tiny</td>" in index._repr_html_()


def test_a_report():
    values = {"late": {"hit@1": np.array([1.0, 1.0])}}
    report = summarise([Result("pages", ["q0", "q1"], documents=9, local=False, values=values, seconds={})], samples=9)
    assert repr(report) == "Report(1 benchmarks by late, 0 failed, metrics hit@1)"
    assert "| late | 1.000 [1.000, 1.000]" in report._repr_markdown_()


def test_a_table_is_escaped():
    assert facts_table("<b>", {"a": "<i>", "left out": None}) == (
        "<table><caption>&lt;b&gt;</caption><tr><th>a</th><td>&lt;i&gt;</td></tr></table>"
    )
