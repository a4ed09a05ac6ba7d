"""Embeddings and states of items, the adapter, reductions, scores and exact search."""

from smart_jax.retrieval import reductions
from smart_jax.retrieval.adapter import Adapter, AdapterConfig, export_reference, import_reference, parse_layers
from smart_jax.retrieval.embeddings import Embeddings
from smart_jax.retrieval.maxsim import maxsim
from smart_jax.retrieval.metrics import compute_metrics, ndcg, parse_metric
from smart_jax.retrieval.retriever import Retriever
from smart_jax.retrieval.score import score
from smart_jax.retrieval.search import search
from smart_jax.retrieval.states import LAST, States

__all__ = [
    "LAST",
    "Adapter",
    "AdapterConfig",
    "Embeddings",
    "Retriever",
    "States",
    "compute_metrics",
    "export_reference",
    "import_reference",
    "maxsim",
    "ndcg",
    "parse_layers",
    "parse_metric",
    "reductions",
    "score",
    "search",
]
