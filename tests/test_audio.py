"""Audio: features against transformers' extractor, resampling against sines, files, and what is refused."""

from __future__ import annotations

import builtins
import json
import wave
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from transformers import Gemma4AudioFeatureExtractor

from smart_jax.encoding.encoding import _said_of_unheard
from smart_jax.files import resolve
from smart_jax.index.documents import GivenFile, find_files
from smart_jax.index.pages import OpenFile, Reading
from smart_jax.inputs import Item, TokenizedItem, items_fingerprint, open_preprocessor, parse_item, parse_items
from smart_jax.inputs.audio import check_audio, log_mel, process_audio, read_audio, resampled, soft_tokens
from smart_jax.inputs.audio_batch import audio_shape, pad_audio
from smart_jax.inputs.audio_settings import AudioSettings, read_audio_settings
from smart_jax.inputs.spectrogram import draw_audio, spectrogram
from smart_jax.models import load_config

SETTINGS = AudioSettings()
RATE = SETTINGS.sampling_rate
EXTRACTOR = Gemma4AudioFeatureExtractor()


def tone(hertz: float, rate: int, seconds: float = 1.0) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate).astype(np.float32)


def noise(samples: int, loudness: float = 0.5) -> np.ndarray:
    return (loudness * np.random.default_rng(samples).normal(size=samples)).astype(np.float32)


def write_wav(path: Path, samples: np.ndarray, rate: int) -> Path:
    """Writes int16 samples [samples, channels]."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[1])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return path


def encode(path: Path, samples: np.ndarray, rate: int, codec: str, kind: str) -> Path:
    """Encodes float samples in one channel, by FFmpeg."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        resampler = av.AudioResampler(format=kind, layout="mono", rate=rate, frame_size=stream.frame_size or None)
        for piece in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(piece))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("samples", [161, 162, 320, 321, 4001, 23_457, 480_000, 480_001])
@pytest.mark.parametrize("loudness", [0.0, 0.5])
def test_features_are_the_extractors(samples, loudness):
    sound = noise(samples, loudness)
    reference = EXTRACTOR([sound], return_tensors="np")
    expected, mask = reference["input_features"][0], reference["input_features_mask"][0]
    features = process_audio(sound, SETTINGS, sampling_rate=RATE).features
    assert features.dtype == np.float32
    np.testing.assert_allclose(features, expected[mask], atol=1e-5, rtol=0)
    assert SETTINGS.frames(min(samples, SETTINGS.max_samples)) == mask.sum() == len(features)
    assert soft_tokens(len(features)) == mask[::2][::2].sum()


def test_features_follow_a_checkpoints_extractor(tmp_path):
    facts = {"feature_size": 40, "frame_length_ms": 32.0, "min_frequency": 100.0, "mel_floor": 0.01}
    content = json.loads(EXTRACTOR.to_json_string()) | facts
    (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor": content}))
    extractor = Gemma4AudioFeatureExtractor.from_dict(content)
    settings = read_audio_settings(tmp_path, max_seconds=10.0)
    assert (settings.feature_size, settings.frame_length, settings.max_seconds) == (40, 512, 10.0)
    sound = noise(5000)
    reference = extractor([sound], return_tensors="np")
    expected = reference["input_features"][0][reference["input_features_mask"][0]]
    np.testing.assert_allclose(log_mel(sound, settings), expected, atol=1e-5, rtol=0)
    (tmp_path / "processor_config.json").write_text(json.dumps({"feature_extractor": {"preemphasis": 0.97}}))
    with pytest.raises(ValueError, match=r"preemphasis is 0.97, only 0.0 is supported"):
        read_audio_settings(tmp_path)


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000, 96_000])
def test_a_resampled_sine_is_the_same_sine(rate):
    for hertz in (440.0, 3300.0):
        ours = resampled(tone(hertz, rate), rate, RATE)
        assert len(ours) == RATE
        np.testing.assert_allclose(ours[800:-800], tone(hertz, RATE)[800:-800], atol=1e-5)  # but for its ends


@pytest.mark.parametrize("hertz", [8_000, 8_500, 12_000, 20_000])
def test_what_the_rate_cannot_hold_does_not_come_back_as_another_tone(hertz):
    ours = resampled(tone(hertz, 48_000), 48_000, RATE)[800:-800]
    assert np.abs(ours).max() < 1e-5  # -100 dB
    kept = resampled(tone(7000, 48_000), 48_000, RATE)[800:-800]
    assert np.abs(np.abs(np.fft.rfft(kept)).argmax() * RATE / len(kept) - 7000) < 2
    assert np.abs(kept).max() == pytest.approx(1, abs=0.02)


def test_channels_are_averaged():
    left, right = noise(4000), noise(4001)[:4000]
    samples, _ = read_audio(np.stack([left, right], axis=1), SETTINGS, sampling_rate=RATE)
    np.testing.assert_allclose(samples, (left + right) / 2, atol=1e-7)


def test_a_file_is_its_samples(tmp_path):
    samples = np.random.default_rng(0).integers(-20_000, 20_000, (9000, 2))
    path = write_wav(tmp_path / "stereo.wav", samples, 22_050)
    expected = resampled((samples / 32768).mean(axis=1).astype(np.float32), 22_050, RATE)
    for audio in (path, str(path), path.read_bytes()):
        found, left = read_audio(audio, SETTINGS)
        np.testing.assert_allclose(found, expected, atol=1e-6)
        assert left == 0
    assert len(read_audio(path, SETTINGS, sampling_rate=22_050)[0]) == len(expected)
    with pytest.raises(ValueError, match=r"has 22050 samples per second, but sampling_rate says 16000"):
        read_audio(path, SETTINGS, sampling_rate=16_000)


@pytest.mark.parametrize(
    ("name", "codec", "kind", "atol"),
    [
        ("a.flac", "flac", "s16", 1e-4),
        ("a.m4a", "aac", "fltp", 0.05),
        ("a.ogg", "libopus", "flt", 0.1),
        ("a.mka", "pcm_u8", "u8", 0.01),
        ("a.mp4", "aac", "fltp", 0.05),
    ],
)
def test_compressed_files_hold_the_same_tone(tmp_path, name, codec, kind, atol):
    rate = 48_000
    path = encode(tmp_path / name, 0.5 * tone(500, rate), rate, codec, kind)
    samples, _ = read_audio(path, SETTINGS)
    assert len(samples) == pytest.approx(RATE, abs=0.09 * RATE)  # codecs pad
    middle = samples[4000:12_000]
    assert np.abs(np.fft.rfft(middle)).argmax() * RATE / len(middle) == 500
    assert np.abs(middle).max() == pytest.approx(0.5, abs=atol)


def test_a_long_clip_is_cut_or_refused(tmp_path):
    rate = 8000
    long = tone(300, rate, 31.5)
    samples, left = read_audio(long, SETTINGS, sampling_rate=rate)
    assert (len(samples), left) == (SETTINGS.max_samples, pytest.approx(1.5))
    np.testing.assert_array_equal(samples, resampled(long, rate, RATE)[: SETTINGS.max_samples])
    path = write_wav(tmp_path / "long.wav", (32_767 * long[:, None]).astype(int), rate)
    cut, left = read_audio(path, AudioSettings(max_seconds=2.0))
    assert (len(cut), left) == (2 * RATE, pytest.approx(29.5))
    with pytest.raises(ValueError, match=r"clip: the audio is 31.5 s long, and 30 s are read: pass it in parts"):
        read_audio(path, AudioSettings(long_audio="refuse"), name="clip")
    for wrong in ({"max_seconds": 0}, {"long_audio": "split"}):
        with pytest.raises(ValueError, match="expected"):
            AudioSettings(**wrong)


REFUSED = {
    "no_rate": (np.zeros(9, np.float32), None, ValueError, r"clip has audio as an array without its sampling_rate"),
    "integers": (
        np.zeros(9, np.int16),
        RATE,
        TypeError,
        r"dtype int16, expected floats in -1..1: pass \(array / 32768",
    ),
    "as_floats": (np.full(9, 900.0, np.float32), RATE, ValueError, r"reaches 900, expected -1..1: divide what were"),
    "not_a_number": (np.full(9, np.nan, np.float32), RATE, ValueError, r"holds NaN or infinite samples"),
    "channels_first": (np.zeros((2, 9), np.float32), RATE, ValueError, r"9 channels of 2 samples: pass array.T"),
    "empty": (np.zeros(0, np.float32), RATE, ValueError, r"has shape \(0,\)"),
    "three_axes": (np.zeros((2, 3, 4), np.float32), RATE, ValueError, r"expected \[samples\] or \[samples, channels\]"),
    "short": (np.zeros(160, np.float32), RATE, ValueError, r"is 0.0100 s long, the model hears from 0.0101 s on"),
    "odd_rate": (np.zeros(999, np.float32), 99_991, ValueError, r"cannot be brought to 16000"),
    "wrong_rate": (np.zeros(999, np.float32), 16, ValueError, r"sampling_rate is 16, expected 1000 to 768000"),
    "rate_of_text": (np.zeros(999, np.float32), "16k", TypeError, r"sampling_rate is '16k', expected an integer"),
    "address": ("https://example.org/a.wav", None, ValueError, r"is a URL; audios are read from local files only"),
    "missing": ("gone.wav", None, FileNotFoundError, r"no audio file 'gone.wav'"),
    "number": (3.0, None, TypeError, r"the audio is a float, expected a path"),
    "no_bytes": (b"", None, ValueError, r"the audio has 0 bytes"),
    "noise": (b"RIFF" + bytes(99), None, ValueError, r"clip \(103 bytes\) cannot be decoded"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_audio_that_cannot_be_used(case, unchecked):
    audio, rate, kind, message = REFUSED[case]
    with pytest.raises(kind, match=message):
        read_audio(audio, SETTINGS, sampling_rate=rate, name="clip")


def test_playlists_and_films_without_sound_are_refused(tmp_path):
    wav = write_wav(tmp_path / "a.wav", np.zeros((4000, 1), int), RATE)
    playlist = f"#EXTM3U\n#EXTINF:1,\n{wav.as_uri()}\n".encode()
    (tmp_path / "list.m3u8").write_bytes(playlist)
    concat = f"ffconcat version 1.0\nfile '{wav.name}'\n".encode()
    for audio in (tmp_path / "list.m3u8", playlist, concat):
        with pytest.raises(ValueError, match="cannot be decoded"):
            read_audio(audio, SETTINGS)
    with av.open(str(tmp_path / "mute.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=1)
        stream.width = stream.height = 16
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8))))
        container.mux(stream.encode(None))
    with pytest.raises(ValueError, match=r"has no sound \(video found\)"):
        read_audio(tmp_path / "mute.mp4", SETTINGS)


def test_a_truncated_file_is_refused(tmp_path):
    flac = encode(tmp_path / "a.flac", noise(RATE), RATE, "flac", "s16")
    flac.write_bytes(flac.read_bytes()[: flac.stat().st_size // 3])
    with pytest.raises(ValueError, match=r"is truncated"):
        read_audio(flac, SETTINGS)


def test_without_pyav_arrays_are_read_and_files_say_what_to_install(tmp_path, monkeypatch):
    path = write_wav(tmp_path / "a.wav", np.zeros((4000, 1), int), RATE)
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "av":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert len(read_audio(np.zeros(4000, np.float32), SETTINGS, sampling_rate=RATE)[0]) == 4000
    with pytest.raises(ImportError, match=r'pip install "smart_jax\[audio\]"'):
        read_audio(path, SETTINGS)


def test_checked_audio_is_what_was_given(tmp_path):
    path = write_wav(tmp_path / "a.wav", np.zeros((4000, 1), int), RATE)
    assert check_audio(str(path)) == path
    assert check_audio(b"bytes") == b"bytes"


def test_items_with_audio(tmp_path):
    path = write_wav(tmp_path / "Talk 1.WAV", np.zeros((4000, 1), int), RATE)
    for given in (path, str(path), {"audio": str(path)}, {"audio": path}):
        assert parse_item(given) == Item(audios=(path,))
    sound = noise(4000)
    item = parse_item({"audio": sound, "sampling_rate": RATE, "text": "bells"})
    assert item.audios[0] is sound and (item.sampling_rate, item.texts) == (RATE, ("bells",))
    assert parse_item({"audios": [path, path.read_bytes()]}).audios == (path, path.read_bytes())
    for wrong, message in (
        ({"audio": sound}, r"item has audio as an array without its sampling_rate"),
        ({"text": "bells", "sampling_rate": RATE}, r"item has a sampling_rate but no audio"),
        ({"audio": path, "audios": [path]}, r"has both 'audio' and 'audios'"),
        ({"image": path}, r"is no image: pass \{'audio': "),
    ):
        with pytest.raises(ValueError, match=message):
            parse_item(wrong)
    with pytest.raises(FileNotFoundError, match=r"no audio file 'gone.mp3'"):
        parse_item("gone.mp3")
    assert parse_item("what is an mp3").texts and parse_item("how to play a gone.mp3").texts


def test_fingerprints_tell_sounds_and_rates_apart(tmp_path):
    sound = noise(4000)
    path = write_wav(tmp_path / "a.wav", np.zeros((4000, 1), int), RATE)
    items = [{"audio": sound, "sampling_rate": RATE}, {"audio": sound, "sampling_rate": 2 * RATE}]
    items += [{"audio": -sound, "sampling_rate": RATE}, {"audio": path}, {"audio": path.read_bytes()}]
    assert len({items_fingerprint(parse_items([item])) for item in items}) == len(items)


def test_models_that_do_not_hear_name_one_that_does(checkpoint):
    item = {"audio": noise(4000), "sampling_rate": RATE}
    preprocessor = open_preprocessor(checkpoint, load_config(checkpoint))
    with pytest.raises(ValueError, match=r"item 3 has audio, which this model \(\w+\) does not hear.*EmbeddingGemma 2"):
        preprocessor.tokenize(item, name="item 3")
    minilm = resolve("minilm")
    with pytest.raises(ValueError, match=r"this model \(bert\) does not hear: load one that does, EmbeddingGemma 2"):
        open_preprocessor(minilm, load_config(minilm)).tokenize(item)


def clip_item(frames: Sequence[int], tokens: int) -> TokenizedItem:
    """An item whose positions after the first are its clips' soft tokens, and then others."""
    audio = tuple(np.full((n, 4), n, np.float32) for n in frames)
    ids = np.zeros(tokens, np.int32)
    ids[1 : 1 + sum(map(soft_tokens, frames))] = 7
    return TokenizedItem(ids, ids >= 0, grids=(), patches=np.zeros((0, 0), np.uint8), audio=audio)


def test_clips_are_padded_to_few_shapes_and_found_again():
    assert {audio_shape([(n,)])[1] for n in range(1, 3001)} == {256, 512, 1024, 2048, 3000}
    assert audio_shape([(3001,), (5, 5, 5)]) == (4, 6000)
    items = [clip_item((9, 300), 90), clip_item((), 3), clip_item((40,), 12)]
    places = np.stack([np.pad(item.input_ids == 7, (0, 90 - len(item))) for item in items])
    batch = pad_audio(items, places, rows=4)
    assert batch.features.shape == (8, 512, 4) and batch.index.shape == (4, 90)
    assert batch.mask.sum(1).tolist() == [9, 300, 0, 0, 40, 0, 0, 0]
    np.testing.assert_array_equal(batch.index[0, 1:79], [0, 1, 2, *range(128, 128 + 75)])
    assert (batch.features[1, :300] == 300).all() and not batch.features[~batch.mask].any()
    assert (batch.index[[1, 3]] == -1).all() and batch.index[2].max() == 9
    assert pad_audio(items[1:2], places[1:2], rows=2) is None


def test_folders_have_audio_for_models_that_hear(tmp_path):
    wav = write_wav(tmp_path / "a.wav", np.zeros((4000, 1), int), RATE)
    (tmp_path / "b.txt").write_text("words")
    assert find_files(tmp_path) == [wav, tmp_path / "b.txt"]
    assert find_files(tmp_path, audio=False) == [tmp_path / "b.txt"]
    given = GivenFile(wav)
    with pytest.raises(ValueError, match=r"a.wav' is audio, which the model of this index does not hear"):
        OpenFile(given, Reading())
    (page,) = OpenFile(given, Reading(audio=True)).pages()
    assert parse_item(page.content()).audios == (wav,)


def test_spectrograms_rise_with_their_sound(tmp_path):
    sweep = np.sin(2 * np.pi * np.cumsum(np.linspace(200, 6000, RATE)) / RATE)
    picture = draw_audio(write_wav(tmp_path / "a.wav", (20_000 * sweep[:, None]).astype(int), RATE))
    assert picture.size == (99, 128)
    loudest = np.asarray(picture.convert("L")).argmin(axis=0)[5:-5]  # the row of each column's darkest pixel
    assert (np.diff(loudest) <= 1).all() and loudest[0] - loudest[-1] > 60
    assert spectrogram(np.zeros((2999, 128), np.float32)).size == (2999, 374)


def test_the_longest_of_clips_that_are_cut_is_named():
    """The first of equal ones."""
    said = _said_of_unheard({4: 1.25, 1: 0.5, 7: 1.25}, 9)
    assert said.startswith("3 of 9 items have audio that is longer") and "of item 4, the longest, 1.2 seconds" in said
