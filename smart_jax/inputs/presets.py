"""The published models: how each is prompted and pooled, and how its checkpoints are recognised.

A preset is what the model's own code does, or the paper's (SMART, arXiv:2605.24938) where it has its own; a new model
is a new preset. `smart_jax.load(..., head=, pooling=, prompt=, settings=)` and a folder's smart_jax.json change it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smart_jax.files import Checkpoint, read_json
from smart_jax.inputs.settings import SETTINGS_FILE, VISUAL, Settings, Turns, read_settings, with_settings

CUSTOM = "custom"  # preset of a checkpoint whose prompt and pooling the user gives


class Preset(NamedTuple):
    """Settings of a published model, and what its checkpoints have in common.

    Attributes:
      settings: prompt, pooling and sizes.
      model_types: model types that its checkpoints may have in their config.json.
      names: regular expression that is searched in the repository's or folder's name, case ignored.
      architecture: name among the architectures of config.json.
      key: key that only these checkpoints have in their config.json.
      default: whether it takes the checkpoints of its model types that no other preset claims.

    Example:
      >>> PRESETS["gme"].settings.video
      'middle'
    """

    settings: Settings
    model_types: tuple[str, ...]
    names: str | None = None
    architecture: str | None = None
    key: str | None = None
    default: bool = False


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
_LAMRA = Settings(
    prompt=_LAMRA_TURNS,
    pooling="before:<emb>",
    default_instruction=None,
    positions="sequential",
    min_pixels=256 * 28**2,
    max_pixels=1280 * 28**2,
    **_QWEN2_FRAMES,
)
PRESETS: dict[str, Preset] = {
    "qwen3_vl_embedding": Preset(Settings(), ("qwen3_vl",), r"qwen3-vl-embedding", default=True),
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
    "lamra": Preset(_LAMRA, ("qwen2_vl", "qwen2_5_vl"), r"lamra", key="emb_token_ids"),
    # As the paper's code trains and runs it: the merged visual features enter as embeddings and nowhere else.
    "lamra_qwen3_vl": Preset(
        dataclasses.replace(
            _LAMRA,
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
PRESETS = {
    name: preset._replace(settings=dataclasses.replace(preset.settings, head=name)) for name, preset in PRESETS.items()
}


def open_settings(checkpoint: Checkpoint | str | Path, model_type: str, **overrides: Any) -> Settings:
    """Returns the settings of a checkpoint: its preset's, changed by its smart_jax.json and then by `overrides`.

    Args:
      checkpoint: from `smart_jax.files.open_checkpoint`, or a folder; a snapshot of the hub's cache is known by its
        repository.
      model_type: of its config.json.
      **overrides: fields of `Settings`. "head" = the name of the preset to start from.

    Raises:
      ValueError: nothing tells the preset (the message shows how to pass it), the file is not JSON, or a key or a value
        is not one of `Settings`.

    Example:
      >>> from smart_jax.files import resolve
      >>> open_settings(resolve("tiny"), "qwen3_vl", max_length=99).max_length
      99
    """
    checkpoint = Checkpoint.of(checkpoint)
    where = checkpoint.having(SETTINGS_FILE)
    found = read_settings(where)
    name = overrides.get("head") or found.get("head") or _recognised(checkpoint.folders, model_type)
    if name is None and all(key in overrides or key in found for key in ("prompt", "pooling")):
        name = CUSTOM
    if name is None:
        raise ValueError(_unknown(checkpoint.folder, model_type))
    if name != CUSTOM and name not in PRESETS:
        raise ValueError(f"head is {name!r}, expected one of {', '.join(PRESETS)}, or a prompt and a pooling rule")
    settings = Settings(head=CUSTOM) if name == CUSTOM else PRESETS[name].settings
    for keys in (found, overrides):
        keys.pop("head", None)
    return with_settings(settings, where, found, overrides)


def _recognised(folders: Sequence[Path], model_type: str) -> str | None:
    """Returns the preset's name; a config.json comes before the name of a folder, and that before the default."""
    configs = [read_json(path) for folder in folders if (path := folder / "config.json").is_file()]
    presets = {name: preset for name, preset in PRESETS.items() if model_type in preset.model_types}
    names = " ".join(name for folder in folders for name in _names(folder))
    names += "".join(f" {hf.get('_name_or_path', '')}" for hf in configs)
    architectures = [name for hf in configs for name in hf.get("architectures") or ()]
    tests: tuple[Callable[[Preset], object], ...] = (
        lambda preset: preset.architecture in architectures,
        lambda preset: any(preset.key in hf for hf in configs),
        lambda preset: preset.names is not None and re.search(preset.names, names, re.IGNORECASE),
        lambda preset: preset.default,
    )
    return next((name for test in tests for name, preset in presets.items() if test(preset)), None)


def _names(folder: Path) -> list[str]:
    """Returns the folder's names, and the repository's of a snapshot (models--OWNER--NAME/snapshots/REVISION)."""
    repository = [part for part in folder.absolute().parts[-3:-2] if part.startswith("models--")]
    return [folder.resolve().name, folder.name, *repository]


def _unknown(folder: Path, model_type: str) -> str:
    known = ", ".join(name for name, preset in PRESETS.items() if model_type in preset.model_types)
    return (
        f"{folder} is a {model_type}, but nothing says how it is prompted and pooled: neither its name nor its "
        f"config.json is that of a known model. Pass the model that it comes from, smart_jax.load(path, head=...) with "
        f"one of {known}; or its own rule, smart_jax.load(path, pooling='last', prompt='<|im_start|>system\\n"
        "{{ instruction }}<|im_end|>\\n<|im_start|>user\\n{{ visual }}{{ texts | join }}<|im_end|>\\n<|im_start|>"
        "assistant\\n'); or write the same keys to the folder's smart_jax.json"
    )
