"""Tests of what a run shows of itself: the held-out search and its samples, norms, rates, TensorBoard, wandb."""

from __future__ import annotations

import io
import math
import sys
import time
from itertools import count, islice
from pathlib import Path
from types import ModuleType, SimpleNamespace

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from tensorboardX.proto.event_pb2 import Event

from smart_jax import checkpoint_encoder as encode
from smart_jax.inputs.image import open_rgb
from smart_jax.runtime import make_mesh
from tests.golden.make_video import clip
from tests.training import make_config, page, repeatable
from train.checkpoints import Checkpoints
from train.data import Example, open_split
from train.monitor import HeldOut, MetricsLog, Sample, ranking_metrics, read_metrics
from train.monitor.heldout import Scored, side_by_side
from train.monitor.tensorboard import EventFile
from train.posttrain import train
from train.validation import Validation


def events(folder: Path) -> list[Event]:
    """Reads all event files: a length, its checksum, an event, its checksum, and so on."""
    found = []
    for file in sorted(folder.iterdir()):
        data, at = file.read_bytes(), 0
        while at < len(data):
            size = int.from_bytes(data[at : at + 8], "little")
            found.append(Event.FromString(data[at + 12 : at + 12 + size]))
            at += size + 16
    return found


class FakeWandb(ModuleType):
    """Records what it is called with."""

    def __init__(self):
        super().__init__("wandb")
        self.calls: list[tuple] = []

    def init(self, **options):
        self.calls.append(("init", options))
        record = lambda name: lambda *args, **kw: self.calls.append((name, *args, *kw.items()))  # noqa: E731
        return SimpleNamespace(**{name: record(name) for name in ("log", "define_metric", "finish")})

    def Image(self, picture, caption):  # noqa: N802
        return ("image", picture.size, caption)


SETTINGS = {
    "loss__objective": "hybrid",
    "steps": 4,
    "eval__every": 2,
    "eval__samples": 2,
    "eval__validation_documents": 99,
    "log__wandb": "pages",
    "log__peak_tflops": 0.001,
}
PAUSE = 1.5  # seconds of an evaluation, and of saving


@pytest.fixture(scope="module")
def watched(inputs, tmp_path_factory):
    """A run's folder, records, results and wandb calls; evaluating and saving are slow."""
    fake, folder = FakeWandb(), tmp_path_factory.mktemp("watched") / "run"

    def eval_fn(encoder):
        time.sleep(PAUSE)
        return {"nothing": 0.0}

    save = Checkpoints.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", fake)
        patch.setattr(Checkpoints, "save", lambda *args, **kw: time.sleep(PAUSE) or save(*args, **kw))
        results = train(make_config(inputs, folder, **SETTINGS), eval_fn)
        calls = list(fake.calls)
        train(make_config(inputs, folder, **SETTINGS, resume=True), eval_fn)
    records = read_metrics(folder / "metrics.jsonl")
    return SimpleNamespace(
        folder=folder,
        records=records,
        results=results,
        calls=calls,
        again=fake.calls[len(calls) :],
    )


@pytest.mark.compiles
def test_the_held_out_split_is_searched(inputs, watched):
    """Against ranks in float64 NumPy of the exported adapter's embeddings."""
    split = open_split(inputs / "data", "pages", "validation")
    model = encode.load(inputs / "model", adapter=watched.folder / "adapter")
    held_out, last = [split[i] for i in range(len(split))], watched.records[-1]
    q = model.encode_query([e.query for e in held_out])
    d = model.encode_document([e.document for e in held_out])
    pooled = q.pooled.astype(np.float64) @ d.pooled.astype(np.float64).T
    late = np.array([[np.mean(np.max(a @ b.T, axis=1)) for b in tokens(d)] for a in tokens(q)])
    for name, scores in {"pooled": pooled, "late": late, "hybrid": pooled + late}.items():
        ranks = [1 + int(np.sum(np.delete(row, i) >= row[i])) for i, row in enumerate(scores)]
        expected = {"ndcg@5": np.mean([1 / math.log2(1 + r) if r <= 5 else 0 for r in ranks])}
        expected |= {f"recall@{k}": np.mean([r <= k for r in ranks]) for k in (1, 10)}
        for metric, value in expected.items():
            assert last[f"validation/{name}_{metric}"] == pytest.approx(value, abs=1e-6), (name, metric)
    assert watched.results.keys() <= watched.records[-1].keys() and "validation/loss" in watched.results
    assert "validation/late_ndcg@5" not in watched.records[2]


def test_the_loss_is_a_mean_over_the_batches_that_there_are(inputs, tmp_path, monkeypatch, unchecked):
    """More are asked for than the split has; each has a loss of its own."""

    class Batches:
        def prepare(self, examples, count):
            return (SimpleNamespace(put=lambda _: SimpleNamespace(batch=None)) for _ in islice(examples, count))

    numbers = count(1)
    monkeypatch.setattr("train.validation.make_eval_step", lambda _: lambda *_: {"loss": next(numbers)})
    settings = {"batch_size": 2, "eval__validation_batches": 99, "eval__validation_documents": 0}
    objective = SimpleNamespace(mesh=make_mesh(devices=jax.devices()[:1]))
    validation = Validation(make_config(inputs, tmp_path, **settings), Batches(), objective)
    results, _ = validation(None, None, lambda: None)
    batches = next(numbers) - 1
    assert batches == len(open_split(inputs / "data", "pages", "validation")) // 2 > 1
    assert results == {"validation/loss": pytest.approx((1 + batches) / 2)}


def tokens(e):
    return [e.tokens[a:b].astype(np.float64) for a, b in zip(e.offsets[:-1], e.offsets[1:], strict=True)]


def test_ranking_metrics_of_known_ranks():
    scores = np.array(
        [[3.0, 1, 2, 0, -1, -2], [3, 2, 1, 0, -1, -2], [5, 4, 3, 2, 1, 0], [1, 1, 0, 0, 0, 0]], np.float32
    )
    found = ranking_metrics(scores, np.array([0, 2, 5, 0]))  # ranks 1, 3, 6 and, the tie lost, 2
    assert found == pytest.approx({"ndcg@5": (1 + 0.5 + 1 / math.log2(3)) / 4, "recall@1": 0.25, "recall@10": 1.0})
    constant = ranking_metrics(np.zeros((3, 12), np.float32), np.arange(3))
    assert set(constant.values()) == {0.0}


def items(count: int = 4) -> list[Example]:
    documents = [{"image": page(i)} for i in range(count)]
    documents[3] = {"text": "the third text"}
    queries = [{"text": f"find {i}"} for i in range(count)]
    queries[2] = {"video": clip("bikes"), "max_frames": 4}
    return [Example(f"row {i}", queries[i], documents[i]) for i in range(count)]


def test_documents_are_there_once_and_bounded():
    examples = items()
    examples.insert(1, Example("row 0 again", {"text": "find 0 too"}, examples[0].document))
    whole = HeldOut(examples, 99, lambda e: True, name="split")
    assert (whole._queries, whole._documents, whole._positives.tolist()) == (
        [0, 1, 2, 3, 4],
        [0, 2, 3, 4],
        [0, 0, 1, 2, 3],
    )
    some = HeldOut(examples, 2, lambda e: True, name="split")
    assert (some._queries, some._documents, some._positives.tolist()) == ([0, 1, 2], [0, 2], [0, 0, 1])
    readable = HeldOut(examples, 2, lambda e: e.id != "row 1", name="split")
    assert (readable._documents, readable._positives.tolist()) == ([0, 3], [0, 0, 1])
    with pytest.raises(ValueError, match="split 'x' has 1 different documents .*validation_documents=0"):
        HeldOut(examples[:2], 9, lambda e: True, name="split 'x'")


def test_samples_are_the_extremes_by_margin(checkpoint):
    encoder, held_out = encode.load(checkpoint), HeldOut(items(), 9, lambda e: True, name="split")
    late = np.array([[9.0, 1, 2, 3], [5, 4, 4.5, 0], [0, 0, 1, 7], [1, 2, 3, 4]], np.float32)  # margins 6, -1, -6, 1
    found = Scored({"late": late, "pooled": -late}, np.arange(4))
    samples = held_out.samples(found, "late", 2, encoder)
    assert [s.name for s in samples] == ["samples/worst_1", "samples/worst_2", "samples/best_1", "samples/best_2"]
    for sample, query in zip(samples, (2, 1, 0, 3), strict=True):
        assert f"**query** of example 'row {query}'" in sample.text
    assert "**its document**, late score 1.0000, example 'row 2': (image)" in samples[0].text
    assert "**the best other**, late score 7.0000, example 'row 3': the third text" in samples[0].text
    film = encoder.preprocessor.picture(items()[2].query)  # the middle frame, and the page beside it
    assert samples[0].picture.size == side_by_side([film, open_rgb(page(2))]).size
    np.testing.assert_array_equal(samples[1].picture, side_by_side([open_rgb(page(i)) for i in (1, 0)]))
    np.testing.assert_array_equal(np.asarray(samples[1].picture)[:, :64], open_rgb(page(1)))
    assert len(held_out.samples(found, "late", 99, encoder)) == 4 and not held_out.samples(found, "late", 0, encoder)
    assert side_by_side([]) is None


@pytest.mark.compiles
def test_norms_are_those_of_the_parameters(inputs, watched):
    last = watched.records[-1]
    assert last["param_norm"] == last["param_norm_adapter"] and last["update_norm"] > 0
    arrays = load_file(watched.folder / "adapter" / "adapter.safetensors").values()
    expected = math.sqrt(sum(float(np.sum(x.astype(np.float64) ** 2)) for x in arrays))
    assert last["param_norm"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.compiles
def test_rates_are_of_the_updates_alone(watched):
    for record in watched.records[1:]:
        assert 0 < record["seconds_per_step"] < PAUSE
        assert record["examples_per_second"] == pytest.approx(8 / record["seconds_per_step"])
        assert record["tokens_per_second"] > 2 * record["examples_per_second"]
        assert record["mfu"] > 0 and record["host_memory_gib"] > 0
        assert record["skipped_examples"] == 0 and "device_memory_gib" not in record


@pytest.mark.compiles
def test_tensorboard_has_the_curves_and_the_samples(watched):
    found = events(watched.folder / "tensorboard")
    values = {(e.step, v.tag): v for e in found for v in e.summary.value}
    for record in watched.records:
        for name, value in record.items():
            if name != "step":
                assert values[record["step"], name.replace("@", "_at_")].simple_value == pytest.approx(value, rel=1e-6)
    for step in (2, 4):
        for name in ("worst_1", "worst_2", "best_1", "best_2"):
            shown = Image.open(io.BytesIO(values[step, f"samples/{name}"].image.encoded_image_string))
            assert shown.size == (64 + 8 + 64, 64)
            assert b"page number" in values[step, f"samples/{name}/text_summary"].tensor.string_val[0]
    assert not any(step == 3 and "samples" in tag for step, tag in values)


def test_events_are_on_disk_when_they_are_written_and_hide_what_came_later(tmp_path):
    file = EventFile(tmp_path, 1)
    file.write(5, {"loss": 1.5}, [Sample("s", "words", None)])
    first = events(tmp_path)  # not closed: the process may be killed now
    assert [(v.tag, v.simple_value) for e in first for v in e.summary.value] == [("loss", 1.5), ("s/text_summary", 0.0)]
    again = EventFile(tmp_path, 4)
    again.close()
    starts = [e.step for e in events(tmp_path) if e.session_log.status == 1]
    assert sorted(starts) == [1, 4]
    file.close()


@pytest.mark.compiles
def test_wandb_gets_a_copy_and_goes_on_with_its_run(watched):
    (_, options), *rest = watched.calls
    assert (options["project"], options["resume"], options["name"]) == ("pages", "allow", "run")
    assert options["config"]["log"]["wandb"] == "pages" and options["dir"] == str(watched.folder)
    assert rest[0] == ("define_metric", "*", ("step_metric", "step")) and rest[-1] == ("finish",)
    logged = [call[1] for call in rest if call[0] == "log"]
    assert [entry["step"] for entry in logged] == [1, 2, 3, 4, 4]  # the evaluation after the run by itself
    for entry, record in zip([*logged[:3], logged[3] | logged[4]], watched.records, strict=True):
        assert record.items() <= entry.items()
    kind, size, caption = logged[1]["samples/worst_1"]
    assert (kind, size) == ("image", (136, 64)) and caption.startswith("**query**")
    assert [call[0] for call in watched.again] == ["init", "define_metric", "finish"]
    assert watched.again[0][1]["id"] == options["id"]


def test_wandb_that_is_not_installed_is_an_early_error(inputs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"log\.wandb is 'pages', but wandb is not installed: pip install"):
        train(make_config(inputs, tmp_path / "run", log__wandb="pages"))
    assert not (tmp_path / "run").exists()


def test_wandb_is_imported_only_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    log = MetricsLog(tmp_path)
    log.write(1, {"loss": 0.5})
    log.close()
    assert repeatable(read_metrics(log.path)) == [{"step": 1, "loss": 0.5}]
