"""Frozen states that are computed once: training over them, their folder, and when they are kept."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file

from benchmarks import cached_states
from smart_jax.models.qwen_vl import QwenVL
from smart_jax.runtime import make_mesh
from tests.training import make_config, page
from train.data import Example, Skipped, Split, convert, open_split, put_batch
from train.monitor import read_metrics
from train.posttrain import train
from train.run_directory import UnwrittenError
from train.states import cache, encode
from train.states.items import Items
from train.states.store import Store
from train.states.worth import GIB, Need
from train.sweep import sweep
from train.training import Training


def over(config, folder, output, **changes):
    """The same run over states in a folder."""
    data = dataclasses.replace(config.data, cache_states=str(folder), **changes)
    return dataclasses.replace(config, data=data, output=str(output))


def log(config):
    return read_metrics(Path(config.output) / "metrics.jsonl")


def exported(config):
    return load_file(Path(config.output) / "adapter" / "adapter.safetensors")


@pytest.fixture
def small_files(monkeypatch):
    """A batch of one row for each of 8 devices, and a file for each batch."""
    monkeypatch.setattr(cache, "SHARD_ITEMS", 8)
    monkeypatch.setattr(encode, "ROWS", (1, 1))


@pytest.fixture(scope="module")
def runs(inputs, tmp_path_factory):
    """A run that computes the states at every step, and one that has computed them once. Read only."""
    folder = tmp_path_factory.mktemp("cached")
    settings = {"steps": 4, "eval__every": 2, "eval__validation_documents": 99, "checkpoint__every": 2}
    settings |= {"loss__objective": "hybrid", "loss__late_loss_weight": 0.5, "adapter__layers": "last 2"}
    plain = make_config(inputs, folder / "plain", **settings, mesh__data=2, mesh__fsdp=4)
    cached = over(plain, folder / "states", folder / "cached")
    train(plain)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache, "SHARD_ITEMS", 8)
        patch.setattr(encode, "ROWS", (1, 1))
        train(cached)
    return SimpleNamespace(folder=folder, plain=plain, cached=cached)


@pytest.mark.compiles
def test_a_run_over_states_is_the_run_that_computes_them(runs):
    """Losses, gradients, the validation batches and the search of the split, on eight devices."""
    for plain, cached in zip(log(runs.plain), log(runs.cached), strict=True):
        assert plain.keys() == cached.keys()
        for name in plain.keys() - {"tokens_per_second", "examples_per_second", "seconds_per_step", "host_memory_gib"}:
            assert cached[name] == pytest.approx(plain[name], abs=1e-4, rel=1e-4), name
    for name, value in exported(runs.plain).items():
        np.testing.assert_allclose(exported(runs.cached)[name], value, atol=1e-4, err_msg=name)
    files = {side: len(list((runs.folder / "states" / side).iterdir())) for side in ("queries", "documents")}
    assert files == {"queries": 5, "documents": 5}  # of the 40 of both splits


@pytest.mark.compiles
def test_another_rate_and_fewer_layers_need_no_new_states(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(QwenVL, "__call__", lambda *_, **__: pytest.fail("the backbone was asked"))
    config = over(runs.cached, runs.folder / "states", tmp_path)
    optimizer = dataclasses.replace(config.optimizer, learning_rate=0.1)
    adapter = dataclasses.replace(config.adapter, layers="-1", dim=16)
    results = train(dataclasses.replace(config, optimizer=optimizer, adapter=adapter, steps=2))
    assert np.isfinite(results["validation/loss"]) and "validation/late_ndcg@5" in results
    assert log(config)[1]["loss"] != log(runs.cached)[1]["loss"]


@pytest.mark.compiles
def test_a_run_that_is_resumed_goes_on_over_the_states(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(QwenVL, "__call__", lambda *_, **__: pytest.fail("the backbone was asked"))
    config = dataclasses.replace(runs.cached, output=str(tmp_path / "cut"), resume=True)
    shutil.copytree(runs.cached.output, config.output)
    shutil.rmtree(tmp_path / "cut" / "checkpoints" / "4")
    shutil.rmtree(tmp_path / "cut" / "adapter")
    train(config)
    assert [record["loss"] for record in log(config)] == [record["loss"] for record in log(runs.cached)]
    for name, value in exported(runs.cached).items():
        np.testing.assert_array_equal(exported(config)[name], value)


@pytest.mark.compiles
def test_other_states_are_refused(runs, inputs, tmp_path):
    states, output = runs.folder / "states", tmp_path / "run"
    other = shutil.copytree(inputs / "model", tmp_path / "model")
    (other / "smart_jax.json").write_text('{"max_pixels": 4096}')
    for config, difference in (
        (over(runs.cached, states, output, cache_dtype="int8"), "dtype 'float32', not 'int8'"),
        (over(runs.cached, states, output, document_instruction="Read it."), "'document_instruction': None.*, not"),
        (over(runs.cached, states, output, query_instruction="Find it."), "'query_instruction': None.*, not"),
        (dataclasses.replace(over(runs.cached, states, output), model=str(other)), "model '.*', not"),
        (over(runs.cached, states, output, negatives=1), "'negatives': 0"),
    ):
        with pytest.raises(
            ValueError, match=f"holds states of other things .*{difference}.*delete it, or name another"
        ):
            train(config)
        shutil.rmtree(output)


@pytest.mark.compiles
def test_encoding_goes_on_where_it_was_interrupted(inputs, tmp_path, monkeypatch, small_files):
    """A full disk, then a damaged file: what is whole is not encoded again."""
    config = make_config(inputs, tmp_path / "run", steps=1, data__cache_states=str(tmp_path / "states"))
    write, written = Store.write, []

    def full_at_the_seventh(self, shard, *rest):
        if len(written) == 6:
            raise OSError(28, "No space left on device")
        written.append((self.folder.name, shard))
        write(self, shard, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", full_at_the_seventh)
        with pytest.raises(UnwrittenError, match="00001.safetensors cannot be written.*resume the run"):
            train(config)
    assert written == [*(("queries", shard) for shard in range(5)), ("documents", 0)]
    damaged = tmp_path / "states" / "queries" / "00002.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:40])
    written.clear()
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", lambda *x: written.append((x[0].folder.name, x[1])) or write(*x))
        train(dataclasses.replace(config, resume=True))
    assert written == [("queries", 2), *(("documents", shard) for shard in range(1, 5))]


@pytest.mark.compiles
def test_auto_keeps_the_states_while_the_run_lasts(inputs, tmp_path, monkeypatch, capsys):
    """The pages are read 64 times in 8 steps; from a slow disk, or a small one, they are not kept."""
    pages = len(open_split(inputs / "data", "pages"))
    config = make_config(inputs, tmp_path / "run", data__cache_states="auto", eval__validation_batches=0)
    seen = []
    update = Training.update

    def seen_update(self, batch):
        seen.append(type(batch.queries).__name__)
        return update(self, batch)

    monkeypatch.setattr(Training, "update", seen_update)
    train(config)
    assert seen == ["StatesBatch"] * 8 and not (tmp_path / "run" / "states").exists()
    small = SimpleNamespace(free=10**5)
    for change, reason in (
        ((cache, "read_rate", lambda file: 1e-3), f"each of {pages} documents is read {32 / pages:.1f} times, 0 a"),
        ((shutil, "disk_usage", lambda path: small), "0.0 GiB of states are more than half"),
    ):
        seen.clear()
        with monkeypatch.context() as patch:
            patch.setattr(*change)
            train(dataclasses.replace(config, steps=4, overwrite=True))
        assert f"the frozen states are computed anew at every step: {reason}" in capsys.readouterr().out
        assert seen == ["Batch"] * 4 and not (tmp_path / "run" / "states").exists()


@pytest.mark.compiles
def test_a_disk_without_room_is_refused(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=10**5))
    with pytest.raises(ValueError, match=r"0\.00 GiB of states do not fit .* set config.data.cache_dtype=int8"):
        train(make_config(inputs, tmp_path / "run", data__cache_states=str(tmp_path / "states")))
    with pytest.raises(ValueError, match="trainable = 'lora' changes the states"):
        make_config(inputs, tmp_path, trainable="lora", data__cache_states="states")


@pytest.mark.compiles
def test_batches_have_negatives_scores_and_stand_ins(inputs, tmp_path, monkeypatch, capsys):
    """They equal a `Batcher`'s of the same examples, in fewer bits, too; a page that cannot be read is stood in for."""
    rows = [
        {
            "image": {"bytes": page(i // 2), "path": None},
            "query": f"page number {i % 6}",
            "negatives": [{"bytes": page(30 + i), "path": None}],
            "scores": [0.5, 0.25 * (i % 3)],
        }
        for i in range(8)
    ]
    (tmp_path / "source").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "source" / "train.parquet")
    convert(tmp_path / "source", "pages", tmp_path / "data", validation_ratio=0)
    read = Split.__getitem__

    def with_a_broken_negative(self, index):
        example = read(self, index)
        return dataclasses.replace(example, negatives=({"image": b"broken"},)) if index == 2 else example

    monkeypatch.setattr(Split, "__getitem__", with_a_broken_negative)
    settings = {"loss__distillation": "kl", "data__negatives": 1, "data__max_skipped": 9, "adapter__layers": "last 2"}
    settings |= {"data__dir": str(tmp_path / "data"), "eval__validation_batches": 0}
    plain, mesh = make_config(inputs, tmp_path / "run", **settings), make_mesh(devices=jax.devices()[:1])
    training, examples = Training(plain, mesh, 1), open_split(tmp_path / "data", "pages")
    evaluate = jax.jit(training.objective)

    def loss(batch):
        return float(evaluate(training.state.params, training.frozen, batch, jnp.int32(1))[0])

    expected = training.batcher.arrays([examples[i] for i in range(8)], Skipped(9))
    for dtype, tolerance in (("float32", 1e-4), ("bfloat16", 0.1), ("int8", 0.2)):
        cached = Training(over(plain, tmp_path / dtype, tmp_path / "run", cache_dtype=dtype), mesh, 1)
        states = cached.keep_states(tmp_path / "run", 1)
        assert (states.queries.count, states.documents.count) == (6, 12)
        batch = cached.batcher.arrays(list(states.items.examples(("pages", "train"))), Skipped(9))
        np.testing.assert_array_equal(batch.document_ids, expected.document_ids)
        np.testing.assert_array_equal(batch.teacher, expected.teacher)
        assert abs(loss(put_batch(batch, mesh)) - loss(put_batch(expected, mesh))) < tolerance
        sizes = {"float32": 4, "bfloat16": 2, "int8": 1}
        assert batch.documents.states.dtype.itemsize == sizes[dtype] and batch.documents.states.shape[2] == 2
    said = capsys.readouterr().out
    assert (
        said.count("example 'pages/train[2]' is left out, 1 of at most 9: the image bytes of document 1 of example")
        == 3
    )
    with pytest.raises(ValueError, match="document 1 of example"):
        cached.batcher.arrays(list(states.items.examples(("pages", "train"))), Skipped(0))


def test_what_pays():
    twice = Need(read=200, documents=100, size=GIB)
    assert twice.refusal(3 * GIB) == "" and "more than half" in twice.refusal(GIB)
    assert "100 documents, of which 100 differ" in Need(100, 100, 0).refusal(GIB)
    assert twice.pays(rate=10, reading=21) and not twice.pays(rate=10, reading=19)  # 2 / (2 - 1)
    assert not Need(100, 100, 0).pays(rate=1, reading=1e9)


def test_items_that_are_the_same_are_one():
    film = {"video": "a.mp4"}
    pages = [
        Example("a", {"text": "q"}, {"text": "x"}, ({"text": "y"}, {"text": "z"}), scores=(0.5, 0.25, 0.125)),
        Example("b", {"text": "r"}, {"text": "y"}, ({"text": "x"},)),
    ]
    films = [Example("c", {"text": "q"}, film | {"fps": 1}), Example("d", {"text": "q"}, film | {"fps": 2})]
    items = Items.of({("pages", "train"): pages, ("films", "train"): films}, negatives=1)
    assert items.queries.tolist() == [0, 1, 0, 0]
    assert items.documents.tolist() == [[0, 1], [1, 0], [2, -1], [3, -1]]
    assert (items.words[2] == items.words[3]).all()  # a film is no negative of itself
    assert items.scores[0].tolist() == [0.5, 0.25] and np.isnan(items.scores[1:]).all()
    assert items.first_queries.tolist() == [0, 1] and items.first_documents.tolist() == [[0, 0], [0, 1], [2, 0], [3, 0]]
    assert items.name(3) == "films/train[1]" and items.examples(("films", "train"))[1].id == "3"


def test_a_row_of_the_benchmark():
    clock = [5.0, *(6.0 + 0.5 * step for step in range(20))]
    taken = {"clock": clock, "losses": [2.0] * 20, "bytes": 3e6}
    plain = {"losses": [2.0] * 5 + [2.25]}
    assert cached_states.row("once", "int8", taken, 31, plain) == (
        "| once | int8 | 21 | 5 | 500 [500, 500] | 3 | 2.5e-01 |"
    )


def test_a_sweep_is_a_run_for_each_value():
    settings = {"output": "runs/x", "trainable": "adapter", "data": {"cache_states": "auto"}}
    rates = sweep(settings, "optimizer.learning_rate=1e-3,3e-4")
    assert [(run.output, run.optimizer.learning_rate) for run in rates] == [("runs/x/01", 1e-3), ("runs/x/02", 3e-4)]
    assert {run.data.cache_states for run in rates} == {"runs/x/states"}
    assert [run.loss.objective for run in sweep(settings, "loss.objective=late,hybrid")] == ["late", "hybrid"]
    assert [run.adapter.dim for run in sweep(settings, "adapter.dim=None,64")] == [None, 64]
    for text, error in (("seed", "expected KEY=VALUE"), ("loss.temprature=1,2", "did you mean 'loss.temperature'")):
        with pytest.raises(ValueError, match=error):
            sweep(settings, text)
