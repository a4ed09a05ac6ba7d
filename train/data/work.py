"""Amount that a batch holds: its examples, tokens and patches, without padding."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from smart_jax.models import Batch
from train.objective import StatesBatch


class Work(NamedTuple):
    """Amount of work in a batch of this process; padding does not count.

    Example:
      >>> Work(examples=1, tokens=3) + Work(tokens=4)
      Work(examples=1, tokens=7, token_pairs=0, patches=0, patch_pairs=0, window_pairs=0)
    """

    examples: int = 0
    tokens: int = 0  # of queries and documents, visual ones included
    token_pairs: int = 0  # sum over items of the squared number of tokens
    patches: int = 0
    patch_pairs: int = 0  # sum over frames of the squared number of patches: a frame attends to itself
    window_pairs: int = 0  # likewise, over attention windows

    def __add__(self, other: Work) -> Work:  # type: ignore[override]
        return Work(*(a + b for a, b in zip(self, other, strict=True)))


def count_work(batch: Batch | StatesBatch, examples: int = 0) -> Work:
    """Counts what is in the queries, or in the documents, of a batch.

    Args:
      batch: of NumPy arrays; states that are there take no work but that of their kept tokens.
      examples: number of examples to count with it.

    Returns:
      Sums over the rows of the batch.

    Example:
      >>> ids, mask = np.zeros((2, 3), np.int32), np.array([[True, True, False], [True, True, True]])
      >>> batch = Batch(ids, mask, np.zeros((3, 2, 3), np.int32), mask, ids, None)
      >>> count_work(batch, examples=2)
      Work(examples=2, tokens=5, token_pairs=13, patches=0, patch_pairs=0, window_pairs=0)
    """
    if isinstance(batch, StatesBatch):
        return Work(examples, int(np.asarray(batch.keep_mask).sum()))
    lengths = np.asarray(batch.attention_mask).sum(axis=1, dtype=np.int64)
    pairs, (patches, patch_pairs), window_pairs = int((lengths**2).sum()), (0, 0), 0
    if batch.vision is not None:
        patches, patch_pairs = _segments(np.asarray(batch.vision.segment))
        window_pairs = 0 if batch.vision.window is None else _segments(np.asarray(batch.vision.window))[1]
    return Work(examples, int(lengths.sum()), pairs, patches, patch_pairs, window_pairs)


def _segments(numbers: np.ndarray) -> tuple[int, int]:
    """Returns the patches in segments, and the sum of the segments' squared sizes; number 0 is padding."""
    sizes = [np.bincount(row)[1:].astype(np.int64) for row in numbers]
    return sum(int(size.sum()) for size in sizes), sum(int((size**2).sum()) for size in sizes)
