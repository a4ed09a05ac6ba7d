"""Each published model's embeddings, from a folder in its layout, against torch run as the model's own code does."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import smart_jax
from smart_jax.inputs.presets import PRESETS
from tests.checkpoints import noise_page, write_processor
from tests.parity import qwen2_vl, qwen3_vl
from tests.parity.qwen3_vl import BROKEN, TOLERANCE, Inputs

pytestmark = pytest.mark.compiles

IDS = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 3, "vision_end_token_id": 4}
SMALL = {"min_pixels": 2048, "max_pixels": 16384}  # the published bounds are checked in tests/test_heads.py
CASES = [
    ("qwen3_vl_embedding", "qwen3_vl"),
    ("gme", "qwen2_vl"),
    ("lamra", "qwen2_vl"),
    ("lamra", "qwen2_5_vl"),
    ("lamra_qwen3_vl", "qwen3_vl"),
    ("vlm2vec", "qwen2_vl"),
    ("jina_embeddings_v4", "qwen2_5_vl"),
    ("ops_mm_embedding", "qwen2_vl"),
    ("rzen_embed", "qwen2_vl"),
    ("unite", "qwen2_vl"),
    ("gve", "qwen2_5_vl"),
    ("moca", "qwen2_5_vl"),
    ("nomic_embed_multimodal", "qwen2_5_vl"),
    ("eager_embed", "qwen3_vl"),
]
EMBEDDINGS_ONLY = {"gme", "lamra", "lamra_qwen3_vl", "vlm2vec", "rzen_embed", "unite"}
DOCUMENTS = [noise_page(150, 90), {"text": "revenue", "image": noise_page(60, 200, seed=1)}, "no image: 12,345"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """(torch model, folder) of a model_type."""
    made = {}

    def make(model_type):
        if model_type not in made:
            folder = tmp_path_factory.mktemp(model_type)
            if model_type == "qwen3_vl":
                text, vision, sections = qwen3_vl.CONFIGS["two_taps"]
                model = qwen3_vl.torch_model(({**text, "vocab_size": 640}, vision, sections), **IDS)
                model.save_pretrained(folder)
            else:
                name = {"qwen2_vl": "qwen2", "qwen2_5_vl": "qwen2_5"}[model_type]
                family, text, vision, sections = qwen2_vl.CONFIGS[name]
                whole = qwen2_vl.torch_model((family, {**text, "vocab_size": 640}, vision, sections), **IDS)
                whole.save_pretrained(folder)
                model = whole.model
            write_processor(folder, patch_size=16 if model_type == "qwen3_vl" else 14)
            made[model_type] = model, folder
        return made[model_type]

    return make


def embeddings_only(model, inputs):
    """Last states where visual features enter as embeddings, and the decoder is left to number the positions."""
    found = inputs.torch_inputs()
    with torch.no_grad():
        embeds = model.get_input_embeddings()(found["input_ids"])
        if "pixel_values" in found:
            features = model.get_image_features(found["pixel_values"], found["image_grid_thw"]).pooler_output
            mask = (found["input_ids"] == IDS["image_token_id"])[..., None].expand_as(embeds)
            embeds = embeds.masked_scatter(mask, torch.cat(list(features)))
        decoder = model.language_model
        return decoder(inputs_embeds=embeds, attention_mask=found["attention_mask"]).last_hidden_state.numpy()


def to_both_sides(model, inputs):
    """Last states where each token attends to those after it, too."""
    decoder = model.language_model
    for part in (decoder.config, *(layer.self_attn for layer in decoder.layers)):
        part.is_causal = False
    try:
        return inputs.torch_last(model)
    finally:
        for part in (decoder.config, *(layer.self_attn for layer in decoder.layers)):
            part.is_causal = True


def pooled_position(head, row, tokenizer):
    """Indices of the states whose mean is the pooled one, by each model's own rule."""
    ids = row.input_ids.tolist()
    if head.startswith("lamra"):
        return [ids.index(tokenizer.convert_tokens_to_ids("<emb>")) - 1]
    if head == "jina_embeddings_v4":
        return list(range(ids.index(3), ids.index(4) + 1)) if 3 in ids else list(range(len(ids)))
    return list(range(len(ids))) if head == "moca" else [len(ids) - 1]


RUNS = dict.fromkeys(EMBEDDINGS_ONLY, embeddings_only) | {"moca": to_both_sides}


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize(("head", "model_type"), CASES)
def test_embeddings(checkpoint, head, model_type):
    model, folder = checkpoint(model_type)
    encoder = smart_jax.load(folder, head=head, settings=SMALL)
    for query in (False, True):
        found = encoder.encode(DOCUMENTS, query=query)
        rows = [encoder.preprocessor.tokenize(item, query=query) for item in DOCUMENTS]
        how = encoder.preprocessor.images.normalisation
        inputs = Inputs([(row.input_ids, list(row.grids), row.patches) for row in rows], image=5, how=how)
        last = RUNS.get(head, lambda model, inputs: inputs.torch_last(model))(model, inputs)
        for i, row in enumerate(rows):
            states = last[i, : len(row.input_ids)]
            pooled = states[pooled_position(head, row, encoder.preprocessor.tokenizer)].mean(0)
            np.testing.assert_allclose(found.pooled[i], unit(pooled), atol=TOLERANCE)
            np.testing.assert_allclose(found[i].tokens, unit(states)[row.keep], atol=TOLERANCE)


def test_every_head_is_here():
    pooled = {head for head, preset in PRESETS.items() if preset.settings.pooling != "none"}
    assert {head for head, _ in CASES} == pooled - {"embedding_gemma2"}  # it and the others have files of their own


@pytest.mark.parametrize(
    ("head", "model_type", "settings"),
    [
        ("gme", "qwen2_vl", {"positions": "mrope"}),
        ("lamra", "qwen2_5_vl", {"positions": "mrope"}),
        ("lamra", "qwen2_vl", {"pooling": "last"}),
        ("lamra_qwen3_vl", "qwen3_vl", {"deepstack": True}),
        ("lamra_qwen3_vl", "qwen3_vl", {"positions": "mrope"}),
        ("jina_embeddings_v4", "qwen2_5_vl", {"pooling": "last"}),
        ("moca", "qwen2_5_vl", {"causal": True}),
        ("moca", "qwen2_5_vl", {"pooling": "mean"}),
        ("qwen3_vl_embedding", "qwen3_vl", {"deepstack": False}),
    ],
)
def test_other_settings_are_another_model(checkpoint, head, model_type, settings):
    _, folder = checkpoint(model_type)
    page = DOCUMENTS[:1]
    own, other = (
        smart_jax.load(folder, head=head, settings=SMALL | more).encode_document(page) for more in ({}, settings)
    )
    assert np.abs(own.pooled - other.pooled).max() > BROKEN
