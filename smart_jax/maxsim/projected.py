"""MaxSim of documents that are projected on the way: the bank's projected tokens never exist all at once.

Documents go group by group through projection and MaxSim; the backward pass projects each group again, and keeps the
positions of the maxima only. An adapter's training step then takes the memory of a group, not of the bank, for one
more projection of the documents.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, PyTree

from smart_jax.maxsim import maxsim
from smart_jax.maxsim.argmax import INDEX
from smart_jax.typing import Array

GROUP_VALUES = 2**20  # of projected tokens at once, 4 MiB in float32: rows enough for a fast product, soon forgotten


def projected_maxsim(
    project: Callable[[PyTree, Float[Array, "G L *S"]], Float[Array, "G L D"]],
    params: PyTree,
    q: Float[Array, "B P D"],
    states: Float[Array, "N L *S"],
    q_mask: Bool[Array, "B P"] | None = None,
    d_mask: Bool[Array, "N L"] | None = None,
    *,
    axis_name: str | tuple[str, ...] | None = None,
) -> Float[Array, "B M"]:
    """`maxsim(q, project(params, states), q_mask, d_mask)`, differentiable in params, q and states.

    Args:
      project: from some documents' states to their tokens, each document on its own.
      axis_name: inside shard_map, mesh axes over which the documents are split: each device projects its own, and
        the projected groups of all devices are gathered. M = N * devices then, else M = N.
    """
    count, length = states.shape[:2]
    most = max(1, GROUP_VALUES // (length * q.shape[2]))
    group = max(n for n in range(1, min(most, count) + 1) if count % n == 0)
    keep = jnp.ones((count, length), bool) if d_mask is None else d_mask

    # In a scan, nothing can merge the second projection with the first: no barrier is needed against it.
    @partial(jax.checkpoint, policy=jax.checkpoint_policies.save_only_these_names(INDEX), prevent_cse=False)
    def score(params, q, states, keep):
        tokens = project(params, states)
        if axis_name is not None:
            tokens, keep = (lax.all_gather(x, axis_name, tiled=True) for x in (tokens, keep))
        return maxsim(q, tokens, q_mask, keep)

    groups = jax.tree.map(lambda x: x.reshape(-1, group, *x.shape[1:]), (states, keep))
    scores = lax.map(lambda x: score(params, q, *x), groups)  # [count / group, B, devices * group]
    scores = scores.reshape(*scores.shape[:2], -1, group)
    return scores.transpose(1, 2, 0, 3).reshape(len(q), -1)
