"""The embedded model's shape: contents of config.json and smart_jax.json, the vocabulary and the prompt's pieces."""

from __future__ import annotations

from typing import Any

PIECES = 2048  # of the vocabulary
QUERY_PIECES = 20  # of a training query, at most
PROMPT_PIECES = 8  # around a query

MODEL: dict[str, Any] = {
    "architectures": ["Qwen3VLForConditionalGeneration"],
    "model_type": "qwen3_vl",
    "tie_word_embeddings": True,
    "text_config": {
        "model_type": "qwen3_vl_text",
        "vocab_size": PIECES,
        "hidden_size": 192,
        "intermediate_size": 384,
        "num_hidden_layers": 4,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "hidden_act": "silu",
        "attention_bias": False,
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.05,  # 1 / sqrt(width), or nearly: 0.02 is made for wide models and starts slowly here
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10000.0,
            "mrope_section": [6, 5, 5],
            "mrope_interleaved": True,
        },
    },
    "vision_config": {
        "model_type": "qwen3_vl",
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_heads": 2,
        "in_channels": 3,
        "patch_size": 16,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "out_hidden_size": 192,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [1],
        "hidden_act": "gelu_pytorch_tanh",
        "initializer_range": 0.05,
    },
}
SETTINGS: dict[str, Any] = {
    "min_pixels": 2048,
    "max_pixels": 65536,
    "max_length": 512,
    "length_buckets": [12, 20, 28, 42, 64, 128, 256, 512],
    "patch_buckets": [8, 16, 32, 64, 128, 256],
}
# The parts of the prompt that never change are one piece each.
PHRASES = ("system\nRepresent the user's input.", "user\n", "assistant\n")
