"""Published models on Qwen3-VL with one pooled vector."""

from __future__ import annotations

import dataclasses

from smart_jax.inputs.presets.preset import Preset
from smart_jax.inputs.presets.qwen2 import LAMRA
from smart_jax.inputs.settings import Settings

PRESETS: dict[str, Preset] = {
    "qwen3_vl_embedding": Preset(Settings(), ("qwen3_vl",), r"qwen3-vl-embedding", default=True),
    # As the paper's code trains and runs it: the merged visual features enter as embeddings and nowhere else.
    "lamra_qwen3_vl": Preset(
        dataclasses.replace(
            LAMRA,
            deepstack=False,
            min_pixels=4 * 32**2,
            max_pixels=1024 * 28**2,
            max_length=1024,
            video_min_pixels=Settings.video_min_pixels,
            video_max_pixels=Settings.video_max_pixels,
        ),
        ("qwen3_vl",),
        r"lamra",
        key="emb_token_ids",
    ),
    # github.com/eagerworks/eager-embed, mteb_wrapper.py, EagerEmbedV1Wrapper.encode: the text comes before the image,
    # every page is made 784 x 784, and no turn is opened; inference_transformers.py, an example, opens one.
    "eager_embed": Preset(
        Settings(
            prompt=(
                "<|im_start|>user\n{% if query %}Query: {% endif %}{{ texts | join(' ') }}{{ image * images }}"
                "<|im_end|>\n<|endoftext|>"
            ),
            instructions="none",
            default_instruction=None,
            min_pixels=None,
            max_pixels=None,
            first_size=(784, 784),
            video="none",
        ),
        ("qwen3_vl",),
        r"eager-embed",
    ),
}
