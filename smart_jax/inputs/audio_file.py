"""Audio files: which are read, and how they are decoded to the samples of one channel (PyAV).

Channels are averaged. A file cut short is refused where its header tells how long it should be (FLAC, MP4) and more
than a twentieth is missing, and read as far as it goes where not (MP3, Ogg; of WAV, FFmpeg believes the file's size).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

# Files with samples in them: a playlist, which is a text, could name other files and addresses.
_FORMATS = (
    *("wav", "w64", "aiff", "caf", "au", "flac", "mp3", "aac", "ogg", "amr", "asf"),
    *("mov", "matroska", "webm", "avi", "mpegts", "mpeg", "flv"),  # films, of which the sound is read
)
READABLE = {"format_whitelist": ",".join(_FORMATS), "protocol_whitelist": "file"}
COUNTED = ("flac", "mov", "caf", "aiff")  # whose header has the number of samples
COMPLETE = 0.95  # of the samples that the header promises


class Recording(NamedTuple):
    """Samples of an audio file.

    Attributes:
      samples: of one channel, -1 to 1.
      rate: samples per second.
      seconds: length of the whole file, of which the samples may be the beginning; None = its header does not say.
    """

    samples: Float[np.ndarray, " samples"]
    rate: int
    seconds: float | None


def import_av(name: str) -> ModuleType:
    """Returns PyAV; raises an ImportError that says how to install it."""
    try:
        import av
    except ImportError as error:
        raise ImportError(
            f'{name}: audio files are read by PyAV, which is not installed: pip install "smart_jax[audio]", or pass '
            "the samples as an array, with their sampling_rate"
        ) from error
    return av


def read_recording(audio: Path | bytes, most: float, name: str) -> Recording:
    """Returns the samples of a file, or of its content, without those after `most` seconds.

    Raises:
      ImportError: PyAV is not installed.
      ValueError: it is no audio that FFmpeg reads, has no sound, or is truncated or damaged.
    """
    av = import_av(name)
    what = f"{name} ('{audio}')" if isinstance(audio, Path) else f"{name} ({len(audio)} bytes)"
    with _explained(av, what):
        source: Any = str(audio) if isinstance(audio, Path) else io.BytesIO(audio)
        with av.open(source, options=READABLE) as container:
            return _decoded(container, most, what)


@contextlib.contextmanager
def _explained(av: ModuleType, what: str) -> Iterator[None]:
    """Turns FFmpeg's errors into a ValueError that names the file and the remedy."""
    try:
        yield
    except av.FFmpegError as error:
        raise ValueError(
            f"{what} cannot be decoded ({error}): it is not audio that FFmpeg reads, or it is truncated or damaged; "
            "write or download it again"
        ) from error


def _decoded(container: Any, most: float, what: str) -> Recording:
    if not container.streams.audio:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "nothing"
        raise ValueError(f"{what} has no sound ({kinds} found): pass a file that has")
    stream = container.streams.audio[0]
    promised = None if stream.duration is None else float(stream.duration * stream.time_base)
    total = promised if promised is not None or container.duration is None else container.duration / 1e6
    pieces: list[np.ndarray] = []
    rate = count = 0
    for frame in container.decode(stream):
        if pieces and frame.sample_rate != rate:
            raise ValueError(
                f"{what} changes from {rate} to {frame.sample_rate} samples per second: convert it to one rate"
            )
        rate = frame.sample_rate
        pieces.append(_mono(frame))
        count += len(pieces[-1])
        if count >= most * rate:
            break
    if not count:
        raise ValueError(f"{what} has no samples: write or download it again")
    if count < most * rate:  # all that is there
        counted = container.format.name.split(",")[0] in COUNTED
        if counted and promised is not None and count < COMPLETE * min(promised, most) * rate:
            raise ValueError(
                f"{what} is truncated: its header promises {promised:.1f} seconds, {count / rate:.1f} are there; "
                "download it again, or copy what is there to a new file (ffmpeg -i IN -c copy OUT)"
            )
        total = count / rate
    return Recording(np.concatenate(pieces)[: int(most * rate)], rate, total)


def _mono(frame: Any) -> Float[np.ndarray, " samples"]:
    """Returns a decoded frame's mean over its channels, float32."""
    samples: np.ndarray = frame.to_ndarray()
    channels = len(frame.layout.channels)
    if not frame.format.is_planar:  # one row, in which the channels take turns
        samples = samples.reshape(-1, channels).T
    if samples.dtype.kind in "iu":
        middle = 128 if samples.dtype == np.uint8 else 0
        samples = (samples.astype(np.float64) - middle) / (128 if middle else -float(np.iinfo(samples.dtype).min))
    mean: np.ndarray = samples.mean(axis=0, dtype=np.float64).astype(np.float32)
    return mean
