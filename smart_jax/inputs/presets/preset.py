"""What a published model is to this library: its settings, and how its checkpoints are recognised."""

from __future__ import annotations

from typing import NamedTuple

from smart_jax.inputs.settings import Settings


class Preset(NamedTuple):
    """Settings of a published model, and what its checkpoints have in common.

    Attributes:
      settings: prompt, pooling and sizes.
      model_types: model types that its checkpoints may have in their config.json.
      names: regular expression that is searched in the repository's or folder's name, case ignored.
      architecture: name, or one of several, among the architectures of config.json.
      key: key that only these checkpoints have in their config.json.
      default: whether it takes the checkpoints of its model types that no other preset claims.

    Example:
      >>> from smart_jax.inputs import PRESETS
      >>> PRESETS["gme"].settings.video
      'middle'
    """

    settings: Settings
    model_types: tuple[str, ...]
    names: str | None = None
    architecture: str | tuple[str, ...] | None = None
    key: str | None = None
    default: bool = False
