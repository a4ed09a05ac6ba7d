"""Runs that use the options of the loss: the first step's loss against float64 on the encoder's own embeddings."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from flax import nnx

from smart_jax import checkpoint_encoder as encode
from smart_jax.maxsim import projected
from smart_jax.retrieval.adapter import Adapter
from smart_jax.runtime.mesh import make_mesh
from tests.test_objectives import np_objective
from tests.test_posttrain import examples, loss_and_gradient
from tests.training import make_config, page
from train.config import LossConfig
from train.data import Examples, content_hash, convert, open_split
from train.monitor import read_metrics
from train.objective import start_temperatures
from train.posttrain import train
from train.setup import adapter_config

pytestmark = pytest.mark.compiles


@pytest.fixture(scope="module")
def inputs(inputs, tmp_path_factory):
    """Beside the data set "pages" one with two negatives and three scores each, "scored"."""
    folder = shutil.copytree(inputs, tmp_path_factory.mktemp("objectives") / "inputs")
    rng = np.random.default_rng(0)
    rows = [
        {
            "query": f"page number {i}",
            "image": {"bytes": page(i % 30), "path": None},  # ten pages answer two queries each
            "negatives": [{"bytes": page(100 + i), "path": None}, {"bytes": page(200 + i), "path": None}],
            "scores": [None if i % 3 == k > 0 else float(x) for k, x in enumerate(rng.standard_normal(3))],
        }
        for i in range(40)
    ]
    (folder / "rows").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "rows" / "train-00000.parquet")
    convert(folder / "rows", "scored", folder / "data", validation_ratio=0.3)
    return folder


SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {
        "trainable": "lora",
        "lora.r": 2,
        "lora.modules": "q_proj",
        "loss.objective": "hybrid",
        "loss.distillation": "kl",
        "loss.teacher_temperature": 1.0,
        "loss.symmetric": True,
        "loss.false_negative_margin": 0.01,
        "loss.matryoshka": "8=2",
        "loss.pool_factor": 2.0,
    },
    "adapter": {
        "adapter.dim": 24,
        "remat": True,
        "loss.distillation": "margin_mse",
        "loss.teacher_temperature": 1.0,
        "loss.matryoshka": "6",
        "loss.pool_factor": 3.0,
    },
    "full": {
        "trainable": "full",
        "weights": r"^language_model\..*norm",
        "loss.objective": "pooled",
        "loss.contrastive_weight": 0.0,
        "loss.distillation": "kl",
        "loss.distillation_weight": 3.0,
        "loss.teacher_temperature": 1.0,
        "loss.learn_temperature": True,
        "loss.matryoshka": "4",
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_minimises_it(inputs, tmp_path, name):
    """Runs on eight devices. Without any one of the options the value would be another."""
    settings = SETTINGS[name] | {"data.name": "scored", "data.negatives": 2, "loss.temperature": 0.3, "steps": 2}
    config = make_config(inputs, tmp_path, **settings, **{"eval.validation_batches": int(name == "full")})
    results = train(config)
    record = read_metrics(tmp_path / "metrics.jsonl")[0]

    batch = next(Examples(open_split(inputs / "data", "scored"), 8, seed=config.seed))
    documents = [d for e in batch for d in (e.document, *e.negatives)]
    model = encode.load(inputs / "model")
    if name == "adapter":
        model = model.with_adapter(Adapter(adapter_config(config, model.config), rngs=nnx.Rngs(config.seed)))
    sides = []
    for e in (model.encode_query([e.query for e in batch]), model.encode_document(documents)):
        tokens = [e.tokens[a:b].astype(np.float64) for a, b in itertools.pairwise(e.offsets)]
        sides.append((e.pooled.astype(np.float64), tokens))
    teacher = np.array([e.scores for e in batch])
    assert np.isnan(teacher).any()

    def expected(loss: LossConfig) -> tuple[float, float | None]:
        return np_objective(loss, *sides, [content_hash(d) for d in documents], teacher, start_temperatures(loss), 0.0)

    value, count = expected(config.loss)
    assert record["loss"] == pytest.approx(value, abs=1e-3)  # scores agree to 2e-5, over 0.3, and more when cut
    for option in ("symmetric", "false_negative_margin", "distillation", "matryoshka", "pool_factor"):
        default = getattr(LossConfig(), option)
        if getattr(config.loss, option) != default:
            changes = {option: default, "contrastive_weight": config.loss.contrastive_weight or 1.0}
            assert abs(expected(dataclasses.replace(config.loss, **changes))[0] - value) > 5e-3, option
    assert {f"loss_width_{width}" for width in config.loss.widths if width} | {"distillation"} <= record.keys()
    if count is not None:
        assert record["false_negatives"] == pytest.approx(count, abs=0.13) and count > 0  # a near tie more or less
    if name == "full":
        assert np.isfinite(results["validation/distillation"])


@pytest.mark.parametrize("devices", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_projecting_again_changes_nothing(inputs, tmp_path, monkeypatch, devices):
    """remat: each group of documents is projected once for all widths, its tokens pooled; against all at once."""
    settings = {"loss.matryoshka": "8,16", "loss.pool_factor": 2.0, "data.negatives": 1, "adapter.layers": "last 2"}
    plain, again = (make_config(inputs, tmp_path, remat=remat, **settings) for remat in (False, True))
    batch = examples(16, negatives=1)
    expected = loss_and_gradient(plain, 1, batch, perturb=1)
    monkeypatch.setattr(projected, "GROUP_VALUES", 1)
    found = loss_and_gradient(again, devices, batch, perturb=1)
    assert_same(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("sizes", "chunk"), [((8, 1, 1), 8), ((2, 2, 2), None)], ids=str)
def test_eight_devices_equal_one(inputs, tmp_path, sizes, chunk):
    """LoRA with dropout, and everything else."""
    settings = SETTINGS["lora"] | {"lora.dropout": 0.3, "data.negatives": 2, "loss.temperature": 0.3}
    config = make_config(inputs, tmp_path, **settings)
    rng = np.random.default_rng(0)
    batch = [dataclasses.replace(e, scores=tuple(rng.standard_normal(3))) for e in examples(16, negatives=2)]
    one = loss_and_gradient(config, 1, batch, perturb=1)
    many = loss_and_gradient(dataclasses.replace(config, chunk_size=chunk), make_mesh(*sizes), batch, perturb=1)
    assert_same(many, one)


def assert_same(found, expected):
    assert found[0] == pytest.approx(expected[0], abs=1e-5 * max(1, abs(expected[0])))
    scale = max(np.abs(g).max() for g in expected[2].values())
    assert scale > 1e-3 and all(np.any(g) for g in jax.tree.leaves(expected[2]))
    for name, gradient in expected[2].items():
        np.testing.assert_allclose(found[2][name], gradient, atol=1e-5 * max(1, scale), err_msg=name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss.matryoshka": "8,32"}, "'8,32', but the pooled vectors have 32 components: .* not 32"),
        ({"loss.matryoshka": "24", "adapter.dim": 24}, "but the tokens have 24 components"),
        ({"loss.matryoshka": "20", "adapter.pooled_dim": 20}, "but the pooled vectors have 20 components"),
        ({"loss.distillation": "kl"}, "compares the documents of each query, but data.negatives is 0"),
        ({"loss.distillation": "kl", "data.negatives": 1}, "example '.*' has 0 negatives"),
    ],
)
def test_settings_that_do_not_fit_are_named(inputs, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        train(make_config(inputs, tmp_path / "run", steps=1, **settings))
