"""`smart_jax.maxsim`: the late-interaction score of arrays, or of embeddings."""

from __future__ import annotations

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from smart_jax.maxsim import Implementation
from smart_jax.maxsim import maxsim as maxsim_of_arrays
from smart_jax.retrieval.embeddings import Embeddings
from smart_jax.retrieval.score import score


def maxsim(
    q: Float[ArrayLike, "B P D"] | Embeddings,
    d: Float[ArrayLike, "N L D"] | Embeddings,
    q_mask: Bool[ArrayLike, "B P"] | None = None,
    d_mask: Bool[ArrayLike, "N L"] | None = None,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    implementation: Implementation | None = None,
) -> Float[Array, "B N"]:
    """Late-interaction scores of every query with every document.

    Of arrays it is `smart_jax.maxsim.maxsim`, differentiable in q and d. Of `Embeddings`, ragged and on the host, it is
    scored block by block, without masks and gradients.

    Raises:
      ValueError: as of arrays; masks, or another implementation than "xla", for `Embeddings`.
      TypeError: as of arrays; `Embeddings` on one side only.
    """
    if isinstance(q, Embeddings) or isinstance(d, Embeddings):
        return _of_embeddings(q, d, q_mask, d_mask, reduction, implementation)
    return maxsim_of_arrays(q, d, q_mask, d_mask, reduction=reduction, implementation=implementation)


def _of_embeddings(q, d, q_mask, d_mask, reduction: str, implementation: str | None) -> Float[Array, "B N"]:
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction {reduction!r}: choose 'mean' or 'sum'")
    for name, x, mask in (("q", q, q_mask), ("d", d, d_mask)):
        if not isinstance(x, Embeddings):
            raise TypeError(f"{name} is an array and the other side Embeddings: pass both as Embeddings")
        if mask is not None:
            raise ValueError(f"{name}_mask is given with Embeddings, which hold kept tokens only: leave it out")
    if implementation not in (None, "xla"):
        raise ValueError(f"implementation {implementation!r}: Embeddings are scored by 'xla'")
    if q.tokens.shape[1] != d.tokens.shape[1]:
        raise ValueError(f"tokens of q have width {q.tokens.shape[1]}, of d {d.tokens.shape[1]}: use the same model")
    scores = score(q, d, pooled_weight=0.0)
    return jnp.asarray(scores * np.diff(q.offsets).astype(np.float32)[:, None] if reduction == "sum" else scores)
