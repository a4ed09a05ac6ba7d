"""Videos, with and without images beside them: our rows and backbone against transformers + torch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch

from smart_jax.inputs.multimodal import MultimodalPreprocessor
from smart_jax.inputs.tokenized_item import TokenizedItem
from smart_jax.models import load_config
from smart_jax.models.batch import Batch
from smart_jax.models.weights import load_weights
from tests.checkpoints import noise_page, write_processor
from tests.golden.make_video import clip
from tests.parity import qwen2_vl, qwen3_5, qwen3_vl
from tests.parity.qwen3_vl import our_states, save
from tests.parity.test_qwen3_vl import BROKEN, TOLERANCE, errors
from tests.pixels import values_of

pytestmark = pytest.mark.slow

IDS = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 3, "vision_end_token_id": 4}
SIZES = {"min_pixels": 1024, "max_pixels": 16384, "video_min_pixels": 4096, "video_max_pixels": 16384}


def film(count: int, width: int, height: int, seed: int = 0) -> list:
    return [noise_page(width, height, seed + i) for i in range(count)]


CASES: dict[str, list[Any]] = {
    "video": [{"video": film(4, 128, 64)}],
    "odd_video_beside_text": [{"video": film(5, 64, 128), "text": "five frames"}, "no film at all"],
    "file": [{"video": clip("carphone_distorted"), "text": "a man", "instruction": "Find it"}],
    "fast_video": [{"video": film(8, 128, 64), "fps": 5}],
    "image_and_video_in_one_item": [{"video": film(3, 96, 96), "image": noise_page(160, 64), "text": "both"}],
    "image_and_video_in_one_batch": [
        noise_page(128, 96),
        {"video": film(2, 128, 128), "images": [noise_page(64, 64), noise_page(96, 32)]},
        "text",
        {"videos": [film(4, 64, 64), film(2, 192, 64, 9)], "text": "two films"},
    ],
}


NAMES = ("two_taps", "deep_three_taps", "qwen2", "qwen2_5", "qwen2_5_wide_windows")
TOKENS_PER_SECOND = 2


def checkpoint(name: str, folder: Path) -> tuple:
    """(torch model, preprocessor, graphdef, params) of a random checkpoint of that name."""
    if name in qwen3_5.CONFIGS:
        text, *rest = qwen3_5.CONFIGS[name]
        model = whole = qwen3_5.torch_model(({**text, "vocab_size": 640}, *rest), **IDS)
    elif name in qwen3_vl.CONFIGS:
        text, vision, sections = qwen3_vl.CONFIGS[name]
        model = whole = qwen3_vl.torch_model(({**text, "vocab_size": 640}, vision, sections))
        for key, value in IDS.items():
            setattr(model.config, key, value)
    else:
        family, text, vision, sections = qwen2_vl.CONFIGS[name]
        if family == "qwen2_5_vl":
            vision = {**vision, "tokens_per_second": TOKENS_PER_SECOND}
        whole = qwen2_vl.torch_model((family, {**text, "vocab_size": 640}, vision, sections), **IDS)
        model = whole.model
    config = load_config(save(whole, folder))
    write_processor(folder, patch_size=config.vision.patch_size)
    preprocessor = MultimodalPreprocessor.from_pretrained(folder, config, head="qwen3_vl_embedding", **SIZES)
    return model, preprocessor, *load_weights(folder, config)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return functools.cache(lambda name: checkpoint(name, tmp_path_factory.mktemp(name)))


@pytest.fixture(params=NAMES)
def pair(request, pairs):
    return pairs(request.param)


@pytest.fixture(params=["qwen2", "qwen2_5"])
def one_run(request, pairs):
    """A model of the families whose videos are one run of visual tokens."""
    return pairs(request.param)


def seconds_per_grid(item: dict[str, Any], video: Any) -> float:
    if isinstance(video, list):
        return 2 / item.get("fps", 2.0)
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        return 2 / (4 / stream.frames * float(stream.average_rate))  # four frames are taken of it


def torch_inputs(pair: tuple, rows: list[TokenizedItem], items: list[Any]) -> dict[str, torch.Tensor]:
    """The inputs that transformers' processor makes: videos and images apart, a grid with all frames per video."""
    config, how = pair[1].config, pair[1].images.normalisation
    length = max(len(row.input_ids) for row in rows)
    ids, mask = np.zeros((len(rows), length), np.int64), np.zeros((len(rows), length), np.int64)
    grids: dict[str, list] = {"image": [], "video": []}
    pixels: dict[str, list] = {"image": [], "video": []}
    seconds = []
    for i, (row, item) in enumerate(zip(rows, items, strict=True)):
        ids[i, : len(row.input_ids)], mask[i, : len(row.input_ids)] = row.input_ids, 1
        videos = item.get("videos", [item["video"]] if "video" in item else []) if isinstance(item, dict) else []
        at, done = 0, 0
        for video in videos:
            frames = -(-len(video) // 2) if isinstance(video, list) else 2
            t, h, w = row.grids[at]
            assert t == (1 if config.timestamps else frames)
            grids["video"].append((frames, h, w))
            pixels["video"].append(row.patches[done : done + frames * h * w])
            at, done = at + frames // t, done + frames * h * w
            seconds.append(seconds_per_grid(item, video))
        grids["image"] += row.grids[at:]
        pixels["image"].append(row.patches[done:])
    inputs = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": (ids == 5) + 2 * (ids == 6)}
    for kind, name in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if grids[kind]:
            inputs |= {
                name: np.concatenate([values_of(p, how) for p in pixels[kind]]),
                f"{kind}_grid_thw": np.array(grids[kind]),
            }
    if config.model_type == "qwen2_5_vl":
        inputs["second_per_grid_ts"] = np.array(seconds, np.float32)
    return {name: torch.tensor(value) for name, value in inputs.items()}


def torch_states(model, inputs: dict[str, torch.Tensor]) -> list[np.ndarray]:
    with torch.no_grad():
        return [s.numpy() for s in model(**inputs, output_hidden_states=True).hidden_states]


def torch_positions(model, inputs: dict[str, torch.Tensor]) -> np.ndarray:
    names = ["input_ids", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "attention_mask"]
    names += ["second_per_grid_ts"] * ("second_per_grid_ts" in inputs)
    return model.get_rope_index(**{name: inputs.get(name) for name in names})[0].numpy()


def seen(rows: list[TokenizedItem]) -> SimpleNamespace:
    return SimpleNamespace(rows=[(row.input_ids, None, None) for row in rows])


def check_every_layer(pair: tuple, case: str) -> None:
    model, preprocessor, graphdef, params = pair
    items = CASES[case]
    rows = [preprocessor.tokenize(item) for item in items]
    theirs = torch_states(model, torch_inputs(pair, rows, items))
    assert 1 < np.abs(theirs[-1]).max() < 8
    length = theirs[0].shape[1]
    for options in ({}, {"shards": 1}) if len(rows) > 2 else ({},):
        batch = preprocessor.collate(rows, length=length, **options)
        assert max(errors(theirs, our_states(graphdef, params, batch), seen(rows))) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_every_layer_matches(pair, case):
    check_every_layer(pair, case)


@pytest.mark.parametrize("case", ["file", "image_and_video_in_one_batch"])
def test_every_layer_of_a_hybrid_decoder_matches(pairs, case):
    check_every_layer(pairs("odd_widths"), case)


@pytest.mark.parametrize("case", CASES)
def test_positions_match(pair, case):
    model, preprocessor, *_ = pair
    rows = [preprocessor.tokenize(item) for item in CASES[case]]
    inputs = torch_inputs(pair, rows, CASES[case])
    theirs = torch_positions(model, inputs)
    ours = preprocessor.collate(rows, length=inputs["input_ids"].shape[1]).position_ids
    for i, row in enumerate(rows):
        assert np.array_equal(ours[:, i, : len(row.input_ids)], theirs[:, i, : len(row.input_ids)])


def test_a_video_longer_than_it_is_wide(one_run):
    """Transformers 5 goes on after its height or width, where the text meets the video's time again; 4 and we do not
    (the golden files hold 4's positions)."""
    model, preprocessor, graphdef, params = one_run
    items = [{"video": film(16, 64, 64), "text": "a long film"}]
    (row,) = rows = [preprocessor.tokenize(items[0])]
    inputs = torch_inputs(one_run, rows, items)
    length = len(row.input_ids)
    batch = preprocessor.collate(rows, length=length)
    ours, theirs = batch.position_ids[:, 0], torch_positions(model, inputs)[:, 0]
    last = int(np.flatnonzero(row.input_ids == IDS["video_token_id"])[-1])
    assert np.array_equal(ours[:, : last + 1], theirs[:, : last + 1])
    after = np.arange(length - last - 1)
    assert (ours[:, last + 1 :] == ours[:, : last + 1].max() + 1 + after).all()
    assert (theirs[:, last + 1 :] < ours[:, last + 1 :]).all()
    states = torch_states(model, {**inputs, "position_ids": torch.tensor(batch.position_ids).long()})
    assert max(errors(states, our_states(graphdef, params, batch), seen(rows))) < TOLERANCE


# --- negative controls -----------------------------------------------------------------------------------------------


def control_error(pair: tuple, case: str, change: Callable[[Batch], Batch]) -> float:
    model, preprocessor, graphdef, params = pair
    rows = [preprocessor.tokenize(item) for item in CASES[case]]
    theirs = torch_states(model, torch_inputs(pair, rows, CASES[case]))
    batch = preprocessor.collate(rows, length=theirs[0].shape[1])
    return max(errors(theirs, our_states(graphdef, params, change(batch)), seen(rows)))


def test_control_frames_that_attend_to_each_other(pair):
    def joined(batch):
        segment = np.minimum(batch.vision.segment, 1)
        return dataclasses.replace(batch, vision=dataclasses.replace(batch.vision, segment=segment))

    assert control_error(pair, "video", joined) > BROKEN


def test_control_windows_that_span_frames(pairs):
    def joined(batch):
        vision = batch.vision
        size = int(vision.window[0, (vision.segment[0] == 1)].max())
        window = np.where(vision.window > size, vision.window - size, vision.window)
        return dataclasses.replace(batch, vision=dataclasses.replace(vision, window=window))

    assert control_error(pairs("qwen2_5"), "video", lambda batch: batch) < TOLERANCE
    assert control_error(pairs("qwen2_5"), "video", joined) > BROKEN


def test_control_time_that_stands_still(one_run):
    def still(batch):
        positions, video = batch.position_ids.copy(), batch.input_ids[0] == IDS["video_token_id"]
        positions[0, 0, video] = positions[0, 0, video].min()
        return dataclasses.replace(batch, position_ids=positions)

    assert control_error(one_run, "video", still) > BROKEN


def test_control_time_by_patches_instead_of_seconds(pairs):
    _, preprocessor, *_ = pair = pairs("qwen2_5")

    def counted(batch):
        row = dataclasses.replace(preprocessor.tokenize(CASES["video"][0]), steps=())
        return preprocessor.collate([row], length=batch.input_ids.shape[1])

    assert control_error(pair, "video", counted) > BROKEN
