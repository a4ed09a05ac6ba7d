"""EmbeddingGemma 2 against transformers: every layer of random models, and what must break them."""

from __future__ import annotations

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from peft import PeftModel
from PIL import Image
from safetensors.numpy import load_file
from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

import smart_jax
from smart_jax.inputs.image import ImageSettings, process_image
from smart_jax.models import EmbeddingGemma2Config, abstract_model, batch_axes, load_config, load_weights, save_weights
from smart_jax.models.embedding_gemma2 import text as text_module
from smart_jax.models.lora import LoraConfig, add_lora, save_lora
from smart_jax.models.pixels import byte_values
from smart_jax.models.positions import patch_geometry
from smart_jax.runtime import batch_sharding, make_mesh, place
from tests.backbone import GEMMA
from tests.checkpoints import noise_page, write_gemma_processor
from tests.parity import embedding_gemma2 as E


@dataclasses.dataclass
class Pair:
    """A random model in torch, and its folder as read here."""

    name: str
    torch: E.EmbeddingGemma2Model
    folder: object
    config: object
    model: object

    def inputs(self, case):
        return E.Inputs.random(E.CASES[case], size=self.config.vision.patch_size, seed=3)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Makes the pair of a configuration once."""
    made = {}

    def make(name):
        if name not in made:
            model = E.torch_model(*E.CONFIGS[name])
            folder = E.save(model, tmp_path_factory.mktemp(name))
            config = load_config(folder)
            made[name] = Pair(name, model, folder, config, nnx.merge(*load_weights(folder, config)))
        return made[name]

    return make


@pytest.fixture(scope="module")
def pair(pairs):
    return pairs("every_third_full")


def our_states(model, batch):
    """States before the first layer and after each, all as the encoder reads them, and the pooled ones."""
    depth = model.config.text.num_hidden_layers

    @jax.jit
    def run(batch):
        x = model._with_images(model.language_model.embed(batch.input_ids), batch, False)
        raw = model.language_model.run_layers(x, batch, set(range(depth + 1)))
        return [raw[i] for i in range(depth + 1)], model(batch, layers=tuple(range(depth + 1)))

    return run(batch)


def difference(inputs, ours, theirs, *, left):
    """Largest difference at the rows' own tokens; ours are right-padded."""
    pieces = [
        np.abs(np.asarray(a)[: len(ids)] - (b[len(b) - len(ids) :] if left else b[: len(ids)])).max()
        for (ids, _, _), a, b in zip(inputs.rows, ours, theirs, strict=True)
    ]
    return max(pieces)


def check_layers(pair, case):
    inputs = pair.inputs(case)
    raw, hidden = our_states(pair.model, inputs.for_ours(extra=2))
    for left in (False, True):
        states, last = E.torch_states(pair.torch, inputs.for_torch(left=left, extra=1))
        assert len(states) == len(raw) == pair.config.text.num_hidden_layers + 1
        errors = [difference(inputs, a, b, left=left) for a, b in zip(raw, states, strict=True)]
        assert max(errors) < E.TOLERANCE, errors
        language = pair.torch.language_model
        with E.torch.no_grad():
            read = [language.embedding_projection(language.norm(E.torch.tensor(x))).numpy() for x in states]
        np.testing.assert_array_equal(read[-1], last)
        for i, expected in enumerate(read):
            assert difference(inputs, hidden.states[:, :, i], expected, left=left) < E.TOLERANCE
        rows = [
            x[len(x) - len(ids) :] if left else x[: len(ids)] for x, (ids, _, _) in zip(last, inputs.rows, strict=True)
        ]
        np.testing.assert_allclose(hidden.pooled, [row.mean(0) for row in rows], atol=E.TOLERANCE)


@pytest.mark.compiles
def test_texts(pair):
    check_layers(pair, "text")


@pytest.mark.slow
@pytest.mark.parametrize("name", E.CONFIGS)
def test_images(pairs, name):
    """One image, several of other sizes, none: in one batch."""
    check_layers(pairs(name), "images")


@pytest.mark.slow
def test_rows_that_share_a_bin(pair):
    """Their images stand one after another, and see nothing of each other."""
    inputs = pair.inputs("images")
    apart = inputs.for_ours()
    counts = [int((row > 0).sum()) for row in apart.vision.segment]
    first = np.cumsum([0, *counts[:-1]])
    fields = {
        name: np.concatenate([getattr(apart.vision, name)[b, :n] for b, n in enumerate(counts)])[None]
        for name in ("patches", "coords", "segment")
    }
    numbers = np.cumsum([0, *[int(row.max()) for row in apart.vision.segment[:-1]]])
    fields["segment"] = np.concatenate([apart.vision.segment[b, :n] + numbers[b] for b, n in enumerate(counts)])[None]
    index = np.where(apart.index < 0, -1, apart.index + first[:, None] // E.MERGE**2).astype(np.int32)
    shared = dataclasses.replace(apart, vision=dataclasses.replace(apart.vision, **fields), index=index)
    run = jax.jit(lambda batch: pair.model(batch).pooled)
    np.testing.assert_allclose(run(shared), run(apart), atol=E.TOLERANCE)


# ---- from items to embeddings


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(torch model, folder) of a checkpoint with a tokenizer, whose patches have 16 pixels as the published model's."""
    text, vision = E.CONFIGS["every_third_full"]
    ids = {name: GEMMA[name] for name in E.IDS}
    model = E.torch_model(
        {**text, "vocab_size": 640}, {**vision, "patch_size": 16, "position_embedding_size": 220}, **ids
    )
    return model, write_gemma_processor(E.save(model, tmp_path_factory.mktemp("embeddinggemma-2")))


@pytest.mark.slow
def test_embeddings(whole):
    """Pixels by transformers' processor, tokens by its tokenizer, the mean over all of a row's states."""
    model, folder = whole
    encoder = smart_jax.load(folder)
    pages = [noise_page(150, 90), noise_page(60, 200, seed=1)]
    items = [{"text": "revenue", "image": pages[0]}, pages[1], "no image: 12,345"]
    found = encoder.encode_document(items)
    processor = Gemma4ImageProcessorPil(max_soft_tokens=70)
    for i, (text, images) in enumerate([("revenue", pages[:1]), ("", pages[1:]), ("no image: 12,345", [])]):
        arguments = dict(processor(images, return_tensors="pt")) if images else {}
        soft = int(arguments.pop("num_soft_tokens_per_image", [0])[0])
        marked = "<|image>" + "<|image|>" * soft + "<image|>" if soft else ""
        ids = encoder.preprocessor.tokenizer(f"{marked}title: none | text: {text}", return_tensors="pt")["input_ids"]
        with E.torch.no_grad():
            states = model(input_ids=ids, **arguments).last_hidden_state[0].numpy()
        mean = states.mean(0)
        np.testing.assert_allclose(found.pooled[i], mean / np.linalg.norm(mean), atol=E.TOLERANCE)
        kept = states[~np.isin(ids[0], [1, 2, 5, 7])]
        tokens = kept / np.linalg.norm(kept, axis=1, keepdims=True)
        np.testing.assert_allclose(found[i].tokens, tokens, atol=E.TOLERANCE)
    assert encoder.width == 44 and encoder.depth == 5


@pytest.mark.compiles
def test_a_folder_of_an_encoder_gives_the_same(whole, tmp_path):
    _, folder = whole
    encoder = smart_jax.load(folder)
    encoder.save(tmp_path / "copy")
    again = smart_jax.load(tmp_path / "copy")
    assert again.preprocessor.settings == encoder.preprocessor.settings
    for ours, theirs in zip(jax.tree.leaves(again.params), jax.tree.leaves(encoder.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_texts_alone(whole, tmp_path):
    """A checkpoint without towers reads texts, needs no file about images, and says what it lacks."""
    _, folder = whole
    hf = json.loads((folder / "config.json").read_text())
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / name, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(hf | {"vision_config": None}))
    encoder = smart_jax.load(tmp_path)
    assert encoder.preprocessor.modalities == ("text",)
    assert encoder.preprocessor.tokenize("oil").pool.all()
    with pytest.raises(ValueError, match="item 1 has an image, but this checkpoint has no vision tower"):
        encoder.preprocessor.tokenize(noise_page(64, 64), name="item 1")


SIZES = {70: [(150, 90), (33, 500), (2000, 31)], 280: [(425, 550)], 560: [(640, 480)], 1120: [(48, 48)]}


@pytest.mark.parametrize("soft_tokens", SIZES)
def test_pixels_are_those_of_transformers(soft_tokens):
    """Bit for bit, for images of several shapes and, once, of several modes, among them what is transparent."""
    settings = ImageSettings(temporal_patch_size=1, merge_size=3, soft_tokens=soft_tokens)
    processor = Gemma4ImageProcessorPil(max_soft_tokens=soft_tokens)
    rgb = [noise_page(*size) for size in SIZES[soft_tokens]]
    alpha = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 4), np.uint8))
    palette = noise_page(64, 80).quantize(16)
    palette.info["transparency"] = 3
    others = [alpha, alpha.convert("LA"), palette, rgb[0].convert("L"), rgb[0].convert("CMYK")]
    for image in [*rgb, *(others if soft_tokens == 70 else [])]:
        theirs = processor(image, return_tensors="np")
        patches, (_, rows, columns) = process_image(image, settings)
        place = theirs["image_position_ids"][0]
        count = int((place >= 0).all(-1).sum())
        assert (count, theirs["num_soft_tokens_per_image"][0]) == (rows * columns, len(patches) // 9)
        values = byte_values(patches[None], settings.normalisation, dtype=jnp.float32)[0]
        order = np.lexsort((place[:count, 0], place[:count, 1]))
        coords = patch_geometry([(1, rows, columns)], merge=3, side=None).coords
        ours = np.asarray(values)[np.lexsort((coords[:, 1], coords[:, 0]))]
        np.testing.assert_array_equal(ours, 2 * (theirs["pixel_values"][0][:count][order] - np.float32(0.5)))


# ---- what must not pass


def broken(pair, config=None, model=None):
    """How far texts are off with another config, or with other weights."""
    inputs = pair.inputs("text")
    if model is None:
        model = nnx.merge(*load_weights(pair.folder, config))
    ours = jax.jit(lambda batch: model(batch).states[:, :, -1])(inputs.for_ours())
    _, theirs = E.torch_states(pair.torch, inputs.for_torch(left=False))
    return difference(inputs, ours, theirs, left=False)


@pytest.mark.compiles
@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": 4},
        {"sliding_window": 6},
        {"rope_theta": 1e6, "full_rope_theta": 1e4},
    ],
    ids=["a window too near", "a window too wide", "rotations of the other layers"],
)
def test_another_config_shows(pair, changes):
    config = dataclasses.replace(pair.config, text=dataclasses.replace(pair.config.text, **changes))
    assert broken(pair, config) > E.BROKEN


@pytest.mark.compiles
def test_the_layers_scalars_show(pair):
    graphdef, params = load_weights(pair.folder, pair.config)
    for layer in params["language_model"]["layers"].values():
        layer["layer_scalar"] = layer["layer_scalar"].replace(jnp.ones(1))
    assert broken(pair, model=nnx.merge(graphdef, params)) > E.BROKEN


@pytest.mark.compiles
def test_the_scale_of_the_scores_shows(pair, monkeypatch):
    monkeypatch.setattr(text_module, "SCALE", None)  # the usual one
    assert broken(pair, pair.config) > E.BROKEN


# ---- weights


@pytest.mark.parametrize("name", E.CONFIGS)
def test_every_tensor_is_written_as_it_was_read(pairs, name, tmp_path):
    pair = pairs(name)
    _, params = load_weights(pair.folder, pair.config)
    save_weights(tmp_path, params, pair.config)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path, pair.folder))
    assert set(ours) == set(theirs)
    for key, value in theirs.items():
        np.testing.assert_array_equal(ours[key], value, err_msg=key)


def test_towers_may_be_left_out(pair, tmp_path):
    """As in transformers, the weights of a tower that config.json does not name are passed over."""
    hf = json.loads((pair.folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(hf | {"vision_config": None}))
    shutil.copy(pair.folder / "model.safetensors", tmp_path)
    config = load_config(tmp_path)
    model = nnx.merge(*load_weights(tmp_path, config))
    assert config.vision is None and not hasattr(model, "vision_tower")
    with pytest.raises(ValueError, match="has images, but this checkpoint has no vision tower"):
        model(pair.inputs("images").for_ours())


def test_float16_is_refused(pair):
    with pytest.raises(ValueError, match="embedding_gemma2 overflow float16: use bfloat16 or float32"):
        load_weights(pair.folder, pair.config, dtype=jnp.float16)


@pytest.mark.slow
def test_lora_in_torch(pair, tmp_path):
    """Branches on every linear map, those of the tower too, as PEFT opens them."""
    lora = LoraConfig(r=3, alpha=5.0, modules=".")
    graphdef, params = add_lora(*load_weights(pair.folder, pair.config), lora)
    rng = np.random.default_rng(0)
    flat = [
        (path, leaf.replace(jnp.float32(0.05 * rng.standard_normal(leaf.shape))) if path[-1] == "lora_b" else leaf)
        for path, leaf in nnx.to_flat_state(params)
    ]
    params = nnx.from_flat_state(flat)
    save_lora(tmp_path, params, pair.config, lora, base=pair.folder)
    inputs = pair.inputs("images")
    ours = jax.jit(lambda p, b: nnx.merge(graphdef, p)(b).states[:, :, 0])(params, inputs.for_ours())
    model = PeftModel.from_pretrained(E.EmbeddingGemma2Model.from_pretrained(pair.folder), tmp_path).eval()
    with E.torch.no_grad():
        theirs = model(**inputs.for_torch(left=False)).last_hidden_state.numpy()
    assert difference(inputs, ours, theirs, left=False) < E.TOLERANCE
    with E.torch.no_grad():
        plain = pair.torch(**inputs.for_torch(left=False)).last_hidden_state.numpy()
    assert difference(inputs, ours, plain, left=False) > E.BROKEN


@pytest.mark.slow
def test_weights_and_batch_split_over_devices(pair):
    mesh = make_mesh(2, 2, 2)
    graphdef, params = load_weights(pair.folder, pair.config, mesh=mesh)
    split = [leaf for leaf in jax.tree.leaves(params) if not leaf.sharding.is_fully_replicated]
    assert len(split) > 7 * pair.config.text.num_hidden_layers
    batch = pair.inputs("images").for_ours()
    placed = place(batch, jax.tree.map(lambda axis: batch_sharding(mesh, leading=axis), batch_axes(batch)))
    with jax.set_mesh(mesh):
        ours = jax.jit(lambda p, b: nnx.merge(graphdef, p)(b).pooled)(params, placed)
    np.testing.assert_allclose(ours, jax.jit(lambda b: pair.model(b).pooled)(batch), atol=E.TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("remat", [True, "dots"])
def test_gradients_do_not_depend_on_what_is_computed_again(pair, remat):
    graphdef, params = load_weights(pair.folder, pair.config)
    batch = pair.inputs("images").for_ours()

    def gradient(remat):
        loss = lambda p: jnp.sum(nnx.merge(graphdef, p)(batch, remat=remat).pooled ** 3)  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    found, expected = gradient(remat), gradient(False)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4 * max(1.0, float(np.abs(b).max())))
    scalars = [layer["layer_scalar"] for layer in found["language_model"]["layers"].values()]
    assert not any(np.any(x[...]) for x in scalars)  # of the checkpoint: nothing trains them
    assert all(np.any(x) for x in jax.tree.leaves(found["vision_tower"]))


# ---- config.json


@pytest.mark.slow
def test_the_published_sizes():
    """A config.json without anything has the counts that are known of the published model."""
    config = EmbeddingGemma2Config.from_hf({"model_type": "embedding_gemma2", "vision_config": {}, "audio_config": {}})
    text, vision, audio = config.text, config.vision, config.audio
    assert (text.num_hidden_layers, vision.depth, audio.num_hidden_layers) == (24, 16, 12)
    # Layers repeat: every sixth is full, and the tower's are all alike.
    fewer = dataclasses.replace(text, num_hidden_layers=6), dataclasses.replace(vision, num_hidden_layers=1)
    audio = dataclasses.replace(audio, num_hidden_layers=1)
    _, params = abstract_model(dataclasses.replace(config, text=fewer[0], vision=fewer[1], audio=audio))

    def count(part):
        return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(part))

    language, tower = params["language_model"], params["vision_tower"]
    repeated = [language["layers"], language["ple"]["per_layer_model_projection"]]
    scalars = 24  # buffers, which no count of parameters holds
    assert count(language) + 3 * sum(map(count, repeated)) - scalars == 271_002_624
    assert count(tower) + 15 * count(tower["encoder"]["layers"]) + count(params["embed_vision"]) == 167_757_824
    heard, clamps = params["audio_tower"], 12 * 10 * 4  # buffers, too
    assert count(heard) + 11 * count(heard["layers"]) + count(params["embed_audio"]) - clamps == 305_611_040


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "rope type 'yarn' is not supported"),
        ({"layer_types": ["chunked_attention"]}, "layer_types has chunked_attention, expected"),
        ({"layer_types": ["full_attention"]}, "layer_types has 1 entries for 24 layers"),
        ({"per_layer_config": {"05": {"head_dim": 64}}}, "per_layer_config must give all full-attention layers"),
        ({"per_layer_config": {"1": {"head_dim": 64}}}, "per_layer_config must give all full-attention layers"),
        ({"num_attention_heads": 5}, "5 heads of width 256 cannot share 2 heads of keys"),
        ({"hidden_activation": "relu"}, "activation 'relu' is not supported"),
    ],
)
def test_what_is_not_computed_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingGemma2Config.from_hf({"model_type": "embedding_gemma2", "text_config": text})
