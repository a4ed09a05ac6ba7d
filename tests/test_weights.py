"""Checkpoints: both config spellings, both file layouts, complete both ways, clear errors."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec
from safetensors.numpy import load_file, save_file

from smart_jax.files import read_header, write_tensors
from smart_jax.files.checkpoint import INDEX_FILE, SINGLE_FILE
from smart_jax.models import load_config
from smart_jax.models.weights import init_weights, load_weights, save_weights
from smart_jax.runtime.mesh import make_mesh, sharding_for
from tests.backbone import small_config, write_backbone


@pytest.fixture
def folder(tmp_path):
    return write_backbone(tmp_path / "checkpoint")


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def edit(folder, change):
    tensors = load_file(folder / SINGLE_FILE)
    save_file(change(dict(tensors)) or tensors, folder / SINGLE_FILE)


def shard(folder, parts=3):
    """Splits model.safetensors into `parts` files with an index, as the hub stores large models."""
    tensors = load_file(folder / SINGLE_FILE)
    (folder / SINGLE_FILE).unlink()
    weight_map = {}
    for i in range(parts):
        file = f"model-{i + 1:05d}-of-{parts:05d}.safetensors"
        some = {name: tensors[name] for name in list(tensors)[i::parts]}
        save_file(some, folder / file)
        weight_map |= dict.fromkeys(some, file)
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def test_save_and_load_round_trip(folder):
    config = load_config(folder)
    _, params = load_weights(folder, config)
    assert_same(params, init_weights(config, 0)[1])
    assert_same(params, load_weights(save_weights(folder / "copy", params, config).parent, config)[1])


def test_transformers_reads_what_we_write(folder):
    import torch
    from transformers import Qwen3VLModel

    model, info = Qwen3VLModel.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    params = load_weights(folder, load_config(folder))[1]
    kernel = nnx.merge(load_weights(folder, load_config(folder))[0], params).visual.patch_embed.proj.kernel[...]
    ours = torch.nn.functional.linear(torch.ones(1, kernel.shape[0]), torch.tensor(np.asarray(kernel).T))
    theirs = model.visual.patch_embed.proj.weight.reshape(kernel.shape[1], -1).sum(1)
    torch.testing.assert_close(ours[0], theirs, atol=1e-5, rtol=0)


def test_sharded_files_equal_single_file(folder):
    config = load_config(folder)
    whole = load_weights(folder, config)[1]
    shard(folder)
    assert_same(whole, load_weights(folder, config)[1])


def test_names_without_prefix_and_lm_head(folder):
    config = load_config(folder)
    whole = load_weights(folder, config)[1]
    edit(folder, lambda t: {n.removeprefix("model."): v for n, v in t.items()} | {"lm_head.weight": np.ones((4, 4))})
    assert_same(whole, load_weights(folder, config)[1])


def test_dtype_is_that_asked_for(folder):
    config = load_config(folder)
    edit(folder, lambda t: {n: v.astype(np.float16) for n, v in t.items()})
    for dtype in (jnp.float32, jnp.bfloat16):
        assert {x.dtype for x in jax.tree.leaves(load_weights(folder, config, dtype=dtype)[1])} == {jnp.dtype(dtype)}


def test_parameters_lie_sharded_on_a_mesh(folder):
    config = load_config(folder)
    graphdef, params = load_weights(folder, config, mesh=make_mesh(data=2, fsdp=2, tensor=2))
    model = nnx.merge(graphdef, params)
    up = model.language_model.layers[0].mlp.up_proj.kernel[...]
    assert len(up.sharding.device_set) == 8
    assert up.addressable_shards[0].data.shape == (up.shape[0] // 2, up.shape[1] // 2)
    assert_same(params, load_weights(folder, config)[1])


def test_both_config_spellings_agree(tmp_path):
    new = small_config()
    old = small_config()
    rope = old["text_config"].pop("rope_parameters")
    old["text_config"] |= {
        "rope_theta": rope["rope_theta"],
        "rope_scaling": {"rope_type": "default", "mrope_section": rope["mrope_section"], "mrope_interleaved": True},
    }
    configs = []
    for name, config in (("v5", new), ("v4", old)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        configs.append(load_config(tmp_path / name))
    assert configs[0] == configs[1]


# --- bad input ---------------------------------------------------------------------------------------------------


def test_unused_and_unfilled_are_named(folder):
    def change(t):
        t["model.visual.novelty.weight"] = np.ones(3, np.float32)
        del t["model.language_model.norm.weight"]
        return t

    edit(folder, change)
    with pytest.raises(
        ValueError, match=r"does not use: model\.visual\.novelty\.weight.*fills: model\.language_model\.norm"
    ):
        load_weights(folder, load_config(folder))


def test_shape_mismatch_is_named(folder):
    edit(folder, lambda t: t | {"model.language_model.norm.weight": np.ones(7, np.float32)})
    with pytest.raises(ValueError, match=r"language_model\.norm\.weight' gives shape \(7,\).*\(32,\)"):
        load_weights(folder, load_config(folder))


def test_no_weights(folder):
    (folder / SINGLE_FILE).unlink()
    with pytest.raises(FileNotFoundError, match="neither model.safetensors nor"):
        load_weights(folder, load_config(folder))


def test_truncated_weights(folder):
    data = (folder / SINGLE_FILE).read_bytes()
    (folder / SINGLE_FILE).write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="corrupt or truncated"):
        load_weights(folder, load_config(folder))


def test_missing_shard(folder):
    shard(folder)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-00002-of-00003"):
        load_weights(folder, load_config(folder))


@pytest.mark.parametrize("text", ["{", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 1}}'])
def test_corrupt_index(folder, text):
    shard(folder)
    (folder / INDEX_FILE).write_text(text)
    with pytest.raises(ValueError, match=r"not a safetensors index|is not valid JSON"):
        load_weights(folder, load_config(folder))


def test_shard_without_its_tensor(folder):
    shard(folder)
    index = json.loads((folder / INDEX_FILE).read_text())
    index["weight_map"]["model.ghost.weight"] = "model-00001-of-00003.safetensors"
    (folder / INDEX_FILE).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"model-00001.*lacks.*model\.ghost\.weight"):
        load_weights(folder, load_config(folder))


def test_config_missing_corrupt_unknown(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(small_config(model_type="llama")))
    with pytest.raises(ValueError, match="'llama' is not supported; architectures that can be loaded: qwen3_vl"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    ("section", "key"), [("text_config", "head_dim"), ("text_config", "rope_parameters"), ("vision_config", "depth")]
)
def test_config_key_missing(tmp_path, section, key):
    config = small_config()
    del config[section][key]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=section):
        load_config(tmp_path)


def test_config_of_an_unsupported_activation(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(small_config(text_config={"hidden_act": "relu6"})))
    with pytest.raises(ValueError, match="relu6"):
        load_config(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"layer_types": ["linear_attention"]},
        {"layer_types": ["linear_attention", "sliding_attention"]},
        {"layer_types": None, "full_attention_interval": 0},
        {"linear_num_value_heads": 3},
        {"linear_conv_kernel_dim": 0},
        {"linear_key_head_dim": "8"},
        {"is_causal": "yes"},
        {"attn_output_gate": False},
        {"rope_parameters": {"rope_theta": 1e7, "partial_rotary_factor": 0.4}},
        {"rope_parameters": {"rope_theta": 1e7, "partial_rotary_factor": "all"}},
    ],
)
def test_config_of_a_hybrid_decoder_that_is_not_computed(tmp_path, change):
    (tmp_path / "config.json").write_text(json.dumps(small_config(model_type="qwen3_5", text_config=change)))
    key = next(reversed(change.get("rope_parameters", change)))
    with pytest.raises(ValueError, match=f"text_config: {key}"):
        load_config(tmp_path)


def test_config_of_a_hybrid_decoder_with_every_default(tmp_path):
    config = small_config(model_type="qwen3_5")
    text, vision = {"rope_parameters": {"rope_theta": 1e7}, "full_attention_interval": 8}, {"out_hidden_size": 4096}
    (tmp_path / "config.json").write_text(json.dumps(config | {"text_config": text, "vision_config": vision}))
    found = load_config(tmp_path).text
    assert [i for i, kind in enumerate(found.layer_types) if kind == "full_attention"] == [7, 15, 23, 31]
    assert (found.head_dim, found.rotary_dim, found.mrope_section, found.is_causal) == (256, 64, (11, 11, 10), True)


@pytest.mark.parametrize(
    ("shape", "split"),
    [((4, 8), ("fsdp", "tensor")), ((3, 8), (None, "tensor")), ((4, 6), ("fsdp", None)), ((3, 6), (None, None))],
)
def test_axes_that_the_devices_do_not_divide_stay_whole(shape, split):
    mesh = make_mesh(data=1, fsdp=2, tensor=4)
    assert sharding_for("x.kernel", shape, [(r"kernel$", PartitionSpec("fsdp", "tensor"))], mesh).spec == PartitionSpec(
        *split
    )


def test_mesh_that_does_not_fit():
    with pytest.raises(ValueError, match="needs 6 devices, but there are 8"):
        make_mesh(data=3, fsdp=2)
    with pytest.raises(ValueError, match="at most one may be -1"):
        make_mesh(data=-1, fsdp=-1)


def test_one_tensor_under_two_prefixes_is_refused(folder):
    """Neither takes the other's place."""
    name = "language_model.norm.weight"
    edit(folder, lambda t: t | {name: np.zeros_like(t[f"model.{name}"])})
    with pytest.raises(ValueError, match=r"does not use: (model\.)?language_model\.norm\.weight"):
        load_weights(folder, load_config(folder))


def test_tensors_lie_in_a_file_as_the_formats_own_writer_puts_them(tmp_path):
    """The largest elements first, then by name: each tensor begins at a multiple of its elements' size."""
    dtypes = {"a": np.int8, "b": np.float64, "c": np.float16, "d": np.float32, "e": np.float16, "f": np.int8}
    arrays = {name: np.zeros(3, dtype) for name, dtype in dtypes.items()}
    write_tensors(tmp_path / "ours", arrays)
    save_file(arrays, tmp_path / "theirs")
    ours, theirs = (read_header(tmp_path / name)[0] for name in ("ours", "theirs"))
    assert sorted(ours, key=lambda name: ours[name].start) == sorted(theirs, key=lambda name: theirs[name].start)
    assert all(entry.start % arrays[name].itemsize == 0 for name, entry in ours.items())
