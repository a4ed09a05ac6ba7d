"""The Flax Qwen2-VL and Qwen2.5-VL against transformers + torch on random checkpoints: every layer within 2e-5."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from transformers import Qwen2_5_VLModel, Qwen2VLModel
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import smart_jax
from smart_jax.models import load_config
from smart_jax.models.positions import patch_geometry
from smart_jax.models.qwen_vl_config import QwenVLConfig
from smart_jax.models.weights import abstract_model, load_weights, save_weights
from tests.checkpoints import noise_page, write_processor
from tests.parity.qwen2_vl import CLASSES, CONFIGS, to_v4, to_v5_names, torch_model
from tests.parity.qwen3_vl import BATCHES, BROKEN, CASES, TOLERANCE, Inputs, errors, odd_image, our_states
from tests.pixels import values_of

pytestmark = pytest.mark.compiles

FIRST = {"qwen2_vl": "qwen2", "qwen2_5_vl": "qwen2_5"}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """(torch model, config, graphdef, params, folder) of a checkpoint in the hub's layout, by name of CONFIGS."""

    @functools.cache
    def pair(name):
        model = torch_model(CONFIGS[name])
        folder = tmp_path_factory.mktemp(name)
        model.save_pretrained(folder)
        config = load_config(folder)
        return model.model, config, *load_weights(folder, config), folder

    return pair


@pytest.fixture(params=CONFIGS)
def pair(request, pairs):
    return pairs(request.param)


@pytest.fixture(params=FIRST)
def first(request, pairs):
    """One checkpoint of each family."""
    return pairs(FIRST[request.param])


def random_inputs(spec, config, seed=0):
    return Inputs.random(spec, seed=seed, size=config.vision.patch_size)


@pytest.mark.parametrize("rows", BATCHES)
def test_every_layer_matches(pair, rows):
    model, config, graphdef, params, _ = pair
    inputs = random_inputs(BATCHES[rows], config)
    theirs = inputs.torch_states(model)
    assert 1 < np.abs(theirs[-1]).max() < 8
    assert max(errors(theirs, our_states(graphdef, params, inputs.batch(config)), inputs)) < TOLERANCE


@pytest.mark.parametrize("case", ["text", "two_sizes"])
def test_left_padding_matches(pair, case):
    model, config, graphdef, params, _ = pair
    inputs = random_inputs(CASES[case], config, seed=3)
    ours = our_states(graphdef, params, inputs.batch(config, left=True))
    assert max(errors(inputs.torch_states(model, left=True), ours, inputs, left=True)) < TOLERANCE


def test_rows_that_share_a_bin_match(first):
    model, config, graphdef, params, _ = first
    inputs = random_inputs(CASES["image_and_text"] + CASES["three_images_beside_text"], config, seed=4)
    batch = inputs.batch(config, bins=2, extra=5)
    assert max(errors(inputs.torch_states(model), our_states(graphdef, params, batch), inputs)) < TOLERANCE


def test_odd_image_at_the_pixel_floor(first):
    model, config, graphdef, params, _ = first
    inputs = odd_image(37, 29, config)
    assert inputs.rows[0][1] == [(1, 6, 6)]  # 1,073 pixels come up to 84 x 84, the first size above 4,096
    ours = our_states(graphdef, params, inputs.batch(config))
    assert max(errors(inputs.torch_states(model), ours, inputs)) < TOLERANCE


@pytest.mark.slow
def test_bfloat16_pooled_cosine(pair, tmp_path):
    _, config, graphdef, params, folder = pair
    batch = random_inputs(CASES["image_and_text"], config).batch(config)
    half = load_weights(folder, config, dtype=jnp.bfloat16)[1]
    run = jax.jit(lambda p: nnx.merge(graphdef, p)(batch).pooled)
    full, low = np.asarray(run(params)), run(half)
    assert low.dtype == jnp.bfloat16
    low = np.asarray(low, np.float32)
    cosine = (full * low).sum(-1) / np.linalg.norm(full, axis=-1) / np.linalg.norm(low, axis=-1)
    assert cosine.min() >= 0.999


def test_windows_of_ragged_images():
    geometry = patch_geometry([(1, 2, 6), (2, 6, 2)], merge=2, side=None, window=4)
    assert geometry.interp_idx is None and geometry.interp_w is None
    assert geometry.segment.tolist() == [1] * 12 + [2] * 12 + [3] * 12
    assert geometry.window.tolist() == [1] * 8 + [2] * 4 + [3] * 8 + [4] * 4 + [5] * 8 + [6] * 4
    assert patch_geometry([], merge=2, side=None, window=4).window.shape == (0,)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2_5", "qwen2_5_wide_windows"])
def test_windows_of_large_images_match(pairs, monkeypatch, name):
    """Several images a bin, more patches than the windows' mask is used for; with and without rematerialisation."""
    model, config, graphdef, params, _ = pairs(name)
    inputs = random_inputs([[3, (1, 14, 18), 4, (1, 6, 10), 2], [(1, 16, 10), 5]], config)
    batch = inputs.batch(config, extra=3)
    assert batch.vision.window.shape[1] > 3 * config.vision.window_patches**2
    monkeypatch.setattr("smart_jax.models.attention.attention", None)  # which the windows may not call
    assert max(errors(inputs.torch_states(model), our_states(graphdef, params, batch), inputs)) < TOLERANCE

    def loss(p, remat):
        return jnp.sum(nnx.merge(graphdef, p)(batch, remat=remat).pooled ** 2)

    plain, saved = (jax.jit(jax.value_and_grad(lambda p, r=r: loss(p, r)))(params) for r in (False, True))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, saved)


def test_batch_carries_only_what_the_backbone_has(first):
    _, config, graphdef, params, _ = first
    batch = random_inputs(CASES["one_image"], config).batch(config)
    assert batch.vision.interp_idx is None and batch.vision.interp_w is None
    assert (batch.vision.window is None) == (config.model_type == "qwen2_vl")
    other = dataclasses.replace(batch.vision, interp_w=np.ones((*batch.vision.segment.shape, 4), np.float32))
    with pytest.raises(ValueError, match="of another backbone"):
        our_states(graphdef, params, dataclasses.replace(batch, vision=other))


# --- checkpoints ---------------------------------------------------------------------------------------------------


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_both_spellings_of_config_and_names(pair, tmp_path):
    model, config, _, params, folder = pair
    old = to_v4(folder, tmp_path / "v4")
    assert "text_config" not in json.loads((old / "config.json").read_text())
    assert load_config(old) == config
    to_v5_names(old)
    assert_same(load_weights(old, config)[1], params)
    model.save_pretrained(tmp_path / "without_head")  # visual.*, language_model.*
    assert_same(load_weights(tmp_path / "without_head", config)[1], params)


def test_transformers_reads_what_we_write(pair, tmp_path):
    model, config, _, params, folder = pair
    save_weights(tmp_path, params, config)
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert set(load_file(tmp_path / "model.safetensors")) | {"lm_head.weight"} == set(
        load_file(folder / "model.safetensors")
    )
    base = Qwen2VLModel if config.model_type == "qwen2_vl" else Qwen2_5_VLModel
    for cls, missing in ((CLASSES[config.model_type][1], {"lm_head.weight"}), (base, set())):
        again, info = cls.from_pretrained(tmp_path, output_loading_info=True)
        assert set(info["missing_keys"]) == missing
        assert not info["unexpected_keys"] and not info["mismatched_keys"]
        inputs = random_inputs(CASES["one_image"], config)
        np.testing.assert_array_equal(inputs.torch_last(getattr(again, "model", again)), inputs.torch_last(model))


def test_unused_doubled_and_unfilled_are_named(first, tmp_path):
    _, config, _, params, _ = first
    save_weights(tmp_path, params, config)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["visual.merger.ln_q.weight"]
    tensors |= {"visual.novelty.weight": np.ones(3), "model.language_model.norm.weight": tensors["model.norm.weight"]}
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"use: model\.norm\.weight, visual\.novelty.*fills: visual\.merger\.ln_q"):
        load_weights(tmp_path, config)


@pytest.mark.parametrize("family", CLASSES)
def test_vision_config_that_names_only_differences(family):
    """As transformers v4 saved fine-tunes: what equals the class's defaults is left out."""
    written = {"hidden_size": 1536, "in_chans": 3, "model_type": family, "spatial_patch_size": 14}
    text = {"vocab_size": 640, "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 12, "num_key_value_heads": 2, "rope_theta": 1e6}
    text |= {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}
    ids = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 3, "vision_end_token_id": 4}
    ours = QwenVLConfig.from_hf({"model_type": family, **text, **ids, "vision_config": written})
    theirs = CLASSES[family][0](**text, **ids, vision_config=dict(written))
    v = theirs.vision_config
    names = ["depth", "num_heads", "patch_size", "temporal_patch_size", "spatial_merge_size", "in_channels"]
    names += ["hidden_act", "initializer_range"]
    if family == "qwen2_vl":
        assert ours.vision.hidden_size == v.embed_dim == 1280 and ours.vision.out_hidden_size == v.hidden_size
        assert ours.vision.intermediate_size == v.embed_dim * v.mlp_ratio
    else:
        names += ["hidden_size", "out_hidden_size", "intermediate_size", "window_size", "fullatt_block_indexes"]
        names += ["tokens_per_second"]
    assert {n: getattr(ours.vision, n) for n in names} == {n: getattr(v, n) for n in names}
    assert ours.text.rms_norm_eps == theirs.text_config.rms_norm_eps
    assert ours.text.head_dim == 128


@pytest.mark.parametrize(
    ("section", "change", "message"),
    [
        ("text_config", {"use_sliding_window": True}, "use_sliding_window"),
        ("text_config", {"head_dim": 8}, r"head_dim must be hidden_size / num_attention_heads = 64 / 4"),
        ("text_config", {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "rope type 'yarn'"),
        ("text_config", {"rope_parameters": {"rope_theta": 1e6, "mrope_section": [2, 2, 2]}}, "add up to half of 16"),
        ("text_config", {"hidden_act": "relu6"}, "relu6"),
        ("vision_config", {"hidden_act": "relu6"}, "relu6"),
        (
            "vision_config",
            {"tokens_per_second": 0},
            r"vision_config\.tokens_per_second is 0\.0, expected a positive number",
        ),
        ("vision_config", {"window_size": 27}, "window_size 27 is smaller than one visual token"),
    ],
)
def test_what_is_not_supported_is_refused(pairs, tmp_path, section, change, message):
    config = json.loads((pairs("qwen2_5")[-1] / "config.json").read_text())
    config[section] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        load_config(tmp_path)


@pytest.mark.parametrize("family", CLASSES)
def test_encode_from_the_hub_layout(family, tmp_path):
    """Tokenizer, chat_template.json, preprocessor_config.json and weights of one folder; pooled as torch pools."""
    folder = tmp_path / "hub"
    family, text, vision, sections = CONFIGS[FIRST[family]]
    ids = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 3, "vision_end_token_id": 4}
    model = torch_model((family, {**text, "vocab_size": 640}, vision, sections), **ids)
    model.save_pretrained(tmp_path / "v5")
    write_processor(to_v4(tmp_path / "v5", folder), patch_size=14)
    template = folder / "chat_template.jinja"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template.read_text()}))
    template.unlink()

    encoder = smart_jax.load(folder, head="qwen3_vl_embedding")
    page = noise_page(150, 90)
    documents = [page, {"text": "revenue", "image": noise_page(60, 200, seed=1)}, "no image"]
    found = encoder.encode_document(documents)
    rows = [encoder.preprocessor.tokenize(d) for d in documents]
    theirs = Qwen2VLImageProcessorPil.from_pretrained(folder, min_pixels=4096, max_pixels=1_843_200)(images=[page])
    how = encoder.preprocessor.images.normalisation
    np.testing.assert_array_equal(values_of(rows[0].patches, how), theirs["pixel_values"])
    inputs = Inputs([(r.input_ids, list(r.grids), r.patches) for r in rows], image=5, how=how)
    last = inputs.torch_last(model.model)
    for i, row in enumerate(rows):
        states = last[i, : len(row.input_ids)]
        states /= np.linalg.norm(states, axis=-1, keepdims=True)
        np.testing.assert_allclose(found.pooled[i], states[-1], atol=TOLERANCE)
        np.testing.assert_allclose(found[i].tokens, states[row.keep], atol=TOLERANCE)
    scores = smart_jax.score(encoder.encode_query(["revenue by region"]), found)
    assert scores.shape == (1, 3) and np.isfinite(scores).all()


# --- negative controls: what must break parity by at least 100 times the tolerance -----------------------------------


def control_error(pair, change_config=lambda c: c, change_batch=lambda b: b, change_params=lambda p: p) -> float:
    model, config, _, params, _ = pair
    inputs = random_inputs([[3, (1, 4, 6), 4, (1, 8, 4), 2], [9, (1, 6, 6), 5]], config)
    changed, _ = abstract_model(change_config(config))
    ours = our_states(changed, change_params(params), change_batch(inputs.batch(config)))
    return max(errors(inputs.torch_states(model), ours, inputs))


def with_vision(batch, **changes):
    return dataclasses.replace(batch, vision=dataclasses.replace(batch.vision, **changes))


def test_controls_start_from_parity(first):
    assert control_error(first) < TOLERANCE


def test_control_interleaved_mrope(first):
    def interleaved(c):
        return dataclasses.replace(c, text=dataclasses.replace(c.text, mrope_interleaved=True))

    assert control_error(first, interleaved) > BROKEN


def test_control_no_windows(pairs):
    assert control_error(pairs("qwen2_5"), change_batch=lambda b: with_vision(b, window=b.vision.segment)) > BROKEN


def test_control_windows_everywhere(pairs):
    assert control_error(pairs("qwen2_5"), change_batch=lambda b: with_vision(b, segment=b.vision.window)) > BROKEN


def test_control_swapped_height_and_width(first):
    assert control_error(first, change_batch=lambda b: with_vision(b, coords=b.vision.coords[..., ::-1])) > BROKEN

    def swapped_positions(b):
        return dataclasses.replace(b, position_ids=b.position_ids[[0, 2, 1]])

    assert control_error(first, change_batch=swapped_positions) > BROKEN


@pytest.mark.parametrize("name", ["q_proj", "k_proj", "v_proj"])
def test_control_dropped_bias(first, name):
    def dropped(params):
        leaves = [
            (path, leaf.replace(leaf[...] * 0) if path[-2:] == (name, "bias") else leaf)
            for path, leaf in nnx.to_flat_state(params)
        ]
        return nnx.from_flat_state(leaves)

    assert control_error(first, change_params=dropped) > BROKEN


def test_control_attended_padding(first):
    """Padding attended on the left of the text, and padding patches in an image's segment."""
    model, config, graphdef, params, _ = first
    inputs = random_inputs(CASES["text"], config)
    batch = inputs.batch(config, left=True)
    batch = dataclasses.replace(batch, attention_mask=np.ones_like(batch.attention_mask))
    theirs = inputs.torch_states(model, left=True)
    assert max(errors(theirs, our_states(graphdef, params, batch), inputs, left=True)) > BROKEN
    assert control_error(first, change_batch=lambda b: with_vision(b, segment=np.ones_like(b.vision.segment))) > BROKEN
