"""Video files: what they hold, which frames are chosen, and how these are decoded (PyAV).

Like the reference, nothing here rotates by a display matrix. A file cut short is refused where its header tells how
many frames there should be (MP4) and more than a twentieth is missing, and read as far as it goes where not (Matroska,
MPEG-TS). Damage matters where a chosen frame needs it, and is an error there.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from smart_jax.inputs.image import existing_file
from smart_jax.inputs.video_settings import VideoSettings

# Files with frames in them: a playlist, which is a text, could name other files and addresses.
_FORMATS = (
    *("mov", "matroska", "webm", "avi", "mpegts", "mpeg", "mpegvideo", "m4v", "flv", "ogg", "asf", "h264", "hevc"),
    *("gif", "png_pipe", "jpeg_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe"),  # a picture is a video of one frame
    *("wav", "mp3", "flac", "aac"),  # of which it is said that they have no frames
)
READABLE = {"format_whitelist": ",".join(_FORMATS), "protocol_whitelist": "file"}
MIN_FRAMES = 4  # of a file that has them
# Of the frames that the header promises; the rest may be hidden by an edit list.
COMPLETE = 0.95


def check_video_file(path: str | Path, *, name: str = "video") -> None:
    """Opens a video file, without decoding a frame.

    Raises:
      ImportError: PyAV is not installed.
      FileNotFoundError: the file does not exist.
      ValueError: FFmpeg cannot read its header, or it has no video stream.

    Example:
      >>> check_video_file("film.mp4", name="item 3")
      Traceback (most recent call last):
      FileNotFoundError: item 3: no video file 'film.mp4' ...
    """
    path = existing_file(path, name, "video", "the path of a video")
    av, what = import_av(name), f"{name} ('{path}')"
    with explained(av, what), av.open(str(path), options=READABLE) as container:
        _stream(av, container, what)


class VideoIndex(NamedTuple):
    """Index of a file's frames, read without decoding it; frames in order of presentation.

    Attributes:
      pts: presentation time of every frame, in the file's unit; None = not known, and frames are found by counting.
      keyframes: presentation times at which decoding can start.
      seconds: time of every frame, from the first.
      rate: frames per second.
      even: whether frames come at that rate.
      size: height and width.
    """

    pts: list[int] | None
    keyframes: list[int]
    seconds: Float[np.ndarray, " frames"]
    rate: float
    even: bool
    size: tuple[int, int]


@contextlib.contextmanager
def explained(av: ModuleType, what: str) -> Iterator[None]:
    """Turns FFmpeg's errors into a ValueError that names the file and the remedy."""
    try:
        yield
    except av.FFmpegError as error:
        raise ValueError(
            f"{what} cannot be decoded ({error}): it is not a video that FFmpeg reads, or it is truncated or damaged; "
            "write or download it again"
        ) from error


def read_frames(
    av: ModuleType,
    path: Path,
    index: VideoIndex,
    sample: tuple[Int[np.ndarray, " n"], list[float]],
    size: tuple[int, int] | None,
    what: str,
) -> list[UInt8[np.ndarray, "H W 3"]]:
    """Returns the frames of a sample, resized to `size` if given; raises ValueError where one cannot be decoded."""
    chosen, seconds = sample
    keys = chosen.tolist() if index.pts is None else [index.pts[i] for i in chosen]
    pixels = _decode(av, path, keys, index, size)
    if missing := set(keys) - set(pixels):  # not every container finds its keyframes: read it from the start
        pixels |= _decode(av, path, sorted(missing), index._replace(keyframes=[]), size)
    if lost := [s for key, s in zip(keys, seconds, strict=True) if key not in pixels]:
        raise ValueError(
            f"{what} cannot be decoded at {lost[0]:.1f} seconds: it is truncated or damaged; write or download it again"
        )
    return [pixels[key] for key in keys]


def import_av(name: str) -> ModuleType:
    """Returns PyAV; raises an ImportError that says how to install it."""
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
    # A damaged header may name a codec that there is none of.
    streams = [s for s in container.streams.video if not s.disposition & covers and s.codec_context is not None]
    if not streams:
        kinds = ", ".join(sorted({s.type for s in container.streams if s.type != "video"})) or "no other"
        raise ValueError(f"{what} has no video stream ({kinds} found): pass a file that has one, or images")
    return streams[0]


def read_index(av: ModuleType, path: Path, what: str) -> VideoIndex:
    """Reads what a file holds; raises ValueError where it has no frames, too large ones, or fewer than it promises."""
    with av.open(str(path), options=READABLE) as container:
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
    if len(packets) < COMPLETE * promised:
        raise ValueError(
            f"{what} is truncated: its header promises {promised} frames, {len(packets)} are there; download it again, "
            "or copy what is there to a new file (ffmpeg -i IN -c copy OUT)"
        )
    if counted or any(pts is None for pts, _ in packets):
        return VideoIndex(None, [], np.arange(len(packets)) / rate, rate, True, size)
    pts = sorted(pts for pts, _ in packets)
    seconds = np.array([float((p - pts[0]) * unit) for p in pts])
    by_number = np.arange(len(pts)) / rate
    even = bool(np.abs(seconds - by_number).max() <= 0.5 / rate)
    if even:
        seconds = by_number  # containers round their times
    elif seconds[-1] > 0:
        rate = (len(pts) - 1) / seconds[-1]
    return VideoIndex(pts, sorted(p for p, key in packets if key), seconds, rate, even, size)


def choose_frames(
    index: VideoIndex, settings: VideoSettings, temporal: int
) -> tuple[Int[np.ndarray, " n"], list[float]]:
    """Returns frame numbers and times: at least one temporal patch; a file of fewer frames repeats its last."""
    if settings.soft_tokens is not None:
        return _at_every_step(index, settings)
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


def _at_every_step(index: VideoIndex, settings: VideoSettings) -> tuple[Int[np.ndarray, " n"], list[float]]:
    """Returns numbers and times of the frames at 0, 1 / fps, ... seconds, or max_frames of these, evenly spread.

    As EmbeddingGemma 2's processor, which goes by the frames' numbers; at a variable rate this goes by their times.
    """
    total = len(index.seconds)
    count = max(1, int(total / index.rate * settings.fps))
    if index.even:
        chosen = np.minimum((np.arange(count) * (index.rate / settings.fps)).astype(int), total - 1)
    else:
        chosen = np.searchsorted(index.seconds, np.arange(count) / settings.fps + 1e-9) - 1
        chosen = np.clip(chosen, 0, total - 1)
    if count > settings.max_frames:
        chosen = chosen[np.linspace(0, count - 1, settings.max_frames, dtype=int)]
    return chosen, index.seconds[chosen].tolist()


def _decode(
    av: ModuleType, path: Path, keys: Sequence[int], index: VideoIndex, size: tuple[int, int] | None
) -> dict[int, UInt8[np.ndarray, "H W 3"]]:
    """Returns the frames that can be decoded, by presentation time or, where there is none, by number.

    Args:
      keys: times or numbers of the frames, ascending.
      index: what the file holds; decoding jumps to its keyframes.
      size: height and width after a resize; None = the file's own.
    """
    decoded: dict[int, np.ndarray] = {}
    wanted = set(keys)
    with av.open(str(path), options=READABLE) as container:
        stream = _stream(av, container, str(path))
        stream.thread_type = "AUTO"
        frames, numbers, last = container.decode(stream), itertools.count(), -math.inf
        for key in keys:
            if key in decoded or key < last:
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
                    decoded[last] = np.asarray(image if size is None else resized(image, size))
                if last >= key:
                    break
    return decoded


def resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Returns the image at a height and width."""
    return image.resize((size[1], size[0]), Image.Resampling.BICUBIC)
