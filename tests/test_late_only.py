"""Models without a pooled vector: its width is 0, the late part is the score, and what needs one says so."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import smart_jax
from eval.benchmarks import Benchmark
from eval.methods.eval_fn import EvalFn
from eval.methods.names import choose_methods
from smart_jax import Adapter, AdapterConfig, Embeddings, Index, score, search
from smart_jax.index import choosing
from smart_jax.runtime import make_mesh
from tests.backbone import write_checkpoint
from tests.indexes import random_embeddings
from tests.training import make_config
from train.setup import load_encoder, make_objective

Q, D = (random_embeddings(count, seed, pooled=0) for count, seed in ((4, 1), (60, 2)))
ORACLE = np.array(
    [
        [(q.tokens.astype(np.float64) @ d.tokens.T).max(1).mean() for d in map(D.__getitem__, range(60))]
        for q in map(Q.__getitem__, range(4))
    ]
)
NEAREST = np.argsort(-ORACLE, axis=1)[:, :5]


def written(embeddings: Embeddings, folder, *, mmap: bool) -> Embeddings:
    embeddings.save(folder)
    return Embeddings.load(folder, mmap=mmap)


@pytest.mark.parametrize("place", ["host", "file", "mapped file", "device"])
def test_late_part_is_the_score(tmp_path, place):
    if place == "device":
        documents = smart_jax.to_device(D)
    else:
        documents = D if place == "host" else written(D, tmp_path / "d", mmap=place == "mapped file")
    np.testing.assert_allclose(score(Q, documents), ORACLE, atol=1e-5)
    np.testing.assert_allclose(score(Q, documents, pooled_weight=3.0, late_weight=2.0), 2 * ORACLE, atol=1e-5)
    np.testing.assert_array_equal(search(Q, documents, 5)[1], NEAREST)
    with pytest.raises(ValueError, match="late_weight must not be 0"):
        score(Q, documents, late_weight=0.0)


def test_sides_of_which_one_has_pooled_vectors():
    whole = random_embeddings(4, 1)
    with pytest.raises(ValueError, match="q has pooled vectors and tokens, d has tokens"):
        score(whole, D)
    np.testing.assert_allclose(score(whole, D, pooled_weight=0.0).shape, ORACLE.shape)


# ---- an encoder of such a model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small random ColQwen2 as colpali-engine saves it."""
    folder = write_checkpoint(tmp_path_factory.mktemp("late") / "colqwen2-v1.0", model_type="qwen2_vl")
    rng = np.random.default_rng(0)
    tensors = load_file(folder / "model.safetensors")
    tensors |= {"custom_text_proj.weight": rng.normal(size=(16, 32)).astype(np.float32)}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "smart_jax.json").write_text(json.dumps({"min_pixels": 2048, "max_pixels": 16384}))
    return smart_jax.load(folder)


TEXTS = [f"{word} by region {i}" for i in range(3) for word in ("revenue", "error", "table")]


def test_index(model, tmp_path, monkeypatch):
    """Signs or centroids choose candidates; evidence has a pooled part of 0."""
    index = Index(tmp_path / "index", model=model)
    index.add(TEXTS)
    stored = model.encode_document(TEXTS).astype(np.float16)  # as an index keeps vectors
    expected = score(model.encode_query(["error"]), stored)[0]
    hits = index.search("error", k=3)
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(expected)[::-1][:3], atol=1e-5)
    assert [(hit.pooled, hit.late) for hit in hits] == [(0.0, hit.score) for hit in hits]
    evidence = hits[0].explain()
    assert evidence.pooled == 0.0 and evidence.late == pytest.approx(hits[0].score, abs=1e-5)
    with pytest.raises(ValueError, match="no pooled vectors: late_weight must not be 0"):
        index.search("error", late_weight=0.0)
    with pytest.raises(ValueError, match="no pooled vectors: first_stage is 'binary' or 'centroids'"):
        index.search("error", candidates=4, first_stage="pooled")
    with pytest.raises(ValueError, match="keeps nothing for 'binary': call index.keep_stages"):
        index.search("error", candidates=4)
    monkeypatch.setattr(choosing, "AFFORDABLE", 0)
    with pytest.warns(choosing.Provisional, match="all items are scored"):
        assert index.search("error", k=3, candidates="auto")[0].id == hits[0].id
    verdict = index.certify(["error", "revenue"])
    assert {result.name for result in verdict.results} == {"centroids", "binary"}
    index.keep_stages(["binary"])
    assert [hit.id for hit in index.search("error", k=3, candidates=len(TEXTS))] == [hit.id for hit in hits]


def test_written_as_they_are_made(model, tmp_path):
    found = model.encode_document(TEXTS, out=tmp_path / "out")
    assert found.pooled.shape == (len(TEXTS), 0)
    np.testing.assert_array_equal(found.tokens, model.encode_document(TEXTS).tokens)


def test_what_needs_a_pooled_vector_says_so(model, tmp_path):
    with pytest.raises(
        ValueError, match="works beside a pooled vector, which this model does not have.*pooling='last'"
    ):
        model.with_adapter(Adapter(AdapterConfig(model.width, dim=8), rngs=nnx.Rngs(0)))
    config, mesh = make_config(tmp_path, tmp_path, model=str(model.folder)), make_mesh(devices=jax.devices()[:1])
    with pytest.raises(ValueError, match="the model has no pooled vector.*set config.pooling"):
        make_objective(config, load_encoder(config, mesh), mesh, steps=1)
    pooled = smart_jax.load(model.folder, pooling="last")  # for who wants one all the same
    assert pooled.pooled_width == model.width and pooled.encode_query("oil").pooled.shape == (1, model.width)


def test_rows_of_an_evaluation(model):
    benchmark = Benchmark("two", ["kite"], ["q"], ["a red kite"], ["d"], {"q": {"d": 1}}, texts=["a red kite"])
    assert choose_methods(None, benchmark, model, None) == ["chance", "bm25", "late"]
    with pytest.raises(ValueError, match="row hybrid needs pooled vectors, and this model has none: use the row late"):
        choose_methods(["late", "hybrid"], benchmark, model, None)
    assert EvalFn([benchmark], metrics=("mrr",)).metric_names(model) == ["two/late/mrr"]
