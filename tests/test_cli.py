"""The program `smart-jax`: what it prints is what the library says, and errors are messages with an exit code."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
import typer
from PIL import Image
from typer.main import get_command
from typer.testing import CliRunner

import smart_jax
from benchmarks.manuals import Hits, read_questions
from smart_jax import Index
from smart_jax.cli.conditions import parse_conditions, parse_metadata
from smart_jax.cli.program import program
from tests.small_pdf import write_pdf

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {"a": "Revenue by region", "b": "A list of errors", "c": "The weather in Lisbon"}
HIT = {"id", "file", "path", "page", "metadata", "score", "pooled", "late"}


load_once = functools.cache(smart_jax.load)  # the same model for all commands: they load it themselves


@pytest.fixture(autouse=True)
def _loaded_once(monkeypatch):
    monkeypatch.setattr("smart_jax.index.index_model.load", load_once)


def run(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(program, [str(each) for each in arguments])
    assert result.exit_code == code, result.output
    assert code == 0 or result.stderr, "says why"
    assert "Traceback" not in result.output
    return result.stdout if code == 0 else " ".join(result.stderr.replace("│", " ").split())  # errors may be in a box


def run_json(*arguments: object) -> dict:
    return json.loads(run(*arguments, "--json"))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An index by the command line: three texts, a page of a PDF and a picture; read only."""
    folder = tmp_path_factory.mktemp("cli")
    write_pdf(folder / "old.pdf", [[(20, 300, 24, "Errors by code")]], [])
    Image.fromarray(np.full((64, 64, 3), 255, np.uint8)).save(folder / "white.png")
    (folder / "broken.pdf").write_bytes(b"%PDF-1.4 no more")
    lines = [{"id": name, "text": text, "metadata": {"year": 2020 + i}} for i, (name, text) in enumerate(TEXTS.items())]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, lines)))
    files = [folder / name for name in ("old.pdf", "white.png", "broken.pdf")]
    command = ["index", "add", folder / "index", *files, "--items", folder / "items.jsonl", "--model", "tiny"]
    result = CliRunner().invoke(program, [*map(str, command), "--metadata", "team=sales", "--json"])
    assert result.exit_code == 1, result.output  # for the broken file
    assert result.stdout, result.output
    report = json.loads(result.stdout)
    assert (report["added"], report["items"], list(report["failed"])) == (5, 5, [str(files[2])])
    return folder


@pytest.fixture
def index(made, tmp_path):
    """A copy that may be changed."""
    return shutil.copytree(made / "index", tmp_path / "index")


def library_hits(folder: Path, query: str, k: int, **how: object) -> list[tuple]:
    with Index(folder) as opened:
        return [(hit.id, hit.page, dict(hit.metadata), hit.score) for hit in opened.search(query, k, **how)]


@pytest.mark.compiles
def test_what_is_added_is_found_as_the_library_finds_it(made):
    folder = made / "index"
    (result,) = run_json("index", "search", folder, "errors by code", "-k", 3)["results"]
    found = [(hit["id"], hit["page"], hit["metadata"], hit["score"]) for hit in result["hits"]]
    assert found == library_hits(folder, "errors by code", 3)
    assert set(result) == {"query", "hits"} and all(set(hit) == HIT for hit in result["hits"])
    assert {hit["metadata"]["team"] for hit in result["hits"]} == {"sales"}
    where = ("--where", "year>=2021", "--where", '{"id": ["a", "b"]}')
    (result,) = run_json("index", "search", folder, "errors", *where, "--late-weight", 0)["results"]
    found = [(hit["id"], hit["page"], hit["metadata"], hit["score"]) for hit in result["hits"]]
    assert found == library_hits(folder, "errors", 10, where={"year": {"gte": 2021}, "id": "b"}, late_weight=0.0)
    (made / "queries.txt").write_text("errors\n\n  weather  \n")
    results = run_json("index", "search", folder, "--queries", made / "queries.txt", "-k", 1)["results"]
    assert [each["query"] for each in results] == ["errors", "weather"]
    table = run("index", "search", folder, "errors", "-k", 2)
    assert "score" in table and library_hits(folder, "errors", 1)[0][0] in table
    assert (
        "nothing was found"
        in CliRunner().invoke(program, ["index", "search", str(folder), "x", "--where", "year=1"]).stdout
    )


@pytest.mark.compiles
def test_adding_again_passes_over_what_is_there(made, index):
    report = run_json(
        "index", "add", index, made / "old.pdf", "--text", TEXTS["a"], "--id", "a", "--metadata", "team=sales"
    )
    assert (report["added"], report["items"]) == (0, 5)
    assert "0 added" in run("index", "add", index, made / "old.pdf", "--quiet", "--metadata", "team=sales")
    message = run("index", "add", index, made / "broken.pdf", made / "missing.pdf", code=1)
    assert "missing.pdf" in message


@pytest.mark.compiles
def test_evidence_is_that_of_the_hit(made, tmp_path):
    folder, out = made / "index", [tmp_path / f"hit.{ending}" for ending in ("png", "html", "json")]
    files = [part for path in out for part in ("--out", path)]
    told = run_json("index", "explain", folder, "errors", "--id", "b", *files)
    with Index(folder) as opened:
        (hit,) = opened.search("errors", 1, where={"id": "b"})
        expected = json.loads(json.dumps(hit.explain().to_dict()))
    assert told["evidence"] == expected and told["hit"]["id"] == "b"
    assert json.loads(out[2].read_text()) == expected
    with Image.open(out[0]) as picture:
        assert picture.width == 960
    assert out[1].read_text().startswith("<!DOCTYPE html>")
    table = run("index", "explain", folder, "errors", "--rank", 2)
    assert "share" in table and "best match" in table
    assert "has no item 'z'" in run("index", "explain", folder, "errors", "--id", "z", code=1)
    assert "ends in none of .png" in run("index", "explain", folder, "errors", "--out", "hit.gif", code=2)


@pytest.mark.compiles
def test_changes_are_made(index):
    ids = [each["id"] for each in run_json("index", "items", index, "--where", "year>=2021")["items"]]
    assert ids == ["b", "c"]
    assert run_json("index", "update", index, "b", "--set", "team=support", "--unset", "year") == {"updated": 1}
    (item,) = run_json("index", "items", index, "--where", "team=support")["items"]
    assert item["metadata"] == {"team": "support"}
    assert run_json("index", "delete", index, "--where", "team=support", "--dry-run") == {"would_delete": ["b"]}
    assert run_json("index", "delete", index, "--where", "team=support") == {"deleted": 1}
    assert CliRunner().invoke(program, ["index", "delete", str(index), "b"]).exit_code == 1  # nothing is done
    before = run_json("index", "info", index)
    assert (before["items"], before["removed"]) == (4, 1)
    sizes = run_json("index", "compact", index)
    after = run_json("index", "info", index)
    assert after["removed"] == 0 and sizes == {"bytes_before": before["bytes"], "bytes": after["bytes"]}
    assert "items" in run("index", "info", index)


@pytest.mark.compiles
def test_first_stages_are_certified(index, tmp_path):
    (tmp_path / "queries.txt").write_text("errors\nweather\n")
    command = ("index", "certify", index, "--queries", tmp_path / "queries.txt", "-k", 2)
    verdict = run_json(*command, "--first-stage", "pooled")
    assert (verdict["queries"], verdict["k"], [each["name"] for each in verdict["results"]]) == (2, 2, ["pooled"])
    assert run_json("index", "info", index)["verdict"] == verdict
    assert verdict["stage"] in run(*command, "--first-stage", "pooled")
    (result,) = run_json("index", "search", index, "errors", "-k", 1, "--candidates", 1)["results"]
    assert [hit["id"] for hit in result["hits"]] == [library_hits(index, "errors", 1, candidates=1)[0][0]]
    assert "number of at least 1, or auto" in run("index", "search", index, "errors", "--candidates", "few", code=2)


def test_an_index_is_copied(made, tmp_path):
    report = run_json("index", "copy", made / "index", tmp_path / "other")
    assert (report["added"], report["items"]) == (5, 5)
    assert "5 were there" in run("index", "copy", made / "index", tmp_path / "other")
    listed = [run_json("index", "items", folder)["items"] for folder in (made / "index", tmp_path / "other")]
    assert sorted(listed[0], key=str) == sorted(listed[1], key=str)


@pytest.mark.compiles
def test_scores_are_those_of_the_library(made):
    model, given = load_once("tiny"), ["A list of errors", {"image": str(made / "white.png")}]
    documents = [given[0], given[1]["image"]]
    command = ("score", *documents, "--query", "errors", "--model", "tiny", "--late-weight", 0.5)
    (result,) = run_json(*command)["results"]
    q, d = model.encode_query(["errors"]), model.encode_document(given)
    expected = smart_jax.score(q, d, late_weight=0.5)[0]
    assert [each["document"] for each in result["scores"]] == np.argsort(-expected).tolist()
    for each in result["scores"]:
        np.testing.assert_allclose(each["score"], expected[each["document"]], atol=1e-6)
        np.testing.assert_allclose(each["score"], each["pooled"] + 0.5 * each["late"], atol=1e-6)
    assert "A list of errors" in run(*command)
    assert "smart-jax index add" in run("score", "a.pdf", "-q", "errors", "--model", "tiny", code=2)


@pytest.mark.compiles
def test_models_and_what_folders_hold(made, tmp_path):
    names = {each["name"]: each["model_type"] for each in run_json("models")["models"]}
    assert names["tiny"] == "qwen3_vl" and names["gme"] == ["qwen2_vl"]
    facts, count = run_json("models", "tiny"), sum(x.size for x in jax.tree.leaves(load_once("tiny").params))
    assert (facts["kind"], facts["reads"], facts["parameters"]) == ("a model", ["text", "image"], count)
    assert "pooling" in run("models", "tiny")
    assert run_json("models", made / "index")["kind"] == "an index"
    assert "config.json" in run("models", tmp_path, code=1)
    assert "no folder here" in run("models", "no/such", code=1)


def test_errors_are_messages(made, tmp_path, monkeypatch):
    folder = made / "index"
    assert "there is no index" in run("index", "search", tmp_path / "none", "errors", code=1)
    assert not (tmp_path / "none").exists()
    assert "name its model" in run("index", "add", tmp_path / "none", "a.pdf", code=1)
    for usage in (
        ["index", "search", folder],
        ["index", "delete", folder],
        ["index", "search", folder, "x", "--where", "year"],
    ):
        run(*usage, code=2)
    monkeypatch.setattr(Index, "info", lambda self: {}["lost"])
    assert "KeyError: 'lost'" in run("index", "info", folder, code=1)
    for how in (
        {"args": ["--debug", "index", "info", str(folder)]},
        {"args": ["index", "info", str(folder)], "env": {"SMART_JAX_DEBUG": "1"}},
    ):
        assert isinstance(CliRunner().invoke(program, **how).exception, KeyError)


def test_an_interrupted_add_says_what_is_kept(index, monkeypatch):
    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(Index, "add", stopped)
    assert "the index keeps 5 items" in run("index", "add", index, "a.pdf", code=130)
    monkeypatch.setattr(Index, "compact", stopped)
    assert "interrupted" in run("index", "compact", index, code=130)


def test_an_index_is_served(made, monkeypatch):
    served = []
    monkeypatch.setattr("smart_jax.serve.serve", lambda index, **how: served.append((len(index), how)))
    run("index", "serve", made / "index", "--port", 0, "--token", "a long secret")
    how = {"host": "127.0.0.1", "port": 0, "token": "a long secret", "uploads": None}
    assert served == [(5, how)]
    monkeypatch.setitem(sys.modules, "smart_jax.serve", None)  # as where the extra is missing
    assert "pip install 'smart_jax[serve]'" in run("index", "serve", made / "index", code=1)


def test_warnings_are_messages(made, monkeypatch):
    monkeypatch.setattr(Index, "compact", lambda self: warnings.warn("beware", UserWarning, stacklevel=2))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        result = CliRunner().invoke(program, ["index", "compact", str(made / "index")])
    assert (result.exit_code, result.stderr) == (0, "smart-jax: beware\n")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (None, None),
        (["year>=2023"], {"year": {"gte": 2023}}),
        (["year <= 2023.5"], {"year": {"lte": 2023.5}}),
        (["year>1", "year<3"], {"and": [{"year": {"gt": 1}}, {"year": {"lt": 3}}]}),
        (["team=sales"], {"team": "sales"}),
        (["team = north west"], {"team": "north west"}),
        (["draft==true"], {"draft": True}),
        (['code="007"'], {"code": "007"}),
        (["code=007"], {"code": "007"}),
        (["team!=sales"], {"team": {"ne": "sales"}}),
        (['team=["a", "b"]'], {"team": ["a", "b"]}),
        (["tags~eu"], {"tags": {"contains": "eu"}}),
        (["name=a=b"], {"name": "a=b"}),
        (["ratio=NaN"], {"ratio": "NaN"}),
        (["none=null"], {"none": "null"}),
        (['{"or": [{"a": 1}, {"b": 2}]}'], {"or": [{"a": 1}, {"b": 2}]}),
    ],
)
def test_conditions(texts, expected):
    assert parse_conditions(texts) == expected


HARMFUL = ["[" * 100_000, "1" * 400, "1e999", "[NaN]"]


@pytest.mark.parametrize(
    "text",
    [
        *("year", "=3", ">=3", "{year: 3}", "", "a<>b<", '{"a":' * 9999, '{"a": NaN}', f'{{"a": {"1" * 400}}}'),
        *(f"year>={value}" for value in HARMFUL),
    ],
)
def test_what_is_no_condition(text):
    with pytest.raises(typer.BadParameter):
        parse_conditions([text])


def test_metadata():
    assert parse_metadata(['{"a": [1, 2]}', "b=2", "b=x = y"]) == {"a": [1, 2], "b": "x = y"}
    for wrong in ("year", "=1", "{1}", '{"a": 1e999}', *(f"year={value}" for value in HARMFUL)):
        with pytest.raises(typer.BadParameter):
            parse_metadata([wrong])


@pytest.mark.parametrize("page", [path for path in PAGES if "smart-jax " in path.read_text(encoding="utf-8")])
def test_documented_commands_are_understood(page):
    """Reads commands of consoles, and those that are named in a text."""
    lines = re.findall(r"^\$ smart-jax (\w.+)$|`smart-jax (\w[^`]*)`", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert lines
    for line in map("".join, lines):
        command, arguments = get_command(program), shlex.split(line)
        while arguments and hasattr(command, "commands"):
            command = command.commands[arguments.pop(0)]
        command.make_context(line, arguments)  # which reads them


@pytest.mark.compiles
def test_the_installed_program():
    """It starts without JAX, completes names, and tells errors by its exit code."""
    script = Path(sys.executable).with_name("smart-jax")

    def started(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run([script, *arguments], env={**os.environ, **environment}, capture_output=True, text=True)

    help_text = started("--help", PYTHONPROFILEIMPORTTIME="1")
    assert help_text.returncode == 0 and "index" in help_text.stdout
    imported = {line.rpartition("|")[2].strip() for line in help_text.stderr.splitlines()}
    assert "typer" in imported and not {"jax", "numpy", "transformers"} & imported
    completed = started(_SMART_JAX_COMPLETE="complete_bash", COMP_WORDS="smart-jax index se", COMP_CWORD="2")
    assert "search" in completed.stdout.split()
    failed = started("index", "serch")
    assert (failed.returncode, failed.stdout) == (2, "") and "serch" in failed.stderr


def test_questions_to_manuals():
    """20 questions, whose figures are by the rank of the first page that answers."""
    questions = read_questions()
    assert len(questions) == 20 and all(page.startswith("manuals/") for each in questions for page in each.pages)
    hits = Hits(questions[:2], [["x", *questions[0].pages], ["x", "y", "z"]])
    assert (hits.rank(0), hits.rank(1), hits.share(1), hits.share(5)) == (2, None, 0.0, 0.5)
