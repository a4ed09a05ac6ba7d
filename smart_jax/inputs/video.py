"""Videos to normalised vision patches and times, as the Qwen-VL models take them (PyAV, Pillow and NumPy).

The reference is qwen-vl-utils (which frames, which size) followed by transformers' processor (times, patches). Two
frames become one temporal patch. Qwen3-VL sees each like an image of its own, after its time in seconds as text
(arXiv:2511.21631); Qwen2-VL and Qwen2.5-VL see one run of them, which Qwen2.5-VL times by `VideoPatches.interval`
(arXiv:2502.13923). Differences from the reference:

- The total pixel budget holds for files, too: there it forgets it, and a long video does not fit its context.
- A file of one frame works: the frame is repeated.
- Frames at a variable rate are chosen, and timed, by their presentation times instead of their numbers.
- Pillow resizes, not torch: bytes may differ by one or two.

Like the reference, nothing here rotates by a display matrix. A file cut short is refused where its header tells how
many frames there should be (MP4) and more than a twentieth is missing, and read as far as it goes where not (Matroska,
MPEG-TS). Damage matters where a chosen frame needs it, and is an error there.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from smart_jax.inputs.image import ImageLike, ImageSettings, existing_file, open_rgb, patchify, smart_resize
from smart_jax.models import Grid

VideoLike = str | Path | list[ImageLike] | np.ndarray

MIN_FRAMES = 4  # of a file that has them
LIST_FPS = 2.0  # the rate of a list of frames where nobody gives one
# The reference sizes the frames of a list twice; these are the bounds of the first time.
_LIST_MIN_BLOCKS, _LIST_MAX_BLOCKS = 4, 16384
# Of the frames that the header promises; the rest may be hidden by an edit list.
_COMPLETE = 0.95


@dataclasses.dataclass(frozen=True)
class VideoSettings:
    """How a video becomes frames.

    Attributes:
      fps: frames taken per second of a file.
      max_frames: most frames taken; at least 2, and rounded down to a multiple of temporal_patch_size for a file.
      min_pixels, max_pixels: bounds of a frame's height * width after the resize.
      total_pixels: bound of all temporal patches together; a frame of at least 1.05 * min_pixels is always allowed.
    """

    fps: float = 1.0
    max_frames: int = 64
    min_pixels: int = 131_072
    max_pixels: int = 786_432
    total_pixels: int = 7_864_320

    def __post_init__(self) -> None:
        check_sampling(self.fps, self.max_frames)
        if not 0 < self.min_pixels <= self.max_pixels or self.total_pixels < 1:
            raise ValueError(
                f"the pixel bounds of a video's frame are {self.min_pixels} .. {self.max_pixels} and of all frames "
                f"{self.total_pixels}: they must satisfy 0 < min <= max and 0 < total"
            )

    def frame_pixels(self, frames: int, temporal: int) -> int:
        """Most pixels of one of `frames` frames, `temporal` of which share a patch."""
        share = self.total_pixels / frames * temporal
        return int(max(min(self.max_pixels, share), int(self.min_pixels * 1.05)))


class VideoPatches(NamedTuple):
    patches: Float[np.ndarray, "P E"]  # float32, temporal patch after temporal patch
    grids: tuple[Grid, ...]  # (1, rows, columns) of each temporal patch
    seconds: tuple[float, ...]  # mean time of each temporal patch's frames
    interval: float  # seconds from one temporal patch to the next, at the mean rate of the frames taken


class _Frames(NamedTuple):
    pixels: list[UInt8[np.ndarray, "H W 3"]]  # a multiple of temporal_patch_size of them, resized
    seconds: list[float]
    rate: float  # of the frames taken, per second


def check_sampling(fps: Any, max_frames: Any) -> None:
    """Raises ValueError unless fps is a positive number and max_frames an integer of at least 2."""
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < math.inf:
        raise ValueError(f"fps is {fps!r}, expected a positive number of frames per second")
    if isinstance(max_frames, bool) or not isinstance(max_frames, int) or max_frames < 2:
        raise ValueError(f"max_frames is {max_frames!r}, expected an integer of at least 2 (a patch spans two frames)")


def check_video(video: Any, *, name: str = "video") -> Path | list[ImageLike] | np.ndarray:
    """The video, checked as far as that takes no decoding; a str becomes a Path.

    Raises:
      TypeError: not a path, a list of frames or an array, or an array of another dtype.
      ValueError: a URL, no frames, or an array of another shape.
      FileNotFoundError: no such file.
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


def check_video_file(path: str | Path, *, name: str = "video") -> None:
    """Opens the file, without decoding a frame.

    Raises:
      ImportError: PyAV is not installed.
      FileNotFoundError: no such file.
      ValueError: FFmpeg can not read its header, or there is no video stream in it.
    """
    path = existing_file(path, name, "video", "the path of a video")
    av, what = _import_av(name), f"{name} ('{path}')"
    with _explained(av, what), av.open(str(path)) as container:
        _stream(av, container, what)


def process_video(
    video: VideoLike,
    images: ImageSettings,
    settings: VideoSettings,
    *,
    fps: float | None = None,
    max_frames: int | None = None,
    name: str = "video",
) -> VideoPatches:
    """Patches of one video, their grids and times.

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
      name: of the item, for messages.

    Raises:
      ImportError: a file, and PyAV is not installed.
      FileNotFoundError: no such file.
      TypeError: not a video, or an array of another dtype.
      ValueError: unreadable, without frames, cut short, of frames of several sizes, or an aspect ratio over 200.
    """
    given, settings = _checked(video, settings, fps, max_frames, name)
    if isinstance(given, Path):
        frames = _from_file(given, images, settings, name)
    else:
        frames = _from_frames(given, images, settings, fps, name)
    span = images.temporal_patch_size
    groups = range(0, len(frames.pixels), span)
    height, width = frames.pixels[0].shape[:2]
    return VideoPatches(
        np.concatenate([_temporal_patch(frames.pixels[i : i + span], images) for i in groups]),
        ((1, height // images.patch_size, width // images.patch_size),) * len(groups),
        tuple((frames.seconds[i] + frames.seconds[i + span - 1]) / 2 for i in groups),
        span / frames.rate,
    )


def middle_frame(
    video: VideoLike,
    images: ImageSettings,
    settings: VideoSettings,
    *,
    fps: float | None = None,
    max_frames: int | None = None,
    name: str = "video",
) -> Image.Image:
    """The frame in the middle of a video, for models that take a video as an image; only that one is decoded.

    Of a file it is frame n // 2 of the n that `process_video` would take, of a list or an array frame n // 2 of all.

    Args:
      video, images, settings, fps, max_frames, name: as in `process_video`.

    Returns:
      RGB, in the video's own size.

    Raises:
      As `process_video`, as far as the one frame is concerned.
    """
    given, settings = _checked(video, settings, fps, max_frames, name)
    if not isinstance(given, Path):
        middle = len(given) // 2
        return open_rgb(given[middle], name=f"{name}: frame {middle} of the video")
    av, what = _import_av(name), f"{name} ('{given}')"
    with _explained(av, what):
        index = _read_index(av, given, what)
        chosen, seconds = _sample(index, settings, images.temporal_patch_size)
        middle = len(chosen) // 2
        (frame,) = _read_frames(av, given, index, (chosen[middle:][:1], seconds[middle:][:1]), None, what)
        return Image.fromarray(frame)


def _checked(
    video: VideoLike, settings: VideoSettings, fps: float | None, max_frames: int | None, name: str
) -> tuple[Path | list[ImageLike] | np.ndarray, VideoSettings]:
    """The video as `check_video` gives it, and the settings with the sampling that was asked for."""
    fps, max_frames = settings.fps if fps is None else fps, settings.max_frames if max_frames is None else max_frames
    try:
        settings = dataclasses.replace(settings, fps=fps, max_frames=max_frames)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return check_video(video, name=name), settings


def _temporal_patch(frames: Sequence[UInt8[np.ndarray, "H W 3"]], images: ImageSettings) -> Float[np.ndarray, "P E"]:
    still = (-1, 3, images.temporal_patch_size, images.patch_size**2)
    return np.stack([patchify(f, images).reshape(still)[:, :, 0] for f in frames], 2).reshape(-1, images.patch_values)


def _fit(
    size: tuple[int, int], count: int, images: ImageSettings, settings: VideoSettings, name: str
) -> tuple[int, int]:
    """Height and width of each of `count` frames of that height and width."""
    try:
        return smart_resize(
            *size,
            factor=images.factor,
            min_pixels=settings.min_pixels,
            max_pixels=settings.frame_pixels(count, images.temporal_patch_size),
        )
    except ValueError as error:
        raise ValueError(f"{name}: a frame of the video: {error}") from error


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize((size[1], size[0]), Image.Resampling.BICUBIC)


# --- frames in memory ------------------------------------------------------------------------------------------------


def _from_frames(
    video: list[ImageLike] | np.ndarray,
    images: ImageSettings,
    settings: VideoSettings,
    fps: float | None,
    name: str,
) -> _Frames:
    chosen = np.arange(len(video))
    if len(video) > settings.max_frames:
        chosen = np.linspace(0, len(video) - 1, settings.max_frames, dtype=int)
    missing = -len(chosen) % images.temporal_patch_size
    numbers = list(range(len(chosen))) if fps is None else chosen.tolist()
    numbers += [numbers[-1] + 1 + i for i in range(missing)]
    pixels: list[np.ndarray] = []
    for i in chosen:
        rgb = _first_resize(video[i], images, f"{name}: frame {i} of the video")
        if not pixels:
            given = rgb.size
            size = _fit((rgb.height, rgb.width), len(numbers), images, settings, name)
        if rgb.size != given:
            raise ValueError(
                f"{name}: frame {i} of the video has another size than the first (resized, {rgb.width} x {rgb.height} "
                f"and {given[0]} x {given[1]}): resize all to one"
            )
        pixels.append(np.asarray(_resize(rgb, size)))
    pixels += pixels[-1:] * missing
    rate = LIST_FPS if fps is None else fps
    taken = rate if fps is None else rate * len(chosen) / len(video)
    return _Frames(pixels, [n / rate for n in numbers], taken)


def _first_resize(frame: ImageLike, images: ImageSettings, name: str) -> Image.Image:
    """To multiples of two visual tokens: qwen-vl-utils does so to listed frames before it fits them to the budget,
    and it can change the grid."""
    rgb, factor = open_rgb(frame, name=name), 2 * images.factor
    bounds = {"min_pixels": _LIST_MIN_BLOCKS * factor**2, "max_pixels": _LIST_MAX_BLOCKS * factor**2}
    try:
        size = smart_resize(rgb.height, rgb.width, factor=factor, **bounds)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    return _resize(rgb, size)


# --- files -----------------------------------------------------------------------------------------------------------


class _Index(NamedTuple):
    """What a file holds, known without decoding it; frames in order of presentation."""

    pts: list[int] | None  # of every frame; None = not known, frames are found by counting
    keyframes: list[int]  # pts at which decoding can start
    seconds: Float[np.ndarray, " T"]  # of every frame, from the first
    rate: float  # frames per second
    even: bool  # whether frames come at that rate
    size: tuple[int, int]  # height, width


def _from_file(path: Path, images: ImageSettings, settings: VideoSettings, name: str) -> _Frames:
    av, what = _import_av(name), f"{name} ('{path}')"
    with _explained(av, what):
        index = _read_index(av, path, what)
        chosen, seconds = _sample(index, settings, images.temporal_patch_size)
        size = _fit(index.size, len(chosen), images, settings, what)
        pixels = _read_frames(av, path, index, (chosen, seconds), size, what)
    total = len(index.seconds)
    return _Frames(pixels, seconds, min(len(chosen), total) / total * index.rate)


@contextlib.contextmanager
def _explained(av: ModuleType, what: str) -> Iterator[None]:
    try:
        yield
    except av.FFmpegError as error:
        raise ValueError(
            f"{what} can not be decoded ({error}): it is not a video that FFmpeg reads, or it is truncated or damaged; "
            "write or download it again"
        ) from error


def _read_frames(
    av: ModuleType,
    path: Path,
    index: _Index,
    sample: tuple[Int[np.ndarray, " n"], list[float]],
    size: tuple[int, int] | None,
    what: str,
) -> list[UInt8[np.ndarray, "H W 3"]]:
    """The frames of a sample, resized to `size` if one is given; ValueError where one can not be decoded."""
    chosen, seconds = sample
    keys = chosen.tolist() if index.pts is None else [index.pts[i] for i in chosen]
    pixels = _decode(av, path, keys, index, size)
    if missing := set(keys) - set(pixels):  # not every container finds its keyframes: read it from the start
        pixels |= _decode(av, path, sorted(missing), index._replace(keyframes=[]), size)
    if lost := [s for key, s in zip(keys, seconds, strict=True) if key not in pixels]:
        raise ValueError(
            f"{what} can not be decoded at {lost[0]:.1f} seconds: it is truncated or damaged; write or download it "
            "again"
        )
    return [pixels[key] for key in keys]


def _import_av(name: str) -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            f'{name}: video files are read by PyAV, which is not installed: pip install "smart_jax[video]", or pass '
            "the frames as a list of images"
        ) from error
    return av


def _stream(av: ModuleType, container: Any, what: str) -> Any:
    covers = av.stream.Disposition.attached_pic  # the picture of a song is a video stream
    streams = [s for s in container.streams.video if not s.disposition & covers]
    if not streams:
        kinds = ", ".join(sorted({s.type for s in container.streams if s.type != "video"})) or "no other"
        raise ValueError(f"{what} has no video stream ({kinds} found): pass a file that has one, or images")
    return streams[0]


def _read_index(av: ModuleType, path: Path, what: str) -> _Index:
    with av.open(str(path)) as container:
        stream = _stream(av, container, what)
        size = (stream.height, stream.width)
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and size[0] * size[1] > limit:
            raise ValueError(
                f"{what}: frames of {size[1]} x {size[0]} pixels exceed the limit of {limit}: make them smaller, or "
                "raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
            )
        packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.size and not p.is_discard]
        promised, rate = stream.frames, float(stream.average_rate or stream.guessed_rate or 1)
        unit, counted = stream.time_base, container.format.name == "avi"  # AVI stores the order of decoding only
    if not packets:
        raise ValueError(f"{what} has a video stream of 0 frames: write or download it again")
    if len(packets) < _COMPLETE * promised:
        raise ValueError(
            f"{what} is truncated: its header promises {promised} frames, {len(packets)} are there; download it again, "
            "or copy what is there to a new file (ffmpeg -i IN -c copy OUT)"
        )
    if counted or any(pts is None for pts, _ in packets):
        return _Index(None, [], np.arange(len(packets)) / rate, rate, True, size)
    pts = sorted(pts for pts, _ in packets)
    seconds = np.array([float((p - pts[0]) * unit) for p in pts])
    by_number = np.arange(len(pts)) / rate
    even = bool(np.abs(seconds - by_number).max() <= 0.5 / rate)
    if even:
        seconds = by_number  # containers round their times
    elif seconds[-1] > 0:
        rate = (len(pts) - 1) / seconds[-1]
    return _Index(pts, sorted(p for p, key in packets if key), seconds, rate, even, size)


def _sample(index: _Index, settings: VideoSettings, temporal: int) -> tuple[Int[np.ndarray, " n"], list[float]]:
    """Frame numbers and times; at least one temporal patch, a file of fewer frames repeats its last."""
    total = len(index.seconds)
    most = settings.max_frames // temporal * temporal
    wanted = min(max(total / index.rate * settings.fps, MIN_FRAMES), most, total)
    count = max(int(wanted) // temporal * temporal, temporal)
    if total < count:
        chosen = np.minimum(np.arange(count), total - 1)
    elif index.even:
        chosen = np.linspace(0, total - 1, count).round().astype(int)
    else:
        times = np.linspace(0, index.seconds[-1], count)
        chosen = np.abs(index.seconds[:, None] - times).argmin(0)
    return chosen, index.seconds[chosen].tolist()


def _decode(
    av: ModuleType, path: Path, keys: Sequence[int], index: _Index, size: tuple[int, int] | None
) -> dict[int, UInt8[np.ndarray, "H W 3"]]:
    """Those frames that are found, by presentation time or, where there is none, by number.

    Args:
      keys: of the frames, ascending.
      index: of the file; decoding jumps to its keyframes.
      size: height and width after a resize; None = the file's own.
    """
    found: dict[int, np.ndarray] = {}
    wanted = set(keys)
    with av.open(str(path)) as container:
        stream = _stream(av, container, str(path))
        stream.thread_type = "AUTO"
        frames, numbers, last = container.decode(stream), itertools.count(), -math.inf  # last = decoded
        for key in keys:
            if key in found or key < last:
                continue
            at = bisect.bisect_right(index.keyframes, key) - 1
            if at >= 0 and index.keyframes[at] > last:
                container.seek(index.keyframes[at], stream=stream)
                frames = container.decode(stream)
            for frame in frames:
                key_of_frame = next(numbers) if index.pts is None else frame.pts
                if key_of_frame is None:
                    continue
                last = key_of_frame
                if last in wanted:
                    image = frame.to_image()
                    found[last] = np.asarray(image if size is None else _resize(image, size))
                if last >= key:
                    break
    return found
