"""Audio clips of tokenised items as the padded arrays of a batch, in few shapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Bool

from smart_jax.inputs.audio import soft_tokens
from smart_jax.inputs.tokenized_item import TokenizedItem
from smart_jax.models import AudioBatch

FRAMES = (256, 512, 1024, 2048, 3000)  # of a padded clip; 30 seconds are 2,999, and longer ones double


def audio_shape(clips: Iterable[Sequence[int]]) -> tuple[int, int]:
    """Returns the clips of a row and the frames of a clip that a batch is padded to; (0, 0) = there is no audio.

    Args:
      clips: frames of each clip of each item.

    Example:
      >>> audio_shape([(), (99,), (998, 17, 4)]), audio_shape([(), ()])
      ((4, 1024), (0, 0))
    """
    clips = list(clips)
    most, longest = max(map(len, clips)), max((frames for each in clips for frames in each), default=0)
    if not longest:
        return 0, 0
    sizes = [*FRAMES, *(FRAMES[-1] << i for i in range(1, longest.bit_length()))]
    return 1 << (most - 1).bit_length(), next(size for size in sizes if size >= longest)


def pad_audio(items: Sequence[TokenizedItem], places: Bool[np.ndarray, "items L"], rows: int) -> AudioBatch | None:
    """Returns the clips of a batch; None = no item has any.

    Args:
      items: of the first rows.
      places: which positions of their padded rows are soft tokens of audio.
      rows: number B of the batch.
    """
    count, frames = audio_shape([[len(clip) for clip in item.audio] for item in items])
    if not count:
        return None
    bands = next(clip.shape[1] for item in items for clip in item.audio)
    audio = AudioBatch(
        features=np.zeros((rows * count, frames, bands), np.float32),
        mask=np.zeros((rows * count, frames), bool),
        index=np.full((rows, len(places[0])), -1, np.int32),
    )
    for row, (item, place) in enumerate(zip(items, places, strict=True)):
        numbers = []
        for number, clip in enumerate(item.audio):
            audio.features[row * count + number, : len(clip)] = clip
            audio.mask[row * count + number, : len(clip)] = True
            numbers += [number * soft_tokens(frames) + i for i in range(soft_tokens(len(clip)))]
        audio.index[row, place] = numbers
    return audio
