"""Merged adapters against peft: parameters within 1e-6 of its merge_and_unload, states within 2e-5 of its model."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.numpy import load_file, save_file
from transformers import BertConfig, BertModel

from smart_jax.files.checkpoint import WEIGHTS_FILE, Checkpoint
from smart_jax.models import load_config
from smart_jax.models.batch import Batch
from smart_jax.models.weights import load_weights
from tests.parity.qwen2_vl import CLASSES, CONFIGS, torch_model
from tests.parity.qwen3_vl import BROKEN, CASES, TOLERANCE, Inputs, errors, our_states

pytestmark = pytest.mark.compiles

MERGED = 1e-6
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv", "attn.proj", "fc1", "fc2"]
PATTERNS = {
    "rank_pattern": {
        "layers.0.self_attn.q_proj": 2,
        r"layers\.[12]\..*": 6,
        "q_proj": 5,
        "^model.visual.blocks.0.mlp.fc1": 3,
    },
    "alpha_pattern": {r"layers\.\d\.self_attn\.[qk]_proj": 3, "attn.qkv": 7, "v_proj": 9},
}
ADAPTERS = {
    "lora": {"target_modules": LINEAR},
    "rslora": {"target_modules": LINEAR, "use_rslora": True},
    "patterns": {"target_modules": LINEAR, **PATTERNS},
    "dora": {"target_modules": LINEAR, "use_dora": True},
    "dora_rslora_patterns": {"target_modules": LINEAR, "use_dora": True, "use_rslora": True, **PATTERNS},
    "every_bias": {"target_modules": ["q_proj", "v_proj", "qkv"], "bias": "all"},
    "their_bias": {"target_modules": ["q_proj", "v_proj", "qkv"], "bias": "lora_only"},
    "bias_of_b": {"target_modules": ["q_proj", "v_proj", "qkv"], "lora_bias": True, "bias": "lora_only"},
    "modules_to_save": {"target_modules": ["q_proj"], "modules_to_save": ["merger", "norm", "k_proj"], "bias": "all"},
    "convolution": {"target_modules": ["patch_embed.proj", "o_proj"]},
    "convolution_dora": {"target_modules": ["patch_embed.proj", "o_proj"], "use_dora": True},
    "embedding": {"target_modules": ["embed_tokens", "up_proj"]},
    "embedding_dora": {"target_modules": ["embed_tokens", "up_proj"], "use_dora": True},
    "head": {"target_modules": ["lm_head", "k_proj"]},  # no embedding uses it
}
BERT_ADAPTERS = {
    "lora": {"target_modules": ["query", "key", "value", "dense"]},  # the pooler's, too, which is not computed
    "dora": {"target_modules": ["query", "value", "output.dense", "intermediate.dense"], "use_dora": True},
    "bias": {"target_modules": ["query", "dense"], "bias": "all"},
    "modules_to_save": {"target_modules": ["value"], "modules_to_save": ["LayerNorm", "position_embeddings"]},
    "embedding": {"target_modules": ["word_embeddings"], "use_dora": True},
}


def write_adapter(model, folder: Path, **lora) -> Path:
    """Adds a random adapter to the model and saves it: no factor is zero, no magnitude and no module as in the base."""
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=6, **lora))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.mul_(1 + 0.2 * torch.randn_like(parameter)).add_(0.05 * torch.randn_like(parameter))
    adapted.save_pretrained(folder)
    return folder


def merged_by_peft(adapted: PeftModel, folder: Path) -> Path:
    model = adapted.merge_and_unload()
    model.save_pretrained(folder)
    return folder


def largest_difference(a, b) -> float:
    return max(
        float(np.abs(np.asarray(x) - np.asarray(y)).max()) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    )


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """(folder, function that opens its torch model), by family."""

    @functools.cache
    def base(family):
        folder = tmp_path_factory.mktemp(family)
        if family == "bert":
            config = BertConfig(
                vocab_size=200,
                max_position_embeddings=48,
                hidden_size=64,
                num_hidden_layers=3,
                num_attention_heads=4,
                intermediate_size=96,
                initializer_range=0.1,
            )
            torch.manual_seed(0)
            BertModel(config).save_pretrained(folder)
            return folder, lambda: BertModel.from_pretrained(folder).eval()
        torch_model(CONFIGS[family]).save_pretrained(folder)
        return folder, lambda: CLASSES[CONFIGS[family][0]][1].from_pretrained(folder).eval()

    return base


@pytest.fixture(scope="module")
def adapters(bases, tmp_path_factory):
    """Folder of an adapter, by family and name."""

    @functools.cache
    def adapter(family, name):
        lora = (BERT_ADAPTERS if family == "bert" else ADAPTERS)[name]
        return write_adapter(bases(family)[1](), tmp_path_factory.mktemp(f"{family}_{name}"), **lora)

    return adapter


def loaded(base: Path, adapter: Path, **options):
    config = load_config(base, pooling="mean" if "bert" in base.name else None)
    return config, *load_weights(Checkpoint(adapter, base), config, **options)


QWEN = [("qwen2", name) for name in ADAPTERS] + [
    ("qwen2_5", "lora"),
    ("qwen2_5", "dora"),
    ("qwen2_5_wide_windows", "dora"),
]


@pytest.mark.parametrize(("family", "name"), QWEN)
def test_qwen_vl_equals_peft(family, name, bases, adapters, tmp_path):
    (base, fresh), adapter = bases(family), adapters(family, name)
    config, graphdef, params = loaded(base, adapter)
    plain = load_weights(base, config)[1]
    assert largest_difference(params, plain) > 0.02
    adapted = PeftModel.from_pretrained(fresh(), adapter).eval()
    inputs = Inputs.random(CASES["image_and_text"], size=config.vision.patch_size)
    theirs = inputs.torch_states(adapted.base_model.model.model)
    ours = inputs.batch(config)
    assert max(errors(theirs, our_states(graphdef, params, ours), inputs)) < TOLERANCE
    assert max(errors(theirs, our_states(graphdef, plain, ours), inputs)) > BROKEN
    merged = merged_by_peft(adapted, tmp_path)
    assert largest_difference(params, load_weights(merged, config)[1]) < MERGED


@pytest.mark.parametrize("name", BERT_ADAPTERS)
def test_bert_equals_peft(name, bases, adapters, tmp_path):
    (base, fresh), adapter = bases("bert"), adapters("bert", name)
    _, graphdef, params = loaded(base, adapter)
    adapted = PeftModel.from_pretrained(fresh(), adapter).eval()
    ids = np.random.default_rng(0).integers(0, 200, (2, 24)).astype(np.int32)
    with torch.no_grad():
        theirs = adapted(input_ids=torch.tensor(ids, dtype=torch.long)).last_hidden_state.numpy()
    mask, positions = np.ones(ids.shape, bool), np.broadcast_to(np.arange(24, dtype=np.int32), (3, *ids.shape))
    batch = Batch(ids, mask, positions, np.zeros_like(mask), np.full(ids.shape, -1, np.int32), None)
    ours = jax.jit(lambda p: nnx.merge(graphdef, p)(batch).states[:, :, 0])(params)
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
    config = load_config(base, pooling="mean")
    assert largest_difference(params, load_weights(base, config)[1]) > 0.02
    merged = merged_by_peft(adapted, tmp_path)
    assert largest_difference(params, load_weights(merged, config)[1]) < MERGED


def test_weights_and_adapter_in_one_folder(bases, adapters, tmp_path):
    base, adapter = bases("qwen2")[0], adapters("qwen2", "dora")
    config, _, params = loaded(base, adapter)
    shutil.copytree(base, tmp_path / "both")
    shutil.copytree(adapter, tmp_path / "both", dirs_exist_ok=True)
    assert largest_difference(load_weights(tmp_path / "both", config)[1], params) == 0


def test_fan_in_fan_out_is_for_other_layers(bases, adapters, tmp_path):
    base, fresh = bases("qwen2")
    config, _, params = loaded(base, adapters("qwen2", "lora"))
    adapter = edited(adapters("qwen2", "lora"), tmp_path / "adapter", fan_in_fan_out=True)
    assert largest_difference(loaded(base, adapter)[-1], params) == 0
    with pytest.warns(UserWarning, match="fan_in_fan_out"):
        merged = merged_by_peft(PeftModel.from_pretrained(fresh(), adapter), tmp_path / "merged")
    assert largest_difference(load_weights(merged, config)[1], params) < MERGED


def test_names_of_earlier_transformers(bases, adapters, tmp_path):
    """Old names in adapters (model.layers, visual), files (modules_to_save, a default tag, a magnitude's .weight)."""
    base = bases("qwen2")[0]
    for name in ("dora", "modules_to_save", "embedding_dora"):
        params = loaded(base, adapters("qwen2", name))[-1]
        adapter = edited(adapters("qwen2", name), tmp_path / name)
        tensors = load_file(adapter / WEIGHTS_FILE)
        renamed = {}
        for tensor, value in tensors.items():
            if ".original_module." in tensor or ".modules_to_save." in tensor:
                continue
            tensor = tensor.replace(".model.visual.", ".visual.").replace(".language_model.", ".")
            tensor = tensor.replace("lora_A.", "lora_A.default.").replace(
                "lora_embedding_A", "lora_embedding_A.default"
            )
            tensor = tensor.replace("lora_magnitude_vector", "lora_magnitude_vector.default.weight")
            tensor = tensor.replace("merger.", "merger.modules_to_save.default.")
            renamed[tensor.replace("lora_B.", "lora_B.default.").replace("embedding_B", "embedding_B.default")] = value
        save_file(renamed, adapter / WEIGHTS_FILE)
        assert largest_difference(loaded(base, adapter)[-1], params) == 0


def test_bfloat16_is_merged_in_float32(bases, adapters, tmp_path):
    """A bfloat16 base and adapter, and a bfloat16 model: each is rounded once, after the merge."""
    base, adapter = bases("qwen2")[0], adapters("qwen2", "dora")
    for folder in (shutil.copytree(base, tmp_path / "base"), shutil.copytree(adapter, tmp_path / "adapter")):
        (file,) = folder.glob("*.safetensors")
        halved = {name: value.astype(jnp.bfloat16) for name, value in load_file(file).items()}
        save_file(halved, file, metadata={"format": "pt"})
    _, _, full = loaded(tmp_path / "base", tmp_path / "adapter")
    _, _, half = loaded(tmp_path / "base", tmp_path / "adapter", dtype=jnp.bfloat16)
    assert {x.dtype for x in jax.tree.leaves(half)} == {jnp.dtype(jnp.bfloat16)}
    assert largest_difference(jax.tree.map(lambda x: x.astype(jnp.bfloat16), full), half) == 0
    assert largest_difference(full, half) > 1e-4


# --- negative controls ------------------------------------------------------------------------------------------------


def edited(adapter: Path, target: Path, **changes) -> Path:
    """A copy with other values in adapter_config.json."""
    shutil.copytree(adapter, target)
    path = target / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return target


@pytest.mark.parametrize(
    ("name", "changes"),
    [("lora", {"lora_alpha": 7}), ("lora", {"use_rslora": True}), ("patterns", {"alpha_pattern": {}})],
)
def test_control_scale(name, changes, bases, adapters, tmp_path):
    base, adapter = bases("qwen2")[0], adapters("qwen2", name)
    right, wrong = loaded(base, adapter)[-1], loaded(base, edited(adapter, tmp_path / "adapter", **changes))[-1]
    assert largest_difference(right, wrong) > 100 * MERGED


def test_control_no_norm(bases, adapters, tmp_path):
    """A magnitude is divided by the norm of the merged weight, not of the base's."""
    base, adapter = bases("qwen2")[0], edited(adapters("qwen2", "dora"), tmp_path / "adapter")
    right = loaded(base, adapter)[-1]
    tensors = load_file(adapter / WEIGHTS_FILE)
    name = "base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_B.weight"
    save_file(tensors | {name: 2 * tensors[name]}, adapter / WEIGHTS_FILE)
    wrong = loaded(base, adapter)[-1]
    kernels = [p["language_model"]["layers"][0]["self_attn"]["q_proj"]["kernel"][...] for p in (right, wrong)]
    norms = [np.linalg.norm(kernel, axis=0) for kernel in kernels]
    np.testing.assert_allclose(*norms, rtol=1e-5)
    assert float(np.abs(kernels[0] - kernels[1]).max()) > 100 * MERGED
