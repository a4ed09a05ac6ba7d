"""The config.json of models that are measured with random weights."""

from __future__ import annotations

from typing import Any

from train.plan import QWEN3_VL_2B, QWEN3_VL_8B

__all__ = ["QWEN3_VL_2B", "QWEN3_VL_8B", "SMALL"]

SMALL: dict[str, Any] = {  # for trying a benchmark out
    **QWEN3_VL_2B,
    "text_config": {
        **QWEN3_VL_2B["text_config"],
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 128,
    },
    "vision_config": {
        **QWEN3_VL_2B["vision_config"],
        "depth": 4,
        "hidden_size": 64,
        "num_heads": 2,
        "intermediate_size": 96,
        "out_hidden_size": 64,
        "deepstack_visual_indexes": [0, 1, 2],
    },
}
