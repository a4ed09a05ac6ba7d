"""The Flax Qwen3.5 in float32 against transformers + torch in float64, random checkpoints: each layer within 2e-5."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from transformers import Qwen3_5Model

from smart_jax.models import load_config
from smart_jax.models.weights import abstract_model, load_weights, save_weights
from smart_jax.runtime.mesh import make_mesh
from tests.parity.qwen3_5 import CONFIGS, torch_model
from tests.parity.qwen3_vl import BROKEN, CASES, TOLERANCE, Inputs, errors, our_states, save

pytestmark = pytest.mark.compiles

# Every row in one program: texts, one and several images, rows of any length; the second and third in other buckets.
ROWS = [row for rows in CASES.values() for row in rows]
EXTRA = {"published_order": 0, "odd_widths": 5, "not_causal": 70}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """(transformers' states of ROWS, config, graphdef, params, folder) of one random checkpoint, by name."""
    made = {}

    def make(name):
        if name not in made:
            model = torch_model(CONFIGS[name])
            folder = save(model, tmp_path_factory.mktemp(name))
            config = load_config(folder)
            # In float64: by its own rounding in float32, torch would be 4e-5 off.
            theirs = Inputs.random(ROWS).torch_states(model.double())
            made[name] = theirs, config, *load_weights(folder, config), folder
        return made[name]

    return make


def error(pair, params=None, graphdef=None, extra=0) -> float:
    theirs, config, own_graphdef, own_params, _ = pair
    inputs = Inputs.random(ROWS)
    batch = inputs.batch(config, extra=extra)
    ours = our_states(graphdef or own_graphdef, own_params if params is None else params, batch)
    return max(errors(theirs, ours, inputs))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_layer_matches(pairs, name):
    pair = pairs(name)
    assert 1 < np.abs(pair[0][-1]).max() < 8
    assert error(pair, extra=EXTRA[name]) < TOLERANCE


def test_padding_and_bucket_never_matter(pairs):
    """Noise behind a row, in the same chunk of linear attention and in further ones."""
    _, config, graphdef, params, _ = pairs("not_causal")
    inputs = Inputs.random(ROWS)
    whole = our_states(graphdef, params, inputs.batch(config, extra=EXTRA["not_causal"]))
    batch = inputs.batch(config, extra=EXTRA["not_causal"])
    noise = np.random.default_rng(5).integers(20, 180, batch.input_ids.shape).astype(np.int32)
    other = dataclasses.replace(batch, input_ids=np.where(batch.attention_mask, batch.input_ids, noise))
    assert (other.input_ids != batch.input_ids).any()
    found = our_states(graphdef, params, other)
    for i, (row, _, _) in enumerate(inputs.rows):
        np.testing.assert_array_equal(found[i, : len(row)], whole[i, : len(row)])


def test_padding_before_a_row_is_refused(pairs):
    _, config, graphdef, params, _ = pairs("odd_widths")
    with pytest.raises(ValueError, match="has padding before its tokens"):
        nnx.merge(graphdef, params)(Inputs.random(CASES["text"]).batch(config, left=True))


# --- weights ---------------------------------------------------------------------------------------------------------


def test_weights_are_complete_both_ways(pairs, tmp_path):
    _, config, _, params, folder = pairs("odd_widths")
    file = save_weights(tmp_path, params, config)
    ours = load_file(file)
    theirs = {f"model.{name}": x for name, x in load_file(folder / "model.safetensors").items()}
    assert {name: x.shape for name, x in theirs.items()} == {name: x.shape for name, x in ours.items()}
    for name in theirs:
        np.testing.assert_array_equal(theirs[name], ours[name])
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    _, info = Qwen3_5Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    heads = {"lm_head.weight": np.ones((2, 2), np.float32), "mtp.layers.0.mlp.up_proj.weight": np.ones(3, np.float32)}
    save_file(ours | heads, file)  # as the published Qwen3.5 has them
    jax.tree.map(np.testing.assert_array_equal, load_weights(tmp_path, config)[1], params)
    save_file(ours | {"model.language_model.layers.0.linear_attn.A_log2": np.ones(3, np.float32)}, file)
    with pytest.raises(ValueError, match="A_log2"):
        load_weights(tmp_path, config)


# --- negative controls: what must break parity by at least 100 times the tolerance -----------------------------------


def changed(params, pattern, change):
    """Parameters in which those whose path ends in `pattern` are others."""
    flat = []
    for path, leaf in nnx.to_flat_state(params):
        matches = ".".join(map(str, path)).endswith(pattern)
        flat.append((path, leaf.replace(change(leaf.get_value())) if matches else leaf))
    return nnx.from_flat_state(flat)


CONTROLS = {
    "plain_norms": ("layernorm.scale", lambda w: w - 1),
    "plain_final_norm": ("language_model.norm.scale", lambda w: w - 1),
    "plain_query_norms": ("q_norm.scale", lambda w: w - 1),
    "zero_centred_gated_norm": ("linear_attn.norm.scale", lambda w: w + 1),
    "no_convolution": ("conv1d.kernel", lambda w: jnp.zeros_like(w).at[-1].set(1)),
    "reversed_convolution": ("conv1d.kernel", lambda w: w[::-1]),
    "no_decay": ("A_log", lambda w: jnp.full_like(w, -30)),
    "no_steps": ("dt_bias", jnp.zeros_like),
    "constant_beta": ("in_proj_b.kernel", jnp.zeros_like),
}


@pytest.mark.parametrize("control", CONTROLS)
def test_control(pairs, control):
    pair = pairs("published_order")
    assert error(pair, changed(pair[3], *CONTROLS[control])) > BROKEN


def test_control_no_gate(pairs):
    """A bias that opens the gates, which stand behind each head's query."""
    pair = pairs("odd_widths")
    heads = pair[1].text.num_attention_heads

    def opened(bias):
        return bias.reshape(heads, 2, -1).at[:, 1].set(30).reshape(-1)

    assert error(pair, changed(pair[3], "q_proj.bias", opened), extra=EXTRA["odd_widths"]) > BROKEN


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"partial_rotary_factor": 1.0}, {"is_causal": False}])
def test_control_other_configs(pairs, change):
    pair = pairs("odd_widths")
    config = dataclasses.replace(pair[1], text=dataclasses.replace(pair[1].text, **change))
    graphdef, _ = abstract_model(config)
    assert error(pair, graphdef=graphdef, extra=EXTRA["odd_widths"]) > BROKEN


# --- training and devices --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_remat_keeps_states_and_gradients(pairs):
    _, config, graphdef, params, _ = pairs("not_causal")
    batch = Inputs.random(CASES["text"]).batch(config)

    def loss(p, remat):
        return jnp.sum(nnx.merge(graphdef, p)(batch, remat=remat).pooled ** 2)

    plain, again = (jax.jit(jax.value_and_grad(lambda p, r=r: loss(p, r)))(params) for r in (False, True))
    assert all(float(jnp.abs(x).max()) > 0 for x in jax.tree.leaves(plain[1]["language_model"]["layers"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, again)


@pytest.mark.slow
def test_bfloat16_pooled_cosine(pairs):
    _, config, graphdef, params, folder = pairs("published_order")
    batch = Inputs.random(CASES["image_and_text"]).batch(config)
    half = load_weights(folder, config, dtype=jnp.bfloat16)[1]
    run = jax.jit(lambda p: nnx.merge(graphdef, p)(batch).pooled)
    full, low = run(params), run(half)
    assert low.dtype == jnp.bfloat16
    full, low = (np.asarray(x, np.float32) for x in (full, low))
    cosine = (full * low).sum(-1) / np.linalg.norm(full, axis=-1) / np.linalg.norm(low, axis=-1)
    assert cosine.min() >= 0.999


@pytest.mark.slow
def test_parameters_split_over_a_mesh_compute_the_same(pairs):
    theirs, config, _, _, folder = pairs("published_order")
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    graphdef, params = load_weights(folder, config, mesh=mesh)
    kernel = params["language_model"]["layers"][0]["linear_attn"]["in_proj_qkv"]["kernel"].get_value()
    assert kernel.addressable_shards[0].data.shape == (kernel.shape[0] // 2, kernel.shape[1] // 2)
    inputs = Inputs.random(ROWS)
    with jax.set_mesh(mesh):
        ours = our_states(graphdef, params, inputs.batch(config))
    assert max(errors(theirs, ours, inputs)) < TOLERANCE
