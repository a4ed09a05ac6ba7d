"""PEFT adapters in checkpoint folders: where they lie, whose files are used, tasks, and what is said of bad ones."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

import smart_jax
from smart_jax.files.checkpoint import CONFIG_FILE, SINGLE_FILE, WEIGHTS_FILE, Checkpoint
from smart_jax.files.hub import resolve_base
from smart_jax.models import load_config, peft
from smart_jax.models.weights import load_weights, save_weights
from tests.checkpoints import CHAT_TEMPLATE, write_processor
from tests.lora import write_lora
from tests.small_bert import write_json, write_sentence_transformer

QUERY = "model.language_model.layers.0.self_attn.q_proj"
MODULES = {
    QUERY: (32, 32),
    "model.language_model.layers.1.mlp.down_proj": (32, 48),
    "model.visual.blocks.1.attn.qkv": (48, 16),
    "model.visual.deepstack_merger_list.0.linear_fc2": (32, 64),
}
BERT_MODULES = {"encoder.layer.0.attention.self.query": (32, 32), "encoder.layer.1.output.dense": (32, 48)}
TASKS = ("retrieval", "text-matching")


def merged(checkpoint, added):
    """The base's weights with what the adapter adds, merged in float64."""
    tensors = load_file(checkpoint / SINGLE_FILE)
    for module, delta in added.items():
        weight = tensors[f"{module}.weight"]
        tensors[f"{module}.weight"] = (weight.astype(np.float64) + delta).astype(np.float32)
    return tensors


def assert_merged(params, config, expected, tmp_path):
    found = load_file(save_weights(tmp_path / "written", params, config))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6)


@pytest.fixture
def adapter(checkpoint, tmp_path):
    """Folder of an adapter without weights, tokenizer or config.json."""
    write_lora(tmp_path / "adapter", MODULES, base_model_name_or_path=str(checkpoint))
    return tmp_path / "adapter"


def change(adapter, edit, **config):
    path = adapter / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    tensors = load_file(adapter / WEIGHTS_FILE)
    edit(tensors)
    save_file(tensors, adapter / WEIGHTS_FILE)


def test_adapter_alone(checkpoint, tmp_path):
    added = write_lora(tmp_path / "adapter", MODULES, base_model_name_or_path=str(checkpoint))[None]
    encoder = smart_jax.load(tmp_path / "adapter")
    assert encoder.folder == tmp_path / "adapter"
    assert_merged(encoder.params, encoder.config, merged(checkpoint, added), tmp_path)
    assert encoder.encode_query(["revenue"]).pooled.shape == (1, 32)


def test_adapter_beside_the_weights_and_below_them(checkpoint, tmp_path):
    """Merged into the folder's own weights, whatever base the adapter names."""
    for place in (".", "adapters"):
        folder = shutil.copytree(checkpoint, tmp_path / f"base_{place}")
        added = write_lora(folder / place, MODULES, base_model_name_or_path="nobody/nowhere")[None]
        assert resolve_base(folder) is None
        config = load_config(folder)
        assert_merged(load_weights(folder, config)[1], config, merged(checkpoint, added), tmp_path / place)


def test_small_steps_make_the_same(checkpoint, adapter, monkeypatch):
    config = load_config(checkpoint)
    whole = load_weights(Checkpoint(adapter, checkpoint), config)[1]
    monkeypatch.setattr(peft, "CHUNK", 100)
    jax.tree.map(np.testing.assert_array_equal, whole, load_weights(Checkpoint(adapter, checkpoint), config)[1])


def test_relative_base_and_hub_id(checkpoint, adapter, tmp_path, monkeypatch):
    shutil.copytree(checkpoint, tmp_path / "beside")
    change(adapter, lambda t: None, base_model_name_or_path="../beside")
    assert resolve_base(adapter) == tmp_path / "beside"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit, repository = "0" * 40, tmp_path / "models--someone--base"
    snapshot = shutil.copytree(checkpoint, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "fixed").write_text(commit)
    change(adapter, lambda t: None, base_model_name_or_path="someone/base", revision="fixed")
    assert resolve_base(adapter) == snapshot


def test_files_of_the_adapter_come_first(checkpoint, adapter):
    """Tokenizer with its template, image settings and smart_jax.json, each on its own."""
    other = write_processor(adapter.parent / "other")
    (other / "chat_template.jinja").write_text(CHAT_TEMPLATE.replace("assistant", "helper"))
    image_settings = json.loads((other / "preprocessor_config.json").read_text()) | {"image_mean": [0.25, 0.5, 0.5]}
    before = smart_jax.load(adapter).preprocessor
    assert before.images.image_mean == (0.5, 0.5, 0.5) and "assistant" in before.prompt(["x"], 0)

    (adapter / "preprocessor_config.json").write_text(json.dumps(image_settings))
    (adapter / "smart_jax.json").write_text('{"max_length": 99}')
    assert "assistant" in smart_jax.load(adapter).preprocessor.prompt(["x"], 0)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(other / name, adapter)
    preprocessor = smart_jax.load(adapter).preprocessor
    assert preprocessor.images.image_mean == (0.25, 0.5, 0.5) and preprocessor.settings.max_length == 99
    assert "helper" in preprocessor.prompt(["x"], 0)

    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["rms_norm_eps"] = 1e-3
    (adapter / "config.json").write_text(json.dumps(config))
    assert smart_jax.load(adapter).config.text.rms_norm_eps == 1e-3


def test_sentence_transformer_adapter(tmp_path):
    base = write_sentence_transformer(tmp_path / "base", "cls")
    adapter = tmp_path / "adapter"
    added = write_lora(adapter, BERT_MODULES, base_model_name_or_path="../base")[None]
    encoder = smart_jax.load(adapter)
    assert encoder.config.pooling == "cls" and encoder.preprocessor.settings.max_length == 24
    assert_merged(encoder.params, encoder.config, merged(base, added), tmp_path)
    write_json(adapter / "smart_jax.json", {"max_length": 20})
    assert smart_jax.load(adapter).config.pooling == "cls"
    write_json(adapter / "smart_jax.json", {"pooling": "mean", "max_length": 20})
    encoder = smart_jax.load(adapter)
    assert encoder.config.pooling == "mean" and encoder.preprocessor.settings.max_length == 20


# --- tasks --------------------------------------------------------------------------------------------------------


@pytest.fixture
def with_tasks(checkpoint, tmp_path):
    """A checkpoint with an adapter for each task, and what each adds."""
    folder = shutil.copytree(checkpoint, tmp_path / "tasks")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"task_names": TASKS}))
    return folder, write_lora(folder / "adapters", MODULES, TASKS)


def test_each_task(checkpoint, with_tasks, tmp_path):
    folder, added = with_tasks
    for task in TASKS:
        encoder = smart_jax.load(folder, task=task)
        assert_merged(encoder.params, encoder.config, merged(checkpoint, added[task]), tmp_path / task)
    first = smart_jax.load(folder).params
    jax.tree.map(np.testing.assert_array_equal, first, smart_jax.load(folder, task=TASKS[0]).params)


def test_unknown_task(checkpoint, with_tasks):
    with pytest.raises(ValueError, match="task is 'cooking', expected 'retrieval' or 'text-matching'"):
        smart_jax.load(with_tasks[0], task="cooking")
    with pytest.raises(ValueError, match="task is 'retrieval', but the checkpoint has no tasks: leave it out"):
        smart_jax.load(checkpoint, task="retrieval")


def test_tasks_without_adapters(with_tasks):
    shutil.rmtree(with_tasks[0] / "adapters")
    with pytest.raises(ValueError, match=r"has the tasks retrieval, text-matching, but .*missing \(adapters/\): fetch"):
        smart_jax.load(with_tasks[0])


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (
            (*TASKS, "code"),
            r"q_proj\.lora_A\.code\.weight.* tagged 'code', expected a tag of the tasks retrieval, text-",
        ),
        ((None,), r"q_proj\.lora_A\.weight.* tagged None, expected a tag of the tasks retrieval"),
    ],
)
def test_tags_and_tasks_do_not_match(with_tasks, tasks, message):
    write_lora(with_tasks[0] / "adapters", MODULES, tasks)
    with pytest.raises(ValueError, match=message):
        smart_jax.load(with_tasks[0])


def test_a_factor_of_another_task_is_missing(with_tasks):
    change(with_tasks[0] / "adapters", lambda t: t.pop(f"base_model.model.{QUERY}.lora_B.text-matching.weight"))
    with pytest.raises(ValueError, match=r"lora_A\.text-matching\.weight lacks lora_B beside it in .*q_proj"):
        smart_jax.load(with_tasks[0], task="retrieval")


# --- bad input ----------------------------------------------------------------------------------------------------


def rename(old, new):
    def edit(tensors):
        tensors[f"base_model.model.{new}"] = tensors.pop(f"base_model.model.{old}")

    return edit


def put(name, *shape):
    return lambda tensors: tensors.update({f"base_model.model.{name}": np.ones(shape, np.float32)})


@pytest.mark.parametrize(
    ("edit", "config", "message"),
    [
        (lambda t: t.pop(f"base_model.model.{QUERY}.lora_B.weight"), {}, r"q_proj\.lora_A\.weight lacks lora_B beside"),
        (lambda t: t.pop(f"base_model.model.{QUERY}.lora_A.weight"), {}, r"q_proj\.lora_B\.weight lacks lora_A beside"),
        (put(f"{QUERY}.lora_magnitude_vector", 32), {}, r"q_proj\.lora_magnitude_vector is not expected"),
        (put(f"{QUERY}.lora_B.bias", 32), {}, r"q_proj\.lora_B\.bias is not expected"),
        (put(f"{QUERY}.lora_embedding_A", 4, 32), {}, "lacks lora_embedding_B"),
        (lambda t: None, {"use_dora": True}, "lacks lora_magnitude_vector beside it in model.language_model"),
        (lambda t: None, {"lora_bias": True}, "lacks lora_B.bias beside it"),
        (lambda t: t.clear(), {}, "holds no LoRA factors"),
        (
            put("model.language_model.novelty.weight", 3),
            {},
            r"not use: base_model\.model\.model\.language_model\.novelty",
        ),
        (put(f"{QUERY}.token_adapter.trainable_tokens_delta", 3), {}, r"not use: .*trainable_tokens_delta"),
        (put("model.language_model.norm.weight", 7), {}, r"norm\.weight' gives shape \(7,\)"),
        (
            rename(f"{QUERY}.lora_A.weight", f"{QUERY}.lora_A.other.weight"),
            {},
            r"lora_A\.other\.weight is tagged 'other'",
        ),
        (put("layers.0.self_attn.q_proj.lora_A.weight", 4, 32), {}, r"lacks lora_B beside it in layers\.0"),
        (put(f"{QUERY}.lora_A.weight", 3, 32), {}, r"lora_A\.weight' has rank 3, but adapter_config.json says 4"),
        (put(f"{QUERY}.lora_A.weight", 4, 31), {}, r"lora_A\.weight' \(4, 31\) and .* of another base model"),
        (
            put(f"{QUERY}.lora_B.weight", 64, 4),
            {},
            r"lora_B\.weight' \(64, 4\) do not make a weight of shape \(32, 32\)",
        ),
        (lambda t: None, {"peft_type": "IA3"}, "peft_type 'IA3' is not supported, only 'LORA'"),
        (lambda t: None, {"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' changes the base weights: convert"),
        (lambda t: None, {"use_qalora": True}, "use_qalora is not supported"),
        (lambda t: None, {"alora_invocation_tokens": [1]}, "alora_invocation_tokens is not supported"),
        (lambda t: None, {"r": 0}, "r of model.* is 0, expected an integer from 1"),
        (lambda t: None, {"base_model_name_or_path": None}, "has no base_model_name_or_path: set it"),
    ],
)
def test_bad_adapter(adapter, edit, config, message):
    change(adapter, edit, **config)
    with pytest.raises(ValueError, match=message):
        smart_jax.load(adapter)


def test_bad_magnitude_and_bias(checkpoint, adapter):
    with_magnitudes = {f"{module}.lora_magnitude_vector": outputs for module, (outputs, _) in MODULES.items()}
    for edit in (put(name, outputs) for name, outputs in with_magnitudes.items()):
        change(adapter, edit, use_dora=True)
    load_weights(Checkpoint(adapter, checkpoint), load_config(checkpoint))
    change(adapter, put(f"{QUERY}.lora_magnitude_vector", 31))
    with pytest.raises(ValueError, match="lora_magnitude_vector' has 31 values, but its layer 32 outputs"):
        smart_jax.load(adapter)


def test_one_tensor_under_two_names(adapter):
    def twice(tensors):
        for part in ("lora_A", "lora_B"):
            tensors[f"base_model.model.layers.0.self_attn.q_proj.{part}.weight"] = tensors[
                f"base_model.model.{QUERY}.{part}.weight"
            ]

    change(adapter, twice)
    with pytest.raises(ValueError, match=r"layers\.0\.self_attn\.q_proj\.lora_A.* are of one and the same tensor"):
        smart_jax.load(adapter)


def test_missing_and_broken_files(checkpoint, adapter, tmp_path):
    change(adapter, lambda t: None, base_model_name_or_path="./gone")
    with pytest.raises(
        FileNotFoundError, match=r"adapter_config.json: set base_model_name_or_path .*'./gone' is not a folder"
    ):
        smart_jax.load(adapter)
    change(adapter, lambda t: None, base_model_name_or_path=str(checkpoint))
    data = (adapter / WEIGHTS_FILE).read_bytes()
    (adapter / WEIGHTS_FILE).write_bytes(data[:200])
    with pytest.raises(ValueError, match="adapter_model.safetensors is corrupt or truncated"):
        smart_jax.load(adapter)
    (adapter / WEIGHTS_FILE).unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no adapter_model.safetensors: save the adapter in safetensors, or remove"
    ):
        smart_jax.load(adapter)
    for text, message in (("{", "is not valid JSON"), ("[]", "holds a JSON list")):
        (adapter / CONFIG_FILE).write_text(text)
        with pytest.raises(ValueError, match=message):
            smart_jax.load(adapter)


def test_adapters_in_two_places(checkpoint, adapter, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "base")
    for place in (folder, folder / "adapters"):
        write_lora(place, MODULES)
    with pytest.raises(ValueError, match="both hold an adapter_config.json"):
        smart_jax.load(folder)
    shutil.rmtree(folder / "adapters")
    change(adapter, lambda t: None, base_model_name_or_path="../base")
    with pytest.raises(ValueError, match=r"base model \.\./base has an adapter itself: merge"):
        smart_jax.load(adapter)


def test_no_base_given(checkpoint, adapter):
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor"):
        load_weights(adapter, load_config(checkpoint))


def test_merging_keeps_the_model(adapter):
    """The structure is that of the base: nothing of the adapter is left to compute."""
    encoder = smart_jax.load(adapter)
    names = {str(part) for path, _ in nnx.to_flat_state(encoder.params) for part in path}
    assert not any("lora" in name for name in names)
