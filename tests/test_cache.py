"""The cache of encoded states: figures, resuming, damage, memory, several processes; and data's fingerprints."""

import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from eval.benchmarks import Deferred, LazyItems, fingerprint
from eval.methods import Options, run_benchmark
from eval.run import evaluate
from eval.states import Cache, Worker
from smart_jax.files import files_fingerprint
from smart_jax.retrieval import States
from smart_jax.retrieval.adapter import Adapter, AdapterConfig
from tests.fake_encoder import FakeEncoder
from tests.processes import ROOT, environment, left_over, nursery
from tests.test_eval_run import config, made

METRICS = ("ndcg@5", "mrr")
FEW_ITEMS = 8 * 10 * 64 * 16 * 4  # bytes of memory that make shards of 10 of the fake encoder's items in float32


def run(cache, encoder=None, benchmark=None, *, methods=None, adapter_encoder=None, **options):
    encoder, benchmark = encoder or FakeEncoder(noise=1.5), benchmark or made()
    chosen = {"methods": methods, "adapter_encoder": adapter_encoder, "metrics": METRICS}
    return run_benchmark(encoder, benchmark, cache=cache, options=Options(**options), **chosen)


def assert_equal(a, b):
    assert list(a.values) == list(b.values)
    for row in a.values:
        for metric in METRICS:
            np.testing.assert_array_equal(a.values[row][metric], b.values[row][metric], err_msg=f"{row} {metric}")


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("memory", [FEW_ITEMS, 2**30])
def test_figures_are_those_without_a_cache(tmp_path, local, memory):
    benchmark = made(local=local)
    found = run(Cache(tmp_path, "f", memory=memory), benchmark=benchmark, query_block=5)
    assert_equal(found, run(None, benchmark=benchmark))
    shards = sorted(path.name for path in tmp_path.glob("made/corpus-*/*.safetensors"))
    assert len(shards) == (3 if memory == FEW_ITEMS else 1)
    tokens = sum(len(FakeEncoder().tokens(text)) for text in benchmark.texts) / 23
    expected = {"pooled": 16 * 4, "late": tokens * 16 * 4, "hybrid": (1 + tokens) * 16 * 4}
    assert found.bytes_per_document == pytest.approx(expected)


def test_what_is_there_is_not_encoded_again(tmp_path):
    encoder, cache = FakeEncoder(noise=1.5), Cache(tmp_path, "f", memory=FEW_ITEMS)
    first = run(cache, encoder)
    kinds = [("states of queries", 10, "Find it."), ("states of queries", 2, "Find it.")]
    kinds += [("states of documents", count, None) for count in (10, 10, 3)]
    assert encoder.calls == kinds
    encoder.calls = []
    assert_equal(run(cache, encoder), first)
    again = run(cache, encoder, pooled_weight=0.0)
    assert encoder.calls == [] and not np.array_equal(again.values["hybrid"]["mrr"], first.values["hybrid"]["mrr"])
    run(Cache(tmp_path, "f", memory=2**30), encoder)  # more memory: the same shards
    assert encoder.calls == []


def test_everything_that_changes_states_is_encoded_anew(tmp_path):
    encoder = FakeEncoder()
    run(Cache(tmp_path, "f"), encoder)
    texts = made().texts
    for changes in (
        {"cache": Cache(tmp_path, "g")},
        {"dtype": np.float16},
        {"benchmark": made(instruction="Other."), "both": False},
        {"benchmark": made(document_instruction="Read."), "both": False},
        {"benchmark": made(corpus=[*texts[:-1], texts[-1] + " more"]), "both": False},
        {"benchmark": made().sample(queries=4), "both": False},
    ):
        encoder.calls, both = [], changes.pop("both", True)
        run(**({"cache": Cache(tmp_path, "f"), "encoder": encoder} | changes))
        assert len(encoder.calls) == (2 if both else 1), changes


def test_a_shard_that_is_missing_or_damaged_is_encoded_again(tmp_path, caplog):
    encoder, cache = FakeEncoder(), Cache(tmp_path, "f", memory=FEW_ITEMS)
    first = run(cache, encoder)
    paths = sorted(tmp_path.glob("made/corpus-*/*.safetensors"))
    paths[1].unlink()
    paths[2].write_bytes(paths[2].read_bytes()[:-5])
    encoder.calls = []
    assert_equal(run(cache, encoder), first)
    assert encoder.calls == [("states of documents", 10, None), ("states of documents", 3, None)]
    assert "00002.safetensors' is corrupt or truncated" in caplog.text


def test_a_shard_that_was_altered_is_encoded_again(tmp_path, caplog):
    """The file is whole: one value is another."""
    encoder, cache = FakeEncoder(), Cache(tmp_path, "f", memory=FEW_ITEMS)
    first = run(cache, encoder)
    path = sorted(tmp_path.glob("made/corpus-*/*.safetensors"))[1]
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    encoder.calls = []
    assert_equal(run(cache, encoder), first)
    assert encoder.calls == [("states of documents", 10, None)]
    assert "00001.safetensors' is corrupt or truncated (its values are not those that were written)" in caplog.text


def test_a_shard_of_fewer_items_is_encoded_again(tmp_path):
    """It is whole, of another size."""
    encoder, cache = FakeEncoder(), Cache(tmp_path, "f", memory=FEW_ITEMS)
    first = run(cache, encoder)
    path = sorted(tmp_path.glob("made/corpus-*/*.safetensors"))[1]
    States.load(path)[:9].save(path)
    encoder.calls = []
    assert_equal(run(cache, encoder), first)
    assert encoder.calls == [("states of documents", 10, None)]


@pytest.mark.parametrize(
    "text", ["{", "7", '{"shard_items": "many"}', '{"shard_items": 0}', f'{{"shard_items": {2**63}}}']
)
def test_a_manifest_that_is_damaged_is_named(tmp_path, text):
    cache = Cache(tmp_path, "f")
    run(cache)
    (manifest,) = tmp_path.glob("made/corpus-*/manifest.json")
    manifest.write_text(text)
    with pytest.raises(ValueError, match=f"'{manifest}' is damaged .*: delete '{manifest.parent}'"):
        run(cache)


def test_two_runs_do_not_encode_the_same(tmp_path):
    """Not at once; and a lock that a killed run left is nobody's."""
    whole = run(Cache(tmp_path, "f", memory=FEW_ITEMS))
    shards = sorted(tmp_path.glob("made/corpus-*/*.safetensors"))
    shards[1].unlink()
    (shards[0].parent / "write.lock").write_text("process 1 on another host")
    inner, asked = Cache(tmp_path, "f", memory=FEW_ITEMS), []

    class Slow(FakeEncoder):
        def states(self, items, **options):
            with pytest.raises(ValueError, match=rf"is being written to by process {os.getpid()} .*--config.cache"):
                run(inner)
            asked.append(len(items))
            return super().states(items, **options)

    assert_equal(run(Cache(tmp_path, "f", memory=FEW_ITEMS), Slow(noise=1.5)), whole)
    assert not list(tmp_path.rglob("*.lock")) and asked == [10]


def test_states_are_dropped_task_by_task(tmp_path, monkeypatch):
    """The run's states go once it is done with a benchmark: another model's stay, and those of one that failed.

    A run that was cut off goes on after the benchmarks that are done.
    """
    cache = tmp_path / "cache"
    kept, _ = evaluate(config(tmp_path, cache=str(cache)), [made(), made(name="second")], FakeEncoder())
    before = set(cache.rglob("*.safetensors"))
    settings = config(tmp_path / "dropped", cache=str(cache), keep_states=False)
    evaluate(settings, [made(), made(name="second")], FakeEncoder(noise=1.0))
    assert set(cache.rglob("*.safetensors")) == before

    def broken(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("eval.methods.evaluate.ModelScorer.mean_bytes", broken)
        with pytest.raises(OSError, match="No space left"):
            evaluate(settings, [made()], FakeEncoder())
    assert set(cache.rglob("*.safetensors")) == before
    dropped, _ = evaluate(settings, [made(), made(name="second")], FakeEncoder())
    assert dropped.benchmarks == kept.benchmarks and not list(cache.rglob("*.safetensors"))
    encoder = FakeEncoder()
    again, _ = evaluate(settings, [made(), made(name="second"), made(name="third")], encoder)
    assert again.benchmarks[:2] == kept.benchmarks[:2] and {kind for kind, *_ in encoder.calls} == {
        "states of queries",
        "states of documents",
    }
    assert len(encoder.calls) == 2  # of the third
    for changed in ({"storage_dtype": "float32"}, {"storage_dtype": "float16"}):
        evaluate(config(tmp_path / "dropped", cache=str(cache), keep_states=False, **changed), [made()], encoder)
    assert len(encoder.calls) == 4  # with the dtype that the results are not of
    settings.late_weight = 2.0
    encoder = FakeEncoder()
    evaluate(settings, [made()], encoder)
    assert len(encoder.calls) == 2


def test_an_item_that_can_not_be_encoded_is_named(tmp_path):
    texts = made().texts

    def item(i):
        if i == 13:
            raise OSError("item 3: the file is truncated")
        return texts[i]

    cache = Cache(tmp_path, "f", memory=FEW_ITEMS)
    with pytest.raises(OSError, match="truncated") as found:
        run(cache, benchmark=made(corpus=LazyItems(23, item, source="x")))
    assert found.value.__notes__ == ["(of the corpus of made)"]
    encoder = FakeEncoder()
    run(cache, encoder, benchmark=made(corpus=LazyItems(23, texts.__getitem__, source="x")))
    assert len(encoder.calls) == 2  # the queries and the first shard are kept


def test_a_full_disk_leaves_what_is_whole(tmp_path, monkeypatch):
    cache, written = Cache(tmp_path, "f", memory=FEW_ITEMS), []

    def flush(descriptor):
        written.append(descriptor)
        if len(written) == 4:
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("smart_jax.files.whole_files.os.fsync", flush)
        with pytest.raises(OSError, match="No space left"):
            run(cache)
    assert len(list(tmp_path.glob("made/*/*.safetensors"))) == 3 and not list(tmp_path.glob("made/*/*.tmp"))
    assert_equal(run(cache), run(None))


@pytest.mark.compiles
@pytest.mark.parametrize("layers", [(-1,), (-3, -1)])
def test_adapter_rows_come_from_the_same_states(tmp_path, checkpoint, layers, monkeypatch):
    import smart_jax
    from smart_jax.encoder import Encoder

    model = smart_jax.load(checkpoint)
    adapter = Adapter(AdapterConfig(model.config.text.hidden_size, 24, layers, 16), rngs=nnx.Rngs(0))
    benchmark, adapted, encoded = made(queries=6, documents=9), model.with_adapter(adapter), []
    options = {"adapter_encoder": adapted, "methods": ["pooled", "late", "adapter-pooled", "adapter-hybrid"]}
    expected = run(None, model, benchmark, **options)
    parts = Encoder.states_by_part
    monkeypatch.setattr(Encoder, "states_by_part", lambda *a, **k: encoded.append(k["layers"]) or parts(*a, **k))
    assert_equal(run(Cache(tmp_path, "f"), model, benchmark, **options), expected)
    assert encoded == [None if layers == (-1,) else (-3, -1)] * 2  # once a side
    found = run(Cache(tmp_path, "f", layers=(1, -1)), model, benchmark, **options)
    assert found.bytes_per_document["adapter-pooled"] == 16 * 4
    assert_equal(found, expected)
    assert set(encoded[2:]) == {(-2, -1) if layers == (-1,) else (-3, -2, -1)}


RUN_IN_MEMORY = """
import sys, threading, time
from pathlib import Path
import numpy as np
from eval.benchmarks import Benchmark
from eval.states import Cache
from eval.methods import Options, run_benchmark
from eval.benchmarks import LazyItems
from smart_jax.retrieval.states import States
from tests.fake_encoder import FakeEncoder

MEMORY, WIDTH, TOKENS = 64 * 2**20, 512, 64

class Large(FakeEncoder):
    max_tokens = TOKENS

    def states(self, items, *, query, dtype, **_):
        count = len(items)
        seeds = [int(item.split()[-1]) for item in items]
        tokens = np.stack([np.random.default_rng(s).standard_normal((TOKENS, WIDTH), np.float32) for s in seeds])
        tokens /= np.linalg.norm(tokens, axis=-1, keepdims=True)
        tokens = tokens.astype(dtype)
        return States(tokens[:, 0], tokens.reshape(-1, 1, WIDTH), np.ones((count * TOKENS, 1), np.float32),
            np.zeros(count * TOKENS, np.int32), np.arange(count + 1) * TOKENS, np.zeros((0, 4), np.int32), (), (-1,), 1)

def benchmark(documents):
    ids = [f"d{i}" for i in range(documents)]
    return Benchmark(f"of {documents}", [f"q {i}" for i in range(4)], [f"q{i}" for i in range(4)],
        LazyItems(documents, lambda i: f"item {i}", source="x"), ids, {f"q{i}": {f"d{i}": 1} for i in range(4)})

def run(documents):
    methods = ["pooled", "late", "hybrid"]
    cache = Cache(Path(sys.argv[1]), "f", memory=MEMORY)
    options = Options(dtype=np.float16)
    return run_benchmark(
        Large(WIDTH), benchmark(documents), cache=cache, metrics=("hit@1",), methods=methods, options=options
    )

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024

most, ending = [0], []
def watch():
    while not ending:
        most[0] = max(most[0], anonymous())
        time.sleep(0.002)

run(100)  # compiles and warms allocators
before = anonymous()
threading.Thread(target=watch, daemon=True).start()
found = run(20 * MEMORY // (TOKENS * WIDTH * 2))
ending.append(1)
assert found.mean("pooled", "hit@1") == 1 == found.mean("hybrid", "hit@1"), found.values
print((most[0] - before) / MEMORY)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """A corpus of 20 times the setting."""
    done = subprocess.run(
        [sys.executable, "-c", RUN_IN_MEMORY, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert sum(path.stat().st_size for path in tmp_path.glob("of_20480/corpus-*/*.safetensors")) > 20 * 64 * 2**20
    assert float(done.stdout) < 1


NURSERY = """
import json, os, signal, sys, threading, time
from pathlib import Path
from eval.run import evaluate
from tests.fake_encoder import FakeEncoder
from tests.test_cache import FEW_ITEMS
from tests.test_eval_run import config, made

class Slow(FakeEncoder):
    def states(self, items, **options):
        time.sleep(0.05)
        return super().states(items, **options)

benchmarks = [made(name=name, documents=60, local=name == "b") for name in "abc"]
for line in sys.stdin:
    folder, moment = json.loads(line)
    child = os.fork()
    if not child:
        status = 1
        try:
            os.dup2(os.open(folder + ".log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
            os.dup2(1, 2)
            if moment is not None:
                threading.Timer(moment, os.kill, (os.getpid(), signal.SIGKILL)).start()
            evaluate(config(Path(folder), memory_gib=FEW_ITEMS / 2**30), benchmarks, Slow(noise=1.0))
            status = 0
        finally:
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def killed_evaluations(folder: Path, rounds: int) -> int:
    """Returns how often an evaluation was killed; its figures are those of one that nobody stopped, nothing is left."""
    rng, killed, results = np.random.default_rng(0), 0, folder / "out" / "results.json"
    with nursery(NURSERY) as attempt:
        assert attempt(str(folder), None) == 0, Path(f"{folder}.log").read_text()[-3000:]
        expected = results.read_bytes()
        for _ in range(rounds):
            for path in sorted(folder.glob("out/embeddings/*/*/*.safetensors")):
                if rng.random() < 0.5:
                    path.unlink()  # so that there is work to be stopped in
            results.unlink(missing_ok=True)
            killed += attempt(str(folder), rng.uniform(0, 1.5)) == -signal.SIGKILL
            assert not results.exists() or results.read_bytes() == expected
            assert attempt(str(folder), None) == 0, Path(f"{folder}.log").read_text()[-3000:]
            assert results.read_bytes() == expected and not left_over(folder)
    return killed


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path):
    assert killed_evaluations(tmp_path / "run", rounds=5) >= 3


PROCESS = """
import os, sys
from pathlib import Path
index, folder = int(sys.argv[1]), Path(sys.argv[2])
import jax
jax.distributed.initialize(f"127.0.0.1:{sys.argv[3]}", 2, index)
import smart_jax
from eval.run import evaluate
from eval.states import Worker
from tests.test_cache import FEW_ITEMS
from tests.test_eval_run import config, made
model = smart_jax.load(sys.argv[4], mesh=smart_jax.make_mesh(devices=jax.local_devices()))
worker = Worker(index, 2, folder / "cache" / "runs" / "x")
settings = config(folder / "two", cache=str(folder / "cache"), memory_gib=2**-9, query_block=4)
report, files = evaluate(settings, [made(), made(name="local", local=True)], model, worker=worker)
assert bool(files) == (index == 0)
if index == 0:
    assert len(list(folder.glob("cache/made/corpus-*/*.safetensors"))) > 1  # both had something to do
settings.keep_states, settings.output = False, str(folder / "three")
evaluate(settings, [made()], model, worker=worker)
worker.finish()
"""


@pytest.mark.slow
def test_devices_and_processes_give_the_same_figures(tmp_path, checkpoint):
    """One device, eight virtual devices, two processes of two devices each."""
    import jax

    import smart_jax

    def figures(folder):
        stored = json.loads((folder / "out" / "results.json").read_text())
        return [(entry["rows"], entry.get("values")) for entry in stored["benchmarks"]]

    benchmarks = [made(), made(name="local", local=True)]
    evaluate(config(tmp_path / "one", memory_gib=2**-9, query_block=4), benchmarks, smart_jax.load(checkpoint))
    assert len(jax.local_devices()) == 8
    meshed = smart_jax.load(checkpoint, mesh=smart_jax.make_mesh())
    evaluate(config(tmp_path / "eight"), benchmarks, meshed)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(i), str(tmp_path), port, str(checkpoint)],
            **{"cwd": ROOT, "env": environment(2), "stderr": subprocess.PIPE},
        )
        for i in range(2)
    ]
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors.decode()
    assert figures(tmp_path / "one") == figures(tmp_path / "eight") == figures(tmp_path / "two")
    assert not list(tmp_path.glob("cache/made/*/*"))  # the last run has dropped its states
    assert not list((tmp_path / "cache" / "runs").iterdir())


def test_a_process_hears_of_anothers_failure(tmp_path):
    workers = [Worker(i, 2, tmp_path) for i in range(2)]
    with pytest.raises(KeyError), workers[1].task("a"):
        raise KeyError("page 7")
    workers[0].wait_for([], "a")
    with pytest.raises(RuntimeError, match="process 1 failed: KeyError: 'page 7'"):
        workers[0].wait_for([tmp_path / "never"], "a")
    with pytest.raises(ValueError, match=r"set config\.cache"):
        Worker(0, 2)
    assert list(workers[1].own(7)) == [1, 3, 5] and list(Worker().own(3)) == [0, 1, 2]


def test_one_failure_does_not_lose_the_others(tmp_path):
    def broken():
        raise FileNotFoundError("no folder 'images': download it")

    deferred = [Deferred("late one", lambda: made(name="late one")), Deferred("broken", broken)]
    named = Deferred("wrong", lambda: made(name="right"))
    report, _ = evaluate(config(tmp_path), [*deferred, made(), named], FakeEncoder())
    assert [benchmark.name for benchmark in report.benchmarks] == ["late one", "made"]
    assert [asdict(failure) for failure in report.failed] == [
        {"name": "broken", "error": "FileNotFoundError: no folder 'images': download it"},
        {"name": "wrong", "error": "ValueError: benchmark wrong calls itself right when it is opened: use one name"},
    ]
    text = (tmp_path / "out" / "results.md").read_text()
    assert "### 2 benchmarks failed\n\n- broken: FileNotFoundError: no folder 'images': download it\n" in text
    with pytest.raises(FileNotFoundError, match="no folder 'images'"):
        evaluate(config(tmp_path), deferred[1:], FakeEncoder())


# Fingerprints


def test_fingerprint_of_items(tmp_path):
    def of(items, ids=("a", "b"), instruction=None):
        return fingerprint.of_items(items, ids, instruction)

    page = Image.new("RGB", (4, 4))
    page.save(tmp_path / "p.png")
    (tmp_path / "copy").mkdir()
    page.save(tmp_path / "copy" / "p.png")
    other = Image.new("RGB", (4, 4), (1, 0, 0))
    path, copied = ({"image": folder / "p.png"} for folder in (tmp_path, tmp_path / "copy"))
    known = LazyItems(2, ["x", "y"].__getitem__, source="s")
    different = [
        *(of(["x", "y"]), of(["y", "x"]), of(["x", "y"], ids=("a", "c")), of(["x", "y"], instruction="i")),
        *(of(["x", {"text": "y", "instruction": "j"}]), of(["x", page]), of(["x", other]), of(["x", path])),
        *(
            of(["x", {"video": [page, other]}]),
            of(["x", {"video": [other, page]}]),
            of(["x", {"images": [page, other]}]),
        ),
        *(of(["x", {"video": [page, other], "fps": 2}]), of(known), of(known.take([1, 0]))),
        of(LazyItems(2, ["x", "y"].__getitem__, source="t")),
    ]
    assert len(set(different)) == len(different)
    assert of(["x", path]) == of(["x", copied])
    assert of(["x", np.asarray(page)]) == of(["x", page])
    assert of(LazyItems(2, ["x", "y"].__getitem__)) == of(["x", "y"])
    with pytest.raises(ValueError, match="item 1, 'b' is an empty text"):
        of(["x", " "])


def test_fingerprint_of_files(tmp_path):
    def of(content, name="f"):
        (tmp_path / name).write_bytes(content)
        return files_fingerprint([tmp_path / name])

    content = bytes(200_000)
    assert of(content) == of(content) != of(content[:-1] + b"x")
    assert len({of(content), of(content + b"\0"), of(b"x" + content[1:]), of(content, "g")}) == 4
