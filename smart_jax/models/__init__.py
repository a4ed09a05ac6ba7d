"""Backbones by Hugging Face model_type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from smart_jax.models.qwen_vl import QWEN2_NAMES, SHARDING_RULES, QwenVL
from smart_jax.models.qwen_vl_config import QwenVLConfig
from smart_jax.sharding import Rules

ModelConfig = QwenVLConfig  # the union of the backbones' configs
Model = QwenVL


class Architecture(NamedTuple):
    config: type[ModelConfig]
    model: type[Model]
    sharding_rules: Rules
    renames: tuple[tuple[str, str], ...] = ()  # regular expressions from our tensors' names to the checkpoint's


ARCHITECTURES: dict[str, Architecture] = {
    "qwen3_vl": Architecture(QwenVLConfig, QwenVL, SHARDING_RULES),
    "qwen2_5_vl": Architecture(QwenVLConfig, QwenVL, SHARDING_RULES, QWEN2_NAMES),
    "qwen2_vl": Architecture(QwenVLConfig, QwenVL, SHARDING_RULES, QWEN2_NAMES),
}


def load_config(folder: str | Path) -> ModelConfig:
    """Config of the checkpoint in `folder`, from its config.json alone.

    Raises:
      FileNotFoundError: there is no config.json.
      ValueError: it is not JSON, its model_type is unknown, or a key is missing.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: a checkpoint folder in Hugging Face layout has a config.json")
    try:
        hf: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): fetch the checkpoint again") from error
    model_type = hf.get("model_type") if isinstance(hf, dict) else None
    if model_type not in ARCHITECTURES:
        raise ValueError(f"{path}: model_type '{model_type}' is not supported; supported: {', '.join(ARCHITECTURES)}")
    try:
        return ARCHITECTURES[model_type].config.from_hf(hf)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
