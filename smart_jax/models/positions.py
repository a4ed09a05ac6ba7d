"""Geometry of Qwen-VL inputs, in NumPy: the cell of each patch, and the position of each token.

It is computed outside jit because the grids of images are ragged; what enters jit has a static shape.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

Grid = tuple[int, int, int]  # frames, rows and columns of an image or video, in patches; an image has one frame


class PatchGeometry(NamedTuple):
    """Places of the patches of a tokenised item, see `patch_geometry`.

    Attributes:
      coords: row and column of each patch in its frame, int32.
      interp_idx: the four cells of the learned grid around it, int32; None = there is no learned grid.
      interp_w: their bilinear weights, float32, corners aligned.
      segment: number of its frame, from 1, int32.
      window: number of its window, from 1, int32; None = there are no windows.

    Example:
      >>> patch_geometry([(1, 4, 4)], merge=2, side=None, window=2).window.tolist()
      [1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4]
    """

    coords: Int[np.ndarray, "V 2"]
    interp_idx: Int[np.ndarray, "V 4"] | None
    interp_w: Float[np.ndarray, "V 4"] | None
    segment: Int[np.ndarray, " V"]
    window: Int[np.ndarray, " V"] | None


def patch_geometry(grids: Sequence[Grid], *, merge: int, side: int | None, window: int | None = None) -> PatchGeometry:
    """Returns the geometry of the patches of one item's images, in the processor's order.

    In that order the merge x merge patches of a visual token stand together.

    Args:
      grids: frames, rows and columns of every image, in patches; rows and columns are multiples of `merge`.
      merge: side of a visual token in patches.
      side: side of the learned square grid of position embeddings; None = there is none.
      window: side of an attention window in patches, a multiple of `merge`; None = there are no windows. Windows at the
        right and lower edge of a frame may be smaller.

    Returns:
      `PatchGeometry` of V = sum(frames * rows * columns) patches.

    Example:
      >>> geometry = patch_geometry([(1, 2, 4)], merge=2, side=None)
      >>> geometry.coords.tolist()
      [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]]
      >>> patch_geometry([(2, 2, 2)], merge=2, side=None).segment.tolist()
      [1, 1, 1, 1, 2, 2, 2, 2]
    """
    frames = [(h, w) for t, h, w in grids for _ in range(t)]
    coords = _joined([_frame_coords(h, w, merge) for h, w in frames], (0, 2), np.int32)
    segment = np.repeat(np.arange(1, len(frames) + 1, dtype=np.int32), [h * w for h, w in frames])
    interp_idx = interp_w = windows = None
    if side is not None:
        taps = [_frame_taps(h, w, merge, side) for h, w in frames]
        interp_idx = _joined([idx for idx, _ in taps], (0, 4), np.int32)
        interp_w = _joined([weights for _, weights in taps], (0, 4), np.float32)
    if window is not None:
        counts = [-(-h // window) * -(-w // window) for h, w in frames]
        first = itertools.accumulate(counts, initial=1)
        pieces = [_frame_windows(h, w, merge, window) + n for (h, w), n in zip(frames, first, strict=False)]
        windows = _joined(pieces, (0,), np.int32)
    return PatchGeometry(coords, interp_idx, interp_w, segment, windows)


def _joined(pieces: Sequence[np.ndarray], empty: tuple[int, ...], dtype: type) -> np.ndarray:
    """Returns the concatenated pieces, or an array of shape `empty` where there are none."""
    return np.concatenate(pieces) if pieces else np.zeros(empty, dtype)


@functools.lru_cache(maxsize=256)  # pages of one document share their size
def _frame_coords(h: int, w: int, merge: int) -> Int[np.ndarray, "V 2"]:
    rows, cols = np.meshgrid(np.arange(h, dtype=np.int32), np.arange(w, dtype=np.int32), indexing="ij")
    blocks = np.stack([rows, cols], -1).reshape(h // merge, merge, w // merge, merge, 2)
    return blocks.transpose(0, 2, 1, 3, 4).reshape(-1, 2)


@functools.lru_cache(maxsize=256)
def _frame_taps(h: int, w: int, merge: int, side: int) -> tuple[Int[np.ndarray, "V 4"], Float[np.ndarray, "V 4"]]:
    rows, cols = _frame_coords(h, w, merge).T
    low_r, high_r, frac_r = _axis_taps(h, side)
    low_c, high_c, frac_c = _axis_taps(w, side)
    idx = [r[rows] * side + c[cols] for r in (low_r, high_r) for c in (low_c, high_c)]
    weights = [r[rows] * c[cols] for r in (1 - frac_r, frac_r) for c in (1 - frac_c, frac_c)]
    return np.stack(idx, -1).astype(np.int32), np.stack(weights, -1).astype(np.float32)


def _frame_windows(h: int, w: int, merge: int, window: int) -> Int[np.ndarray, " V"]:
    """Returns the number of each patch's window in its frame, from 0, row by row."""
    rows, cols = _frame_coords(h, w, merge).T // window
    windows: np.ndarray = rows * -(-w // window) + cols
    return windows


def _axis_taps(n: int, side: int) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Returns lower and upper cell, and the fraction between, of n positions over `side` cells with aligned ends."""
    x = np.linspace(0, side - 1, n, dtype=np.float32)
    low = x.astype(np.int64)
    return low, np.minimum(low + 1, side - 1), x - low


def mrope_positions(
    input_ids: Int[np.ndarray, " L"],
    grids: Sequence[Grid],
    *,
    image_token_id: int,
    merge: int,
    video_token_id: int | None = None,
    steps: Sequence[float] = (),
) -> Int[np.ndarray, "3 L"]:
    """Returns temporal, height and width position of every token of one item (M-RoPE, arXiv:2409.12191).

    A text token advances all three positions by one. The visual tokens of an image share one temporal position and
    count rows and columns from there; the text after the image goes on from the largest of all three plus one. In a
    video the temporal position advances by a step from one temporal patch to the next: by one in Qwen2-VL, by a time in
    Qwen2.5-VL (arXiv:2502.13923), rounded down patch by patch. Each temporal patch of a Qwen3-VL video stands between
    marks of its own and counts as an image, since its time is in the text (arXiv:2511.21631).

    Transformers 4.57 rounds the seconds of a Qwen2.5-VL step before it multiplies, so that time stands still above two
    frames per second; transformers 5 lets the text after a long video overlap with it. Qwen's own code does neither,
    and neither does this function.

    Args:
      input_ids: the item's tokens, without padding.
      grids: grids of its images and videos (or their temporal patches), in the order in which their tokens occur.
      image_token_id: the token that stands for a visual token of an image.
      merge: side of a visual token in patches.
      video_token_id: the same of a video; None = there is no video.
      steps: temporal positions from one temporal patch to the next, of every grid; empty = 1.

    Raises:
      ValueError: the runs of visual tokens do not match `grids`.

    Example:
      >>> ids = np.array([5, 9, 9, 6])  # text, an image of two visual tokens, text
      >>> mrope_positions(ids, [(1, 2, 4)], image_token_id=9, merge=2).tolist()
      [[0, 1, 1, 3], [0, 1, 1, 3], [0, 1, 2, 3]]
    """
    is_image = np.isin(input_ids, [i for i in (image_token_id, video_token_id) if i is not None])
    remaining = iter(zip(grids, steps or [1.0] * len(grids), strict=True))
    pieces, start = [], 0
    for image, run in itertools.groupby(is_image.tolist()):
        length = sum(1 for _ in run)
        if not image:
            pieces.append(np.broadcast_to(np.arange(start, start + length), (3, length)))
            start += length
            continue
        while length > 0:  # images may follow each other without a separator
            grid, step = next(remaining, (None, 1.0))
            if grid is None:
                raise ValueError(f"{length} image tokens have no image: {len(grids)} images were given")
            cells = np.indices((grid[0], grid[1] // merge, grid[2] // merge)).reshape(3, -1)
            cells[0] = cells[0].astype(np.float32) * np.float32(step)  # float32 as in torch: the cut depends on it
            pieces.append(cells + start)
            start += int(cells.max()) + 1
            length -= cells.shape[1]
        if length < 0:
            raise ValueError(f"an image of grid {grid} has {-length} more visual tokens than the text has image tokens")
    if (left := sum(1 for _ in remaining)) > 0:
        raise ValueError(f"{left} of {len(grids)} images have no image tokens in the text")
    return np.concatenate(pieces, axis=1).astype(np.int32)
