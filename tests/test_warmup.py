"""New checkpoints open like any other; the reading warm-up learns, and leaves nothing but a backbone behind."""

import copy

import jax
import numpy as np
import pytest

import smart_jax
from recipes.tiny import STAGES, Canvas, Docstring, pretrain
from recipes.tiny.architecture import MODEL, PHRASES, SETTINGS
from recipes.tiny.new_model import new_checkpoint, train_tokenizer
from recipes.tiny.reading import by_visual_token, reading_batches
from recipes.tiny.warmup import warm_up

PIECES = 320
DOCSTRINGS = [
    Docstring("m", f"m.f{i}", f"Return the value number {i} of the table.", "The table holds rows of names " * 6)
    for i in range(30)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = copy.deepcopy(MODEL)
    config["text_config"] |= {"vocab_size": PIECES, "hidden_size": 32, "intermediate_size": 32}
    config["text_config"] |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    config["vision_config"] |= {"hidden_size": 32, "num_heads": 1, "intermediate_size": 32, "depth": 2}
    config["vision_config"] |= {"out_hidden_size": 32, "deepstack_visual_indexes": [0], "num_position_embeddings": 16}
    tokenizer = train_tokenizer((d.text for d in DOCSTRINGS), PIECES, phrases=PHRASES)
    return new_checkpoint(tmp_path_factory.mktemp("new"), config, tokenizer, settings=SETTINGS)


@pytest.fixture(scope="module")
def encoder(folder):
    return smart_jax.load(folder)


def test_the_prompt_costs_eight_pieces(encoder):
    pieces = encoder.preprocessor.tokenizer("value", add_special_tokens=False)["input_ids"]
    assert len(encoder.preprocessor.tokenize("value").input_ids) == len(pieces) + 8


def test_letter_case_and_place_do_not_change_a_words_pieces(encoder):
    tokenizer = encoder.preprocessor.tokenizer
    first = tokenizer("table value", add_special_tokens=False)["input_ids"]
    second = tokenizer("VALUE Table", add_special_tokens=False)["input_ids"]
    assert sorted(first) == sorted(second)


def test_tokenizer_refuses_texts_that_give_too_few_pieces():
    with pytest.raises(ValueError, match="give more texts"):
        train_tokenizer(["one two"], 2048)


def test_weights_have_the_configs_range(encoder):
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(encoder.params))
    kernel = encoder.params["language_model"]["layers"][0]["mlp"]["gate_proj"]["kernel"][...]
    assert float(kernel.std()) == pytest.approx(0.05, rel=0.1)


@pytest.mark.slow
def test_warm_up_learns_to_read_and_keeps_the_structure(encoder, capsys):
    batches = reading_batches(encoder, DOCSTRINGS, canvas=Canvas(32, 64), batch_size=8, seed=0)
    before = jax.tree.map(np.asarray, encoder.params)
    trained = warm_up(encoder, batches, steps=60, learning_rate=5e-3, log_every=20)
    losses = [float(line.split("characters ")[1].split()[0]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 3 and losses[-1] < 0.8 * losses[0]
    assert jax.tree.structure(trained.params) == jax.tree.structure(encoder.params)
    unchanged = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), before, jax.tree.map(np.asarray, encoder.params))
    assert all(jax.tree.leaves(unchanged))  # the given encoder keeps its own arrays
    assert np.isfinite(trained.encode_query(["the table"]).pooled).all()


def test_characters_stand_with_the_visual_token_that_covers_them():
    codes = np.arange(2 * 8, dtype=np.uint8).reshape(1, 2, 8)
    blocks = by_visual_token(codes)
    assert blocks.tolist() == [[[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]]]
    upper, lower = ord("Q") - 32, ord("q") - 32
    assert (by_visual_token(np.full((1, 2, 4), upper, np.uint8)) == lower).all()


@pytest.mark.parametrize("stage", STAGES)
def test_stages_fit_their_canvas_exactly(stage):
    config = pretrain.get_config(stage)
    height, width = STAGES[stage].height, STAGES[stage].width
    assert config.data.document_patches == height * width // 256
    assert config.data.document_length == height * width // 1024 + 10
    assert config.trainable == "full" and config.loss.objective == "pooled"


def test_unknown_stage_is_named():
    with pytest.raises(ValueError, match="stage '7x7'"):
        pretrain.get_config("7x7")
