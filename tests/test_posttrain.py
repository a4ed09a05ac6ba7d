"""The trainer: its loss against NumPy, any number of devices, and runs that are killed, stopped and resumed."""

from __future__ import annotations

import dataclasses
import functools
import json
import shutil
import signal
import subprocess
import time
import weakref
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from jax.sharding import Mesh
from safetensors import safe_open

from configs import lora_visdoc
from eval.benchmarks import Deferred
from eval.methods import make_eval_fn
from smart_jax import checkpoint_encoder as encode
from smart_jax.maxsim import maxsim, projected
from smart_jax.maxsim.ring import ring_maxsim
from smart_jax.models.qwen_vl import QwenVL
from smart_jax.retrieval.adapter import Adapter
from smart_jax.runtime.mesh import make_mesh
from tests.backbone import write_checkpoint
from tests.checkpoints import write_processor
from tests.golden.make_video import clip
from tests.lora import write_lora
from tests.processes import run_python
from tests.training import make_config, page, repeatable
from train.checkpoints import weights_fingerprint
from train.config import DataConfig
from train.data import Batcher, Example, Examples, Prepared, convert, open_split
from train.export import export_model, is_exported, mark_exported
from train.monitor import read_metrics
from train.objective import objective as objective_module
from train.posttrain import train
from train.setup import load_encoder, make_objective, weight_folders
from train.step import TrainState, make_eval_step
from train.training import Training
from train.validation import UnevaluatedError

pytestmark = pytest.mark.compiles


def examples(count: int = 8, negatives: int = 0) -> list[Example]:
    def document(i):
        return {"image": page(i)} if i % 3 else {"text": f"the text of page {i}"}

    pages = [1, 2, 3, 4, 1, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]  # example 4 asks for example 0's page again
    others = [tuple(document(50 + 100 * i + k) for k in range(negatives)) for i in range(count)]
    return [Example(str(i), {"text": f"find {i}"}, document(pages[i]), others[i]) for i in range(count)]


def loss_and_gradient(config, mesh: Mesh | int, batch: list[Example], perturb: int | None = None, derive: bool = True):
    """Loss, metrics, gradient (None unless `derive`, which is most of the compilation) and what they are of."""
    mesh = make_mesh(devices=jax.devices()[:mesh]) if isinstance(mesh, int) else mesh
    encoder = load_encoder(config, mesh)
    params, frozen, objective = make_objective(config, encoder, mesh, steps=10)
    if perturb is not None:
        rng = np.random.default_rng(perturb)
        noise = {n: 0.1 * rng.standard_normal(x.shape).astype(np.float32) for n, x in sorted(params.items())}
        params = {n: jax.device_put(x + noise[n], x.sharding) for n, x in params.items()}
    teacher = config.loss.distillation != "none"
    arrays = Batcher(encoder.preprocessor, config.data, mesh, teacher=teacher)(batch)
    function = jax.jit(jax.value_and_grad(objective, has_aux=True) if derive else lambda *x: (objective(*x), None))
    (loss, metrics), gradient = function(params, frozen, arrays, jnp.int32(3))
    return float(loss), jax.device_get(metrics), jax.device_get(gradient), (encoder, objective, params)


def np_scores(queries, documents) -> tuple[np.ndarray, np.ndarray]:
    """Pooled and mean-MaxSim scores in float64, item by item."""
    late = [
        [(q.astype(np.float64) @ d.astype(np.float64).T).max(axis=1).mean() for d in _tokens(documents)]
        for q in _tokens(queries)
    ]
    return queries.pooled.astype(np.float64) @ documents.pooled.astype(np.float64).T, np.array(late)


def _tokens(e):
    return [e.tokens[a:b] for a, b in zip(e.offsets[:-1], e.offsets[1:], strict=True)]


def np_cross_entropy(logits, positives) -> float:
    logits = logits - logits.max(axis=1, keepdims=True)
    return float(np.mean(np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(logits)), positives]))


@pytest.mark.parametrize("tokens", ["kept", "all"])
def test_the_loss_is_that_of_the_encoders_scores(inputs, tmp_path, tokens):
    """The same adapter, through `Encoder.encode` and float64 NumPy; example 4's page is example 0's and is masked."""
    settings = {"loss__objective": "hybrid", "loss__late_loss_weight": 0.5, "data__negatives": 1, "adapter__dim": 24}
    settings |= {"adapter__layers": "last 2", "adapter__pooled_dim": 20, "loss__tokens": tokens}
    config = make_config(inputs, tmp_path, **settings)
    batch = examples(negatives=1)
    loss, metrics, gradient, (encoder, objective, params) = loss_and_gradient(config, 1, batch, perturb=0)
    assert gradient.keys() == {f"adapter.{n}" for n in ("norm.scale", "norm.bias", "proj.kernel", "layer_vector")}
    assert all(np.abs(g).max() > 0 for g in gradient.values())

    keep = encode.load(config.model, settings={"keep": "words" if tokens == "kept" else "all"}).preprocessor
    adapted = dataclasses.replace(encoder.with_adapter(objective.adapter.merge(params)), preprocessor=keep)
    queries = adapted.encode_query([e.query for e in batch])
    documents = adapted.encode_document([d for e in batch for d in (e.document, *e.negatives)])
    pooled, late = np_scores(queries, documents)
    for scores in (pooled, late):
        scores[0, 8] = scores[4, 0] = -np.inf
    at = np.arange(8) * 2
    hybrid_loss, late_loss = np_cross_entropy((pooled + late) / 0.03, at), np_cross_entropy(late / 0.03, at)
    assert metrics["hybrid_loss"] == pytest.approx(hybrid_loss, abs=2e-3)  # scores agree to 2e-5, over 0.03
    assert loss == pytest.approx(hybrid_loss + 0.5 * late_loss, abs=2e-3)

    unmasked = dataclasses.replace(config, loss=dataclasses.replace(config.loss, mask_false_negatives=False))
    assert loss_and_gradient(unmasked, 1, batch, perturb=0, derive=False)[0] > loss + 4e-3


TRAINABLE = {
    "adapter": {
        "loss__objective": "hybrid",
        "loss__late_loss_weight": 0.5,
        "loss__diversity_weight": 0.1,
        "loss__overlap_weight": 0.1,
        "adapter__layers": "last 2",
        "data__negatives": 1,
    },
    "attention": {
        "adapter__kind": "self_attention",
        "adapter__heads": 4,
        "adapter__blocks": 2,
        "adapter__layers": "last 2",
        "loss__temperature": 0.3,
    },
    "mlp": {
        "adapter__kind": "mlp",
        "adapter__mlp_dim": 24,
        "adapter__dropout": 0.3,
        "loss__temperature": 0.3,
    },
    "full": {
        "trainable": "full",
        "weights": ".",
        "loss__objective": "hybrid",
        "loss__symmetric": True,
        "loss__temperature": 0.3,
    },
    "adapter+lora": {
        "trainable": "adapter+lora",
        "lora__r": 4,
        "lora__alpha": 8.0,
        "lora__dropout": 0.3,
        "lora__modules": r"_proj$|visual\.blocks\.1",
        "loss__temperature": 0.3,
    },
    "lora": {"trainable": "lora", "lora__r": 4, "loss__objective": "hybrid", "loss__temperature": 0.3},
    "nf4": {"trainable": "lora", "lora__r": 4, "lora__quantize": "nf4", "loss__temperature": 0.3},
}


@pytest.fixture(scope="module")
def one_device(inputs, tmp_path_factory):
    """Config, batch, and loss and gradient on one device, by name in TRAINABLE."""

    @functools.cache
    def computed(name):
        config = make_config(inputs, tmp_path_factory.mktemp(name), **TRAINABLE[name])
        batch = examples(16, negatives=config.data.negatives)
        return config, batch, loss_and_gradient(config, 1, batch, perturb=1)

    return computed


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("adapter", (8, 1, 1)),
        ("adapter+lora", (2, 2, 2)),
        *(slow(name, (2, 2, 2)) for name in ("adapter", "attention", "mlp", "full", "lora", "nf4")),
        slow("full", (2, 4, 1)),
    ],
    ids=str,
)
def test_eight_devices_equal_one(one_device, name, sizes):
    """Split by data alone, with the parameters over some, and with matrices over some more.

    All kinds of parameters with all three; one kind with fewer.
    """
    config, batch, one = one_device(name)
    many = loss_and_gradient(config, make_mesh(*sizes), batch, perturb=1)
    assert many[0] == pytest.approx(one[0], abs=1e-5 * max(1, abs(one[0])))
    scale = max(np.abs(g).max() for g in one[2].values())
    for parameter, gradient in one[2].items():
        np.testing.assert_allclose(many[2][parameter], gradient, atol=1e-5 * max(1, scale), err_msg=parameter)


@pytest.mark.parametrize(
    ("name", "devices", "chunk"),
    [("adapter", 1, 4), slow("adapter+lora", 8, 8), slow("full", 1, 5)],
)
def test_chunks_change_nothing(one_device, monkeypatch, name, devices, chunk):
    """GradCache: loss and gradient of the whole batch, with the same dropout, from a backbone that sees a chunk."""
    config, batch, expected = one_device(name)
    rows, call = [], QwenVL.__call__

    def seen(self, batch, **options):
        rows.append(len(batch.input_ids))
        return call(self, batch, **options)

    monkeypatch.setattr(QwenVL, "__call__", seen)
    found = loss_and_gradient(dataclasses.replace(config, chunk_size=chunk), devices, batch, perturb=1)
    assert set(rows) == {min(chunk, 4) if devices == 1 else 8}  # the largest that divides 16
    assert found[0] == pytest.approx(expected[0], abs=1e-5 * max(1, abs(expected[0])))
    scale = max(np.abs(g).max() for g in expected[2].values())
    for parameter, gradient in expected[2].items():
        np.testing.assert_allclose(found[2][parameter], gradient, atol=1e-5 * max(1, scale), err_msg=parameter)


@pytest.mark.parametrize(
    ("name", "devices"),
    [("adapter", 1), ("attention", 1), ("mlp", 1), *(slow(n, 8) for n in ("adapter", "attention", "mlp", "lora"))],
)
def test_a_bank_in_parts_changes_nothing(one_device, monkeypatch, name, devices):
    """remat: documents projected, or passed on, one at a time by each device, against all at once."""
    config, batch, expected = one_device(name)
    calls = []
    monkeypatch.setattr(projected, "GROUP_VALUES", 1)
    for name in ("maxsim", "ring_maxsim"):
        function = getattr(projected, name)
        monkeypatch.setattr(projected, name, lambda *a, f=function: calls.append((f, a[1].shape[0])) or f(*a))
    found = loss_and_gradient(dataclasses.replace(config, remat=True), devices, batch, perturb=1)
    assert {documents for _, documents in calls} == {1}  # at a time
    assert {function for function, _ in calls} == {ring_maxsim if devices > 1 else maxsim}
    assert found[0] == pytest.approx(expected[0], abs=1e-5 * max(1, abs(expected[0])))
    scale = max(np.abs(g).max() for g in expected[2].values())
    for parameter, gradient in expected[2].items():
        np.testing.assert_allclose(found[2][parameter], gradient, atol=1e-5 * max(1, scale), err_msg=parameter)


def test_the_papers_lora_branches_reach_vision_but_not_deepstack(inputs, tmp_path):
    """With LamRA's prompt and all tokens; the patches' map has no branch, and DeepStack's mergers no gradient."""
    reference = lora_visdoc.get_config("reference")
    settings = {name: reference.loss[name] for name in ("objective", "tokens", "mask_false_negatives")}
    settings = {f"loss.{name}": value for name, value in settings.items()} | {"loss.temperature": 0.3}
    settings |= {f"lora.{name}": reference.lora[name] for name in ("modules", "dropout")} | {"lora.r": 4}
    settings |= {"trainable": "lora", "head": reference.head, "data.clean_queries": reference.data.clean_queries}
    batch = examples(4)
    loss, metrics, gradient, (encoder, *_) = loss_and_gradient(make_config(inputs, tmp_path, **settings), 1, batch, 1)
    assert np.isfinite(loss) and {"pooled_loss", "late_loss"} <= metrics.keys()
    assert not any("patch_embed" in name for name in gradient)
    of_b = {name: np.abs(x).max() for name, x in gradient.items() if name.endswith(".b")}
    reached = {name for name, largest in of_b.items() if largest > 0}
    assert of_b.keys() - reached == {name for name in of_b if "deepstack" in name} != set()
    assert {f"lora.visual.{name}.b" for name in ("blocks.1.attn.qkv", "merger.linear_fc2")} <= reached
    words = encoder.preprocessor.tokenizer.decode(encoder.preprocessor.tokenize("a page.", query=True).input_ids)
    assert words.startswith("<|im_start|>user\na page.\nSummarize above sentence in one word: <|im_end|>")


def test_negatives_of_half_the_batch_are_another_loss(one_device):
    """Control: a loss over each device's own documents would be far outside the tolerance above."""
    config, batch, (whole, *_) = one_device("adapter")
    halves = [loss_and_gradient(config, 1, part, perturb=1, derive=False)[0] for part in (batch[:8], batch[8:])]
    assert abs(whole - np.mean(halves)) > 0.1


def test_a_batch_keeps_each_querys_documents_together(inputs, tmp_path):
    config = make_config(inputs, tmp_path)
    encoder = load_encoder(config, make_mesh())
    data = DataConfig(negatives=2, query_length=64, document_length=96, document_patches=32)
    batch = Batcher(encoder.preprocessor, data, make_mesh())(examples(8, negatives=2))
    assert batch.queries.input_ids.shape == (8, 64) and batch.documents.input_ids.shape == (24, 96)
    assert batch.documents.vision.patches.shape[:2] == (24, 32) and batch.queries.vision is None
    ids = [tuple(row) for row in np.asarray(batch.document_ids)]
    assert ids[0] == ids[12] and len(set(ids)) == 23  # positives of examples 0 and 4; all else differs
    with pytest.raises(ValueError, match="example '0' has 2 negatives, data.negatives asks for 3"):
        Batcher(encoder.preprocessor, dataclasses.replace(data, negatives=3), make_mesh())(examples(8, negatives=2))
    bad = dataclasses.replace(examples(1)[0], id="row 7", document={"image": b"no image"})
    with pytest.raises(ValueError, match="document 0 of example 'row 7'"):
        Batcher(encoder.preprocessor, DataConfig(), make_mesh())([bad])


@pytest.fixture(scope="module")
def finished(inputs, tmp_path_factory):
    """A run of an adapter, evaluated at steps 4 and 8: its config, results, and what the evaluations saw. Read only."""
    settings = {"checkpoint__best_metric": "eval/score", "eval__every": 4, "checkpoint__every": 3}
    config = make_config(inputs, tmp_path_factory.mktemp("finished"), **settings)
    scores, seen = iter([2.0, 1.0]), []

    def eval_fn(encoder):
        seen.append(np.asarray(encoder.encode_document(["a text"]).tokens))
        return {"score": next(scores)}

    return SimpleNamespace(config=config, folder=Path(config.output), results=train(config, eval_fn), seen=seen)


def test_few_batches_are_alive(inputs, tmp_path, monkeypatch):
    """`prefetch` + 1 at most in host memory, and two on the devices, where the next is put before it is asked for."""
    host, device, seen = Counter(), Counter(), {"host": [], "device": []}

    def count(where, key, batch):
        where[key] += 1
        weakref.finalize(batch, where.subtract, [key])
        seen["host"].append(sum(x > 0 for x in host.values()))
        seen["device"].append(sum(device.values()))
        return batch

    class Reading(list):
        pass

    begin, join, put, update = Batcher._begin, Batcher._join, Prepared.put, Training.update

    def counted_join(self, examples, reading, skipped):
        ids, batch = join(self, examples, reading, skipped)
        return ids, count(host, examples[0].id, batch)

    def counted_put(self, mesh):
        on_device = put(self, mesh)
        count(device, "", on_device.batch)
        return on_device

    def slow_update(self, batch):
        time.sleep(0.1)  # in which batches are prepared ahead
        return update(self, batch)

    monkeypatch.setattr(Batcher, "_begin", lambda self, some: count(host, some[0].id, Reading(begin(self, some))))
    monkeypatch.setattr(Batcher, "_join", counted_join)
    monkeypatch.setattr(Prepared, "put", counted_put)
    monkeypatch.setattr(Training, "update", slow_update)
    quiet = {"eval__validation_batches": 0, "checkpoint__every": 100, "log_every": 100}
    train(make_config(inputs, tmp_path, data__prefetch=2, **quiet))
    assert max(seen["host"]) == 3 and max(seen["device"]) == 2, seen
    assert not any(host.values()) and not any(device.values())


def test_trains_an_adapter_that_load_opens(inputs, finished):
    config, folder, seen, mesh = finished.config, finished.folder, finished.seen, make_mesh()
    before = jax.device_get(make_objective(config, load_encoder(config, mesh), mesh, steps=8)[0])
    records = read_metrics(folder / "metrics.jsonl")
    assert [r["step"] for r in records] == list(range(1, 9))
    assert finished.results["eval/score"] == 1.0 and np.isfinite(finished.results["validation/loss"])
    assert records[3]["eval/score"] == 2.0 and "eval/score" not in records[4]
    assert {"loss", "grad_norm", "learning_rate", "late_hit@1", "examples_per_second"} <= records[0].keys()
    assert any((folder / "tensorboard").iterdir())
    # Exported is the best step, 4, whose encoder the evaluation saw.
    model = encode.load(inputs / "model", adapter=folder / "adapter")
    np.testing.assert_allclose(model.encode_document(["a text"]).tokens, seen[0], atol=2e-5)
    assert not np.allclose(seen[0], seen[1], atol=1e-4)
    kernel = Adapter.load(folder / "adapter").proj.kernel[...]
    assert not np.allclose(kernel, before["adapter.proj.kernel"], atol=1e-4)


def test_a_finished_run_resumes_to_the_same_export(finished, tmp_path, capsys):
    again = shutil.copytree(finished.folder, tmp_path / "again")
    (again / "adapter" / "adapter.safetensors").unlink()
    config = dataclasses.replace(finished.config, output=str(again), resume=True)
    assert train(config, lambda encoder: pytest.fail("evaluated again")) == finished.results
    assert "all 8 steps are done" in capsys.readouterr().out
    for name in ("metrics.jsonl", "adapter/adapter.safetensors"):
        assert (again / name).read_bytes() == (finished.folder / name).read_bytes()


def test_fewer_steps_than_are_done_are_refused(finished, tmp_path):
    again = shutil.copytree(finished.folder, tmp_path / "again")
    before = {path: path.read_bytes() for path in again.rglob("*") if path.is_file() and path.name != "config.json"}
    with pytest.raises(ValueError, match=r"is at step 8, and the config asks for 6: raise config\.steps"):
        train(dataclasses.replace(finished.config, output=str(again), resume=True, steps=6), lambda encoder: {})
    after = {path: path.read_bytes() for path in again.rglob("*") if path.is_file() and path.name != "config.json"}
    assert after == before


def test_a_failed_evaluation_leaves_what_was_trained(inputs, tmp_path, monkeypatch):
    """It has been exported at the end; the run goes on with the evaluation alone, and chooses the best step then."""
    settings = {"steps": 2, "eval__every": 1, "checkpoint__best_metric": "eval/score", "checkpoint__every": 2}
    scores = iter([1.0])
    with pytest.raises(UnevaluatedError, match=f"StopIteration.*--config.adapter={tmp_path}/adapter") as found:
        train(make_config(inputs, tmp_path, **settings), lambda encoder: {"score": next(scores)})
    assert "with --config.resume=True" in str(found.value)
    exported = tmp_path / "adapter" / "adapter.safetensors"
    of_step_1 = exported.read_bytes()
    assert "eval/score" not in read_metrics(tmp_path / "metrics.jsonl")[1]

    def resume(eval_fn):
        results = train(make_config(inputs, tmp_path, **settings, resume=True), eval_fn)
        record = read_metrics(tmp_path / "metrics.jsonl")[1]
        assert record["step"] == 2 and np.isfinite(record["loss"]) and results.items() <= record.items()
        return results

    with monkeypatch.context() as patch:
        patch.setattr(Training, "update", lambda *_: pytest.fail("trained again"))
        assert resume(lambda encoder: {"score": 2.0})["eval/score"] == 2.0
        assert exported.read_bytes() != of_step_1  # step 2 is better
        patch.setattr(Training, "_write", lambda *_: pytest.fail("exported again"))
        assert resume(lambda encoder: pytest.fail("evaluated again"))["eval/score"] == 2.0


def test_a_checkpoint_of_another_adapter_is_refused(finished, tmp_path):
    again = shutil.copytree(finished.folder, tmp_path / "again")
    adapter = dataclasses.replace(finished.config.adapter, dim=16)
    with pytest.raises(ValueError, match="of another model: adapter is"):
        train(dataclasses.replace(finished.config, output=str(again), resume=True, adapter=adapter), lambda encoder: {})


def test_trains_on_a_mixture_and_resumes(inputs, tmp_path):
    rows = [{"text": f"the text of page {i}", "query": f"find {i}", "source": "texts"} for i in range(40)]
    (tmp_path / "source").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "source" / "train-00000.parquet")
    shutil.copytree(inputs / "data", tmp_path / "data")
    convert(tmp_path / "source", "texts", tmp_path / "data", validation_ratio=0.3)
    settings = {"data__dir": str(tmp_path / "data"), "data__name": "pages=1,texts=1", "steps": 6}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    results = train(make_config(inputs, whole, **settings))
    assert np.isfinite(results["validation/loss"])
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / "6")  # as if it had been killed after step 4
    shutil.rmtree(cut / "adapter")
    again = train(make_config(inputs, cut, **settings, resume=True))
    assert again == results
    files = [folder / "adapter" / "adapter.safetensors" for folder in (whole, cut)]
    assert files[0].read_bytes() == files[1].read_bytes()
    with pytest.raises(ValueError, match="is of the mixture"):
        train(make_config(inputs, cut, **(settings | {"data__name": "pages=2,texts=1"}), resume=True))


def test_trains_on_videos_of_converted_data(inputs, tmp_path):
    """Clips as documents, by path and sampled row by row, several queries of each, one of them a film itself."""
    sizes = {"max_frames": 4, "video_min_pixels": 4096, "video_max_pixels": 8192}
    shutil.copytree(inputs / "model", tmp_path / "model")
    (tmp_path / "model" / "smart_jax.json").write_text(json.dumps(sizes))
    names = ("bikes", "carphone_pristine", "carphone_distorted")
    rows = [
        {"query": f"film {i}", "video": str(clip(names[i % 3])), "fps": 1 + i, "query_video": None} for i in range(8)
    ]
    rows[5] |= {"query": None, "query_video": str(clip("bikes"))}
    (tmp_path / "source").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "source" / "train.parquet")
    convert(tmp_path / "source", "films", tmp_path / "data", validation_ratio=0, video_folder=clip("bikes").parent)
    settings = {"data__name": "films", "steps": 1, "eval__validation_batches": 0}
    config = make_config(tmp_path, tmp_path / "run", **settings)

    split, mesh = open_split(tmp_path / "data", "films"), make_mesh()
    encoder = load_encoder(config, mesh)
    batch = Batcher(encoder.preprocessor, config.data, mesh)([split[i] for i in range(8)])
    for i, ids in enumerate(np.asarray(batch.documents.input_ids)):
        example = split[i]
        row = encoder.preprocessor.tokenize({"video": rows[int(example.id)]["video"], "fps": 1 + int(example.id)})
        assert ids[: len(row.input_ids)].tolist() == row.input_ids.tolist()
    assert batch.documents.vision.segment.max() == 2 and batch.queries.vision is not None  # four frames each
    ids = [tuple(row) for row in np.asarray(batch.document_ids)]
    assert len(set(ids)) == 3 and ids[0] in ids[1:]  # a clip is no negative of itself

    train(config)
    losses = [record["loss"] for record in read_metrics(tmp_path / "run" / "metrics.jsonl")]
    assert len(losses) == 1 and np.isfinite(losses).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "trainable", "rate", "left"),  # and which share of the loss may be left
    [("qwen3_vl", "full", 0.01, 0.7), ("qwen3_5", "full", 0.01, 0.8), ("qwen3_5", "lora", 0.001, 0.8)],
)
def test_trains_a_backbone_and_exports_a_model(inputs, tmp_path, family, trainable, rate, left):
    base = inputs / "model" if family == "qwen3_vl" else write_checkpoint(tmp_path / "base", model_type=family)
    folder = tmp_path / "run"
    config = make_config(
        inputs,
        folder,
        model=str(base),
        head="qwen3_vl_embedding",
        trainable=trainable,
        optimizer__learning_rate=rate,
        weights=".",
        steps=24,
        log_every=4,
        checkpoint__every=24,
        eval__validation_batches=0,
        data__query_length=64,
        data__document_length=64,
        data__document_patches=16,
        data__max_pixels=4096,
        **{"loss.objective": "pooled", "loss.symmetric": True, "loss.learn_temperature": True},
    )
    train(config)
    losses = [r["loss"] for r in read_metrics(folder / "metrics.jsonl")]
    assert losses[-1] < left * losses[0]
    temperature = read_metrics(folder / "metrics.jsonl")[-1]["temperature_pooled"]
    assert temperature > 0.01 and temperature != pytest.approx(0.03, abs=1e-5)
    model, start = encode.load(folder / "model"), encode.load(base, head="qwen3_vl_embedding")
    assert json.loads((folder / "model" / "smart_jax.json").read_text()) == {
        "head": "qwen3_vl_embedding",
        "max_pixels": 4096,
    }
    texts = ["page number 3"]
    assert not np.allclose(model.encode_query(texts).pooled, start.encode_query(texts).pooled, atol=1e-3)


def test_a_model_with_a_peft_adapter(inputs, tmp_path):
    """Read with the run's own preprocessing, told apart by its weights, and exported with the adapter merged."""
    query = {"model.language_model.layers.0.self_attn.q_proj": (32, 32)}
    write_lora(tmp_path / "alone", query, base_model_name_or_path="../base")
    write_processor(tmp_path / "alone")
    template = tmp_path / "alone" / "chat_template.jinja"
    template.write_text(template.read_text().replace("assistant", "helper"))
    base = shutil.copytree(inputs / "model", tmp_path / "base")
    (base / "chat_template.json").write_text(json.dumps({"chat_template": (base / template.name).read_text()}))
    tasks = shutil.copytree(inputs / "model", tmp_path / "tasks")
    hf = json.loads((tasks / "config.json").read_text())
    (tasks / "config.json").write_text(json.dumps(hf | {"task_names": ["retrieval", "code"]}))
    write_lora(tasks / "adapters", query, ["retrieval", "code"])
    for name in ("alone", "tasks"):
        config = make_config(inputs, tmp_path, model=str(tmp_path / name), data__max_pixels=8192)
        encoder = load_encoder(config, make_mesh(devices=jax.devices()[:1]))
        assert encoder.preprocessor.settings.max_pixels == 8192
        exported = export_model(tmp_path / f"{name}_exported", encoder, encoder.params, config)
        assert not any("adapter" in file.name for file in exported.rglob("*"))
        texts = ["page number 3"]
        np.testing.assert_array_equal(
            encode.load(exported).encode_query(texts).pooled, encoder.encode_query(texts).pooled
        )
        weights = weights_fingerprint(*weight_folders(encoder))
        file = next((tmp_path / name).rglob("adapter_model.safetensors"))
        file.write_bytes(file.read_bytes()[:-4] + b"1234")
        assert weights_fingerprint(*weight_folders(encoder)) != weights
    assert weight_folders(load_encoder(make_config(inputs, tmp_path), make_mesh())) == [inputs / "model"]


def test_a_loss_that_is_not_finite_stops_the_run(inputs, tmp_path):
    settings = {"optimizer.learning_rate": float("inf"), "optimizer.warmup_ratio": 0.0, "checkpoint.every": 1}
    config = make_config(inputs, tmp_path, **settings)
    data = Examples(open_split(inputs / "data", "pages"), 8, seed=config.seed)
    next(data)
    ids = ", ".join(example.id for example in next(data))
    with pytest.raises(FloatingPointError, match=f"loss is nan at step 2, on the examples {ids}"):
        train(config)
    assert [r["step"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()] == ["1"]


def test_updates_that_are_not_finite_are_left_out(inputs, tmp_path, monkeypatch):
    """Steps 3 and 5 of 8 have no finite gradient and are gone over; 7 and 8 are two in a row, and too many."""
    contrastive, broken = objective_module.contrastive, jnp.array([3, 5, 7, 8])

    def sometimes_broken(*arguments):
        loss, metrics = contrastive(*arguments)
        return jnp.where(jnp.isin(arguments[5], broken), jnp.nan, 1.0) * loss, metrics

    monkeypatch.setattr(objective_module, "contrastive", sometimes_broken)
    settings = {"optimizer.skip_nonfinite": 1, "optimizer.schedule": "constant", "optimizer.warmup_ratio": 0.0}
    with pytest.raises(FloatingPointError, match="loss is nan at step 8"):
        train(make_config(inputs, tmp_path, **settings))
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [int(r["skipped_updates"]) for r in records] == [0, 0, 1, 1, 2, 2, 3]
    assert [np.isfinite(r["loss"]) for r in records] == [i + 1 not in (3, 5, 7) for i in range(7)]


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"batch_size": 12}, "batch_size 12 does not divide by the 8 devices"),
        ({"chunk_size": 4}, "chunk_size 4 is below the 8 devices"),
        ({"batch_size": 80}, "batch_size=80 exceeds the"),
        ({"model": ""}, "config.model is empty"),
        ({"loss.diversity_weight": 0.1}, "without a trainable part"),
        ({"adapter.layers": "last 9"}, "2 blocks"),
        ({"data.document_length": 8}, "length"),
        ({"data.validation_split": "test"}, "has no split 'test'"),
        ({"checkpoint.best_metric": "eval/score"}, "no metric of this run; there are none that begin so"),
        (
            {"checkpoint.best_metric": "validation/nope"},
            "those that begin so are: validation/hybrid_hit@1, .*validation/loss",
        ),
    ],
)
def test_settings_that_do_not_fit_are_named(inputs, tmp_path, settings, error):
    with pytest.raises(ValueError, match=error):
        train(make_config(inputs, tmp_path / "run", steps=1, **settings))
    if "data.document_length" not in settings:  # that one is found at the first batch
        assert not (tmp_path / "run").exists()


def test_an_unknown_best_metric_is_named(inputs, tmp_path):
    settings = {"checkpoint.best_metric": "eval/nope", "eval.validation_batches": 0}
    mesh = make_mesh(devices=jax.devices()[:1])
    training = Training(make_config(inputs, tmp_path, **settings), mesh, 1, lambda encoder: {"ndcg": 1.0})
    with pytest.raises(ValueError, match="best_metric 'eval/nope' is none of the evaluation's: eval/ndcg"):
        training.evaluate()
    evaluation = make_eval_fn([Deferred("made", lambda: pytest.fail("opened"))])  # which can tell its metrics before
    with pytest.raises(ValueError, match="those that begin so are: eval/made/adapter-hybrid/hit@1, "):
        Training(make_config(inputs, tmp_path, **settings), mesh, 1, evaluation).check_evaluation()


def test_what_is_trained_is_chosen_by_a_regular_expression(inputs, tmp_path):
    def trained(**settings):
        config, mesh = make_config(inputs, tmp_path, **settings), make_mesh(devices=jax.devices()[:1])
        params, frozen, _ = make_objective(config, load_encoder(config, mesh), mesh, steps=1)
        assert not params.keys() & frozen.keys()
        return params.keys(), frozen.keys()

    everything, none = trained(trainable="full", weights=".")
    assert not none and any("visual" in name for name in everything)
    params, frozen = trained(trainable="full")
    assert params | frozen == everything and frozen == {n for n in everything if n.startswith("model.visual.")}
    params, frozen = trained(trainable="adapter+full", weights=r"^language_model\.norm")
    projection = {f"adapter.{name}" for name in ("norm.scale", "norm.bias", "proj.kernel")}
    assert params == {"model.language_model.norm.scale"} | projection
    params, frozen = trained(trainable="lora", lora__modules="qkv")
    blocks = [f"lora.visual.blocks.{i}.attn.qkv" for i in (0, 1)]
    assert params == {f"{block}.{factor}" for block in blocks for factor in "ab"} and frozen == everything
    with pytest.raises(ValueError, match=r"weights 'nothing' matches no parameter of the backbone; it has lang"):
        trained(trainable="full", weights="nothing")


def test_dropout_follows_from_seed_and_step_and_is_off_in_evaluation(inputs, tmp_path):
    config = make_config(inputs, tmp_path, trainable="lora", lora__r=2, lora__dropout=0.5, lora__modules="up_proj")
    mesh = make_mesh(devices=jax.devices()[:1])
    encoder = load_encoder(config, mesh)
    params, frozen, objective = make_objective(config, encoder, mesh, steps=9)
    params = {name: x + 0.3 for name, x in params.items()}
    batch = Batcher(encoder.preprocessor, config.data, mesh)(examples())
    function = jax.jit(objective, static_argnames="training")

    def loss(step, training=True):
        return float(function(params, frozen, batch, jnp.int32(step), training=training)[0])

    assert loss(1) == loss(1) != loss(2)
    assert loss(1, training=False) == loss(2, training=False) != loss(1)
    evaluated = make_eval_step(objective)(TrainState(jnp.int32(1), params, ()), frozen, batch)
    assert float(evaluated["loss"]) == pytest.approx(loss(1, training=False), rel=1e-6)
    other = dataclasses.replace(objective, dropout_seed=5)
    assert float(jax.jit(other)(params, frozen, batch, jnp.int32(1))[0]) != loss(1)


def test_branches_beside_those_of_an_adapter_are_refused(inputs, tmp_path):
    write_lora(tmp_path, {"model.language_model.layers.0.self_attn.q_proj": (32, 32)}, base_model_name_or_path=".")
    config = make_config(inputs, tmp_path, model=str(shutil.copytree(inputs / "model", tmp_path / "model")))
    shutil.copy(tmp_path / "adapter_config.json", tmp_path / "model")
    shutil.copy(tmp_path / "adapter_model.safetensors", tmp_path / "model")
    config = dataclasses.replace(config, trainable="lora")
    with pytest.raises(ValueError, match="model holds a PEFT adapter already"):
        load_encoder(config, make_mesh())


def test_trains_low_rank_branches_and_resumes_bit_identically(inputs, tmp_path):
    """With dropout and an adapter: checkpoints, and what is exported, merged and not."""
    seen = []

    def eval_fn(encoder):
        seen.append(encoder.encode_document(["a text"]))
        return {}

    settings = {"trainable": "adapter+lora", "lora.r": 2, "lora.dropout": 0.2, "checkpoint.every": 2, "steps": 4}
    settings |= {"adapter.dim": 16, "optimizer.schedule": "constant", "eval.validation_batches": 0}
    train(make_config(inputs, tmp_path, **settings), eval_fn)
    files = [tmp_path / name for name in ("lora/adapter_model.safetensors", "adapter/adapter.safetensors")]
    whole = [file.read_bytes() for file in files]
    records = read_metrics(tmp_path / "metrics.jsonl")

    merged, adapted, before = (encode.load(f) for f in (tmp_path / "model", tmp_path / "lora", inputs / "model"))
    exported, found, start = (e.encode_document(["a text"]) for e in (merged, adapted, before))
    np.testing.assert_array_equal(exported.tokens, found.tokens)
    assert np.abs(found.pooled - start.pooled).max() > 1e-3
    np.testing.assert_allclose(seen[0].pooled, found.pooled, atol=2e-5)
    projected = adapted.with_adapter(tmp_path / "adapter").encode_document(["a text"])
    np.testing.assert_allclose(seen[0].tokens, projected.tokens, atol=2e-5)
    with safe_open(str(files[0]), "numpy") as file:
        assert len(file.keys()) == 2 * 2 * 7 and not any("visual" in name for name in file.keys())  # noqa: SIM118

    shutil.rmtree(tmp_path / "checkpoints" / "4")
    for file in files:
        file.unlink()
    train(make_config(inputs, tmp_path, resume=True, **settings))
    assert [file.read_bytes() for file in files] == whole
    again = read_metrics(tmp_path / "metrics.jsonl")
    assert [r["loss"] for r in again] == [r["loss"] for r in records] and len(again) == 4


def test_a_checkpoint_belongs_to_its_branches_and_to_the_weights_that_are_frozen(inputs, tmp_path):
    def identity(**settings):
        mesh = make_mesh(devices=jax.devices()[:1])
        return Training(make_config(inputs, tmp_path, **settings), mesh, 1).identity

    two, unmerged = (identity(trainable="lora", lora__r=2, lora__merge=merge) for merge in (True, False))
    three = identity(trainable="lora", lora__r=3)
    assert two == unmerged and {key for key in two if two[key] != three[key]} == {"lora"}
    text, everything = identity(trainable="full"), identity(trainable="full", weights=".")
    assert two["weights"] == text["weights"] is not None and everything["weights"] is None


@pytest.mark.slow
def test_muon_resumes_bit_identically(inputs, tmp_path):
    """Its state, momenta of matrices only, is saved and placed like AdamW's."""

    def run(name, steps, **settings):
        settings |= {"optimizer.name": "muon", "optimizer.schedule": "constant", "optimizer.warmup_ratio": 0.0}
        settings |= {"trainable": "full", "loss.objective": "pooled", "eval.validation_batches": 0}
        train(make_config(inputs, tmp_path / name, steps=steps, **settings))
        return (tmp_path / name / "model" / "model.safetensors").read_bytes()

    whole = run("whole", 4)
    half = run("resumed", 2)
    assert half != whole
    assert run("resumed", 4, resume=True) == whole


CHILD = """
import os, signal, sys
from pathlib import Path
from smart_jax.runtime import compilation_cache
from tests.golden.make_video import clip
from tests.training import make_config
from train import training
from train.posttrain import train
inputs, output, event, at, resume = sys.argv[1:]
compilation_cache.enable()
make = training.make_train_step
def make_train_step(*args):
    step_fn = make(*args)
    def train_step(state, frozen, batch):
        step = int(state.step) + 1
        if event == "kill" and step == int(at):
            os.kill(os.getpid(), signal.SIGKILL)
        if event == "term" and step == int(at):
            os.kill(os.getpid(), signal.SIGTERM)
        return step_fn(state, frozen, batch)
    return train_step
training.make_train_step = make_train_step
train(make_config(Path(inputs), Path(output), resume=resume == "resume", checkpoint__every=3, seed=5))
"""


def child(inputs: Path, output: Path, event="none", at=0, resume="") -> subprocess.CompletedProcess:
    arguments = ("-c", CHILD, str(inputs), str(output), event, str(at), resume)
    compiled = output.parent / "compiled"  # not among the suite's: some are killed
    return run_python(*arguments, SMART_JAX_COMPILATION_CACHE=str(compiled))


def assert_same_run(found: Path, expected: Path) -> None:
    files = [folder / "adapter" / "adapter.safetensors" for folder in (found, expected)]
    assert files[0].read_bytes() == files[1].read_bytes()
    records = [read_metrics(folder / "metrics.jsonl") for folder in (found, expected)]
    assert repeatable(records[0]) == repeatable(records[1])
    assert [r["step"] for r in records[0]] == list(range(1, 9))


@pytest.mark.slow
def test_killed_stopped_and_resumed_is_bit_identical(inputs, tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    done = child(inputs, whole)
    assert done.returncode == 0, done.stderr
    killed = child(inputs, cut, "kill", 6)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    stopped = child(inputs, cut, "term", 5, "resume")
    assert stopped.returncode == 0, stopped.stderr
    assert "stopped by SIGTERM after saving step 5: --config.resume=True" in stopped.stdout
    assert "steps 4 to 8" in stopped.stdout
    resumed = child(inputs, cut, resume="resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "steps 6 to 8" in resumed.stdout and "validation/loss" in resumed.stdout
    assert_same_run(cut, whole)


def test_an_export_counts_while_it_is_whole_and_of_the_last_step(tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter.json").write_text("{}")
    assert not is_exported(tmp_path, ["adapter"], 3)
    mark_exported(tmp_path, ["adapter"], 3)
    assert is_exported(tmp_path, ["adapter"], 3) and not is_exported(tmp_path, ["adapter"], 4)
    (tmp_path / "adapter" / "adapter.json").write_text("{")
    assert not is_exported(tmp_path, ["adapter"], 3)
