"""Export of trained weights to folders that PEFT, transformers and `smart_jax.load` open."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flax import nnx

from smart_jax import Encoder
from smart_jax.files import read_json
from smart_jax.inputs import SETTINGS_FILE, read_settings
from smart_jax.models import save_lora
from smart_jax.runtime import is_main
from train.config import TrainConfig
from train.run_directory import write_whole
from train.setup import preprocessing_overrides, source

MARK = "exported.json"  # in the run directory: of which step the exported folders are


def exports(config: TrainConfig) -> list[str]:
    """Returns the names of the folders that a run exports, in the order in which they are written.

    Example:
      >>> exports(TrainConfig(trainable="adapter+lora"))
      ['adapter', 'lora', 'model']
    """
    names = ["adapter"] if "adapter" in config.parts else []
    if "lora" in config.parts:
        names.append("lora")
    if "full" in config.parts or ("lora" in config.parts and config.lora.merge):
        names.append("model")
    return names


def mark_exported(folder: Path, names: Sequence[str], step: int) -> None:
    """Notes, in a run directory, that these folders in it are whole and of this step; raises UnwrittenError."""
    write_whole(folder / MARK, json.dumps({"step": step, "bytes": _sizes(folder, names)}) + "\n")


def is_exported(folder: Path, names: Sequence[str], step: int) -> bool:
    """Returns whether `mark_exported` noted these folders and this step, and no file of them has changed its size.

    Example:
      >>> is_exported(Path("no_such_run"), ["adapter"], step=8)
      False
    """
    mark = folder / MARK
    noted = {"step": step, "bytes": _sizes(folder, names)}
    return mark.is_file() and read_json(mark) == noted


def _sizes(folder: Path, names: Sequence[str]) -> dict[str, int]:
    files = [file for name in names for file in sorted((folder / name).rglob("*")) if file.is_file()]
    return {str(file.relative_to(folder)): file.stat().st_size for file in files}


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
    encoder.with_adapter(None).with_params(params).save(folder)
    return folder


def _write_settings(folder: Path, encoder: Encoder, config: TrainConfig, known: dict[str, Any]) -> None:
    overrides = preprocessing_overrides(config)
    if encoder.preprocessor.preset is not None:  # the folder's name may tell it no longer
        overrides["head"] = encoder.preprocessor.preset
    if overrides:
        text = json.dumps(known | overrides, indent=2) + "\n"
        (folder / SETTINGS_FILE).write_text(text, encoding="utf-8")
