"""Random Qwen2-VL and Qwen2.5-VL checkpoints, written by transformers in the hub's layout."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from tests.parity.qwen3_vl import IDS, TEXT

CLASSES = {
    "qwen2_vl": (Qwen2VLConfig, Qwen2VLForConditionalGeneration),
    "qwen2_5_vl": (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration),
}
VISION = {
    "qwen2_vl": {"depth": 4, "embed_dim": 48, "num_heads": 4, "mlp_ratio": 2, "hidden_size": 64},
    "qwen2_5_vl": {
        "depth": 4,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_heads": 4,
        "out_hidden_size": 64,
        "window_size": 56,  # two visual tokens: images of 6 x 10 patches end in half a window
        "fullatt_block_indexes": [1, 3],
    },
}
WIDE_TEXT = {"num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "rms_norm_eps": 1e-4}
# (family, text, vision, mrope sections): head width, depth, groups, sections and windows all differ.
CONFIGS = {
    "qwen2": ("qwen2_vl", {}, {}, [2, 3, 3]),
    "qwen2_wide_heads": (
        "qwen2_vl",
        WIDE_TEXT,
        {"depth": 3, "embed_dim": 64, "num_heads": 2, "mlp_ratio": 3},
        [6, 5, 5],
    ),
    "qwen2_5": ("qwen2_5_vl", {}, {}, [2, 3, 3]),
    "qwen2_5_wide_windows": (
        "qwen2_5_vl",
        WIDE_TEXT,
        # 100 pixels are three whole visual tokens of 28
        {"depth": 3, "hidden_size": 64, "num_heads": 2, "window_size": 100, "fullatt_block_indexes": [0]},
        [4, 6, 6],
    ),
}

Shape = tuple[str, dict[str, Any], dict[str, Any], list[int]]


def torch_model(shape: Shape, seed: int = 0, **ids: int) -> Qwen2VLForConditionalGeneration:
    family, text, vision, sections = shape
    config_class, model_class = CLASSES[family]
    text = {name: value for name, value in {**TEXT, **text}.items() if name != "head_dim"}
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    config = config_class(
        text_config={**text, "rope_parameters": rope, "bos_token_id": None, "eos_token_id": None},
        vision_config={**VISION[family], "initializer_range": 0.08, **vision},
        **{**IDS, **ids},
    )
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():  # fresh norms are all ones and biases zero: a swapped pair of them would go unseen
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def to_v4(folder: Path, target: Path) -> Path:
    """The checkpoint with config.json as transformers v4 wrote it: text keys at the top, old names of the vision's."""
    config = json.loads((folder / "config.json").read_text())
    text, vision = config.pop("text_config"), copy.deepcopy(config["vision_config"])
    rope = text.pop("rope_parameters")
    del text["model_type"], text["layer_types"], vision["rope_parameters"]
    for new, old in (("in_channels", "in_chans"), ("patch_size", "spatial_patch_size")):
        vision[old] = vision.pop(new)
    config |= text
    config |= {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"type": "mrope", "mrope_section": rope["mrope_section"]},
        "vision_config": vision,
    }
    target.mkdir()
    (target / "config.json").write_text(json.dumps(config))
    (target / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    return target


def to_v5_names(folder: Path) -> None:
    """Renames the hub's tensors to the attributes of the modules of transformers v5."""
    tensors = load_file(folder / "model.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"visual", "model", "lm_head"}
    renamed = {
        f"model.{name}" if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1): value
        for name, value in tensors.items()
    }
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
