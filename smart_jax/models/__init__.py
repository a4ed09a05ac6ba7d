"""Backbones as Flax modules: architectures, weights, adapters merged or trained, and their batches."""

from smart_jax.models.architectures import (
    ARCHITECTURES,
    Architecture,
    Model,
    ModelConfig,
    check_supported,
    load_config,
    supported,
)
from smart_jax.models.attention import attention as segment_attention
from smart_jax.models.batch import AudioBatch, Batch, Hidden, VisionBatch, batch_axes
from smart_jax.models.bert_config import BertConfig
from smart_jax.models.checksum import array_sums, checksum, sample_checksum
from smart_jax.models.embedding_gemma2 import EmbeddingGemma2Config
from smart_jax.models.layers import REMAT_POLICIES, VISUAL_FEATURES
from smart_jax.models.lora import TEXT_PROJECTIONS, LoraConfig, add_lora, drop_out, save_lora
from smart_jax.models.pixels import Normalisation, normalised
from smart_jax.models.positions import Grid, PatchGeometry, mrope_positions, patch_geometry
from smart_jax.models.qwen_vl_config import QwenVLConfig
from smart_jax.models.torch_layout import ModelGraph, Params
from smart_jax.models.weights import abstract_model, init_weights, load_weights, save_weights

__all__ = [
    "ARCHITECTURES",
    "REMAT_POLICIES",
    "TEXT_PROJECTIONS",
    "VISUAL_FEATURES",
    "Architecture",
    "AudioBatch",
    "Batch",
    "BertConfig",
    "EmbeddingGemma2Config",
    "Grid",
    "Hidden",
    "LoraConfig",
    "Model",
    "ModelConfig",
    "ModelGraph",
    "Normalisation",
    "Params",
    "PatchGeometry",
    "QwenVLConfig",
    "VisionBatch",
    "abstract_model",
    "add_lora",
    "array_sums",
    "batch_axes",
    "check_supported",
    "checksum",
    "drop_out",
    "init_weights",
    "load_config",
    "load_weights",
    "mrope_positions",
    "normalised",
    "patch_geometry",
    "sample_checksum",
    "save_lora",
    "save_weights",
    "segment_attention",
    "supported",
]
