"""Random EmbeddingGemma 2 checkpoints, and batches as both transformers + torch and our backbone take them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.models.embedding_gemma2 import EmbeddingGemma2Config as TorchConfig
from transformers.models.embedding_gemma2 import EmbeddingGemma2Model

from smart_jax.models.batch import Batch, VisionBatch
from smart_jax.models.pixels import Normalisation
from smart_jax.models.positions import Grid, patch_geometry

IMAGE, VIDEO, AUDIO, BOI, EOI, BOA, EOA = range(190, 197)
IDS = {"image_token_id": IMAGE, "video_token_id": VIDEO, "boi_token_id": BOI, "eoi_token_id": EOI}
IDS |= {"audio_token_id": AUDIO, "boa_token_id": BOA, "eoa_token_index": EOA}
MERGE = 3
TOLERANCE = 2e-5
BROKEN = 100 * TOLERANCE

TEXT = {
    "vocab_size": 200,
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 14,
    "hidden_size_per_layer_input": 12,
    "embedding_dim": 44,
    "sliding_window": 5,
    "sliding_window_pattern": 3,
    "global_head_dim": 22,
    "num_global_key_value_heads": 1,
    "initializer_range": 0.1,
}
VISION = {
    "model_type": "gemma4_vision",
    "hidden_size": 36,
    "intermediate_size": 52,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 12,
    "patch_size": 4,
    "position_embedding_size": 40,
    "initializer_range": 0.1,
}
# Not deeper: after seven layers torch itself is 2e-5 off what it computes in float64.
# (text, vision): head widths, groups, depth, the place of full layers and the window all differ.
CONFIGS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "every_third_full": ({}, {}),
    "one_head_of_keys": (
        {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 26, "global_head_dim": 10}
        | {"num_global_key_value_heads": 3, "num_hidden_layers": 4, "sliding_window_pattern": 2, "sliding_window": 2},
        {"num_hidden_layers": 2, "head_dim": 20, "num_attention_heads": 2, "num_key_value_heads": 1, "patch_size": 5},
    ),
    "clipped_and_standardised": (
        {"hidden_size": 24, "embedding_dim": 17, "num_hidden_layers": 6, "hidden_size_per_layer_input": 31}
        | {"sliding_window": 9, "num_key_value_heads": 4, "num_global_key_value_heads": 2},
        {"hidden_size": 28, "head_dim": 8, "use_clipped_linears": True, "standardize": True},
    ),
}
# Rows of text tokens (a number of them) and images (their grids).
CASES: dict[str, list[list[int | Grid]]] = {
    "text": [[7], [31], [3]],
    "images": [
        [2, (1, 3, 6), 3],
        [(1, 6, 6)],
        [1, (1, 3, 3), 2, (1, 9, 3), (1, 3, 12), 5],
        [23],
    ],
}


def torch_model(
    text: dict[str, Any], vision: dict[str, Any] | None, seed: int = 0, **towers: Any
) -> EmbeddingGemma2Model:
    """A random model, whose norms, scalars and bounds are not those of a fresh one."""
    config = TorchConfig(
        text_config={**TEXT, **text},
        vision_config=None if vision is None else {**VISION, **vision},
        **{"audio_config": None, **IDS, **towers},
    )
    torch.manual_seed(0)
    model = EmbeddingGemma2Model(config).eval()
    generator = torch.Generator().manual_seed(0)

    def noise(x: torch.Tensor) -> torch.Tensor:
        return torch.randn(x.shape, generator=generator)

    with torch.no_grad():
        for name, x in [*model.named_parameters(), *model.named_buffers()]:
            leaf = name.rpartition(".")[2]
            if leaf == "layer_scalar":
                x.copy_(0.55 + 0.4 * torch.rand(1, generator=generator))
            elif leaf == "position_embedding_table":
                x.copy_(0.3 * noise(x))
            elif leaf in ("std_bias", "std_scale"):
                x.copy_(noise(x) if leaf == "std_bias" else 1 + 0.2 * noise(x))
            elif leaf in ("input_min", "output_min", "input_max", "output_max"):
                x.copy_((0.5 + torch.rand(x.shape, generator=generator)) * (-1 if leaf.endswith("min") else 1))
            elif "post_" in name:  # what each block adds is as small beside the residual as in a trained model:
                x.copy_(0.25 + 0.05 * noise(x))  # with ones, a chain of random blocks multiplies float32's rounding
            elif x.ndim == 1 and leaf == "weight":
                x.copy_(0.8 + 0.15 * noise(x))
                if ("q_norm" in name or "k_norm" in name) and len(x) > 32:  # scores of wide heads, like narrow ones'
                    x.mul_((14 / len(x)) ** 0.25)
    return model


def save(model: EmbeddingGemma2Model, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


@dataclasses.dataclass
class Inputs:
    """One batch: rows of (token ids, grids, patches of each image [rows, columns, E])."""

    rows: list[tuple[np.ndarray, list[Grid], list[np.ndarray]]]

    @classmethod
    def random(cls, spec: Sequence[Sequence[int | Grid]], *, size: int, seed: int = 0) -> Inputs:
        rng = np.random.default_rng(seed)
        rows = []
        for parts in spec:
            ids: list[int] = []
            grids, images = [], []
            for part in parts:
                if isinstance(part, int):
                    ids += rng.integers(3, 190, part).tolist()
                else:
                    grids.append(part)
                    ids += [BOI, *[IMAGE] * (part[1] * part[2] // MERGE**2), EOI]
                    images.append(rng.integers(0, 256, (part[1], part[2], 3 * size**2), np.uint8))
            rows.append((np.array([2, *ids, 1]), grids, images))
        return cls(rows)

    def for_torch(self, *, left: bool, extra: int = 0) -> dict[str, torch.Tensor]:
        """Arguments of the model; `extra` more padded positions and patches than needed."""
        longest = max(len(ids) for ids, _, _ in self.rows) + extra
        padded, mask = np.zeros((2, len(self.rows), longest), np.int64)
        for b, (ids, _, _) in enumerate(self.rows):
            at = slice(longest - len(ids), longest) if left else slice(0, len(ids))
            padded[b, at], mask[b, at] = ids, 1
        arguments = {"input_ids": torch.tensor(padded), "attention_mask": torch.tensor(mask)}
        images = [image for _, _, images in self.rows for image in images]
        if images:
            most = max(image.shape[0] * image.shape[1] for image in images) + extra * MERGE**2
            pixels = np.zeros((len(images), most, images[0].shape[2]), np.float32)
            places = np.full((len(images), most, 2), -1, np.int64)
            for i, image in enumerate(images):
                count = image.shape[0] * image.shape[1]
                pixels[i, :count] = (image.reshape(count, -1).astype(np.float64) / 255).astype(np.float32)
                rows, columns = np.indices(image.shape[:2]).reshape(2, -1)
                places[i, :count] = np.stack([columns, rows], -1)
            arguments |= {"pixel_values": torch.tensor(pixels), "image_position_ids": torch.tensor(places)}
        return arguments

    def for_ours(self, *, extra: int = 0, left: bool = False) -> Batch:
        """The same as a batch, right-padded."""
        B, L = len(self.rows), max(len(ids) for ids, _, _ in self.rows) + extra
        ids, mask = np.zeros((B, L), np.int32), np.zeros((B, L), bool)
        positions, index = np.zeros((3, B, L), np.int32), np.full((B, L), -1, np.int32)
        patches = [sum(image.shape[0] * image.shape[1] for image in images) for _, _, images in self.rows]
        V = max(patches) + extra * MERGE**2 if any(patches) else 0
        size = next((image.shape[2] for _, _, images in self.rows for image in images), 3)
        vision = VisionBatch(
            patches=np.zeros((B, V, size), np.uint8),
            coords=np.zeros((B, V, 2), np.int32),
            interp_idx=None,
            interp_w=None,
            segment=np.zeros((B, V), np.int32),
            normalisation=Normalisation(),
        )
        for b, (tokens, grids, images) in enumerate(self.rows):
            at = slice(L - len(tokens), L) if left else slice(0, len(tokens))
            ids[b, at], mask[b, at], positions[:, b, at] = tokens, True, np.arange(len(tokens))
            visual = tokens == IMAGE
            index[b, at] = np.where(visual, np.cumsum(visual) - 1, -1)
            geometry = patch_geometry(grids, merge=MERGE, side=None)
            vision.coords[b, : patches[b]], vision.segment[b, : patches[b]] = geometry.coords, geometry.segment
            places = zip(geometry.coords.tolist(), (geometry.segment - 1).tolist(), strict=True)
            for v, ((row, column), image) in enumerate(places):
                vision.patches[b, v] = images[image][row, column]
        return Batch(ids, mask, positions, keep_mask=mask, index=index, vision=vision if V else None)


def torch_states(
    model: EmbeddingGemma2Model, arguments: dict[str, torch.Tensor]
) -> tuple[list[np.ndarray], np.ndarray]:
    """States before the first layer and after each, and the last as the encoder projects them."""
    kept: list[np.ndarray] = []
    hooks = [
        layer.register_forward_hook(lambda _, inputs, output: kept.append(output.numpy()))
        for layer in model.language_model.layers
    ]
    first = model.language_model.ple.register_forward_hook(lambda _, inputs, output: kept.append(inputs[0].numpy()))
    with torch.no_grad():
        out = model(**arguments).last_hidden_state.numpy()
    for hook in [*hooks, first]:
        hook.remove()
    return [x.copy() for x in kept], out
