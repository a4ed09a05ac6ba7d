"""Encoding: order, batching, devices, adapters, buckets, storage, and what is said of bad input."""

from __future__ import annotations

import dataclasses
import gc
import shutil
import threading
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import smart_jax
from smart_jax import Pipeline, forward
from smart_jax.encoding import encoding
from smart_jax.retrieval.adapter import Adapter, AdapterConfig
from tests.checkpoints import noise_page

pytestmark = pytest.mark.compiles

TOLERANCE = 2e-5


@pytest.fixture(scope="module")
def model(checkpoint):
    return smart_jax.load(checkpoint)


@pytest.fixture(scope="module")
def items():
    """Texts, pages of three sizes, both together, several images: 13 items of different lengths."""
    pages = [noise_page(64, 96, 0), noise_page(128, 64, 1), noise_page(96, 96, 2)]
    texts = ["revenue by region", "a", "how does the query reach the page, token by token?", "raise an error " * 6]
    mixed = [{"text": t, "image": p} for t, p in zip(texts, pages, strict=False)]
    return [*texts, *pages, *mixed, {"images": pages[:2]}, pages[0], {"text": "x", "images": pages}]


@pytest.fixture(scope="module")
def embedded(model, items):
    return model.encode_document(items)


def assert_close(a, b, atol=TOLERANCE):
    np.testing.assert_array_equal(a.offsets, b.offsets)
    np.testing.assert_allclose(a.pooled, b.pooled, atol=atol)
    np.testing.assert_allclose(a.tokens, b.tokens, atol=atol)


def test_vectors_are_unit_and_of_the_model(model, items, embedded):
    assert embedded.pooled.shape == (len(items), model.config.text.hidden_size)
    assert embedded.pooled.dtype == embedded.tokens.dtype == np.float32
    for vectors in (embedded.pooled, embedded.tokens):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5)


def test_equals_the_backbone_on_one_row(model, items, embedded):
    for i in (0, 5, 8, 12):
        row = model.preprocessor.tokenize(items[i])
        hidden = jax.jit(lambda p, b: nnx.merge(model.graphdef, p)(b))(model.params, model.preprocessor.collate([row]))
        states = np.asarray(hidden.states[0, : len(row.keep), 0])[row.keep]
        np.testing.assert_allclose(
            embedded[i].tokens, states / np.linalg.norm(states, axis=-1, keepdims=True), atol=TOLERANCE
        )
        pooled = np.asarray(hidden.pooled[0])
        np.testing.assert_allclose(embedded[i].pooled[0], pooled / np.linalg.norm(pooled), atol=TOLERANCE)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_independent_of_batch_size(model, items, embedded, batch_size):
    assert_close(model.encode_document(items, batch_size=batch_size), embedded)


def test_independent_of_order(model, items, embedded):
    order = np.random.default_rng(0).permutation(len(items))
    assert_close(model.encode_document([items[i] for i in order]), embedded[order])


def test_independent_of_windows(model, items, embedded, monkeypatch):
    monkeypatch.setattr(encoding, "PLANNED", 4)
    assert_close(model.encode_document(items, batch_size=2), embedded)


@pytest.mark.parametrize("shape", [{"data": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_independent_of_devices(checkpoint, items, embedded, shape):
    mesh = smart_jax.make_mesh(**shape)
    assert mesh.size == jax.device_count() == 8
    assert_close(smart_jax.load(checkpoint, mesh=mesh).encode_document(items), embedded)


def test_queries_and_documents_differ_by_instruction_only(model):
    text = ["revenue by region"]
    default = model.preprocessor.settings.default_instruction
    assert_close(model.encode_query(text, instruction=default), model.encode_document(text))
    other = model.encode_query(text, instruction="Find a document image that matches the given query.")
    assert other.offsets[-1] != model.encode_document(text).offsets[-1]


def test_float16_storage(model, items, embedded):
    half = model.encode_document(items, dtype=np.float16)
    assert half.pooled.dtype == half.tokens.dtype == np.float16
    np.testing.assert_allclose(half.tokens.astype(np.float32), embedded.tokens, atol=1e-3)


def test_compilations_are_bounded_by_buckets(checkpoint):
    model = smart_jax.load(checkpoint)
    pages = [noise_page(32 * w, 32 * h) for w in range(2, 7) for h in range(2, 7)]
    texts = ["word " * n for n in range(1, 60)]
    rows = [model.preprocessor.tokenize(item) for item in [*pages, *texts]]
    buckets = {model.preprocessor.padded_sizes(len(r.input_ids), len(r.patches)) for r in rows}
    forward.compute.clear_cache()  # other tests have some of the shapes
    model.encode_document([*pages, *texts], batch_size=1)
    compiled = forward.compute._cache_size()
    assert 0 < compiled <= len(buckets) < len(rows) / 3
    model.encode_document([*pages, *texts][::-1], batch_size=1)
    assert forward.compute._cache_size() == compiled


def test_adapter_projects_tokens_and_truncates_pooled(model, items, embedded):
    adapter = Adapter(AdapterConfig(32, dim=12, layers=(-1, 1), pooled_dim=8), rngs=nnx.Rngs(3))
    out = model.with_adapter(adapter).encode_document(items)
    np.testing.assert_array_equal(out.offsets, embedded.offsets)
    assert out.pooled.shape == (len(items), 8) and out.tokens.shape[1] == 12
    np.testing.assert_allclose(np.linalg.norm(out.tokens, axis=-1), 1, atol=1e-5)
    short = embedded.pooled[:, :8]
    np.testing.assert_allclose(out.pooled, short / np.linalg.norm(short, axis=-1, keepdims=True), atol=TOLERANCE)
    assert_close(model.with_adapter(None).encode_document(items), embedded)


def test_load_with_adapter_folder(checkpoint, tmp_path, items):
    adapter = Adapter(AdapterConfig(32, dim=12), rngs=nnx.Rngs(3))
    adapter.save(tmp_path / "adapter")
    from_folder = smart_jax.load(checkpoint, adapter=tmp_path / "adapter").encode_document(items[:5])
    assert_close(from_folder, smart_jax.load(checkpoint, adapter=adapter).encode_document(items[:5]))


def test_bfloat16_backbone(checkpoint, items, embedded):
    low = smart_jax.load(checkpoint, dtype=jnp.bfloat16).encode_document(items)
    assert low.pooled.dtype == np.float32
    assert (low.pooled * embedded.pooled).sum(-1).min() >= 0.999


def test_scores_end_to_end(model, items, embedded):
    q = model.encode_query(["revenue by region", "error"])
    scores = smart_jax.score(q, embedded)
    assert scores.shape == (2, len(items))
    late = np.asarray(
        [
            [(a.tokens @ b.tokens.T).max(1).mean() for b in (embedded[i] for i in range(len(items)))]
            for a in (q[0], q[1])
        ]
    )
    np.testing.assert_allclose(scores, q.pooled @ embedded.pooled.T + late, atol=1e-5)


def test_threads_change_no_bit(model, items):
    """Nor does anything else of the pipeline: every batch is computed as if it were the only one."""
    found = dataclasses.replace(model, pipeline=Pipeline(workers=4)).encode_document(items, batch_size=3)
    alone = dataclasses.replace(model, pipeline=Pipeline(workers=1, memory=1, ahead=0))
    by_number = {}
    order = sorted(range(len(items)), key=lambda i: (*model.preprocessor.measure(items[i])[::-1], i), reverse=True)
    for chosen in (order[i : i + 3] for i in range(0, len(order), 3)):
        rows = [model.preprocessor.tokenize(items[i]) for i in chosen]
        pooled, tokens = map(np.asarray, model.embed(model.preprocessor.collate(rows, batch_size=3, shards=1)))
        by_number |= {i: (pooled[b], tokens[b, : len(rows[b])][rows[b].keep]) for b, i in enumerate(chosen)}
    for other in (alone.encode_document(items, batch_size=3), found):
        for i, (pooled, tokens) in by_number.items():
            np.testing.assert_array_equal(other[i].pooled[0], pooled)
            np.testing.assert_array_equal(other[i].tokens, tokens)


def test_programs_are_compiled_in_threads(checkpoint, items, embedded):
    """Before the first batch is computed; a second call has them."""
    model, compiled = smart_jax.load(checkpoint), []

    def listen(event, _, **__):
        if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            compiled.append(threading.current_thread().name.partition("_")[0])

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        assert_close(model.encode_document(items, batch_size=5), embedded)  # of rows that no other test has
        first = [name for name in compiled if name in ("MainThread", "compile")]
        compiled.clear()
        assert_close(model.encode_document(items, batch_size=5), embedded)
    finally:
        jax.monitoring.clear_event_listeners()
    assert first.count("compile") > 1 and not compiled


# --- bad input ---------------------------------------------------------------------------------------------------


def test_empty_list(model):
    with pytest.raises(ValueError, match="empty"):
        model.encode_query([])


def test_bad_item_is_named(model, tmp_path):
    (tmp_path / "page.png").write_bytes(b"")
    with pytest.raises((OSError, ValueError), match="item 1"):
        model.encode_document(["fine", tmp_path / "page.png"])
    with pytest.raises(ValueError, match="item 2"):
        model.encode_document(["fine", "fine", ""])
    with pytest.raises(FileNotFoundError, match="item 0: no video file 'clip.mp4'"):
        model.encode_document([{"video": "clip.mp4"}])
    with pytest.raises(ValueError, match="item 0"):
        model.encode_document([Image.new("RGB", (4, 1000))])


def test_batch_size_below_one(model):
    with pytest.raises(ValueError, match="batch_size is 0"):
        model.encode_document(["a"], batch_size=0)


def test_adapter_of_another_model(checkpoint):
    with pytest.raises(ValueError, match="64"):
        smart_jax.load(checkpoint, adapter=Adapter(AdapterConfig(64), rngs=nnx.Rngs(0)))


def test_missing_tokenizer(checkpoint, tmp_path):
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        shutil.copy(checkpoint / name, tmp_path)
    with pytest.raises(FileNotFoundError, match="tokenizer"):
        smart_jax.load(tmp_path)


# --- the model as a value ------------------------------------------------------------------------------------------


def test_prints_what_it_is(checkpoint, model):
    count = sum(x.size for x in jax.tree.leaves(model.params))
    assert (
        repr(model)
        == f"Encoder(qwen3_vl, {count / 1e3:.3g} k parameters in float32, 2 blocks of width 32, no adapter, 1 device)"
    )
    adapted = model.with_adapter(Adapter(AdapterConfig(32, dim=12), rngs=nnx.Rngs(3)))
    assert "adapter to 12 components" in repr(adapted)
    assert "8 devices" in repr(smart_jax.load(checkpoint, mesh=smart_jax.make_mesh(data=8)))


def test_is_not_changed_in_place(model, items, embedded):
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.adapter = None
    doubled = jax.tree.map(lambda x: 2 * x, model.params)
    other = model.with_params(doubled)
    assert other.params is doubled and other.preprocessor is model.preprocessor
    assert np.abs(other.encode_document(items[:2]).pooled - embedded.pooled[:2]).max() > 1e-3
    assert_close(other.with_params(model.params).encode_document(items), embedded)


def test_items_do_not_keep_their_pixels(model, monkeypatch):
    rows = []
    tokenize = type(model.preprocessor).tokenize

    def watched(*args, **options):
        found = tokenize(*args, **options)
        rows.append(weakref.ref(found.patches))
        return found

    monkeypatch.setattr(type(model.preprocessor), "tokenize", watched)
    alive = []
    collate = type(model.preprocessor).collate

    def counted(*args, **options):
        gc.collect()
        alive.append(sum(ref() is not None for ref in rows))
        return collate(*args, **options)

    monkeypatch.setattr(type(model.preprocessor), "collate", counted)
    pages = [noise_page(64, 96, i) for i in range(12)]
    dataclasses.replace(model, pipeline=Pipeline(memory=1)).states(pages, batch_size=2)
    assert len(rows) == 12 and max(alive) == 2  # of a batch that is prepared alone
