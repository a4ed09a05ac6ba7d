"""Multi-vector models in the layouts in which they are published, against torch: states, a linear map, unit length.

The states are transformers' of the base model with token ids and grids, as colpali-engine runs it; transformers' own
ColQwen2ForRetrieval passes embeddings only, and so runs sequential positions.
"""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from transformers import ColQwen2Config, ColQwen2ForRetrieval

import smart_jax
from smart_jax.inputs import open_preprocessor
from smart_jax.inputs.presets import PRESETS
from smart_jax.models import load_config
from tests.checkpoints import noise_page, write_processor
from tests.lora import write_lora
from tests.parity import qwen2_vl, qwen3_5, qwen3_vl
from tests.parity.qwen3_vl import BROKEN, TOLERANCE, Inputs

pytestmark = pytest.mark.compiles

IDS = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 3, "vision_end_token_id": 4}
SMALL = {"min_pixels": 2048, "max_pixels": 16384}
WIDTH, DIM = 64, 24
DOCUMENTS = [noise_page(150, 90), {"text": "revenue", "image": noise_page(60, 120, seed=1)}, "no image: 12,345"]
DENSE = "1_Dense"  # a module of sentence-transformers, without a bias
# Head: model type of the base, module of the projector, its width, and what config.json says beside the base's.
LAYOUTS = {
    "colqwen2": ("qwen2_vl", "custom_text_proj", DIM, {"architectures": ["ColQwen2"]}),
    "ops_colqwen3": (
        "qwen3_vl",
        "custom_text_proj",
        WIDTH,
        {"architectures": ["OpsColQwen3Model"], "model_type": "ops_colqwen3", "dims": WIDTH},
    ),
    "tomoro_colqwen3": (
        "qwen3_vl",
        "embedding_proj_layer",
        DIM,
        {"architectures": ["ColQwen3"], "model_type": "colqwen3", "embed_dim": DIM},
    ),
    "colqwen3": ("qwen3_vl", "custom_text_proj", DIM, {"architectures": ["ColQwen3"]}),
    "colqwen3_5": ("qwen3_5", "custom_text_proj", DIM, {"architectures": ["ColQwen3_5"], "dim": DIM}),
    "evie": (
        "qwen3_5",
        "custom_text_proj",
        WIDTH,
        {"architectures": ["ColQwen3_5"], "dim": WIDTH, "_name_or_path": "tencent/EVIE-8B"},
    ),
    "pplx_embed_v2_late": (
        "qwen3_5_not_causal",
        DENSE,
        DIM,
        {"_name_or_path": "perplexity-ai/pplx-embed-v2-late-0.6b"},
    ),
    "nemotron_colembed": (
        "qwen3_vl",
        None,
        WIDTH,
        {"architectures": ["Qwen3VLNemotronEmbedModel"], "model_type": "qwen3_vl_nemotron_embed", "pooling": "colbert"},
    ),
}
PREFIXES = {"colqwen2": "", "ops_colqwen3": "", "tomoro_colqwen3": "vlm.model.", "colqwen3": "model."}


def test_every_model_is_here():
    assert set(LAYOUTS) == {head for head, preset in PRESETS.items() if preset.settings.pooling == "none"}


@pytest.fixture(scope="module")
def bases():
    """(torch model of the states, its config as published) of a model type."""
    text, vision, sections = qwen3_vl.CONFIGS["two_taps"]
    third = qwen3_vl.torch_model(({**text, "vocab_size": 640}, vision, sections), **IDS)
    made = {"qwen3_vl": third}
    for name, causal in (("qwen3_5", True), ("qwen3_5_not_causal", False)):
        layers = {"num_hidden_layers": 2, "layer_types": [qwen3_5.LINEAR, qwen3_5.FULL], "is_causal": causal}
        shape = ({**layers, "vocab_size": 640}, {"depth": 1}, [2, 1, 1], 0.25)
        made[name] = qwen3_5.torch_model(shape, **IDS)
    for model_type, name in (("qwen2_vl", "qwen2"), ("qwen2_5_vl", "qwen2_5")):
        family, text, vision, sections = qwen2_vl.CONFIGS[name]
        made[model_type] = qwen2_vl.torch_model((family, {**text, "vocab_size": 640}, vision, sections), **IDS).model
    return made


def projector(width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(width)
    return rng.normal(0, 0.1, (width, WIDTH)).astype(np.float32), rng.normal(0, 0.5, width).astype(np.float32)


def write(folder, model, *, prefix: str, module: str | None, width: int = DIM, keys=None):
    """A merged checkpoint: the base's tensors after `prefix`, and the projector's."""
    folder.mkdir(parents=True)
    tensors = {f"{prefix}{name}": value.numpy() for name, value in model.state_dict().items()}
    if module is not None and module != DENSE:
        tensors |= dict(zip((f"{module}.weight", f"{module}.bias"), projector(width), strict=True))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**model.config.to_dict(), **(keys or {})}, default=str))
    if module == DENSE:
        write_dense(folder, width)
    return write_processor(folder, patch_size=model.config.vision_config.patch_size)


def write_dense(folder, width: int) -> dict:
    """A Dense module without a bias, in a folder of its own; returns its config."""
    (folder / DENSE).mkdir()
    kinds = [("", "models.Transformer"), (DENSE, "models.Dense"), ("2_Normalize", "models.Normalize")]
    modules = [{"path": path, "type": f"sentence_transformers.{kind}"} for path, kind in kinds]
    (folder / "modules.json").write_text(json.dumps(modules))
    dense = {"in_features": WIDTH, "out_features": width, "bias": False}
    dense["activation_function"] = "torch.nn.modules.linear.Identity"
    (folder / DENSE / "config.json").write_text(json.dumps(dense))
    save_file({"linear.weight": projector(width)[0]}, folder / DENSE / "model.safetensors")
    return dense


@pytest.fixture(scope="module")
def written(bases, tmp_path_factory):
    """(base, folder) of a head."""
    made = {}

    def make(head):
        if head not in made:
            model_type, module, width, keys = LAYOUTS[head]
            place = tmp_path_factory.mktemp("multi") / "checkpoint"  # whose name tells nothing
            prefix = PREFIXES.get(head, "model.")
            made[head] = (
                bases[model_type],
                write(place, bases[model_type], prefix=prefix, module=module, width=width, keys=keys),
            )
        return made[head]

    return make


def rows_and_inputs(encoder, items, *, query=False):
    rows = [encoder.preprocessor.tokenize(item, query=query) for item in items]
    how = encoder.preprocessor.images.normalisation
    return rows, Inputs([(row.input_ids, list(row.grids), row.patches) for row in rows], image=5, how=how)


def states_of(model, inputs, head):
    """The states that the head's own code projects, and by name those of what it is not."""
    if head == "colqwen2":
        found = inputs.torch_inputs()
        in_a_line = torch.arange(found["input_ids"].shape[1]).expand(3, *found["input_ids"].shape)
        with torch.no_grad():
            wrong = model(**found, position_ids=in_a_line).last_hidden_state.numpy()
        return inputs.torch_last(model), {"sequential positions": wrong}
    if head == "evie":  # whose wrapper turns the switches after it has loaded the model
        switches = [model.language_model.config, *(layer.self_attn for layer in model.language_model.layers[1::2])]
        causal = inputs.torch_last(model)
        try:
            for switch in switches:
                switch.is_causal = False
            return inputs.torch_last(model), {"causal attention": causal}
        finally:
            for switch in switches:
                switch.is_causal = True
    if head == "nemotron_colembed":
        causal, both = before_norm(model, inputs, causal=True), before_norm(model, inputs, causal=False)
        with torch.no_grad():
            normed = model.language_model.norm(both)
        return both.numpy(), {"causal attention": causal.numpy(), "the final norm": normed.numpy()}
    return inputs.torch_last(model), {}


def before_norm(model, inputs, *, causal):
    """Output of the last layer, with attention to earlier positions or to both sides."""
    seen, decoder = [], model.language_model
    handle = decoder.layers[-1].register_forward_hook(lambda _module, _args, out: seen.append(out))
    decoder.config.is_causal = causal
    try:
        inputs.torch_last(model)
    finally:
        handle.remove()
        decoder.config.is_causal = True
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("head", sorted(LAYOUTS))
def test_token_vectors(written, head):
    """All tokens of the prompt, of pages and texts; no pooled vector."""
    model, folder = written(head)
    encoder = smart_jax.load(folder, settings=SMALL)
    assert encoder.preprocessor.settings.head == head and encoder.pooled_width == 0
    query = head == "nemotron_colembed"  # of the others only pplx writes a text in two ways, see below
    found = encoder.encode(DOCUMENTS, query=query)
    assert found.pooled.shape == (len(DOCUMENTS), 0)
    rows, inputs = rows_and_inputs(encoder, DOCUMENTS, query=query)
    last, others = states_of(model, inputs, head)
    _, module, width, _ = LAYOUTS[head]
    weight, bias = (np.eye(WIDTH), np.zeros(WIDTH)) if module is None else projector(width)
    bias = bias * (module != DENSE)
    for i, row in enumerate(rows):
        states = last[i, : len(row.input_ids)].astype(np.float64)
        states = states[row.keep]
        assert len(states) == len(row.input_ids) or head == "pplx_embed_v2_late"
        expected = states @ weight.T + bias
        np.testing.assert_allclose(found[i].tokens, unit(expected), atol=TOLERANCE)
        wrong = {"no unit length": expected} | ({"no bias": unit(expected - bias)} if bias.any() else {})
        if row.grids:
            kept = {name: each[i, : len(row.keep)][row.keep] for name, each in others.items()}
            wrong |= {name: unit(each @ weight.T + bias) for name, each in kept.items()}
        for name, vectors in wrong.items():
            assert np.abs(found[i].tokens - vectors).max() > BROKEN, name


def test_a_side_of_pplx_begins_with_its_token(bases, tmp_path):
    """As an added token, which the published tokenizer has, space and all."""
    folder = write(tmp_path / "pplx-embed-v2-late-0.6b", bases["qwen3_5"], prefix="model.", module=DENSE)
    words = Tokenizer.from_file(str(folder / "tokenizer.json"))
    words.add_tokens(["[Q] ", "[D] "])
    words.save(str(folder / "tokenizer.json"))
    preprocessor = open_preprocessor(folder, load_config(folder))
    ids = [words.token_to_id(token) for token in ("[D] ", "[Q] ")]
    oil = words.encode("oil").ids
    assert [preprocessor.tokenize("oil", query=side).input_ids.tolist() for side in (False, True)] == [
        [token, *oil] for token in ids
    ]


def test_narrower_token_vectors(written):
    """The first components of one projector, normalised again, by a setting and by the checkpoint's own key."""
    _, folder = written("ops_colqwen3")
    own = smart_jax.load(folder, settings=SMALL)
    narrow = smart_jax.load(folder, settings=SMALL | {"token_dim": 8})
    assert (own.token_dim, narrow.token_dim) == (WIDTH, 8)
    whole = own.encode_document(DOCUMENTS[2:]).tokens
    np.testing.assert_allclose(narrow.encode_document(DOCUMENTS[2:]).tokens, unit(whole[:, :8]), atol=TOLERANCE)
    with pytest.raises(ValueError, match="token_dim is 65, but the checkpoint has one of width 64"):
        smart_jax.load(folder, settings={"token_dim": 65})


# ---- the same weights in other layouts


def same(folder, *, width=DIM, name="custom_text_proj"):
    encoder = smart_jax.load(folder)
    assert (encoder.config.projector.name, encoder.token_dim) == (name, width)
    return encoder


def assert_equal(ours, theirs, atol=0.0):
    ours, theirs = (dict(jax.tree_util.tree_flatten_with_path(each.params)[0]) for each in (ours, theirs))
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        np.testing.assert_allclose(value, theirs[path], atol=atol, err_msg=str(path))


@pytest.mark.parametrize("model_type", ["qwen2_vl", "qwen2_5_vl"])
def test_checkpoints_of_transformers(bases, tmp_path, model_type):
    """ColQwen2ForRetrieval: "vlm." before the names, embedding_proj_layer, the base's config within config.json."""
    base = bases[model_type]
    retriever = ColQwen2ForRetrieval(ColQwen2Config(vlm_config=base.config.to_dict(), embedding_dim=DIM))
    retriever.vlm.load_state_dict(base.state_dict())
    weight, bias = map(torch.tensor, projector(DIM))
    retriever.embedding_proj_layer.load_state_dict({"weight": weight, "bias": bias})
    retriever.save_pretrained(tmp_path / "hf")
    write_processor(tmp_path / "hf", patch_size=14)
    found = same(tmp_path / "hf", name="embedding_proj_layer")
    assert (found.config.model_type, found.preprocessor.settings.head) == (model_type, "colqwen2")
    merged = write(tmp_path / "colqwen2-merged", base, prefix="model.", module="custom_text_proj")
    assert_equal(found, same(merged))


def test_adapter_on_a_base_with_the_projector(written, tmp_path):
    """As vidore/colqwen2-v1.0: LoRA of the decoder and of the projector, whose weight the base has."""
    _, base = written("colqwen2")
    shutil.copytree(base, tmp_path / "colqwen2-base")
    modules = {"custom_text_proj": (DIM, WIDTH), "model.layers.0.self_attn.q_proj": (64, 64)}
    added = write_lora(tmp_path / "v1", modules, base_model_name_or_path="../colqwen2-base", target_modules=".*")[None]
    plain, adapted = same(base), same(tmp_path / "v1")
    assert adapted.preprocessor.settings.head == "colqwen2"
    for module, path in (
        ("custom_text_proj", ("token_projector",)),
        ("model.layers.0.self_attn.q_proj", ("language_model", "layers", 0, "self_attn", "q_proj")),
    ):
        ours, before = adapted.params, plain.params
        for key in (*path, "kernel"):
            ours, before = ours[key], before[key]
        np.testing.assert_allclose(ours[...] - before[...], added[module].T, atol=1e-6)


def test_adapter_that_holds_the_projector(bases, tmp_path):
    """The base has none: the adapter's modules_to_save bring it."""
    write(tmp_path / "base", bases["qwen2_5_vl"], prefix="model.", module=None)
    write_lora(
        tmp_path / "colnomic",
        {"model.language_model.layers.0.self_attn.q_proj": (64, 64)},
        base_model_name_or_path="../base",
        modules_to_save=["custom_text_proj"],
    )
    path = tmp_path / "colnomic" / "adapter_model.safetensors"
    names = (f"base_model.model.custom_text_proj.{part}" for part in ("weight", "bias"))
    save_file(load_file(path) | dict(zip(names, projector(DIM), strict=True)), path, metadata={"format": "pt"})
    kernel = same(tmp_path / "colnomic").params["token_projector"]["kernel"][...]
    np.testing.assert_array_equal(kernel, projector(DIM)[0].T)


def test_module_of_sentence_transformers(bases, tmp_path):
    """A Dense module without a bias, in a folder of its own: read, and written there again."""
    folder, weight = write(tmp_path / "late", bases["qwen3_vl"], prefix="model.", module=None), projector(DIM)[0]
    dense = write_dense(folder, DIM)
    how = {"prompt": "{{ visual }}{{ texts | join }}", "pooling": "none", "settings": {"keep": "all"}}
    encoder = smart_jax.load(folder, **how)
    assert encoder.config.projector.bias is False and encoder.config.projector.module == "1_Dense.linear"
    _, inputs = rows_and_inputs(encoder, ["oil and gas"])
    expected = unit(inputs.torch_last(bases["qwen3_vl"])[0].astype(np.float64) @ weight.T)
    np.testing.assert_allclose(encoder.encode_query("oil and gas").tokens, expected, atol=TOLERANCE)
    encoder.save(tmp_path / "again")
    np.testing.assert_array_equal(
        load_file(tmp_path / "again" / "1_Dense" / "model.safetensors")["linear.weight"], weight
    )
    assert_equal(smart_jax.load(tmp_path / "again"), encoder)
    (folder / "1_Dense" / "config.json").write_text(json.dumps(dense | {"activation_function": "torch.nn.Tanh"}))
    with pytest.raises(ValueError, match="one linear Dense module is computed here, not 1 with the activation"):
        smart_jax.load(folder, **how)


def test_saved_and_opened_again(written, tmp_path):
    """The checkpoint's names stay: what reads it reads ours."""
    _, folder = written("tomoro_colqwen3")
    encoder = smart_jax.load(folder, settings=SMALL)
    encoder.save(tmp_path / "saved")
    tensors = load_file(tmp_path / "saved" / "model.safetensors")
    np.testing.assert_array_equal(tensors["embedding_proj_layer.weight"], projector(DIM)[0])
    again = smart_jax.load(tmp_path / "saved")
    assert_equal(again, encoder)
    assert again.preprocessor.settings == encoder.preprocessor.settings
