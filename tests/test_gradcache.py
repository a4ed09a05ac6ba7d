"""GradCache: what is kept and computed again; that it changes neither loss nor gradient is tested with the trainer."""

from __future__ import annotations

import dataclasses
import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import lora_visdoc
from smart_jax.models.batch import batch_axes
from smart_jax.models.lora import TEXT_PROJECTIONS
from smart_jax.runtime.mesh import make_mesh
from tests.test_posttrain import examples, loss_and_gradient
from tests.training import make_config, page
from train.config import from_config_dict
from train.data import Batcher, Example
from train.objective import TrainBatch
from train.setup import load_encoder, make_objective

pytestmark = pytest.mark.compiles


@pytest.mark.parametrize(("modules", "again"), [(TEXT_PROJECTIONS, False), (r"visual\.blocks\.1", True)])
def test_a_frozen_vision_tower_sees_its_patches_once(inputs, tmp_path, modules, again):
    """Counted in the lowered program: products of patches' values with the kernel that embeds them."""
    config = make_config(inputs, tmp_path, trainable="lora", chunk_size=2, lora__r=2, lora__modules=modules)
    mesh = make_mesh(devices=jax.devices()[:1])
    encoder = load_encoder(config, mesh)
    params, frozen, objective = make_objective(config, encoder, mesh, steps=10)
    examples = [Example(str(i), {"text": f"find {i}"}, {"image": page(i)}, ()) for i in range(4)]
    batch = Batcher(encoder.preprocessor, config.data, mesh)(examples)
    lowered = jax.jit(jax.grad(objective, has_aux=True)).lower(params, frozen, batch, jnp.int32(1)).as_text()
    values = encoder.config.vision.patch_values
    found = re.findall(rf"dot_general.*tensor<\d+x\d+x{values}xf32>, tensor<{values}x\d+xf32>", lowered)
    assert len(found) == (2 if again else 1)


def test_split_weights_come_chunk_by_chunk(inputs, tmp_path):
    """A barrier in the loop keeps them from coming before it, all at once; the gradient is that of one device."""
    config = make_config(inputs, tmp_path, trainable="lora", lora__r=2, loss__temperature=0.3)
    batch = examples(8)
    expected = loss_and_gradient(config, 1, batch, perturb=1)
    mesh, config = make_mesh(1, 2, devices=jax.devices()[:2]), dataclasses.replace(config, chunk_size=4)
    found = loss_and_gradient(config, mesh, batch, perturb=1)
    assert found[0] == pytest.approx(expected[0], abs=1e-5)
    scale = max(1, *(np.abs(gradient).max() for gradient in expected[2].values()))
    for name, gradient in expected[2].items():
        np.testing.assert_allclose(found[2][name], gradient, atol=2e-5 * scale, err_msg=name)

    def barriers(mesh) -> int:
        encoder = load_encoder(config, mesh)
        params, frozen, objective = make_objective(config, encoder, mesh, steps=10)
        arrays = Batcher(encoder.preprocessor, config.data, mesh)(batch)
        return str(jax.make_jaxpr(objective)(params, frozen, arrays, jnp.int32(1))).count("optimization_barrier")

    whole = make_mesh(2, 1, devices=jax.devices()[:2])
    assert barriers(mesh) - barriers(whole) == 2  # one for each side, beside those of MaxSim


def example(number: int) -> Example:
    pixels = np.random.default_rng(number).integers(0, 255, (128, 256, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return Example(str(number), {"text": f"find {number}"}, {"image": buffer.getvalue()})


def enlarged(batch: TrainBatch, rows: int) -> TrainBatch:
    """Shapes of a batch of so many rows."""

    def shape(x, axis):
        return jax.ShapeDtypeStruct((*x.shape[:axis], rows, *x.shape[axis + 1 :]), x.dtype)

    return jax.tree.map(shape, batch, batch_axes(batch))


@pytest.mark.slow
def test_a_thousand_pages_take_less_memory_than_an_eighth_at_once():
    config = from_config_dict(lora_visdoc.get_config("tiny,hybrid"))
    mesh = make_mesh(devices=jax.devices()[:1])
    encoder = load_encoder(config, mesh)
    batch = Batcher(encoder.preprocessor, config.data, mesh)([example(0), example(1)])

    def bytes_needed(rows, chunk):
        params, frozen, objective = make_objective(dataclasses.replace(config, chunk_size=chunk), encoder, mesh, 10)
        step = jax.jit(jax.value_and_grad(objective, has_aux=True))
        compiled = step.lower(params, frozen, enlarged(batch, rows), jnp.int32(1)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert bytes_needed(1024, 32) < bytes_needed(128, None)
