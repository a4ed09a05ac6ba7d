"""Number and size of the frames that are taken of a video."""

from __future__ import annotations

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class VideoSettings:
    """Settings by which a video becomes frames.

    Attributes:
      fps: frames taken per second of a file.
      max_frames: largest number of frames taken; at least 2, and for a file rounded down to a multiple of
        temporal_patch_size.
      min_pixels, max_pixels: bounds of a frame's height * width after the resize.
      total_pixels: bound of all temporal patches together; a frame of at least 1.05 * min_pixels is always allowed.
      soft_tokens: number of visual tokens to which each frame is scaled, in place of these bounds; frames are then
        those at 0, 1 / fps, 2 / fps, ... seconds. None = the pixels are bounded, and frames spread evenly.
    """

    fps: float = 1.0
    max_frames: int = 64
    min_pixels: int = 131_072
    max_pixels: int = 786_432
    total_pixels: int = 7_864_320
    soft_tokens: int | None = None

    def __post_init__(self) -> None:
        check_sampling(self.fps, self.max_frames)
        if not 0 < self.min_pixels <= self.max_pixels or self.total_pixels < 1:
            raise ValueError(
                f"the pixel bounds of a video's frame are {self.min_pixels} .. {self.max_pixels} and of all frames "
                f"{self.total_pixels}: they must satisfy 0 < min <= max and 0 < total"
            )

    def frame_pixels(self, frames: int, temporal: int) -> int:
        """Returns the most pixels of one of `frames` frames, `temporal` of which share a patch."""
        share = self.total_pixels / frames * temporal
        return int(max(min(self.max_pixels, share), int(self.min_pixels * 1.05)))


def check_sampling(fps: object, max_frames: object) -> None:
    """Raises ValueError unless fps is a positive number and max_frames an integer of at least 2.

    Example:
      >>> check_sampling(fps=0.5, max_frames=64)
    """
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < math.inf:
        raise ValueError(f"fps is {fps!r}, expected a positive number of frames per second")
    if isinstance(max_frames, bool) or not isinstance(max_frames, int) or max_frames < 2:
        raise ValueError(f"max_frames is {max_frames!r}, expected an integer of at least 2 (a patch spans two frames)")
