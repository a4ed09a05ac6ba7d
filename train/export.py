"""Export of trained weights to folders that PEFT, transformers and `smart_jax.load` open."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from flax import nnx

from smart_jax import Encoder
from smart_jax.files import CONFIG_FILE
from smart_jax.inputs import SETTINGS_FILE, TOKENIZER_FILES, read_settings
from smart_jax.models import save_lora, save_weights
from smart_jax.runtime import is_main
from train.config import TrainConfig
from train.setup import preprocessing_overrides, source


def export_lora(folder: Path, encoder: Encoder, params: nnx.State, config: TrainConfig) -> Path:
    """Writes a folder that PEFT opens and, with the preprocessing of the run, `smart_jax.load`; both need the base.

    Args:
      folder: what is written.
      encoder: the model that was trained.
      params: its parameters, low-rank branches included.
      config: of the run.

    Returns:
      The folder.
    """
    base = Path(config.model).resolve() if Path(config.model).is_dir() else config.model
    save_lora(folder, params, encoder.config, config.lora, base=base)
    if is_main():
        _write_settings(folder, encoder, config, read_settings(source(encoder).folder))
    return folder


def export_model(folder: Path, encoder: Encoder, params: nnx.State, config: TrainConfig) -> Path:
    """Writes a Hugging Face folder: the weights, and the source's other files. Of several processes the first writes.

    Args:
      folder: what is written.
      encoder: the model that was trained, or one with merged branches.
      params: its parameters.
      config: of the run.

    Returns:
      The folder.
    """
    if is_main():
        _copy_files(folder, encoder, config)
    save_weights(folder, params, encoder.config)
    return folder


def _copy_files(folder: Path, encoder: Encoder, config: TrainConfig) -> None:
    """Copies everything except the weights, and writes the run's settings."""
    checkpoint = source(encoder)
    words = checkpoint.having(*TOKENIZER_FILES)
    for root in reversed(checkpoint.folders):  # a PEFT adapter's files replace its base's
        # Weights are written anew, with an adapter merged into them; the template comes with the tokenizer.
        left_out = (".", "model", CONFIG_FILE, *(() if root == words else ("chat_template",)))
        for file in sorted((*root.iterdir(), *root.glob("*/config.json"))):  # the latter of sentence-transformers
            if file.is_file() and not file.name.startswith(left_out) and file.suffix != ".safetensors":
                target = folder / file.relative_to(root)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
    hf = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if hf.pop("task_names", None):  # names of adapters, one of which is merged
        (folder / "config.json").write_text(json.dumps(hf, indent=2) + "\n", encoding="utf-8")
    _write_settings(folder, encoder, config, read_settings(folder))


def _write_settings(folder: Path, encoder: Encoder, config: TrainConfig, known: dict[str, Any]) -> None:
    overrides = preprocessing_overrides(config)
    if encoder.preprocessor.preset is not None:  # the folder's name may tell it no longer
        overrides["head"] = encoder.preprocessor.preset
    if overrides:
        text = json.dumps(known | overrides, indent=2) + "\n"
        (folder / SETTINGS_FILE).write_text(text, encoding="utf-8")
