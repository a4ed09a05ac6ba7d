"""Videos, with and without images beside them: our rows and backbone against transformers + torch."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from smart_jax.models import load_config
from smart_jax.models.weights import load_weights
from smart_jax.preprocess import Preprocessor, Row
from tests.checkpoints import noise_page, write_processor
from tests.golden.make_video import clip
from tests.parity.qwen3_vl import CONFIGS, our_states, save, torch_model
from tests.parity.test_qwen3_vl import BROKEN, TOLERANCE, errors

IDS = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 3, "vision_end_token_id": 4}
SIZES = {"min_pixels": 1024, "max_pixels": 16384, "video_min_pixels": 4096, "video_max_pixels": 16384}


def film(count: int, width: int, height: int, seed: int = 0) -> list:
    return [noise_page(width, height, seed + i) for i in range(count)]


CASES: dict[str, list[Any]] = {
    "video": [{"video": film(4, 128, 64)}],
    "odd_video_beside_text": [{"video": film(5, 64, 128), "text": "five frames"}, "no film at all"],
    "file": [{"video": clip("carphone_distorted"), "text": "a man", "instruction": "Find it"}],
    "image_and_video_in_one_item": [{"video": film(3, 96, 96), "image": noise_page(160, 64), "text": "both"}],
    "image_and_video_in_one_batch": [
        noise_page(128, 96),
        {"video": film(2, 128, 128), "images": [noise_page(64, 64), noise_page(96, 32)]},
        "text",
        {"videos": [film(4, 64, 64), film(2, 192, 64, 9)], "text": "two films"},
    ],
}


@pytest.fixture(scope="module", params=["two_taps", "deep_three_taps"])
def pair(request, tmp_path_factory):
    """(torch model, preprocessor, graphdef, params) of one random checkpoint."""
    text, vision, sections = CONFIGS[request.param]
    model = torch_model(({**text, "vocab_size": 640}, vision, sections))
    for name, value in IDS.items():
        setattr(model.config, name, value)
    folder = write_processor(save(model, tmp_path_factory.mktemp(request.param)))
    config = load_config(folder)
    return model, Preprocessor.from_pretrained(folder, config, **SIZES), *load_weights(folder, config)


def torch_inputs(rows: list[Row], items: list[Any]) -> dict[str, torch.Tensor]:
    """What transformers' processor hands to the model: videos and images apart, a grid with all frames per video."""
    length = max(len(row.input_ids) for row in rows)
    ids, mask = np.zeros((len(rows), length), np.int64), np.zeros((len(rows), length), np.int64)
    grids: dict[str, list] = {"image": [], "video": []}
    pixels: dict[str, list] = {"image": [], "video": []}
    for i, (row, item) in enumerate(zip(rows, items, strict=True)):
        ids[i, : len(row.input_ids)], mask[i, : len(row.input_ids)] = row.input_ids, 1
        videos = item.get("videos", [item["video"]] if "video" in item else []) if isinstance(item, dict) else []
        at, done = 0, 0
        for video in videos:
            frames = -(-len(video) // 2) if isinstance(video, list) else 2
            _, h, w = row.grids[at]
            grids["video"].append((frames, h, w))
            pixels["video"].append(row.patches[done : done + frames * h * w])
            at, done = at + frames, done + frames * h * w
        grids["image"] += row.grids[at:]
        pixels["image"].append(row.patches[done:])
    inputs = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": (ids == 5) + 2 * (ids == 6)}
    for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if grids[kind]:
            inputs |= {name: np.concatenate(pixels[kind]), f"{kind}_grid_thw": np.array(grids[kind])}
    return {name: torch.tensor(value) for name, value in inputs.items()}


def torch_states(model, inputs: dict[str, torch.Tensor]) -> list[np.ndarray]:
    with torch.no_grad():
        return [s.numpy() for s in model(**inputs, output_hidden_states=True).hidden_states]


@pytest.mark.parametrize("case", CASES)
def test_every_layer_matches(pair, case):
    model, preprocessor, graphdef, params = pair
    items = CASES[case]
    rows = [preprocessor.row(item) for item in items]
    theirs = torch_states(model, torch_inputs(rows, items))
    assert 1 < np.abs(theirs[-1]).max() < 8
    seen = SimpleNamespace(rows=[(row.input_ids, None, None) for row in rows])
    length = theirs[0].shape[1]
    for options in ({}, {"shards": 1}) if len(rows) > 2 else ({},):
        batch = preprocessor.collate(rows, length=length, **options)
        assert max(errors(theirs, our_states(graphdef, params, batch), seen)) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_positions_match(pair, case):
    model, preprocessor, *_ = pair
    rows = [preprocessor.row(item) for item in CASES[case]]
    inputs = torch_inputs(rows, CASES[case])
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "attention_mask")
    theirs, _ = model.get_rope_index(**{name: inputs.get(name) for name in names})
    ours = preprocessor.collate(rows, length=inputs["input_ids"].shape[1]).position_ids
    for i, row in enumerate(rows):
        assert np.array_equal(ours[:, i, : len(row.input_ids)], theirs[:, i, : len(row.input_ids)])


def test_control_frames_that_attend_to_each_other(pair):
    model, preprocessor, graphdef, params = pair
    rows = [preprocessor.row(item) for item in CASES["video"]]
    theirs = torch_states(model, torch_inputs(rows, CASES["video"]))
    batch = preprocessor.collate(rows, length=theirs[0].shape[1])
    joined = dataclasses.replace(batch.vision, segment=np.minimum(batch.vision.segment, 1))
    wrong = our_states(graphdef, params, dataclasses.replace(batch, vision=joined))
    seen = SimpleNamespace(rows=[(row.input_ids, None, None) for row in rows])
    assert max(errors(theirs, wrong, seen)) > BROKEN
