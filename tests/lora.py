"""Random LoRA adapters in PEFT's file layout, written without peft."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 4,
    "lora_alpha": 6,
    "use_rslora": False,
    "use_dora": False,
    "bias": "none",
    "init_lora_weights": "gaussian",
    "base_model_name_or_path": None,
}


def write_lora(
    folder: Path, modules: Mapping[str, tuple[int, int]], tasks: Sequence[str | None] = (None,), **changes: Any
) -> dict[str | None, dict[str, np.ndarray]]:
    """An adapter of linear layers.

    Args:
      folder: made if it is not there.
      modules: (outputs, inputs) by path, as the adapter's model names it.
      tasks: tags of the tensors; None = no tag.
      **changes: of CONFIG.

    Returns:
      By task and module, what is added to the weight [out, in], in float64.
    """
    config = CONFIG | changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(0)
    tensors, added = {}, {}
    for task in tasks:
        tag = "" if task is None else f".{task}"
        added[task] = {}
        for module, (outputs, inputs) in modules.items():
            a = rng.normal(0, 0.1, (config["r"], inputs)).astype(np.float32)
            b = rng.normal(0, 0.1, (outputs, config["r"])).astype(np.float32)
            tensors |= {
                f"base_model.model.{module}.lora_A{tag}.weight": a,
                f"base_model.model.{module}.lora_B{tag}.weight": b,
            }
            added[task][module] = config["lora_alpha"] / config["r"] * b.astype(np.float64) @ a.astype(np.float64)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return added
