"""jina-embeddings-v4's file layout on random weights: the token projector and the tasks' adapters, against torch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.numpy import load_file, save_file

import smart_jax
from smart_jax.files.checkpoint import SINGLE_FILE
from smart_jax.models import load_config
from smart_jax.models.weights import load_weights, save_weights
from smart_jax.retrieval.adapter import Adapter, AdapterConfig
from smart_jax.runtime.mesh import make_mesh
from tests.checkpoints import noise_page, write_processor
from tests.lora import write_lora
from tests.parity.qwen2_vl import CONFIGS, to_v4, torch_model
from tests.parity.qwen3_vl import BROKEN, TOLERANCE, Inputs
from tests.pixels import CONSTANTS
from tests.training import make_config
from train.setup import load_encoder, make_objective

pytestmark = pytest.mark.compiles

TASKS = ("retrieval", "text-matching", "code")
WIDTH, DIM, LAYERS = 64, 24, 4
OF_A_LAYER = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (96, 64),
    "mlp.up_proj": (96, 64),
    "mlp.down_proj": (64, 96),
}
MODULES = {
    f"model.language_model.layers.{i}.{name}": shape for i in range(LAYERS) for name, shape in OF_A_LAYER.items()
}
MODULES["multi_vector_projector"] = (DIM, WIDTH)
KEYS = {
    "architectures": ["JinaEmbeddingsV4Model"],
    "multi_vector_projector_dim": DIM,
    "single_vector_pool_strategy": "mean",
    "matryoshka_dims": [8, 16, 32, 64],
    "task_names": TASKS,
}
DOCUMENTS = ["revenue by region", {"text": "report", "image": noise_page(60, 200, seed=1)}, noise_page(150, 90), "a"]


@pytest.fixture(scope="module")
def jina(tmp_path_factory):
    """(folder, torch model of the base, projector's weight and bias, what each task adds)."""
    root = tmp_path_factory.mktemp("jina")
    family, text, vision, sections = CONFIGS["qwen2_5"]
    ids = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 3, "vision_end_token_id": 4}
    model = torch_model((family, {**text, "vocab_size": 640}, vision, sections), **ids)
    folder = root / "checkpoint"
    model.save_pretrained(folder)
    rng = np.random.default_rng(0)
    projector = rng.normal(0, 0.1, (DIM, WIDTH)).astype(np.float32), rng.normal(0, 0.5, DIM).astype(np.float32)
    tensors = load_file(folder / SINGLE_FILE)
    tensors |= dict(zip(("multi_vector_projector.weight", "multi_vector_projector.bias"), projector, strict=True))
    save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})
    change_config(folder, KEYS)
    write_processor(folder, patch_size=14)
    added = write_lora(folder / "adapters", MODULES, TASKS, target_modules=".*", exclude_modules=".*visual.*")
    return folder, model, projector, added


def change_config(folder: Path, keys, *without: str) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text()) | keys
    path.write_text(json.dumps({name: value for name, value in config.items() if name not in without}))


def last_states(jina, task: str, rows) -> list[np.ndarray]:
    """States [L, H] of each row: weights merged in float64, then torch."""
    _, model, _, added = jina
    layers = {name.removeprefix("model."): delta for name, delta in added[task].items() if name.startswith("model.")}
    before = {name: model.model.get_submodule(name).weight.detach().clone() for name in layers}
    try:
        with torch.no_grad():
            for name, delta in layers.items():
                model.model.get_submodule(name).weight.copy_((before[name].double() + torch.tensor(delta)).float())
        inputs = Inputs([(r.input_ids, list(r.grids), r.patches) for r in rows], image=5, how=CONSTANTS["clip"])
        last = inputs.torch_last(model.model)
    finally:
        with torch.no_grad():
            for name, value in before.items():
                model.model.get_submodule(name).weight.copy_(value)
    return [last[i, : len(row.input_ids)] for i, row in enumerate(rows)]


def expected_tokens(jina, task: str, rows) -> list[np.ndarray]:
    """Normalised token vectors [L, D] of each row."""
    weight, bias = jina[2]
    weight = weight + jina[3][task]["multi_vector_projector"]
    tokens = [states.astype(np.float64) @ weight.T + bias for states in last_states(jina, task, rows)]
    return [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in tokens]


def test_token_vectors_of_each_task(jina):
    found = {}
    for task in TASKS:
        encoder = smart_jax.load(jina[0], task=task)
        found[task] = encoder.encode_document(DOCUMENTS)
        rows = [encoder.preprocessor.tokenize(document) for document in DOCUMENTS]
        assert found[task].tokens.shape == (sum(row.keep.sum() for row in rows), DIM)
        for i, (row, tokens) in enumerate(zip(rows, expected_tokens(jina, task, rows), strict=True)):
            np.testing.assert_allclose(found[task][i].tokens, tokens[row.keep], atol=TOLERANCE)
    for task in TASKS[1:]:
        assert np.abs(found[task].tokens - found[TASKS[0]].tokens).max() > BROKEN
    default = smart_jax.load(jina[0]).encode_document(DOCUMENTS)
    np.testing.assert_array_equal(default.tokens, found["retrieval"].tokens)
    assert default.pooled.shape == (len(DOCUMENTS), WIDTH)


def test_single_vector_and_all_tokens(jina):
    """The mean of the states from <|vision_start|> to <|vision_end|>, or of all; special tokens have vectors, too."""
    encoder = smart_jax.load(jina[0], task="code")
    found = encoder.encode_document(DOCUMENTS)
    rows = [encoder.preprocessor.tokenize(document) for document in DOCUMENTS]
    states = last_states(jina, "code", rows)
    for i, (row, tokens) in enumerate(zip(rows, expected_tokens(jina, "code", rows), strict=True)):
        ids = row.input_ids.tolist()
        pooled = states[i][ids.index(3) : ids.index(4) + 1].mean(0) if 3 in ids else states[i].mean(0)
        np.testing.assert_allclose(found.pooled[i], pooled / np.linalg.norm(pooled), atol=TOLERANCE)
        np.testing.assert_allclose(found[i].tokens, tokens, atol=TOLERANCE)


def test_an_adapter_takes_the_states(jina):
    """A token projection trained here replaces the model's own."""
    encoder = smart_jax.load(jina[0])
    adapter = Adapter(AdapterConfig(WIDTH, dim=16), rngs=nnx.Rngs(0))
    rows = [encoder.preprocessor.tokenize(document) for document in DOCUMENTS]
    states = last_states(jina, "retrieval", rows)
    found = encoder.with_adapter(adapter).encode_document(DOCUMENTS)
    for i, row in enumerate(rows):
        np.testing.assert_allclose(found[i].tokens, adapter(states[i][row.keep][:, None]), atol=TOLERANCE)


def test_full_training_sees_the_token_vectors(jina, tmp_path):
    mesh = make_mesh(devices=jax.devices()[:1])
    config = make_config(tmp_path, tmp_path, model=str(jina[0]), trainable="full")
    encoder = load_encoder(config, mesh)
    params, frozen, objective = make_objective(config, encoder, mesh, steps=1)
    batch = encoder.preprocessor.collate([encoder.preprocessor.tokenize(document) for document in DOCUMENTS])
    found = jax.jit(objective.encode)(params, frozen, batch).tokens
    np.testing.assert_allclose(found, encoder.embed(batch)[1], atol=TOLERANCE)


def test_weights_round_trip(jina, tmp_path):
    """Written with the merged task under the checkpoint's names, and read without adapters."""
    config = load_config(jina[0])
    params = load_weights(jina[0], config, task="text-matching")[1]
    shutil.copy(jina[0] / "config.json", tmp_path)
    change_config(tmp_path, {}, "task_names")
    written = load_file(save_weights(tmp_path, params, config))
    assert written.keys() == load_file(jina[0] / SINGLE_FILE).keys() - {"lm_head.weight"}
    merged = jina[2][0] + jina[3]["text-matching"]["multi_vector_projector"]
    np.testing.assert_allclose(written["multi_vector_projector.weight"], merged, atol=1e-6)
    again = load_file(save_weights(tmp_path / "again", load_weights(tmp_path, load_config(tmp_path))[1], config))
    for name, value in written.items():
        np.testing.assert_array_equal(again[name], value)


def test_config_spellings(jina, tmp_path):
    """Text keys nested, at the top, or in both places; a model_type of its own or none."""
    config = load_config(jina[0])
    assert (config.model_type, config.token_dim, config.task_names) == ("qwen2_5_vl", DIM, TASKS)
    flat = to_v4(jina[0], tmp_path / "flat")
    assert load_config(flat) == config
    nested = json.loads((jina[0] / "config.json").read_text())["text_config"]
    rope = nested.pop("rope_parameters")
    nested |= {"rope_theta": rope["rope_theta"]}  # the sections at the top only
    change_config(flat, {"text_config": nested})
    assert load_config(flat) == config
    change_config(flat, {"model_type": "jina_embeddings_v4"})
    assert load_config(flat) == config
    change_config(flat, {}, "model_type")
    assert load_config(flat) == config
    change_config(flat, {"architectures": ["Other"], "model_type": "other"})
    with pytest.raises(ValueError, match="model_type 'other' is not supported"):
        load_config(flat)


@pytest.mark.parametrize("dim", [0, "128", True])
def test_bad_token_dim(jina, tmp_path, dim):
    shutil.copy(jina[0] / "config.json", tmp_path)
    change_config(tmp_path, {"multi_vector_projector_dim": dim})
    with pytest.raises(ValueError, match="multi_vector_projector_dim is .*, expected an integer from 1"):
        load_config(tmp_path)


def test_projector_and_config_must_match(jina, tmp_path):
    folder = shutil.copytree(jina[0], tmp_path / "jina")
    change_config(folder, {}, "multi_vector_projector_dim")
    with pytest.raises(ValueError, match=r"does not use: multi_vector_projector\.bias, multi_vector_projector\.weight"):
        smart_jax.load(folder)
    change_config(folder, {"multi_vector_projector_dim": DIM})
    tensors = load_file(folder / SINGLE_FILE)
    del tensors["multi_vector_projector.bias"]
    save_file(tensors, folder / SINGLE_FILE)
    with pytest.raises(ValueError, match=r"no tensor fills: multi_vector_projector\.bias"):
        smart_jax.load(folder)
