"""Settings of how audio becomes mel features, and how much of it is read."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from smart_jax.files import read_json

FILES = ("processor_config.json", "preprocessor_config.json")
SECTION = "feature_extractor"  # of processor_config.json
# What transformers' extractor could do besides, and Gemma's does not.
_OFF = {"preemphasis": 0.0, "fft_overdrive": False, "dither": 0.0, "per_bin_mean": None, "per_bin_stddev": None}


@dataclasses.dataclass(frozen=True)
class AudioSettings:
    """Settings by which audio becomes features; the defaults are Gemma 4's.

    Attributes:
      sampling_rate: samples per second that the features are made of.
      feature_size: mel bands.
      frame_length_ms, hop_length_ms: length of a frame, and from one to the next.
      min_frequency, max_frequency: of the bands, in hertz.
      mel_floor: added to an energy before its logarithm.
      input_scale_factor: factor of the samples.
      max_seconds: most that is read of a clip.
      long_audio: what becomes of a longer one: "cut" = its beginning is read, which is said; "refuse" = an error.

    Example:
      >>> AudioSettings().frame_length, AudioSettings().hop_length, AudioSettings().fft_length
      (320, 160, 512)
    """

    sampling_rate: int = 16_000
    feature_size: int = 128
    frame_length_ms: float = 20.0
    hop_length_ms: float = 10.0
    min_frequency: float = 0.0
    max_frequency: float = 8000.0
    mel_floor: float = 1e-3
    input_scale_factor: float = 1.0
    max_seconds: float = 30.0
    long_audio: str = "cut"

    @property
    def frame_length(self) -> int:
        """Samples of a frame."""
        return round(self.sampling_rate * self.frame_length_ms / 1000)

    @property
    def hop_length(self) -> int:
        """Samples from one frame to the next."""
        return round(self.sampling_rate * self.hop_length_ms / 1000)

    @property
    def fft_length(self) -> int:
        """Samples that are transformed: a frame, and zeros up to a power of two."""
        return int(1 << (self.frame_length - 1).bit_length())

    @property
    def max_samples(self) -> int:
        """Most samples that are read of a clip."""
        return int(self.max_seconds * self.sampling_rate)

    @property
    def token_seconds(self) -> float:
        """Seconds between two soft tokens."""
        return 4 * self.hop_length / self.sampling_rate

    def frames(self, samples: int) -> int:
        """Returns the number of frames of so many samples; the first is centred at the first sample.

        A frame counts if it and the sample after it lie before the end, as in transformers.

        Example:
          >>> [AudioSettings().frames(samples) for samples in (160, 161, 320, 321, 16000)]
          [0, 1, 1, 2, 99]
        """
        return max(0, (samples + self.frame_length // 2 - self.frame_length - 1) // self.hop_length + 1)

    def __post_init__(self) -> None:
        check_long_audio(self.max_seconds, self.long_audio)
        if self.frame_length < 2 or self.hop_length < 1 or self.feature_size < 1:
            raise ValueError(
                f"audio frames of {self.frame_length} samples, {self.hop_length} apart, in {self.feature_size} bands: "
                "all must be positive"
            )


def check_long_audio(max_seconds: object, long_audio: object) -> None:
    """Raises ValueError unless the cap is a positive number of seconds and the rule for longer clips is known.

    Example:
      >>> check_long_audio(30.0, "cut")
    """
    if isinstance(max_seconds, bool) or not isinstance(max_seconds, int | float) or not 0 < max_seconds <= 3600:
        raise ValueError(f"max_seconds is {max_seconds!r}, expected seconds of audio, at most an hour")
    if long_audio not in ("cut", "refuse"):
        raise ValueError(f"long_audio is {long_audio!r}, expected 'cut' or 'refuse'")


def read_audio_settings(folder: str | Path, **own: Any) -> AudioSettings:
    """Returns the settings of a checkpoint's feature extractor; where it has none, Gemma 4's.

    Args:
      folder: with processor_config.json or preprocessor_config.json.
      **own: fields of `AudioSettings` that are none of the extractor's: max_seconds, long_audio.

    Raises:
      ValueError: the extractor does what is not computed here; the message names it.
    """
    found: dict[str, Any] = {}
    for path in (Path(folder) / name for name in reversed(FILES)):
        if path.is_file():
            content = read_json(path)
            section = content.get(SECTION) or (content if "feature_extractor_type" in content else {})
            found |= dict(section)
            for key, off in _OFF.items():
                if found.get(key, off) not in (off, None):
                    raise ValueError(f"{path}: {key} is {found[key]!r}, only {off!r} is supported")
    names = {field.name for field in dataclasses.fields(AudioSettings)} - own.keys()
    return AudioSettings(**{key: value for key, value in found.items() if key in names and value is not None}, **own)
