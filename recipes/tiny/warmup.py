"""Reading warm-up of an untrained backbone: heads that are dropped before contrastive training starts.

A retriever that is trained from scratch by a contrastive loss alone first has to find out that pages show text. Two
heads teach it that in minutes: from the state of each visual token, the characters that it covers; from the pooled
state of a page or a query, the pieces of its text in any order. Neither compares a query with a page, so the token
states are no retriever afterwards; the table of the tiny model in README.md has a line that shows it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float

from recipes.tiny.reading import ReadingBatch
from smart_jax import Encoder
from smart_jax.models import ModelGraph, Params

CHARACTERS = 95  # printable ASCII
WARM_UP_STEPS = 50  # of the learning rate

Heads = dict[str, Array]
Trained = tuple[Params, Heads]
Metrics = dict[str, Float[Array, ""]]


def warm_up(
    encoder: Encoder,
    batches: Iterator[ReadingBatch],
    *,
    steps: int,
    learning_rate: float = 2e-3,
    bag_weight: float = 1.0,
    piece_weights: Float[np.ndarray, " pieces"] | None = None,
    seed: int = 0,
    log_every: int = 50,
) -> Encoder:
    """Trains all weights of the backbone to read, and drops the heads.

    Loss: mean cross-entropy of the characters + bag_weight * mean cross-entropy of the bag of pieces, where the target
    is uniform over the pieces that a text has, times `piece_weights`. One bag head serves pages and texts.

    Args:
      encoder: with float32 parameters, which stay as they are.
      batches: all of one shape.
      steps: number of updates.
      learning_rate: after 50 steps of warm-up; it falls linearly to 0 over the last 40 % of the steps.
      bag_weight: weight of the bag of pieces; 0 = reading only.
      piece_weights: weight of each piece of the vocabulary, for example lower for frequent ones; None = 1.
      seed: of the heads.
      log_every: number of steps between two printed lines.

    Returns:
      An encoder with the trained backbone.
    """
    batch = next(batches)
    weights = jnp.ones(batch.page_pieces.shape[1]) if piece_weights is None else jnp.asarray(piece_weights)
    optimizer = _optimizer(learning_rate, steps)
    update = _update_fn(partial(_loss, encoder.graphdef, weights, bag_weight), optimizer)
    heads = _new_heads(encoder, batch.characters.shape[2], seed)
    trained = jax.tree.map(jnp.copy, (encoder.params, heads))  # the update reuses the buffers of its arguments
    opt_state, start = optimizer.init(trained), time.perf_counter()
    for step in range(1, steps + 1):
        trained, opt_state, metrics = update(trained, opt_state, batch)
        batch = next(batches) if step < steps else batch
        if step % log_every == 0 or step == steps:
            values = " ".join(f"{name} {float(x):.3f}" for name, x in metrics.items())
            print(f"warm-up step {step}/{steps} {values} {time.perf_counter() - start:.0f} s", flush=True)
    return encoder.with_params(trained[0])


def _optimizer(learning_rate: float, steps: int) -> optax.GradientTransformation:
    """Returns AdamW with clipping and a rate that rises, stays, and falls over the last 40 % of the steps."""
    rise = optax.linear_schedule(0.0, learning_rate, WARM_UP_STEPS)
    fall = optax.linear_schedule(learning_rate, 0.0, max(1, int(0.4 * steps)))
    schedule = optax.join_schedules([rise, fall], [max(WARM_UP_STEPS, int(0.6 * steps))])
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01))


def _update_fn(
    loss_fn: Callable[[Trained, ReadingBatch], tuple[Float[Array, ""], Metrics]],
    optimizer: optax.GradientTransformation,
) -> Callable[[Trained, optax.OptState, ReadingBatch], tuple[Trained, optax.OptState, Metrics]]:
    """Returns the compiled update; it donates what is trained and the optimizer's state."""

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(
        trained: Trained, opt_state: optax.OptState, batch: ReadingBatch
    ) -> tuple[Trained, optax.OptState, Metrics]:
        (_, metrics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(trained, batch)
        updates, opt_state = optimizer.update(gradient, opt_state, trained)
        return optax.apply_updates(trained, updates), opt_state, metrics

    return update


def _loss(
    graphdef: ModelGraph,
    piece_weights: Float[Array, " pieces"],
    bag_weight: float,
    trained: Trained,
    batch: ReadingBatch,
) -> tuple[Float[Array, ""], Metrics]:
    params, heads = trained
    model = nnx.merge(graphdef, params)
    page, text = model(batch.pages), model(batch.texts)
    reading, accuracy = _reading_loss(heads, page.states[:, :, 0], batch)
    bag = _bag_loss(heads, page.pooled, piece_weights[None] * batch.page_pieces)
    bag += _bag_loss(heads, text.pooled, piece_weights[None] * batch.text_pieces)
    return reading + bag_weight * bag, {"characters": reading, "accuracy": accuracy, "bag": bag}


def _new_heads(encoder: Encoder, characters: int, seed: int) -> Heads:
    width, pieces = encoder.config.text.hidden_size, encoder.config.text.vocab_size
    keys = jax.random.split(jax.random.key(seed))
    return {
        "characters": 0.02 * jax.random.normal(keys[0], (width, characters * CHARACTERS)),
        "bag": 0.02 * jax.random.normal(keys[1], (width, pieces)),
        "bag_bias": jnp.zeros(pieces),
    }


def _reading_loss(
    heads: Heads, states: Float[Array, "B L H"], batch: ReadingBatch
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the cross-entropy of every visual token's characters, and their accuracy."""
    count = batch.characters.shape[1]
    start = jnp.argmax(batch.pages.index[0] >= 0)  # one prompt for all pages: one place for their visual tokens
    visual = jax.lax.dynamic_slice_in_dim(states, start, count, axis=1)  # [B, visual, H]
    logits = (visual @ heads["characters"]).reshape(*batch.characters.shape, CHARACTERS)
    accuracy = jnp.mean(jnp.argmax(logits, -1) == batch.characters)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.characters).mean(), accuracy


def _bag_loss(heads: Heads, pooled: Float[Array, "B H"], target: Float[Array, "B pieces"]) -> Float[Array, ""]:
    """Returns -mean_b sum_n target[b, n] log softmax(logits)[b, n] / sum_n target[b, n]."""
    scale = pooled.shape[-1] ** 0.5 / jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-6)
    logits = jax.nn.log_softmax(pooled * scale @ heads["bag"] + heads["bag_bias"][None])
    share = target / jnp.maximum(target.sum(-1, keepdims=True), 1e-6)
    return -jnp.mean(jnp.sum(share * logits, axis=-1))
