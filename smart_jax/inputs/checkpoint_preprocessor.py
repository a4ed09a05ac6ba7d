"""The preprocessor of a checkpoint, whatever its architecture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from smart_jax.files import Checkpoint
from smart_jax.inputs.multimodal import MultimodalPreprocessor
from smart_jax.inputs.preprocessor import Preprocessor
from smart_jax.inputs.text import TextPreprocessor
from smart_jax.models import BertConfig, ModelConfig


def open_preprocessor(checkpoint: Checkpoint | str | Path, config: ModelConfig, **overrides: Any) -> Preprocessor:
    """Reads the preprocessor of a checkpoint: one for texts of a BERT, one for texts, images and videos of others.

    Args:
      checkpoint: from `smart_jax.files.open_checkpoint`, or a folder.
      config: of its backbone.
      **overrides: fields of `Settings`, of a BERT of `TextSettings`.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: a file is corrupt, a setting is unknown, or the settings contradict the backbone's config.

    Example:
      >>> from smart_jax.files import resolve
      >>> from smart_jax.models import load_config
      >>> open_preprocessor(resolve("tiny"), load_config(resolve("tiny"))).modalities
      ('text', 'image')
    """
    if isinstance(config, BertConfig):
        return TextPreprocessor.from_pretrained(checkpoint, config, **overrides)
    return MultimodalPreprocessor.from_pretrained(checkpoint, config, **overrides)
