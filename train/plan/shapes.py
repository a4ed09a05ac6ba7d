"""Sizes of models and batches: from files where they are here, from a table where a model is named that is not."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from smart_jax.files import named_folder, open_checkpoint
from smart_jax.inputs import PRESETS, Settings, read_settings
from smart_jax.models import ARCHITECTURES, EmbeddingGemma2Config, ModelConfig, QwenVLConfig, load_config
from train.config import TrainConfig

QWEN3_VL_2B: dict[str, Any] = {
    "model_type": "qwen3_vl",
    "image_token_id": 151655,
    "video_token_id": 151656,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "text_config": {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_theta": 5000000,
        "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
    },
    "vision_config": {
        "depth": 24,
        "hidden_size": 1024,
        "num_heads": 16,
        "intermediate_size": 4096,
        "out_hidden_size": 2048,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [5, 11, 17],
    },
}
QWEN3_VL_8B: dict[str, Any] = {
    **QWEN3_VL_2B,
    "text_config": {
        **QWEN3_VL_2B["text_config"],
        "hidden_size": 4096,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
    },
    "vision_config": {
        **QWEN3_VL_2B["vision_config"],
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "out_hidden_size": 4096,
        "deepstack_visual_indexes": [8, 16, 24],
    },
}
EMBEDDING_GEMMA2: dict[str, Any] = {  # whose sizes are the config's defaults
    "model_type": "embedding_gemma2",
    "text_config": {},
    "vision_config": {},
    "audio_config": {},
}
PUBLISHED = {
    r"Qwen3-VL.*-2B": QWEN3_VL_2B,
    r"Qwen3-VL.*-8B": QWEN3_VL_8B,
    r"embeddinggemma-?2": EMBEDDING_GEMMA2,
}
SOFT_TOKENS = 280  # of an image of EmbeddingGemma 2, where nothing says another number
PROMPT_TOKENS = 48  # room for a page's instruction, turns and marks, beside its visual tokens
TEXT_TOKENS = 512  # of a document that is a text
QUERY_TOKENS = 64  # of a query with its instruction


class BatchShape(NamedTuple):
    """Padded sizes of a batch.

    Attributes:
      queries: rows of queries, over all devices.
      documents: rows of documents.
      query_tokens, document_tokens: tokens of a row.
      patches: vision patches of a document; 0 = texts.

    Example:
      >>> BatchShape(8, 16, 64, 1848, 7200).documents
      16
    """

    queries: int
    documents: int
    query_tokens: int
    document_tokens: int
    patches: int


def is_here(model: str) -> bool:
    """Returns whether a model's files are here without a download.

    Example:
      >>> is_here("tiny"), is_here("Qwen/Qwen3-VL-Embedding-2B")
      (True, False)
    """
    return named_folder(model) is not None or Path(model).is_dir()


def model_config(model: str) -> ModelConfig:
    """Returns the config of a model from its config.json, or of a published one from a table, without its weights.

    Args:
      model: as of `TrainConfig`.

    Raises:
      ValueError: no model is named.
      FileNotFoundError, ConnectionError: it is neither here, nor in the table, nor to be had.

    Example:
      >>> model_config("Qwen/Qwen3-VL-Embedding-8B").text.hidden_size
      4096
    """
    if not model:
        raise ValueError("config.model is empty: name a checkpoint folder or hub id, --config.model=...")
    if not is_here(model):
        for pattern, shape in PUBLISHED.items():
            if re.search(pattern, model):
                return ARCHITECTURES[shape["model_type"]].config.from_hf(shape)
    return load_config(open_checkpoint(model))


def batch_shape(config: TrainConfig, model: ModelConfig) -> BatchShape:
    """Returns the largest batch that a run's settings allow: every page has `max_pixels`, or `soft_tokens`.

    Args:
      config: of the run.
      model: its backbone's.

    Example:
      >>> config = TrainConfig(model="Qwen/Qwen3-VL-Embedding-2B", batch_size=512)
      >>> batch_shape(config, model_config(config.model))
      BatchShape(queries=512, documents=512, query_tokens=64, document_tokens=1848, patches=7200)
    """
    data, settings = config.data, _settings(config)
    longest = data.max_length or settings.get("max_length") or Settings.max_length
    visual = patches = 0
    if isinstance(model, QwenVLConfig):
        vision = model.vision
        merge = vision.spatial_merge_size
        pixels = data.max_pixels or settings.get("max_pixels") or Settings.max_pixels or 0
        patches = data.document_patches or pixels // (vision.patch_size * merge) ** 2 * merge**2
        visual = patches // merge**2
    if isinstance(model, EmbeddingGemma2Config) and model.vision is not None:
        unit = model.vision.spatial_merge_size**2
        budget = data.soft_tokens or settings.get("soft_tokens") or SOFT_TOKENS
        patches = data.document_patches or budget * unit
        visual = patches // unit
    rows = config.batch_size
    tokens = min(longest, visual + PROMPT_TOKENS if patches else TEXT_TOKENS)
    return BatchShape(
        queries=rows,
        documents=rows * (1 + data.negatives),
        query_tokens=data.query_length or min(longest, QUERY_TOKENS),
        document_tokens=data.document_length or tokens,
        patches=patches,
    )


def _settings(config: TrainConfig) -> dict[str, Any]:
    """Returns the preset's settings with what a folder's smart_jax.json changes."""
    name = next((n for n, p in PRESETS.items() if p.names and re.search(p.names, config.model, re.IGNORECASE)), None)
    preset = PRESETS.get(config.head or name or "qwen3_vl_embedding")
    names = ("max_pixels", "max_length", "soft_tokens")
    settings = {} if preset is None else {n: getattr(preset.settings, n) for n in names}
    return settings | (read_settings(open_checkpoint(config.model).folder) if is_here(config.model) else {})
