"""Audio and video of EmbeddingGemma 2 against transformers + torch, float32: every layer within 2e-5, and prompts."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import Gemma4AudioConfig, Gemma4AudioFeatureExtractor, Gemma4AudioModel
from transformers.models import embedding_gemma2 as reference
from transformers.models.embedding_gemma2.processing_embedding_gemma2 import EmbeddingGemma2Processor

import smart_jax
from smart_jax.inputs import TokenizedItem
from smart_jax.inputs.audio import soft_tokens
from smart_jax.inputs.audio_batch import pad_audio
from smart_jax.inputs.video_file import VideoIndex, choose_frames
from smart_jax.inputs.video_settings import VideoSettings
from smart_jax.models import load_config, load_weights
from smart_jax.models.embedding_gemma2.audio import AudioTower, with_audio
from smart_jax.models.embedding_gemma2.audio_layers import block_context, distance_vectors
from smart_jax.models.embedding_gemma2.config import EmbeddingGemma2Config
from tests.backbone import GEMMA, HEARING
from tests.checkpoints import noise_page, write_gemma_processor
from tests.parity import embedding_gemma2 as E
from tests.test_audio import write_wav

pytestmark = pytest.mark.compiles

TOLERANCE = 2e-5
BROKEN = 100 * TOLERANCE
BOUND = 1.5  # of the clamps, which some values pass
CONFIGS = {
    "published_blocks": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "subsampling_conv_channels": [32, 8],
        "output_proj_dims": 24,
    },
    "small_blocks_low_cap": {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "subsampling_conv_channels": [20, 12],
        "output_proj_dims": 20,
        "attention_chunk_size": 5,
        "attention_context_left": 4,
        "attention_logit_cap": 3.0,
        "conv_kernel_size": 3,
        "rms_norm_eps": 1e-3,
    },
    "unclipped_short_reach": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "subsampling_conv_channels": [28, 16],
        "output_proj_dims": 12,
        "attention_chunk_size": 7,
        "attention_context_left": 8,
        "use_clipped_linears": False,
        "gradient_clipping": 2.0,
        "residual_weight": 0.7,
    },
}
LENGTHS = (101, 37, 4)  # frames of the clips of a batch: 26, 10 and 1 soft tokens


def torch_model(shape: dict, seed: int = 0) -> Gemma4AudioModel:
    """With weights and bounds that show whether each of them is read."""
    torch.manual_seed(seed)
    model = Gemma4AudioModel._from_config(Gemma4AudioConfig(**shape), attn_implementation="eager").eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(0.3 * torch.randn_like(weight) + ("norm" in name))
        for name, bound in model.named_buffers():
            if name.endswith(("_min", "_max")):
                bound.copy_((BOUND + 0.2 * torch.rand(())) * (-1 if name.endswith("_min") else 1))
    return model


def tower_of(model: Gemma4AudioModel, shape: dict) -> AudioTower:
    config = EmbeddingGemma2Config.from_hf({"model_type": "embedding_gemma2", "audio_config": shape}).audio
    graphdef, state = nnx.split(AudioTower(config, rngs=nnx.Rngs(0)))
    tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    filled = []
    for path, leaf in nnx.to_flat_state(state):
        last = {"kernel": "weight", "scale": "weight"}.get(path[-1], path[-1])
        value = tensors.pop(".".join(map(str, (*path[:-1], last))))
        value = value.T if path[-1] == "kernel" else value
        assert value.shape == leaf.shape
        filled.append((path, leaf.replace(jnp.asarray(value))))
    assert not tensors  # each was used
    return nnx.merge(graphdef, nnx.from_flat_state(filled))


@nnx.jit
def every_state(tower: AudioTower, features, mask):
    """First states, those of each layer, and the soft tokens."""
    x, frames = tower.subsample_conv_projection(features, mask)
    seen, distances = block_context(tower.config, frames), jnp.asarray(distance_vectors(tower.config))
    states = [x]
    for layer in tower.layers:
        states.append(layer(states[-1], distances, seen))
    return states, *tower(features, mask)


@pytest.fixture(scope="module", params=CONFIGS)
def compared(request):
    """(tower, features, mask, torch's states, soft tokens, their mask); what is no audio holds noise."""
    shape = CONFIGS[request.param]
    model = torch_model(shape)
    features = np.random.default_rng(0).normal(size=(3, max(LENGTHS), shape["subsampling_conv_channels"][0]))
    features = features.astype(np.float32)
    mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    theirs = []
    model.subsample_conv_projection.register_forward_hook(lambda _, given, result: theirs.append(result[0].numpy()))
    for layer in model.layers:
        layer.register_forward_hook(lambda _, given, result: theirs.append(result.numpy()))
    with torch.no_grad():
        out = model(torch.tensor(features), torch.tensor(mask))
    return tower_of(model, shape), features, mask, theirs, out.last_hidden_state.numpy(), out.attention_mask.numpy()


def test_every_layer_is_transformers(compared):
    tower, features, mask, theirs, soft, audio = compared
    states, ours, frames = every_state(tower, features, mask)
    np.testing.assert_array_equal(frames, audio)
    assert audio.sum(1).tolist() == [26, 10, 1]
    assert len(states) == len(theirs) == len(tower.layers) + 1
    for one, other in zip([*states, ours], [*theirs, soft], strict=True):
        np.testing.assert_allclose(np.asarray(one)[audio], other[audio], atol=TOLERANCE, rtol=0)


def test_a_mask_that_forgets_the_padding_is_another_sound(compared):
    tower, features, mask, _, soft, audio = compared
    *_, ours, _ = every_state(tower, features, np.ones_like(mask))
    assert np.abs(np.asarray(ours) - soft)[audio].max() > BROKEN


@pytest.mark.parametrize("compared", ["published_blocks"], indirect=True)
def test_padding_and_the_batch_never_matter(compared):
    tower, features, mask, *_, soft, audio = compared
    row, length = 1, LENGTHS[1]
    alone = every_state(tower, features[row : row + 1, :length], mask[row : row + 1, :length])[-2]
    np.testing.assert_allclose(np.asarray(alone)[0], soft[row][audio[row]], atol=TOLERANCE, rtol=0)


def test_bounds_get_no_gradient():
    tower = tower_of(torch_model(shape := CONFIGS["published_blocks"] | {"num_hidden_layers": 1}), shape)
    features, mask = np.ones((1, 21, 32), np.float32), np.ones((1, 21), bool)
    gradients = nnx.jit(nnx.grad(lambda tower: jnp.sum(tower(features, mask)[0] ** 2)))(tower)
    flat = {".".join(map(str, path)): np.asarray(leaf[...]) for path, leaf in nnx.to_flat_state(gradients)}
    bounds = [name for name in flat if name.endswith(("_min", "_max"))]
    assert len(bounds) == 4 * 10  # four of each of the layer's ten maps
    assert not any(flat.pop(name).any() for name in bounds)
    assert all(np.isfinite(value).all() and value.any() for value in flat.values())


def test_soft_tokens_take_their_places():
    x, soft = jnp.zeros((2, 5, 3)), jnp.arange(24, dtype=jnp.float32).reshape(4, 2, 3)  # two clips a row
    index = np.array([[-1, 0, 1, 2, -1], [3, -1, -1, 0, -1]])
    placed = np.asarray(jax.jit(with_audio)(x, soft, index))
    np.testing.assert_array_equal(placed[0], [[0, 0, 0], [0, 1, 2], [3, 4, 5], [6, 7, 8], [0, 0, 0]])
    np.testing.assert_array_equal(placed[1], [[21, 22, 23], [0, 0, 0], [0, 0, 0], [12, 13, 14], [0, 0, 0]])


# --- the whole model: texts, images, films and clips in one batch


FILM = [(1, 3, 6), (1, 3, 6)]  # frames of one size
# Rows of text tokens, images, films (in a list) and clips (their frames, as a string).
ROWS = [[4, (1, 6, 3), 3, "57"], [FILM, 2, "9", "130", 5], [11], [1, (1, 3, 3), FILM, 2]]


@dataclasses.dataclass
class Mixed:
    """Inputs of ROWS: ids as both read them, and the features of the clips in order."""

    images: E.Inputs  # whose ids are all that stands in the rows, frames of films as images
    clips: list[list[np.ndarray]]
    of_film: list[bool]  # of each image

    @classmethod
    def random(cls, size: int, bands: int) -> Mixed:
        rng = np.random.default_rng(1)
        spec = [[each for part in row for each in (part if isinstance(part, list) else [part])] for row in ROWS]
        clips = [
            [rng.normal(size=(int(x), bands)).astype(np.float32) for x in row if isinstance(x, str)] for row in spec
        ]
        places = [[x for x in row if not isinstance(x, str)] for row in spec]
        images = E.Inputs.random(places, size=size, seed=3)
        of_film = [
            isinstance(part, list) for row in ROWS for part in row for _ in (part if isinstance(part, list) else [1])
        ]
        of_film = [
            film
            for film, part in zip(of_film, (x for row in spec for x in row), strict=True)
            if isinstance(part, tuple)
        ]
        rows = []
        for (ids, grids, pixels), of_row in zip(images.rows, clips, strict=True):
            heard = [i for clip in of_row for i in (E.BOA, *[E.AUDIO] * soft_tokens(len(clip)), E.EOA)]
            rows.append((np.array([*ids[:-1], *heard, ids[-1]]), grids, pixels))
        return cls(E.Inputs(rows), clips, of_film)

    def for_torch(self, *, left: bool) -> dict[str, torch.Tensor]:
        given = self.images.for_torch(left=left, extra=1)
        film, pixels, places = np.array(self.of_film), given["pixel_values"], given["image_position_ids"]
        given |= {"pixel_values": pixels[~film], "image_position_ids": places[~film]}
        given |= {"pixel_values_videos": pixels[film], "video_position_ids": places[film]}
        given["num_frames_per_video"] = torch.tensor([len(FILM)] * (sum(self.of_film) // len(FILM)))
        given["input_ids"] = self.filmed(given["input_ids"].numpy())
        clips = [clip for row in self.clips for clip in row]
        longest = max(map(len, clips)) + 3
        given["input_features"] = torch.tensor(np.stack([np.pad(c, ((0, longest - len(c)), (0, 0))) for c in clips]))
        given["input_features_mask"] = torch.arange(longest) < torch.tensor([[len(c)] for c in clips])
        return given

    def filmed(self, ids: np.ndarray) -> torch.Tensor:
        """The ids with those of films in the places of their frames."""
        ids, number = ids.copy(), -1
        for row in ids:
            for i, token in enumerate(row):
                number += token == E.BOI
                if token == E.IMAGE and self.of_film[number]:
                    row[i] = E.VIDEO
        return torch.tensor(ids)

    def for_ours(self):
        batch = self.images.for_ours(extra=2)
        batch = dataclasses.replace(batch, input_ids=self.filmed(batch.input_ids).numpy())
        no_patches = np.zeros((0, 0), np.uint8)
        items = [
            TokenizedItem(ids.astype(np.int32), ids >= 0, grids=(), patches=no_patches, audio=tuple(clips))
            for (ids, _, _), clips in zip(self.images.rows, self.clips, strict=True)
        ]
        return dataclasses.replace(batch, audio=pad_audio(items, batch.input_ids == E.AUDIO, len(items)))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_layer_of_a_mixed_batch(name, tmp_path):
    # Not deeper, as in E.CONFIGS: an encoder behind a tower.
    audio = CONFIGS[name] | {"model_type": "gemma4_audio", "initializer_range": 0.1, "num_hidden_layers": 2}
    text, vision = E.CONFIGS[list(E.CONFIGS)[list(CONFIGS).index(name)]]
    theirs = E.torch_model(text | {"num_hidden_layers": 4}, vision, audio_config=audio)
    config = load_config(E.save(theirs, tmp_path))
    model = nnx.merge(*load_weights(tmp_path, config))
    mixed = Mixed.random(config.vision.patch_size, audio["subsampling_conv_channels"][0])
    batch, depth = mixed.for_ours(), config.text.num_hidden_layers
    hidden = jax.jit(lambda batch: model(batch, layers=tuple(range(depth + 1))))(batch)
    language = theirs.language_model
    for left in (False, True):
        states, last = E.torch_states(theirs, mixed.for_torch(left=left))
        with torch.no_grad():
            read = [language.embedding_projection(language.norm(torch.tensor(x))).numpy() for x in states]
        np.testing.assert_array_equal(read[-1], last)
        for i, expected in enumerate(read):
            for (ids, *_), ours, row in zip(mixed.images.rows, hidden.states[:, :, i], expected, strict=True):
                own = row[len(row) - len(ids) :] if left else row[: len(ids)]
                np.testing.assert_allclose(ours[: len(ids)], own, atol=TOLERANCE, rtol=0)
    unmasked = dataclasses.replace(batch, audio=dataclasses.replace(batch.audio, mask=np.ones_like(batch.audio.mask)))
    noisy = np.where(batch.audio.mask[..., None], batch.audio.features, 1).astype(np.float32)
    wrong = dataclasses.replace(unmasked, audio=dataclasses.replace(unmasked.audio, features=noisy))
    heard = jax.jit(lambda batch: model(batch).states[:, :, -1])(wrong)
    assert np.abs(np.asarray(heard) - np.asarray(hidden.states[:, :, -1])).max() > BROKEN


# --- from items to embeddings


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(torch model, folder) of a checkpoint that hears, with a tokenizer."""
    text, vision = E.CONFIGS["every_third_full"]
    ids = {name: GEMMA[name] for name in E.IDS}
    vision = {**vision, "patch_size": 16, "position_embedding_size": 220}
    model = E.torch_model({**text, "vocab_size": 640}, vision, audio_config=HEARING, **ids)
    return model, write_gemma_processor(E.save(model, tmp_path_factory.mktemp("embeddinggemma-2")))


@pytest.mark.slow
def test_sounds_as_transformers_embeds_them(whole):
    model, folder = whole
    encoder = smart_jax.load(folder)
    rng = np.random.default_rng(0)
    sounds = [(0.1 * rng.normal(size=n)).astype(np.float32) for n in (9_999, 31_234)]
    item = {"audios": sounds, "sampling_rate": 16_000, "text": "two bells"}
    found = encoder.encode_document([item, "a text"], progress=False)
    features = Gemma4AudioFeatureExtractor()(sounds, return_tensors="pt")
    counts = [EmbeddingGemma2Processor.compute_sscp(mask.numpy()) for mask in features["input_features_mask"]]
    prompt = "".join(f"<|audio>{'<|audio|>' * n}<audio|>" for n in counts) + "title: none | text: two bells"
    ids = encoder.preprocessor.tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = model(input_ids=ids, **features).last_hidden_state[0].numpy()
    mean = states.mean(0)
    np.testing.assert_allclose(found.pooled[0], mean / np.linalg.norm(mean), atol=TOLERANCE)
    kept = states[~np.isin(ids[0], [1, 2, GEMMA["boa_token_id"], GEMMA["eoa_token_index"]])]
    np.testing.assert_allclose(found[0].tokens, kept / np.linalg.norm(kept, axis=1, keepdims=True), atol=TOLERANCE)
    check_parts(encoder, model, item, states)
    check_widths(found, states, kept)


def check_parts(encoder, model, item, states):
    """The pooled part of a score is told by token, and by pairs of tokens, as float64 tells it of torch's states."""
    evidence = smart_jax.explain("a bell", item, model=encoder)
    asked = encoder.token_states("a bell", query=True).astype(np.float64)
    q, d = (rows / np.linalg.norm(rows.astype(np.float64).sum(axis=0)) for rows in (asked, states))
    assert evidence.pooled == pytest.approx(q.sum(0) @ d.sum(0), abs=1e-5)
    kept, of_item = (encoder.preprocessor.tokenize(x, query=x == "a bell").keep for x in ("a bell", item))
    np.testing.assert_allclose(evidence.pooled_shares, q[kept] @ d.sum(0), atol=1e-5)
    np.testing.assert_allclose(evidence.document_shares, d[of_item] @ q.sum(0), atol=1e-5)
    assert evidence.pooled_shares.sum() + q[~kept].sum(0) @ d.sum(0) == pytest.approx(evidence.pooled, abs=1e-5)
    pairs = q[kept] @ d[of_item].T
    np.testing.assert_allclose(evidence.pair_shares, pairs, atol=1e-5)
    # The cosines of the late part, times the tokens' lengths.
    lengths = [np.linalg.norm(rows, axis=1) for rows in (q[kept], d[of_item])]
    best = (evidence.pair_shares / np.outer(*lengths)).max(axis=1)
    np.testing.assert_allclose(best / len(best), evidence.shares, atol=1e-5)
    moments = evidence.moments()
    places = [evidence.document.sources.place(token) for token in evidence.found.tokens.tolist()]
    assert len(moments) == sum(type(place).__name__ == "Cell" for place in places) > 0
    for moment in moments:
        assert moment.audio in (0, 1) and moment.stop - moment.start == pytest.approx(0.04)
        assert f"audio {moment.audio + 1}, {moment.start:.2f} to" in evidence.tokens[moment.token].best
    assert evidence.document.open_picture(0).size == (62, 128)  # frames of the first clip, and bands


def check_widths(found, states, kept):
    """A narrower vector is the beginning of the mean, or of a token's state, at unit length."""
    for width in (22, 11):
        narrow = smart_jax.reductions.truncate(found, width, pooled_width=width)
        mean = states.mean(0)[:width]
        np.testing.assert_allclose(narrow.pooled[0], mean / np.linalg.norm(mean), atol=TOLERANCE)
        unit = kept[:, :width] / np.linalg.norm(kept[:, :width], axis=1, keepdims=True)
        np.testing.assert_allclose(narrow[0].tokens, unit, atol=5 * TOLERANCE)
        assert narrow.pooled[0] @ narrow.pooled[0] == pytest.approx(1, abs=1e-6)


def test_prompts_are_transformers_letter_by_letter(whole):
    _, folder = whole
    preprocessor = smart_jax.load(folder).preprocessor
    names = {"boi": "<|image>", "eoi": "<image|>", "video": "<|video|>", "boa": "<|audio>", "eoa": "<audio|>"}
    tokens = types.SimpleNamespace(**{f"{name}_token": token for name, token in names.items()}, audio_token="<|audio|>")
    tokens.compute_sscp, tokens.video_processor = (
        EmbeddingGemma2Processor.compute_sscp,
        types.SimpleNamespace(add_timestamps=False),
    )
    film = {"video": [noise_page(96, 64, seed=i) for i in range(5)]}
    item = preprocessor.tokenize({**film, "audio": np.zeros(9_999, np.float32), "sampling_rate": 16_000, "text": "x"})
    soft = item.grids[0][1] * item.grids[0][2] // 9
    facts = {"num_soft_tokens_per_video": [soft], "num_frames_per_video": [5]}
    how = {"videos_kwargs": {"add_timestamps": False}, "load_audio_from_video": False}
    written = EmbeddingGemma2Processor.replace_video_token(tokens, facts, 0, **how)
    mask = np.ones((1, len(item.audio[0])), bool)
    written += EmbeddingGemma2Processor.replace_audio_token(tokens, {"input_features_mask": mask}, 0)
    ids = preprocessor.tokenizer(f"{written}title: none | text: x")["input_ids"]
    assert item.input_ids.tolist() == ids
    assert len(item.grids) == 5 and 112 <= soft <= 140
    assert preprocessor.settings.videos == VideoSettings(1.0, 32, soft_tokens=140)
    assert preprocessor.modalities == ("text", "image", "video", "audio")


def reference_choice():
    """transformers' rule for the frames of a film, taken out of a file that cannot be imported without torchvision."""
    file = Path(inspect.getfile(reference)).parent / "video_processing_embedding_gemma2.py"
    nodes = ast.walk(ast.parse(file.read_text()))
    (rule,) = [node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == "sample_frames"]
    rule.returns = None
    for argument in rule.args.args:
        argument.annotation = None
    scope = {"np": np}
    exec(compile(ast.Module([rule], []), str(file), "exec"), scope)
    return scope["sample_frames"]


@pytest.mark.parametrize(
    ("frames", "rate"), [(1, 25.0), (24, 25.0), (250, 25.0), (301, 29.97), (1001, 23.976), (48, 0.5)]
)
def test_frames_are_those_of_transformers(frames, rate):
    choose, settings = reference_choice(), VideoSettings(fps=1.0, max_frames=8, soft_tokens=140)
    metadata = types.SimpleNamespace(fps=rate, duration=frames / rate, total_num_frames=frames)
    expected = choose(None, metadata, fps=1.0, max_frames=8, overflow_strategy="uniform")
    index = VideoIndex(None, [], np.arange(frames) / rate, rate, True, (64, 96))
    chosen, seconds = choose_frames(index, settings, 1)
    np.testing.assert_array_equal(chosen, expected)
    np.testing.assert_allclose(seconds, np.asarray(expected) / rate)
    uneven = index._replace(even=False)  # by their times, which here are the same
    np.testing.assert_array_equal(choose_frames(uneven, settings, 1)[0], expected)


@pytest.mark.slow
def test_an_index_hears(whole, tmp_path):
    """Files by their names, from a folder, and hits that name their moments and are drawn."""
    _, folder = whole
    (tmp_path / "talks").mkdir()
    sound = (3000 * np.sin(np.arange(16_000) / np.linspace(3, 30, 16_000))).astype(int)[:, None]
    write_wav(tmp_path / "talks" / "bell.wav", sound, 16_000)
    (tmp_path / "talks" / "notes.txt").write_text("a bell rings twice")
    index = smart_jax.Index(tmp_path / "index", model=smart_jax.load(folder))
    report = index.add(str(tmp_path / "talks"), progress=False)
    assert (report.added, report.failed) == (2, {})
    hits = {Path(hit.file).name: hit for hit in index.search("bell", k=2)}
    evidence = hits["bell.wav"].explain()
    assert evidence.document.sources.frames[0].medium == "audio"
    assert all(0 <= moment.start < moment.stop <= 1.01 for moment in evidence.moments()) and evidence.moments()
    assert evidence.document.open_picture(0).size == (99, 128)
    assert evidence.picture().width == 960 and "audio 1" in evidence.html()
    assert evidence.to_dict()["tokens"][evidence.moments()[0].token]["moments"]
