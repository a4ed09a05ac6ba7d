"""Videos to vision patches and times, as the Qwen-VL models and EmbeddingGemma 2 take them (PyAV, Pillow and NumPy).

The reference is qwen-vl-utils (which frames, which size) followed by transformers' processor (times, patches). Two
frames become one temporal patch. Qwen3-VL sees each like an image of its own, after its time in seconds as text
(arXiv:2511.21631); Qwen2-VL and Qwen2.5-VL see one run of them, which Qwen2.5-VL times by `VideoPatches.interval`
(arXiv:2502.13923). Differences from the reference:

- The total pixel budget holds for files, too: there it forgets it, and a long video does not fit its context.
- A file of one frame works: the frame is repeated.
- Frames at a variable rate are chosen, and timed, by their presentation times instead of their numbers.
- Pillow resizes, not torch: bytes may differ by one or two.

EmbeddingGemma 2's frames are each scaled to a number of visual tokens, and no two share a patch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from smart_jax.inputs.image import (
    ImageLike,
    ImageSettings,
    budget_size,
    existing_file,
    image_size,
    open_rgb,
    patchify,
    smart_resize,
)
from smart_jax.inputs.video_file import (
    VideoIndex,
    choose_frames,
    explained,
    import_av,
    read_frames,
    read_index,
    resized,
)
from smart_jax.inputs.video_settings import VideoSettings
from smart_jax.models import Grid

VideoLike = str | Path | list[ImageLike] | np.ndarray

LIST_FPS = 2.0  # the rate of a list of frames where nobody gives one
# The reference sizes the frames of a list twice; these are the bounds of the first time.
_LIST_MIN_BLOCKS, _LIST_MAX_BLOCKS = 4, 16384


class VideoOutline(NamedTuple):
    """A video's temporal patches, without their pixels.

    Attributes:
      grids: (1, rows, columns) of each temporal patch.
      seconds: mean time of each temporal patch's frames.
      interval: seconds from one temporal patch to the next, at the mean rate of the frames taken.
    """

    grids: tuple[Grid, ...]
    seconds: tuple[float, ...]
    interval: float


class VideoPatches(NamedTuple):
    """The patches of a video.

    Attributes:
      patches: bytes, temporal patch after temporal patch, each with its frames one after another.
      grids, seconds, interval: as in `VideoOutline`.
    """

    patches: UInt8[np.ndarray, "V E"]
    grids: tuple[Grid, ...]
    seconds: tuple[float, ...]
    interval: float

    @property
    def outline(self) -> VideoOutline:
        """The video without its pixels."""
        return VideoOutline(self.grids, self.seconds, self.interval)


class _Sample(NamedTuple):
    """The frames that are taken."""

    seconds: list[float]  # a multiple of temporal_patch_size of them
    rate: float  # per second
    size: tuple[int, int]  # height and width, resized

    def outline(self, images: ImageSettings) -> VideoOutline:
        span = images.temporal_patch_size
        groups = range(0, len(self.seconds), span)
        grid = 1, self.size[0] // images.patch_size, self.size[1] // images.patch_size
        times = tuple((self.seconds[i] + self.seconds[i + span - 1]) / 2 for i in groups)
        return VideoOutline((grid,) * len(groups), times, span / self.rate)


def check_video(video: object, *, name: str = "video") -> Path | list[ImageLike] | np.ndarray:
    """Returns the video, checked as far as that takes no decoding; a str becomes a Path.

    Raises:
      TypeError: it is not a path, a list of frames or an array, or an array of another dtype.
      ValueError: it is a URL, has no frames, or an array of another shape.
      FileNotFoundError: the file does not exist.
    """
    if isinstance(video, str | Path):
        return existing_file(video, name, "video", "the path of a video, or its frames as a list")
    if isinstance(video, np.ndarray):
        if video.dtype != np.uint8:
            raise TypeError(
                f"{name}: the video array has dtype {video.dtype}, expected uint8 in 0..255; for floats in 0..1 pass "
                "(array * 255).round().astype(numpy.uint8)"
            )
        if video.ndim != 4 or video.shape[3] != 3 or video.size == 0:
            raise ValueError(
                f"{name}: the video array has shape {video.shape}, expected [T, H, W, 3] with at least one frame; a "
                "single frame is an image"
            )
        return video
    if isinstance(video, list | tuple):
        if not video:
            raise ValueError(f"{name}: the video is a list of 0 frames: pass at least one")
        for frame in video:
            if not isinstance(frame, str | Path | bytes | Image.Image | np.ndarray):
                raise TypeError(
                    f"{name}: a frame of the video is a {type(frame).__name__}, expected a path, bytes, a PIL image or "
                    "an array [H, W, 3] uint8; for several videos pass {'videos': [...]}"
                )
        return list(video)
    raise TypeError(
        f"{name}: the video is a {type(video).__name__}, expected a path, a list of frames or an array [T, H, W, 3] "
        "uint8"
    )


def process_video(
    video: VideoLike,
    images: ImageSettings,
    settings: VideoSettings,
    *,
    fps: float | None = None,
    max_frames: int | None = None,
    name: str = "video",
) -> VideoPatches:
    """Returns patches of one video, their grids and times.

    A file gives `fps` frames per second, evenly spread from its first to its last frame: at least four if it has them,
    at most `max_frames`, an even number. Frames in a list or an array are taken as they are, or `max_frames` of them
    evenly; an odd last one is repeated.

    Args:
      video: path, list of frames (each as in `process_image`, all of one size) or uint8 array [T, H, W, 3].
      images: patch sizes and normalisation; its pixel bounds are not used.
      settings: defaults of the sampling, and the pixel bounds.
      fps: of a file, instead of the settings'; of frames, the rate at which they were taken, for their times. Without
        it frames are timed as in the reference: two per second, counted after max_frames of them are chosen.
      max_frames: instead of the settings'.
      name: what messages call the item.

    Raises:
      ImportError: a file, and PyAV is not installed.
      FileNotFoundError: the file does not exist.
      TypeError: it is not a video, or an array of another dtype.
      ValueError: it is unreadable, without frames, cut short, of frames of several sizes, or an aspect ratio over 200.
    """
    given, settings = _checked(video, settings, fps, max_frames, name)
    if isinstance(given, Path):
        sample, pixels = _from_file(given, images, settings, name)
    else:
        sample, pixels = _from_frames(given, images, settings, fps, name)
    span = images.temporal_patch_size
    groups = range(0, len(pixels), span)
    patches = np.concatenate([_temporal_patch(pixels[i : i + span], images) for i in groups])
    return VideoPatches(patches, *sample.outline(images))


def outline_video(
    video: VideoLike,
    images: ImageSettings,
    settings: VideoSettings,
    *,
    fps: float | None = None,
    max_frames: int | None = None,
    name: str = "video",
) -> VideoOutline:
    """Returns what `process_video` gives except for the patches; no frame is decoded.

    A file's index is read, which takes reading it from one end to the other; of frames the first one's size.

    Args:
      video, images, settings, fps, max_frames, name: as in `process_video`.

    Raises:
      ImportError, FileNotFoundError, TypeError, ValueError: as `process_video`, as far as that shows without decoding.
    """
    given, settings = _checked(video, settings, fps, max_frames, name)
    if isinstance(given, Path):
        av, what = import_av(name), f"{name} ('{given}')"
        with explained(av, what):
            sample, _ = _sample_file(read_index(av, given, what), images, settings, what)
        return sample.outline(images)
    chosen, seconds, rate = _choose(len(given), settings, fps, images.temporal_patch_size)
    frame = f"{name}: frame {chosen[0]} of the video"
    first = _first_size(image_size(given[chosen[0]], name=frame), images, frame)
    return _Sample(seconds, rate, _fit(first, len(seconds), images, settings, name)).outline(images)


def middle_frame(
    video: VideoLike,
    images: ImageSettings,
    settings: VideoSettings,
    *,
    fps: float | None = None,
    max_frames: int | None = None,
    name: str = "video",
) -> Image.Image:
    """Returns the frame in the middle of a video, for models that take a video as an image; no other is decoded.

    Of a file it is frame n // 2 of the n that `process_video` would take, of a list or an array frame n // 2 of all.

    Args:
      video, images, settings, fps, max_frames, name: as in `process_video`.

    Returns:
      RGB, in the video's own size.

    Raises:
      ImportError, FileNotFoundError, TypeError, ValueError: as `process_video`, as far as the one frame is concerned.

    Example:
      >>> frames = [Image.new("RGB", (64, 64), (i, i, i)) for i in range(3)]
      >>> middle_frame(frames, ImageSettings(), VideoSettings()).getpixel((0, 0))
      (1, 1, 1)
    """
    given, settings = _checked(video, settings, fps, max_frames, name)
    if not isinstance(given, Path):
        middle = len(given) // 2
        return open_rgb(given[middle], name=f"{name}: frame {middle} of the video")
    av, what = import_av(name), f"{name} ('{given}')"
    with explained(av, what):
        index = read_index(av, given, what)
        chosen, seconds = choose_frames(index, settings, images.temporal_patch_size)
        middle = len(chosen) // 2
        (frame,) = read_frames(av, given, index, (chosen[middle:][:1], seconds[middle:][:1]), None, what)
        return Image.fromarray(frame)


def step_frame(
    video: VideoLike,
    step: int,
    images: ImageSettings,
    settings: VideoSettings,
    *,
    fps: float | None = None,
    max_frames: int | None = None,
    name: str = "video",
) -> Image.Image:
    """Returns the first frame of a temporal patch of `process_video`, to be shown; no other is decoded.

    Args:
      video, images, settings, fps, max_frames, name: as in `process_video`.
      step: number of the temporal patch.

    Returns:
      RGB, in the video's own size.

    Raises:
      ImportError, FileNotFoundError, TypeError, ValueError: as `process_video`, as far as the one frame is concerned.

    Example:
      >>> frames = [Image.new("RGB", (64, 64), (i, i, i)) for i in range(4)]
      >>> step_frame(frames, 1, ImageSettings(), VideoSettings()).getpixel((0, 0))
      (2, 2, 2)
    """
    given, settings = _checked(video, settings, fps, max_frames, name)
    first = step * images.temporal_patch_size
    if not isinstance(given, Path):
        number = _choose(len(given), settings, fps, images.temporal_patch_size)[0][first]
        return open_rgb(given[number], name=f"{name}: frame {number} of the video")
    av, what = import_av(name), f"{name} ('{given}')"
    with explained(av, what):
        index = read_index(av, given, what)
        chosen, seconds = choose_frames(index, settings, images.temporal_patch_size)
        (frame,) = read_frames(av, given, index, (chosen[first:][:1], seconds[first:][:1]), None, what)
        return Image.fromarray(frame)


def middle_size(
    video: VideoLike,
    settings: VideoSettings,
    *,
    fps: float | None = None,
    max_frames: int | None = None,
    name: str = "video",
) -> tuple[int, int]:
    """Returns the height and width of `middle_frame`, without decoding it.

    Args:
      video, settings, fps, max_frames, name: as in `process_video`.

    Raises:
      ImportError, FileNotFoundError, TypeError, ValueError: as `middle_frame`, as far as that shows without decoding.
    """
    given, _ = _checked(video, settings, fps, max_frames, name)
    if not isinstance(given, Path):
        middle = len(given) // 2
        return image_size(given[middle], name=f"{name}: frame {middle} of the video")
    av, what = import_av(name), f"{name} ('{given}')"
    with explained(av, what):
        return read_index(av, given, what).size


def _checked(
    video: VideoLike, settings: VideoSettings, fps: float | None, max_frames: int | None, name: str
) -> tuple[Path | list[ImageLike] | np.ndarray, VideoSettings]:
    """Returns the video as `check_video` gives it, and the settings with the sampling that was asked for."""
    fps, max_frames = settings.fps if fps is None else fps, settings.max_frames if max_frames is None else max_frames
    try:
        settings = dataclasses.replace(settings, fps=fps, max_frames=max_frames)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return check_video(video, name=name), settings


def _temporal_patch(frames: Sequence[UInt8[np.ndarray, "H W 3"]], images: ImageSettings) -> UInt8[np.ndarray, "V E"]:
    return np.concatenate([patchify(frame, images) for frame in frames], axis=1)


def _fit(
    size: tuple[int, int], count: int, images: ImageSettings, settings: VideoSettings, name: str
) -> tuple[int, int]:
    """Returns the height and width to which each of `count` frames of one size is resized."""
    try:
        if settings.soft_tokens is not None:
            return budget_size(*size, factor=images.factor, budget=settings.soft_tokens)
        return smart_resize(
            *size,
            factor=images.factor,
            min_pixels=settings.min_pixels,
            max_pixels=settings.frame_pixels(count, images.temporal_patch_size),
        )
    except ValueError as error:
        raise ValueError(f"{name}: a frame of the video: {error}") from error


def _choose(
    count: int, settings: VideoSettings, fps: float | None, temporal: int
) -> tuple[list[int], list[float], float]:
    """Returns which of a list's frames are taken, their times with those of repeated ones, and their rate."""
    chosen = list(range(count))
    if count > settings.max_frames:
        chosen = np.linspace(0, count - 1, settings.max_frames, dtype=int).tolist()
    missing = -len(chosen) % temporal
    numbers = list(range(len(chosen))) if fps is None else list(chosen)
    numbers += [numbers[-1] + 1 + i for i in range(missing)]
    rate = LIST_FPS if fps is None else fps
    taken = rate if fps is None else rate * len(chosen) / count
    return chosen, [n / rate for n in numbers], taken


def _from_frames(
    video: list[ImageLike] | np.ndarray,
    images: ImageSettings,
    settings: VideoSettings,
    fps: float | None,
    name: str,
) -> tuple[_Sample, list[UInt8[np.ndarray, "H W 3"]]]:
    chosen, seconds, rate = _choose(len(video), settings, fps, images.temporal_patch_size)
    pixels: list[np.ndarray] = []
    for i in chosen:
        rgb = _firstresized(video[i], images, f"{name}: frame {i} of the video")
        if not pixels:
            given = rgb.size
            size = _fit((rgb.height, rgb.width), len(seconds), images, settings, name)
        if rgb.size != given:
            raise ValueError(
                f"{name}: frame {i} of the video has another size than the first (resized, {rgb.width} x {rgb.height} "
                f"and {given[0]} x {given[1]}): resize all to one"
            )
        pixels.append(np.asarray(resized(rgb, size)))
    pixels += pixels[-1:] * (len(seconds) - len(pixels))
    return _Sample(seconds, rate, size), pixels


def _firstresized(frame: ImageLike, images: ImageSettings, name: str) -> Image.Image:
    rgb = open_rgb(frame, name=name)
    return resized(rgb, _first_size((rgb.height, rgb.width), images, name))


def _first_size(size: tuple[int, int], images: ImageSettings, name: str) -> tuple[int, int]:
    """Returns the size of a frame in multiples of two visual tokens.

    qwen-vl-utils resizes listed frames to it before it fits them to the budget, and it can change the grid. Frames that
    are scaled to a number of visual tokens keep their size here.
    """
    if images.soft_tokens is not None:
        return size
    factor = 2 * images.factor
    bounds = {"min_pixels": _LIST_MIN_BLOCKS * factor**2, "max_pixels": _LIST_MAX_BLOCKS * factor**2}
    try:
        return smart_resize(*size, factor=factor, **bounds)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _from_file(
    path: Path, images: ImageSettings, settings: VideoSettings, name: str
) -> tuple[_Sample, list[UInt8[np.ndarray, "H W 3"]]]:
    av, what = import_av(name), f"{name} ('{path}')"
    with explained(av, what):
        index = read_index(av, path, what)
        sample, chosen = _sample_file(index, images, settings, what)
        return sample, read_frames(av, path, index, (chosen, sample.seconds), sample.size, what)


def _sample_file(
    index: VideoIndex, images: ImageSettings, settings: VideoSettings, what: str
) -> tuple[_Sample, Int[np.ndarray, " n"]]:
    """Returns the frames that are taken of a file, and their numbers."""
    chosen, seconds = choose_frames(index, settings, images.temporal_patch_size)
    total = len(index.seconds)
    size = _fit(index.size, len(chosen), images, settings, what)
    return _Sample(seconds, min(len(chosen), total) / total * index.rate, size), chosen
