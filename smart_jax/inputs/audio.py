"""Audio to log mel features, as Gemma 4's extractor makes them, without torch (NumPy, SciPy; files by PyAV).

Samples of any rate are resampled to the model's, 16 kHz, by a polyphase filter: a sinc of 64 crossings under a Kaiser
window, flat to 0.9 of the lower rate's Nyquist frequency and 100 dB down from that frequency on. Several channels are
averaged. What is longer than the model hears is cut at its end, or refused, as `AudioSettings` says.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from smart_jax.inputs.audio_file import read_recording
from smart_jax.inputs.audio_settings import AudioSettings
from smart_jax.inputs.image import existing_file

AudioLike = str | Path | bytes | np.ndarray

RATES = (1_000, 768_000)  # samples per second that are believed
CHANNELS = 16  # at most
LOUDEST = 16.0  # of an array in -1..1; integers that were made floats are far above
CROSSINGS, ATTENUATION, CUTOFF = 64, 100.0, 0.95  # of the resampling filter; the cutoff in parts of Nyquist's
LONGEST_FILTER = 2**16  # factor of a resampling; of 44,100 Hz to 16,000 it is 441


class AudioClip(NamedTuple):
    """A clip as the tower reads it.

    Attributes:
      features: log mel energies of its frames, float32.
      unheard: seconds after those that are read; 0.0 = there are none, or nobody knows.
    """

    features: Float[np.ndarray, "T F"]
    unheard: float = 0.0


def check_audio(audio: object, sampling_rate: object = None, *, name: str = "audio") -> Path | bytes | np.ndarray:
    """Returns the audio, checked as far as that takes no decoding; a str becomes a Path.

    Raises:
      TypeError: it is not a path, bytes or an array of floats, or the rate is no integer.
      ValueError: it is a URL, an array without samples or without a rate, or not in -1..1.
      FileNotFoundError: the file does not exist.
    """
    if sampling_rate is not None:
        if isinstance(sampling_rate, bool) or not isinstance(sampling_rate, int | np.integer):
            raise TypeError(f"{name}: sampling_rate is {sampling_rate!r}, expected an integer, in samples per second")
        if not RATES[0] <= sampling_rate <= RATES[1]:
            raise ValueError(f"{name}: sampling_rate is {sampling_rate}, expected {RATES[0]} to {RATES[1]} per second")
    if isinstance(audio, str | Path):
        return existing_file(audio, name, "audio", "the path of an audio file, or its samples as an array")
    if isinstance(audio, bytes):
        if not audio:
            raise ValueError(f"{name}: the audio has 0 bytes: pass a file's content")
        return audio
    if isinstance(audio, np.ndarray):
        if sampling_rate is None:
            raise ValueError(
                f"{name} has audio as an array without its sampling_rate: pass {{'audio': array, 'sampling_rate': "
                "16000}}, or whatever it is; a wrong rate is another sound"
            )
        return _checked_array(audio, name)
    raise TypeError(
        f"{name}: the audio is a {type(audio).__name__}, expected a path, a file's bytes or an array of floats in "
        "-1..1 with its sampling_rate; for several clips pass {'audios': [...]}"
    )


def refuse_audio(name: str, model: str) -> ValueError:
    """Returns the error of audio for a model that does not hear."""
    return ValueError(
        f"{name} has audio, which this model ({model}) does not hear: load one that does, EmbeddingGemma 2 "
        "(google/embeddinggemma-2), or pass what is said as a text"
    )


def _checked_array(audio: np.ndarray, name: str) -> np.ndarray:
    if audio.dtype.kind != "f":
        remedy = f"(array / {-int(np.iinfo(audio.dtype).min)})" if audio.dtype.kind == "i" else "floats in -1..1"
        raise TypeError(
            f"{name}: the audio array has dtype {audio.dtype}, expected floats in -1..1: pass {remedy}.astype("
            "numpy.float32)"
        )
    if audio.ndim not in (1, 2) or audio.size == 0:
        raise ValueError(f"{name}: the audio array has shape {audio.shape}, expected [samples] or [samples, channels]")
    if audio.ndim == 2 and (audio.shape[1] > CHANNELS or audio.shape[1] > audio.shape[0]):
        raise ValueError(
            f"{name}: the audio array has shape {audio.shape}, which is {audio.shape[1]} channels of {audio.shape[0]} "
            "samples: pass array.T if the channels come first"
        )
    if not np.isfinite(audio).all():
        raise ValueError(f"{name}: the audio array holds NaN or infinite samples: replace them")
    if (loudest := float(np.abs(audio).max())) > LOUDEST:
        raise ValueError(
            f"{name}: the audio array reaches {loudest:.4g}, expected -1..1: divide what were integers by their range, "
            "32768 for 16 bits"
        )
    return audio


def read_audio(
    audio: AudioLike, settings: AudioSettings, *, sampling_rate: int | None = None, name: str = "audio"
) -> tuple[Float[np.ndarray, " samples"], float]:
    """Returns the samples of one channel at the model's rate, and the seconds that were left out after them.

    Args:
      audio: path, bytes of a file, or float array [samples] or [samples, channels].
      settings: rate, and how much is read.
      sampling_rate: of an array; of a file it may be given, and must be the file's.
      name: what messages call the item.

    Returns:
      float32 in -1..1, and seconds.

    Raises:
      ImportError: a file, and PyAV is not installed.
      FileNotFoundError: the file does not exist.
      TypeError, ValueError: it cannot be used, is too short for a frame, or longer than what `settings` allow.

    Example:
      >>> tone = np.sin(np.arange(8000, dtype=np.float32) / 9)
      >>> samples, left = read_audio(tone, AudioSettings(), sampling_rate=8000)
      >>> samples.shape, left
      ((16000,), 0.0)
    """
    checked = check_audio(audio, sampling_rate, name=name)
    most = settings.max_seconds
    if isinstance(checked, np.ndarray):
        assert sampling_rate is not None  # it was checked
        samples, rate = checked[: int((most + 1) * sampling_rate)], int(sampling_rate)
        seconds = len(checked) / rate
        samples = samples if samples.ndim == 1 else samples.mean(axis=1, dtype=np.float64)
        samples = samples.astype(np.float32)
    else:
        samples, rate, known = read_recording(checked, most + 1, name)  # the filter looks ahead
        seconds = len(samples) / rate if known is None else known
        if sampling_rate is not None and rate != sampling_rate:
            raise ValueError(
                f"{name}: the audio file has {rate} samples per second, but sampling_rate says {sampling_rate}: leave "
                "it out, a file carries its own"
            )
    if settings.long_audio == "refuse" and seconds > most:
        raise ValueError(
            f"{name}: the audio is {seconds:.1f} s long, and {most:g} s are read: pass it in parts, or allow the cut "
            "(settings={'long_audio': 'cut'})"
        )
    samples = resampled(samples, rate, settings.sampling_rate, name=name)[: settings.max_samples]
    if not settings.frames(len(samples)):
        least = (settings.frame_length // 2 + 1) / settings.sampling_rate
        raise ValueError(f"{name}: the audio is {seconds:.4f} s long, the model hears from {least:.4f} s on")
    return samples, max(0.0, seconds - most)


def process_audio(
    audio: AudioLike, settings: AudioSettings, *, sampling_rate: int | None = None, name: str = "audio"
) -> AudioClip:
    """Returns the features of one clip; the arguments and what is raised are those of `read_audio`.

    Example:
      >>> process_audio(np.zeros(16000, np.float32), AudioSettings(), sampling_rate=16000).features.shape
      (99, 128)
    """
    samples, unheard = read_audio(audio, settings, sampling_rate=sampling_rate, name=name)
    return AudioClip(log_mel(samples, settings), unheard)


def log_mel(samples: Float[np.ndarray, " samples"], settings: AudioSettings) -> Float[np.ndarray, "T F"]:
    """Returns log(mel energies + floor) of the frames that lie within the samples.

    Half a frame of zeros comes before the first sample. A frame is windowed (Hann), transformed, and the magnitudes of
    its frequencies are summed in triangles that are evenly spaced on HTK's mel scale.

    Args:
      samples: of one channel at the settings' rate, float32.
      settings: frames and bands.

    Returns:
      float32; `settings.frames(samples)` frames.

    Example:
      >>> log_mel(np.zeros(400, np.float32), AudioSettings())[0, :2].round(3)
      array([-6.908, -6.908], dtype=float32)
    """
    length, hop = settings.frame_length, settings.hop_length
    count = settings.frames(len(samples))
    padded = np.concatenate([np.zeros(length // 2, samples.dtype), samples])
    if settings.input_scale_factor != 1:
        padded = padded * samples.dtype.type(settings.input_scale_factor)
    frames = np.lib.stride_tricks.sliding_window_view(padded, length)[::hop][:count]
    spectrum = np.abs(np.fft.rfft(frames * _hann(length), n=settings.fft_length, axis=-1))
    energies: np.ndarray = np.log(spectrum @ mel_bands(settings) + settings.mel_floor)
    return energies.astype(np.float32)


@functools.lru_cache(maxsize=4)
def _hann(length: int) -> Float[np.ndarray, " frame"]:
    window: np.ndarray = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)).astype(np.float32)
    return window


@functools.lru_cache(maxsize=4)
def mel_bands(settings: AudioSettings) -> Float[np.ndarray, "frequencies F"]:
    """Returns the triangles of the mel bands, float64: the height of each over each frequency."""

    def mel(frequency: float) -> float:
        return 2595.0 * math.log10(1.0 + frequency / 700.0)

    edges = np.linspace(mel(settings.min_frequency), mel(settings.max_frequency), settings.feature_size + 2)
    edges = 700.0 * (10.0 ** (edges / 2595.0) - 1.0)
    frequencies = np.linspace(0, settings.sampling_rate // 2, settings.fft_length // 2 + 1)
    up = (frequencies[:, None] - edges[None, :-2]) / np.diff(edges)[:-1]
    down = (edges[None, 2:] - frequencies[:, None]) / np.diff(edges)[1:]
    return np.maximum(0, np.minimum(up, down))


def resampled(
    samples: Float[np.ndarray, " samples"], rate: int, wanted: int, *, name: str = "audio"
) -> Float[np.ndarray, " resampled"]:
    """Returns the samples at another rate, without frequencies that it cannot hold; see the module.

    Args:
      samples: at `rate` per second.
      rate, wanted: samples per second.
      name: what messages call the item.

    Returns:
      float32, ceil(samples * wanted / rate) of them.

    Raises:
      ValueError: the rates have no common divisor worth the name.

    Example:
      >>> len(resampled(np.zeros(441, np.float32), 44_100, 16_000))
      160
    """
    if rate == wanted:
        return samples
    from scipy.signal import resample_poly  # takes a moment to import

    common = math.gcd(rate, wanted)
    up, down = wanted // common, rate // common
    if max(up, down) > LONGEST_FILTER:
        raise ValueError(
            f"{name}: {rate} samples per second cannot be brought to {wanted}, with which they share no divisor: "
            "resample the audio to a usual rate, such as 16000 or 48000"
        )
    return np.asarray(resample_poly(samples, up, down, window=_filter(max(up, down))), np.float32)


@functools.lru_cache(maxsize=4)
def _filter(factor: int) -> Float[np.ndarray, " taps"]:
    """Returns the low-pass filter of a resampling, whose larger factor is given."""
    from scipy.signal import firwin, kaiser_beta

    beta = float(kaiser_beta(ATTENUATION))
    taps: np.ndarray = firwin(2 * CROSSINGS * factor + 1, CUTOFF / factor, window=("kaiser", beta))
    return taps


def soft_tokens(frames: int) -> int:
    """Returns the number of soft tokens that the audio tower makes of so many frames.

    Example:
      >>> [soft_tokens(frames) for frames in (1, 4, 5, 99)]
      [1, 1, 2, 25]
    """
    return ((frames + 1) // 2 + 1) // 2
