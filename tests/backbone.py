"""A small random checkpoint in Hugging Face layout, written without torch."""

from __future__ import annotations

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

from smart_jax.inputs import PRESETS, MultimodalPreprocessor
from smart_jax.models import EmbeddingGemma2Config, QwenVLConfig, load_config
from smart_jax.models.weights import init_weights, save_weights
from tests.checkpoints import write_gemma_processor, write_processor

CONFIG: dict[str, Any] = {
    "model_type": "qwen3_vl",
    "image_token_id": 5,
    "video_token_id": 6,
    "vision_start_token_id": 3,
    "vision_end_token_id": 4,
    "text_config": {
        "model_type": "qwen3_vl_text",
        "vocab_size": 640,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "initializer_range": 0.2,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 5000000.0,
            "mrope_section": [2, 1, 1],
            "mrope_interleaved": True,
        },
    },
    "vision_config": {
        "model_type": "qwen3_vl_vision",
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_heads": 2,
        "in_channels": 3,
        "patch_size": 16,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
        "hidden_act": "gelu_pytorch_tanh",
        "initializer_range": 0.2,
    },
}

_FLAT = {  # as transformers v4 wrote Qwen2-VL and Qwen2.5-VL, and the hub has them
    **{key: CONFIG[key] for key in CONFIG if key.endswith("_token_id")},
    "vocab_size": 640,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.2,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]},
}
_TOWER = {
    "depth": 2,
    "num_heads": 2,
    "in_chans": 3,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "spatial_merge_size": 2,
}
QWEN2: dict[str, dict[str, Any]] = {
    "qwen2_vl": {
        **_FLAT,
        "model_type": "qwen2_vl",
        "vision_config": {**_TOWER, "embed_dim": 16, "mlp_ratio": 2, "hidden_size": 32, "initializer_range": 0.2},
    },
    "qwen2_5_vl": {
        **_FLAT,
        "model_type": "qwen2_5_vl",
        "vision_config": {
            **_TOWER,
            "hidden_size": 16,
            "intermediate_size": 24,
            "out_hidden_size": 32,
            "window_size": 56,
            "fullatt_block_indexes": [1],
            "initializer_range": 0.2,
        },
    },
}
QWEN35: dict[str, Any] = {
    **CONFIG,
    "model_type": "qwen3_5",
    "text_config": {
        **{key: value for key, value in CONFIG["text_config"].items() if key != "rope_parameters"},
        "model_type": "qwen3_5_text",
        "layer_types": ["linear_attention", "full_attention"],
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "rope_parameters": {**CONFIG["text_config"]["rope_parameters"], "partial_rotary_factor": 0.5},
    },
    "vision_config": {
        **{key: value for key, value in CONFIG["vision_config"].items() if key != "deepstack_visual_indexes"},
        "model_type": "qwen3_5_vision",
    },
}

GEMMA: dict[str, Any] = {
    "model_type": "embedding_gemma2",
    "boi_token_id": 5,
    "image_token_id": 6,
    "eoi_token_id": 7,
    "video_token_id": 8,
    "boa_token_id": 9,
    "audio_token_id": 10,
    "eoa_token_index": 11,
    "text_config": {
        "vocab_size": 640,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "hidden_size_per_layer_input": 12,
        "embedding_dim": 32,
        "sliding_window": 16,
        "global_head_dim": 16,
        "num_global_key_value_heads": 1,
        "initializer_range": 0.2,
    },
    "vision_config": {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "position_embedding_size": 256,
        "initializer_range": 0.2,
    },
    "audio_config": None,
}


# Of EmbeddingGemma 2's audio tower, which reads 128 bands.
HEARING: dict[str, Any] = {
    "model_type": "gemma4_audio",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "subsampling_conv_channels": [128, 4],
    "output_proj_dims": 20,
    "initializer_range": 0.2,
}


def small_config(**changes: Any) -> dict[str, Any]:
    """CONFIG, or that of another model_type, with top-level keys replaced and the two sections updated."""
    others = {**QWEN2, "qwen3_5": QWEN35, "embedding_gemma2": GEMMA}
    config = copy.deepcopy(others.get(changes.get("model_type", ""), CONFIG))
    for key, value in changes.items():
        if key in ("text_config", "vision_config") and value is not None:
            config[key].update(value)
        else:
            config[key] = value
    return config


def write_backbone(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """config.json and model.safetensors of a random backbone."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(small_config(**changes)))
    config = load_config(folder)
    save_weights(folder, init_weights(config, seed)[1], config)
    return folder


def write_checkpoint(folder: Path, seed: int = 0, **changes: Any) -> Path:
    """A whole checkpoint: backbone, tokenizer, chat template, image settings."""
    if changes.get("model_type") == "embedding_gemma2":
        return write_gemma_processor(write_backbone(folder, seed, **changes))
    patch_size = small_config(**changes)["vision_config"]["patch_size"]
    return write_processor(write_backbone(folder, seed, **changes), patch_size=patch_size)


def open_small(folder: Path, head: str, **settings: Any) -> MultimodalPreprocessor:
    """A published model's preprocessor on a small backbone, whose files are written to a folder of its kind in this."""
    model_type = PRESETS[head].model_types[0]
    if model_type == "embedding_gemma2":
        files, write = folder / "gemma", write_gemma_processor
        config: Any = EmbeddingGemma2Config.from_hf(GEMMA)
    else:
        files, write = folder / "qwen", write_processor
        config = dataclasses.replace(QwenVLConfig.from_hf(CONFIG), model_type=model_type)
    if not files.is_dir():
        write(files)
    return MultimodalPreprocessor.from_pretrained(files, config, head=head, **settings)
