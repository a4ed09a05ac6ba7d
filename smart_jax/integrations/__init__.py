"""Models for other libraries."""

from smart_jax.integrations.mteb import mteb_model

__all__ = [
    "mteb_model",
]
