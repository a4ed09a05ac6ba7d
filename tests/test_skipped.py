"""Examples that cannot be read: reported, stood in for, counted, and too many of them."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from smart_jax.runtime.mesh import make_mesh
from tests.training import make_config, page, repeatable
from train.config import from_config_dict
from train.data import Batcher, Example, Split, batches, open_split
from train.data.rows import Skipped
from train.monitor import read_metrics
from train.posttrain import train
from train.setup import load_encoder, make_objective

pytestmark = pytest.mark.compiles


def examples(count: int = 6, bad: tuple[int, ...] = (), negatives: int = 0) -> list[Example]:
    def document(i):
        return {"image": b"no image" if i in bad else page(i)}

    others = [tuple({"text": f"text {10 * i + k}"} for k in range(negatives)) for i in range(count)]
    return [Example(f"row {i}", {"text": f"find {i}"}, document(i), others[i], "shelf") for i in range(count)]


@pytest.fixture(scope="module")
def parts(inputs):
    """Config, mesh, encoder and batcher, with one explicit negative."""
    config = make_config(inputs, Path("unused"), data__negatives=1, loss__temperature=0.3)
    mesh = make_mesh(devices=jax.devices()[:1])
    encoder = load_encoder(config, mesh)
    return config, mesh, encoder, Batcher(encoder.preprocessor, config.data, mesh)


def test_the_next_example_stands_in(parts, capsys):
    """The last one's is the first; a bad negative or query counts like a bad document."""
    *_, batcher = parts
    batch = examples(6, bad=(1, 5), negatives=1)
    batch[2] = dataclasses.replace(batch[2], negatives=({"image": b"no image"},))
    batch[4] = dataclasses.replace(batch[4], query={"text": " "})
    good, skipped = examples(6, negatives=1), Skipped(4)
    found = batcher.arrays(batch, skipped)
    chex.assert_trees_all_equal(found, batcher.arrays([good[i] for i in (0, 3, 3, 3, 0, 0)], Skipped(0)))
    assert skipped.count == 4
    said = capsys.readouterr().out
    for i, what in ((1, "document 0"), (2, "document 1"), (4, "query"), (5, "document 0")):
        assert f"example 'row {i}' (shelf) is left out" in said and f"{what} of example 'row {i}'" in said
    assert "4 of at most 4: " in said


def test_what_stands_in_is_no_negative(parts):
    """The loss of a batch with a repeated example, in float64 from the scores of the others."""
    config, mesh, encoder, batcher = parts
    params, frozen, objective = make_objective(config, encoder, mesh, steps=10)
    batch = batches.put_batch(batcher.arrays(examples(4, bad=(2,), negatives=1), Skipped(1)), mesh)
    loss = float(jax.jit(objective)(params, frozen, batch, jnp.int32(1))[0])
    good = [examples(4, negatives=1)[i] for i in (0, 1, 3)]
    adapted = encoder.with_adapter(objective.adapter.merge(params))
    q = adapted.encode_query([e.query for e in good])
    d = adapted.encode_document([item for e in good for item in (e.document, *e.negatives)])
    late = np.zeros((3, 6))
    for i in range(3):
        for j in range(6):
            a, b = q.tokens[q.offsets[i] : q.offsets[i + 1]], d.tokens[d.offsets[j] : d.offsets[j + 1]]
            late[i, j] = (a.astype(np.float64) @ b.astype(np.float64).T).max(axis=1).mean()
    weights = np.array([1, 1, 1, 1, 1, 2])  # the repeated example's negative is there twice ...
    expected = []
    for i in (0, 1, 2, 2):  # ... and so is its query, but its document takes part for neither a second time
        own = weights.copy() if i == 2 else weights + np.array([0, 0, 0, 0, 1, 0])
        logits = late[i] / 0.3
        expected.append(np.log((own * np.exp(logits)).sum()) - logits[2 * i])
    assert loss == pytest.approx(np.mean(expected), abs=2e-4)


def test_too_many_are_named(parts):
    *_, batcher = parts
    with pytest.raises(ValueError, match=r"document 0 of example 'row 1'.* is not an image"):
        batcher.arrays(examples(4, bad=(1,), negatives=1), Skipped(0))
    skipped = Skipped(2, before=1)
    batcher.arrays(examples(4, bad=(1,), negatives=1), skipped)
    with pytest.raises(
        ValueError, match=r"3 examples could not be read, data\.max_skipped allows 2: 'row 1' \(shelf\), '"
    ):
        batcher.arrays(examples(4, bad=(3,), negatives=1), skipped)
    with pytest.raises(ValueError, match="none of a batch's examples can be read: 'row 0', 'row 1'"):
        batcher.arrays(examples(2, bad=(0, 1), negatives=1), Skipped(9))
    with pytest.raises(ValueError, match=r"has 0 negatives, data\.negatives asks for 1"):
        batcher.arrays(examples(2), Skipped(9))  # a setting's fault, not an item's


def test_it_needs_the_mask_of_false_negatives():
    with pytest.raises(ValueError, match=r"data\.max_skipped is 3: .* its own negative"):
        from_config_dict({"data": {"max_skipped": 3}, "loss": {"mask_false_negatives": False}})


@pytest.fixture
def damaged(inputs, monkeypatch):
    """Four training examples and a held-out one have documents that are no images; their ids."""
    read, splits = Split.__getitem__, [open_split(inputs / "data", "pages", name) for name in ("train", "validation")]
    bad = {split[i].id for split, count in zip(splits, (4, 1), strict=True) for i in range(count)}

    def getitem(self, index):
        example = read(self, index)
        return dataclasses.replace(example, document={"image": b"broken"}) if example.id in bad else example

    monkeypatch.setattr(Split, "__getitem__", getitem)
    return bad


def test_a_run_counts_them_and_resumes_bit_identically(inputs, tmp_path, damaged, capsys):
    settings = {"data__max_skipped": 20, "eval__validation_documents": 99, "eval__validation_batches": 0, "steps": 6}
    settings["checkpoint__keep"] = 9
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    results = train(make_config(inputs, whole, **settings))
    said = capsys.readouterr().out
    records = read_metrics(whole / "metrics.jsonl")
    counts = [record["skipped_examples"] for record in records]
    assert counts == sorted(counts) and 0 < counts[1] < counts[-1] <= said.count("is left out")  # batches ahead, too
    assert said.count("left out of the validation") == 1 and all(f"example '{name}'" in said for name in damaged)

    shutil.copytree(whole, cut)
    for step in (4, 6):  # as if it had been killed after step 2
        shutil.rmtree(cut / "checkpoints" / str(step))
    shutil.rmtree(cut / "adapter")
    resumed = train(make_config(inputs, cut, **settings, resume=True))
    assert repeatable(read_metrics(cut / "metrics.jsonl")) == repeatable(records)  # of each step
    files = [folder / "adapter" / "adapter.safetensors" for folder in (whole, cut)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert resumed == results


def test_scores_of_the_teacher_are_those_of_what_stands_in(inputs):
    config = make_config(inputs, Path("unused"), data__negatives=1)
    mesh = make_mesh(devices=jax.devices()[:1])
    batcher = Batcher(load_encoder(config, mesh).preprocessor, config.data, mesh, teacher=True)
    made = [dataclasses.replace(e, scores=(float(i), i + 0.5)) for i, e in enumerate(examples(4, (1, 3), negatives=1))]
    found = batcher.arrays(made, Skipped(2))
    assert found.teacher.tolist() == [[0, 0.5], [2, 2.5], [2, 2.5], [0, 0.5]]
