"""Pooling: how the states of a sequence become one vector."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from smart_jax.typing import HostOrDevice


def mean_state(states: Float[Array, "B L *rest"], mask: Bool[HostOrDevice, "B L"]) -> Float[Array, " B *rest"]:
    """Returns the mean of each row's states over its positions where `mask` is true, float32.

    Example:
      >>> mean_state(jnp.array([[[2.0], [4.0], [9.0]]]), jnp.array([[True, True, False]])).tolist()
      [[3.0]]
    """
    mask = jnp.asarray(mask)
    weights = (mask / mask.sum(axis=1, keepdims=True)).reshape(*mask.shape, *[1] * (states.ndim - 2))
    # Not a product of matrices, which accelerators round to bfloat16.
    return (states.astype(jnp.float32) * weights).sum(axis=1)


def first_state(states: Float[Array, "B L *rest"], mask: Bool[HostOrDevice, "B L"]) -> Float[Array, " B *rest"]:
    """Returns each row's state at its first position where `mask` is true, or its first of all.

    Example:
      >>> first_state(jnp.array([[[2.0], [4.0], [9.0]]]), jnp.array([[False, True, True]])).tolist()
      [[4.0]]
    """
    return _state_at(states, jnp.argmax(jnp.asarray(mask), axis=1))


def last_state(states: Float[Array, "B L *rest"], mask: Bool[HostOrDevice, "B L"]) -> Float[Array, " B *rest"]:
    """Returns each row's state at its last position where `mask` is true, or its last of all.

    Example:
      >>> last_state(jnp.array([[[2.0], [4.0], [9.0]]]), jnp.array([[True, True, False]])).tolist()
      [[4.0]]
    """
    return _state_at(states, states.shape[1] - 1 - jnp.argmax(jnp.asarray(mask)[:, ::-1], axis=1))


def _state_at(states: Float[Array, "B L *rest"], index: Int[Array, " B"]) -> Float[Array, " B *rest"]:
    return jnp.take_along_axis(states, index.reshape(-1, *[1] * (states.ndim - 1)), axis=1)[:, 0]
