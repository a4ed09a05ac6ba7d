"""Random Qwen3-VL checkpoints, and batches as both transformers + torch and our backbone take them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
import torch
from flax import nnx
from transformers import Qwen3VLConfig, Qwen3VLModel

from smart_jax.inputs.image import ImageSettings, process_image
from smart_jax.models.batch import Batch, VisionBatch
from smart_jax.models.pixels import Normalisation
from smart_jax.models.positions import Grid, PatchGeometry, mrope_positions, patch_geometry
from smart_jax.models.qwen_vl_config import QwenVLConfig
from tests.checkpoints import noise_page
from tests.pixels import values_of

HALF = Normalisation()
IMAGE, VIDEO, START, END = 190, 191, 192, 193
IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "vision_start_token_id": START, "vision_end_token_id": END}

TOLERANCE = 2e-5
BROKEN = 100 * TOLERANCE

CASES = {
    "text": [[7], [12], [3]],
    "one_image": [[2, (1, 4, 6), 3]],
    "image_only": [[(1, 4, 4)]],
    "two_sizes": [[3, (1, 4, 6), 4], [2, (1, 8, 4), 9]],
    "three_images_beside_text": [[1, (1, 4, 4), 2, (1, 2, 6), (1, 6, 2), 5], [8]],
    "image_and_text": [[4, (1, 6, 10), 11], [5, (1, 2, 2), 1]],
}
# All of them in two programs: rows do not see each other.
BATCHES = {"text": CASES["text"], "images": [row for name, rows in CASES.items() if name != "text" for row in rows]}

TEXT = {
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.08,
}
VISION = {
    "depth": 4,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_heads": 4,
    "out_hidden_size": 64,
    "num_position_embeddings": 36,
    "deepstack_visual_indexes": [0, 2],
    "initializer_range": 0.08,
}
# (text, vision, mrope sections): head width, DeepStack taps, depth, groups and sections all differ.
CONFIGS = {
    "two_taps": ({}, {}, [4, 2, 2]),
    "wide_heads_one_tap": (
        {"head_dim": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1},
        {"depth": 3, "num_heads": 2, "deepstack_visual_indexes": [1], "num_position_embeddings": 144},
        [6, 5, 5],
    ),
    "deep_three_taps": (
        {"head_dim": 24, "num_hidden_layers": 6, "num_key_value_heads": 4, "attention_bias": True},
        {"depth": 6, "hidden_size": 64, "num_heads": 2, "deepstack_visual_indexes": [1, 3, 5]},
        [6, 3, 3],
    ),
}


def torch_model(shape: tuple[dict, dict, list[int]], seed: int = 0, **ids: int) -> Qwen3VLModel:
    text, vision, sections = shape
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": sections, "mrope_interleaved": True}
    config = Qwen3VLConfig(
        text_config={**TEXT, **text, "rope_parameters": rope},
        vision_config={**VISION, **vision},
        **{**IDS, **ids},
    )
    torch.manual_seed(seed)
    model = Qwen3VLModel(config).eval()
    with torch.no_grad():  # fresh norms are all ones and biases zero: a swapped pair of them would go unseen
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def save(model: Qwen3VLModel, folder: Path, **options) -> Path:
    model.save_pretrained(folder, **options)
    return folder


@dataclasses.dataclass
class Inputs:
    """One batch: rows of (token ids, grids, patches), of still images, and what the patches' bytes become."""

    rows: list[tuple[np.ndarray, list[Grid], np.ndarray]]
    image: int = IMAGE
    how: Normalisation = HALF

    @classmethod
    def random(
        cls,
        spec: Sequence[Sequence[int | Grid]],
        seed: int = 0,
        size: int = 16,
        ids: tuple[int, int, int] = (START, IMAGE, END),
    ) -> Inputs:
        """Rows from a spec: an int is so many text tokens, a grid is an image with its start and end tokens (`ids`)."""
        start, image, end = ids
        rng = np.random.default_rng(seed)
        rows = []
        for parts in spec:
            row: list[int] = []
            grids: list[Grid] = []
            for part in parts:
                if isinstance(part, int):
                    row += rng.integers(20, 180, part).tolist()
                else:
                    row += [start, *[image] * (part[0] * part[1] * part[2] // 4), end]
                    grids.append(part)
            count = sum(t * h * w for t, h, w in grids)
            rows.append((np.asarray(row), grids, rng.integers(0, 256, (count, 3 * size**2), np.uint8)))
        return cls(rows, image)

    def batch(self, config: QwenVLConfig, *, left: bool = False, extra: int = 0, bins: int | None = None) -> Batch:
        """Padded to the longest row plus `extra`; padding is filled with noise, which must not matter.

        `bins`: of the images of len(rows) / bins rows each; None = one for each row.
        """
        rng = np.random.default_rng(1)
        n, length = len(self.rows), max(len(r[0]) for r in self.rows) + extra
        bins = bins or n
        shared = [self.rows[i : i + n // bins] for i in range(0, n, n // bins)]
        patches = max(sum(len(r[2]) for r in some) for some in shared)
        ids = rng.integers(20, 180, (n, length)).astype(np.int32)
        mask = np.zeros((n, length), bool)
        positions = np.zeros((3, n, length), np.int32)
        index = np.full((n, length), -1, np.int32)
        patches += 4 * extra if patches else 0
        vision = config.vision
        geometries = [
            patch_geometry(
                [g for r in some for g in r[1]], merge=2, side=vision.grid_side, window=vision.window_patches
            )
            for some in shared
        ]

        def padded(name: str) -> np.ndarray | None:
            pieces = [getattr(geometry, name) for geometry in geometries]
            if pieces[0] is None:
                return None
            out = np.zeros((bins, patches, *pieces[0].shape[1:]), pieces[0].dtype)
            for g, piece in enumerate(pieces):
                out[g, : len(piece)] = piece
            return out

        v = VisionBatch(
            patches=rng.integers(0, 256, (bins, patches, 3 * vision.patch_size**2), np.uint8),
            normalisation=self.how,
            **{name: padded(name) for name in PatchGeometry._fields},
        )
        for i, (row, grids, _) in enumerate(self.rows):
            at = slice(length - len(row), length) if left else slice(0, len(row))
            ids[i, at], mask[i, at] = row, True
            positions[:, i, at] = mrope_positions(row, grids, image_token_id=self.image, merge=2)
            first = sum(len(r[2]) for r in self.rows[i - i % (n // bins) : i]) // 4
            index[i, at][row == self.image] = first + np.arange((row == self.image).sum())
        for g, some in enumerate(shared):
            pixels = np.concatenate([r[2] for r in some])
            v.patches[g, : len(pixels)] = pixels
        return Batch(ids, mask, positions, mask, index, v if patches else None)

    def torch_inputs(self, *, left: bool = False) -> dict[str, torch.Tensor]:
        n, length = len(self.rows), max(len(r[0]) for r in self.rows)
        ids, mask = np.zeros((n, length), np.int64), np.zeros((n, length), np.int64)
        for i, (row, _, _) in enumerate(self.rows):
            at = slice(length - len(row), length) if left else slice(0, len(row))
            ids[i, at], mask[i, at] = row, 1
        inputs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
        if grids := [g for r in self.rows for g in r[1]]:
            inputs |= {
                "pixel_values": torch.tensor(values_of(np.concatenate([r[2] for r in self.rows]), self.how)),
                "image_grid_thw": torch.tensor(grids),
                "mm_token_type_ids": torch.tensor((ids == self.image).astype(np.int64)),
            }
        return inputs

    def torch_states(self, model: Qwen3VLModel, *, left: bool = False) -> list[np.ndarray]:
        """transformers' `hidden_states`, each [B, L, H]."""
        with torch.no_grad():
            states = model(**self.torch_inputs(left=left), output_hidden_states=True).hidden_states
        return [s.numpy() for s in states]

    def torch_last(self, model: Qwen3VLModel) -> np.ndarray:
        """transformers' final hidden state [B, L, H], nothing else computed or kept."""
        with torch.no_grad():
            return model(**self.torch_inputs(), use_cache=False).last_hidden_state.numpy()


@partial(jax.jit, static_argnames="graphdef")
def _every_state(graphdef, params, batch):
    model = nnx.merge(graphdef, params)
    return model(batch, layers=tuple(range(model.config.text.num_hidden_layers + 1))).states


def our_states(graphdef: nnx.GraphDef, params, batch: Batch) -> np.ndarray:
    """[B, L, depth + 1, H]."""
    return np.asarray(_every_state(graphdef, params, batch))


def errors(theirs: list[np.ndarray], ours: np.ndarray, inputs: Inputs, *, left: bool = False) -> list[float]:
    """Max abs error of every layer over attended positions."""
    found = []
    for layer, state in enumerate(theirs):
        worst = 0.0
        for i, (row, _, _) in enumerate(inputs.rows):
            length = state.shape[1]
            at = slice(length - len(row), length) if left else slice(0, len(row))
            assert np.abs(state[i, at]).max() < 40
            worst = max(worst, float(np.abs(state[i, at] - ours[i, : state.shape[1], layer][at]).max()))
        found.append(worst)
    return found


def odd_image(width: int, height: int, config: QwenVLConfig) -> Inputs:
    """A row with a picture of that size, preprocessed."""
    settings = ImageSettings(patch_size=config.vision.patch_size)
    patches, grid = process_image(noise_page(width, height), settings)
    (row,) = Inputs.random([[3, grid, 4]]).rows
    return Inputs([(row[0], [grid], patches)])
