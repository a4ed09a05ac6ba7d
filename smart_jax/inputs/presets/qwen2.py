"""Published models on Qwen2-VL and Qwen2.5-VL with one pooled vector."""

from __future__ import annotations

from typing import Any

from smart_jax.inputs.presets.preset import Preset
from smart_jax.inputs.settings import VISUAL, Settings, Turns

_LAMRA_TURNS: Turns = (
    (
        "user",
        VISUAL,
        "{% set seen = 'image' if images else 'video' %}"
        "{% if texts %}{% if instruction %} {{ instruction | sentence }}\n{% endif %}{{ texts | join(' ') }}\n"
        "Summarize above {{ seen ~ ' and ' if images or videos }}sentence in one word: "
        "{% else %}\nSummarize above {{ seen }} in one word: {% endif %}",
    ),
    ("assistant", "<emb>."),
)
# None of these three ever gives its decoder M-RoPE positions: GME and LamRA call it with embeddings only, and
# VLM2Vec's prompts lack the marks by which transformers finds an image.
_QWEN2_FRAMES: dict[str, Any] = {
    "video_min_pixels": 128 * 28**2,
    "video_max_pixels": 768 * 28**2,
}  # as qwen-vl-utils has them
LAMRA = Settings(
    prompt=_LAMRA_TURNS,
    pooling="before:<emb>",
    default_instruction=None,
    positions="sequential",
    min_pixels=256 * 28**2,
    max_pixels=1280 * 28**2,
    **_QWEN2_FRAMES,
)
PRESETS: dict[str, Preset] = {
    "gme": Preset(
        Settings(
            prompt=(
                "<|im_start|>system\n{{ instruction }}<|im_end|>\n<|im_start|>user\n{{ visual }}{{ texts | join(' ') }}"
                "<|im_end|>\n<|im_start|>assistant\n<|endoftext|>"
            ),
            query_visual=False,
            instructions="queries",
            default_instruction="You are a helpful assistant.",
            positions="sequential",
            min_pixels=256 * 28**2,
            max_pixels=1280 * 28**2,
            first_pixels=(4 * 28**2, 16384 * 28**2),
            video="middle",
        ),
        ("qwen2_vl",),
        r"gme[-_]qwen2",
        architecture="GmeQwen2VL",
    ),
    "lamra": Preset(LAMRA, ("qwen2_vl", "qwen2_5_vl"), r"lamra", key="emb_token_ids"),
    "vlm2vec": Preset(
        Settings(
            prompt=(
                "{% for _ in range(videos) %}{{ video_token }} {% endfor %}"
                "{% for _ in range(images) %}{{ image_token }} {% endfor %}"
                "{% if instruction or texts %}{{ (([instruction] if instruction else []) + texts) | join(' ') }}"
                "{% else %}Represent the given {{ 'image' if images else 'video' }}.{% endif %}"
            ),
            default_instruction=None,
            positions="sequential",
            min_pixels=4 * 28**2,
            max_pixels=1280 * 28**2,
            **_QWEN2_FRAMES,
        ),
        ("qwen2_vl", "qwen2_5_vl"),
        r"vlm2vec",
    ),
    "jina_embeddings_v4": Preset(
        Settings(
            prompt=(
                "{% if images %}<|im_start|>user\n{{ visual }}"
                "{{ texts | join(' ') or ('Describe the image.' if images == 1 else '') }}<|im_end|>\n"
                "{% else %}{{ 'Query' if query else 'Passage' }}: {{ texts | join(' ') }}{% endif %}"
            ),
            pooling="mean",
            keep="all",
            instructions="none",
            default_instruction=None,
            min_pixels=None,
            max_pixels=None,
            max_length=32768,
            video="none",
        ),
        ("qwen2_5_vl",),
        r"jina-embeddings-v4",
        architecture="JinaEmbeddingsV4Model",
    ),
}
