"""MaxSim written as it is defined: the oracle that every implementation is tested against."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# Score of a document without tokens: below any other, yet finite, so that no gradient becomes NaN, and its square, too,
# is finite in float32 and bfloat16. Scores are float32 whatever is scored; float16, which ends at 65,504, would not do.
NO_TOKENS = -1e18


def dense_maxsim(
    q: Float[Array, "B P D"],
    d: Float[Array, "N L D"],
    q_mask: Bool[Array, "B P"],
    d_mask: Bool[Array, "N L"],
    mean: bool,
) -> Float[Array, "B N"]:
    """Returns the scores, with all similarities [B, P, N, L] at once."""
    dtype = jnp.promote_types(jnp.promote_types(q.dtype, d.dtype), jnp.float32)
    q, d = (jnp.where(mask[:, :, None], x, 0).astype(dtype) for x, mask in ((q, q_mask), (d, d_mask)))
    similarity = jnp.einsum("bpd,nld->bpnl", q, d, precision="highest")
    best = jnp.max(jnp.where(d_mask, similarity, -jnp.inf), axis=-1)  # [B, P, N]
    some = jnp.any(d_mask, axis=-1)  # [N]
    total = jnp.sum(jnp.where(q_mask[:, :, None] & some[None, None], best, 0.0), axis=1)  # [B, N]
    if mean:
        total /= jnp.maximum(jnp.sum(q_mask, axis=1), 1)[:, None]
    q_nan, d_nan = (jnp.isnan(jnp.sum(x, axis=(1, 2))) for x in (q, d))  # XLA's maximum on a CPU skips NaN
    total = jnp.where(q_nan[:, None] | d_nan[None], jnp.nan, total)
    return jnp.where(some, total, NO_TOKENS)
