"""Pictures of audio: what a model hears of a clip, drawn as a spectrogram."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from smart_jax.inputs.audio import process_audio
from smart_jax.inputs.audio_settings import AudioSettings

FLATTEST = 8  # width by height at most, so that a long clip is no line


def spectrogram(features: Float[np.ndarray, "T F"]) -> Image.Image:
    """Returns the mel energies of a clip as a picture: time to the right, frequency upwards, dark = loud.

    Args:
      features: log energies of frames, from `smart_jax.inputs.audio`.

    Returns:
      RGB, a pixel wide for each frame.

    Example:
      >>> spectrogram(np.zeros((99, 128), np.float32)).size
      (99, 128)
    """
    least, most = float(features.min()), float(features.max())
    dark = (features.T[::-1] - least) / max(most - least, 1e-6)
    picture = Image.fromarray((255 * (1 - dark)).round().astype(np.uint8)).convert("RGB")
    height = max(picture.height, picture.width // FLATTEST)
    return picture if height == picture.height else picture.resize((picture.width, height))


def draw_audio(path: str | Path, seconds: float | None = None) -> Image.Image:
    """Returns the beginning of an audio file as a picture, for those who have no preprocessor at hand.

    Args:
      path: of the file.
      seconds: how much of it; None = as much as a model hears.

    Raises:
      ImportError, FileNotFoundError, ValueError: as `smart_jax.inputs.audio.read_audio`.

    Example:
      >>> draw_audio("talk.mp3")
      Traceback (most recent call last):
      FileNotFoundError: audio: no audio file 'talk.mp3' ...
    """
    settings = AudioSettings() if seconds is None else AudioSettings(max_seconds=seconds)
    return spectrogram(process_audio(path, settings).features)
