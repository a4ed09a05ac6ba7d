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
# GME and LamRA call their decoder with embeddings only, and VLM2Vec's prompts lack the marks by which transformers
# finds an image: none of these three has M-RoPE positions.
_QWEN2_FRAMES: dict[str, Any] = {
    "video_min_pixels": 128 * 28**2,
    "video_max_pixels": 768 * 28**2,
}  # as qwen-vl-utils has them
_IMAGES: dict[str, Any] = {"min_pixels": 256 * 28**2, "max_pixels": 1280 * 28**2}
# gme_inference.py of the checkpoints resizes each image twice: first within qwen-vl-utils' wide bounds.
_FIRST_RESIZE = (4 * 28**2, 16384 * 28**2)
_HELPFUL = "You are a helpful assistant."
# What Qwen2-VL's chat template makes of a system and a user turn, and the token after it whose state is pooled.
_GME_PROMPT = (
    "<|im_start|>system\n{{ instruction }}<|im_end|>\n<|im_start|>user\n{{ visual }}{{ texts | join(' ') }}<|im_end|>\n"
    "<|im_start|>assistant\n<|endoftext|>"
)
LAMRA = Settings(
    prompt=_LAMRA_TURNS,
    pooling="before:<emb>",
    default_instruction=None,
    positions="sequential",
    **_IMAGES,
    **_QWEN2_FRAMES,
)
PRESETS: dict[str, Preset] = {
    "gme": Preset(
        Settings(
            prompt=_GME_PROMPT,
            query_visual=False,
            instructions="queries",
            default_instruction=_HELPFUL,
            positions="sequential",
            first_pixels=_FIRST_RESIZE,
            video="middle",
            **_IMAGES,
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
    # mteb.models.model_implementations.ops_mm_models, OpsMMEmbeddingWrapper.embed_batch: token ids and grids go to the
    # whole model, which numbers the positions. Frames of a video are images to it.
    "ops_mm_embedding": Preset(
        Settings(prompt=_GME_PROMPT, default_instruction=_HELPFUL, video="none", **_IMAGES),
        ("qwen2_vl",),
        r"ops-mm-embedding",
    ),
    # github.com/360CVGroup/RzenEmbed, rzen_embed_inference.py, get_fused_embeddings and embed: the instruction and the
    # text meet without a space, and the decoder is called with embeddings only. Frames of a video are images to it.
    "rzen_embed": Preset(
        Settings(
            prompt=(
                f"<|im_start|>system\n{_HELPFUL}<|im_end|>\n<|im_start|>user\n"
                "{{ visual }}{{ instruction }}{{ texts | join(' ') }}<|im_end|>\n<|im_start|>assistant\n<|endoftext|>"
            ),
            default_instruction=None,
            positions="sequential",
            first_pixels=_FIRST_RESIZE,
            max_length=2000,
            video="none",
            **_IMAGES,
        ),
        ("qwen2_vl",),
        r"rzen-?embed",
    ),
    # github.com/friedrichor/UNITE, unite/prompt_template.py, "UNITE"; bounds and frames of inference/inference_demo.py;
    # inference/modeling_unite.py calls the decoder with embeddings only.
    "unite": Preset(
        Settings(
            prompt=(
                f"<|im_start|>system\n{_HELPFUL}<|im_end|>\n<|im_start|>user\n"
                "{{ visual }}{{ texts | join(' ') }}\nSummary above "
                "{{ ((['sentence'] if texts or not images + videos else []) + (['image'] if images else []) "
                "+ (['video'] if videos else [])) | join(' and ') }} in one word:"
                "<|im_end|>\n<|im_start|>assistant\n<|endoftext|>"
            ),
            instructions="none",
            default_instruction=None,
            positions="sequential",
            max_frames=32,
            video_min_pixels=128 * 28**2,
            video_max_pixels=360 * 420,
            **_IMAGES,
        ),
        ("qwen2_vl",),
        r"\bunite-(base|instruct)-",
        architecture="UniteQwen2VL",
    ),
    # mteb.models.model_implementations.gve_models, GVEWrapper.encode: Qwen2.5-VL's chat template, <|endoftext|> after
    # it, images within the checkpoint's own bounds; an instruction is the queries' system turn.
    "gve": Preset(
        Settings(
            prompt=_GME_PROMPT,
            instructions="queries",
            default_instruction=_HELPFUL,
            min_pixels=None,
            max_pixels=None,
            max_length=4096,
            max_frames=8,
            video_min_pixels=128 * 28**2,
            video_max_pixels=200 * 28**2,
        ),
        ("qwen2_5_vl",),
        r"\bgve-\d+b",
    ),
    # mteb.models.model_implementations.moca_models, MoCaWrapper.encode, as demo.py of github.com/haon-chen/MoCa; that
    # repository's script for ViDoRe has the line break before the sentence instead. Each token attends to all.
    "moca": Preset(
        Settings(
            prompt=(
                "{% if images %}{{ visual }}Represent the given "
                "{% if texts %}image with the following question: {{ texts | join(' ') }}"
                "{% else %}document image.{% endif %}\n{% else %}{{ texts | join(' ') }}{% endif %}"
            ),
            pooling="mean_all",
            causal=False,
            instructions="none",
            default_instruction=None,
            min_pixels=256 * 28**2,
            max_pixels=1024 * 28**2,
            max_length=2048,
            video="none",
        ),
        ("qwen2_5_vl",),
        r"moca-qwen25vl",
    ),
    # github.com/nomic-ai/colpali, colpali_engine/models/qwen2_5/, BiQwen2_5_Processor.process_queries and
    # ColQwen2_5_Processor.process_images, as of the model's release; colpali-engine 0.3.18 leaves "Query: " out and
    # appends ten <|endoftext|>. It has no prompt of a text beside an image, and one for all other texts.
    "nomic_embed_multimodal": Preset(
        Settings(
            prompt=(
                "{% if images %}<|im_start|>user\n{{ visual }}{{ texts | join(' ') or 'Describe the image.' }}"
                "<|im_end|>{% else %}Query: {{ texts | join(' ') }}{% endif %}<|endoftext|>"
            ),
            instructions="none",
            default_instruction=None,
            min_pixels=4 * 28**2,
            max_pixels=768 * 28**2,
            video="none",
        ),
        ("qwen2_5_vl",),
        r"(?<!col)nomic-embed-multimodal",
    ),
}
