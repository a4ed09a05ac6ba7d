"""Image arithmetic against transformers' PIL image processor (bit for bit) and against hand-computed values."""

from __future__ import annotations

import io
import json
import random
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as their_smart_resize

import smart_jax
from smart_jax.inputs import image as image_module
from smart_jax.inputs.image import (
    ImageSettings,
    open_rgb,
    patchify,
    process_image,
    read_image_settings,
    smart_resize,
)
from smart_jax.models.pixels import normalised
from tests.pixels import CONSTANTS

MODES = ("L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "1", "YCbCr", "PA")
SIZES = ((64, 64), (37, 53), (333, 71), (5, 640), (129, 97))  # width, height
BOUNDS = {"min_pixels": 4096, "max_pixels": 1_843_200}
_normalised = jax.jit(normalised, static_argnames=("how", "size", "frames", "dtype"))


def values(patches: np.ndarray, config: ImageSettings) -> np.ndarray:
    """The float32 values [V, values] that a backbone makes of the patches."""
    sizes = {"size": config.patch_size, "frames": config.temporal_patch_size}
    return np.asarray(_normalised(patches[None], config.normalisation, **sizes, dtype=jnp.float32))[0]


def make_image(mode: str, size: tuple[int, int], seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    width, height = size
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 1 << 16, (height, width), dtype=np.uint16))
    if mode == "1":
        return Image.fromarray(rng.integers(0, 2, (height, width), dtype=np.uint8) * 255).convert("1")
    rgba = Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8), "RGBA")
    if mode in ("RGBA", "LA"):
        return rgba.convert(mode)
    if mode == "PA":
        return rgba.convert("RGB").quantize(32).convert("PA")
    return rgba.convert("RGB").quantize(64) if mode == "P" else rgba.convert("RGB").convert(mode)


def on_white(image: Image.Image) -> Image.Image:
    """Alpha over white in Pillow's 8-bit arithmetic, written out in NumPy."""
    rgba = np.asarray(image).astype(np.int64)
    blended = rgba[..., :3] * rgba[..., 3:] + 255 * (255 - rgba[..., 3:]) + 128
    return Image.fromarray(((blended + (blended >> 8)) >> 8).astype(np.uint8))


def reference(image: Image.Image, config: ImageSettings) -> tuple[np.ndarray, np.ndarray]:
    """Convert, resize with Pillow's default filter, then transformers' processor without its own resize."""
    rgb = on_white(image) if image.mode == "RGBA" else image.convert("RGB")
    height, width = smart_resize(rgb.height, rgb.width, factor=config.factor, **BOUNDS)
    processor = Qwen2VLImageProcessorPil(
        patch_size=config.patch_size,
        temporal_patch_size=config.temporal_patch_size,
        merge_size=config.merge_size,
        image_mean=list(config.image_mean),
        image_std=list(config.image_std),
    )
    found = processor(images=[rgb.resize((width, height))], do_resize=False, return_tensors="np")
    return found["pixel_values"], found["image_grid_thw"][0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
def test_values_equal_transformers_bit_for_bit(mode, size):
    image = make_image(mode, size)
    assert image.mode == mode
    config = ImageSettings(**BOUNDS)
    patches, grid = process_image(image, config)
    theirs, their_grid = reference(image, config)
    assert patches.dtype == np.uint8
    assert grid == tuple(their_grid)
    assert np.array_equal(values(patches, config), theirs)


@pytest.mark.parametrize("name", CONSTANTS)
@pytest.mark.parametrize(("patch", "frames", "merge"), [(16, 2, 2), (14, 2, 2), (8, 1, 2), (4, 3, 1)])
def test_other_settings_equal_transformers_bit_for_bit(name, patch, frames, merge):
    mean, std = CONSTANTS[name].mean, CONSTANTS[name].std
    config = ImageSettings(patch, frames, merge, image_mean=mean, image_std=std, **BOUNDS)
    image = make_image("RGB", (211, 90))
    patches, grid = process_image(image, config)
    theirs, their_grid = reference(image, config)
    assert grid == tuple(their_grid)
    assert np.array_equal(values(patches, config), theirs)


def test_every_byte_value_and_its_place():
    """Patches against loops in float64: order of patches, order of values, and all 256 values per channel."""
    config = ImageSettings(patch_size=4, temporal_patch_size=2, merge_size=2, image_mean=(0.1, 0.4, 0.6))
    pixels = np.random.default_rng(1).permutation(np.repeat(np.arange(256), 6)).reshape(16, 32, 3).astype(np.uint8)
    ours = values(patchify(pixels, config), config).reshape(-1, 3, 2, 4, 4)
    mean = np.array(config.image_mean)
    number = 0
    for block_row in range(2):
        for block_col in range(4):
            for row in range(2):
                for col in range(2):
                    top, left = (block_row * 2 + row) * 4, (block_col * 2 + col) * 4
                    expected = (pixels[top : top + 4, left : left + 4] / 255 - mean) / 0.5
                    for frame in range(2):
                        np.testing.assert_allclose(ours[number, :, frame], expected.transpose(2, 0, 1), atol=3e-7)
                    number += 1
    assert number == len(ours)


@given(
    st.integers(16, 4000),
    st.integers(16, 4000),
    st.sampled_from([28, 32]),
    st.sampled_from([(4096, 1_843_200), (65536, 300_000)]),
)
def test_smart_resize_agrees_with_transformers(height, width, factor, bounds):
    if round(min(height, width) / factor) == 0 or max(height, width) / min(height, width) > 200:
        return  # transformers rounds such a side to 0 first, qwen-vl-utils to one factor
    theirs = their_smart_resize(height, width, factor, *bounds)
    assert smart_resize(height, width, factor=factor, min_pixels=bounds[0], max_pixels=bounds[1]) == theirs


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((64, 64), (64, 64)),
        ((1, 1), (64, 64)),  # 1 x 1 scaled by 64 to the floor of 4,096 pixels
        ((48, 80), (64, 64)),  # 1.5 and 2.5 blocks round half to even: 2 and 2
        ((10, 2000), (32, 1984)),  # a thin side is one block, not 0; 62.5 blocks are 62
        ((1754, 1240), (1600, 1120)),  # A4 at 150 dpi: 2.17 million pixels scaled by 0.9206, rounded down
        ((3000, 3000), (1344, 1344)),
        ((20, 4000), (32, 4000)),
    ],
)
def test_smart_resize_by_hand(size, expected):
    assert smart_resize(*size, factor=32, **BOUNDS) == expected


@given(st.integers(1, 6000), st.integers(1, 6000), st.sampled_from([1024, 4096, 65536, 1_843_200]))
def test_resize_keeps_the_ceiling(height, width, max_pixels):
    if max(height, width) / min(height, width) > 200:
        return
    config = ImageSettings(min_pixels=1024, max_pixels=max_pixels)
    rows, cols = smart_resize(height, width, factor=32, min_pixels=1024, max_pixels=max_pixels)
    assert rows % 32 == cols % 32 == 0
    assert 1024 <= rows * cols <= max_pixels
    assert rows * cols // 256 <= config.max_patches


def test_ceiling_is_1800_visual_tokens():
    assert ImageSettings().max_patches == 4 * 1800


def test_exif_orientation_is_ignored_as_in_the_reference(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to show
    Image.new("RGB", (192, 64)).save(tmp_path / "turned.jpg", exif=exif)
    assert process_image(tmp_path / "turned.jpg", ImageSettings())[1] == (1, 4, 12)


def test_path_bytes_image_and_array_are_the_same(tmp_path):
    image = make_image("RGB", (70, 50))
    image.save(tmp_path / "a.png")
    path = tmp_path / "a.png"
    expected, grid = process_image(image, ImageSettings())
    assert grid == (1, 4, 4)
    for source in (path, str(path), path.read_bytes(), np.asarray(image)):
        assert np.array_equal(process_image(source, ImageSettings())[0], expected)


@pytest.mark.parametrize(("shape", "mode"), [((40, 50), "L"), ((40, 50, 3), "RGB"), ((40, 50, 4), "RGBA")])
def test_array_layouts(shape, mode):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    expected = open_rgb(Image.fromarray(array))
    assert Image.fromarray(array).mode == mode
    assert np.array_equal(np.asarray(open_rgb(array)), np.asarray(expected))
    swapped = np.ascontiguousarray(np.swapaxes(array, 0, 1)).swapaxes(0, 1)  # same values, other strides
    assert np.array_equal(np.asarray(open_rgb(swapped)), np.asarray(expected))


def test_transparent_pixels_are_white():
    clear = np.zeros((2, 2, 4), np.uint8)
    assert (np.asarray(open_rgb(clear)) == 255).all()


# ---- the fast resize


def text_page(width: int, height: int) -> Image.Image:
    """Lines of letters around a picture of soft colours."""
    rng, image = np.random.default_rng(3), Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    for top in range(40, height - 40, 22):
        pen.text(
            (40, top), "".join(chr(97 + c) if c < 26 else " " for c in rng.integers(0, 32, width // 8)), fill="navy"
        )
    colours = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((width // 2, height // 4))
    image.paste(colours, (width // 4, height // 2))
    return image


def jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


@pytest.mark.parametrize("area", [1.6, 0.9, 0.55, 0.35, 0.15])
def test_the_fast_resize_is_near(area):
    """A byte of a page of text differs by less than 3 on average, and one in a hundred by more than 32."""
    page, least, most = text_page(620, 877), round(min(area, 1) * 4096), round(area * 620 * 877)
    if area > 1:
        least, most = most, 2 * most
    exact, grid = process_image(page, ImageSettings(min_pixels=least, max_pixels=most))
    fast, same = process_image(page, ImageSettings(min_pixels=least, max_pixels=most, resize="fast"))
    assert grid == same and fast.dtype == np.uint8 and fast.shape == exact.shape
    difference = np.abs(fast.astype(int) - exact)
    assert 0 < difference.mean() < 3
    assert (difference > 32).mean() < 0.01


def test_the_fast_resize_decodes_a_large_jpeg_at_a_half(monkeypatch):
    """A photo three times as large as it is read; also where there is a resize before the last."""
    data, sizes = jpeg(text_page(1536, 1152)), []
    resize = image_module.fast_resize
    monkeypatch.setattr(
        image_module, "fast_resize", lambda pixels, size: (sizes.append(pixels.shape[:2]), resize(pixels, size))[1]
    )
    for first in (None, (4096, 10**6)):
        bounds = {"min_pixels": 4096, "max_pixels": 512 * 384, "first_pixels": first}
        exact, grid = process_image(data, ImageSettings(**bounds))
        fast, same = process_image(data, ImageSettings(**bounds, resize="fast"))
        assert grid == same == (1, 24, 32)
        assert np.abs(fast.astype(int) - exact).mean() < 12
    assert sizes == [(576, 768)] * 2


def test_the_fast_resize_leaves_alone_what_has_its_size():
    image = make_image("RGB", (96, 64))
    for source in (image, np.asarray(image), jpeg(image)):
        fast, exact = (process_image(source, ImageSettings(resize=resize))[0] for resize in ("fast", "exact"))
        assert np.array_equal(fast, exact)


@given(st.integers(1, 400), st.integers(1, 400))
def test_grids_of_the_fast_resize_are_those_of_the_exact_one(height, width):
    if max(height, width) / min(height, width) > 200:
        return
    pixels = np.zeros((height, width, 3), np.uint8)
    grids = [process_image(pixels, ImageSettings(max_pixels=32768, resize=resize))[1] for resize in ("exact", "fast")]
    assert grids[0] == grids[1]


def test_the_fast_resize_names_the_item_and_says_what_it_needs(monkeypatch):
    with pytest.raises(ValueError, match=r"item 7: .*aspect ratio over 200"):
        process_image(jpeg(Image.new("RGB", (3201, 16))), ImageSettings(resize="fast"), name="item 7")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r'resize="fast" needs OpenCV.*pip install "smart_jax\[fast\]"'):
        smart_jax.load("tiny", settings={"resize": "fast"})


# ---- bad input


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.uint16, bool])
def test_wrong_dtype_names_the_item_and_the_remedy(dtype):
    with pytest.raises(TypeError, match=r"item 7: .*dtype .*expected uint8.*astype"):
        process_image(np.zeros((40, 40, 3), dtype), ImageSettings(), name="item 7")


def test_nan_in_an_array_is_refused():
    with pytest.raises(TypeError, match=r"float32, expected uint8.*NaN"):
        process_image(np.full((40, 40, 3), np.nan, np.float32), ImageSettings())


@pytest.mark.parametrize("shape", [(3,), (40, 40, 1), (40, 40, 2), (3, 40, 40), (2, 40, 40, 3)])
def test_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"item 7: .*shape \(.*expected \[H, W\]"):
        process_image(np.zeros(shape, np.uint8), ImageSettings(), name="item 7")


@pytest.mark.parametrize("empty", [np.zeros((0, 5, 3), np.uint8), Image.new("RGB", (0, 5)), Image.new("RGBA", (5, 0))])
def test_no_pixels(empty):
    with pytest.raises(ValueError, match=r"item 7: .*no content"):
        process_image(empty, ImageSettings(), name="item 7")


def test_aspect_ratio_over_200():
    assert process_image(Image.new("RGB", (3200, 16)), ImageSettings())[1] == (1, 2, 200)
    with pytest.raises(ValueError, match=r"item 7: .*3201 x 16.*aspect ratio over 200: crop"):
        process_image(Image.new("RGB", (3201, 16)), ImageSettings(), name="item 7")


def encoded(image_format: str) -> bytes:
    buffer = io.BytesIO()
    make_image("RGB", (90, 80)).save(buffer, image_format)
    return buffer.getvalue()


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM"])
def test_truncated_image_names_file_and_remedy(image_format, tmp_path):
    path = tmp_path / "page.png"
    path.write_bytes(encoded(image_format)[:-1000])
    with pytest.raises(ValueError, match=r"item 7 \('.*page.png'\) .*(truncated|convert it)"):
        process_image(path, ImageSettings(), name="item 7")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "WEBP", "TIFF"])
def test_damaged_data_decodes_or_raises_value_error(image_format):
    good, rng, refused = encoded(image_format), random.Random(5), 0
    for _ in range(60):
        data = bytearray(good[: rng.randrange(1, len(good))] if rng.random() < 0.5 else good)
        for _ in range(rng.randrange(1, 20)):
            data[rng.randrange(min(len(data), 400))] = rng.randrange(256)
        try:
            open_rgb(bytes(data), name="item 7")
        except ValueError as error:
            refused += 1
            assert "item 7" in str(error)
    assert refused > 0


def test_zero_byte_and_foreign_files(tmp_path):
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match=r"item 7: .*empty.png' has 0 bytes"):
        process_image(tmp_path / "empty.png", ImageSettings(), name="item 7")
    with pytest.raises(ValueError, match=r"item 7: the image has 0 bytes"):
        process_image(b"", ImageSettings(), name="item 7")
    (tmp_path / "text.png").write_text("this is not an image")
    with pytest.raises(ValueError, match=r"item 7 \('.*text.png'\) is not an image that Pillow can read: convert"):
        process_image(tmp_path / "text.png", ImageSettings(), name="item 7")


def test_eps_is_not_opened(tmp_path):
    """Pillow would start Ghostscript for it."""
    data = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"
    assert Image.open(io.BytesIO(data)).format == "EPS"
    (tmp_path / "page.png").write_bytes(data)
    for image in (data, tmp_path / "page.png"):
        with pytest.raises(ValueError, match="is not an image"):
            open_rgb(image)


@pytest.mark.usefixtures("unchecked")
def test_missing_file_folder_and_url(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"item 7: no image file '.*gone.png'"):
        process_image(tmp_path / "gone.png", ImageSettings(), name="item 7")
    with pytest.raises(ValueError, match=r"item 7: .*is not a file"):
        process_image(tmp_path, ImageSettings(), name="item 7")
    with pytest.raises(ValueError, match=r"item 7: .*is a URL.*download"):
        process_image("https://example.org/a.png", ImageSettings(), name="item 7")
    with pytest.raises(TypeError, match=r"item 7 is a int, expected an image"):
        process_image(3, ImageSettings(), name="item 7")


def test_lazy_pil_image_of_a_truncated_file(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded("PNG")[:-2000])
    with Image.open(tmp_path / "a.png") as image, pytest.raises(ValueError, match=r"PIL image of item 7 .*truncated"):
        process_image(image, ImageSettings(), name="item 7")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("limit", [5000, 1000])  # Pillow alone only warns in the first case: 7,200 < 2 * 5,000
def test_decompression_bomb_is_an_error(limit, monkeypatch, tmp_path):
    (tmp_path / "bomb.png").write_bytes(encoded("PNG"))
    assert process_image(tmp_path / "bomb.png", ImageSettings())[1] == (1, 4, 6)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    for source in (tmp_path / "bomb.png", encoded("PNG")):
        with pytest.raises(ValueError, match=r"item 7.*decompression bomb.*MAX_IMAGE_PIXELS"):
            process_image(source, ImageSettings(), name="item 7")


def test_guard_is_on_by_default():
    assert Image.MAX_IMAGE_PIXELS is not None and Image.MAX_IMAGE_PIXELS < 200_000_000


@pytest.mark.parametrize("bounds", [(0, 4096), (8192, 4096), (256, 1023)])
def test_impossible_bounds(bounds):
    with pytest.raises(ValueError, match="min_pixels is .* and max_pixels"):
        ImageSettings(min_pixels=bounds[0], max_pixels=bounds[1])


@pytest.mark.parametrize("bounds", [{"min_pixels": 5000, "max_pixels": 90_000}, {"min_pixels": 5000}, {}])
def test_bounds_by_name_go_before_those_of_the_size(tmp_path, bounds):
    """As in transformers' processor, whose files have had them under both names."""
    config = bounds | {"size": {"shortest_edge": 6000, "longest_edge": 80_000}}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    vision = SimpleNamespace(patch_size=14, temporal_patch_size=2, spatial_merge_size=2)
    found = read_image_settings(tmp_path, vision, min_pixels=None, max_pixels=None)
    theirs = Qwen2VLImageProcessorPil(**config).size
    assert (found.min_pixels, found.max_pixels) == (theirs["shortest_edge"], theirs["longest_edge"])
