"""SMART: late interaction over the frozen hidden states of single-vector multimodal embedding models (JAX / Flax)."""

from smart_jax.encoder import Encoder, load
from smart_jax.integrations import mteb_model
from smart_jax.maxsim import maxsim_pairs
from smart_jax.retrieval import (
    Adapter,
    AdapterConfig,
    Embeddings,
    Retriever,
    States,
    maxsim,
    reductions,
    score,
    search,
)
from smart_jax.runtime import make_mesh

__all__ = [
    "Adapter",
    "AdapterConfig",
    "Embeddings",
    "Encoder",
    "Retriever",
    "States",
    "load",
    "make_mesh",
    "maxsim",
    "maxsim_pairs",
    "mteb_model",
    "reductions",
    "score",
    "search",
]
