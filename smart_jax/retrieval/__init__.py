"""Embeddings and states of items, the adapter, reductions, scores and exact search."""

from smart_jax.retrieval import reductions
from smart_jax.retrieval.abstract_search import lower_search
from smart_jax.retrieval.adapter import Adapter, AdapterDropout
from smart_jax.retrieval.adapter_config import AdapterConfig, parse_layers
from smart_jax.retrieval.embeddings import Embeddings
from smart_jax.retrieval.embeddings_folder import EmbeddingsFolder, ItemVectors
from smart_jax.retrieval.maxsim import maxsim
from smart_jax.retrieval.metrics import compute_metrics, ndcg, parse_metric
from smart_jax.retrieval.open_adapter import open_adapter
from smart_jax.retrieval.provenance import Provenance, check_documents, check_sides
from smart_jax.retrieval.reference_adapter import export_reference, import_reference
from smart_jax.retrieval.resident import Resident, to_device
from smart_jax.retrieval.retriever import Retriever
from smart_jax.retrieval.score import score
from smart_jax.retrieval.search import search
from smart_jax.retrieval.states import LAST, States

__all__ = [
    "LAST",
    "Adapter",
    "AdapterConfig",
    "AdapterDropout",
    "Embeddings",
    "EmbeddingsFolder",
    "ItemVectors",
    "Provenance",
    "Resident",
    "Retriever",
    "States",
    "check_documents",
    "check_sides",
    "compute_metrics",
    "export_reference",
    "import_reference",
    "lower_search",
    "maxsim",
    "ndcg",
    "open_adapter",
    "parse_layers",
    "parse_metric",
    "reductions",
    "score",
    "search",
    "to_device",
]
