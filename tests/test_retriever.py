"""Demands of training and evaluation on a model: the encoder and the tests' fake have every member and parameter."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

import smart_jax
from smart_jax import Embeddings, Encoder, Retriever, States
from tests.fake_encoder import FakeEncoder

METHODS = [name for name, member in vars(Retriever).items() if inspect.isfunction(member) and not name.startswith("_")]


@pytest.mark.parametrize("kind", [Encoder, FakeEncoder])
@pytest.mark.parametrize("name", METHODS)
def test_takes_every_parameter_by_name_and_default(kind, name):
    asked, given = (inspect.signature(getattr(owner, name)).parameters for owner in (Retriever, kind))
    loose = any(p.kind is p.VAR_KEYWORD for p in given.values())
    for parameter in asked.values():
        assert parameter.name in given or loose
        if parameter.name in given:
            assert given[parameter.name].default == parameter.default
            assert given[parameter.name].kind == parameter.kind


def test_the_fake_is_one():
    fake: Retriever = FakeEncoder()
    assert isinstance(fake, Retriever)
    assert isinstance(fake.encode_query(["a b"]), Embeddings)
    states = fake.states(["a b", "c"], query=True)
    assert isinstance(states, States) and states.states.dtype == np.float16


def test_the_encoder_is_one(checkpoint):
    model: Retriever = smart_jax.load(checkpoint)
    assert isinstance(model, Retriever)
    found = model.states(["a b"], dtype=np.float32)
    assert found.pooled.shape == (1, model.width) and found.depth == model.depth and model.token_dim is None


def test_other_classes_are_none():
    assert not isinstance(object(), Retriever)
