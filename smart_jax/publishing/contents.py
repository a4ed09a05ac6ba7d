"""Contents of a folder to be published, read from its JSON files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from smart_jax.files import CONFIG_FILE, PACKAGED, is_hub_id, read_json

ADAPTER_FILE = "adapter.json"
Kind = Literal["adapter", "lora", "model"]


@dataclasses.dataclass(frozen=True)
class Contents:
    """Contents of a folder.

    Attributes:
      kind: "adapter" = a token projection that `Adapter.save` wrote, "lora" = a PEFT adapter, "model" = a checkpoint.
      model: of the checkpoint, its config.json; empty for others.
      adapter: settings of the token projection, which a checkpoint may have, too; empty where there is none.
      base: the base model's name that the folder tells; None = it tells none.
    """

    kind: Kind
    model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    adapter: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    base: str | None = None


def read_contents(folder: Path) -> Contents:
    """Returns what a folder holds.

    Raises:
      FileNotFoundError: there is no folder, or nothing in it that can be published.
    """
    adapter = read_json(folder / ADAPTER_FILE) if (folder / ADAPTER_FILE).is_file() else {}
    if (folder / CONFIG_FILE).is_file():
        return Contents("lora", adapter=adapter, base=read_json(folder / CONFIG_FILE).get("base_model_name_or_path"))
    if (folder / "config.json").is_file():
        return Contents("model", model=read_json(folder / "config.json"), adapter=adapter)
    if adapter:
        return Contents("adapter", adapter=adapter)
    raise FileNotFoundError(
        f"'{folder}' holds neither an adapter ({ADAPTER_FILE}, {CONFIG_FILE}) nor a model (config.json): give a folder "
        "that Adapter.save, Encoder.save or a training run wrote"
    )


def hub_name(model: str | None) -> str | None:
    """Returns a model's hub id; None = it has none, or it cannot be told.

    Example:
      >>> hub_name("minilm"), hub_name("Qwen/Qwen3-VL-Embedding-2B"), hub_name("/models/mine"), hub_name("tiny")
      ('sentence-transformers/all-MiniLM-L6-v2', 'Qwen/Qwen3-VL-Embedding-2B', None, None)
    """
    if model in PACKAGED:
        return PACKAGED[model].hub_id
    return model if model is not None and "/" in model and is_hub_id(model) and not Path(model).exists() else None
