"""The published models: how each is prompted and pooled, and how its checkpoints are recognised.

A preset is what the model's own code does, or the paper's (SMART, arXiv:2605.24938) where it has its own; a new model
is a new preset, in the file of its family. `smart_jax.load(..., head=, pooling=, prompt=, settings=)` and a folder's
smart_jax.json change it.
"""

from smart_jax.inputs.presets.opening import open_settings
from smart_jax.inputs.presets.preset import Preset
from smart_jax.inputs.presets.table import PRESETS

__all__ = ["PRESETS", "Preset", "open_settings"]
