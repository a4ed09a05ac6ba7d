"""Provenance of embeddings: kept through all that is done with them, and compared before they are scored."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import smart_jax
from smart_jax import Adapter, AdapterConfig, Embeddings, Index, States, maxsim, reductions, score, search, to_device
from smart_jax.models import checksum, sample_checksum
from smart_jax.retrieval.embeddings import INDEX
from smart_jax.retrieval.provenance import SEVERAL, Provenance
from tests.indexes import random_embeddings

OF_PAGES = Provenance("m1", side="document")
OF_QUERIES = Provenance("m1", side="query", instruction="Find it.")


def make(provenance: Provenance | None, count: int = 4) -> Embeddings:
    return random_embeddings(count, seed=3).with_provenance(provenance)


CHANGES = {
    "a model": lambda p: dataclasses.replace(p, model="m2"),
    "an adapter": lambda p: dataclasses.replace(p, adapter="a1"),
    "components": lambda p: p.reduced("pca 4 0123abcd"),
}
COMPARISONS = {
    "score": score,
    "candidates": lambda q, d, **how: score(q, d, candidates=[1, 0], **how),
    "search": lambda q, d, **how: search(q, d, 2, **how),
    "rescored": lambda q, d, **how: search(q, d.astype("int8"), 1, rescore=d, **how),
    "maxsim": maxsim,
    "resident": lambda q, d, **how: score(q, to_device(d), **how),
    "found": lambda q, d, **how: search(q, to_device(d), 2, **how),
}


def test_it_stays_through_all_that_is_done_with_embeddings(tmp_path):
    e = make(OF_PAGES)
    same = [e[1], e[1:3], e[[2, 0]], e.astype("float16"), e.astype("int8"), e.astype("int8").astype("float32")]
    same += [Embeddings.concatenate([e, e[:1]]), Embeddings(e.pooled, e.tokens, e.offsets, provenance=OF_PAGES)]
    assert {each.provenance for each in same} == {OF_PAGES}
    pca = reductions.PCA.fit(e, 4)
    reduced = [
        reductions.keep_tokens(e, np.arange(len(e.tokens)) % 2 == 0),
        reductions.pool_tokens(e, 2),
        reductions.truncate(e, 4),
        reductions.truncate(e, 4, pooled_width=2),
        pca(e),
        reductions.BinaryEmbeddings.of(pca(e)).embeddings(),
    ]
    of_pca = pca(e).provenance.reductions[0]
    assert of_pca.startswith("pca 4 ") and of_pca != reductions.PCA.fit(e[:2], 4)(e).provenance.reductions[0]
    names = ["keep"], ["pool"], ["truncate 4"], ["truncate 4, pooled 2"], [of_pca], [of_pca, "binary"]
    assert [[*each.provenance.reductions] for each in reduced] == list(names)
    assert [len(each.provenance.space) for each in reduced] == [0, 0, 1, 1, 1, 1]
    reduced[-1].save(tmp_path)
    assert Embeddings.load(tmp_path, mmap=True).provenance == reduced[-1].provenance
    make(None).save(tmp_path)
    assert Embeddings.load(tmp_path).provenance is None


@pytest.mark.parametrize("values", ["m1", {"model": "m1"}, OF_PAGES.to_dict() | {"side": "left"}, None])
def test_a_folder_whose_provenance_is_of_another_form(tmp_path, values):
    make(OF_PAGES).save(tmp_path)
    values = OF_PAGES.to_dict() | {"model": 3} if values is None else values
    text = json.loads((tmp_path / INDEX).read_text()) | {"provenance": values}
    (tmp_path / INDEX).write_text(json.dumps(text))
    with pytest.raises(ValueError, match=r"embeddings.json': provenance .*encode again"):
        Embeddings.load(tmp_path)


def test_joined_embeddings():
    e = make(OF_PAGES)

    def joined(other: Provenance | None) -> Provenance | None:
        return Embeddings.concatenate([e, make(other)]).provenance

    assert joined(None) is None
    assert joined(OF_QUERIES) == Provenance("m1", instruction=SEVERAL)
    truncated = OF_PAGES.reduced("truncate 4")
    parts = [make(truncated), make(truncated.reduced("pool"))]
    assert Embeddings.concatenate(parts).provenance == truncated
    for name, change in CHANGES.items():
        with pytest.raises(ValueError, match=f"part 0 was made by .*, part 1 by {name} .*with_provenance"):
            joined(change(OF_PAGES))


@pytest.mark.parametrize("compare", COMPARISONS.values(), ids=COMPARISONS)
def test_what_does_not_belong_together_is_refused(compare):
    q, d = make(OF_QUERIES, 1), make(OF_PAGES)
    expected = compare(q, d)
    for name, change in CHANGES.items():
        other = make(change(OF_PAGES))
        with pytest.raises(ValueError, match=rf"q was made by .*, d by {name} .*force=True"):
            compare(q, other)
        check_equal(compare(q, other, force=True), expected)
    for pages, queries, message in ((d[:1], d, "q was encoded as a document.*encode_query"), (q, q, "d was encoded")):
        with pytest.raises(ValueError, match=message):
            compare(pages, queries)
    for known, unknown in ((q, make(None)), (make(None, 1), d), (make(None, 1), make(None))):
        compare(known, unknown)


def check_equal(found, expected) -> None:
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_adapters_and_components_of_tokens_do_not_matter_to_pooled_vectors():
    q = make(OF_QUERIES, 1)
    for name in ("an adapter", "components"):
        score(q, make(CHANGES[name](OF_PAGES)), late_weight=0)
    with pytest.raises(ValueError, match="a model"):
        score(q, make(CHANGES["a model"](OF_PAGES)), late_weight=0)


def test_an_index_knows_what_made_its_items(tmp_path):
    ids = ["a", "b", "c", "d"]
    with Index(tmp_path, model="tiny") as index:
        index.add_embeddings(make(OF_PAGES), ids)
        for name, change in CHANGES.items():
            with pytest.raises(ValueError, match=f"these was made by {name}|these was made by .*, the index by"):
                index.add_embeddings(make(change(OF_PAGES)), ids)
            with pytest.raises(ValueError, match="the query was made by .*, the index by .*force=True"):
                index.search(make(change(OF_QUERIES)))
        for name in ("an adapter", "components"):  # which change nothing but the tokens
            assert len(index.search(make(CHANGES[name](OF_QUERIES)), late_weight=0)) == 4
        with pytest.raises(ValueError, match="instruction 'Find it.', the documents of the index with None"):
            index.add_embeddings(make(dataclasses.replace(OF_PAGES, instruction="Find it.")), ids)
        with pytest.raises(ValueError, match="takes documents, and these are queries"):
            index.add_embeddings(make(OF_QUERIES), ids)
        with pytest.raises(ValueError, match="the query was encoded as a document"):
            index.search(make(OF_PAGES))
        assert len(index.search(make(OF_PAGES), force=True)) == len(index.search(make(OF_QUERIES))) == 4
        index.add_embeddings(make(OF_QUERIES), ["e", "f", "g", "h"], force=True)
        index.add_embeddings(make(None), ["i", "j", "k", "l"])
        assert len(index) == 12
    with Index(tmp_path, force=True) as index:
        assert len(index.search(make(OF_PAGES), 2)) == 4


def test_an_index_of_items_that_nobody_knows_refuses_nothing(tmp_path):
    with Index(tmp_path, model="tiny") as index:
        index.add_embeddings(make(None), ["a", "b", "c", "d"])
        index.add_embeddings(make(OF_PAGES), ["e", "f", "g", "h"])
        assert len(index.search(make(CHANGES["a model"](OF_QUERIES)), 2)) == 4


@pytest.mark.compiles
def test_encoders_say_what_they_are(tmp_path):
    model = smart_jax.load("tiny")
    adapter = Adapter(AdapterConfig(hidden_size=model.width, dim=8), rngs=nnx.Rngs(0))
    q = model.encode_query(["one"], instruction="Find it.", progress=False)
    d = model.encode_document(["two"], progress=False, out=tmp_path / "out")
    assert (q.provenance.side, q.provenance.instruction, q.provenance.adapter) == ("query", "Find it.", None)
    assert (d.provenance.side, d.provenance.instruction, d.provenance.reductions) == ("document", None, ())
    either = model.encode(["one"], progress=False)
    assert either.provenance == model.provenance()
    assert score(q, d).shape == score(either, d).shape == score(q, either).shape == (1, 1)
    adapted = model.with_adapter(adapter).encode_document(["two"], progress=False)
    with pytest.raises(ValueError, match="q was made by no adapter, d by an adapter [0-9a-f]{16}: "):
        score(q, adapted)
    states = model.states(["two"], query=False, dtype="float32", progress=False)
    states.save(tmp_path / "states")
    states = States.concatenate([States.load(tmp_path / "states"), states])
    assert states.embeddings().provenance == d.provenance and states.adapted(adapter).provenance == adapted.provenance
    with Index(tmp_path / "index", model=model) as index:
        index.add(["two"])
        with pytest.raises(ValueError, match="the query was encoded as a document"):
            index.search(d)
        with pytest.raises(ValueError, match="these was made by an adapter"):
            index.add_embeddings(reductions.truncate(adapted, 8), ["a"])


@pytest.mark.compiles
def test_digests_are_those_of_the_values_whatever_their_dtype_and_place():
    model = smart_jax.load("tiny")
    whole = model.quick_fingerprint()
    assert model.with_adapter(None).quick_fingerprint() == whole
    for other in (smart_jax.load("tiny", dtype="bfloat16"), smart_jax.load("tiny", mesh=smart_jax.make_mesh(2, 2, 2))):
        assert other.quick_fingerprint() == whole
    longer = smart_jax.load("tiny", settings={"max_length": 100})  # other states, which can be compared with these
    assert longer.weights_digest == model.weights_digest and longer.quick_fingerprint() != whole
    pooled = smart_jax.load("tiny", pooling="mean")
    changed = model.with_params(jax.tree.map(lambda x: x * 1.01, model.params))
    assert len({model.weights_digest, pooled.weights_digest, changed.weights_digest}) == 3


def test_every_parameter_counts():
    params = {"a": jnp.ones((100, 70)), "b": jnp.ones(3), "c": jnp.ones((9, 5, 40, 50))}
    found = {sample_checksum(nnx.State(params))}
    for name, value in params.items():
        found.add(sample_checksum(nnx.State(params | {name: value.at[(0,) * value.ndim].set(2)})))
        found.add(sample_checksum(nnx.State(params | {name: value[:-1]})))
    assert len(found) == 7


@pytest.mark.parametrize("digest", [checksum, sample_checksum])
def test_checksums_see_the_order_of_values(digest):
    values = jnp.arange(1, 7, dtype=jnp.float32).reshape(2, 3)
    found = {digest(nnx.State({"a": nnx.Param(x)})) for x in (values, values[::-1], values[:, ::-1])}
    assert len(found) == 3
