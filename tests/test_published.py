"""Published figures: the file that is here, and what is refused."""

import datetime

import pytest

from eval.benchmarks import vidore
from eval.benchmarks.mmeb_v2 import table
from eval.reports import published


def test_every_entry_is_of_a_known_benchmark_or_group():
    entries = published.load()
    assert len({(entry.model, entry.source) for entry in entries}) == len(entries)
    metrics = {entry.name: entry.metric for entry in (*vidore.SETS, *table.TASKS)}
    for entry in entries:
        assert entry.source and isinstance(entry.date, datetime.date)
        assert entry.figures or entry.averages or entry.claims
        assert set(entry.claims) <= set(table.groups())
        for metric, values in entry.figures.items():
            assert {name: metrics.get(name) for name in values} == dict.fromkeys(values, metric)
        for values in entry.averages.values():
            assert set(values) <= {*vidore.VERSIONS.values(), *table.groups()}


def test_some_figures():
    entries = {entry.model: entry for entry in reversed(published.load())}  # of each model the first
    assert entries["colpali-v1.3"].figures["ndcg@5"]["ViDoRe_docvqa"] == 0.592
    averages = entries["Qwen3-VL-Embedding-2B"].averages
    assert (averages["ndcg@5"]["ViDoRe V1"], averages["ndcg@5"]["ViDoRe V2"]) == (0.844, 0.653)
    assert averages["ndcg@5"]["MMEB-V2, visual documents"] == 0.792
    assert averages["hit@1, ndcg@5"] == {"MMEB-V2": 0.732}
    eager = entries["eager-embed-v1"].figures
    assert eager["ndcg@5"]["ViDoRe_esg_reports_human_labeled_v2"] == 0.5525
    # french, spanish, english, german: .51021, .53645, .60918, .5607
    assert eager["ndcg@5"]["ViDoRe_economics_reports_v2_multilingual"] == 0.5541
    assert eager["ndcg@5"]["ViDoRe_economics_reports_v2"] == 0.6092


def test_choose():
    entries = published.load()
    assert published.choose(entries, "all", "tiny") == entries
    chosen = {e.model for e in published.choose(entries, "", "Qwen/qwen3-vl-embedding-8b")}
    assert chosen == {"Qwen3-VL-Embedding-8B", "SMART"}
    assert [e.model for e in published.choose(entries, "", "tiny")] == ["SMART"]  # what it states of any model
    chosen = [(e.model, e.date.year) for e in published.choose(entries, "lamra-ret, colpali-v1.3", "")]
    assert sorted(chosen) == [("LamRA-Ret", 2025), ("colpali-v1.3", 2025), ("colpali-v1.3", 2025)]
    with pytest.raises(ValueError, match="no published figures of 'colpali': use some of gme-Qwen2-VL-2B-Instruct, "):
        published.choose(entries, "colpali", "tiny")


ENTRY = """[[published]]
model = "m"
source = "s"
date = 2026-01-02
[published.figures.mrr]
"""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[published]", "not valid TOML"),
        (ENTRY.replace("source", "sauce"), r"entry 1 has the keys \['date', 'figures', 'model', 'sauce'\]: it needs"),
        (ENTRY + "a = 0.5\n" + ENTRY + "a = 50.5", r"entry 2 \(m\), figures, mrr, a: 50.5 is no number in \[0, 1\]"),
        (ENTRY + "a = true", "True is no number"),
        (ENTRY + "a = 1\n[published.claims]\nb = 2.54", r"entry 1 \(m\), claims, b: 2.54 is no text"),
    ],
)
def test_bad_files_are_refused(text, message, tmp_path):
    path = tmp_path / "figures.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        published.load(path)
