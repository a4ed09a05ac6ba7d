"""No traced value outlives its trace: encoding, scoring and a training step under `jax.checking_leaks`."""

import jax
import numpy as np
import pytest

import smart_jax
from tests.training import make_config, write_inputs
from train.data import Batcher, Examples, open_split
from train.optimizer import make_optimizer, make_schedule
from train.setup import load_encoder, make_objective
from train.step import init_state, make_train_step


@pytest.fixture
def leaks_are_errors():
    with jax.checking_leaks():
        yield
    jax.clear_caches()  # programs traced under the check are no others' to reuse


@pytest.mark.usefixtures("leaks_are_errors")
def test_encoding_and_scoring(checkpoint):
    model = smart_jax.load(checkpoint)
    queries, pages = model.encode_query(["red"]), model.encode_document(["a red page", "a blue one"])
    assert smart_jax.score(queries, pages).shape == (1, 2)
    assert np.asarray(smart_jax.search(queries, pages, k=1)[1]).shape == (1, 1)


@pytest.mark.usefixtures("leaks_are_errors")
def test_a_training_step(tmp_path):
    config = make_config(write_inputs(tmp_path), tmp_path / "run")
    mesh = smart_jax.make_mesh(devices=jax.devices()[:1])
    encoder = load_encoder(config, mesh)
    params, frozen, objective = make_objective(config, encoder, mesh, steps=2)
    optimizer, schedule = make_optimizer(config.optimizer, steps=2), make_schedule(config.optimizer, steps=2)
    state = init_state(params, optimizer, mesh)
    batch = Batcher(encoder.preprocessor, config.data, mesh)(next(Examples(open_split(tmp_path / "data", "pages"), 8)))
    state, metrics = make_train_step(objective, optimizer, schedule, state)(state, frozen, batch)
    assert np.isfinite(metrics["loss"])
