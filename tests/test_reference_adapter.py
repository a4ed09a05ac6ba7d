"""Adapters of the reference: its three kinds in torch, its checkpoints in and out, and where they are found."""

from unittest.mock import patch

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from smart_jax.retrieval import Adapter, AdapterConfig, export_reference, import_reference, open_adapter

KINDS = {"linear": "token_projection", "mlp": "token_projection", "self_attention": "token_self_attention"}


class ReferenceModule(torch.nn.Module):
    """The parameters, their names and the arithmetic of the reference's projection modules."""

    def __init__(self, hidden_size, dim, count, kind="linear", mlp_dim=4096, heads=8, blocks=1):
        super().__init__()
        maps = [torch.nn.Linear(hidden_size, dim, bias=False)]
        if kind == "mlp":
            first, last = (torch.nn.Linear(*sizes, bias=False) for sizes in ((hidden_size, mlp_dim), (mlp_dim, dim)))
            maps = [first, torch.nn.GELU(), torch.nn.Dropout(0.5), last]
        self.proj = torch.nn.Sequential(torch.nn.LayerNorm(hidden_size), *maps)
        if kind == "self_attention":
            layers = [torch.nn.MultiheadAttention(dim, heads, batch_first=True) for _ in range(blocks)]
            self.self_attn_layers = torch.nn.ModuleList(layers)
            self.self_attn_norms = torch.nn.ModuleList([torch.nn.LayerNorm(dim) for _ in range(blocks)])
        if count > 1:
            self.layer_weight_vectors = torch.nn.Parameter(torch.randn(1, hidden_size))
        for name, parameter in self.named_parameters():
            if parameter.ndim == 1:  # gains and biases, which are trivial at first
                torch.nn.init.normal_(parameter, mean=float("bias" not in name), std=0.3)

    def forward(self, states, mask):  # [B, L, N, H], [B, L]
        fused = states[:, :, 0]
        if states.shape[2] > 1:
            rms = [
                x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() for x in (states, self.layer_weight_vectors[0])
            ]
            weights = (rms[0] @ rms[1] / states.shape[-1] ** 0.5).softmax(-1)
            fused = (weights[..., None] * states).sum(2)
        x = self.proj(fused)
        if hasattr(self, "self_attn_layers"):
            for attend, norm in zip(self.self_attn_layers, self.self_attn_norms, strict=True):
                x = norm(x + attend(x, x, x, key_padding_mask=~mask, need_weights=False)[0])
        return torch.nn.functional.normalize(x, dim=-1)


def reference_checkpoint(module, **settings):
    defaults = {"adapter_type": "token_projection", "use_last_n_layers": 1, "selected_layers": None, "anchor_dim": 10}
    return {"token_projection_module": module.state_dict(), **defaults, "hidden_size": 10, **settings}


def drawn(seed):
    """A random configuration of each kind in turn, as the reference's metadata, and the module that has it."""
    rng = np.random.default_rng(seed)
    kind = list(KINDS)[seed % 3]
    heads, blocks = int(rng.integers(1, 9)), int(rng.integers(1, 4))
    width, count = int(rng.integers(8, 40)), int(rng.integers(1, 4))
    dim = heads * int(rng.integers(1, 6)) if kind == "self_attention" else int(rng.integers(4, 40))
    options = {"mlp": {"mlp_dim": int(rng.integers(4, 60))}, "self_attention": {"heads": heads, "blocks": blocks}}
    torch.manual_seed(seed)
    module = ReferenceModule(width, dim, count, kind, **options.get(kind, {})).eval()
    names = {"mlp_dim": "projection_mlp_hidden_dim", "heads": "self_attn_num_heads", "blocks": "self_attn_num_layers"}
    metadata = {names[name]: value for name, value in options.get(kind, {}).items()}
    metadata |= {"adapter_type": KINDS[kind], "projection_type": "mlp" if kind == "mlp" else "linear"}
    metadata |= {"use_last_n_layers": count, "hidden_size": width, "anchor_dim": width, "residual_dim": dim}
    expected = AdapterConfig(
        width, None if dim == width else dim, tuple(range(-count, 0)), kind=kind, **options.get(kind, {})
    )
    return module, metadata, expected


@pytest.mark.compiles
@pytest.mark.parametrize("seed", range(9))
def test_every_kind_equals_torch(tmp_path, seed):
    """Tokens of a random configuration against torch in float64, gradients too; what is padded changes nothing."""
    module, metadata, config = drawn(seed)
    torch.save(reference_checkpoint(module, **metadata), tmp_path / "adapter.pt")
    adapter = import_reference(tmp_path)
    assert adapter.config == config

    rng = np.random.default_rng(seed)
    count, width = len(config.layers), config.hidden_size
    states, mask = rng.normal(0, 2, (3, 7, count, width)), rng.random((3, 7)) < 0.6
    mask[:, 2] = True
    target = rng.normal(size=(3, 7, config.token_dim)) * mask[..., None]
    x = torch.tensor(states, requires_grad=True)
    wanted = module.double()(x, torch.tensor(mask))
    (wanted * torch.tensor(target)).sum().backward()
    kept = jax.jit(lambda a, x: a(x, jnp.asarray(mask)))(adapter, jnp.asarray(states, jnp.float32))
    np.testing.assert_allclose(kept[mask], wanted.detach().numpy()[mask], atol=1e-6)

    other = jnp.asarray(np.where(mask[..., None, None], states, 9.0), jnp.float32)
    longer = jnp.pad(other, [(0, 0), (0, 30), (0, 0), (0, 0)], constant_values=-3.0)
    found = adapter(longer, jnp.pad(jnp.asarray(mask), [(0, 0), (0, 30)]))
    np.testing.assert_allclose(found[:, :7][mask], kept[mask], atol=1e-6)

    graph, parameters = nnx.split(adapter)

    def loss(p, x):
        return jnp.sum(nnx.merge(graph, p)(x, jnp.asarray(mask)) * target.astype(np.float32))

    gradients, of_states = jax.grad(loss, (0, 1))(parameters, jnp.asarray(states, jnp.float32))
    close = {"atol": 2e-6 * float(x.grad.abs().max() + 1)}
    np.testing.assert_allclose(of_states, x.grad.numpy(), **close)
    export_reference(nnx.merge(graph, gradients), tmp_path / "gradients.pt")
    theirs = {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}
    ours = torch.load(tmp_path / "gradients.pt", weights_only=True)["token_projection_module"]
    assert ours.keys() == theirs.keys()
    for name, gradient in theirs.items():
        np.testing.assert_allclose(ours[name], gradient, atol=4e-6 * max(1.0, np.abs(gradient).max()), err_msg=name)


@pytest.mark.parametrize("seed", range(6))
def test_every_kind_goes_back_to_torch(tmp_path, seed):
    module, metadata, config = drawn(seed)
    torch.save(reference_checkpoint(module, **metadata), tmp_path / "adapter.pt")
    export_reference(import_reference(tmp_path), tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert {name: back[name] for name in metadata} == metadata
    sizes = config.hidden_size, config.token_dim, len(config.layers)
    fresh = ReferenceModule(*sizes, config.kind, config.mlp_dim, config.heads, config.blocks)
    fresh.load_state_dict(back["token_projection_module"], strict=True)
    for name, value in module.state_dict().items():
        assert torch.equal(fresh.state_dict()[name], value), name


def test_a_single_chosen_layer(tmp_path):
    """The metadata count hidden states, where selected_layers counts blocks."""
    module = ReferenceModule(10, 10, 1)
    for chosen, settings in ((24, {"late_interaction_layer": 24}), (24, {"selected_layers": [23]}), (-3, None)):
        settings = {"selected_layers": [-3]} if settings is None else settings
        torch.save(reference_checkpoint(module, **settings), tmp_path / "adapter.pt")
        adapter = import_reference(tmp_path)
        assert adapter.config.layers == (chosen,)
        export_reference(adapter, tmp_path / "back.pt")
        back = torch.load(tmp_path / "back.pt", weights_only=True)
        assert back["late_interaction_layer"] == chosen
        assert back["selected_layers"] == [chosen - 1 if chosen > 0 else chosen]
        assert import_reference(tmp_path / "back.pt").config == adapter.config


def test_an_mlp_is_known_by_its_tensors(tmp_path):
    module = ReferenceModule(10, 10, 1, "mlp", 12)
    torch.save(reference_checkpoint(module), tmp_path / "adapter.pt")
    assert import_reference(tmp_path).config == AdapterConfig(10, kind="mlp", mlp_dim=12)


def write(folder, seed=0):
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    torch.save(reference_checkpoint(module := ReferenceModule(10, 6, 1)), folder / "adapter.pt")
    return module.proj[1].weight.detach().numpy().T


def kernel(adapter):
    return np.asarray(adapter.proj.kernel[...])


def test_an_adapter_is_found_by_file_folder_and_hub_id(tmp_path):
    expected = write(tmp_path / "published")
    for source in (tmp_path / "published", str(tmp_path / "published" / "adapter.pt")):
        np.testing.assert_array_equal(kernel(open_adapter(source)), expected)
    with patch("huggingface_hub.snapshot_download", return_value=str(tmp_path / "published")) as download:
        np.testing.assert_array_equal(kernel(open_adapter("HanSolo9682/smart-2b")), expected)
    assert download.call_args.args == ("HanSolo9682/smart-2b",)
    patterns = download.call_args.kwargs["allow_patterns"]
    assert patterns == ["adapter.json", "adapter.safetensors", "*adapter.pt"]  # no other pickle

    import_reference(tmp_path / "published").save(tmp_path / "ours")
    for source in ("ours", "ours/adapter.json", "ours/adapter.safetensors"):
        np.testing.assert_array_equal(kernel(open_adapter(tmp_path / source)), expected)

    write(tmp_path / "run" / "epoch_2", seed=2)
    np.testing.assert_array_equal(kernel(open_adapter(tmp_path / "run")), write(tmp_path / "run" / "epoch_2", seed=2))
    write(tmp_path / "run" / "epoch_1", seed=1)
    with pytest.raises(ValueError, match="several adapters, in 'epoch_1', 'epoch_2': give the folder of one"):
        open_adapter(tmp_path / "run")
    best = write(tmp_path / "run" / "best_adapter", seed=3)
    np.testing.assert_array_equal(kernel(open_adapter(tmp_path / "run")), best)


def test_what_is_no_adapter_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no 'adapter\.json' in '.*empty'"):
        open_adapter(tmp_path / "empty")
    (tmp_path / "empty" / "adapter_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="holds a PEFT adapter, not a token projection: load it as a model"):
        open_adapter(tmp_path / "empty")
    for source in ("runs/no/adapter", tmp_path / "missing"):
        with pytest.raises(FileNotFoundError, match="there is no adapter '.*': give a folder of Adapter.save"):
            open_adapter(source)


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
        wanted = module(states, torch.ones(2, 5, dtype=torch.bool)).numpy()
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
        (
            lambda c: c["token_projection_module"].update({"head.weight": torch.ones(2)}),
            r"unknown tensor 'head\.weight'",
        ),
        (lambda c: c.update(adapter_type="lora"), "adapter_type='lora' with projection_type='linear' is unknown"),
        (lambda c: c.update(adapter_type="token_self_attention", projection_type="mlp"), "projection_type='mlp'"),
        (lambda c: c.update(adapter_type="token_self_attention"), "heads=8 do not divide the 10 components"),
        (lambda c: c.update(adapter_type="self_attention", self_attn_num_heads=2), r"lacks the tensors \['blocks\.0"),
        (lambda c: c.update(adapter_type="self_attention", self_attn_num_heads=2.0), r"heads=2\.0"),
        (lambda c: c.update(late_interaction_layer="last"), "late_interaction_layer='last' is not an int"),
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
        export_reference(Adapter(AdapterConfig(8, layers=(0, -1)), rngs=nnx.Rngs(0)), tmp_path / "x.pt")
    export_reference(Adapter(AdapterConfig(8), rngs=nnx.Rngs(0)), tmp_path)  # a folder
    assert import_reference(tmp_path).config == AdapterConfig(8)
