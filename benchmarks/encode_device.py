"""Pages a second on the default device: `python -m benchmarks.encode --device [--pages 8] [--shape small]`.

A Qwen3-VL of the 2B model's shape with random bfloat16 weights encodes batches of pages of 1,024 patches and 24 text
tokens; where torch has a CUDA device, transformers with sdpa does the same in turns. Figures are wall-clock times of a
batch that lies on the device already, median of the rounds. The share of the device's peak counts what the model asks
for, which is its matrix products and attention within images and, causal, within rows; it does not count padding.
"""

from __future__ import annotations

import importlib.util
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Int

from benchmarks.shapes import QWEN3_VL_2B, SMALL
from smart_jax.models import (
    Batch,
    Grid,
    ModelGraph,
    Normalisation,
    Params,
    QwenVLConfig,
    VisionBatch,
    abstract_model,
    mrope_positions,
    patch_geometry,
)

SHAPES = {"2b": QWEN3_VL_2B, "small": SMALL}
GRID: Grid = (1, 32, 32)  # a page's grid of patches
TEXT_TOKENS = 24
# Dense bfloat16 FLOP/s by the beginning of a device's kind, longer names first (makers' data sheets).
PEAK_FLOPS = {
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA A100": 312e12,
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,  # v5p
    "TPU v6": 918e12,  # v6e, "TPU v6 lite"
}


def peak_flops(kind: str) -> float | None:
    """Returns the peak of a device by jax's `device_kind`; None = the table lacks it."""
    return next((peak for name, peak in PEAK_FLOPS.items() if kind.startswith(name)), None)


def flops(config: QwenVLConfig, tokens: int, grid: Grid) -> float:
    """Returns the FLOP of a row with one image of these patches: two for each multiply-add of its matrix products."""
    v, t = config.vision, config.text
    frames, per_frame = grid[0], grid[1] * grid[2]
    patches, group = frames * per_frame, v.spatial_merge_size**2
    width = v.hidden_size
    block = 4 * width**2 + (3 if v.gated_mlp else 2) * width * v.intermediate_size
    vision = patches * (v.patch_values * width + v.depth * (block + 2 * per_frame * width))
    merger = (group * width) ** 2 + group * width * v.out_hidden_size
    vision += patches // group * merger * (1 + len(v.deepstack_visual_indexes))
    q, kv = t.num_attention_heads * t.head_dim, t.num_key_value_heads * t.head_dim
    layer = t.hidden_size * (2 * q + 2 * kv) + 3 * t.hidden_size * t.intermediate_size
    text = tokens * t.num_hidden_layers * (layer + (tokens + 1) * q)  # causal: half of 2 * tokens * q
    return 2.0 * (vision + text)


def page_ids(config: QwenVLConfig) -> Int[np.ndarray, " L"]:
    """Returns a page's tokens [L], int64: text around marks and visual tokens."""
    visual = int(np.prod(GRID)) // config.vision.spatial_merge_size**2
    words = np.random.default_rng(0).integers(20, 180, TEXT_TOKENS)
    marks = config.vision_start_token_id, config.vision_end_token_id
    return np.concatenate([words[:12], [marks[0]], [config.image_token_id] * visual, [marks[1]], words[12:]])


def page_batch(config: QwenVLConfig, pages: int) -> Batch:
    """Returns a batch of pages of one size, padded to a length that is a multiple of 32."""
    ids, vision = page_ids(config), config.vision
    n, merge = len(ids), vision.spatial_merge_size
    length = -(-n // 32) * 32
    geometry = patch_geometry([GRID], merge=merge, side=vision.grid_side, window=vision.window_patches)
    positions = mrope_positions(ids, [GRID], image_token_id=config.image_token_id, merge=merge)
    visual = ids == config.image_token_id
    pixels = np.random.default_rng(1).integers(0, 256, (int(np.prod(GRID)), 3 * vision.patch_size**2), np.uint8)

    def row(x: np.ndarray, fill: Any = 0) -> np.ndarray:
        padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, length - n)], constant_values=fill)
        return np.stack([padded] * pages, axis=x.ndim - 1)

    def of_each(x: np.ndarray | None) -> np.ndarray | None:
        return None if x is None else np.stack([x] * pages)

    mask = row(np.ones(n, bool))
    index = row(np.where(visual, np.cumsum(visual) - 1, -1).astype(np.int32), -1)
    bins = {name: of_each(x) for name, x in {"patches": pixels, **geometry._asdict()}.items()}
    batch = VisionBatch(**bins, normalisation=Normalisation())
    return Batch(row(ids.astype(np.int32)), mask, row(positions), mask, index, batch)


def random_params(config: QwenVLConfig) -> tuple[ModelGraph, Params]:
    """Returns a backbone with random bfloat16 parameters, drawn on the device."""
    graphdef, abstract = abstract_model(config)
    leaves, tree = jax.tree.flatten(abstract)
    normal = jax.jit(lambda key, shape: 0.02 * jax.random.normal(key, shape, jnp.bfloat16), static_argnames="shape")
    keys = jax.random.split(jax.random.key(0), len(leaves))
    return graphdef, tree.unflatten([normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)])


def ours(config: QwenVLConfig, pages: int) -> Callable[[], Any]:
    """Returns a call that encodes a batch of pages."""
    graphdef, params = random_params(config)
    run = jax.jit(lambda p, b: nnx.merge(graphdef, p)(b).states[:, :, 0])
    batch = jax.device_put(page_batch(config, pages))
    return lambda: run(params, batch).block_until_ready()


def theirs(shape: str, config: QwenVLConfig, pages: int) -> Callable[[], Any] | None:
    """Returns transformers' call on torch's CUDA device; None = torch or the device is missing."""
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    return torch_call(shape, config, pages, "cuda") if torch.cuda.is_available() else None


def torch_call(shape: str, config: QwenVLConfig, pages: int, device: str) -> Callable[[], Any]:
    """Returns transformers' call on the same pages without padding, with random bfloat16 weights."""
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLModel

    hf = SHAPES[shape]
    text = {name: value for name, value in hf["text_config"].items() if name not in ("rope_theta", "rope_scaling")}
    rope = {**hf["text_config"]["rope_scaling"], "rope_theta": hf["text_config"]["rope_theta"]}
    ids = {name: value for name, value in hf.items() if name.endswith("_token_id")}
    with torch.device(device):
        torch.set_default_dtype(torch.bfloat16)
        try:
            model = Qwen3VLModel(
                Qwen3VLConfig(text_config={**text, "rope_parameters": rope}, vision_config=hf["vision_config"], **ids)
            ).eval()
        finally:
            torch.set_default_dtype(torch.float32)
    model.set_attn_implementation("sdpa")
    row = page_ids(config)
    tokens = torch.tensor(np.stack([row] * pages), device=device)
    patches = torch.randn((pages * int(np.prod(GRID)), config.vision.patch_values), device=device, dtype=torch.bfloat16)
    inputs = {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "pixel_values": patches,
        "image_grid_thw": torch.tensor([GRID] * pages, device=device),
        "mm_token_type_ids": (tokens == config.image_token_id).long(),
    }

    def run() -> None:
        with torch.no_grad():
            model(**inputs, use_cache=False)
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def seconds(run: Callable[[], Any]) -> float:
    """Returns the wall-clock seconds of a call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure(shape: str, pages: int, repeats: int) -> str:
    """Returns a table in Markdown of pages a second and the share of the peak."""
    config = QwenVLConfig.from_hf(SHAPES[shape])
    kind = jax.devices()[0].device_kind
    peak, work = peak_flops(kind), pages * flops(config, len(page_ids(config)), GRID)
    sides = {"ours": ours(config, pages), "torch sdpa": theirs(shape, config, pages)}
    runs = {name: run for name, run in sides.items() if run is not None}
    for run in runs.values():
        run()
    rounds = [{name: seconds(run) for name, run in runs.items()} for _ in range(repeats)]
    lines = [
        f"{kind}, one device; Qwen3-VL of the shape {shape!r}, bfloat16, batches of {pages} pages of "
        f"{np.prod(GRID):,} patches, {work / pages / 1e12:.3g} TFLOP a page",
        "",
        "| | pages/s | ms a batch [min, max] | TFLOP/s | of the peak |",
        "|---|---|---|---|---|",
    ]
    for name in runs:
        taken = [r[name] for r in rounds]
        median = statistics.median(taken)
        share = "unknown peak" if peak is None else f"{work / median / peak:.0%} of {peak / 1e12:,.0f}"
        lines.append(
            f"| {name} | {pages / median:,.2f} | {median * 1e3:,.1f} [{min(taken) * 1e3:,.1f}, "
            f"{max(taken) * 1e3:,.1f}] | {work / median / 1e12:,.2f} | {share} |"
        )
    if "torch sdpa" in runs:
        lines.append(f"\nratio {statistics.median(r['torch sdpa'] / r['ours'] for r in rounds):.2f}")
    return "\n".join(lines)
