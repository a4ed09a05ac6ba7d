"""MaxSim, the late-interaction score: for each query token its best document token, averaged over the query."""

from __future__ import annotations

import warnings
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from smart_jax.maxsim import pallas_gpu
from smart_jax.maxsim.argmax import argmax_maxsim
from smart_jax.maxsim.arrays import compute_dtype, like
from smart_jax.maxsim.pallas_tpu import tpu_forward
from smart_jax.maxsim.reference import dense_maxsim
from smart_jax.maxsim.xla import tiled_forward

Implementation = Literal["reference", "xla", "pallas_tpu", "pallas_gpu"]
IMPLEMENTATIONS = get_args(Implementation)
_FORWARD = {"xla": tiled_forward, "pallas_tpu": tpu_forward, "pallas_gpu": pallas_gpu.gpu_forward}


def maxsim(
    q: Float[ArrayLike, "B P D"],
    d: Float[ArrayLike, "N L D"],
    q_mask: Bool[ArrayLike, "B P"] | None = None,
    d_mask: Bool[ArrayLike, "N L"] | None = None,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    implementation: Implementation | None = None,
) -> Float[Array, "B N"]:
    """Late-interaction scores of every query with every document, differentiable in q and d.

        score[b, n] = (1 / P_b) * sum over kept p of  max over kept l of <q[b, p], d[n, l]>

    The mean over the query's kept tokens is SMART's (arXiv:2605.24938); reduction="sum" leaves out 1 / P_b (ColBERT,
    arXiv:2004.12832). Dropped document tokens never win, however low the others are. Products and sums are float32
    whatever the inputs. Works under jit, grad, vmap, jax.checkpoint and shard_map.

    Args:
      q, d: query and document tokens, usually L2-normalised; float32, float16, bfloat16 (or float64).
      q_mask, d_mask: True = kept; None keeps all.
      reduction: "mean" or "sum" over the query's kept tokens.
      implementation: "xla" (XLA, any device), "pallas_tpu" and "pallas_gpu" (kernels for TPUs and for Hopper GPUs;
        interpreted, slowly, without one) never hold [B, P, N, L], and their backward pass keeps one index per query
        token and document; "reference" holds everything at once, for tests. None = the device's kernel (but for
        float64), "xla" where there is none. Another GPU takes "xla" for "pallas_gpu", with a
        warning.

    Returns:
      float32 (float64 for float64 inputs). A document without kept tokens scores `NO_TOKENS` = -1e30 with a zero
      gradient: finite, last in any ranking and without weight in a softmax. A query without kept tokens scores 0
      with every other document. A NaN in a kept token gives NaN to its own item's scores, and to no others.

    Raises:
      ValueError: ranks, widths or mask shapes do not fit; an axis is empty; an unknown option.
      TypeError: tokens that are not floating point, or masks that are not boolean.

    Example:
      >>> q = jnp.array([[[1.0, 0.0], [0.0, 1.0]]])
      >>> d = jnp.array([[[0.6, 0.8], [-1.0, 0.0]]])
      >>> maxsim(q, d)  # (0.6 + 0.8) / 2
      Array([[0.7]], dtype=float32)
    """
    if reduction not in ("mean", "sum"):
        raise ValueError(f"reduction {reduction!r}: choose 'mean' or 'sum'")
    if implementation not in (None, *IMPLEMENTATIONS):
        raise ValueError(f"implementation {implementation!r}: choose None or one of {IMPLEMENTATIONS}")
    q, d = _tokens("q", q), _tokens("d", d)
    if q.shape[2] != d.shape[2]:
        raise ValueError(f"q has width {q.shape[2]} and d has width {d.shape[2]}: use the same model for both")
    q_mask, d_mask = _mask("q_mask", q_mask, q), _mask("d_mask", d_mask, d)
    if implementation == "reference":
        q_mask = jnp.ones(q.shape[:2], bool) if q_mask is None else q_mask
        d_mask = jnp.ones(d.shape[:2], bool) if d_mask is None else d_mask
        return dense_maxsim(q, d, q_mask, d_mask, reduction == "mean")
    # In shard_map all inputs must vary over the same mesh axes; doing it outside the custom VJP lets its transpose,
    # a sum over devices, complete the gradient of a replicated input.
    q, d, q_mask, d_mask = like((q, d, q_mask, d_mask), q, d, q_mask, d_mask)
    forward = _FORWARD[_for_device(implementation, compute_dtype(q, d))]
    return argmax_maxsim(q, d, q_mask, d_mask, reduction == "mean", forward)


def maxsim_pairs(
    q: Float[ArrayLike, "B P D"],
    d: Float[ArrayLike, "B K L D"],
    q_mask: Bool[ArrayLike, "B P"] | None = None,
    d_mask: Bool[ArrayLike, "B K L"] | None = None,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    implementation: Implementation | None = None,
) -> Float[Array, "B K"]:
    """Late-interaction scores of each query with its own K documents (reranking, mined negatives, distillation).

        score[b, k] = (1 / P_b) * sum over kept p of  max over kept l of <q[b, p], d[b, k, l]>

    Everything else as in `maxsim`.

    Raises:
      ValueError, TypeError: as `maxsim`, or q and d differ in B.
    """
    q, d = jnp.asarray(q), jnp.asarray(d)
    if d.ndim != 4 or d.shape[:1] != q.shape[:1]:
        raise ValueError(
            f"d has shape {d.shape} for q of shape {q.shape}: it must be [queries, documents of each, tokens, width]"
        )

    def own(pair):
        q, d, q_mask, d_mask = pair
        options = {"reduction": reduction, "implementation": implementation}
        return maxsim(q[None], d, None if q_mask is None else q_mask[None], d_mask, **options)[0]

    return lax.map(own, (q, d, q_mask, d_mask))  # one query at a time: its documents are work enough


def _for_device(implementation: Implementation | None, dtype: jnp.dtype) -> Implementation:
    """What was chosen, or the best for the default device."""
    if implementation is None and dtype == jnp.float64:
        return "xla"
    if implementation is None:
        return "pallas_tpu" if jax.default_backend() == "tpu" else "pallas_gpu" if pallas_gpu.available() else "xla"
    if implementation == "pallas_gpu" and jax.default_backend() == "gpu" and not pallas_gpu.available():
        warnings.warn("'pallas_gpu' is for Hopper GPUs (H100, H200): 'xla' takes its place here", stacklevel=3)
        return "xla"
    return implementation


def _tokens(name: str, x: ArrayLike) -> Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name} has dtype {x.dtype}: tokens must be floating point (use .astype)")
    if x.ndim != 3 or 0 in x.shape:
        raise ValueError(f"{name} has shape {x.shape}: tokens are [items, tokens, width], no axis empty")
    return x


def _mask(name: str, mask: ArrayLike | None, x: Array) -> Array | None:
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    if mask.dtype != bool:
        raise TypeError(f"{name} has dtype {mask.dtype}: a mask is boolean, True = kept (use .astype(bool))")
    if mask.shape != x.shape[:2]:
        raise ValueError(f"{name} has shape {mask.shape} for tokens of shape {x.shape}: it must be {x.shape[:2]}")
    return mask
