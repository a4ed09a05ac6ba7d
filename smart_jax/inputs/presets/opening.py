"""Settings of a checkpoint: recognised by its config.json or its name, and changed by its smart_jax.json."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from smart_jax.files import Checkpoint, read_json
from smart_jax.inputs.presets.preset import Preset
from smart_jax.inputs.presets.table import PRESETS
from smart_jax.inputs.settings import SETTINGS_FILE, Settings, read_settings, with_settings

CUSTOM = "custom"  # preset of a checkpoint whose prompt and pooling the user gives


def open_settings(checkpoint: Checkpoint | str | Path, model_type: str, **overrides: Any) -> Settings:
    """Returns the settings of a checkpoint: its preset's, changed by its smart_jax.json and then by `overrides`.

    Args:
      checkpoint: from `smart_jax.files.open_checkpoint`, or a folder; a snapshot of the hub's cache is known by its
        repository.
      model_type: of its config.json.
      **overrides: fields of `Settings`. "head" = the name of the preset to start from.

    Raises:
      ValueError: nothing tells the preset (the message shows how to pass it), the file is not JSON, or a key or a value
        is not one of `Settings`.

    Example:
      >>> from smart_jax.files import resolve
      >>> open_settings(resolve("tiny"), "qwen3_vl", max_length=99).max_length
      99
    """
    checkpoint = Checkpoint.of(checkpoint)
    where = checkpoint.having(SETTINGS_FILE)
    found = read_settings(where)
    name = overrides.get("head") or found.get("head") or _recognised(checkpoint.folders, model_type)
    if name is None and all(key in overrides or key in found for key in ("prompt", "pooling")):
        name = CUSTOM
    if name is None:
        raise ValueError(_unknown(checkpoint.folder, model_type))
    if name != CUSTOM and name not in PRESETS:
        raise ValueError(f"head is {name!r}, expected one of {', '.join(PRESETS)}, or a prompt and a pooling rule")
    settings = Settings(head=CUSTOM) if name == CUSTOM else PRESETS[name].settings
    for keys in (found, overrides):
        keys.pop("head", None)
    return with_settings(settings, where, found, overrides)


def _recognised(folders: Sequence[Path], model_type: str) -> str | None:
    """Returns the preset's name; a config.json comes before the name of a folder, and that before the default."""
    configs = [read_json(path) for folder in folders if (path := folder / "config.json").is_file()]
    presets = {name: preset for name, preset in PRESETS.items() if model_type in preset.model_types}
    names = " ".join(name for folder in folders for name in _names(folder))
    names += "".join(f" {hf.get('_name_or_path', '')}" for hf in configs)
    architectures = {name for hf in configs for name in hf.get("architectures") or ()}

    def is_of_class(preset: Preset) -> bool:
        return bool(architectures & set(_tuple(preset.architecture)))

    def is_named(preset: Preset) -> bool:
        return preset.names is not None and re.search(preset.names, names, re.IGNORECASE) is not None

    tests: tuple[Callable[[Preset], object], ...] = (
        lambda preset: any(preset.key in hf for hf in configs),
        lambda preset: is_of_class(preset) and is_named(preset),  # of several with one class
        is_of_class,
        is_named,
        lambda preset: preset.default,
    )
    return next((name for test in tests for name, preset in presets.items() if test(preset)), None)


def _tuple(name: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (name,) if isinstance(name, str) else name or ()


def _names(folder: Path) -> list[str]:
    """Returns the folder's names, and the repository's of a snapshot (models--OWNER--NAME/snapshots/REVISION)."""
    repository = [part for part in folder.absolute().parts[-3:-2] if part.startswith("models--")]
    return [folder.resolve().name, folder.name, *repository]


def _unknown(folder: Path, model_type: str) -> str:
    known = ", ".join(name for name, preset in PRESETS.items() if model_type in preset.model_types)
    return (
        f"{folder} is a {model_type}, but nothing says how it is prompted and pooled: neither its name nor its "
        f"config.json is that of a known model. Pass the model that it comes from, smart_jax.load(path, head=...) with "
        f"one of {known}; or its own rule, smart_jax.load(path, pooling='last', prompt='<|im_start|>system\\n"
        "{{ instruction }}<|im_end|>\\n<|im_start|>user\\n{{ visual }}{{ texts | join }}<|im_end|>\\n<|im_start|>"
        "assistant\\n'); or write the same keys to the folder's smart_jax.json"
    )
