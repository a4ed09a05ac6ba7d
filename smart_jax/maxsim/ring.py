"""MaxSim of documents that are split over devices: they travel around a ring, and each device scores what it holds.

No device ever has more than its documents and one other device's, however many devices there are, and while some are
scored the next ones are under way. In the backward pass the documents travel again, and their gradient with them: after
a whole round it is at home, with each device's share.
"""

from __future__ import annotations

from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float

from smart_jax.maxsim.argmax import INDEX, Residuals, Way, backward, forward_with_residuals
from smart_jax.maxsim.arrays import like

Axes = str | tuple[str, ...]
_Tree = TypeVar("_Tree")


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def ring_maxsim(
    q: Float[Array, "B P D"],
    d: Float[Array, "N L D"],
    q_mask: Bool[Array, "B P"] | None,
    d_mask: Bool[Array, "N L"] | None,
    axes: Axes,
    way: Way,
) -> Float[Array, "devices B N"]:
    """Returns the mean MaxSim of this device's queries with the N documents of every device, in the devices' order.

    It is for shard_map, and differentiable in q and d; masks of None keep everything.
    """
    return _fwd(q, d, q_mask, d_mask, axes, way)[0]


def _fwd(
    q: Float[Array, "B P D"],
    d: Float[Array, "N L D"],
    q_mask: Bool[Array, "B P"] | None,
    d_mask: Bool[Array, "N L"] | None,
    axes: Axes,
    way: Way,
) -> tuple[Float[Array, "devices B N"], Residuals]:
    arrays = q, d, q_mask, d_mask

    def hop(here: tuple[Array, Array | None], _: None) -> tuple[tuple[Array, Array | None], tuple[Array, Array]]:
        d, d_mask = here
        after = _passed(here, axes)  # first, so that it overlaps with the scoring
        scores, residuals = forward_with_residuals(q, d, q_mask, d_mask, True, way)
        return after, (scores, residuals[-1])

    _, (scores, index) = lax.scan(hop, like((d, d_mask), *arrays), None, length=lax.axis_size(axes))
    return _by_device(scores, axes), (*arrays, checkpoint_name(index, INDEX))


def _bwd(
    axes: Axes, way: Way, residuals: Residuals, g: Float[Array, "devices B N"]
) -> tuple[Float[Array, "B P D"], Float[Array, "N L D"], None, None]:
    q, d, q_mask, d_mask, index = residuals

    Carry = tuple[Array, Array | None, Array, Array]

    def hop(carry: Carry, inputs: tuple[Array, Array]) -> tuple[Carry, None]:
        d, d_mask, dd, dq = carry
        of_q, of_d, *_ = backward(True, way, (q, d, q_mask, d_mask, inputs[0]), inputs[1])
        return (*_passed((d, d_mask, dd + of_d), axes), dq + of_q), None

    start = like((d, d_mask, jnp.zeros_like(d), jnp.zeros_like(q)), q, d, q_mask, d_mask, g)
    (_, _, dd, dq), _ = lax.scan(hop, start, (index, _by_device(g, axes)))
    return dq, dd, None, None


ring_maxsim.defvjp(_fwd, _bwd)


def _passed(tree: _Tree, axes: Axes) -> _Tree:
    """Returns what the device before this one has."""
    count = lax.axis_size(axes)
    after: _Tree = lax.ppermute(tree, axes, [(i, (i + 1) % count) for i in range(count)])
    return after


def _by_device(by_hop: Float[Array, "devices B N"], axes: Axes) -> Float[Array, "devices B N"]:
    """Returns scores in the order of the devices instead of the hops, or the other way round: one mapping does both.

    At hop k device i holds the documents of device i - k.
    """
    count = lax.axis_size(axes)
    return jnp.take(by_hop, (lax.axis_index(axes) - jnp.arange(count)) % count, axis=0)
