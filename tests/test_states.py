"""States: what follows from them equals what the encoder gives, on disk and off, sliced and put together."""

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import smart_jax
from smart_jax.retrieval.adapter import Adapter, AdapterConfig
from smart_jax.retrieval.states import States
from tests.checkpoints import noise_page

pytestmark = pytest.mark.compiles

HALF = 6e-4  # rounding of a unit vector's components to float16


@pytest.fixture(scope="module")
def model(checkpoint):
    return smart_jax.load(checkpoint)


@pytest.fixture(scope="module")
def items():
    pages = [noise_page(64, 96, 0), noise_page(128, 64, 1)]
    return ["revenue by region", pages[0], {"text": "both", "images": pages}, "a", pages[1]]


@pytest.fixture(scope="module")
def states(model, items):
    return model.states(items, dtype=np.float32)


def equal(a, b):
    assert (a.layers, a.depth, a.visual_ids) == (b.layers, b.depth, b.visual_ids)
    for name in ("pooled", "states", "norms", "ids", "offsets", "grids"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_embeddings_are_the_encoders(model, items, states):
    expected, found = model.encode(items), states.embeddings()
    np.testing.assert_array_equal(found.offsets, expected.offsets)
    np.testing.assert_allclose(found.tokens, expected.tokens, atol=2e-5)
    np.testing.assert_allclose(found.pooled, expected.pooled, atol=2e-5)
    half = model.states(items, query=True).embeddings()  # float16 is the default
    assert half.dtype == np.float16
    np.testing.assert_allclose(half.tokens, model.encode_query(items).tokens, atol=HALF)


def test_parts_are_made_one_after_another(model, items, states):
    makers = list(model.states_by_part(items, [slice(0, 3), slice(3, 5)], batch_size=2, dtype=np.float32))
    found = States.concatenate([make() for make in makers])
    np.testing.assert_array_equal(found.ids, states.ids)
    np.testing.assert_array_equal(found.grids, states.grids)
    np.testing.assert_allclose(found.states, states.states, atol=2e-5)


def test_every_layer_and_its_norms(model, items):
    depth = model.config.text.num_hidden_layers
    found = model.states(items, layers=range(depth + 1), dtype=np.float32)
    assert found.layers == tuple(range(-depth - 1, 0)) and found.states.shape[1] == depth + 1
    row = model.preprocessor.tokenize(items[2])
    batch = jax.device_put(model.preprocessor.collate([row]))
    hidden = nnx.merge(model.graphdef, model.params)(batch, layers=range(depth + 1))
    expected = np.asarray(hidden.states[0])[: len(row.keep)][row.keep]  # [L, K, H], not normalised
    one = found[2]
    np.testing.assert_allclose(one.norms, np.linalg.norm(expected, axis=-1), rtol=1e-4)
    np.testing.assert_allclose(one.states * one.norms[..., None], expected, atol=2e-4)
    np.testing.assert_array_equal(one.ids, row.input_ids[row.keep])
    np.testing.assert_array_equal(found.embeddings(2).tokens, found.states[:, 2])
    np.testing.assert_array_equal(found.embeddings(-1).tokens, found.states[:, depth])


@pytest.mark.parametrize(
    ("layers", "pooled_dim", "kind"),
    [((-1,), 8, "linear"), ((-3, -1, 1), None, "mlp"), ((-2, -1), 8, "self_attention")],
)
def test_adapted_equals_the_encoder_with_the_adapter(model, items, layers, pooled_dim, kind):
    """Padding, of which both have their own, changes no token, of tokens that attend to each other neither."""
    config = AdapterConfig(model.config.text.hidden_size, dim=24, layers=layers, pooled_dim=pooled_dim, kind=kind)
    adapter = Adapter(config, rngs=nnx.Rngs(3))
    adapter.norm.bias.set_value(0.3 * np.random.default_rng(0).standard_normal(config.hidden_size).astype(np.float32))
    expected = model.with_adapter(adapter).encode(items)
    found = model.states(items, layers=layers, dtype=np.float32).adapted(adapter)
    np.testing.assert_allclose(found.tokens, expected.tokens, atol=2e-5)
    np.testing.assert_allclose(found.pooled, expected.pooled, atol=2e-5)
    half = model.states(items, layers=layers).adapted(adapter)
    np.testing.assert_allclose(half.tokens, expected.tokens, atol=2e-3)
    with pytest.raises(ValueError, match="is not among the stored ones"):
        model.states(items, layers=(-2,)).adapted(adapter)


def test_grids_are_of_the_visual_tokens(model, states):
    size = model.config.vision.patch_size * model.config.vision.spatial_merge_size
    assert states.grids.tolist() == [
        [item, 1, height // size, width // size]
        for item, width, height in ((1, 64, 96), (2, 64, 96), (2, 128, 64), (4, 128, 64))
    ]
    visual = [int(states[i].visual.sum()) for i in range(5)]
    assert visual == [0, *(np.bincount(states.grids[:, 0], states.grids[:, 1:].prod(axis=1))[1:].tolist())]
    assert set(states.ids[states.visual].tolist()) == {model.config.image_token_id}


def test_tokens_that_are_not_kept_have_no_grid(checkpoint, items):
    model = smart_jax.load(checkpoint, settings={"query_visual": False})
    assert len(model.states(items[1:2], query=True).grids) == 0
    assert len(model.states(items[1:2]).grids) == 1


def test_slices_and_concatenation(states):
    equal(States.concatenate([states[:2], states[2:]]), states)
    equal(States.concatenate([states[[i]] for i in range(5)]), states)
    picked = states[[4, 1]]
    np.testing.assert_array_equal(picked.embeddings().tokens, states.embeddings()[[4, 1]].tokens)
    assert picked.grids[:, 0].tolist() == [0, 1]
    np.testing.assert_array_equal(picked.grids[:, 1:], states.grids[[3, 0], 1:])
    assert len(states[2]) == 1 and len(states[np.array([True, False, True, False, False])]) == 2
    with pytest.raises(ValueError, match="of one model"):
        States.concatenate([states, states.__class__(**(vars(states) | {"depth": 9}))])
    with pytest.raises(ValueError, match="no states"):
        States.concatenate([])


def test_files(tmp_path, states):
    states.save(tmp_path / "s.safetensors")
    found = States.load(tmp_path / "s.safetensors")
    equal(found, states)
    assert isinstance(found.states.base, np.memmap) or isinstance(found.states, np.memmap)
    equal(found[[2]], states[[2]])
    with pytest.raises(FileNotFoundError, match="encode the items again"):
        States.load(tmp_path / "t.safetensors")
    whole = (tmp_path / "s.safetensors").read_bytes()
    for kept in (0, 5, 300, len(whole) // 2, len(whole) - 4):
        (tmp_path / "s.safetensors").write_bytes(whole[:kept])
        with pytest.raises(ValueError, match="corrupt or truncated"):
            States.load(tmp_path / "s.safetensors")


def test_what_does_not_fit_together_is_refused(states):
    fields = vars(states)
    for changes, message in (
        ({"norms": states.norms[:-1]}, "norms"),
        ({"states": states.states[:, 0]}, "states have shape"),
        ({"pooled": states.pooled.astype(np.float16)}, "both must be"),
        ({"grids": states.grids[:-1]}, "cells for"),
        ({"grids": states.grids[:, 1:]}, "rows"),
        ({"offsets": states.offsets[:-1]}, "offsets"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            States(**(fields | changes))
    broken = states.states.copy()
    broken[states.offsets[3], 0, 1] = np.nan
    with pytest.raises(ValueError, match="item 3, token 0: a state holds NaN"):
        States(**(fields | {"states": broken})).check_finite()


@pytest.mark.parametrize("layers", [(), (0, 0), (-1, 2), (9,)])
def test_bad_layers(model, layers):
    with pytest.raises(ValueError, match="layers"):
        model.states(["a"], layers=layers)


def test_fingerprint_tells_what_changes_states(tmp_path, checkpoint, model):
    whole = model.fingerprint()
    model.encode([Image.new("RGB", (64, 64)), "words"])
    assert model.fingerprint() == whole == smart_jax.load(checkpoint).fingerprint()
    assert smart_jax.load(checkpoint, mesh=smart_jax.make_mesh()).fingerprint() == whole
    assert smart_jax.load(checkpoint, mesh=smart_jax.make_mesh(2, 2, 2)).fingerprint() == whole
    others = [
        smart_jax.load(checkpoint, dtype="bfloat16"),
        smart_jax.load(checkpoint, settings={"default_instruction": "Other."}),
        smart_jax.load(checkpoint, settings={"max_pixels": 4096}),
    ]
    for name in ("embed_tokens", "norm"):  # one value of one parameter
        changed = smart_jax.load(checkpoint)
        changed = changed.with_params(_bumped(changed.params, name))
        others.append(changed)
    assert len({whole, *(other.fingerprint() for other in others)}) == 6


def _bumped(params, name):
    import jax

    done = []

    def bump(path, leaf):
        if name not in jax.tree_util.keystr(path) or done:
            return leaf
        done.append(path)
        return leaf.at[(0,) * leaf.ndim].add(1e-6)

    changed = jax.tree_util.tree_map_with_path(bump, params)
    assert done
    return changed
