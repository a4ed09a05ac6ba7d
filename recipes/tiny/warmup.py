"""Reading warm-up of an untrained backbone: heads that are thrown away before contrastive training starts.

A retriever trained from scratch by a contrastive loss alone first has to find out that pages show text. Two heads
teach it that in minutes: from the state of each visual token, the characters that it covers; from the pooled state of
a page or a query, the pieces of its text in any order. Neither compares a query with a page, so the token states are
no retriever afterwards; the table of the tiny model has a row that shows it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from smart_jax.encoder import Encoder
from smart_jax.models import Batch

CHARACTERS = 95  # printable ASCII


class ReadingBatch(NamedTuple):
    """Pages with what they show, and texts about them."""

    pages: Batch  # B rows of one image each
    texts: Batch  # B rows without image
    characters: Int[np.ndarray, "B V C"]  # of each visual token: codes minus 32
    page_pieces: Bool[np.ndarray, "B N"]  # which pieces of the vocabulary each page's text has
    text_pieces: Bool[np.ndarray, "B N"]


def warm_up(
    encoder: Encoder,
    batches: Iterator[ReadingBatch],
    *,
    steps: int,
    learning_rate: float = 2e-3,
    bag_weight: float = 1.0,
    piece_weights: Float[np.ndarray, " N"] | None = None,
    seed: int = 0,
    log_every: int = 50,
) -> Encoder:
    """Trains all weights of the backbone to read; the heads are dropped.

    Loss: mean cross-entropy of the characters + bag_weight * mean cross-entropy of the bag of pieces, where
    the target is uniform over the pieces present, times `piece_weights`. One bag head serves pages and texts.

    Args:
      encoder: with float32 parameters.
      batches: all of one shape.
      steps: updates.
      learning_rate: after 50 steps of warm-up; falls linearly to 0 over the last 40 %.
      bag_weight: 0 = reading only.
      piece_weights: of each piece of the vocabulary, for example lower for frequent ones; None = 1.
      seed: of the heads.
      log_every: steps between printed lines.

    Returns:
      An encoder with the trained backbone.
    """
    first = next(batches)
    heads = _heads(encoder, first.characters.shape[2], seed)
    weights = jnp.ones(first.page_pieces.shape[1]) if piece_weights is None else jnp.asarray(piece_weights)
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, learning_rate, 50),
            optax.linear_schedule(learning_rate, 0.0, max(1, int(0.4 * steps))),
        ],
        [max(50, int(0.6 * steps))],
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.98, weight_decay=0.01))

    def loss_fn(trained, batch: ReadingBatch):
        params, heads = trained
        model = nnx.merge(encoder.graphdef, params)
        page, text = model(batch.pages), model(batch.texts)
        reading, accuracy = _reading_loss(heads, page.states[:, :, 0], batch)
        bag = _bag_loss(heads, page.pooled, weights * batch.page_pieces)
        bag += _bag_loss(heads, text.pooled, weights * batch.text_pieces)
        return reading + bag_weight * bag, {"characters": reading, "accuracy": accuracy, "bag": bag}

    @partial(jax.jit, donate_argnums=(0, 1))
    def update(trained, opt_state, batch: ReadingBatch):
        (_, metrics), gradient = jax.value_and_grad(loss_fn, has_aux=True)(trained, batch)
        updates, opt_state = optimizer.update(gradient, opt_state, trained)
        return optax.apply_updates(trained, updates), opt_state, metrics

    trained = jax.tree.map(jnp.copy, (encoder.params, heads))  # the update reuses its arguments' buffers
    opt_state, batch, start = optimizer.init(trained), first, time.perf_counter()
    for step in range(1, steps + 1):
        trained, opt_state, metrics = update(trained, opt_state, batch)
        batch = next(batches) if step < steps else batch
        if step % log_every == 0 or step == steps:
            values = " ".join(f"{name} {float(x):.3f}" for name, x in metrics.items())
            print(f"warm-up step {step}/{steps} {values} {time.perf_counter() - start:.0f} s", flush=True)
    return encoder.with_params(trained[0])


def _heads(encoder: Encoder, characters: int, seed: int) -> dict[str, Array]:
    width, pieces = encoder.config.text.hidden_size, encoder.config.text.vocab_size
    keys = jax.random.split(jax.random.key(seed))
    return {
        "characters": 0.02 * jax.random.normal(keys[0], (width, characters * CHARACTERS)),
        "bag": 0.02 * jax.random.normal(keys[1], (width, pieces)),
        "bag_bias": jnp.zeros(pieces),
    }


def _reading_loss(heads: dict[str, Array], states: Float[Array, "B L H"], batch: ReadingBatch):
    """Cross-entropy of every visual token's characters, and their accuracy."""
    count = batch.characters.shape[1]
    start = jnp.argmax(batch.pages.index[0] >= 0)  # one prompt for all pages: one place for their visual tokens
    visual = jax.lax.dynamic_slice_in_dim(states, start, count, axis=1)  # [B, V, H]
    logits = (visual @ heads["characters"]).reshape(*batch.characters.shape, CHARACTERS)
    accuracy = jnp.mean(jnp.argmax(logits, -1) == batch.characters)
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch.characters).mean(), accuracy


def _bag_loss(heads: dict[str, Array], pooled: Float[Array, "B H"], target: Float[Array, "B N"]) -> Float[Array, ""]:
    """-mean_b sum_n target[b, n] log softmax(logits)[b, n] / sum_n target[b, n]."""
    scale = pooled.shape[-1] ** 0.5 / jnp.maximum(jnp.linalg.norm(pooled, axis=-1, keepdims=True), 1e-6)
    logits = jax.nn.log_softmax(pooled * scale @ heads["bag"] + heads["bag_bias"])
    share = target / jnp.maximum(target.sum(-1, keepdims=True), 1e-6)
    return -jnp.mean(jnp.sum(share * logits, axis=-1))
