"""Small checkpoint folders in Hugging Face layout, written without torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

# Ids 0..6, as tests/backbone.py expects them.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
VOCABULARY = 520
# Mean and deviation of a channel's values: those of CLIP, which Qwen2-VL took with its patches of 14 pixels.
CLIP = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
# The word splitting of Qwen's tokenizers.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS = (
    "Represent the user's input. Find a document image that matches the given query.",
    "system user assistant NULL revenue by region in the report of the year 2023: 12,345 thousand",
    "return the value of the function, raise an error when the argument is not a number",
    "A retrieval model reads the page and the query, and compares every token with every token.",
)

# Turns of text, images and videos, as Qwen3-VL's template renders them; no tools.
CHAT_TEMPLATE = """
{%- macro parts(content) -%}
{%- if content is string -%}{{ content }}
{%- else -%}
{%- for part in content -%}
{%- if part.type == 'image' or 'image' in part -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'video' or 'video' in part -%}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}
{%- elif 'text' in part -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' + parts(message.content) + '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""


# Special tokens of EmbeddingGemma 2, whose ids here are their places.
GEMMA_TOKENS = (
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "<mask>",
    "<|image>",
    "<|image|>",
    "<image|>",
    "<|video|>",
    "<|audio>",
    "<|audio|>",
    "<audio|>",
)


def byte_level_tokenizer(vocabulary: int = VOCABULARY, special: tuple[str, ...] = SPECIAL_TOKENS) -> Tokenizer:
    """A byte-level BPE of Qwen's shape, trained on CORPUS; the special tokens have the first ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 4, trainer)
    return tokenizer


def write_processor(folder: Path, *, patch_size: int = 16, temporal_patch_size: int = 2, merge_size: int = 2) -> Path:
    """tokenizer.json, tokenizer_config.json, chat_template.jinja and preprocessor_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    byte_level_tokenizer().save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "extra_special_tokens": [t for t in SPECIAL_TOKENS if t not in ("<|im_end|>", "<|endoftext|>")],
        "model_max_length": 262144,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=1))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    mean, std = ([0.5] * 3, [0.5] * 3) if patch_size == 16 else CLIP
    preprocessor_config = {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": patch_size,
        "temporal_patch_size": temporal_patch_size,
        "merge_size": merge_size,
        "image_mean": mean,
        "image_std": std,
        # Qwen3-VL-Embedding ships bounds that its own pipeline overrides: they must not be used.
        "size": {"shortest_edge": 65536, "longest_edge": 16777216},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor_config, indent=1))
    return folder


def write_gemma_processor(folder: Path, *, soft_tokens: int = 70) -> Path:
    """tokenizer.json, tokenizer_config.json and preprocessor_config.json of an EmbeddingGemma 2."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_level_tokenizer(special=GEMMA_TOKENS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **{f"{name}_token": f"<{name}>" for name in ("pad", "eos", "bos", "unk", "mask")},
        "extra_special_tokens": list(GEMMA_TOKENS[5:]),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config, indent=1))
    settings = {"image_processor_type": "Gemma4ImageProcessor", "max_soft_tokens": soft_tokens, "patch_size": 16}
    settings |= {"pooling_kernel_size": 3, "do_normalize": False, "do_rescale": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=1))
    return folder


def noise_page(width: int, height: int, seed: int = 0) -> Image.Image:
    """A picture without any structure."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
