"""Tests of what counts as an item, and of the messages of what does not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smart_jax.inputs.item import Item, parse_item, parse_items

PAGE = Image.new("RGB", (40, 40))
ARRAY = np.zeros((40, 40, 3), np.uint8)


@pytest.fixture
def page(tmp_path) -> Path:
    PAGE.save(tmp_path / "Page 2.PNG")
    return tmp_path / "Page 2.PNG"


def test_a_str_is_a_text_unless_it_names_an_image_that_exists(page, monkeypatch):
    assert parse_item("revenue in 2023") == Item(texts=("revenue in 2023",))
    assert parse_item(str(page)) == Item(images=(str(page),))
    monkeypatch.chdir(page.parent)
    assert parse_item("Page 2.PNG") == Item(images=("Page 2.PNG",))
    assert parse_item("what does Page 3.png show").texts  # words: a text, though it ends in a suffix
    assert parse_item("report.pdf").texts
    with pytest.raises(FileNotFoundError, match=r"item 4: no image file 'page3.png'.*\{'text': ...\}"):
        parse_item("page3.png", name="item 4")
    assert parse_item({"text": "page3.png"}) == Item(texts=("page3.png",))


def test_paths_images_arrays_bytes(page):
    assert parse_item(page) == Item(images=(page,))
    assert parse_item(PAGE).images == (PAGE,)
    assert parse_item(ARRAY).images[0] is ARRAY
    assert parse_item(page.read_bytes()).images == (page.read_bytes(),)


def test_dicts(page):
    both = parse_item({"text": "a", "image": page, "instruction": "Find it"})
    assert both == Item(("a",), (page,), "Find it")
    assert parse_item({"text": ["a", "b"], "images": [PAGE, str(page)]}) == Item(("a", "b"), (PAGE, page))
    assert parse_item({"text": None, "image": [PAGE, PAGE], "video": None}) == Item((), (PAGE, PAGE))
    assert parse_item({"text": "", "image": ARRAY}).texts == ()


@pytest.mark.parametrize("item", ["", "  \n", {"text": ""}, {"text": [" "]}, {"text": None}, {"images": []}, {}])
def test_empty_items_are_refused_with_the_way_out(item):
    with pytest.raises(ValueError, match=r"item 4 .*(empty text|neither text nor image).*'NULL'"):
        parse_item(item, name="item 4")
    with pytest.raises(ValueError, match="item 1 "):
        parse_items(["a", item])


def test_videos(page):
    film = np.zeros((3, 40, 40, 3), np.uint8)
    item = parse_item({"video": film, "text": "a", "image": PAGE, "fps": 2, "max_frames": 8})
    assert item.videos[0] is film and (item.texts, item.images, item.fps, item.max_frames) == (("a",), (PAGE,), 2, 8)
    assert parse_item({"video": [PAGE, page]}).videos == ([PAGE, page],)
    assert parse_item({"video": str(page)}).videos == (page,)  # what is in a file shows when it is decoded
    assert parse_item({"videos": [page, [PAGE]]}).videos == (page, [PAGE])
    assert parse_item({"video": None, "videos": None, "text": "a"}) == Item(("a",))


FILM = {"video": np.zeros((3, 40, 40, 3), np.uint8)}


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        ({"video": "gone.mp4"}, FileNotFoundError, "item 4: no video file 'gone.mp4'"),
        ({"video": "https://example.org/a.mp4"}, ValueError, "item 4: .*is a URL.*download"),
        ({"video": "/"}, ValueError, "item 4: '/' is not a file: pass the path of a video, or its frames"),
        ({"video": 3}, TypeError, r"item 4: the video is a int, expected a path, a list of frames or an array \[T"),
        ({"video": []}, ValueError, "item 4: the video is a list of 0 frames"),
        ({"video": [PAGE, None]}, TypeError, "item 4: a frame of the video is a NoneType"),
        ({"video": [[PAGE], [PAGE]]}, TypeError, r"a frame of the video is a list.*several videos pass \{'videos'"),
        ({"video": np.zeros((3, 4, 4, 3))}, TypeError, "item 4: the video array has dtype float64, expected uint8"),
        ({"video": ARRAY}, ValueError, r"item 4: the video array has shape \(40, 40, 3\), expected \[T, H, W, 3\]"),
        ({"video": np.zeros((0, 4, 4, 3), np.uint8)}, ValueError, r"shape \(0, 4, 4, 3\).*at least one frame"),
        ({"video": np.zeros((3, 3, 4, 4), np.uint8)}, ValueError, r"shape \(3, 3, 4, 4\), expected \[T, H, W, 3\]"),
        ({"videos": FILM["video"]}, TypeError, "item 4: videos is a ndarray, expected a list.*'video'"),
        ({**FILM, "videos": [ARRAY]}, ValueError, "item 4 has both 'video' and 'videos'"),
        ({**FILM, "fps": 0}, ValueError, "item 4: fps is 0, expected a positive number"),
        ({**FILM, "fps": float("nan")}, ValueError, "item 4: fps is nan"),
        ({**FILM, "fps": "1"}, ValueError, "item 4: fps is '1'"),
        ({**FILM, "max_frames": 1}, ValueError, "item 4: max_frames is 1, expected an integer of at least 2"),
        ({**FILM, "max_frames": 2.0}, ValueError, "item 4: max_frames is 2.0"),
        ({"text": "a", "fps": 1}, ValueError, "item 4 has fps or max_frames but no video"),
    ],
)
def test_bad_videos_name_item_and_remedy(item, error, message):
    with pytest.raises(error, match=message):
        parse_item(item, name="item 4")


@pytest.mark.parametrize(
    ("item", "error", "message"),
    [
        (None, TypeError, "item 4 is a NoneType, expected a text"),
        (3.5, TypeError, "item 4 is a float"),
        ([PAGE, PAGE], TypeError, r"item 4 is a list.*\{'images': \[...\]\}"),
        ({"text": "a", "img": PAGE}, ValueError, r"item 4 has unknown keys \['img'\]: known are text, image"),
        ({"image": PAGE, "images": [PAGE]}, ValueError, "item 4 has both 'image' and 'images'"),
        ({"text": 3}, TypeError, "item 4: the text is a int"),
        ({"image": 3}, TypeError, "item 4: the image is a int"),
        ({"images": [PAGE, None]}, TypeError, "item 4: the image is a NoneType"),
        ({"text": "a", "instruction": 3}, TypeError, "item 4: the instruction is a int"),
        ({"image": "gone.png"}, FileNotFoundError, "item 4: no image file 'gone.png'"),
        (Path("gone"), FileNotFoundError, "item 4: no image file 'gone'"),
        ("https://example.org/a.png", ValueError, "item 4: .*is a URL.*give the path of a file"),
        ({"image": "https://example.org/a"}, ValueError, "item 4: .*is a URL.*download"),
        ("a\ud800", ValueError, "item 4: the text has a lone surrogate at character 1"),
    ],
)
def test_bad_items_name_item_and_remedy(item, error, message):
    with pytest.raises(error, match=message):
        parse_item(item, name="item 4")


def test_parse_items_parses_sequences_of_any_kind():
    items = [Item(texts=("a",)), Item(texts=("b",))]
    assert list(parse_items(["a", {"text": "b"}])) == items
    assert list(parse_items(iter(["a", "b"]))) == items
    assert list(parse_items(np.array(["a", "b"]))) == items
    assert parse_items(items)[0] is items[0]
    assert len(parse_items(np.zeros((2, 40, 40, 3), np.uint8))) == 2


@pytest.mark.parametrize("items", [[], (), iter([]), np.zeros((0, 4, 4, 3), np.uint8)])
def test_no_items(items):
    with pytest.raises(ValueError, match="items is empty: pass at least one"):
        parse_items(items)


@pytest.mark.parametrize("single", ["a", b"a", {"text": "a"}, PAGE, ARRAY])
def test_a_single_item_is_a_list_of_one(single):
    (item,) = parse_items(single)
    assert item == parse_item(single)


def test_neither_an_item_nor_a_list():
    with pytest.raises(TypeError, match="items is a int, expected a text, an image or a dict, or a list of such"):
        parse_items(3)


class OnDisk(Sequence):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        raise AssertionError("read ahead")


def test_a_lazy_sequence_is_not_read_ahead():
    corpus = OnDisk()
    items = parse_items(corpus)
    assert len(items) == 3
    with pytest.raises(AssertionError, match="read ahead"):
        items[1]


class Corpus(OnDisk):
    def __getitem__(self, i):
        return ["a", "b", ""][i]


def test_a_lazy_sequence_is_parsed_where_it_is_read():
    items = parse_items(Corpus())
    assert items[0] == Item(texts=("a",)) and items[:2] == [Item(texts=("a",)), Item(texts=("b",))]
    with pytest.raises(ValueError, match="item 2 is an empty text"):
        items[2]
