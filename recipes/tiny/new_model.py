"""A new, untrained checkpoint folder in Hugging Face layout: a byte-level BPE tokenizer, configs, random weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from smart_jax.models import init_weights, load_config, save_weights

# Qwen's markers; their ids are their places here.
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Turns of text and images, rendered as Qwen3-VL's template renders them.
CHAT_TEMPLATE = """{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.content is string -%}{{ message.content }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' -%}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- elif part.type == 'text' -%}{{ part.text }}
{%- endif -%}
{%- endfor -%}
{%- endif -%}
{{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""


def train_tokenizer(texts: Iterable[str], size: int, *, phrases: Iterable[str] = ()) -> Tokenizer:
    """Trains a lower-case byte-level BPE of exactly `size` pieces.

    Args:
      texts: what the merges are fitted on.
      size: of the vocabulary, special tokens and phrases included.
      phrases: texts that are one piece each wherever they stand, in upper and lower case as they are: the parts of the
        prompt that never change. Line breaks around them are dropped, so that a prompt costs a small model few
        positions.

    Raises:
      ValueError: the texts do not give that many pieces.

    Example:
      >>> tokenizer = train_tokenizer(["the value of the table"], 270, phrases=["user\\n"])
      >>> tokenizer.encode("The user\\n THE").tokens
      ['Ġthe', 'user\\n', 'Ġthe']
    """
    phrases = list(phrases)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Lowercase()])
    # A word has the same pieces at the start of a text as within it.
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(phrases),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(phrase, normalized=False) for phrase in phrases])
    if (pieces := tokenizer.get_vocab_size()) != size:
        raise ValueError(f"the texts give {pieces} pieces, {size} were asked for: give more texts or a smaller size")
    return tokenizer


def new_checkpoint(
    folder: str | Path,
    config: Mapping[str, Any],
    tokenizer: Tokenizer,
    *,
    settings: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Path:
    """Writes a folder that `smart_jax.load` opens.

    Args:
      folder: where it is written.
      config: contents of config.json; the ids of Qwen's markers are filled in.
      tokenizer: has as many pieces as the config's vocabulary.
      settings: contents of smart_jax.json (`smart_jax.inputs.Settings`).
      seed: of the weights, which are drawn from a normal distribution with the config's initializer_range.

    Returns:
      The folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    markers = ("image_pad", "video_pad", "vision_start", "vision_end")
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = {name: SPECIAL_TOKENS.index(f"<|{marker}|>") for name, marker in zip(names, markers, strict=True)}
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    _write_json(folder / "config.json", {**config, **ids})
    _write_json(folder / "tokenizer_config.json", _tokenizer_config())
    _write_json(folder / "preprocessor_config.json", _preprocessor_config(config["vision_config"]))
    if settings:
        _write_json(folder / "smart_jax.json", settings)
    model_config = load_config(folder)
    save_weights(folder, init_weights(model_config, seed)[1], model_config)
    return folder


def _preprocessor_config(vision: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "image_processor_type": "Qwen2VLImageProcessor",
        "patch_size": vision["patch_size"],
        "temporal_patch_size": vision["temporal_patch_size"],
        "merge_size": vision["spatial_merge_size"],
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def _tokenizer_config() -> dict[str, Any]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "extra_special_tokens": [t for t in SPECIAL_TOKENS if t not in ("<|im_end|>", "<|endoftext|>")],
        "model_max_length": 32768,
        "clean_up_tokenization_spaces": False,
    }


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
