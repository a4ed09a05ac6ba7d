"""ViDoRe: every set of the table on a small folder in its layout, what is refused, and the command."""

import json
import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path

import huggingface_hub
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from configs import vidore_eval
from eval.benchmarks import item_text, vidore
from eval.benchmarks.vidore import INSTRUCTION, SETS, select
from eval.methods import run_benchmark
from eval.run import evaluate
from tests.vidore_folders import (
    CORPUS_IDS,
    EXPECTED,
    PAGES,
    V1,
    V3,
    Reader,
    images,
    words_of,
    write,
    write_set,
    write_v1,
    write_v2,
    write_v3,
)

ROOT = Path(__file__).parent.parent
TABLE = {entry.name: entry for entry in SETS}
ONE, TWO, THREE = (TABLE[name] for name in ("ViDoRe_tatdqa", "ViDoRe_esg_reports_v2", "ViDoRe_v3_hr"))
LATE = {  # by hand: sum of grade / log2(rank + 1) over that of the ideal order
    "v1": 1.0,
    "v2": (2 * (1 + 2 / np.log2(3)) / (2 + 1 / np.log2(3)) + 2) / 4,
    "v2-english": ((1 + 2 / np.log2(3)) / (2 + 1 / np.log2(3)) + 1) / 2,
    "v3": ((1 + 2 / np.log2(3) + 2 / 2) / (2 + 2 / np.log2(3) + 1 / 2) + 1 / np.log2(3) + 1) / 3,
}


def test_the_table():
    assert Counter(version for entry in SETS for version in entry.versions) == {
        **{"v1": 10, "v2": 4, "v2-english": 4, "v3": 8}
    }
    assert len(TABLE) == len(SETS) == 25
    assert {entry.metric for entry in SETS if "v3" in entry.versions} == {"ndcg@10"}
    assert {entry.metric for entry in SETS if "v3" not in entry.versions} == {"ndcg@5"}
    assert {entry.language for entry in SETS if entry.versions == ("v2-english",)} == {"english"}
    repositories = {entry.name: entry.repository for entry in SETS}
    assert repositories["ViDoRe_docvqa"] == "vidore/docvqa_test_subsampled_beir"
    assert repositories["ViDoRe_syntheticDocQA_energy"] == "vidore/syntheticDocQA_energy_test_beir"
    assert repositories["ViDoRe_economics_reports_v2_multilingual"] == "vidore/economics_reports_v2"
    assert repositories["ViDoRe_v3_finance_fr"] == "vidore/vidore_v3_finance_fr"


@pytest.mark.parametrize("entry", SETS, ids=lambda entry: entry.name)
def test_every_set_from_its_folder_to_its_figures(entry, tmp_path):
    folder = write_set(entry, tmp_path)
    assert vidore.find(entry, tmp_path) == folder
    benchmark = vidore.load(entry, folder)
    expected = EXPECTED[entry.versions[0]]
    assert benchmark.name == entry.name
    assert [item_text(query) for query in benchmark.queries] == expected["queries"]
    assert benchmark.query_ids == expected["query_ids"]
    assert benchmark.qrels == expected["qrels"]
    assert (benchmark.corpus_ids, benchmark.candidates) == (CORPUS_IDS, None)
    assert [" ".join(words_of(page["image"])) for page in benchmark.corpus] == list(PAGES.values())
    assert (benchmark.instruction, benchmark.document_instruction) == (INSTRUCTION, None)
    result = run_benchmark(Reader(), benchmark, metrics=(entry.metric,))
    assert result.mean("late", entry.metric) == pytest.approx(LATE[entry.versions[0]], abs=1e-12)
    assert ("bm25" in result.values) == ("v3" in entry.versions)


def test_the_instruction():
    assert INSTRUCTION == "Find a document image that matches the given query."


def test_texts_of_v3(tmp_path):
    assert vidore.load(THREE, write_v3(tmp_path)).texts == ["# amber\nbasalt cedar", "delta ember", "", "cedar | delta"]


def test_string_ids_and_large_strings(tmp_path):
    write_v1(tmp_path)
    write(
        tmp_path,
        "queries",
        {"query-id": pa.array(["0", "1", "2"]), "query": pa.array(V1["queries"], pa.large_string())},
    )
    assert vidore.load(ONE, tmp_path).query_ids == V1["query_ids"]


def test_a_page_is_read_when_asked_for(tmp_path, monkeypatch):
    write_v2(tmp_path)
    read = []
    original = pq.ParquetFile.read_row_group
    monkeypatch.setattr(pq.ParquetFile, "read_row_group", lambda f, g, **k: read.append(g) or original(f, g, **k))
    benchmark = vidore.load(TWO, tmp_path)
    assert read == []
    assert words_of(benchmark.corpus[2]["image"]) == ["fjord", "amber"]
    assert read == [2]


@pytest.mark.parametrize("scores", [(2, 1), (1, 2)])
def test_highest_grade_of_a_page_counts(scores, tmp_path):
    write_v2(tmp_path)
    write(tmp_path, "qrels", qrels(query=(0, 0, 1), page=(10, 10, 11), score=(*scores, 1)))
    assert vidore.load(TWO, tmp_path).qrels == {"0": {"10": 2}, "1": {"11": 1}}


def test_queries_without_a_relevant_page_are_left_out(tmp_path, caplog):
    write_v3(tmp_path)
    rows = {"query_id": [7, 9, 9], "corpus_id": [13, 12, 10], "score": [2, 0, -1]}
    write(tmp_path, "qrels", {name: pa.array(values) for name, values in rows.items()})
    with caplog.at_level(logging.WARNING):
        assert vidore.load(THREE, tmp_path).query_ids == ["7"]
    assert "2 of 3 queries have no relevant page" in caplog.text


def queries(**changes):
    return {"query-id": pa.array([0, 1, 2]), "query": pa.array(V1["queries"]), **changes}


def qrels(query=(0, 1, 2), page=(10, 11, 12), score=(1, 1, 1)):
    return {"query-id": pa.array(query), "corpus-id": pa.array(page), "score": pa.array(score)}


def corpus(**changes):
    return {"corpus-id": pa.array(list(PAGES)), "image": images(), **changes}


@pytest.mark.parametrize(
    ("part", "columns", "message"),
    [
        (
            "queries",
            queries(**{"query-id": pa.array([0, 1, 0])}),
            r"row 2 of '.*queries/test-0.*': column 'query-id' holds 0, as does row 0",
        ),
        (
            "queries",
            queries(**{"query-id": pa.array([0.0, 1.0, 2.0])}),
            "column 'query-id' is double, expected integer or string",
        ),
        ("queries", queries(**{"query-id": pa.array([0, None, 2])}), r"row 1 of '.*': column 'query-id' is null"),
        ("queries", queries(query=pa.array(["a", "b", None])), r"row 2 of '.*': column 'query' is null"),
        ("queries", queries(query=pa.array(["a", " ", "c"])), r"row 1 of '.*': column 'query' is empty"),
        ("queries", queries(query=pa.array([1, 2, 3])), "column 'query' is int64, expected string"),
        (
            "queries",
            {"query_id": pa.array([0, 1, 2]), "query": pa.array(V1["queries"])},
            "has no column 'query-id'; it has 'query_id', 'query'",
        ),
        ("corpus", corpus(**{"corpus-id": pa.array([10, 11, 11, 12])}), "column 'corpus-id' holds 11, as does row 1"),
        ("corpus", {"corpus-id": pa.array(list(PAGES))}, "no column 'image'.*hf download --repo-type dataset vidore/"),
        ("corpus", corpus(image=pa.array(["a", "b", "c", "d"])), "column 'image' is string, expected struct"),
        (
            "qrels",
            qrels(query=(0, 1, 5)),
            r"1 values of column 'query-id' are in no row of the queries \(row 2 of .*: 5\)",
        ),
        (
            "qrels",
            qrels(page=(10, 99, 98)),
            r"2 values of column 'corpus-id' are in no row of the corpus \(row 1 .*: 99; row 2 .*: 98\)",
        ),
        ("qrels", qrels(score=(1.0, 1.0, 1.0)), "column 'score' is double, expected integer"),
        ("qrels", qrels(score=(0, 0, 0)), "no query has a relevant page"),
    ],
)
def test_bad_files_are_refused(part, columns, message, tmp_path):
    write_v1(tmp_path)
    for path in (tmp_path / part).iterdir():
        path.unlink()
    write(tmp_path, part, columns)
    with pytest.raises(ValueError, match="set ViDoRe_tatdqa: .*" + message):
        vidore.load(ONE, tmp_path)


def test_page_without_bytes_is_named(tmp_path):
    write_v1(tmp_path)
    struct = images().type
    rows = [{"bytes": None, "path": "scan.png"}] * 4
    for path in (tmp_path / "corpus").iterdir():
        path.unlink()
    write(tmp_path, "corpus", {"corpus-id": pa.array(list(PAGES)), "image": pa.array(rows, struct)}, files=2)
    pages = vidore.load(ONE, tmp_path).corpus
    with pytest.raises(
        ValueError, match=r"row 1 of '.*test-00001-of-00002.parquet': column 'image' holds no bytes \(path 'scan.png'\)"
    ):
        pages[3]


def test_missing_files_say_what_to_download_and_where_it_goes(tmp_path):
    folder = tmp_path / "tatdqa_test_beir"
    write_v1(folder)
    command = f"hf download --repo-type dataset vidore/tatdqa_test_beir --local-dir {folder}"
    (folder / "corpus" / "test-00001-of-00002.parquet").rename(tmp_path / "kept.parquet")
    with pytest.raises(FileNotFoundError, match=f"lacks test-00001-of-00002.parquet: download the rest. `{command}`"):
        vidore.load(ONE, folder)
    (tmp_path / "kept.parquet").rename(folder / "corpus" / "test-00001-of-00003.parquet")
    with pytest.raises(ValueError, match="several versions"):
        vidore.load(ONE, folder)
    for path in (folder / "qrels").iterdir():
        path.rename(folder / "qrels" / "train-00000-of-00001.parquet")
    (folder / "corpus" / "test-00001-of-00003.parquet").rename(folder / "corpus" / "test-00001-of-00002.parquet")
    with pytest.raises(FileNotFoundError, match=f"no file test-.*; there are files of 'train'.*{command}"):
        vidore.load(ONE, folder)
    (folder / "queries" / "test-00000-of-00001.parquet").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=f"queries/test-0.* is no parquet file, or corrupt.*{command}"):
        vidore.load(ONE, folder)


def test_shards_of_different_columns_are_refused(tmp_path):
    write_v1(tmp_path)
    path = tmp_path / "corpus" / "test-00001-of-00002.parquet"
    pq.write_table(pq.read_table(path).rename_columns(["id", "image"]), path)
    with pytest.raises(ValueError, match=r"test-00001-of-00002.parquet' has other columns than"):
        vidore.load(ONE, tmp_path)


def test_language_that_no_query_has(tmp_path):
    write_v2(tmp_path)
    path = tmp_path / "queries" / "test-00000-of-00001.parquet"
    table = pq.read_table(path)
    french = table.set_column(2, "language", pa.array(["french", "french", "german", "french"]))
    pq.write_table(french, path)
    with pytest.raises(ValueError, match="no query of .* has the language 'english'; there are 'french', 'german'"):
        vidore.load(TWO, tmp_path)
    pq.write_table(table.drop_columns(["language"]), path)
    with pytest.raises(ValueError, match="no column 'language'"):
        vidore.load(TWO, tmp_path)


def test_select():
    assert len(select()) == 22 and len(select(versions=["v1"])) == 10
    assert [entry.name for entry in select(["v3_hr", "ViDoRe_docvqa"])] == ["ViDoRe_docvqa", "ViDoRe_v3_hr"]
    assert [entry.language for entry in select(["esg_reports_v2"])] == ["english"]
    with pytest.raises(ValueError, match="unknown sets 'docvqq': use some of ViDoRe_arxivqa"):
        select(["docvqq"])
    with pytest.raises(ValueError, match="unknown versions 'v4': use some of v1, v2, v2-english, v3"):
        select(versions=["v4"])
    with pytest.raises(ValueError, match="'ViDoRe_docvqa' are in none of the versions v3"):
        select(["docvqa", "v3_hr"], ["v3"])


def test_find_takes_the_owner_too(tmp_path):
    assert vidore.find(ONE, tmp_path) is None
    (tmp_path / "vidore" / "tatdqa_test_beir").mkdir(parents=True)
    assert vidore.find(ONE, tmp_path) == tmp_path / "vidore" / "tatdqa_test_beir"


def test_fetch_asks_the_hub_for_the_three_parts(tmp_path, monkeypatch):
    asked = []

    def download(repository, **options):
        asked.append((repository, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert vidore.fetch(ONE) == tmp_path
    patterns = ["queries/test-*.parquet", "corpus/test-*.parquet", "qrels/test-*.parquet"]
    options = {"repo_type": "dataset", "revision": None, "allow_patterns": patterns}
    assert asked == [("vidore/tatdqa_test_beir", options)]


def test_hub_out_of_reach(monkeypatch):
    def download(*_, **__):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    command = "hf download --repo-type dataset vidore/tatdqa_test_beir --local-dir FOLDER/tatdqa_test_beir"
    with pytest.raises(ConnectionError, match=f"set ViDoRe_tatdqa: .*`{command}`"):
        vidore.fetch(ONE)


def config(root, **changes):
    made = vidore_eval.get_config(str(root))
    made.bootstrap.samples = 50
    made.update(changes)
    return made


def test_sets_of_the_hub_are_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(vidore, "fetch", lambda entry: write_set(entry, tmp_path))
    (benchmark,) = vidore_eval.get_benchmarks(config("", sets="v3_hr"))
    assert benchmark.name == "ViDoRe_v3_hr" and benchmark.load().query_ids == V3["query_ids"]


def test_missing_sets_are_reported_as_missing(tmp_path):
    for name in ("ViDoRe_docvqa", "ViDoRe_tatdqa", "ViDoRe_v3_hr"):
        write_set(TABLE[name], tmp_path)
    settings = config(tmp_path, output=str(tmp_path / "out"))
    benchmarks, groups = vidore_eval.get_benchmarks(settings), vidore_eval.get_groups(settings)
    assert [benchmark.name for benchmark in benchmarks] == ["ViDoRe_docvqa", "ViDoRe_tatdqa", "ViDoRe_v3_hr"]
    summary, _ = evaluate(settings, benchmarks, Reader(), groups)
    first, second, third = summary.groups
    assert [group.name for group in summary.groups] == ["ViDoRe V1", "ViDoRe V2", "ViDoRe V3, public sets"]
    assert list(first.benchmarks.items()) == [("ViDoRe_docvqa", "ndcg@5"), ("ViDoRe_tatdqa", "ndcg@5")]
    assert len(first.missing) == 8 and "ViDoRe_arxivqa" in first.missing
    assert (second.benchmarks, len(second.missing), second.estimates) == ({}, 4, {})
    assert third.benchmarks == {"ViDoRe_v3_hr": "ndcg@10"} and len(third.missing) == 7
    assert first.estimates["late"].mean == pytest.approx(1)
    assert third.estimates["late"].mean == pytest.approx(LATE["v3"])
    assert "bm25" in third.estimates and "bm25" not in first.estimates
    text = (tmp_path / "out" / "results.md").read_text(encoding="utf-8")
    assert "### ViDoRe V1: 2 of 10 benchmarks" in text and "| average of 2 |" in text
    assert "- missing: ViDoRe_arxivqa, ViDoRe_infovqa" in text and "### ViDoRe V2: 0 of 4 benchmarks" in text
    assert summary.average is None


def test_sets_asked_for_by_name_must_be_there(tmp_path):
    write_set(ONE, tmp_path)
    with pytest.raises(
        FileNotFoundError, match=r"has no folder of ViDoRe_docvqa\. To get them:\nhf download .*docvqa_test"
    ):
        vidore_eval.get_benchmarks(config(tmp_path, sets="docvqa,tatdqa"))
    with pytest.raises(FileNotFoundError, match="has no folder of ViDoRe_v3_finance_en, "):
        vidore_eval.get_benchmarks(config(tmp_path, version="v3"))


def names(**changes):
    return [group.name for group in vidore_eval.get_groups(config("", **changes))]


def test_groups_of_named_sets_and_versions():
    assert names() == ["ViDoRe V1", "ViDoRe V2", "ViDoRe V3, public sets"]
    assert names(sets="v3_hr,docvqa") == ["ViDoRe V1", "ViDoRe V3, public sets"]
    assert names(sets="esg_reports_v2") == ["ViDoRe V2, English queries"]
    assert names(version="v2-english,v1") == ["ViDoRe V2, English queries", "ViDoRe V1"]
    (group,) = vidore_eval.get_groups(config("", version="v2"))
    assert list(group.metrics) == [
        *("ViDoRe_esg_reports_human_labeled_v2", "ViDoRe_biomedical_lectures_v2_multilingual"),
        *("ViDoRe_economics_reports_v2_multilingual", "ViDoRe_esg_reports_v2_multilingual"),
    ]


@pytest.mark.compiles
def test_published_figures_stand_beside_the_same_model(tmp_path):
    write_set(ONE, tmp_path)

    def published(**changes):
        settings = config(tmp_path, sets="tatdqa", output=str(tmp_path / "out"), **changes)
        groups = vidore_eval.get_groups(settings)
        (group,) = evaluate(settings, vidore_eval.get_benchmarks(settings), Reader(), groups)[0].groups
        return {(entry.model, entry.average) for entry in group.published}

    assert published(model="tiny") == set()
    assert published(model="vidore/colpali-v1.3") == {("colpali-v1.3", 0.7047), ("colpali-v1.3", 0.7078)}
    assert published(model="tiny", published="LamRA-Ret") == {("LamRA-Ret", 0.0788)}
    assert published(model="vidore/colpali-v1.3", max_queries=2) == set()


def test_primary_metric_must_be_measured(tmp_path):
    write_set(THREE, tmp_path)
    settings = config(tmp_path, version="v3", metrics=("ndcg@5",))
    encoder = Reader()
    with pytest.raises(ValueError, match="public sets is reported by ndcg@10"):
        evaluate(settings, vidore_eval.get_benchmarks(settings), encoder, vidore_eval.get_groups(settings))
    assert encoder.calls == []


@pytest.mark.slow
def test_command_with_a_checkpoint(tmp_path, checkpoint):
    write_set(TWO, tmp_path)
    write_set(THREE, tmp_path)
    options = {"path": tmp_path, "model": checkpoint, "version": "v2-english,v3", "output": tmp_path / "out"}
    command = [sys.executable, "-m", "eval.run", "--config=configs/vidore_eval.py", "--config.bootstrap.samples=50"]
    command += [f"--config.{key}={value}" for key, value in options.items()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [group["name"] for group in stored["groups"]] == ["ViDoRe V2, English queries", "ViDoRe V3, public sets"]
    assert {"pooled", "late", "hybrid", "bm25"} <= set(stored["groups"][1]["rows"])
    assert [entry["name"] for entry in stored["benchmarks"]] == ["ViDoRe_esg_reports_v2", "ViDoRe_v3_hr"]
    assert stored["benchmarks"][1]["query_ids"] == V3["query_ids"]
    assert "### ViDoRe V2, English queries: 1 of 4 benchmarks" in done.stdout
