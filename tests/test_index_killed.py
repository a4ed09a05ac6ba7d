"""An index whose writer is killed at random moments: the old or the new state each time, and nothing left over."""

from __future__ import annotations

import contextlib
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from smart_jax import Index
from tests.fake_encoder import FakeEncoder
from tests.indexes import check_marks, check_nothing_left_over, contents, random_embeddings
from tests.processes import nursery
from tests.small_pdf import write_pdf

KILLS, COUNT = 50, 1200

# Imports once and forks for each try. A try is killed at a moment after its start, at a write of vectors that is half
# done, or before or after a commit; 0 = never, and its duration is answered.
NURSERY = """
import json, os, signal, sys, threading, time
from pathlib import Path
from smart_jax import Index
from smart_jax.index import catalog, segment_files
from tests.fake_encoder import FakeEncoder
from tests.indexes import random_embeddings

COUNT = int(sys.argv[1])

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def at_write(number):
    write, calls = os.pwrite, iter(range(10**9))
    def killed(handle, data, place):
        if next(calls) == number:
            write(handle, bytes(data)[: len(data) // 2], place)
            die()
        return write(handle, data, place)
    os.pwrite = killed

def at_commit(number):
    import contextlib
    writing, calls = catalog.Catalog.writing, iter(range(10**9))
    @contextlib.contextmanager
    def killed(self):
        with writing(self) as db:
            yield db
            if next(calls) == number:
                die()
    catalog.Catalog.writing = killed

def operate(index, kind, files):
    if kind == "add":
        names = [f"new-{i}" for i in range(COUNT)]
        index.add_embeddings(random_embeddings(COUNT, 1, width=8), names, {"batch": "new"})
    if kind == "update":
        names = [f"old-{i}" for i in range(COUNT)]
        index.add_embeddings(random_embeddings(COUNT, 2, width=8), names, {"batch": "changed"})
    if kind == "describe":
        index.update(where={"batch": "old"}, metadata={"more": 1})
    if kind == "delete":
        index.delete(where={"number": {"lt": COUNT // 2}})
    if kind == "compact":
        index.compact()
    if kind == "files":
        index.add(files, commit_every=4, progress=False)

for line in sys.stdin:
    folder, kind, files, how, moment = json.loads(line)
    child = os.fork()
    if not child:
        status = 1
        try:
            index = Index(folder, model=FakeEncoder(width=8) if kind == "files" else None)
            if how == "write":
                at_write(moment)
            if how == "commit":
                at_commit(moment)
            if how == "time":
                threading.Timer(moment, die).start()
            began = time.perf_counter()
            operate(index, kind, files)
            if how == "never":
                Path(folder + ".seconds").write_text(str(time.perf_counter() - began))
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.fixture(scope="module")
def attempt():
    """A function that changes an index, up to a moment; its exit code, and the seconds that a whole change took."""
    with attempts() as attempt:
        yield attempt


@contextlib.contextmanager
def attempts():
    """Returns what the fixture gives."""
    with nursery(NURSERY, str(COUNT)) as change:

        def run(*arguments: object) -> tuple[int, float]:
            code, seconds = change(*arguments), Path(f"{arguments[0]}.seconds")
            return code, float(seconds.read_text()) if seconds.exists() else 0.0

        yield run


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """Folder of an index of two batches, half of one removed, and of the marks of its first stages."""
    return old_index(tmp_path_factory.mktemp("old") / "index")


def old_index(folder: Path) -> Path:
    """Returns what the fixture gives."""
    with Index(folder, model=FakeEncoder(width=8)) as index:
        for batch in ("old", "other"):
            facts = [{"batch": batch, "number": i} for i in range(COUNT)]
            index.add_embeddings(random_embeddings(COUNT, width=8), [f"{batch}-{i}" for i in range(COUNT)], facts)
        index.delete(where={"batch": "other", "number": {"lt": COUNT // 2}})
        index.keep_stages(["centroids", "binary"])
    return folder


def copied(old: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(old, folder))


def state(folder: Path) -> dict:
    with Index(folder, model=FakeEncoder(width=8)) as index:
        return contents(index)


def clear(folder: Path) -> None:
    """Does what the next writer does before anything else, and returns what it leaves."""
    with Index(folder, model=FakeEncoder(width=8)) as index:
        index.delete(["nowhere"])
        check_nothing_left_over(index)
        check_marks(index)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["add", "update", "describe", "delete", "compact"])
def test_a_killed_change_is_made_whole_or_not_at_all(old, attempt, tmp_path, kind):
    folder = copied(old, tmp_path / "index")
    before = state(folder)
    code, seconds = attempt(str(folder), kind, "", "never", 0)
    assert code == 0
    after = state(folder)
    assert (before == after) == (kind == "compact")
    rng, seen, killed = np.random.default_rng(len(kind)), [], 0
    for number in range(KILLS // 5):
        folder = copied(old, folder)
        writes = kind in ("add", "update", "compact")
        how = ("time", "time", "time", "write" if writes else "time", "commit")[number % 5]
        moment = {"time": rng.uniform(0, seconds), "write": int(rng.integers(3)), "commit": 0}[how]
        code, _ = attempt(str(folder), kind, "", how, moment)
        killed += code == -signal.SIGKILL
        found = state(folder)
        assert found in (before, after), (how, moment)
        seen.append(found == after)
        clear(folder)
        assert state(folder) == found
        if not seen[-1]:  # and the change can be made
            assert attempt(str(folder), kind, "", "never", 0)[0] == 0
            assert state(folder) == after
    assert killed >= 4 and (kind == "compact" or not all(seen))


@pytest.mark.slow
def test_files_of_a_killed_add_are_whole(old, attempt, tmp_path):
    assert killed_adds(old, attempt, tmp_path, rounds=10) >= 10


def killed_adds(old: Path, attempt, at: Path, rounds: int) -> int:
    """Returns how often an encoding into an index was killed, at most four times a round.

    Files of 3 to 11 pages, committed by fours; three of them are there in another version.
    """
    rng, papers, killed = np.random.default_rng(0), at / "papers", 0
    papers.mkdir()
    folder, pages = copied(old, at / "index"), {}

    def write(name: str, version: str) -> None:
        pages[name] = [f"{version} {name} page {i}" for i in range(int(rng.integers(3, 12)))]
        write_pdf(papers / f"{name}.pdf", [[(20, 300, 12, text)] for text in pages[name]], [])

    for name in "abc":
        write(name, "first")
    with Index(folder, model=FakeEncoder(width=8)) as index:
        index.add(papers, progress=False)
    base, former = copied(folder, at / "base"), dict(pages)
    for name in "abcdef":
        write(name, "second")
    _, seconds = attempt(str(folder), "files", str(papers), "never", 0)
    for number in range(rounds):
        folder, kills = copied(base, folder), 0
        while True:
            how = "never" if kills == 4 else ("time", "write", "commit")[(number + kills) % 3]
            moment = {"time": rng.uniform(0, seconds), "write": int(rng.integers(12)), "commit": int(rng.integers(6))}
            code, _ = attempt(str(folder), "files", str(papers), how, moment.get(how, 0))
            kills += 1
            killed += code == -signal.SIGKILL
            with Index(folder, model=FakeEncoder(width=8)) as index:
                for name in "abcdef":
                    texts = [item.text for item in index.items({"file": f"{name}.pdf"})]
                    assert sorted(texts) in (sorted(former.get(name, [])), sorted(pages[name])), (name, how, moment)
            if code == 0:
                break
            assert code == -signal.SIGKILL
        with Index(folder, model=FakeEncoder(width=8)) as index:
            assert {item.text for item in index.items({"file": {"exists": True}})} == {
                t for p in pages.values() for t in p
            }
            assert index.info().waiting == 0
        clear(folder)
    return killed
