"""The adapter against float64 NumPy, torch and the layout of the reference's checkpoint."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from smart_jax.retrieval.adapter import Adapter, AdapterConfig, export_reference, import_reference, parse_layers


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
    for number, config in enumerate([{}, {"layers": (-3, 1), "dim": 5, "pooled_dim": 3}]):
        adapter = make(seed=number, hidden_size=12, **config)
        adapter.save(tmp_path / str(number))
        assert {p.name for p in (tmp_path / str(number)).iterdir()} == {"adapter.safetensors", "adapter.json"}
        loaded = Adapter.load(tmp_path / str(number))
        assert loaded.config == adapter.config
        ours, theirs = (dict(nnx.to_flat_state(nnx.state(a))) for a in (adapter, loaded))
        assert ours.keys() == theirs.keys() and len(ours) == 3 + number
        for name in ours:
            np.testing.assert_array_equal(ours[name][...], theirs[name][...], err_msg=str(name))
    adapter.save(tmp_path / "0")  # saving over another adapter replaces it
    assert Adapter.load(tmp_path / "0").config == adapter.config


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
        (lambda f: (f / "adapter.json").write_text("[]"), ValueError, "format"),
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


class ReferenceModule(torch.nn.Module):
    """The parameters, their names and the arithmetic of the reference's projection module."""

    def __init__(self, hidden_size, dim, count):
        super().__init__()
        self.proj = torch.nn.Sequential(torch.nn.LayerNorm(hidden_size), torch.nn.Linear(hidden_size, dim, bias=False))
        torch.nn.init.normal_(self.proj[0].weight)
        torch.nn.init.normal_(self.proj[0].bias)
        if count > 1:
            self.layer_weight_vectors = torch.nn.Parameter(torch.randn(1, hidden_size))

    def forward(self, states):  # [B, L, N, H]
        fused = states[:, :, 0]
        if states.shape[2] > 1:
            rms = [
                x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() for x in (states, self.layer_weight_vectors[0])
            ]
            weights = (rms[0] @ rms[1] / states.shape[-1] ** 0.5).softmax(-1)
            fused = (weights[..., None] * states).sum(2)
        return torch.nn.functional.normalize(self.proj(fused), dim=-1)


def reference_checkpoint(module, **settings):
    defaults = {"adapter_type": "token_projection", "use_last_n_layers": 1, "selected_layers": None, "anchor_dim": 10}
    return {"token_projection_module": module.state_dict(), **defaults, "hidden_size": 10, **settings}


@pytest.mark.parametrize(
    ("settings", "layers"),
    [
        ({}, (-1,)),
        ({"use_last_n_layers": 3}, (-3, -2, -1)),
        ({"selected_layers": [0, 2, -1]}, (1, 3, -1)),
        ({"selected_layers": [-1], "use_last_n_layers": 4}, (-1,)),
    ],
)
@pytest.mark.parametrize(("dim", "anchor_dim"), [(10, 10), (6, 4)])
def test_reference_round_trip_in_torch(tmp_path, settings, layers, dim, anchor_dim):
    torch.manual_seed(0)
    module = ReferenceModule(10, dim, len(layers))
    torch.save(reference_checkpoint(module, anchor_dim=anchor_dim, **settings), tmp_path / "adapter.pt")
    adapter = import_reference(tmp_path)
    expected = AdapterConfig(10, None if dim == 10 else dim, layers, None if anchor_dim == 10 else anchor_dim)
    assert adapter.config == expected

    states = torch.randn(2, 5, len(layers), 10)
    with torch.no_grad():
        wanted = module(states).numpy()
    np.testing.assert_allclose(adapter(jnp.asarray(states.numpy())), wanted, atol=2e-6)

    export_reference(adapter, tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    fresh = ReferenceModule(10, dim, len(layers))
    fresh.load_state_dict(back["token_projection_module"], strict=True)
    for name, value in module.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name
    selected = settings.get("selected_layers")
    if selected == [-1]:
        selected = None  # the same as the last one layer
    assert back["selected_layers"] == selected and back["anchor_dim"] == anchor_dim and back["hidden_size"] == 10
    assert back["use_last_n_layers"] == (len(layers) if selected is None else 1)
    assert import_reference(tmp_path / "back.pt").config == adapter.config


def test_reference_in_bfloat16_becomes_float32(tmp_path):
    module = ReferenceModule(10, 10, 1).to(torch.bfloat16)
    torch.save(reference_checkpoint(module), tmp_path / "adapter.pt")
    kernel = np.asarray(import_reference(tmp_path / "adapter.pt").proj.kernel[...])
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel.T, module.proj[1].weight.detach().float().numpy())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("token_projection_module"), "token_projection_module"),
        (lambda c: c["token_projection_module"].pop("proj.1.weight"), r"proj\.1\.weight"),
        (lambda c: c["token_projection_module"].pop("proj.0.bias"), r"norm\.bias"),
        (lambda c: c["token_projection_module"].update({"proj.4.weight": torch.ones(2)}), r"proj\.4\.weight"),
        (lambda c: c["token_projection_module"].update({"proj.0.bias": torch.ones(2)}), r"expected \(10,\)"),
        (lambda c: c["token_projection_module"].update({"proj.0.bias": torch.ones(10).int()}), "int32"),
        (lambda c: c.update(hidden_size=12), r"expected \(12,\)"),
        (lambda c: c.update(anchor_dim=11), "pooled_dim=11"),
        (lambda c: c.update(use_last_n_layers=0), "use_last_n_layers=0"),
        (lambda c: c.update(use_last_n_layers=10**15), "use_last_n_layers=10"),
        (lambda c: c.update(use_last_n_layers=2), "layer_vector"),
        (lambda c: c.update(selected_layers="0,1"), "selected_layers='0,1'"),
        (lambda c: c.update(selected_layers=[]), "layers"),
    ],
)
def test_bad_reference_checkpoints_are_refused(tmp_path, change, message):
    checkpoint = reference_checkpoint(ReferenceModule(10, 10, 1))
    change(checkpoint)
    torch.save(checkpoint, tmp_path / "adapter.pt")
    with pytest.raises(ValueError, match=message):
        import_reference(tmp_path / "adapter.pt")


def test_reference_files_that_are_missing_or_cannot_be_written(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"adapter\.pt"):
        import_reference(tmp_path)
    torch.save(reference_checkpoint(ReferenceModule(10, 10, 1)), tmp_path / "adapter.pt")
    with pytest.raises(FileNotFoundError, match="import_reference"):
        Adapter.load(tmp_path)
    with pytest.raises(ValueError, match="layer 0"):
        export_reference(make(hidden_size=8, layers=(0, -1)), tmp_path / "x.pt")
    export_reference(make(hidden_size=8), tmp_path)  # a folder
    assert import_reference(tmp_path).config == AdapterConfig(8)
