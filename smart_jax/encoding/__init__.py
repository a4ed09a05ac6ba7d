"""Items to vectors, many at a time: the host measures, sorts and decodes them in threads, ahead of the device."""

from smart_jax.encoding.encoded_item import EncodedItem, pack_embeddings, pack_states
from smart_jax.encoding.encoding import Encoding
from smart_jax.encoding.item_work import Side
from smart_jax.encoding.pipeline import AHEAD, Pipeline, Work, run_ahead
from smart_jax.encoding.shape_compiler import ShapeCompiler
from smart_jax.encoding.window import Look
from smart_jax.forward import Vectors

__all__ = [
    "AHEAD",
    "EncodedItem",
    "Encoding",
    "Look",
    "Pipeline",
    "ShapeCompiler",
    "Side",
    "Vectors",
    "Work",
    "pack_embeddings",
    "pack_states",
    "run_ahead",
]
