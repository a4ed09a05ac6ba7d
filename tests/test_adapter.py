"""The adapter against float64 NumPy; tests/test_reference_adapter.py has torch and the reference's checkpoints."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from smart_jax.retrieval import Adapter, AdapterConfig, AdapterDropout, parse_layers


def make(seed=0, **config) -> Adapter:
    """An adapter whose LayerNorm is not the identity, so that a test sees it."""
    adapter = Adapter(AdapterConfig(**config), rngs=nnx.Rngs(seed))
    rng = np.random.default_rng(seed)
    width = adapter.config.hidden_size
    adapter.norm.scale.set_value(jnp.asarray(rng.normal(1, 0.3, width), jnp.float32))
    adapter.norm.bias.set_value(jnp.asarray(rng.normal(0, 0.3, width), jnp.float32))
    if len(adapter.config.layers) > 1:
        adapter.layer_vector.set_value(jnp.asarray(rng.normal(0, 1, width), jnp.float32))
    return adapter


def oracle(adapter: Adapter, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fused states and tokens by the paper's formulas, in float64."""
    states = states.astype(np.float64)
    width = states.shape[-1]
    fused = states[..., 0, :]
    if states.shape[-2] > 1:
        w = np.asarray(adapter.layer_vector[...], np.float64)
        w = w / np.sqrt(np.mean(w**2) + 1e-6)
        rms = states / np.sqrt(np.mean(states**2, -1, keepdims=True) + 1e-6)
        logits = rms @ w / np.sqrt(width)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        fused = np.sum(weights[..., None] * states, -2)
    centred = fused - fused.mean(-1, keepdims=True)
    normed = centred / np.sqrt(np.mean(centred**2, -1, keepdims=True) + 1e-5)
    normed = normed * np.asarray(adapter.norm.scale[...], np.float64) + np.asarray(adapter.norm.bias[...], np.float64)
    tokens = normed @ np.asarray(adapter.proj.kernel[...], np.float64)
    return fused, tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)


@pytest.mark.compiles
@pytest.mark.parametrize(("layers", "dim"), [((-1,), None), ((-1,), 5), ((-3, -2, -1), None), ((2, -1), 7)])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_matches_the_formulas_in_float64(layers, dim, dtype):
    adapter = make(hidden_size=24, dim=dim, layers=layers)
    states = np.random.default_rng(1).normal(0, 3, (2, 6, len(layers), 24)).astype(dtype)
    fused, tokens = oracle(adapter, states)
    got = jax.jit(lambda a, x: a(x))(adapter, jnp.asarray(states))
    assert got.dtype == jnp.float32 and got.shape == (2, 6, dim or 24)
    np.testing.assert_allclose(got, tokens, atol=2e-6)
    np.testing.assert_allclose(adapter.fuse(jnp.asarray(states)), fused, atol=5e-6)
    np.testing.assert_allclose(adapter.project(adapter.fuse(jnp.asarray(states))), got, atol=1e-6)


@pytest.mark.compiles
def test_small_states_see_the_epsilons():
    adapter = make(hidden_size=16, layers=(-2, -1))
    states = np.random.default_rng(1).normal(0, 2e-3, (5, 2, 16)).astype(np.float32)
    fused, tokens = oracle(adapter, states)
    np.testing.assert_allclose(adapter(jnp.asarray(states)), tokens, atol=2e-6)
    np.testing.assert_allclose(adapter.fuse(jnp.asarray(states)), fused, atol=1e-8)


def test_pooled_is_cut_then_normalised():
    pooled = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    cut = pooled[:, :5] / np.linalg.norm(pooled[:, :5], axis=-1, keepdims=True)
    np.testing.assert_allclose(make(hidden_size=8, pooled_dim=5).pooled(jnp.asarray(pooled)), cut, atol=1e-6)
    whole = make(hidden_size=8).pooled(jnp.asarray(pooled, jnp.bfloat16))
    assert whole.shape == (3, 8) and whole.dtype == jnp.float32
    np.testing.assert_allclose(jnp.linalg.norm(whole, axis=-1), 1, atol=1e-6)


def test_initial_values_are_the_papers():
    adapter = Adapter(AdapterConfig(400, dim=200, layers=(-2, -1)), rngs=nnx.Rngs(3))
    kernel, bound = np.asarray(adapter.proj.kernel[...]), np.sqrt(6 / 600)
    assert kernel.shape == (400, 200) and np.abs(kernel).max() <= bound
    assert np.std(kernel) == pytest.approx(bound / np.sqrt(3), rel=0.02)  # uniform
    assert np.std(np.asarray(adapter.layer_vector[...])) == pytest.approx(0.02, rel=0.15)
    assert not hasattr(Adapter(AdapterConfig(8), rngs=nnx.Rngs(0)), "layer_vector")
    assert adapter.proj.bias is None


@pytest.mark.compiles
def test_gradients_reach_every_parameter_and_zero_states_stay_finite():
    adapter = make(hidden_size=8, layers=(-2, -1))
    states = np.random.default_rng(0).normal(size=(4, 2, 8)).astype(np.float32)
    states[0] = 0
    target = np.random.default_rng(1).normal(size=(4, 8)).astype(np.float32)
    graph, parameters = nnx.split(adapter)
    gradients = jax.grad(lambda p: jnp.sum(nnx.merge(graph, p)(jnp.asarray(states)) * target))(parameters)
    leaves = jax.tree.leaves_with_path(gradients)
    assert len(leaves) == 4
    for path, leaf in leaves:
        assert np.all(np.isfinite(leaf)) and np.abs(leaf).max() > 1e-4, path
    np.testing.assert_array_equal(np.asarray(make(hidden_size=4).pooled(jnp.zeros((1, 4)))), 0)


@pytest.mark.compiles
def test_gradients_equal_those_of_norm_then_linear():
    """The norm acts on the kernel; flax's own LayerNorm and Linear, one after the other, are the oracle."""
    adapter = make(hidden_size=24, dim=7)
    rng = np.random.default_rng(2)
    states, target = rng.normal(1, 2, (5, 6, 24)).astype(np.float32), rng.normal(size=(5, 6, 7)).astype(np.float32)
    graph, parameters = nnx.split(adapter)

    def plain(adapter, x):
        x = nnx.LayerNorm(24, epsilon=1e-5, use_fast_variance=False, rngs=nnx.Rngs(0))(x)
        y = adapter.proj(x * adapter.norm.scale[None, None] + adapter.norm.bias[None, None])
        return y / jnp.linalg.norm(y, axis=-1, keepdims=True)

    def gradients(project):
        return jax.grad(lambda p, x: jnp.sum(project(nnx.merge(graph, p), x) * target), (0, 1))(parameters, states)

    ours, oracle = (jax.tree.leaves(gradients(f)) for f in (Adapter.project, plain))
    assert len(ours) == 4
    for mine, theirs in zip(ours, oracle, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5 * float(np.abs(theirs).max()), rtol=0)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(3, 2, 8), (3, 1, 9), (8,)])
def test_states_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match=r"\[\.\.\., layers, H\] = \(1, 8\)"):
        make(hidden_size=8)(jnp.zeros(shape))
    with pytest.raises(ValueError, match="this adapter's H is 8"):
        make(hidden_size=8).pooled(jnp.zeros((2, 9)))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"hidden_size": 8, "dim": -1}, "dim=-1"),
        ({"hidden_size": 8, "pooled_dim": 9}, "pooled_dim=9"),
        ({"hidden_size": 8, "layers": ()}, "layers"),
        ({"hidden_size": 8, "layers": (-1, -1)}, "twice"),
        ({"hidden_size": 8, "layers": ("a",)}, "layers"),
        ({"hidden_size": 8, "kind": "cnn"}, "kind='cnn': choose one of linear, mlp, self_attention"),
        ({"hidden_size": 8, "kind": "mlp", "mlp_dim": 0}, "mlp_dim=0"),
        ({"hidden_size": 8, "mlp_dim": 16}, "mlp_dim=16 is of kind 'mlp', but kind='linear'"),
        ({"hidden_size": 8, "kind": "mlp", "blocks": 2}, "blocks=2 is of kind 'self_attention'"),
        ({"hidden_size": 8, "kind": "self_attention", "dim": 12}, "heads=8 do not divide the 12 components"),
    ],
)
def test_bad_settings_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        AdapterConfig(**config)


def test_check_matches_refuses_another_backbone():
    make(hidden_size=8, layers=(0, 4, -2)).check_matches(hidden_size=8, depth=4)
    with pytest.raises(ValueError, match=r"width 8, this one is 16 wide"):
        make(hidden_size=8).check_matches(hidden_size=16, depth=4)
    with pytest.raises(ValueError, match=r"\[5\]"):
        make(hidden_size=8, layers=(5, -1)).check_matches(hidden_size=8, depth=4)
    with pytest.raises(ValueError, match="twice"):
        make(hidden_size=8, layers=(4, -1)).check_matches(hidden_size=8, depth=4)


@pytest.mark.parametrize(
    ("text", "layers"),
    [
        ("-1", (-1,)),
        ("last 1", (-1,)),
        ("last 4", (-4, -3, -2, -1)),
        ("27", (-1,)),
        ("0", (-28,)),
        ("-1,-3", (-1, -3)),
        ("20-24, -1", (-8, -7, -6, -5, -4, -1)),
        ("-4--2,0", (-4, -3, -2, -28)),
        ("26--1", (-2, -1)),
    ],
)
def test_parse_layers(text, layers):
    assert parse_layers(text, 28) == layers


@pytest.mark.parametrize(
    "text", ["", "last 0", "last 29", "28", "-29", "3-2", "27,-1", "5,4-6", "a", "1;2", "1,,2", "last"]
)
def test_parse_layers_refuses(text):
    with pytest.raises(ValueError, match="layers '"):
        parse_layers(text, 28)


def test_save_and_load_are_exact(tmp_path):
    configs = [
        ({}, 3),
        ({"layers": (-3, 1), "dim": 5, "pooled_dim": 3}, 4),
        ({"kind": "mlp", "mlp_dim": 7}, 4),
        ({"kind": "self_attention", "dim": 6, "heads": 3, "blocks": 2}, 3 + 2 * 6),
    ]
    for number, (config, count) in enumerate(configs):
        adapter = make(seed=number, hidden_size=12, **config)
        adapter.save(tmp_path / str(number))
        assert {p.name for p in (tmp_path / str(number)).iterdir()} == {"adapter.safetensors", "adapter.json"}
        loaded = Adapter.load(tmp_path / str(number))
        assert loaded.config == adapter.config
        ours, theirs = (dict(nnx.to_flat_state(nnx.state(a))) for a in (adapter, loaded))
        assert ours.keys() == theirs.keys() and len(ours) == count
        for name in ours:
            np.testing.assert_array_equal(ours[name][...], theirs[name][...], err_msg=str(name))
    adapter.save(tmp_path / "0")  # saving over another adapter replaces it
    assert Adapter.load(tmp_path / "0").config == adapter.config


def test_a_linear_adapter_is_written_as_before_there_were_kinds(tmp_path):
    make(hidden_size=6).save(tmp_path)
    described = {"format": "smart_jax.adapter", "version": 1, "hidden_size": 6, "dim": None, "layers": [-1]}
    assert json.loads((tmp_path / "adapter.json").read_text()) == described | {"pooled_dim": None}


def test_another_layer_may_be_chosen():
    adapter = make(hidden_size=6, dim=4)
    moved = adapter.at_layer(24)
    assert moved.config == AdapterConfig(6, 4, (24,)) and adapter.config.layers == (-1,)
    states = jnp.asarray(np.random.default_rng(0).normal(size=(3, 1, 6)), jnp.float32)
    np.testing.assert_array_equal(moved(states), adapter(states))
    with pytest.raises(ValueError, match=r"fuses the layers \(-2, -1\)"):
        make(hidden_size=6, layers=(-2, -1)).at_layer(3)


@pytest.mark.compiles
def test_dropout_follows_from_each_items_key():
    """As many values are dropped as asked, the rest weighs more, and a row has its mask wherever it stands."""
    adapter = make(hidden_size=6, kind="mlp", mlp_dim=400)
    states = jnp.asarray(np.random.default_rng(0).normal(size=(3, 50, 6)), jnp.float32)
    keys = jax.random.key_data(jax.random.split(jax.random.key(0), 3))
    whole, dropped = adapter.project(states), adapter.project(states, dropout=AdapterDropout(0.25, keys))
    assert np.abs(whole - dropped).max() > 0.01
    again = adapter.project(states[1:2], dropout=AdapterDropout(0.25, keys[1:2]))
    np.testing.assert_allclose(again[0], dropped[1], atol=1e-6)
    np.testing.assert_allclose(adapter.project(states, dropout=AdapterDropout(0.0, keys)), whole, atol=1e-6)
    # One value between the maps: a token is dropped whole, with the rate's frequency.
    single = make(hidden_size=6, kind="mlp", mlp_dim=1)
    many = jnp.broadcast_to(jnp.arange(6.0), (3, 4000, 6))
    found = single.project(many, dropout=AdapterDropout(0.25, keys))
    assert np.mean(np.asarray(found) == 0) == pytest.approx(0.25, abs=0.02)


@pytest.mark.usefixtures("unchecked")
def test_tokens_that_attend_to_each_other_need_an_axis():
    with pytest.raises(ValueError, match=r"give \[\.\.\., L, H\]"):
        make(hidden_size=8, kind="self_attention").project(jnp.zeros(8))


def edit(change):
    def apply(folder):
        settings = json.loads((folder / "adapter.json").read_text())
        change(settings)
        (folder / "adapter.json").write_text(json.dumps(settings))

    return apply


def cut(name, size):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda f: (f / "adapter.json").unlink(), FileNotFoundError, r"adapter\.json"),
        (lambda f: (f / "adapter.safetensors").unlink(), FileNotFoundError, r"adapter\.safetensors"),
        (cut("adapter.safetensors", 0), ValueError, "truncated or corrupt"),
        (cut("adapter.safetensors", 50), ValueError, "truncated or corrupt"),
        (cut("adapter.safetensors", -1), ValueError, "truncated or corrupt"),
        (cut("adapter.json", 20), ValueError, "not valid JSON"),
        (lambda f: (f / "adapter.json").write_text("[]"), ValueError, "JSON list"),
        (edit(lambda s: s.update(version=9)), ValueError, "version 9"),
        (edit(lambda s: s.update(width=3)), ValueError, r"unknown settings \['width'\]"),
        (edit(lambda s: s.pop("layers")), ValueError, r"lacks the settings \['layers'\]"),
        (edit(lambda s: s.update(layers="last 2")), ValueError, "last 2"),
        (edit(lambda s: s.update(hidden_size=-4)), ValueError, "hidden_size=-4"),
        (edit(lambda s: s.update(hidden_size=7)), ValueError, r"has shape .* expected"),
        (edit(lambda s: s.update(hidden_size=2**40)), ValueError, r"has shape .* expected"),
        (edit(lambda s: s.update(layers=[-2, -1])), ValueError, r"lacks the tensors \['layer_vector'\]"),
    ],
)
def test_damaged_adapters_are_refused(tmp_path, damage, error, message):
    make(hidden_size=6).save(tmp_path)
    damage(tmp_path)
    with pytest.raises(error, match=message):
        Adapter.load(tmp_path)


def test_unknown_tensors_are_refused(tmp_path):
    make(hidden_size=6, layers=(-2, -1)).save(tmp_path)
    edit(lambda s: s.update(layers=[-1]))(tmp_path)
    with pytest.raises(ValueError, match=r"unknown tensors \['layer_vector'\]"):
        Adapter.load(tmp_path)
