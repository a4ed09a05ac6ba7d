"""The audio tower of EmbeddingGemma 2 against transformers + torch, float32: every layer within 2e-5."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import Gemma4AudioConfig, Gemma4AudioModel

from smart_jax.models.embedding_gemma2.audio import AudioTower, with_audio
from smart_jax.models.embedding_gemma2.audio_layers import block_context, distance_vectors
from smart_jax.models.embedding_gemma2.config import EmbeddingGemma2Config

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
