"""Which files a checkpoint's folder holds: weights, and a PEFT adapter beside or instead of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
SUBFOLDER = "adapters"
# What the config may ask for beside LoRA and DoRA, each with another merge or none.
_UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
)


# Others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) change the base weights before training: what is merged belongs to those.
_INITS = (True, False, "gaussian", "eva", "orthogonal", "mica")


def having(folder: str | Path, base: str | Path | None, *names: str) -> Path:
    """`base`, the folder of the model that `folder` adapts, if that alone has one of the files; otherwise `folder`."""
    found = [Path(place) for place in (folder, base) if place and any((Path(place) / name).exists() for name in names)]
    return found[0] if found else Path(folder)


def find_adapter(folder: str | Path) -> Path | None:
    """Where a checkpoint's adapter is: the folder itself or its adapters/; None = it has none.

    Raises:
      ValueError: both hold one.
    """
    found = [place for place in (Path(folder), Path(folder) / SUBFOLDER) if (place / CONFIG_FILE).is_file()]
    if len(found) > 1:
        raise ValueError(f"{folder} and its {SUBFOLDER}/ both hold an {CONFIG_FILE}: remove the one that is not wanted")
    return found[0] if found else None


def read_adapter_config(folder: str | Path) -> dict[str, Any]:
    """The parsed adapter_config.json; ValueError when it is not JSON or not of a LoRA (or DoRA) that is merged here."""
    path = Path(folder) / CONFIG_FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}): fetch the adapter again") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise ValueError(f"{path}: peft_type {kind!r} is not supported, only 'LORA': merge the adapter with peft first")
    if unsupported := [key for key in _UNSUPPORTED if config.get(key)]:
        raise ValueError(f"{path}: {', '.join(unsupported)} is not supported: merge the adapter with peft first")
    if (init := config.get("init_lora_weights", True)) not in _INITS:
        raise ValueError(
            f"{path}: init_lora_weights {init!r} changes the base weights: convert the adapter to a LoRA with peft "
            "(save_pretrained with path_initial_model_for_weight_conversion)"
        )
    return config
