"""Components for Haystack and LangChain, in pipelines and chains of the installed packages."""

from __future__ import annotations

import io

import numpy as np
import pytest
from haystack import Document, Pipeline
from haystack.components.builders import PromptBuilder
from haystack.dataclasses import ByteStream
from langchain_core.vectorstores import InMemoryVectorStore
from PIL import Image, ImageDraw

import smart_jax
from smart_jax.integrations import HaystackRanker, HaystackRetriever, LangChainEmbeddings, LangChainRetriever
from smart_jax.integrations.haystack_filters import to_where

pytestmark = pytest.mark.slow
TEXTS = ["Revenue by region", "A list of errors", "How queues are closed", "Dates and times"]


@pytest.fixture(scope="module")
def model():
    return smart_jax.load("tiny")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An index of four texts and a page; read only."""
    folder = tmp_path_factory.mktemp("integrations")
    Image.fromarray(np.full((64, 64, 3), 255, np.uint8)).save(folder / "page.png")
    with smart_jax.Index(folder / "index", model="tiny") as index:
        index.add(TEXTS, ids=["a", "b", "c", "d"], metadata=[{"year": 2021 + i} for i in range(4)], progress=False)
        index.add([folder / "page.png"], metadata={"kind": "page"}, progress=False)
    return folder / "index"


@pytest.fixture
def index(folder):
    with smart_jax.Index(folder) as opened:
        yield opened


# --- Haystack ----------------------------------------------------------------------------------------------------


def test_a_haystack_pipeline_that_was_written_to_a_file(folder, index):
    pipeline = Pipeline()
    pipeline.add_component("retriever", HaystackRetriever(folder, top_k=3, late_weight=0.5))
    pipeline.add_component("ranker", HaystackRanker("tiny", top_k=2))
    pipeline.add_component("prompt", PromptBuilder("{{ documents[0].content }}", required_variables=["documents"]))
    pipeline.connect("retriever.documents", "ranker.documents")
    pipeline.connect("ranker.documents", "prompt.documents")
    again = Pipeline.loads(pipeline.dumps(), allowed_modules=["smart_jax.integrations.haystack", "haystack.*"])
    assert again.to_dict()["components"] == pipeline.to_dict()["components"]
    assert str(folder) in again.dumps() and "late_weight: 0.5" in again.dumps()
    asked = {"retriever": {"query": "errors"}, "ranker": {"query": "errors"}}
    done = again.run(asked, include_outputs_from={"retriever", "ranker"})
    assert done["prompt"]["prompt"] == "A list of errors"
    retrieved, ranked = done["retriever"]["documents"], done["ranker"]["documents"]
    hits = index.search("errors", k=3, late_weight=0.5)
    assert [(each.id, each.score) for each in retrieved] == [(hit.id, hit.score) for hit in hits]
    assert retrieved[0].meta["late"] == hits[0].late and len(ranked) == 2 and ranked[0].score > ranked[1].score
    again.get_component("retriever")._index.close()


def test_haystack_s_filters_and_facts_of_a_page(index):
    retriever = HaystackRetriever(index, filters={"field": "meta.year", "operator": "<", "value": 2023})
    assert {each.id for each in retriever.run("errors")["documents"]} == {"a", "b"}
    pages = {"field": "meta.kind", "operator": "==", "value": "page"}
    (page,) = retriever.run("errors", filters=pages)["documents"]
    assert page.content is None and page.meta["file_path"].endswith("page.png") and page.meta["kind"] == "page"
    years = {"field": "meta.year", "operator": "not in", "value": [2021, 2022]}
    both = {"operator": "AND", "conditions": [years, {"field": "meta.year", "operator": "!=", "value": None}]}
    found = retriever.run("errors", filters=both, top_k=9)["documents"]
    assert {each.id for each in found} == {"c", "d"}
    either = {"operator": "OR", "conditions": [pages, {"field": "id", "operator": "==", "value": "a"}]}
    assert len(retriever.run("errors", filters=either)["documents"]) == 2
    assert to_where(None) == {} and to_where({"operator": "NOT", "conditions": [pages]}) == {
        "not": {"and": [{"kind": {"eq": "page"}}]}
    }
    for wrong in ({"field": "meta.year", "operator": "like", "value": 1}, {"operator": "AND"}, {"year": 2021}):
        with pytest.raises(ValueError, match="give field, operator"):
            HaystackRetriever(index, filters=wrong)


def test_haystack_s_ranker(model, tmp_path):
    page = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(page).text((4, 4), "errors", fill="black")
    page.save(tmp_path / "page.png")
    file = io.BytesIO()
    page.save(file, "png")
    documents = [Document(content=text, meta={"n": i}) for i, text in enumerate(TEXTS)]
    documents += [Document(blob=ByteStream(file.getvalue(), mime_type="image/png"))]
    documents += [Document(meta={"file_path": str(tmp_path / "page.png")})]
    ranker = HaystackRanker(model, pooled_weight=0.0, top_k=6)
    found = ranker.run("errors", documents)["documents"]
    items = [{"text": text} for text in TEXTS] + [{"image": page}] * 2
    expected = smart_jax.score(model.encode_query(["errors"]), model.encode_document(items), pooled_weight=0.0)[0]
    np.testing.assert_allclose([each.score for each in found], np.sort(expected)[::-1], atol=1e-5)
    assert [each.content for each in found if each.content] == [TEXTS[i] for i in np.argsort(-expected[:4])]
    assert (
        ranker.run("errors", [])["documents"] == [] and len(ranker.run("errors", documents, top_k=1)["documents"]) == 1
    )
    assert documents[0].score is None  # documents that are handed over stay as they are
    with pytest.raises(ValueError, match="neither a text nor an image"):
        ranker.run("errors", [Document(content=None)])
    with pytest.raises(ValueError, match="give the model's name"):
        ranker.to_dict()
    with pytest.raises(ValueError, match="with_adapter"):
        HaystackRanker(model, adapter="some/adapter")


# --- LangChain ---------------------------------------------------------------------------------------------------


def test_langchain_s_retriever_in_a_chain(folder, index):
    retriever = LangChainRetriever(index=folder, k=2, where={"year": {"lt": 2024}}, late_weight=0.5)
    chain = retriever | (lambda documents: [each.page_content for each in documents])
    hits = index.search("errors", k=2, where={"year": {"lt": 2024}}, late_weight=0.5)
    assert chain.invoke("errors") == [hit.text for hit in hits]
    (first,) = retriever.invoke("errors", k=1)
    assert (first.id, first.metadata["score"], first.metadata["year"]) == (hits[0].id, hits[0].score, 2022)
    (page,) = retriever.invoke("errors", where={"kind": "page"})
    assert page.page_content == "" and page.metadata["source"].endswith("page.png")
    retriever.index.close()


def test_langchain_s_embeddings_in_a_vector_store(model):
    store = InMemoryVectorStore.from_texts(TEXTS, LangChainEmbeddings(model))
    found = store.similarity_search_with_score("page.png", k=4)  # a text that looks like a file's name
    expected = smart_jax.score(
        model.encode_query([{"text": "page.png"}]), model.encode_document(TEXTS), late_weight=0.0
    )[0]
    assert [document.page_content for document, _ in found] == [TEXTS[i] for i in np.argsort(-expected)]
    np.testing.assert_allclose([value for _, value in found], np.sort(expected)[::-1], atol=1e-5)
    assert LangChainEmbeddings(model).embed_documents([]) == []
