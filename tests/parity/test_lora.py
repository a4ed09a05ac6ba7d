"""LoRA that we trained, in torch: opened by peft, and merged and opened by transformers; states within 2e-5 of ours."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from peft import PeftModel
from transformers import BertConfig, BertModel, Qwen3_5ForConditionalGeneration, Qwen3VLForConditionalGeneration

from smart_jax.files import Checkpoint
from smart_jax.models import load_config
from smart_jax.models.batch import Batch
from smart_jax.models.lora import LoraConfig, add_lora, save_lora
from smart_jax.models.weights import load_weights, save_weights
from tests.parity import qwen2_vl, qwen3_5, qwen3_vl
from tests.parity.qwen3_vl import BROKEN, CASES, TOLERANCE, Inputs, errors, our_states

pytestmark = pytest.mark.compiles

LORA = LoraConfig(r=3, alpha=5.0, modules=".")  # each linear map, the patches' convolution too


def adapted(folder, config):
    """Our model with branches of random factors."""
    graphdef, params = add_lora(*load_weights(folder, config), LORA)
    rng = np.random.default_rng(0)
    flat = [
        (path, leaf.replace(jnp.float32(0.1 * rng.standard_normal(leaf.shape))) if path[-1] == "lora_b" else leaf)
        for path, leaf in nnx.to_flat_state(params)
    ]
    return graphdef, nnx.from_flat_state(flat)


def write_base(family: str, folder):
    """A random checkpoint, and the torch class that opens it."""
    if family.startswith("qwen2"):
        qwen2_vl.torch_model(qwen2_vl.CONFIGS[family]).save_pretrained(folder)
        return qwen2_vl.CLASSES[qwen2_vl.CONFIGS[family][0]][1]
    if family == "qwen3":
        inner, kind = qwen3_vl.torch_model(qwen3_vl.CONFIGS["two_taps"]), Qwen3VLForConditionalGeneration
    else:
        inner, kind = qwen3_5.torch_model(qwen3_5.CONFIGS["odd_widths"]), Qwen3_5ForConditionalGeneration
    model = kind(inner.config)
    model.model = inner
    model.save_pretrained(folder)
    return kind


@pytest.mark.parametrize("family", ["qwen3", "qwen3_5", "qwen2", "qwen2_5"])
def test_qwen_vl_in_torch(family, tmp_path):
    model_class = write_base(family, tmp_path / "base")
    config = load_config(tmp_path / "base")
    graphdef, params = adapted(tmp_path / "base", config)
    inputs = Inputs.random(CASES["image_and_text"], size=config.vision.patch_size)
    ours = our_states(graphdef, params, inputs.batch(config))

    lora = save_lora(tmp_path / "lora", params, config, LORA, base=tmp_path / "base")
    model = model_class.from_pretrained(tmp_path / "base").eval()
    assert max(errors(inputs.torch_states(model.model), ours, inputs)) > BROKEN
    model = PeftModel.from_pretrained(model, lora).eval()
    assert max(errors(inputs.torch_states(model.base_model.model.model), ours, inputs)) < TOLERANCE

    _, merged = load_weights(Checkpoint(lora, tmp_path / "base"), config)
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "config.json").write_bytes((tmp_path / "base" / "config.json").read_bytes())
    save_weights(tmp_path / "merged", merged, config)
    model = model_class.from_pretrained(tmp_path / "merged").eval()
    assert max(errors(inputs.torch_states(model.model), ours, inputs)) < TOLERANCE


def test_bert_in_torch(tmp_path):
    bert = BertConfig(
        vocab_size=200,
        max_position_embeddings=48,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        initializer_range=0.1,
    )
    torch.manual_seed(0)
    BertModel(bert).save_pretrained(tmp_path / "base")
    config = load_config(tmp_path / "base", pooling="mean")
    graphdef, params = adapted(tmp_path / "base", config)
    lora = save_lora(tmp_path / "lora", params, config, LORA, base="../base")
    model = PeftModel.from_pretrained(BertModel.from_pretrained(tmp_path / "base"), lora).eval()
    ids = np.random.default_rng(0).integers(0, 200, (2, 24)).astype(np.int32)
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor(ids, dtype=torch.long)).last_hidden_state.numpy()
    mask, positions = np.ones(ids.shape, bool), np.broadcast_to(np.arange(24, dtype=np.int32), (3, *ids.shape))
    batch = Batch(ids, mask, positions, np.zeros_like(mask), np.full(ids.shape, -1, np.int32), None)
    ours = jax.jit(lambda p: nnx.merge(graphdef, p)(batch).states[:, :, 0])(params)
    np.testing.assert_allclose(ours, theirs, atol=TOLERANCE)
