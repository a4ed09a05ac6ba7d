"""SMART: late interaction over the frozen hidden states of single-vector multimodal embedding models (JAX / Flax)."""

from smart_jax.adapter import Adapter, AdapterConfig
from smart_jax.embeddings import Embeddings
from smart_jax.encode import Encoder, load
from smart_jax.maxsim import maxsim, maxsim_pairs
from smart_jax.mteb import mteb_model
from smart_jax.score import score, search
from smart_jax.sharding import make_mesh
from smart_jax.states import States

__all__ = [
    "Adapter",
    "AdapterConfig",
    "Embeddings",
    "Encoder",
    "States",
    "load",
    "make_mesh",
    "maxsim",
    "maxsim_pairs",
    "mteb_model",
    "score",
    "search",
]
