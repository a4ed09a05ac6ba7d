"""Low-rank branches: what they compute, what they leave alone, quantised kernels, and files."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx
from jax.sharding import PartitionSpec as P

import smart_jax
from smart_jax.models.lora import LoraConfig, LoraLinear, add_lora, drop_out, save_lora
from smart_jax.models.low_rank import low_rank, merged_product
from smart_jax.models.quantization import NF4, QuantizedKernel, dequantize, quantize
from smart_jax.runtime.mesh import make_mesh
from tests.backbone import write_checkpoint
from tests.small_bert import write_sentence_transformer as write_bert
from tests.training import page

ITEMS = [{"text": "a text"}, {"image": page(3)}, {"text": "two", "image": page(4)}]


def branches(graphdef, params) -> dict[str, LoraLinear]:
    modules = nnx.iter_modules(nnx.merge(graphdef, params))
    return {".".join(map(str, path)): module for path, module in modules if isinstance(module, LoraLinear)}


def with_lora(encoder, config, *, random: bool = True):
    """The encoder with branches whose B is random, too, or still 0."""
    graphdef, params = add_lora(encoder.graphdef, encoder.params, config)
    if random:
        rng = np.random.default_rng(0)
        flat = nnx.to_flat_state(params)
        drawn = {path: 0.1 * rng.standard_normal(leaf.shape) for path, leaf in flat if path[-1] == "lora_b"}
        params = nnx.from_flat_state([(p, x.replace(jnp.float32(drawn[p])) if p in drawn else x) for p, x in flat])
    return encoder.with_params(params, graphdef=graphdef)


def linear(inputs: int, outputs: int, config: LoraConfig, *, bias: bool = True) -> tuple[LoraLinear, dict]:
    """A branch with random factors, and all its values in float64."""
    rng = np.random.default_rng(0)
    values = {"w": (inputs, outputs), "b": outputs, "lora_a": (inputs, config.r), "lora_b": (config.r, outputs)}
    values = {name: rng.standard_normal(shape) for name, shape in values.items()}
    plain = nnx.Linear(inputs, outputs, use_bias=bias, rngs=nnx.Rngs(0))
    plain.kernel[...] = jnp.float32(values["w"])
    if bias:
        plain.bias[...] = jnp.float32(values["b"])
    module = LoraLinear(plain, config, jax.random.key(0))
    module.lora_a[...], module.lora_b[...] = jnp.float32(values["lora_a"]), jnp.float32(values["lora_b"])
    return module, values


@pytest.mark.compiles
@pytest.mark.parametrize("model_type", ["qwen3_vl", pytest.param("qwen2_5_vl", marks=pytest.mark.slow)])
def test_new_branches_leave_the_model_unchanged(tmp_path, model_type):
    encoder = smart_jax.load(write_checkpoint(tmp_path, model_type=model_type), head="qwen3_vl_embedding")
    adapted = with_lora(encoder, LoraConfig(r=4, alpha=8.0, modules="."), random=False)
    assert len(branches(adapted.graphdef, adapted.params)) == len(
        [m for _, m in nnx.iter_modules(nnx.merge(encoder.graphdef, encoder.params)) if type(m) is nnx.Linear]
    )
    for a, b in zip(*(e.encode_document(ITEMS).tokens for e in (encoder, adapted)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)  # nothing is added, but XLA may sum in another order


def test_the_gradient_of_a_branch_by_hand():
    rng = np.random.default_rng(0)
    x, a, b, g = (rng.standard_normal(shape) for shape in ((2, 3, 6), (6, 2), (2, 5), (2, 3, 5)))
    value, pull_back = jax.vjp(low_rank, *map(jnp.float32, (x, a, b)))
    np.testing.assert_allclose(value, x @ a @ b, rtol=1e-5, atol=1e-5)
    expected = g @ b.T @ a.T, np.einsum("nli,nlo,ro->ir", x, g, b), np.einsum("nli,ir,nlo->ro", x, a, g)
    for found, right in zip(pull_back(jnp.float32(g)), expected, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5)


def test_a_branch_s_gradients_are_taken_together():
    """Else a scheduler may leave those of the factors, which nothing waits for, to the end of the backward pass."""
    x, a, b = jnp.ones((2, 3, 6)), jnp.ones((6, 2)), jnp.ones((2, 5))
    jaxpr = jax.make_jaxpr(jax.grad(lambda *arguments: low_rank(*arguments).sum(), (0, 1, 2)))(x, a, b).jaxpr
    (barrier,) = (equation for equation in jaxpr.eqns if equation.primitive.name == "optimization_barrier")
    assert [v.aval.shape for v in barrier.outvars] == [x.shape, a.shape, b.shape]
    assert jaxpr.outvars == barrier.outvars


def test_the_gradient_of_a_merged_product_by_hand():
    rng = np.random.default_rng(0)
    shapes = {"x": (2, 3, 6), "w": (6, 5), "a": (6, 2), "b": (2, 5), "g": (2, 3, 5)}
    x, w, a, b, g = (rng.standard_normal(shape) for shape in shapes.values())
    value, pull_back = jax.vjp(merged_product, *map(jnp.float32, (x, w, a, b)))
    np.testing.assert_allclose(value, x @ (w + a @ b), rtol=1e-5, atol=1e-5)
    of_kernel = np.einsum("nli,nlo->io", x, g)
    expected = g @ (w + a @ b).T, of_kernel, of_kernel @ b.T, a.T @ of_kernel
    for found, right in zip(pull_back(jnp.float32(g)), expected, strict=True):
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-5)


@pytest.mark.compiles
def test_factors_are_merged_only_where_nothing_is_lost(monkeypatch):
    """Float32 kernels on a CPU; both ways compute the same, and have the same gradient."""
    module, _ = linear(6, 5, LoraConfig(r=2, alpha=3.0))
    x = jnp.float32(np.random.default_rng(1).standard_normal((2, 3, 6)))

    def products(graphdef, state, x):
        return str(jax.make_jaxpr(lambda s, x: nnx.merge(graphdef, s)(x))(state, x)).count("dot_general")

    def value(graphdef, state):
        return lambda x: (nnx.merge(graphdef, state)(x) ** 2).sum()

    split = nnx.split(module)
    merged = jax.value_and_grad(value(*split))(x)
    assert products(*split, x) == 2  # A B, and x with the merged kernel
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert products(*split, x) == 3
    for a, b in zip(merged, jax.value_and_grad(value(*split))(x), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    monkeypatch.undo()
    for kind in ("int8", "nf4"):
        other, _ = linear(6, 5, LoraConfig(r=2, quantize=kind))
        assert products(*nnx.split(other), x) == 3
    drop_out(dropping := linear(6, 5, LoraConfig(r=2, dropout=0.5))[0], jax.random.key(0), jnp.arange(2))
    assert products(*nnx.split(dropping), x) == 3


def test_a_branch_by_hand():
    for bias in (True, False):
        module, v = linear(6, 5, LoraConfig(r=2, alpha=3.0), bias=bias)
        x = np.random.default_rng(1).standard_normal((2, 3, 6))
        expected = x @ v["w"] + 1.5 * (x @ v["lora_a"]) @ v["lora_b"] + (v["b"] if bias else 0)
        np.testing.assert_allclose(module(jnp.float32(x)), expected, rtol=1e-5, atol=1e-5)


def test_a_starts_uniform_as_in_peft():
    a = LoraLinear(nnx.Linear(400, 7, rngs=nnx.Rngs(0)), LoraConfig(r=64), jax.random.key(0)).lora_a[...]
    assert 0.0499 < float(jnp.abs(a).max()) <= 0.05  # 1 / sqrt(400)
    assert float(jnp.std(a)) == pytest.approx(0.05 / 3**0.5, rel=0.02)


def test_bfloat16_kernels_compute_in_bfloat16():
    plain = nnx.Linear(4, 4, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    module = LoraLinear(plain, LoraConfig(r=2), jax.random.key(0))
    assert module(jnp.ones((1, 4), jnp.bfloat16)).dtype == jnp.bfloat16
    assert module.lora_a[...].dtype == module.lora_b[...].dtype == jnp.float32


@pytest.mark.compiles
def test_dropout_drops_inputs_of_the_branch_only():
    config = LoraConfig(r=50, alpha=50.0, dropout=0.25)
    module, v = linear(50, 50, config)
    module.lora_a[...] = module.lora_b[...] = jnp.eye(50)
    x = jnp.ones((200, 50))
    without = np.asarray(module(x))
    np.testing.assert_allclose(without, 1 + v["w"].sum(0) + v["b"] + np.zeros((200, 1)), atol=1e-4)

    def dropped(key):
        drop_out(module, jax.random.key(key), jnp.arange(200))
        return np.asarray(module(x)) - without + 1

    branch = dropped(0)
    is_kept = np.abs(branch - 1 / 0.75) < 1e-4
    assert np.abs(branch[~is_kept]).max() < 1e-4
    assert is_kept.mean() == pytest.approx(0.75, abs=0.02)
    np.testing.assert_array_equal(dropped(0), branch)
    drop_out(module, jax.random.key(0), jnp.array([7, 3]))
    np.testing.assert_allclose(np.asarray(module(x[:2])) - without[:2] + 1, branch[[7, 3]], atol=1e-4)
    assert np.abs(dropped(1) - branch).max() > 1


@pytest.mark.compiles
def test_branches_drop_apart_and_again_the_same_in_the_backward_pass(checkpoint):
    encoder = with_lora(smart_jax.load(checkpoint), LoraConfig(r=4, dropout=0.5, modules=r"layers.*up_proj|qkv"))
    rows = [encoder.preprocessor.tokenize(item) for item in ITEMS]
    batch = encoder.preprocessor.collate(rows)
    keys = [m.dropout_key for m in branches(encoder.graphdef, encoder.params).values()]
    assert keys == [None] * len(keys)

    def value(params, remat):
        model = nnx.merge(encoder.graphdef, params)
        drop_out(model, jax.random.key(7), jnp.arange(3))
        return (model(batch, remat=remat).pooled ** 2).sum()

    model = nnx.merge(encoder.graphdef, encoder.params)
    drop_out(model, jax.random.key(7), jnp.arange(3))
    found = [m.dropout_key[...] for _, m in nnx.iter_modules(model) if isinstance(m, LoraLinear)]
    keys = np.concatenate([jax.random.key_data(key) for key in found])
    assert len({tuple(key) for key in keys}) == 3 * len(found)
    function = jax.jit(jax.value_and_grad(value), static_argnums=1)
    (a, gradient), (b, again) = (function(encoder.params, remat) for remat in (False, True))
    assert float(a) == pytest.approx(float(b), rel=1e-5)
    for x, y in zip(*map(jax.tree.leaves, (gradient, again)), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-4 * max(1, float(np.abs(x).max())))


def test_nf4_is_the_quantiles_of_a_normal_distribution():
    """arXiv:2305.14314, section 3: 8 positive and 7 negative quantiles at equal steps, and an exact 0."""
    offset = (1 - 1 / 32 + 1 - 1 / 30) / 2
    positive = scipy.stats.norm.ppf(np.linspace(offset, 0.5, 9)[:-1])
    negative = -scipy.stats.norm.ppf(np.linspace(offset, 0.5, 8)[:-1])
    expected = np.sort([*positive, 0, *negative]) / positive.max()
    np.testing.assert_allclose(NF4, expected, atol=2e-7)


@pytest.mark.parametrize("inputs", [192, 80, 6])
def test_nf4_takes_the_nearest_value_of_each_block(inputs):
    kernel = np.random.default_rng(0).standard_normal((inputs, 3)).astype(np.float32)
    kernel[: inputs // 2, 1] = 0
    codes, scales = quantize(jnp.asarray(kernel), "nf4")
    block = {192: 64, 80: 16, 6: 2}[inputs]
    assert codes.dtype == jnp.uint8 and codes.shape == (inputs // 2, 3) and scales.shape == (inputs // block, 3)
    found = np.asarray(dequantize(codes, scales, "nf4"))
    for i in range(inputs):
        for o in range(3):
            scale = np.abs(kernel[i // block * block :][:block, o]).max()
            nearest = min((scale * np.array(NF4)), key=lambda value: abs(value - kernel[i, o]))
            assert found[i, o] == pytest.approx(nearest, abs=1e-6)
    np.testing.assert_array_equal(quantize(jnp.asarray(found), "nf4")[0], codes)


def test_int8_rounds_to_half_a_step():
    kernel = np.random.default_rng(0).standard_normal((40, 7)).astype(np.float32) * np.arange(7)
    codes, scales = quantize(jnp.asarray(kernel), "int8")
    assert codes.dtype == jnp.int8 and codes.shape == kernel.shape
    np.testing.assert_allclose(scales[0], np.abs(kernel).max(0) / 127, rtol=1e-6)
    assert (np.abs(dequantize(codes, scales, "int8") - kernel) <= np.asarray(scales) / 2 + 1e-6).all()


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_a_quantised_kernel_computes_what_it_restores(kind):
    kernel = jnp.asarray(np.random.default_rng(0).standard_normal((64, 8)), jnp.float32)
    quantised = QuantizedKernel(kernel, kind)
    restored = dequantize(quantised.codes[...], quantised.scales[...], kind)
    x = jnp.asarray(np.random.default_rng(1).standard_normal((5, 64)), jnp.float32)
    np.testing.assert_allclose(quantised.product(x), x @ restored, rtol=1e-6)
    gradient = jax.grad(lambda x: (quantised.product(x) ** 2).sum())(x)
    np.testing.assert_allclose(gradient, 2 * (x @ restored) @ restored.T, rtol=1e-5)
    kept = jax.tree.leaves(jax.vjp(quantised.product, x)[1])  # for the backward pass
    assert kernel.shape not in [leaf.shape for leaf in kept if jnp.issubdtype(leaf.dtype, jnp.floating)]
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(quantised))) == {"int8": 544, "nf4": 288}[kind]


@pytest.mark.compiles
def test_quantised_backbones_stay_close_and_nf4_is_the_coarser(checkpoint):
    encoder = smart_jax.load(checkpoint)
    exact = encoder.encode_document(ITEMS).pooled
    cosine = {}
    for kind in ("int8", "nf4"):
        quantised = with_lora(encoder, LoraConfig(r=2, modules=".", quantize=kind), random=False)
        for name, module in branches(quantised.graphdef, quantised.params).items():
            assert isinstance(module.kernel, QuantizedKernel), name
        cosine[kind] = (quantised.encode_document(ITEMS).pooled * exact).sum(1).min()
    assert 1 > cosine["int8"] > 0.995 and cosine["int8"] > cosine["nf4"] > 0.8


def test_modules_are_chosen_by_a_regular_expression(checkpoint):
    encoder = smart_jax.load(checkpoint)

    def names(**settings):
        return list(branches(*add_lora(encoder.graphdef, encoder.params, LoraConfig(r=2, **settings))))

    text = names()
    assert len(text) == 2 * 7 and all(name.startswith("language_model.layers.") for name in text)
    assert names(modules=r"visual\.blocks\.1\.attn") == ["visual.blocks.1.attn.proj", "visual.blocks.1.attn.qkv"]
    with pytest.raises(ValueError, match=r"'query' matches no linear map; there are .*layers\.0\.mlp\.down_proj"):
        names(modules="query")


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"r": 0}, "both must be positive"),
        ({"alpha": 0.0}, "both must be positive"),
        ({"dropout": 1.0}, "it is a probability"),
        ({"quantize": "int4"}, "choose one of none, int8, nf4"),
        ({"modules": "("}, "not a regular expression"),
    ],
)
def test_bad_settings_are_named(settings, error):
    with pytest.raises(ValueError, match=error):
        LoraConfig(**settings)


def test_nf4_of_an_odd_number_of_inputs_is_refused():
    with pytest.raises(ValueError, match="even number of inputs, not 5"):
        quantize(jnp.ones((5, 2)), "nf4")


@pytest.mark.compiles
@pytest.mark.parametrize(
    "family", ["qwen3_vl", "bert", *(pytest.param(f, marks=pytest.mark.slow) for f in ("qwen2_vl", "qwen2_5_vl"))]
)
def test_a_saved_lora_is_read_back_merged(tmp_path, family):
    base = tmp_path / "base"
    if family == "bert":
        write_bert(base)
        head, items = {}, ["oil of a pump", "revenue by region"]
    else:
        write_checkpoint(base, model_type=family)
        head, items = {"head": "qwen3_vl_embedding"}, ITEMS
    encoder = smart_jax.load(base, **head)
    config = LoraConfig(r=3, alpha=5.0, modules=".")
    adapted = with_lora(encoder, config)
    folder = save_lora(tmp_path / "lora", adapted.params, encoder.config, config, base="../base")
    expected, plain = adapted.encode_document(items), encoder.encode_document(items)
    found = smart_jax.load(folder, **head).encode_document(items)
    np.testing.assert_allclose(found.tokens, expected.tokens, atol=2e-5)
    assert np.abs(plain.tokens - expected.tokens).max() > 0.01
    written = json.loads((folder / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"], written["base_model_name_or_path"]) == (3, 5.0, "../base")


@pytest.mark.parametrize("kind", ["none", "int8", "nf4"])
def test_branches_are_split_as_their_kernels(checkpoint, kind):
    encoder = smart_jax.load(checkpoint, mesh=make_mesh(data=2, fsdp=2, tensor=2))
    _, params = add_lora(encoder.graphdef, encoder.params, LoraConfig(r=4, quantize=kind))
    spec = {
        ".".join(map(str, path[4:])): leaf.get_value().sharding.spec
        for path, leaf in nnx.to_flat_state(params)
        if path[:3] == ("language_model", "layers", 0) and path[4] in ("q_proj", "down_proj")
    }
    assert (spec["q_proj.lora_a"], spec["q_proj.lora_b"]) == (P("fsdp", None), P(None, "tensor"))
    assert (spec["down_proj.lora_a"], spec["down_proj.lora_b"]) == (P("tensor", None), P(None, "fsdp"))
    if kind != "none":
        assert spec["q_proj.kernel.codes"] == P("fsdp", "tensor")


def test_branches_of_one_shape_begin_apart(tmp_path):
    """Each has a key of its own, in one layer and from layer to layer."""
    encoder = smart_jax.load(write_bert(tmp_path))
    made = branches(*add_lora(encoder.graphdef, encoder.params, LoraConfig(r=2, modules="attention")))
    alike = [module.lora_a[...] for module in made.values() if module.lora_a.shape == (32, 2)]
    values = {np.asarray(value).tobytes() for value in alike}
    assert len(values) == len(alike) >= 4


def test_branches_are_drawn_from_the_seed(checkpoint):
    encoder = smart_jax.load(checkpoint)
    drawn = [
        np.concatenate([np.ravel(branch.lora_a[...]) for branch in branches(*made).values()])
        for made in (add_lora(encoder.graphdef, encoder.params, LoraConfig(r=2), seed=seed) for seed in (0, 0, 1))
    ]
    assert np.array_equal(drawn[0], drawn[1]) and not np.isclose(drawn[0], drawn[2]).any()
