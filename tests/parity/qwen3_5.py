"""Random Qwen3.5 checkpoints; `Inputs` of tests/parity/qwen3_vl.py are their batches, too."""

from __future__ import annotations

import torch
from transformers import Qwen3_5Config, Qwen3_5Model

from tests.parity.qwen3_vl import IDS

TEXT = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 24,
    "initializer_range": 0.08,
}
VISION = {
    "depth": 2,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_heads": 4,
    "out_hidden_size": 64,
    "num_position_embeddings": 36,
    "initializer_range": 0.08,
}
LINEAR, FULL = "linear_attention", "full_attention"
# (text, vision, mrope sections, share of a head that turns): widths of keys and values, kernels, orders and heads vary.
CONFIGS = {
    "published_order": ({}, {}, [2, 1, 1], 0.25),
    "odd_widths": (
        {
            "num_hidden_layers": 3,
            "layer_types": [FULL, LINEAR, LINEAR],
            "head_dim": 24,
            "num_key_value_heads": 1,
            "linear_num_key_heads": 1,
            "linear_num_value_heads": 3,
            "linear_key_head_dim": 9,
            "linear_value_head_dim": 7,
            "linear_conv_kernel_dim": 3,
            "attention_bias": True,
        },
        {"depth": 1, "num_heads": 2, "num_position_embeddings": 144},
        [3, 2, 1],
        0.5,
    ),
    "not_causal": (
        {
            "is_causal": False,
            "num_hidden_layers": 3,
            "layer_types": [LINEAR, FULL, LINEAR],
            "num_key_value_heads": 4,
            "linear_num_key_heads": 5,
            "linear_num_value_heads": 5,
            "linear_key_head_dim": 20,
            "linear_value_head_dim": 12,
            "linear_conv_kernel_dim": 5,
        },
        {"depth": 1, "hidden_size": 64, "num_heads": 2},
        [2, 2, 2],
        0.375,
    ),
}


def torch_model(shape: tuple[dict, dict, list[int], float], seed: int = 0, **ids: int) -> Qwen3_5Model:
    text, vision, sections, share = shape
    rope = {"rope_type": "default", "rope_theta": 1e7, "mrope_section": sections, "mrope_interleaved": True}
    config = Qwen3_5Config(
        text_config={**TEXT, **text, "rope_parameters": {**rope, "partial_rotary_factor": share}},
        vision_config={**VISION, **vision},
        **{**IDS, **ids},
    )
    torch.manual_seed(seed)
    model = Qwen3_5Model(config).eval()
    with torch.no_grad():  # fresh norms are all ones or zeros and biases zero: a swapped pair would go unseen
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
        # Large beside what layers add: otherwise the final norm would multiply their rounding.
        model.language_model.embed_tokens.weight.mul_(3)
        model.visual.merger.linear_fc2.weight.mul_(3)
    return model
