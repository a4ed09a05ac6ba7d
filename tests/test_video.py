"""Videos against the reference's golden files, and the messages of those that cannot be used."""

from __future__ import annotations

import builtins
import dataclasses
import json
import re
import subprocess
import sys
import wave
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

import smart_jax
from smart_jax.inputs import video_file
from smart_jax.inputs.image import ImageSettings, process_image
from smart_jax.inputs.multimodal import MultimodalPreprocessor
from smart_jax.inputs.settings import Settings
from smart_jax.inputs.video import middle_frame, process_video
from smart_jax.inputs.video_settings import VideoSettings
from smart_jax.models.positions import mrope_positions
from smart_jax.models.qwen_vl_config import QwenVLConfig
from tests.backbone import small_config, write_checkpoint
from tests.checkpoints import noise_page, write_processor
from tests.golden.make_video import (
    GOLDEN,
    PATCH_SIZES,
    SAMPLES,
    TOKENIZER,
    TOKENS_PER_SECOND,
    budget,
    clip,
    drawn,
    items,
)
from tests.pixels import CONSTANTS, values_of

CONFIG = QwenVLConfig.from_hf(small_config())
IMAGES, SETTINGS = ImageSettings(), VideoSettings()
IMAGE, VIDEO = CONFIG.image_token_id, CONFIG.video_token_id


def preprocessor_of(family: str, folder: Path, **overrides) -> MultimodalPreprocessor:
    """Preprocessor with the tokenizer of the golden files."""
    write_processor(folder, patch_size=PATCH_SIZES[family])
    (folder / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
    rate = TOKENS_PER_SECOND if family == "qwen2_5_vl" else None
    vision = dataclasses.replace(CONFIG.vision, patch_size=PATCH_SIZES[family], tokens_per_second=rate)
    config = dataclasses.replace(CONFIG, model_type=family, vision=vision)
    return MultimodalPreprocessor.from_pretrained(folder, config, head="qwen3_vl_embedding", **overrides)


@pytest.fixture(scope="module")
def preprocessor(tmp_path_factory):
    return preprocessor_of("qwen3_vl", tmp_path_factory.mktemp("processor"))


@pytest.fixture(scope="module", params=PATCH_SIZES)
def family(request, tmp_path_factory):
    """(model_type, its preprocessor with the pixel budget of the golden files)."""
    found = preprocessor_of(request.param, tmp_path_factory.mktemp(request.param), **budget(request.param))
    return request.param, found


def grey(level: int, size: tuple[int, int] = (64, 96)) -> Image.Image:
    return Image.new("RGB", (size[1], size[0]), (level,) * 3)


def write_film(
    path: Path,
    frames: Sequence[int | Image.Image],
    *,
    times: list[int] | None = None,
    rate: int = 10,
    codec: str = "mpeg4",
    options: dict[str, str] | None = None,
    container: str | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Pictures, or a grey of each level; times in milliseconds, or evenly at `rate`."""
    with av.open(str(path), "w", format=container, options=container_options or {}) as out:
        stream = out.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        unit = Fraction(1, 1000) if times else Fraction(1, rate)
        stream.codec_context.time_base = unit
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_image(grey(picture) if isinstance(picture, int) else picture)
            frame.pts, frame.time_base = (times[i] if times else i), unit
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def levels_of(found, per_patch: int = 2) -> list[list[int]]:
    """The grey of every frame of every temporal patch."""
    shaped = found.patches.reshape(len(found.grids), -1, per_patch, 768)
    return np.rint(shaped.mean((1, 3))).astype(int).tolist()


# --- the reference


@pytest.mark.compiles
@pytest.mark.parametrize("case", items())
def test_tokens_positions_and_pixels_equal_the_reference(family, case):
    name, preprocessor = family
    golden = {key: np.load(GOLDEN)[f"{name}/{case}/{key}"] for key in ("input_ids", "positions", "grid", "pixels")}
    row = preprocessor.tokenize(items()[case])
    assert row.input_ids.tolist() == golden["input_ids"].tolist()
    length = len(row.input_ids)
    assert np.array_equal(preprocessor.collate([row]).position_ids[:, 0, :length], golden["positions"])
    ((t, h, w),) = golden["grid"].tolist()
    videos = ((1, h, w),) * t if name == "qwen3_vl" else ((t, h, w),)
    assert row.grids[: len(videos)] == videos
    assert np.array_equal(row.keep[np.isin(row.input_ids, [IMAGE, VIDEO])], np.ones(len(row.patches) // 4, bool))
    values = values_of(row.patches[: t * h * w], CONSTANTS["qwen3"]).reshape(-1)
    bytes_ = (values[np.random.default_rng(0).integers(0, values.size, SAMPLES)] + 1) * 127.5
    error = np.abs(bytes_.round() - golden["pixels"])
    assert np.mean(error > 2) <= 0.02 and error.max() <= 12 and error.mean() < 0.3


def test_the_pixel_budget():
    assert SETTINGS.frame_pixels(64, 2) == 245_760  # 7,680 visual tokens, which 8,192 hold
    assert SETTINGS.frame_pixels(20, 2) == SETTINGS.frame_pixels(2, 2) == 786_432
    assert dataclasses.replace(SETTINGS, total_pixels=1).frame_pixels(4, 2) == 137_625  # never below the floor
    assert vars(Settings()) | budget("qwen3_vl") == vars(Settings())


# --- sampling


def test_an_even_file_is_sampled_by_number(tmp_path):
    film = write_film(tmp_path / "film.mp4", list(range(20, 220, 5)))  # 40 frames, 4 seconds
    found = process_video(film, IMAGES, SETTINGS)
    assert found.seconds == pytest.approx((0.65, 3.25))  # frames 0, 13, 26 and 39
    assert np.abs(np.ravel(levels_of(found)) - [20, 85, 150, 215]).max() <= 2
    assert len(process_video(film, IMAGES, SETTINGS, fps=2).grids) == 4
    assert len(process_video(film, IMAGES, SETTINGS, fps=10, max_frames=7).grids) == 3
    assert len(process_video(film, IMAGES, SETTINGS, fps=0.1).grids) == 2  # four frames at least


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_a_variable_rate_is_sampled_by_time(tmp_path, suffix):
    times = [*range(0, 1000, 50), *range(1000, 9001, 1000)]  # 20 frames in the first second, then one a second
    film = write_film(tmp_path / f"film.{suffix}", list(range(20, 20 + 5 * len(times), 5)), times=times, rate=20)
    found = process_video(film, IMAGES, SETTINGS, fps=0.5)
    assert found.seconds == pytest.approx((1.5, 7.5))  # 0, 3, 6 and 9 seconds; by number it were 0, 0.5, 1 and 9
    expected = [20 + 5 * times.index(t) for t in (0, 3000, 6000, 9000)]
    assert np.abs(np.ravel(levels_of(found)) - expected).max() <= 3


@pytest.mark.parametrize("codec", ["mpeg4", "libx264", "mpeg2video"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts", "m4v"])
def test_containers_and_codecs_give_the_same_frames(tmp_path, suffix, codec):
    """AVI and bare streams (m4v) have no times; H.264 stores its frames in another order than it shows them."""
    bare = {"mpeg4": "m4v", "libx264": "h264", "mpeg2video": "mpeg2video"}[codec] if suffix == "m4v" else None
    film = write_film(
        tmp_path / f"film.{suffix}", list(range(0, 250, 5)), rate=25, codec=codec, options={"g": "8"}, container=bare
    )
    found = process_video(film, IMAGES, SETTINGS, fps=5)
    expected = [0, 25, 55, 80, 110, 135, 165, 190, 220, 245]  # every 5.44th of 50
    assert np.abs(np.ravel(levels_of(found)) - expected).max() <= 4
    assert found.seconds == pytest.approx((0.1, 0.54, 0.98, 1.42, 1.86))


def test_a_gif(tmp_path):
    frames = [grey(level) for level in range(0, 250, 5)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:], duration=200)
    found = process_video(tmp_path / "film.gif", IMAGES, SETTINGS)
    assert np.ravel(levels_of(found)).tolist() == [0, 25, 55, 80, 110, 135, 165, 190, 220, 245]


def test_few_frames(tmp_path):
    one = process_video(write_film(tmp_path / "one.mp4", [100]), IMAGES, SETTINGS)
    assert one.seconds == (0.0,) and len(one.grids) == 1
    assert levels_of(one)[0][0] == levels_of(one)[0][1]
    three = process_video(write_film(tmp_path / "three.mp4", [50, 100, 150]), IMAGES, SETTINGS)
    assert three.seconds == pytest.approx((0.1,))  # the first and the last
    picture = tmp_path / "still.png"
    grey(70).save(picture)
    assert levels_of(process_video(picture, IMAGES, SETTINGS)) == [[70, 70]]


def test_frames_in_memory(tmp_path):
    frames = [grey(20 * i) for i in range(9)]
    found = process_video(frames, IMAGES, SETTINGS)
    assert levels_of(found) == [[0, 20], [40, 60], [80, 100], [120, 140], [160, 160]]  # the odd last one is repeated
    assert found.seconds == (0.25, 1.25, 2.25, 3.25, 4.25)
    array = np.stack([np.asarray(f) for f in frames])
    paths = [tmp_path / f"{i}.png" for i in range(9)]
    for frame, path in zip(frames, paths, strict=True):
        frame.save(path)
    for same in (array, list(array), paths, [str(p) for p in paths], [p.read_bytes() for p in paths]):
        assert np.array_equal(process_video(same, IMAGES, SETTINGS).patches, found.patches)


def test_fps_of_frames_is_the_rate_at_which_they_were_taken():
    frames = [grey(20 * i) for i in range(9)]
    assert process_video(frames[:4], IMAGES, SETTINGS, fps=10).seconds == pytest.approx((0.05, 0.25))
    cut = process_video(frames, IMAGES, SETTINGS, max_frames=3)
    assert levels_of(cut) == [[0, 80], [160, 160]] and cut.seconds == (0.25, 1.25)  # as the reference counts
    timed = process_video(frames, IMAGES, SETTINGS, max_frames=3, fps=4)
    assert levels_of(timed) == levels_of(cut) and timed.seconds == (0.5, 2.125)


def test_two_equal_frames_are_an_image():
    still = noise_page(512, 512)
    found = process_video([still, still], IMAGES, SETTINGS)
    patches, grid = process_image(still, IMAGES)
    assert found.grids == (grid,) and np.array_equal(found.patches, np.tile(patches, 2))


def test_a_container_that_does_not_find_its_frames_is_read_from_the_start(monkeypatch):
    calls = []

    def without_jumps(*args):
        calls.append(args)
        return {} if len(calls) == 1 else decode(*args)

    expected = process_video(clip("bikes"), IMAGES, SETTINGS)
    decode = video_file._decode
    monkeypatch.setattr(video_file, "_decode", without_jumps)
    assert np.array_equal(process_video(clip("bikes"), IMAGES, SETTINGS).patches, expected.patches)
    assert len(calls) == 2 and calls[1][3].keyframes == []


# --- the middle frame


def level_of(image: Image.Image) -> float:
    return float(np.asarray(image).mean())


def test_the_middle_frame_of_a_list_or_an_array(tmp_path):
    frames = [grey(20 * i) for i in range(7)]
    frames[3].save(tmp_path / "3.png")
    listed = [Path("gone.png")] * 3 + [tmp_path / "3.png"] + [Path("gone.png")] * 3  # the others are not opened
    for given in (frames, np.stack([np.asarray(f) for f in frames]), listed, frames[:6]):
        found = middle_frame(given, IMAGES, SETTINGS, max_frames=2)
        assert found.mode == "RGB" and found.size == (96, 64) and level_of(found) == 60
    assert level_of(middle_frame([grey(9)], IMAGES, SETTINGS)) == 9
    with pytest.raises(FileNotFoundError, match=r"item 4: frame 0 of the video: no image file 'gone\.png'"):
        middle_frame(["gone.png"], IMAGES, SETTINGS, name="item 4")


@pytest.mark.parametrize("suffix", ["mp4", "avi"])
def test_the_middle_frame_of_a_file_is_that_of_its_sample(tmp_path, suffix):
    film = write_film(tmp_path / f"film.{suffix}", list(range(20, 220, 5)))  # 40 frames, 4 seconds
    for sampling in ({}, {"fps": 10, "max_frames": 7}, {"max_frames": 2}, {"fps": 2}):
        levels = np.ravel(levels_of(process_video(film, IMAGES, SETTINGS, **sampling)))
        found = middle_frame(film, IMAGES, SETTINGS, **sampling)
        assert found.size == (96, 64) and abs(level_of(found) - levels[len(levels) // 2]) <= 1
    one = write_film(tmp_path / f"one.{suffix}", [100])
    assert abs(level_of(middle_frame(one, IMAGES, SETTINGS)) - 100) <= 2


def test_the_middle_frame_needs_no_other(tmp_path):
    whole = bytearray(fast_start(tmp_path))
    whole[len(whole) - 6000 :] = bytes(6000)  # the last frames
    (tmp_path / "hole.mp4").write_bytes(whole)
    with pytest.raises(ValueError, match="cannot be decoded"):
        process_video(tmp_path / "hole.mp4", IMAGES, SETTINGS)
    assert middle_frame(tmp_path / "hole.mp4", IMAGES, SETTINGS).size == (96, 64)


@pytest.mark.parametrize("wrong", [{"fps": 0}, {"max_frames": 1}])
def test_the_middle_frame_s_checks(tmp_path, wrong):
    with pytest.raises(ValueError, match="clip: (fps is 0|max_frames is 1)"):
        middle_frame([grey(0)], IMAGES, SETTINGS, name="clip", **wrong)
    with pytest.raises(ValueError, match=r"clip .*has no video stream \(audio found\)"):
        middle_frame(bad_file(tmp_path, "audio"), IMAGES, SETTINGS, name="clip")


# --- what cannot be used


def bad_file(folder: Path, kind: str) -> Path:
    path = folder / "film.mp4"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("not a film " * 100)
    elif kind == "audio":
        with wave.open(str(path), "wb") as sound:
            sound.setnchannels(1), sound.setsampwidth(2), sound.setframerate(8000)
            sound.writeframes(bytes(8000))
    elif kind == "song":
        with av.open(str(path), "w") as container:
            sound, cover = container.add_stream("aac", rate=8000), container.add_stream("mjpeg", rate=1)
            cover.width, cover.height, cover.pix_fmt = 96, 64, "yuvj420p"
            cover.disposition = av.stream.Disposition.attached_pic.value
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
            silence.rate = 8000
            for stream, frame in ((cover, av.VideoFrame.from_image(grey(9))), (sound, silence)):
                container.mux([*stream.encode(frame), *stream.encode()])
    elif kind == "no_frames":
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
            container.start_encoding()
    elif kind == "no_header":
        whole = write_film(folder / "whole.mp4", [noise_page(96, 64, i) for i in range(40)]).read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
    return path


BAD_FILES = {
    "empty": "the video file .* has 0 bytes: write or download it again",
    "text": "cannot be decoded .*not a video that FFmpeg reads, or it is truncated or damaged",
    "audio": r"has no video stream \(audio found\): pass a file that has one",
    "song": r"has no video stream \(audio found\)",  # its cover is a video stream of one picture
    "no_frames": r"has no video stream \(no other found\)",
    "no_header": "cannot be decoded .*truncated or damaged; write or download it again",
}


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:4,\nfilm.mp4\n#EXT-X-ENDLIST\n",
    "list.mp4": "ffconcat version 1.0\nfile film.mp4\n",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_playlist_leads_to_no_other_file(name, tmp_path):
    write_film(tmp_path / "film.mp4", [0, 50, 100] * 4)
    (tmp_path / name).write_text(PLAYLISTS[name])
    with av.open(str(tmp_path / name)) as container:  # FFmpeg would
        assert container.streams.video
    with pytest.raises(ValueError, match="cannot be decoded"):
        video_file.check_video_file(tmp_path / name)
    with pytest.raises(ValueError, match="cannot be decoded"):
        process_video(tmp_path / name, IMAGES, SETTINGS)


def test_a_stream_without_a_codec(tmp_path):
    """A damaged header names one that FFmpeg does not know."""
    whole = write_film(tmp_path / "film.mkv", [0, 50, 100] * 4).read_bytes()
    (tmp_path / "x.mkv").write_bytes(whole.replace(b"V_MPEG4/ISO/ASP", b"V_MPEG4/ISO/XXX"))
    with av.open(str(tmp_path / "x.mkv")) as container:
        assert container.streams.video[0].codec_context is None
    with pytest.raises(ValueError, match=r"x\.mkv'\) has no video stream"):
        process_video(tmp_path / "x.mkv", IMAGES, SETTINGS)


def fast_start(folder: Path) -> bytes:
    """A film of noise whose header comes first; every fifth frame can be decoded alone."""
    options = {"movflags": "faststart"}
    film = [noise_page(96, 64, i) for i in range(60)]
    return write_film(folder / "fast.mp4", film, options={"g": "5"}, container_options=options).read_bytes()


def test_a_file_cut_short(tmp_path, preprocessor):
    whole, cut = fast_start(tmp_path), tmp_path / "cut.mp4"
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"item 4 .*truncated: its header promises 60 frames, \d+ are there.*ffmpeg"):
        preprocessor.tokenize({"video": cut}, name="item 4")
    film = write_film(tmp_path / "film.mkv", list(range(0, 200, 5)))
    film.write_bytes(film.read_bytes()[: film.stat().st_size * 3 // 4])  # no promise: read as far as it goes
    assert 1.5 < process_video(film, IMAGES, SETTINGS, fps=10).seconds[-1] < 3.8


def test_damage_matters_only_to_the_frames_that_are_taken(tmp_path, preprocessor):
    whole = bytearray(fast_start(tmp_path))
    whole[len(whole) // 2 : len(whole) // 2 + 4000] = bytes(4000)
    (tmp_path / "hole.mp4").write_bytes(whole)
    assert (
        len(preprocessor.tokenize({"video": tmp_path / "hole.mp4", "max_frames": 2}).grids) == 1
    )  # the first and the last
    with pytest.raises(ValueError, match="item 4 .*cannot be decoded.*truncated or damaged; write or download"):
        preprocessor.tokenize({"video": tmp_path / "hole.mp4", "fps": 10}, name="item 4")


@pytest.mark.parametrize(
    ("video", "message"),
    [
        ([grey(0), grey(0, (512, 512))], "frame 1 of the video has another size than the first .*: resize all to one"),
        ([grey(0), Path("gone.png")], "frame 1 of the video: no image file 'gone.png'"),
        ([Image.new("RGB", (4, 1000))], "frame 0 of the video: the image is 4 x 1000 pixels, an aspect ratio over 200"),
        ([np.zeros((4, 4, 3))], "frame 0 of the video: the image array has dtype float64"),
    ],
)
def test_bad_frames(preprocessor, video, message):
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=f"item 4: {message}"):
        preprocessor.tokenize({"video": video}, name="item 4")


def test_bad_sampling():
    with pytest.raises(ValueError, match="clip: fps is -1, expected a positive number"):
        process_video([grey(0)], IMAGES, SETTINGS, fps=-1, name="clip")
    with pytest.raises(ValueError, match="clip: max_frames is 1"):
        process_video([grey(0)], IMAGES, SETTINGS, max_frames=1, name="clip")
    for wrong in ({"min_pixels": 0}, {"min_pixels": 10, "max_pixels": 5}, {"total_pixels": 0}):
        with pytest.raises(ValueError, match="pixel bounds of a video's frame"):
            VideoSettings(**wrong)


def test_frames_larger_than_pillow_s_limit(tmp_path, monkeypatch):
    film = write_film(tmp_path / "film.mp4", [10] * 4)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5000)
    with pytest.raises(ValueError, match=r"frames of 96 x 64 pixels exceed the limit of 5000.*MAX_IMAGE_PIXELS"):
        process_video(film, IMAGES, SETTINGS)


def test_without_pyav(preprocessor, monkeypatch):
    real = builtins.__import__

    def no_av(module, *args, **kwargs):
        if module == "av":
            raise ImportError("No module named 'av'")
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_av)
    with pytest.raises(ImportError, match=r'item 4: .*pip install "smart_jax\[video\]", or pass the frames'):
        preprocessor.tokenize({"video": clip("bikes")}, name="item 4")
    assert len(preprocessor.tokenize({"video": [grey(0)] * 4}).grids) == 2


NO_AV = "import sys; import smart_jax; smart_jax.load; import smart_jax.inputs.multimodal; print('av' in sys.modules)"


@pytest.mark.compiles
def test_pyav_is_imported_for_files_only():
    done = subprocess.run([sys.executable, "-c", NO_AV], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_model_without_video(tmp_path):
    folder = write_processor(tmp_path)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|vision_start|><|video_pad|><|vision_end|>", ""))
    model = MultimodalPreprocessor.from_pretrained(folder, CONFIG)
    with pytest.raises(ValueError, match=r"item 4.*does not write the video token.*no video support; pass some frames"):
        model.tokenize({"video": [grey(0)] * 2, "text": "a"}, name="item 4")
    assert len(model.tokenize({"images": [grey(0)] * 2}).grids) == 2
    other = MultimodalPreprocessor.from_pretrained(folder, CONFIG, video="none")
    with pytest.raises(ValueError, match=r"item 4 has a video, which this model \(.*\) does not take: pass"):
        other.tokenize({"video": [grey(0)] * 2}, name="item 4")


def test_a_template_without_marks_gets_the_same_tokens(tmp_path, preprocessor):
    folder = write_processor(tmp_path)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|vision_start|><|video_pad|><|vision_end|>", "<|video_pad|>"))
    item = {"video": [grey(0)] * 3, "text": "a"}
    assert (
        MultimodalPreprocessor.from_pretrained(folder, CONFIG).tokenize(item).input_ids.tolist()
        == preprocessor.tokenize(item).input_ids.tolist()
    )


def test_videos_that_do_not_fit(tmp_path):
    small = MultimodalPreprocessor.from_pretrained(write_processor(tmp_path), CONFIG, max_length=200)
    with pytest.raises(ValueError, match=r"item 4: \d+ of 256 visual tokens do not fit in max_length 200: pass fewer"):
        small.tokenize({"video": [noise_page(512, 256)] * 4}, name="item 4")


# --- families


def starts(positions: np.ndarray, grid: tuple[int, int, int]) -> list[int]:
    """Temporal position of each temporal patch, from the first."""
    t, h, w = grid
    times = positions[0].reshape(t, h * w // 4)
    assert (times == times[:, :1]).all()
    return (times[:, 0] - times[0, 0]).tolist()


def test_every_family_takes_what_there_is_and_refuses_the_rest(family, tmp_path):
    name, preprocessor = family

    def times_of(item: dict) -> list:
        row = preprocessor.tokenize(item)
        if name == "qwen3_vl":
            text = preprocessor.tokenizer.decode(row.input_ids)
            return [float(t) for t in re.findall(r"<([\d.]+) seconds>", text)]
        at = row.input_ids == VIDEO
        (grid,) = row.grids
        return starts(preprocessor.collate([row]).position_ids[:, 0, : len(at)][:, at], grid)

    def expected(timed: list, steps: list) -> list:
        """Times with Qwen3-VL; else positions, by patches or by seconds."""
        return {"qwen3_vl": timed, "qwen2_vl": list(range(len(steps))), "qwen2_5_vl": steps}[name]

    one = write_film(tmp_path / "one.mp4", [100])
    assert times_of({"video": one}) == expected([0.0], [0])
    times = [*range(0, 1000, 50), *range(1000, 9001, 1000)]  # 20 frames in the first second, then one a second
    film = write_film(tmp_path / "film.mkv", list(range(20, 20 + 5 * len(times), 5)), times=times, rate=20)
    # 4 of 29 frames at 28 in 9 seconds: 4.66 seconds a patch, two positions a second
    assert times_of({"video": film, "fps": 0.5}) == expected([1.5, 7.5], [0, 9])
    assert times_of({"video": [grey(9)] * 5}) == expected([0.2, 1.2, 2.2], [0, 2, 4])
    # 6 of 9 frames at 10 per second: 0.3 seconds a patch, cut patch by patch
    listed = {"video": [grey(9)] * 9, "fps": 10, "max_frames": 6}
    assert times_of(listed) == expected([0.1, 0.3, 0.7], [0, 0, 1])
    for kind, message in BAD_FILES.items():
        (tmp_path / kind).mkdir()
        with pytest.raises(ValueError, match=f"item 4.*{message}"):
            preprocessor.tokenize({"video": bad_file(tmp_path / kind, kind), "text": "a"}, name="item 4")
    cut, whole = tmp_path / "cut.mp4", fast_start(tmp_path)
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="item 4 .*truncated: its header promises 60 frames"):
        preprocessor.tokenize({"video": cut}, name="item 4")


def test_two_videos_and_an_image_in_one_row(family):
    name, preprocessor = family
    item = {"videos": [[grey(10)] * 6, [noise_page(64, 64)] * 2], "image": grey(200), "text": "all"}
    row = preprocessor.tokenize(item)
    visual = np.isin(row.input_ids, [IMAGE, VIDEO])
    marks = np.sum(row.input_ids == CONFIG.vision_start_token_id)
    assert [t for t, _, _ in row.grids] == ([1] * 5 if name == "qwen3_vl" else [3, 1, 1])
    assert marks == len(row.grids) == len(row.steps) and row.keep[visual].all()
    assert 4 * visual.sum() == len(row.patches) == sum(t * h * w for t, h, w in row.grids)
    batch = preprocessor.collate([row])
    assert batch.vision.segment.max() == 5  # whatever the family, attention ends with a temporal patch
    texts = batch.position_ids[:, 0, : len(visual)][:, ~visual]
    assert (texts[0] == texts[1]).all() and (texts[0] == texts[2]).all() and (np.diff(texts[0]) > 0).all()


def test_text_goes_on_after_the_time_of_a_long_video():
    ids = np.array([7, *[6] * 8, 7, *[5] * 4, 7])
    given = {"image_token_id": 5, "video_token_id": 6, "merge": 1}
    grids = [(4, 1, 2), (1, 2, 2)]
    counted = mrope_positions(ids, grids, **given)
    assert counted[0].tolist() == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 6, 6, 6, 6, 8]
    assert counted[2].tolist() == [0, 1, 2, 1, 2, 1, 2, 1, 2, 5, 6, 7, 6, 7, 8]
    timed = mrope_positions(ids, grids, **given, steps=(1.7, 1.0))
    assert timed[0].tolist() == [0, 1, 1, 2, 2, 4, 4, 6, 6, 7, 8, 8, 8, 8, 10]  # 0, 1.7, 3.4, 5.1
    with pytest.raises(ValueError):
        mrope_positions(ids, grids, **given, steps=(1.0,))


# --- rows and batches


def test_order_and_kept_tokens(preprocessor):
    videos = [[grey(10)] * 4, [grey(90)] * 2]
    item = {"videos": videos, "images": [grey(200), noise_page(64, 64)], "text": "both"}
    row = preprocessor.tokenize(item)
    visual = row.input_ids[np.isin(row.input_ids, [IMAGE, VIDEO])]
    kinds = [int(visual[0]), *visual[1:][np.diff(visual) != 0].tolist()]
    assert kinds == [VIDEO, IMAGE] and row.keep[np.isin(row.input_ids, [IMAGE, VIDEO])].all()
    assert [g[0] for g in row.grids] == [1] * 5 and len(row.patches) == 4 * len(visual)
    pieces = [process_video(v, IMAGES, SETTINGS).patches for v in videos]
    pieces += [np.tile(process_image(i, IMAGES)[0], 2) for i in item["images"]]
    assert np.array_equal(row.patches, np.concatenate(pieces))
    text = preprocessor.tokenizer.decode(row.input_ids)
    assert text.count("<0.2 seconds><|vision_start|>") == 2 and text.count("<1.2 seconds><|vision_start|>") == 1
    vision = preprocessor.collate([row]).vision
    assert vision.segment.max() == 5
    assert [int(np.sum(vision.segment == s)) for s in range(1, 6)] == [h * w for _, h, w in row.grids]


def test_settings_of_a_checkpoint(tmp_path):
    folder = write_processor(tmp_path)
    (folder / "smart_jax.json").write_text('{"fps": 2, "max_frames": 6, "video_max_pixels": 140000}')
    few = MultimodalPreprocessor.from_pretrained(folder, CONFIG)
    row = few.tokenize({"video": clip("bikes")})
    assert len(row.grids) == 3 and row.grids[0][1] * row.grids[0][2] * 256 <= 140_000
    assert len(few.tokenize({"video": clip("bikes"), "max_frames": 10}).grids) == 5
    for wrong in ({"fps": 0}, {"max_frames": 1}, {"video_min_pixels": 0}, {"video_max_pixels": 1}):
        with pytest.raises(
            ValueError, match=r"Preprocessor: .*(fps is 0|max_frames is 1|video_min_pixels is 0|bounds)"
        ):
            MultimodalPreprocessor.from_pretrained(write_processor(tmp_path / "plain"), CONFIG, **wrong)


@pytest.mark.compiles
def test_encode_videos_with_images_and_texts(tmp_path):
    """A video has the same vectors in whichever batch; its frames in another order have others."""
    sizes = {"video_min_pixels": 4096, "video_max_pixels": 8192, "max_pixels": 8192}
    (write_checkpoint(tmp_path) / "smart_jax.json").write_text(json.dumps(sizes))
    model = smart_jax.load(tmp_path)
    items = [
        {"video": clip("carphone_pristine"), "text": "a man"},
        "only text",
        {"video": drawn(3, 96, 64), "image": noise_page(64, 64), "instruction": "Find the film"},
        noise_page(96, 64),
    ]
    together = model.encode_document(items)
    fewer = model.encode_document([items[2], items[0]])
    for i, j in ((0, 2), (1, 0)):
        np.testing.assert_allclose(fewer[i].pooled, together[j].pooled, atol=2e-5)
        np.testing.assert_allclose(fewer[i].tokens, together[j].tokens, atol=2e-5)
    other = model.encode_document([{**items[2], "video": drawn(3, 96, 64)[::-1]}, items[0]])
    assert np.abs(other[0].pooled - together[2].pooled).max() > 1e-3
