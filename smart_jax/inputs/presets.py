"""The published models: how each is prompted and pooled, and how its checkpoints are recognised.

A row is what the model's own code does, or the paper's (SMART, arXiv:2605.24938) where it has its own; a new model is a
new row. `smart_jax.load(..., head=, pooling=, prompt=, settings=)` and a folder's smart_jax.json change any of it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from smart_jax.files import having, read_json
from smart_jax.inputs.settings import SETTINGS_FILE, VISUAL, Settings, Turns, read_settings, with_settings

CUSTOM = "custom"  # head of a checkpoint whose prompt and pooling the user gives


class Head(NamedTuple):
    """Settings of a model, and what its checkpoints have in common."""

    settings: Settings
    model_types: tuple[str, ...]
    names: str | None = None  # regular expression in the repository's or folder's name, case ignored
    architecture: str | None = None  # of config.json's architectures
    key: str | None = None  # that only these checkpoints have in their config.json
    default: bool = False  # for checkpoints of its model types that no other row claims


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
HEADS: dict[str, Head] = {
    "qwen3_vl_embedding": Head(Settings(), ("qwen3_vl",), r"qwen3-vl-embedding", default=True),
    "gme": Head(
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
    "lamra": Head(_LAMRA, ("qwen2_vl", "qwen2_5_vl"), r"lamra", key="emb_token_ids"),
    # As the paper's code trains and runs it: the merged visual features enter as embeddings and nowhere else.
    "lamra_qwen3_vl": Head(
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
    "vlm2vec": Head(
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
    "jina_embeddings_v4": Head(
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
HEADS = {name: row._replace(settings=dataclasses.replace(row.settings, head=name)) for name, row in HEADS.items()}


def open_settings(folder: str | Path, model_type: str, *, base: str | Path | None = None, **overrides: Any) -> Settings:
    """Settings of a checkpoint: its head's, changed by its smart_jax.json and then by `overrides`.

    Args:
      folder: checkpoint in Hugging Face layout; a snapshot of the hub's cache is known by its repository.
      model_type: of its config.json.
      base: has the files that the folder lacks, see `hub.resolve_base`.
      **overrides: fields of `Settings`. "head" = the row of `HEADS` to start from.

    Raises:
      ValueError: nothing tells the head (the message shows how to pass it), the file is not JSON, or a key or a value
        is not one of `Settings`.
    """
    folders = [Path(some) for some in (folder, base) if some is not None]
    where = having(folder, base, SETTINGS_FILE)
    found = read_settings(where)
    name = overrides.get("head") or found.get("head") or _recognised(folders, model_type)
    if name is None and all(key in overrides or key in found for key in ("prompt", "pooling")):
        name = CUSTOM
    if name is None:
        raise ValueError(_unknown(folders[0], model_type))
    if name != CUSTOM and name not in HEADS:
        raise ValueError(f"head is {name!r}, expected one of {', '.join(HEADS)}, or a prompt and a pooling rule")
    settings = Settings(head=CUSTOM) if name == CUSTOM else HEADS[name].settings
    for keys in (found, overrides):
        keys.pop("head", None)
    return with_settings(settings, where, found, overrides)


def _recognised(folders: Sequence[Path], model_type: str) -> str | None:
    """Name of the row; what a config.json says goes before the name of a folder, and that before the default."""
    configs = [read_json(path) for folder in folders if (path := folder / "config.json").is_file()]
    rows = {name: row for name, row in HEADS.items() if model_type in row.model_types}
    names = " ".join(name for folder in folders for name in _names(folder))
    names += "".join(f" {hf.get('_name_or_path', '')}" for hf in configs)
    architectures = [name for hf in configs for name in hf.get("architectures") or ()]
    tests = (
        lambda row: row.architecture in architectures,
        lambda row: any(row.key in hf for hf in configs),
        lambda row: row.names is not None and re.search(row.names, names, re.IGNORECASE),
        lambda row: row.default,
    )
    return next((name for test in tests for name, row in rows.items() if test(row)), None)


def _names(folder: Path) -> list[str]:
    """Of the folder, and of the repository of a snapshot in the hub's cache, models--OWNER--NAME/snapshots/REVISION."""
    repository = [part for part in folder.absolute().parts[-3:-2] if part.startswith("models--")]
    return [folder.resolve().name, folder.name, *repository]


def _unknown(folder: Path, model_type: str) -> str:
    known = ", ".join(name for name, row in HEADS.items() if model_type in row.model_types)
    return (
        f"{folder} is a {model_type}, but nothing says how it is prompted and pooled: neither its name nor its "
        f"config.json is that of a known model. Pass the model that it comes from, smart_jax.load(path, head=...) with "
        f"one of {known}; or its own rule, smart_jax.load(path, pooling='last', prompt='<|im_start|>system\\n"
        "{{ instruction }}<|im_end|>\\n<|im_start|>user\\n{{ visual }}{{ texts | join }}<|im_end|>\\n<|im_start|>"
        "assistant\\n'); or write the same keys to the folder's smart_jax.json"
    )
