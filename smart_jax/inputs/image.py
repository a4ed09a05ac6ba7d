"""Images to vision patches as bytes, with the arithmetic of the Qwen-VL reference (Pillow and NumPy only).

The reference is qwen-vl-utils (open, convert, resize) followed by transformers' Qwen2-VL image processor (rescale,
normalise, patchify); normalised by `smart_jax.models.normalised`, values are equal to theirs bit for bit. Like it,
nothing here rotates by an EXIF tag.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from smart_jax.files import checked_float, checked_int, read_json, shown
from smart_jax.inputs.fast_resize import fast_resize, import_cv2
from smart_jax.inputs.file_kinds import IMAGE_FORMATS
from smart_jax.models import Grid, Normalisation

MAX_ASPECT_RATIO = 200
IMAGE_FILES = ("preprocessor_config.json", "processor_config.json")  # one of them is there
ImageLike = str | Path | bytes | Image.Image | np.ndarray
_T = TypeVar("_T")
_READING = tuple(threading.Lock() for _ in range(64))  # of PIL images, by their place in memory

# What transformers' Qwen2-VL image processor assumes when the file does not say.
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """Settings by which an image becomes patches.

    Attributes:
      patch_size, temporal_patch_size, merge_size: as in the vision encoder; sides are resized to multiples of
        patch_size * merge_size.
      min_pixels, max_pixels: bounds of height * width after the resize.
      first_pixels: bounds of a resize before that one; None = there is one resize.
      first_size: height and width of a resize before these, which changes the aspect ratio; None = it stays.
      image_mean, image_std: per RGB channel, applied to value * rescale_factor.
      soft_tokens: number of visual tokens to which every image is scaled; None = pixels are bounded instead.
      resize: "exact" = as the reference, by Pillow; "fast" = by OpenCV, and a JPEG of a photo is decoded at a half or
        less of its size. The grids are the same.
    """

    patch_size: int = 16
    temporal_patch_size: int = 2
    merge_size: int = 2
    min_pixels: int = 4096
    max_pixels: int = 1_843_200
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    rescale_factor: float = 1 / 255
    first_pixels: tuple[int, int] | None = None
    first_size: tuple[int, int] | None = None
    resize: str = "exact"
    soft_tokens: int | None = None

    def __post_init__(self) -> None:
        if not self.factor**2 <= self.max_pixels or not 0 < self.min_pixels <= self.max_pixels:
            raise ValueError(
                f"min_pixels is {self.min_pixels} and max_pixels {self.max_pixels}: they must satisfy "
                f"0 < min_pixels <= max_pixels and max_pixels >= {self.factor**2} (one visual token)"
            )

    @property
    def factor(self) -> int:
        """Side of a visual token in pixels."""
        return self.patch_size * self.merge_size

    @property
    def patch_bytes(self) -> int:
        """Number of bytes of a patch of a still image: of one frame."""
        return 3 * self.patch_size**2

    @property
    def normalisation(self) -> Normalisation:
        """Map from a byte to the value that the backbone reads."""
        return Normalisation(self.image_mean, self.image_std, self.rescale_factor)

    @property
    def max_patches(self) -> int:
        """Largest number of patches of one image."""
        tokens = self.max_pixels // self.factor**2 if self.soft_tokens is None else self.soft_tokens
        return tokens * self.merge_size**2


def read_image_settings(
    folder: Path,
    vision: Any,
    *,
    min_pixels: int | None,
    max_pixels: int | None,
    first_pixels: tuple[int, int] | None = None,
    first_size: tuple[int, int] | None = None,
    resize: str = "exact",
) -> ImageSettings:
    """Reads preprocessor_config.json, or image_processor of processor_config.json.

    Args:
      folder: checkpoint in Hugging Face layout.
      vision: the backbone's vision config (patch_size, temporal_patch_size, spatial_merge_size, in_channels).
      min_pixels, max_pixels: bounds of the resize; None = the file's, which Qwen3-VL-Embedding overrides.
      first_pixels: bounds of a resize before that one.
      first_size: height and width of a resize before these.
      resize: see `ImageSettings`.

    Raises:
      FileNotFoundError: neither file exists.
      ValueError: a file is not JSON, contradicts the backbone's config, or asks for something not supported.
      ImportError: the resize is to be fast, and OpenCV is not installed.
    """
    if resize == "fast":
        import_cv2()
    source, config = read_processor_config(folder)
    for name, key in (
        ("patch_size", "patch_size"),
        ("temporal_patch_size", "temporal_patch_size"),
        ("merge_size", "spatial_merge_size"),
    ):
        if name in config and config[name] != getattr(vision, key):
            raise ValueError(f"{source}: {name} is {config[name]}, but config.json has {key} {getattr(vision, key)}")
    for switch in ("do_rescale", "do_normalize", "do_convert_rgb"):
        if config.get(switch) is False:
            raise ValueError(f"{source}: {switch} = false is not supported; the backbones here are trained with it on")
    return ImageSettings(
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
        min_pixels=_bound(source, config, "min_pixels", "shortest_edge", ImageSettings.min_pixels, min_pixels),
        max_pixels=_bound(source, config, "max_pixels", "longest_edge", ImageSettings.max_pixels, max_pixels),
        first_pixels=first_pixels,
        first_size=first_size,
        resize=resize,
        image_mean=_three(source, "image_mean", config.get("image_mean", _CLIP_MEAN)),
        image_std=_three(source, "image_std", config.get("image_std", _CLIP_STD)),
        rescale_factor=checked_float(config.get("rescale_factor", 1 / 255), f"{source}: rescale_factor"),
    )


def read_processor_config(folder: Path) -> tuple[Path, Mapping[str, Any]]:
    """Returns the file that says how images are processed, and what it says; raises FileNotFoundError without one."""
    if (path := folder / "preprocessor_config.json").is_file():
        return path, read_json(path)
    if (path := folder / "processor_config.json").is_file() and "image_processor" in (config := read_json(path)):
        if not isinstance(section := config["image_processor"], dict):
            raise ValueError(f"{path}: image_processor is {shown(section)}, expected an object")
        return path, section
    raise FileNotFoundError(
        f"{folder} lacks preprocessor_config.json (image mean and deviation): copy it from the original checkpoint"
    )


def _bound(source: Path, config: Mapping[str, Any], name: str, edge: str, default: int, asked: int | None) -> int:
    """Returns a pixel bound: what is asked for, or the file's in its older or newer spelling."""
    if asked is not None:
        return asked
    if not isinstance(size := config.get("size") or {}, dict):
        raise ValueError(f"{source}: size is {shown(size)}, expected an object")
    return checked_int(config.get(name) or size.get(edge) or default, f"{source}: {name}")


def _three(source: Path, name: str, values: Any) -> tuple[float, float, float]:
    numbers = values if isinstance(values, list | tuple) else [values] * 3
    if len(numbers) != 3:
        raise ValueError(f"{source}: {name} is {shown(values)}, expected three numbers")
    first, second, third = (checked_float(v, f"{source}: {name}", positive=name == "image_std") for v in numbers)
    return first, second, third


def process_image(
    image: ImageLike, settings: ImageSettings, *, name: str = "image"
) -> tuple[UInt8[np.ndarray, "V E"], Grid]:
    """Returns the patches of one image and their grid.

    Args:
      image: path, encoded bytes, PIL image, or uint8 array [H, W], [H, W, 3] or [H, W, 4].
      settings: sizes, bounds and normalisation.
      name: what messages call the item.

    Returns:
      Patches [V, E] in merge-block order, the E = 3 * patch_size**2 bytes of one frame each, and the grid
      (1, rows, columns) in patches with V = rows * columns.

    Raises:
      FileNotFoundError: the file does not exist.
      TypeError: it is not an image, or an array of another dtype.
      ValueError: it is unreadable, empty, larger than Pillow's decompression-bomb limit, or an aspect ratio over 200.
    """
    pixels = _fast_pixels(image, settings, name) if settings.resize == "fast" else _pixels(image, settings, name)
    return patchify(pixels, settings), _grid((pixels.shape[0], pixels.shape[1]), settings)


def _pixels(image: ImageLike, settings: ImageSettings, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the pixels of an image in the size that the backbone reads."""
    rgb = open_rgb(image, name=name, composite=settings.soft_tokens is not None)
    for height, width in _resizes((rgb.height, rgb.width), settings, name):
        if rgb.size != (width, height):
            rgb = rgb.resize((width, height))
    return np.asarray(rgb)


def _fast_pixels(image: ImageLike, settings: ImageSettings, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """Returns about the same, sooner: a file is decoded no larger than needs be, and resized once, by OpenCV."""
    size = _resizes(image_size(image, name=name), settings, name)[-1]
    pixels = np.asarray(open_rgb(image, name=name, smallest=size))
    return pixels if pixels.shape[:2] == size else fast_resize(pixels, size)


def image_grid(image: ImageLike, settings: ImageSettings, *, name: str = "image") -> Grid:
    """Returns the grid that `process_image` gives, from the image's header alone.

    Raises:
      FileNotFoundError, TypeError, ValueError: as `process_image`, as far as that shows without decoding.
    """
    return size_grid(image_size(image, name=name), settings, name=name)


def size_grid(size: tuple[int, int], settings: ImageSettings, *, name: str = "image") -> Grid:
    """Returns the grid of an image of some height and width; raises ValueError for an aspect ratio over 200."""
    return _grid(_resizes(size, settings, name)[-1], settings)


def _resizes(size: tuple[int, int], settings: ImageSettings, name: str) -> list[tuple[int, int]]:
    """Returns the heights and widths to which an image of some height and width is resized, one after another."""
    if settings.soft_tokens is not None:
        try:
            return [budget_size(*size, factor=settings.factor, budget=settings.soft_tokens)]
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    sizes = [size] if settings.first_size is None else [size, settings.first_size]
    bounds = [] if settings.first_pixels is None else [settings.first_pixels]
    for least, most in (*bounds, (settings.min_pixels, settings.max_pixels)):
        try:
            sizes.append(smart_resize(*sizes[-1], factor=settings.factor, min_pixels=least, max_pixels=most))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return sizes[1:]


def _grid(size: tuple[int, int], settings: ImageSettings) -> Grid:
    return 1, size[0] // settings.patch_size, size[1] // settings.patch_size


def smart_resize(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Returns the size nearest to (height, width) with multiples of `factor` as sides and an area within the bounds.

    As in qwen-vl-utils: sides are rounded (at least `factor`); an area out of bounds scales both sides by the same
    root and rounds down (too large) or up (too small). Where that would round a side down to nothing, the side stays
    `factor` and the other is cut to keep the bound.

    Raises:
      ValueError: a side is 0, or one is more than 200 times the other.
    """
    if min(height, width) < 1:
        raise ValueError(f"the image is {width} x {height} pixels: it has no content")
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise ValueError(
            f"the image is {width} x {height} pixels, an aspect ratio over {MAX_ASPECT_RATIO}: crop it or cut it into "
            "several images"
        )
    rows = max(1, round(height / factor))
    cols = max(1, round(width / factor))
    if rows * cols * factor**2 > max_pixels:
        scale = math.sqrt((height * width) / max_pixels)
        rows, cols = math.floor(height / scale / factor), math.floor(width / scale / factor)
        if min(rows, cols) == 0:
            longest = max_pixels // factor**2
            rows, cols = min(max(rows, 1), longest), min(max(cols, 1), longest)
    elif rows * cols * factor**2 < min_pixels:
        scale = math.sqrt(min_pixels / (height * width))
        rows, cols = math.ceil(height * scale / factor), math.ceil(width * scale / factor)
    return rows * factor, cols * factor


def budget_size(height: int, width: int, *, factor: int, budget: int) -> tuple[int, int]:
    """Returns the largest size of about the same shape whose sides are multiples of `factor`, within a budget.

    As in transformers' Gemma 4: both sides are scaled so that the area is that of the budget, and rounded down. A side
    that would be nothing stays `factor`, and the other is as many times as long as the image's is, if there are tokens.

    Args:
      height, width: of the image.
      factor: side of a visual token in pixels.
      budget: largest number of visual tokens.

    Raises:
      ValueError: a side is 0.

    Example:
      >>> budget_size(1100, 850, factor=48, budget=280)  # a letter page: 19 x 14 tokens
      (912, 672)
    """
    if min(height, width) < 1:
        raise ValueError(f"the image is {width} x {height} pixels: it has no content")
    scale = math.sqrt(budget * factor**2 / (height * width))
    rows, columns = math.floor(scale * height / factor), math.floor(scale * width / factor)
    if rows == 0:
        rows, columns = 1, min(width // height, budget)
    elif columns == 0:
        rows, columns = min(height // width, budget), 1
    return rows * factor, columns * factor


def patchify(pixels: UInt8[np.ndarray, "H W 3"], settings: ImageSettings) -> UInt8[np.ndarray, "V E"]:
    """Returns the patches of pixels whose sides are multiples of patch_size * merge_size.

    Patch order: the merge x merge patches of one visual token are adjacent. Byte order: row, column, channel, so that a
    row of a patch is copied in one run.
    """
    size, merge = settings.patch_size, settings.merge_size
    rows, cols = pixels.shape[0] // settings.factor, pixels.shape[1] // settings.factor
    runs = pixels.reshape(rows, merge, size, cols, merge, 3 * size).transpose(0, 3, 1, 4, 2, 5)
    return np.ascontiguousarray(runs).reshape(-1, settings.patch_bytes)


def open_rgb(
    image: ImageLike, *, name: str = "image", smallest: tuple[int, int] | None = None, composite: bool = False
) -> Image.Image:
    """Returns an RGB image, decoded: RGBA is pasted on white, every other mode goes through Pillow's convert("RGB").

    A PIL image that is RGB already is returned itself.

    Args:
      image: path, encoded bytes, PIL image, or uint8 array [H, W], [H, W, 3] or [H, W, 4].
      name: what messages call the item.
      smallest: height and width that are enough: a JPEG file is then decoded at a half, a quarter or an eighth of its
        size, if that is not less. None = every image has its size.
      composite: whether all that is transparent is put on white, as transformers 5 does it: other modes, too.

    Raises:
      FileNotFoundError, TypeError, ValueError: as `process_image`.

    Example:
      >>> import numpy as np
      >>> open_rgb(np.zeros((20, 30, 4), np.uint8)).getpixel((0, 0))
      (255, 255, 255)
    """
    if isinstance(image, np.ndarray):
        return _to_rgb(_from_array(image, name), composite)
    if isinstance(image, Image.Image):
        return _decode(image, f"the PIL image of {name}", composite)
    if smallest is None:
        return _open(*_source(image, name), functools.partial(_to_rgb, composite=composite))
    height, width = smallest

    def smaller(opened: Image.Image) -> Image.Image:
        opened.draft("RGB", (width, height))  # which only JPEGs heed
        return _to_rgb(opened)

    return _open(*_source(image, name), smaller)


def image_size(image: ImageLike, *, name: str = "image") -> tuple[int, int]:
    """Returns the height and width of an image; of a file or encoded bytes only the header is read.

    Raises:
      FileNotFoundError, TypeError, ValueError: as `open_rgb`, as far as that shows without decoding.
    """
    if isinstance(image, np.ndarray):
        _check_array(image, name)
        return image.shape[0], image.shape[1]
    if isinstance(image, Image.Image):
        return image.height, image.width
    width, height = _open(*_source(image, name), lambda opened: opened.size)
    return height, width


def _source(image: Any, name: str) -> tuple[Path | io.BytesIO, str]:
    """Returns what Pillow opens, and its name in messages."""
    if isinstance(image, bytes):
        if not image:
            raise ValueError(f"{name}: the image has 0 bytes: write the data again")
        return io.BytesIO(image), f"the image bytes of {name}"
    if isinstance(image, str | Path):
        return existing_file(image, name, "image", "the path of an image"), f"{name} ('{image}')"
    raise TypeError(
        f"{name} is a {type(image).__name__}, expected an image: a path, bytes, a PIL image or an array [H, W, 3] uint8"
    )


def existing_file(path: str | Path, name: str, kind: str, wanted: str) -> Path:
    """Returns the path of a local file that holds something; `kind` and what is `wanted` are words for the errors.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: it is a URL, a folder or empty.
    """
    if "://" in str(path):
        raise ValueError(f"{name}: '{path}' is a URL; {kind}s are read from local files only: download it first")
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{name}: no {kind} file '{path}' (from {Path.cwd()})")
    if not path.is_file():
        raise ValueError(f"{name}: '{path}' is not a file: pass {wanted}")
    if path.stat().st_size == 0:
        raise ValueError(f"{name}: the {kind} file '{path}' has 0 bytes: write or download it again")
    return path


def open_image(source: Path | io.BytesIO) -> Image.Image:
    """Opens an image of a common format, and no other: for EPS, which is a program, Pillow would start Ghostscript.

    Args:
      source: of the file.

    Raises:
      PIL.UnidentifiedImageError: it is in none of these formats (`smart_jax/inputs/file_kinds.py`).

    Example:
      >>> import io
      >>> file = io.BytesIO()
      >>> Image.new("RGB", (3, 2)).save(file, "PNG")
      >>> open_image(file).size
      (3, 2)
    """
    return Image.open(source, formats=_readable_formats())


@functools.cache
def _readable_formats() -> list[str]:
    Image.init()  # a Pillow may be built without some
    return [name for name in IMAGE_FORMATS if name in Image.OPEN]


def _open(source: Path | io.BytesIO, what: str, read: Callable[[Image.Image], _T]) -> _T:
    """Returns what is read of an image; errors say which it is and what to do."""
    try:
        with open_image(source) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels exceed the limit of {limit}")
            return read(image)
    # Pillow only warns between the limit and twice the limit; here both are errors.
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{what} may be a decompression bomb ({error}): make it smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if "
            "you trust it"
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError(f"{what} is not an image that Pillow can read: convert it to PNG or JPEG") from error
    except Exception as error:  # decoders raise OSError, SyntaxError, struct.error, ... by format
        raise _undecodable(what, error) from error


def _decode(image: Image.Image, what: str, composite: bool) -> Image.Image:
    """Returns an opened image as RGB; it may still have to read its file, which two threads must not do at once."""
    try:
        with _READING[id(image) % len(_READING)]:
            return _to_rgb(image, composite)
    except Exception as error:
        raise _undecodable(what, error) from error


def _undecodable(what: str, error: Exception) -> ValueError:
    return ValueError(f"{what} cannot be decoded ({error}): the data is truncated or damaged; write it again")


def _to_rgb(image: Image.Image, composite: bool = False) -> Image.Image:
    if composite and ("A" in image.getbands() or image.info.get("transparency") is not None):
        ground = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(ground, image.convert("RGBA")).convert("RGB")
    if image.mode == "RGB":  # `convert` would copy it
        image.load()
        return image
    if image.mode != "RGBA":
        return image.convert("RGB")
    white = Image.new("RGB", image.size, (255, 255, 255))
    white.paste(image, mask=image.getchannel("A"))
    return white


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    _check_array(array, name)
    return Image.fromarray(np.ascontiguousarray(array))


def _check_array(array: np.ndarray, name: str) -> None:
    if array.dtype != np.uint8:
        raise TypeError(
            f"{name}: the image array has dtype {array.dtype}, expected uint8 in 0..255; for floats in 0..1 pass "
            "(array * 255).round().astype(numpy.uint8) after checking that none is NaN"
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise ValueError(f"{name}: the image array has shape {array.shape}, expected [H, W], [H, W, 3] or [H, W, 4]")
    if array.size == 0:
        raise ValueError(f"{name}: the image array has shape {array.shape}: it has no content")
