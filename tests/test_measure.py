"""Tests of what is known of an item before its pixels are decoded: exactly what tokenising gives."""

from __future__ import annotations

import dataclasses
import io
import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from smart_jax.inputs import MultimodalPreprocessor, Preprocessor, TextPreprocessor, image
from smart_jax.models import load_config
from tests import small_bert
from tests.checkpoints import noise_page, write_processor
from tests.test_video import CONFIG, grey, preprocessor_of, write_film

# Small bounds, so that images are enlarged, shrunk and left; GME sizes twice and reads a video as its middle frame.
BOUNDS = {"min_pixels": 64**2, "max_pixels": 128**2, "max_length": 400}
FAMILIES = ("qwen3_vl", "qwen2_5_vl", "gme")


@pytest.fixture(scope="module")
def families(tmp_path_factory):
    made = {name: preprocessor_of(name, tmp_path_factory.mktemp(name), **BOUNDS) for name in FAMILIES[:2]}
    folder = write_processor(tmp_path_factory.mktemp("gme"))
    return made | {"gme": MultimodalPreprocessor.from_pretrained(folder, CONFIG, head="gme", **BOUNDS)}


def as_given(picture: Image.Image, kind: str):
    if kind in ("PNG", "JPEG"):
        picture.save(data := io.BytesIO(), kind)
        return data.getvalue()
    return np.asarray(picture) if kind == "array" else picture


def found(function, item, **options):
    """Returns what a function gives, or the message of its error."""
    try:
        return function(item, **options)
    except ValueError as error:
        return str(error)


def check(preprocessor: Preprocessor, item, **options) -> None:
    whole, outline = found(preprocessor.tokenize, item, **options), found(preprocessor.outline, item, **options)
    measured = found(preprocessor.measure, item, **options)
    if isinstance(whole, str):
        assert outline == measured == whole
        return
    assert measured == (len(whole), len(whole.patches))
    assert len(outline.patches) == 0
    for field in dataclasses.fields(whole):
        if field.name != "patches":
            np.testing.assert_equal(getattr(outline, field.name), getattr(whole, field.name))


SIDES = st.integers(1, 300)


@settings(max_examples=100)
@given(
    name=st.sampled_from(FAMILIES),
    pictures=st.lists(st.tuples(SIDES, SIDES, st.sampled_from(["PNG", "JPEG", "array", "image"])), max_size=3),
    text=st.sampled_from(["", "a page", "long " * 90]),
    film=st.none() | st.tuples(SIDES, SIDES, st.integers(1, 7), st.booleans()),
    sampling=st.fixed_dictionaries({}, optional={"fps": st.sampled_from([0.5, 3]), "max_frames": st.integers(2, 5)}),
    query=st.booleans(),
)
def test_measuring_gives_what_tokenising_gives(families, name, pictures, text, film, sampling, query):
    item = {"text": text, "images": [as_given(Image.new("RGB", (w, h)), kind) for w, h, kind in pictures]}
    if film is not None:
        width, height, frames, listed = film
        video = np.zeros((frames, height, width, 3), np.uint8)
        item |= {"video": list(video) if listed else video} | sampling
    if not text and not pictures and film is None:
        item["text"] = "a"
    check(families[name], item, query=query)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_video_file_is_measured_by_its_index(families, name, tmp_path):
    film = write_film(tmp_path / "film.mp4", [10 * i for i in range(23)])
    for sampling in ({}, {"fps": 4}, {"max_frames": 2}):
        check(families[name], {"text": "what happens?", "video": film, **sampling})
    check(families[name], {"images": [grey(0)], "videos": [film, [grey(1)]]})
    film.write_bytes(film.read_bytes()[:600])
    with pytest.raises(ValueError, match="item 7 .*film.mp4"):
        families[name].measure({"video": film}, name="item 7")


def test_a_text_has_no_pixels_to_leave_out(tmp_path):
    folder = small_bert.write_plain(tmp_path)
    preprocessor = TextPreprocessor.from_pretrained(folder, load_config(folder, pooling="mean"))
    check(preprocessor, "revenue by region")
    check(preprocessor, noise_page(8, 8))


def test_nothing_is_decoded(families, tmp_path):
    whole = as_given(noise_page(200, 100), "PNG")
    cut = whole[: len(whole) // 2]  # whose header is whole
    measured = families["qwen3_vl"].measure({"image": cut})
    assert measured == families["qwen3_vl"].measure({"image": whole})
    with pytest.raises(ValueError, match="item 3 .*truncated"):
        families["qwen3_vl"].tokenize({"image": cut}, name="item 3")


def test_threads_may_share_an_image_that_is_not_read_yet(tmp_path):
    noise_page(700, 700, 3).save(tmp_path / "page.png")
    expected = np.asarray(Image.open(tmp_path / "page.png"))
    for _ in range(5):
        shared, read = Image.open(tmp_path / "page.png"), []
        barrier = threading.Barrier(4)

        def work(shared=shared, read=read, barrier=barrier):
            barrier.wait()
            read.append(image.open_rgb(shared))

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(read) == 4 and all(np.array_equal(each, expected) for each in read)
