"""Embeddings written to a folder while they are made: resumed after a kill, refused where they are others'."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from flax import nnx

import smart_jax
from smart_jax import Embeddings
from smart_jax.inputs import items_fingerprint, parse_items
from smart_jax.retrieval import EmbeddingsFolder, ItemVectors, embeddings_folder
from smart_jax.retrieval.adapter import Adapter, AdapterConfig
from tests.checkpoints import noise_page
from tests.processes import ROOT, environment

ABOUT = {"model": "m", "instruction": None}
COUNT = 9


def made(dtype=np.float32) -> Embeddings:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 6, COUNT)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    pooled, tokens = (rng.normal(size=(n, w)).astype(dtype) for n, w in ((COUNT, 3), (offsets[-1], 5)))
    return Embeddings(pooled, tokens, offsets)


def opened(folder, dtype=np.float32, **about):
    return EmbeddingsFolder(folder, items=COUNT, about=ABOUT | about, dtype=dtype)


def put(out: EmbeddingsFolder, whole: Embeddings, numbers) -> None:
    out.write([ItemVectors(n, whole[n].pooled[0], whole[n].tokens) for n in numbers])


def expect_all(out: EmbeddingsFolder, whole: Embeddings) -> None:
    for number in np.flatnonzero(~out.done).tolist():
        out.expect(number, int(whole.lengths[number]))


def assert_same(found: Embeddings, expected: Embeddings) -> None:
    for name in ("pooled", "tokens", "offsets"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
        assert getattr(found, name).dtype == getattr(expected, name).dtype


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_the_folder_is_that_of_save(tmp_path, dtype):
    whole = made(dtype)
    with opened(tmp_path / "new" / "out", dtype) as out:
        expect_all(out, whole)
        for numbers in ([7, 0], [8], [3, 2, 1], [6, 5, 4]):
            put(out, whole, numbers)
        assert_same(out.finish(), whole)
    assert_same(Embeddings.load(tmp_path / "new" / "out"), whole)  # by safetensors' own reader
    assert_same(Embeddings.load(tmp_path / "new" / "out", mmap=True), whole)
    names = sorted(path.suffix for path in (tmp_path / "new" / "out").iterdir())
    assert names == [".json", ".safetensors"]
    with opened(tmp_path / "new" / "out", dtype) as again:
        assert again.done.all()
        tokens = again.finish().tokens
    while isinstance(tokens, np.ndarray) and not isinstance(tokens, np.memmap):
        tokens = tokens.base
    assert isinstance(tokens, np.memmap)  # left in the file
    whole[:2].save(tmp_path / "new" / "out")
    assert_same(Embeddings.load(tmp_path / "new" / "out"), whole[:2])


def test_resumes_with_what_is_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings_folder, "RECORD_SECONDS", 0)
    whole = made()
    with opened(tmp_path) as out:
        expect_all(out, whole)
        put(out, whole, [4, 8, 0])
    journal = tmp_path / embeddings_folder.JOURNAL
    with journal.open("a") as file:
        file.write("[[1, 2], [")  # torn by a kill
    with opened(tmp_path) as out:
        assert np.flatnonzero(out.done).tolist() == [0, 4, 8]
        expect_all(out, whole)
        put(out, whole, [5])
        with pytest.raises(ValueError, match="5 items are missing, the first is item 1"):
            out.finish()
    with opened(tmp_path) as out:
        expect_all(out, whole)
        put(out, whole, [1, 2, 3, 6, 7])
    assert all(json.loads(line) for line in journal.read_text().splitlines())
    with opened(tmp_path) as out:  # killed before the end of the last one's `finish`
        assert out.done.all()
        assert_same(out.finish(), whole)


def test_what_a_killed_process_left_is_removed(tmp_path):
    """A file that no journal names yet, and a journal whose embeddings are finished."""
    whole = made()
    (tmp_path / "embeddings-0123abcd.safetensors").write_bytes(b"begun")
    (tmp_path / "embeddings-mine.safetensors").write_bytes(b"another's")
    with opened(tmp_path) as out:
        expect_all(out, whole)
        put(out, whole, range(COUNT))
        journal = (tmp_path / embeddings_folder.JOURNAL).read_text()
        out.finish()
    (tmp_path / embeddings_folder.JOURNAL).write_text(journal)
    with opened(tmp_path) as out:
        assert_same(out.finish(), whole)
    (tmp_path / "embeddings-mine.safetensors").unlink()
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".json", ".safetensors"]


def test_what_was_not_recorded_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setattr(embeddings_folder, "RECORD_SECONDS", 10**6)
    whole, out = made(), opened(tmp_path)
    expect_all(out, whole)
    put(out, whole, [0, 1])
    lines = (tmp_path / embeddings_folder.JOURNAL).read_text().splitlines()
    assert len(lines) == 1 and json.loads(lines[0])["about"]["model"] == "m"
    out.close()
    assert len((tmp_path / embeddings_folder.JOURNAL).read_text().splitlines()) == 2


@pytest.mark.parametrize("finished", [False, True])
def test_others_embeddings_are_refused(tmp_path, finished):
    whole = made()
    with opened(tmp_path) as out:
        expect_all(out, whole)
        put(out, whole, range(COUNT) if finished else [3])
        if finished:
            out.finish()
    with pytest.raises(
        ValueError, match=r"differ in model \('m', not 'n'\), instruction \(none, not 'Find it.'\): choose"
    ):
        opened(tmp_path, model="n", instruction="Find it.")
    with pytest.raises(ValueError, match=r"differ in dtype \('float32', not 'float16'\)"):
        opened(tmp_path, np.float16)
    with pytest.raises(ValueError, match="differ in items"):
        EmbeddingsFolder(tmp_path, items=COUNT - 1, about=ABOUT)
    with opened(tmp_path) as out:
        assert out.done.sum() == (COUNT if finished else 1)


def test_saved_embeddings_and_damage_are_refused(tmp_path):
    made().save(tmp_path / "saved")
    with pytest.raises(ValueError, match="say not what they are made of"):
        opened(tmp_path / "saved")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / embeddings_folder.JOURNAL).write_text('{"format": "another"}\n')
    with pytest.raises(ValueError, match=r"embeddings.partial.jsonl' is damaged .*remove this one"):
        opened(tmp_path / "out")
    (tmp_path / "out" / embeddings_folder.JOURNAL).write_bytes(b'{"a": "\xff' + b"x" * 9999)
    with pytest.raises(ValueError, match=r"embeddings.partial.jsonl' is damaged .*remove this one") as error:
        opened(tmp_path / "out")
    assert len(str(error.value)) < 1000
    with pytest.raises(TypeError, match="dtype int8"):
        opened(tmp_path / "new", np.int8)


@pytest.mark.parametrize("device", ["/dev/null", "/dev/zero"])
def test_a_journal_that_is_a_device_is_refused(tmp_path, device):
    """The one has no end, the other takes what is written and gives nothing back."""
    (tmp_path / embeddings_folder.JOURNAL).symlink_to(device)
    with pytest.raises(ValueError, match=r"embeddings.partial.jsonl' is damaged .*leads to a device.*remove this one"):
        opened(tmp_path)


def test_one_process_at_a_time(tmp_path):
    with opened(tmp_path), pytest.raises(ValueError, match="written to by another process"):
        opened(tmp_path)


def test_values_that_are_not_as_expected(tmp_path):
    whole = made()
    with opened(tmp_path) as out:
        expect_all(out, whole)
        with pytest.raises(ValueError, match="item 2 has 9 tokens"):
            out.write([ItemVectors(2, whole.pooled[2], np.zeros((9, 5), np.float32))])
        tokens = whole[3].tokens.copy()
        tokens[-1, 0] = np.nan
        with pytest.raises(ValueError, match=f"item 3, token {len(tokens) - 1}: tokens holds NaN"):
            out.write([ItemVectors(3, whole.pooled[3], tokens)])


def test_fingerprint_of_items(tmp_path):
    page = noise_page(8, 8)
    page.save(tmp_path / "a.png")
    lists = [
        ["a"],
        ["a", "a"],
        [page],
        [noise_page(8, 8, 1)],
        [tmp_path / "a.png"],
        [{"text": "a", "instruction": "b"}],
    ]
    assert len({items_fingerprint(parse_items(items)) for items in lists}) == len(lists)
    assert items_fingerprint(parse_items([page])) == items_fingerprint(parse_items([page.copy()]))


# ---- an encoder's


@pytest.fixture(scope="module")
def model(checkpoint):
    return smart_jax.load(checkpoint)


def items_of(count=14):
    return [
        noise_page(64 + 32 * (i % 3), 96, i) if i % 2 else f"revenue {'by region ' * (i % 5)}" for i in range(count)
    ]


@pytest.mark.compiles
def test_encodes_into_a_folder_and_goes_on_there(model, tmp_path, monkeypatch):
    items, monkeypatched = items_of(), monkeypatch.context
    expected = model.encode_document(items, batch_size=2)
    computed, vectors = [], type(model)._vectors

    def failing(after):
        def run(self, batch, how):
            computed.append(batch)
            if len(computed) == after:
                raise OSError("the device is gone")
            return vectors(self, batch, how)

        return run

    with monkeypatched() as patch:
        patch.setattr(type(model), "_vectors", failing(after=6))
        with pytest.raises(OSError, match="gone"):
            model.encode_document(items, batch_size=2, out=tmp_path / "out")
        done = recorded(tmp_path / "out")
        assert 0 < done < len(items)
        computed.clear()
        patch.setattr(type(model), "_vectors", failing(after=-1))
        found = model.encode_document(items, batch_size=2, out=tmp_path / "out")
        assert len(computed) == -(-(len(items) - done) // 2)  # nothing twice
        computed.clear()
        model.encode_document(items, batch_size=2, out=tmp_path / "out")
        assert not computed
    np.testing.assert_array_equal(found.offsets, expected.offsets)
    np.testing.assert_allclose(found.tokens, expected.tokens, atol=2e-5)
    np.testing.assert_allclose(found.pooled, expected.pooled, atol=2e-5)
    for options, differs in (
        ({"instruction": "Find it."}, "instruction"),
        ({"dtype": np.float16}, "dtype"),
        ({"items": [*items[:-1], "another"]}, "content"),
    ):
        call = {"items": items, "out": tmp_path / "out"} | options
        with pytest.raises(ValueError, match=f"differ in {differs} "):
            model.encode_document(**call)
    adapted = model.with_adapter(Adapter(AdapterConfig(32, dim=12), rngs=nnx.Rngs(3)))
    with pytest.raises(ValueError, match="differ in adapter"):
        adapted.encode_document(items, out=tmp_path / "out")
    with pytest.raises(ValueError, match="differ in query"):
        model.encode_query(items, out=tmp_path / "out")


def recorded(folder: Path) -> int:
    """Returns how many items a folder's journal names, which may be being written."""
    whole = (folder / embeddings_folder.JOURNAL).read_text().rpartition("\n")[0]
    return sum(len(json.loads(line)) for line in whole.splitlines()[1:])


KILLED = """
import sys, time
import smart_jax
from smart_jax.retrieval import embeddings_folder
from tests.test_embeddings_folder import items_of
embeddings_folder.RECORD_SECONDS = 0.0
model = smart_jax.load(sys.argv[1])
vectors, count = type(model)._vectors, 0
def slow(self, batch, how):
    global count
    count += 1
    time.sleep(0.02)
    return vectors(self, batch, how)
type(model)._vectors = slow
model.encode_document(items_of(120), batch_size=2, out=sys.argv[2], progress=False)
print(count)
"""


@pytest.mark.slow
def test_killed_at_random_moments_and_resumed(model, checkpoint, tmp_path):
    """Three SIGKILLs; what was recorded is not computed again, and the embeddings are those of one run."""
    out, rng, partial = tmp_path / "out", np.random.default_rng(0), 0
    command = [sys.executable, "-c", KILLED, str(checkpoint), str(out)]
    before = 0
    for _ in range(3):
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE)
        journal = out / embeddings_folder.JOURNAL
        deadline = time.monotonic() + 120
        while not (journal.exists() and recorded(out) > before) and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        partial += process.wait() == -signal.SIGKILL
        assert process.stdout is not None
        process.stdout.close()
        if not journal.exists():
            break
        now = recorded(out)
        assert now > before
        before = now
    assert partial >= 2
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == (120 - before) / 2  # nothing that was recorded is computed again
    expected = model.encode_document(items_of(120), batch_size=2)
    found = Embeddings.load(out, mmap=True)
    np.testing.assert_array_equal(found.offsets, expected.offsets)
    np.testing.assert_allclose(found.tokens, expected.tokens, atol=2e-5)
    assert sorted(path.suffix for path in out.iterdir()) == [".json", ".safetensors"]
