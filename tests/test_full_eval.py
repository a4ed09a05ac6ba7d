"""MMEB-V2 and ViDoRe in one run, on small folders of every set."""

import pytest

from configs import full_eval
from eval.benchmarks import vidore
from eval.run import evaluate
from tests import mmeb_folders
from tests.mmeb_folders import Watcher
from tests.vidore_folders import write_set


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Every set of both; read only."""
    folder = mmeb_folders.write_all(tmp_path_factory.mktemp("all"))
    for entry in vidore.SETS:
        if vidore.find(entry, folder) is None:
            write_set(entry, folder / "vidore")
    return folder


def config(root, output, **changes):
    made = full_eval.get_config()
    made.update({"path": str(root), "output": str(output), "rows": ("pooled", "late"), "cache": "", **changes})
    made.bootstrap.samples = 20
    return made


def run(settings):
    return evaluate(settings, full_eval.get_benchmarks(settings), Watcher(), full_eval.get_groups(settings))[0]


@pytest.mark.compiles
def test_one_command_gives_every_table(root, tmp_path):
    summary = run(config(root, tmp_path))
    names = [benchmark.name for benchmark in summary.benchmarks]
    assert summary.failed == () and len(names) == len(set(names)) == 78 + 8
    assert all(not group.missing for group in summary.groups)
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    for title in (
        *("MMEB-V2: 78 of 78", "MMEB-V2, images: 36 of 36", "MMEB-V2, videos: 18 of 18"),
        *("MMEB-V2, visual documents: 24 of 24", "ViDoRe V1: 10 of 10", "ViDoRe V2: 4 of 4"),
        "ViDoRe V3, public sets: 8 of 8",
    ):
        assert f"### {title} benchmarks" in text
    assert not (tmp_path / "results.png").exists()  # too many panels


def test_parts_can_be_chosen(root, tmp_path):
    summary = run(config(root, tmp_path, tasks="CIRR", version="v2-english", sets="biomedical_lectures_v2"))
    assert [benchmark.name for benchmark in summary.benchmarks] == ["CIRR", "ViDoRe_biomedical_lectures_v2"]


def test_without_any_set_of_vidore(tmp_path):
    folder = mmeb_folders.write_all(tmp_path / "some")
    settings = config(folder, tmp_path, tasks="CIRR", version="v3")
    assert [b.name for b in full_eval.get_benchmarks(settings)] == ["CIRR"]
