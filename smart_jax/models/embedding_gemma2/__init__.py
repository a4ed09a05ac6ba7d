"""EmbeddingGemma 2: a bidirectional text encoder, and towers for images and audio that a checkpoint may lack."""

from smart_jax.models.embedding_gemma2.config import (
    AudioConfig,
    EmbeddingGemma2Config,
    LayerHeads,
    TextConfig,
    VisionConfig,
)

__all__ = ["AudioConfig", "EmbeddingGemma2Config", "LayerHeads", "TextConfig", "VisionConfig"]
