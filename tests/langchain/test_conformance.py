"""LangChain's own tests of retrievers and embeddings; run by `make test-langchain`."""

import pytest
from langchain_tests.integration_tests import EmbeddingsIntegrationTests, RetrieversIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

import smart_jax
from smart_jax.integrations import LangChainEmbeddings, LangChainRetriever

pytestmark = pytest.mark.anyio  # runs what is asynchronous


@pytest.fixture(scope="session")
def anyio_backend():
    return "asyncio"


@pytest.fixture(autouse=True, scope="module")
def texts(tmp_path_factory):
    with smart_jax.Index(tmp_path_factory.mktemp("langchain"), model="tiny") as index:
        index.add(["Revenue by region", "A list of errors", "Dates", "Queues", "Files"], progress=False)
        TestRetriever.index = index
        yield


class TestRetriever(RetrieversIntegrationTests):
    @property
    def retriever_constructor(self):
        return LangChainRetriever

    @property
    def retriever_constructor_params(self):
        return {"index": self.index}

    @property
    def retriever_query_example(self):
        return "errors"


class TestEmbeddingsUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self):
        return LangChainEmbeddings

    @property
    def embedding_model_params(self):
        return {"model": "tiny"}


class TestEmbeddings(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self):
        return LangChainEmbeddings

    @property
    def embedding_model_params(self):
        return {"model": "tiny"}
