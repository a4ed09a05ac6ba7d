"""The Flax BERT against transformers + torch, float32, every layer and the pooled vector within 1e-5: random
checkpoints, and all-MiniLM-L6-v2 on sentences."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import AutoTokenizer, BertConfig, BertModel

import smart_jax
from smart_jax.files import resolve
from smart_jax.models import load_config
from smart_jax.models.batch import Batch
from smart_jax.models.weights import abstract_model, load_weights, save_weights

pytestmark = pytest.mark.compiles

TOLERANCE = 1e-5
MINILM = resolve("minilm")
# Initialised widely: smaller inputs would hide a wrong activation.
CONFIGS = {
    "four_layers": {
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "initializer_range": 0.15,
    },
    "wide_heads_large_epsilon": {
        "hidden_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 192,
        "layer_norm_eps": 1e-3,
        "type_vocab_size": 1,
        "initializer_range": 0.15,
    },
}
LENGTHS = (9, 23, 1, 40, 3)
SENTENCES = [
    "How do I partition a disk?",
    "The installer asks for a mirror of the archive; choose one that is near to you.",
    "Maintainers",
    "A package's changelog names every change that its users can notice, newest first, with the bugs that it closes. "
    * 9,
    "GRUB & LILO: naïve café – 12,345.6 °C",
]


def torch_model(shape: dict, seed: int = 0) -> BertModel:
    config = BertConfig(vocab_size=200, max_position_embeddings=48, **shape)
    torch.manual_seed(seed)
    model = BertModel(config).eval()
    with torch.no_grad():  # fresh norms are all ones and biases zero: a swapped pair of them would go unseen
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def ragged(rows: list[np.ndarray], *, extra: int = 0) -> Batch:
    """Right padding to the longest row and `extra` more, filled with noise, which must not matter."""
    rng = np.random.default_rng(1)
    shape = len(rows), max(map(len, rows)) + extra
    ids, mask = rng.integers(5, 200, shape).astype(np.int32), np.zeros(shape, bool)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, True
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), (3, *shape))
    return Batch(ids, mask, positions, np.zeros(shape, bool), np.full(shape, -1, np.int32), None)


def random_rows(seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(5, 200, n) for n in LENGTHS]


def theirs(model: BertModel, batch: Batch, pooling: str) -> tuple[np.ndarray, np.ndarray]:
    """`hidden_states` [B, L, depth + 1, H], and the unit pooled vectors [B, H] of sentence-transformers."""
    mask = torch.tensor(batch.attention_mask)
    with torch.no_grad():
        states = model(
            torch.tensor(batch.input_ids), attention_mask=mask.long(), output_hidden_states=True
        ).hidden_states
        last = states[-1]
        pooled = last[:, 0] if pooling == "cls" else (last * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return torch.stack(states, 2).numpy(), torch.nn.functional.normalize(pooled, dim=-1).numpy()


@partial(jax.jit, static_argnames="graphdef")
def ours(graphdef, params, batch):
    model = nnx.merge(graphdef, params)
    hidden = model(batch, layers=tuple(range(model.config.num_hidden_layers + 1)))
    return hidden.states, hidden.pooled / jnp.linalg.norm(hidden.pooled, axis=-1, keepdims=True)


def errors(wanted, found, batch: Batch) -> tuple[list[float], float]:
    """Largest of every layer over attended positions, and of the pooled vectors."""
    states, pooled = (np.abs(a - np.asarray(b)[:, : a.shape[1]]) for a, b in zip(wanted, found, strict=True))
    attended = states[batch.attention_mask[:, : states.shape[1]]]  # [T, depth + 1, H]
    return attended.max((0, 2)).tolist(), float(pooled.max())


def random_pair(name: str, folder) -> tuple[BertModel, Path]:
    model = torch_model(CONFIGS[name])
    model.save_pretrained(folder)
    return model, folder


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
    """(torch model, folder) of one random checkpoint."""
    return random_pair(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def minilm():
    return BertModel.from_pretrained(MINILM).eval()


@pytest.fixture(scope="module")
def sentences() -> Batch:
    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    return ragged([np.asarray(tokenizer(text, truncation=True, max_length=256)["input_ids"]) for text in SENTENCES])


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_every_layer_matches(pair, pooling):
    model, folder = pair
    config = load_config(folder, pooling=pooling)
    batch = ragged(random_rows())
    wanted = theirs(model, batch, pooling)
    assert 1 < np.abs(wanted[0][..., -1, :]).max() < 8
    found = ours(*load_weights(folder, config), ragged(random_rows(), extra=5))
    layers, pooled = errors(wanted, found, batch)
    assert max(layers) < TOLERANCE and pooled < TOLERANCE


def test_minilm_matches_on_sentences(minilm, sentences):
    assert sorted(sentences.attention_mask.sum(1))[-1] > 200 and sentences.attention_mask.sum(1).min() < 5
    layers, pooled = errors(
        theirs(minilm, sentences, "mean"), ours(*load_weights(MINILM, load_config(MINILM)), sentences), sentences
    )
    assert len(layers) == 7 and max(layers) < TOLERANCE and pooled < TOLERANCE


def test_minilm_from_text_to_embeddings(minilm, sentences):
    """Tokenizer, truncation, padding, kept tokens and packing on top."""
    states, pooled = theirs(minilm, sentences, "mean")
    embedded = smart_jax.load("minilm").encode_document(SENTENCES)
    np.testing.assert_allclose(embedded.pooled, pooled, atol=TOLERANCE)
    for i, mask in enumerate(sentences.attention_mask):
        tokens = states[i, mask, -1][1:-1]  # without [CLS] and [SEP]
        tokens = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
        np.testing.assert_allclose(embedded[i].tokens, tokens, atol=TOLERANCE)


def test_transformers_reads_what_we_write(pair, tmp_path):
    model, folder = pair
    config = load_config(folder, pooling="mean")
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    save_weights(tmp_path, load_weights(folder, config)[1], config)
    back, info = BertModel.from_pretrained(tmp_path, output_loading_info=True)
    assert all("pooler" in name for name in info["missing_keys"]) and not info["unexpected_keys"]
    batch = ragged(random_rows())
    for a, b in zip(theirs(model, batch, "mean"), theirs(back.eval(), batch, "mean"), strict=True):
        np.testing.assert_array_equal(a, b)


def test_chosen_layers_are_transformers_indices(pair):
    _, folder = pair
    graphdef, params = load_weights(folder, load_config(folder, pooling="mean"))
    batch = ragged(random_rows())
    every, _ = ours(graphdef, params, batch)
    some = jax.jit(lambda p, b: nnx.merge(graphdef, p)(b, layers=(-1, 0, 2)).states)(params, batch)
    np.testing.assert_allclose(some, every[:, :, jnp.array([-1, 0, 2])], atol=TOLERANCE)


def test_bfloat16_pooled_cosine(minilm, sentences):
    _, pooled = theirs(minilm, sentences, "mean")
    _, low = ours(*load_weights(MINILM, load_config(MINILM), dtype=jnp.bfloat16), sentences)
    assert (pooled * np.asarray(low, np.float32)).sum(-1).min() > 0.999


# --- negative controls: what must break parity by at least 100 times the tolerance -----------------------------------


def config_with(**changes):
    return lambda config, params, batch: (dataclasses.replace(config, **changes), params, batch)


def without_segments(config, params, batch):
    def zero(path, leaf):
        return leaf * 0 if "token_type_embeddings" in jax.tree_util.keystr(path) else leaf

    return config, jax.tree_util.tree_map_with_path(zero, params), batch


def shifted_positions(config, params, batch):
    return config, params, dataclasses.replace(batch, position_ids=batch.position_ids + 2)


def attended_padding(config, params, batch):
    return config, params, dataclasses.replace(batch, attention_mask=np.ones_like(batch.attention_mask))


CONTROLS = {
    "no_segments": without_segments,
    "epsilon": config_with(layer_norm_eps=3e-4),
    "shifted_positions": shifted_positions,
    "tanh_gelu": config_with(hidden_act="gelu_pytorch_tanh"),
    "attended_padding": attended_padding,
}


@pytest.fixture(scope="module", params=[*CONFIGS, "minilm"])
def case(request, tmp_path_factory):
    """(torch model, config, params, batch) that controls start from."""
    if request.param == "minilm":
        model, folder = request.getfixturevalue("minilm"), MINILM
        batch = request.getfixturevalue("sentences")
    else:
        model, folder = random_pair(request.param, tmp_path_factory.mktemp("control"))
        batch = ragged(random_rows())
    config = load_config(folder, pooling="mean")
    return model, config, load_weights(folder, config)[1], batch


@pytest.mark.parametrize("control", CONTROLS)
def test_controls_break_the_states(case, control):
    model, config, params, batch = case
    config, params, changed = CONTROLS[control](config, params, batch)
    layers, _ = errors(theirs(model, batch, "mean"), ours(abstract_model(config)[0], params, changed), batch)
    assert max(layers) > 100 * TOLERANCE


def test_control_pooled_over_padding(case):
    model, config, params, batch = case
    _, wanted = theirs(model, batch, "mean")
    states, _ = ours(abstract_model(config)[0], params, batch)
    pooled = np.asarray(states)[:, :, -1].mean(1)
    pooled /= np.linalg.norm(pooled, axis=-1, keepdims=True)
    assert np.abs(pooled - wanted).max() > 100 * TOLERANCE
