"""One update: parameters in, gradient of the contrastive loss over the global batch, optimizer, parameters out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from smart_jax.runtime import compiler_options, place
from smart_jax.typing import register_arrays
from train.objective import Metrics, Objective, Params, Part, TrainBatch
from train.optimizer import updates_made


@register_arrays
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that an update changes.

    Attributes:
      step: number of batches seen.
      params: trained parameters by name.
      opt_state: the optimizer's state.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState


def init_state(params: Params, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Makes the state before the first update.

    Args:
      params: trained parameters by name, on the mesh.
      optimizer: whose state it is.
      mesh: where the state is put.

    Example:
      >>> from smart_jax.runtime import make_mesh
      >>> mesh = make_mesh(devices=jax.devices()[:1])
      >>> int(init_state({"adapter.scale": jnp.ones(2)}, optax.sgd(0.1), mesh).step)
      0
    """
    everywhere = NamedSharding(mesh, PartitionSpec())
    opt_state = jax.tree.map(lambda x: _on_mesh(x, everywhere), optimizer.init(params))
    return TrainState(place(jnp.int32(0), everywhere), params, opt_state)


def make_train_step(
    objective: Objective, optimizer: optax.GradientTransformation, schedule: optax.Schedule, like: TrainState
) -> Callable[[TrainState, Params, TrainBatch], tuple[TrainState, Metrics]]:
    """Makes the compiled update `(state, frozen, batch) -> (state, metrics)`.

    The buffers of the given state are reused. The new state is placed as `like` is, so that it fits the next call
    without another compilation.

    Args:
      objective: the loss.
      optimizer: turns gradients into updates.
      schedule: its learning rate, which is logged.
      like: a state.

    Returns:
      The function; its metrics are the objective's, the loss, the learning rate and norms.
    """
    floor, partition = jnp.log(objective.config.min_temperature), objective.partition
    places = jax.tree.map(lambda x: x.sharding, like)

    @partial(jax.jit, donate_argnums=0, out_shardings=(places, None), compiler_options=_options(objective.mesh))
    def train_step(state: TrainState, frozen: Params, batch: TrainBatch) -> tuple[TrainState, Metrics]:
        step = state.step + 1
        (loss, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(state.params, frozen, batch, step)
        rate = schedule(updates_made(state.opt_state))
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        temperatures = partition.select(params, Part.TEMPERATURE)
        params = params | {name: jnp.maximum(x, floor) for name, x in temperatures.items()}
        metrics |= {"loss": loss, "grad_norm": optax.tree.norm(gradient), "learning_rate": rate}
        metrics |= {"update_norm": optax.tree.norm(updates), "param_norm": optax.tree.norm(params)}
        for part in Part:
            if of_part := partition.select(params, part):
                metrics[f"param_norm_{part.value}"] = optax.tree.norm(of_part)
        if isinstance(opt_state, optax.ApplyIfFiniteState):
            metrics["skipped_updates"] = opt_state.total_notfinite
        return TrainState(step, params, opt_state), metrics

    return train_step


def make_eval_step(objective: Objective) -> Callable[[TrainState, Params, TrainBatch], Metrics]:
    """Makes the compiled evaluation of a batch `(state, frozen, batch) -> metrics`, without gradient and dropout."""

    @partial(jax.jit, compiler_options=_options(objective.mesh))
    def eval_step(state: TrainState, frozen: Params, batch: TrainBatch) -> Metrics:
        loss, metrics = objective(state.params, frozen, batch, jnp.maximum(state.step, 1), training=False)
        return metrics | {"loss": loss}

    return eval_step


def _options(mesh: Mesh | AbstractMesh) -> dict[str, str]:
    return compiler_options(mesh.devices.flat[0]) if isinstance(mesh, Mesh) else {}


def _on_mesh(x: jax.Array, everywhere: NamedSharding) -> jax.Array:
    # Moments are made like their parameters, on the mesh; counters are not, and would cause a second compilation.
    return x if isinstance(x.sharding, NamedSharding) else place(x, everywhere)
