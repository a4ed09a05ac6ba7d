"""How much a batch holds: its examples, tokens and patches, without padding."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from smart_jax.models import Batch


class Work(NamedTuple):
    """What a batch holds, on this process: padding does not count."""

    examples: int = 0
    tokens: int = 0  # of queries and documents, visual ones included
    token_pairs: int = 0  # sum over items of their squared number of tokens
    patches: int = 0
    patch_pairs: int = 0  # sum over frames, which attend to themselves
    window_pairs: int = 0  # sum over attention windows

    def __add__(self, other: Work) -> Work:  # type: ignore[override]
        return Work(*(a + b for a, b in zip(self, other, strict=True)))


def count_work(batch: Batch, examples: int = 0) -> Work:
    """The work in one side of a batch; NumPy arrays."""
    lengths = np.asarray(batch.attention_mask).sum(axis=1, dtype=np.int64)
    pairs, (patches, patch_pairs), window_pairs = int((lengths**2).sum()), (0, 0), 0
    if batch.vision is not None:
        patches, patch_pairs = _segments(np.asarray(batch.vision.segment))
        window_pairs = 0 if batch.vision.window is None else _segments(np.asarray(batch.vision.window))[1]
    return Work(examples, int(lengths.sum()), pairs, patches, patch_pairs, window_pairs)


def _segments(numbers: np.ndarray) -> tuple[int, int]:
    """Patches in segments, and the sum of the segments' squared sizes; 0 = padding."""
    sizes = [np.bincount(row)[1:].astype(np.int64) for row in numbers]
    return sum(int(size.sum()) for size in sizes), sum(int((size**2).sum()) for size in sizes)
