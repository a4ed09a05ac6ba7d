"""EmbeddingGemma 2: a bidirectional text encoder, and towers for images and audio that a checkpoint may lack."""

from smart_jax.models.embedding_gemma2.config import (
    AudioConfig,
    EmbeddingGemma2Config,
    LayerHeads,
    TextConfig,
    VisionConfig,
)
from smart_jax.models.embedding_gemma2.model import IGNORED, SHARDING_RULES, EmbeddingGemma2

__all__ = [
    "IGNORED",
    "SHARDING_RULES",
    "AudioConfig",
    "EmbeddingGemma2",
    "EmbeddingGemma2Config",
    "LayerHeads",
    "TextConfig",
    "VisionConfig",
]
