"""Resize of pixels by OpenCV: several times faster than Pillow's, and not equal to it; the extra `fast`."""

from __future__ import annotations

from types import ModuleType

import numpy as np
from jaxtyping import UInt8

ALMOST_EQUAL = 1.2  # old side by new one: so far a linear interpolation is as near as any


def import_cv2() -> ModuleType:
    """Returns OpenCV's module.

    Raises:
      ImportError: it is not installed.
    """
    try:
        import cv2
    except ImportError as error:
        raise ImportError(
            'resize="fast" needs OpenCV, which is not installed: pip install "smart_jax[fast]", or leave it at "exact"'
        ) from error
    module: ModuleType = cv2
    return module


def fast_resize(pixels: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "height width 3"]:
    """Returns pixels resized to a height and width.

    OpenCV's interpolations look at the nearest pixels only, however many a new one stands for. So what becomes much
    smaller is interpolated at twice the size first, of which 2 x 2 are averaged: that is near Pillow's bicubic filter,
    and several times faster than a mean over areas of any size, which is left for what becomes less than half.

    Example:
      >>> fast_resize(np.full((64, 64, 3), 7, np.uint8), (32, 48)).shape
      (32, 48, 3)
    """
    cv2 = import_cv2()
    height, width = size
    shrink = max(pixels.shape[0] / height, pixels.shape[1] / width)
    if ALMOST_EQUAL < shrink < 2:
        how = cv2.INTER_CUBIC if shrink < 1.5 else cv2.INTER_LINEAR
        pixels = cv2.resize(pixels, (2 * width, 2 * height), interpolation=how)
        shrink = 2
    how = cv2.INTER_AREA if shrink >= 2 else cv2.INTER_LINEAR if shrink > 1 else cv2.INTER_CUBIC
    resized: np.ndarray = cv2.resize(pixels, (width, height), interpolation=how)
    return resized
