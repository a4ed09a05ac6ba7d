"""CPU time from a page's JPEG to its place in a batch, stage by stage: a part of `python -m benchmarks.host`.

Pages are drawn: lines of text around a picture. Times are one thread's CPU time, medians of interleaved rounds. Stages
that cannot be called alone are differences: the resize is what `tokenize` takes longer for a decoded page than for one
that has its size already.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from smart_jax.files import resolve
from smart_jax.inputs import MultimodalPreprocessor, open_preprocessor, open_rgb
from smart_jax.models import load_config

SIZES = ((1240, 1754), (1700, 2200), (3024, 4032))  # A4 at 150 dpi, a letter at 200 dpi, a photo
ROWS = 8
LINE = 22  # pixels between lines of text


def drawn_page(width: int, height: int) -> Image.Image:
    """Returns a page of random words, a picture of soft colours in its middle."""
    rng = np.random.default_rng(0)
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    for top in range(60, height - 60, LINE):
        codes = rng.integers(0, 32, (width - 120) // 7)
        pen.text((60, top), "".join(chr(97 + code) if code < 26 else " " for code in codes), fill=(20, 20, 60))
    colours = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    image.paste(colours.resize((width // 2, height // 4), Image.Resampling.BICUBIC), (width // 4, height // 2))
    return image


def page_preprocessor(**settings: Any) -> MultimodalPreprocessor:
    """Returns the embedded model's preprocessor with the sizes of Qwen3-VL-Embedding."""
    folder = resolve("tiny")
    large = {"min_pixels": 4096, "max_pixels": 1_843_200, "max_length": 8192}
    buckets = {"length_buckets": None, "patch_buckets": None}
    found = open_preprocessor(folder, load_config(folder), **large, **buckets, **settings)
    assert isinstance(found, MultimodalPreprocessor)
    return found


def stages(data: bytes, preprocessor: MultimodalPreprocessor) -> dict[str, Callable[[], Any]]:
    """Returns calls whose times are those of a page's stages, or sums of them."""
    whole = preprocessor.tokenize(data)
    ((_, rows, columns),) = whole.grids
    size = preprocessor.images.patch_size
    height, width = rows * size, columns * size
    smallest = (height, width) if preprocessor.images.resize == "fast" else None
    decoded = open_rgb(data, smallest=smallest)
    sized = decoded.resize((width, height))
    batch = [whole] * ROWS
    return {
        "load": lambda: open_rgb(data, smallest=smallest),
        "tokenize decoded": lambda: preprocessor.tokenize(decoded),
        "tokenize sized": lambda: preprocessor.tokenize(sized),
        "tokenize": lambda: preprocessor.tokenize(data),
        "collate": lambda: preprocessor.collate(batch),
    }


def table(repeats: int = 9) -> list[str]:
    """Returns a table in Markdown: CPU milliseconds a page of each stage, and bytes a page takes in a batch.

    The last column is of the fast resize: by how much a byte differs from the exact one on average, and how many in a
    thousand differ by more than 32.
    """
    lines = [
        "| page | resize | load | resize | patches, text | collate | all [min, max] | MB | difference, far |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for width, height in SIZES:
        buffer = io.BytesIO()
        drawn_page(width, height).save(buffer, "JPEG", quality=90)
        data = buffer.getvalue()
        exact = page_preprocessor().tokenize(data).patches
        for resize in ("exact", "fast"):
            preprocessor = page_preprocessor(resize=resize)
            cells = _cells(data, preprocessor, repeats)
            difference = np.abs(preprocessor.tokenize(data).patches.astype(int) - exact)
            far = f"{difference.mean():.1f}, {1000 * (difference > 32).mean():.1f}" if resize == "fast" else ""
            lines.append(f"| {width} x {height} | {resize} | {' | '.join(cells)} | {exact.nbytes / 1e6:.1f} | {far} |")
    return lines


def _cells(data: bytes, preprocessor: MultimodalPreprocessor, repeats: int) -> list[str]:
    """Returns the milliseconds of each stage of a page, and of all."""
    calls = stages(data, preprocessor)
    rounds = [{name: _milliseconds(call) for name, call in calls.items()} for _ in range(repeats + 1)][1:]
    t = {name: statistics.median(r[name] for r in rounds) for name in calls}
    each = (
        t["load"],
        t["tokenize decoded"] - t["tokenize sized"],
        t["tokenize sized"],
        t["collate"] / ROWS,
    )
    sums = [r["tokenize"] + r["collate"] / ROWS for r in rounds]
    whole = f"{statistics.median(sums):.1f} [{min(sums):.1f}, {max(sums):.1f}]"
    return [*(f"{x:.1f}" for x in each), whole]


def _milliseconds(call: Callable[[], Any]) -> float:
    started = time.thread_time()
    call()
    return (time.thread_time() - started) * 1e3
