"""The reference's arithmetic from a pixel's byte to a value, in NumPy."""

from __future__ import annotations

import math

import numpy as np

from smart_jax.models.pixels import Normalisation

CONSTANTS = {
    "qwen3": Normalisation(),
    "clip": Normalisation((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def values_of(patches: np.ndarray, how: Normalisation, *, frames: int = 2) -> np.ndarray:
    """float32 values [V, channel * frame * row * column] of the bytes [V, (frame *) row * column * channel]."""
    size = math.isqrt(patches.shape[1] // 3)
    if 3 * size**2 != patches.shape[1]:
        size = math.isqrt(patches.shape[1] // 3 // frames)
    stored = patches.reshape(len(patches), patches.shape[1] // (3 * size**2), size, size, 3)
    whole = np.repeat(stored, frames, axis=1) if stored.shape[1] == 1 else stored
    rescaled = (whole.astype(np.float64) * how.rescale_factor).astype(np.float32)
    values = (rescaled - np.array(how.mean, np.float32)) / np.array(how.std, np.float32)
    return values.transpose(0, 4, 1, 2, 3).reshape(len(patches), 3 * frames * size**2)
