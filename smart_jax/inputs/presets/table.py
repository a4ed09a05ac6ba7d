"""Table of all published models, joined from the files of their families; of two that fit, the first one counts."""

from __future__ import annotations

import dataclasses

from smart_jax.inputs.presets import embedding_gemma2, multi_vector, qwen2, qwen3_5, qwen3_vl
from smart_jax.inputs.presets.preset import Preset

_FAMILIES = (
    qwen3_vl.PRESETS,
    qwen2.PRESETS,
    multi_vector.PRESETS,
    embedding_gemma2.PRESETS,
    qwen3_5.PRESETS,
)
PRESETS: dict[str, Preset] = {
    name: preset._replace(settings=dataclasses.replace(preset.settings, head=name))
    for family in _FAMILIES
    for name, preset in family.items()
}
