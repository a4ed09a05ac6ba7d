"""Folders of encoders in Hugging Face layout: the weights, and all else that the checkpoint has."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from smart_jax.files import CONFIG_FILE, Checkpoint, read_json
from smart_jax.inputs import (
    SETTINGS_FILE,
    TOKENIZER_FILES,
    Preprocessor,
    TextSettings,
    open_preprocessor,
    read_settings,
)
from smart_jax.models import Params, load_config, save_weights
from smart_jax.runtime import is_main

# Weights are written anew, with an adapter merged into them, and a card is of the model that it came with.
LEFT_OUT = (".", "model", "README", "adapter.", CONFIG_FILE)
OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf")


def write_encoder(folder: Path, checkpoint: Checkpoint, preprocessor: Preprocessor, params: Params) -> None:
    """Writes the weights, the checkpoint's other files and the settings; of several processes the first one writes.

    Args:
      folder: made if it does not exist.
      checkpoint: that the model was loaded from.
      preprocessor: of the model, whose settings are written where the files say otherwise.
      params: of the backbone, without low-rank branches.
    """
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        _copy_files(folder, checkpoint)
        _write_settings(folder, preprocessor)
    save_weights(folder, params, preprocessor.config)


def _copy_files(folder: Path, checkpoint: Checkpoint) -> None:
    """Copies everything of a checkpoint except weights and its card; a PEFT adapter's files replace its base's."""
    words = checkpoint.having(*TOKENIZER_FILES)
    for root in reversed(checkpoint.folders):
        left_out = (*LEFT_OUT, *(() if root == words else ("chat_template",)))  # which comes with the tokenizer
        for file in sorted((*root.iterdir(), *root.glob("*/config.json"))):  # the latter of sentence-transformers
            if file.is_file() and not file.name.startswith(left_out) and file.suffix not in OTHER_WEIGHTS:
                target = folder / file.relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
    hf = read_json(folder / "config.json")
    if hf.pop("task_names", None):  # names of adapters, one of which is merged
        (folder / "config.json").write_text(json.dumps(hf, indent=2) + "\n", encoding="utf-8")


def _write_settings(folder: Path, preprocessor: Preprocessor) -> None:
    """Writes what the folder's files do not say of the settings: they may have been given when it was loaded."""
    settings, said = preprocessor.settings, read_settings(folder)
    if preprocessor.preset is not None:  # the folder's name may tell it no longer
        said["head"] = preprocessor.preset
    if isinstance(settings, TextSettings) and settings.pooling is not None:
        said["pooling"] = settings.pooling
    _write(folder, said)
    opened = open_preprocessor(Checkpoint(folder), load_config(folder)).settings
    fields = [field.name for field in dataclasses.fields(settings)]
    _write(folder, said | {x: v for x in fields if (v := getattr(settings, x)) != getattr(opened, x)})


def _write(folder: Path, settings: dict[str, Any]) -> None:
    if settings:
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
