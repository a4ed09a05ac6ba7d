"""What counts as an item, and the messages of what does not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from smart_jax.items import Item, check_items, parse_item

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
        check_items(["a", item])


@pytest.mark.parametrize("key", ["video", "videos"])
def test_video_is_refused(key):
    with pytest.raises(ValueError, match="item 4: video input is not supported yet; pass frames as images"):
        parse_item({key: "film.mp4", "text": "a"}, name="item 4")


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


def test_check_items_returns_sequences_of_any_kind():
    assert check_items(["a", {"text": "b"}]) == ["a", {"text": "b"}]
    assert check_items(iter(["a", "b"])) == ["a", "b"]
    assert check_items(np.array(["a", "b"])) == ["a", "b"]
    assert len(check_items(np.zeros((2, 40, 40, 3), np.uint8))) == 2


@pytest.mark.parametrize("items", [[], (), iter([]), np.zeros((0, 4, 4, 3), np.uint8)])
def test_no_items(items):
    with pytest.raises(ValueError, match="items is empty: pass at least one"):
        check_items(items)


@pytest.mark.parametrize("single", ["a", b"a", Path("a.png"), {"text": "a"}, PAGE, ARRAY])
def test_a_single_item_is_not_a_list(single):
    with pytest.raises(TypeError, match="pass a list, even for one item"):
        check_items(single)
    with pytest.raises(TypeError, match="items is a int, expected a list"):
        check_items(3)


class OnDisk(Sequence):
    def __len__(self):
        return 3

    def __getitem__(self, i):
        raise AssertionError("read ahead")


def test_a_lazy_sequence_is_not_read_ahead():
    corpus = OnDisk()
    assert check_items(corpus) is corpus
