"""Images and frames of models that scale each to a number of visual tokens ("soft tokens"): EmbeddingGemma 2."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from smart_jax.files import read_json
from smart_jax.inputs.image import IMAGE_FILES, ImageSettings, read_processor_config
from smart_jax.inputs.settings import Settings
from smart_jax.models import EmbeddingGemma2Config

BUDGETS = (70, 140, 280, 560, 1120)  # that the model was trained with
BUDGET = 280  # where a checkpoint's files do not say
VIDEO_FILES = ("video_preprocessor_config.json", "processor_config.json")
FRAME_BUDGET = 140  # of a frame of a video
_PATCH, _MERGE = 16, 3  # of a checkpoint without a vision tower


def read_soft_token_settings(folder: Path, config: EmbeddingGemma2Config, settings: Settings) -> ImageSettings:
    """Reads the number of soft tokens of an image from preprocessor_config.json or processor_config.json.

    Args:
      folder: checkpoint in Hugging Face layout; a checkpoint without a vision tower need not have these files.
      config: of the backbone.
      settings: whose `soft_tokens` come before the file's.

    Raises:
      ValueError: a file is not JSON, contradicts the backbone's config, asks for something not supported, or the
        settings bound pixels, or ask for another number of tokens than there may be.
    """
    if settings.min_pixels is not None or settings.max_pixels is not None:
        raise ValueError(
            "min_pixels and max_pixels do not bound this model's images, which are all scaled to a number of visual "
            f"tokens: set soft_tokens to one of {', '.join(map(str, BUDGETS))} instead"
        )
    there = any((folder / name).is_file() for name in IMAGE_FILES)
    found: dict[str, Any] = dict(read_processor_config(folder)[1]) if there else {}
    vision = config.vision
    patch, merge = (_PATCH, _MERGE) if vision is None else (vision.patch_size, vision.pooling_kernel_size)
    for key, value in (("patch_size", patch), ("pooling_kernel_size", merge)):
        if vision is not None and found.get(key, value) != value:
            raise ValueError(f"{folder}: {key} is {found[key]}, but config.json has {value}")
    for switch, wanted in (("do_resize", True), ("do_rescale", True), ("do_normalize", False)):
        if found.get(switch, wanted) is not wanted:
            raise ValueError(f"{folder}: {switch} = {found[switch]} is not supported; the model is trained otherwise")
    budget = settings.soft_tokens or found.get("max_soft_tokens") or BUDGET
    if budget not in BUDGETS:
        raise ValueError(f"soft_tokens is {budget}, expected one of {', '.join(map(str, BUDGETS))}")
    return ImageSettings(
        patch_size=patch, temporal_patch_size=1, merge_size=merge, soft_tokens=budget, resize=settings.resize
    )


def with_frame_budget(folder: Path, settings: Settings) -> Settings:
    """Returns the settings with a number of visual tokens of a frame: their own, the file's or 140.

    Args:
      folder: with video_preprocessor_config.json, or processor_config.json with a section for videos.
      settings: whose `video_soft_tokens` come before the file's.

    Raises:
      ValueError: there may not be so many.
    """
    found: dict[str, Any] = {}
    for path in (folder / name for name in reversed(VIDEO_FILES)):
        if path.is_file():
            content = dict(read_json(path))
            found = content.get("video_processor") or (content if path.name == VIDEO_FILES[0] else found)
    budget = settings.video_soft_tokens or found.get("max_soft_tokens") or FRAME_BUDGET
    if budget not in BUDGETS:
        raise ValueError(f"video_soft_tokens is {budget}, expected one of {', '.join(map(str, BUDGETS))}")
    return dataclasses.replace(settings, video_soft_tokens=budget)
