"""One update: parameters in, gradient of the contrastive loss over the global batch, optimizer, parameters out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Int

from smart_jax.runtime import place
from smart_jax.typing import register_arrays
from train.config import LossConfig
from train.objective import Metrics, Objective, Params, TrainBatch, start_temperatures
from train.optimizer import updates_made


@register_arrays
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that an update changes."""

    step: Int[Array, ""]  # batches seen
    params: Params
    opt_state: Any


def init_state(params: Params, config: LossConfig, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """State before the first update; `params` are those of the modules, temperatures are added when learned."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    if config.learn_temperature:
        logs = {f"log_temperature.{name}": jnp.log(jnp.float32(t)) for name, t in start_temperatures(config).items()}
        params = params | place(logs, everywhere)
    opt_state = jax.tree.map(lambda x: _on_mesh(x, everywhere), optimizer.init(params))  # type: ignore[arg-type]
    return TrainState(place(jnp.int32(0), everywhere), params, opt_state)


def make_train_step(
    objective: Objective, optimizer: optax.GradientTransformation, schedule: optax.Schedule, like: TrainState
) -> Callable[[TrainState, Params, TrainBatch], tuple[TrainState, Metrics]]:
    """Compiled `(state, frozen, batch) -> (state, metrics)`; the given state's buffers are reused.

    The new state is placed as `like`, so that it fits the next call without another compilation.
    """
    floor = jnp.log(objective.config.min_temperature)
    places = jax.tree.map(lambda x: x.sharding, like)

    @partial(jax.jit, donate_argnums=0, out_shardings=(places, None))
    def train_step(state: TrainState, frozen: Params, batch: TrainBatch) -> tuple[TrainState, Metrics]:
        step = state.step + 1
        (loss, metrics), gradient = jax.value_and_grad(objective, has_aux=True)(state.params, frozen, batch, step)
        rate = schedule(updates_made(state.opt_state))
        updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        params = {n: jnp.maximum(x, floor) if n.startswith("log_temperature.") else x for n, x in params.items()}
        metrics |= {"loss": loss, "grad_norm": optax.global_norm(gradient), "learning_rate": rate}
        metrics |= {"update_norm": optax.global_norm(updates), "param_norm": optax.global_norm(params)}
        for part in sorted({name.partition(".")[0] for name in params}):
            own = [x for name, x in params.items() if name.startswith(f"{part}.")]
            metrics[f"param_norm_{part}"] = optax.global_norm(own)
        if isinstance(opt_state, optax.ApplyIfFiniteState):
            metrics["skipped_updates"] = opt_state.total_notfinite
        return TrainState(step, params, opt_state), metrics

    return train_step


def make_eval_step(objective: Objective) -> Callable[[TrainState, Params, TrainBatch], Metrics]:
    """Compiled `(state, frozen, batch) -> metrics`, without gradient."""

    @jax.jit
    def eval_step(state: TrainState, frozen: Params, batch: TrainBatch) -> Metrics:
        loss, metrics = objective(state.params, frozen, batch, jnp.maximum(state.step, 1), training=False)
        return metrics | {"loss": loss}

    return eval_step


def _on_mesh(x: jax.Array, everywhere: NamedSharding) -> jax.Array:
    # Moments are made like their parameters, on the mesh; counters are not, and would cause a second compilation.
    return x if isinstance(x.sharding, NamedSharding) else place(x, everywhere)
