"""MaxSim of documents that are projected on the way: the bank's projected tokens never exist all at once.

Documents go group by group through projection and MaxSim; the backward pass projects each group again, and keeps the
positions of the maxima only. An adapter's training step then takes the memory of a group, not of the bank, for one
more projection of the documents. Of several devices each projects its own documents, which travel around the ring.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, PyTree, Shaped

from smart_jax.maxsim.api import maxsim, way_of
from smart_jax.maxsim.argmax import INDEX
from smart_jax.maxsim.arrays import like
from smart_jax.maxsim.ring import ring_maxsim
from smart_jax.typing import HostOrDevice

GROUP_VALUES = 2**20  # of projected tokens at once, 4 MiB in float32: enough for a fast product, soon forgotten


def projected_maxsim(
    project: Callable[[Any, Any], PyTree[Float[Array, "group M _"]]],
    params: PyTree,
    q: PyTree[Float[HostOrDevice, "B P _"]],
    states: PyTree[Shaped[HostOrDevice, "N ..."]],
    q_mask: Bool[HostOrDevice, "B P"] | None = None,
    d_mask: Bool[HostOrDevice, "N M"] | None = None,
    *,
    axis_name: str | tuple[str, ...] | None = None,
) -> PyTree[Float[Array, "B scored"]]:
    """Returns `maxsim(q, project(params, states), q_mask, d_mask)`, differentiable in params, q and states.

    Args:
      project: makes tokens [group, M, D] of the states of some documents, each document on its own.
      params: what `project` is given first.
      q: query tokens, or a pytree of them, such as one array for each of several widths. `project` then returns tokens
        in the same structure, and so are the scores, of one projection.
      states: an array [N, L, ...], or a pytree of arrays whose first one it is.
      q_mask: True = kept, as in `maxsim`.
      d_mask: of the projected tokens, which may be fewer than the states.
      axis_name: inside shard_map, mesh axes over which the documents are split: each device projects its own, and
        the projected groups travel around the ring of devices.

    Returns:
      Scores [B, N], or, with `axis_name`, [B, N * devices].

    Example:
      >>> import jax.numpy as jnp
      >>> q, states = jnp.eye(2)[None], jnp.array([[[1.0, 3.0], [2.0, 1.0]]])
      >>> projected_maxsim(lambda scale, states: scale * states, 0.5, q, states)  # (1 + 1.5) / 2
      Array([[1.25]], dtype=float32)
    """
    count, length = jax.tree.leaves(states)[0].shape[:2]
    most = max(1, GROUP_VALUES // (length * max(x.shape[2] for x in jax.tree.leaves(q))))
    group = max(n for n in range(1, min(most, count) + 1) if count % n == 0)

    # In a scan, nothing can merge the second projection with the first: no barrier is needed against it.
    @partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(INDEX), prevent_cse=False)
    def score(params: PyTree, q: PyTree, states: PyTree, keep: Array | None) -> PyTree:
        return jax.tree.map(lambda q, tokens: scores(q, tokens, keep), q, project(params, states))

    kept = None if q_mask is None else jnp.asarray(q_mask)

    def scores(q: Array, tokens: Array, keep: Array | None) -> Float[Array, "devices B group"]:
        if axis_name is None or lax.axis_size(axis_name) == 1:
            return maxsim(q, tokens, kept, keep)[None]
        arrays = q, tokens, kept, keep
        return ring_maxsim(*like(arrays, *arrays), axis_name, way_of(None, q, tokens))

    def join(scores: Float[Array, "groups devices B group"]) -> Float[Array, "B scored"]:
        return scores.transpose(2, 1, 0, 3).reshape(scores.shape[2], -1)

    groups = jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), (states, d_mask))
    return jax.tree.map(join, lax.map(lambda x: score(params, q, *x), groups))
