"""Mistakes that newcomers make: each message names what was given, and what to do instead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from flax import nnx

import smart_jax
from smart_jax import Adapter, AdapterConfig, Embeddings
from smart_jax.index.store import Store
from smart_jax.inputs import parse_items
from smart_jax.retrieval.reductions import BinaryEmbeddings

EMBEDDED = Embeddings(np.eye(2, dtype=np.float32), np.eye(2, dtype=np.float32), [0, 1, 2])


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("tinny", FileNotFoundError, "there is no model 'tinny': did you mean 'tiny'"),
        ("all-MiniLM-L6-v2", FileNotFoundError, "did you mean 'minilm'"),
        ("MiniLM", FileNotFoundError, "did you mean 'minilm'"),
        (None, TypeError, "the model is None: give a checkpoint folder, a hub id such as"),
        ("vidore/colpali-v1.3", ConnectionError, r"architectures that can be loaded: qwen3_vl \(Qwen3-VL-Embedding"),
    ],
)
def test_names_of_models(unchecked, monkeypatch, tmp_path, name, error, message):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(error, match=message):
        smart_jax.load(name)


def write_index(folder: Path) -> None:
    Store(folder, create=True).close()


def write_adapter(folder: Path) -> None:
    Adapter(AdapterConfig(hidden_size=4, dim=2), rngs=nnx.Rngs(0)).save(folder)


@pytest.mark.parametrize(
    ("write", "opened"),
    [
        (write_index, "it holds an index: open it with smart_jax.Index('{}')"),
        (EMBEDDED.save, "it holds embeddings: open it with smart_jax.Embeddings.load('{}')"),
        (write_adapter, "it holds an adapter: open it with smart_jax.load(MODEL, adapter='{}')"),
    ],
    ids=["index", "embeddings", "adapter"],
)
def test_other_folders_loaded_as_a_model(tmp_path, write, opened):
    write(tmp_path / "folder")
    with pytest.raises(FileNotFoundError) as raised:
        smart_jax.load(tmp_path / "folder")
    assert opened.format(tmp_path / "folder") in str(raised.value)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: smart_jax.score(["a"], EMBEDDED), TypeError, "q holds a str: encode items first, model.encode_q"),
        (
            lambda: smart_jax.score(EMBEDDED, "a"),
            TypeError,
            r"d holds a str: encode items first, model.encode_document",
        ),
        (lambda: smart_jax.search(EMBEDDED, BinaryEmbeddings.of(EMBEDDED)), TypeError, r"pass its embeddings\(\)"),
        (lambda: np.asarray(EMBEDDED), TypeError, r"take .pooled \[items, width\], or .tokens"),
        (lambda: EMBEDDED.astype("bf16"), TypeError, "dtype is 'bf16': did you mean 'bfloat16'"),
        (lambda: smart_jax.load("tiny", dtype="bf16"), TypeError, "dtype is 'bf16': did you mean 'bfloat16'"),
        (
            lambda: smart_jax.search(EMBEDDED, EMBEDDED, top_k=1),
            TypeError,
            "search has no option 'top_k': here it is k;",
        ),
        (lambda: smart_jax.load("tiny", device="cpu"), TypeError, "load has no option 'device': here it is mesh="),
        (lambda: smart_jax.load("tiny", adaptor="x"), TypeError, "no option 'adaptor': did you mean 'adapter'"),
        (lambda: smart_jax.score(EMBEDDED, EMBEDDED, nonsense=1), TypeError, "no option 'nonsense'; there are q, d,"),
    ],
)
def test_calls(unchecked, call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("name", "item", "message"),
    [
        ("x.pdf", Path("x.pdf"), "'x.pdf' is no image: smart_jax.Index.add takes PDFs, page by page"),
        ("x.pdf", "x.pdf", "'x.pdf' is a file, not a text: smart_jax.Index.add takes PDFs"),
        ("clip.mp4", Path("clip.mp4"), r"pass \{'video': 'clip.mp4'\}"),
        ("notes.txt", "notes.txt", r"not a text: pass what it says, \{'text': Path\('notes.txt'\).read_text\(\)\}"),
        ("deck.pptx", "deck.pptx", "save it as PDF"),
        ("scan", "scan", r"pass pathlib.Path\(...\) if it is an image; \{'text': ...\} if it is meant as a text"),
        ("pages/1.png", "pages/", "pass the files in it"),
    ],
)
def test_files_that_are_no_images(tmp_path, monkeypatch, name, item, message):
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text("a")
    with pytest.raises(ValueError, match=message):
        parse_items([item])
    assert parse_items([{"text": "x.pdf"}, "clip.mp4 of last summer"])[0].texts == ("x.pdf",)
